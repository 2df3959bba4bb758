"""A console sends films; reports and pictures lie in the PACS, in the same study."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cart_peers import (
    HOST,
    Orthanc,
    dcmtk,
    free_port,
    needs_dcmtk,
    needs_orthanc,
    storescu,
    wait_until,
)
from cart_results import needs_dciodvfy
from dicom_files import EXPLICIT, HTJ2K, J2K, JPEG_LS, LOSSLESS_SV1, RLE, WRITABLE
from PIL import Image
from pydicom import dcmread
from whole_cart import KANARI, WholeCart, phantom_film

from deepcovid_edge.imaging.dicom.syntaxes import IMPLICIT

pytestmark = [needs_dcmtk, needs_orthanc]
SYNTAXES = [EXPLICIT, IMPLICIT, LOSSLESS_SV1, JPEG_LS, J2K, HTJ2K if HTJ2K in WRITABLE else RLE]
_PROPOSED = {IMPLICIT: "-xi", EXPLICIT: "-xe", LOSSLESS_SV1: "-xs", JPEG_LS: "-xt", J2K: "-xv"}
LATERAL = 6
"""Number of the film that is refused."""


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with Orthanc(tmp_path_factory.mktemp("pacs")) as server:
        yield server


@pytest.fixture(scope="module")
def cart(tmp_path_factory: pytest.TempPathFactory, pacs: Orthanc) -> Iterator[WholeCart]:
    """A cart that has received six films of six syntaxes and a lateral one."""
    folder = tmp_path_factory.mktemp("cart")
    destination = {"name": "pacs", "ae_title": "ORTHANC", "host": HOST, "port": pacs.port}
    with WholeCart(folder, [destination]) as running:
        for number, syntax in enumerate(SYNTAXES):
            data = phantom_film(number, syntax, opacities=9 * (number % 2))
            send(running, folder / f"{number}.dcm", data, _PROPOSED.get(syntax, "-xr"))
        lateral = phantom_film(LATERAL, EXPLICIT, ViewPosition="LL", PatientOrientation=["P", "F"])
        send(running, folder / f"{LATERAL}.dcm", lateral, "-xe")
        wait_until(lambda: running.sent() == 2 * len(SYNTAXES) + 1, 200, what="objects in the PACS")
        yield running


def send(cart: WholeCart, path: Path, data: bytes, proposed: str) -> None:
    path.write_bytes(data)
    # HTJ2K is newer than DCMTK 3.6: the film goes out by pynetdicom.
    if dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == HTJ2K:
        send_by_pynetdicom(cart.port, path)
        return
    done = storescu(cart.port, path, options=[proposed])
    assert "0x0000" in done.stdout or done.returncode == 0, done.stdout


def send_by_pynetdicom(port: int, path: Path) -> None:
    from pynetdicom import AE

    film = dcmread(path)
    entity = AE(ae_title="CONSOLE")
    entity.add_requested_context(film.SOPClassUID, film.file_meta.TransferSyntaxUID)
    association = entity.associate(HOST, port, ae_title="CART")
    try:
        assert association.send_c_store(film).Status == 0
    finally:
        association.release()


def test_every_film_has_its_report_and_picture_in_its_own_study(
    cart: WholeCart, pacs: Orthanc
) -> None:
    for number in range(len(SYNTAXES)):
        found = pacs.find(StudyInstanceUID=f"2.25.{8000 + number}")
        classes = sorted(one["MainDicomTags"]["SOPInstanceUID"] for one in found)
        assert len(classes) == 2
    series = pacs.find("Series", Modality="SR")
    assert len(series) == len(SYNTAXES) + 1


def test_a_viewer_finds_them_by_c_find(cart: WholeCart, pacs: Orthanc) -> None:
    keys = ["-k", "QueryRetrieveLevel=SERIES", "-k", "StudyInstanceUID=2.25.8001"]
    keys += ["-k", "Modality", "-k", "SeriesDescription"]
    done = dcmtk("findscu", "-S", "-aec", "ORTHANC", *keys, HOST, pacs.port)
    assert done.returncode == 0
    assert "AI RESULT - RESEARCH USE ONLY" in done.stdout
    assert "AI HEAT MAP - RESEARCH USE ONLY" in done.stdout


@needs_dciodvfy
def test_what_the_pacs_has_is_valid_dicom(cart: WholeCart, pacs: Orthanc, tmp_path: Path) -> None:
    for instance in pacs.find():
        path = tmp_path / f"{instance['ID']}.dcm"
        path.write_bytes(pacs.get(f"/instances/{instance['ID']}/file"))
        checked = subprocess.run(["dciodvfy", path], capture_output=True, text=True, timeout=60)
        assert "Error - " not in checked.stderr + checked.stdout
        if dcmread(path).Modality == "SR":
            tree = dcmtk("dsrdump", path)
            assert tree.returncode == 0
            assert "RESEARCH USE ONLY" in tree.stdout


def test_the_pacs_shows_the_picture_that_the_cart_drew(cart: WholeCart, pacs: Orthanc) -> None:
    for series in pacs.find("Series", SeriesDescription="AI HEAT MAP*"):
        (instance,) = pacs.get(f"/series/{series['ID']}")["Instances"]
        shown = Image.open(io.BytesIO(pacs.get(f"/instances/{instance}/preview"))).convert("RGB")
        kept = [
            np.asarray(Image.open(path).convert("RGB"))
            for path in (cart.spool / "results").rglob("*.png")
        ]
        # The burned line lies below the picture.
        assert any(
            np.array_equal(np.asarray(shown)[: one.shape[0], : one.shape[1]], one) for one in kept
        )


def test_a_refused_film_has_a_report_without_a_number_and_no_picture(
    cart: WholeCart, pacs: Orthanc, tmp_path: Path
) -> None:
    (instance,) = pacs.find(StudyInstanceUID=f"2.25.{8000 + LATERAL}")
    path = tmp_path / "refusal.dcm"
    path.write_bytes(pacs.get(f"/instances/{instance['ID']}/file"))
    tree = dcmtk("dsrdump", path).stdout
    assert "E_VIEW" in tree
    assert " NUM:" not in tree
    assert dcmread(path).SeriesDescription == "AI: NOT ASSESSED"


def test_a_film_that_comes_again_is_not_judged_again(cart: WholeCart) -> None:
    send(cart, cart.folder / "0.dcm", (cart.folder / "0.dcm").read_bytes(), "-xe")
    status = cart.status()
    assert status["films"]["judged"] == len(SYNTAXES)
    assert status["films"]["refused"] == 1
    assert len(cart.rows("SELECT * FROM arrival WHERE film_id = 1")) == 2


def test_the_status_counts_what_is_where(cart: WholeCart) -> None:
    status = cart.status()
    assert status["queues"]["pacs"]["sent"] == 2 * len(SYNTAXES) + 1
    assert status["alerts"] == []
    assert sum(status["decisions"].values()) == len(SYNTAXES) + 1


def test_the_records_are_those_of_infer(cart: WholeCart, tmp_path: Path) -> None:
    import json

    from deepcovid_edge import Model

    rows = cart.rows("SELECT record FROM result ORDER BY film_id")
    films = [cart.folder / f"{number}.dcm" for number in range(len(SYNTAXES) + 1)]
    apart = ("path", "sha256", "timings_ms", "heatmap", "overlay", "regions")
    with Model() as model:
        for row, found in zip(rows, model.predict(films), strict=True):
            own, of_infer = json.loads(row["record"]), found.as_dict()
            for name in apart:  # the cart wrote the film's file meta, and made a heat map
                own.pop(name), of_infer.pop(name)
            assert own == of_infer


def test_the_patient_is_named_nowhere_but_in_the_spool(cart: WholeCart) -> None:
    assert "KANARI" not in cart.said().upper()
    arguments = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True)
    assert "KANARI" not in arguments.stdout.upper()
    for table in ("film", "arrival", "result", "object", "outbox", "event", "alert", "meta"):
        held = " ".join(str([*row]) for row in cart.rows(f"SELECT * FROM {table}"))
        assert KANARI.split("^", maxsplit=1)[0].upper() not in held.upper()


def test_the_pacs_commits_itself_on_an_association_of_its_own_and_sends_no_films(tmp_path: Path) -> None:
    port = free_port()
    pacs = Orthanc(tmp_path / "pacs", peers={"cart": ("CART", port)})
    destination = {"name": "pacs", "ae_title": "ORTHANC", "host": HOST, "port": pacs.port}
    destination |= {"commitment": True}
    with pacs, WholeCart(tmp_path / "cart", [destination], port=port) as running:
        send(running, tmp_path / "film.dcm", phantom_film(50, EXPLICIT), "-xe")
        states = "SELECT state FROM outbox"
        wait_until(
            lambda: [row["state"] for row in running.rows(states)] == ["committed"] * 2,
            120,
            what="storage commitment by the PACS",
        )
        refused = storescu(port, tmp_path / "film.dcm", calling="ORTHANC")
        assert "0x124" in refused.stdout
