"""`--backend kserve://...`: the same records, and none of other bytes or of another model."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server needs extra serve")

from archive_runs import inferred, screened
from cart_peers import HOST, free_port
from commands import command
from serving import MODEL, ChangingProxy, RunningServer, essence
from tcp_proxy import Fault, TcpProxy

from deepcovid_edge import Model
from deepcovid_edge.backends.remote.client import KEY_VARIABLE, Address, Client
from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.decision.record import Prediction
from deepcovid_edge.errors import (
    BackendUnavailableError,
    ModelFileError,
    NotAssessedError,
    ServerMismatchError,
    UsageError,
)
from deepcovid_edge.imaging.synthetic.clinic_folder import write_clinic_folder
from deepcovid_edge.imaging.synthetic.phantom import draw_phantom, save_phantom
from deepcovid_edge.models import find_model
from deepcovid_edge.reasons import Reason


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clinic")
    write_clinic_folder(folder, 3)
    shutil.copy(folder / "phantom_000.png", folder / "again.png")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with RunningServer(tmp_path_factory.mktemp("serve"), "--variant", "fp32") as running:
        yield running


@pytest.fixture(scope="module")
def address(server: RunningServer) -> str:
    return f"kserve://{HOST}:{server.port}"


def with_paths(predictions: Iterator[Prediction]) -> list[dict[str, object]]:
    return [{**essence(found.as_dict()), "path": Path(found.path).name} for found in predictions]


@pytest.mark.parametrize(
    "options", [{}, {"threshold": 0.9}, {"indeterminate": False}], ids=["own", "other", "one"]
)
def test_records_are_those_of_this_machine(
    clinic: Path, address: str, options: dict[str, object]
) -> None:
    """The threshold is this run's: carts with site files of their own share a server."""
    with Model(variant="fp32", **options) as model:  # type: ignore[arg-type]
        here = with_paths(model.predict(clinic))
    with Model(backend=address, **options) as model:  # type: ignore[arg-type]
        there = with_paths(model.predict(clinic))
    assert there == here
    assert {one["status"] for one in there} == {"assessed", "not_assessed"}


def test_an_archive_is_assessed_by_a_server(
    clinic: Path, server: RunningServer, address: str, tmp_path: Path
) -> None:
    """With the records of `infer`; an error of the server ends the run with its own exit code."""
    pytest.importorskip("pyarrow", reason="screen needs extra archive")
    manifest = tmp_path / "m.parquet"
    command("manifest", clinic, "-o", manifest)
    command("infer", clinic, "-o", tmp_path / "infer.jsonl", "--backend", address)
    done = command("screen", manifest, "-o", tmp_path / "r", "--backend", address)
    assert done.returncode == 4, done.stderr
    assert screened(tmp_path / "r") == inferred(tmp_path / "infer.jsonl")
    with ChangingProxy(server.port, lambda image: image[:1] * len(image)) as proxy:
        proxied = ("--backend", f"kserve://{HOST}:{proxy.port}")
        done = command("screen", manifest, "-o", tmp_path / "changed", *proxied)
    assert done.returncode == 5, done.stderr
    assert "received other bytes than were sent" in done.stderr


@pytest.mark.parametrize("kind", ["flat", "one bit"])
def test_other_bytes_than_were_sent_give_no_record(
    clinic: Path, server: RunningServer, kind: str
) -> None:
    """`flat`: every byte equals the first, as an old Python backend gave with a new NumPy."""

    def change(image: bytes) -> bytes:
        if kind == "flat":
            return image[:1] * len(image)
        return image[:-1] + bytes([image[-1] ^ 1])

    with (
        ChangingProxy(server.port, change) as proxy,
        Model(backend=f"triton://{HOST}:{proxy.port}") as model,
        pytest.raises(ServerMismatchError, match="received other bytes than were sent"),
    ):
        model.predict_one(clinic / "phantom_001.png")
    with (
        ChangingProxy(server.port, lambda image: image) as proxy,
        Model(backend=f"triton://{HOST}:{proxy.port}") as model,
    ):
        assert model.predict_one(clinic / "phantom_001.png").status == "assessed"


def test_another_model_or_setting_is_refused_before_an_image_goes(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ServerMismatchError, match="it runs fp32, expected int8-cpu"):
        Model(backend=address, variant="int8-cpu")
    other = tmp_path / "squeezenet1_1.onnx"
    data = find_model("squeezenet1_1").read_bytes()
    other.write_bytes(data + b"\xfa\x7f\x00")  # an unknown field, empty
    with pytest.raises(ServerMismatchError, match="has the SHA-256"):
        Model(other, backend=address)
    with (
        Model(backend=address, ood="warn") as model,
        pytest.raises(ServerMismatchError, match="started with reject, expected warn"),
    ):
        next(iter(model.predict([])), None)
    monkeypatch.setattr("deepcovid_edge.backends.remote.backend.VERSION", "9.9.9")
    with pytest.raises(ServerMismatchError, match=r"expected 9\.9\.9"):
        Model(backend=address)


def test_pixels_do_not_go_to_a_server(address: str, clinic: Path) -> None:
    with Model(backend=address) as model:
        with pytest.raises(UsageError, match="takes image files"):
            model.infer(None)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="gives no heat maps"):
            model.explain(clinic / "phantom_000.png")
        with pytest.raises(UsageError, match="a server reads the images"):
            next(iter(model.predict(clinic, change=lambda image: image)))


def test_the_cart_s_assessor_may_be_a_server_s_caller(address: str, tmp_path: Path) -> None:
    """Its self-test sends drawn DICOM images, and builds a report of each record."""
    pytest.importorskip("highdicom", reason="the cart needs extra cart")
    from deepcovid_edge.cart.config import read_config
    from deepcovid_edge.cart.work.assessment import AssessmentRequest
    from deepcovid_edge.cart.work.assessor_child import loaded_assessor

    config = tmp_path / "cart.toml"
    config.write_text(
        f'[cart]\nspool = "spool"\nbackend = "{address}"\nheatmap = "none"\n'
        '[receive]\nfolders = ["in"]\n'
    )
    image = tmp_path / "a.png"
    save_phantom(draw_phantom(3, opacities=9), image)
    with loaded_assessor(read_config(config).cart, "squeezenet1_1", None) as assessor:
        request = AssessmentRequest(image, "0" * 64, is_dicom=False)
        record = assessor.assess(request)["record"]
        with Model(variant="fp32") as model:
            assert essence(record) == essence(model.predict_one(image).as_dict())
        assert (assessor.spool.results("0" * 64) / "picture.jpg").is_file()


def test_a_connection_that_breaks_is_made_again(server: RunningServer, clinic: Path) -> None:
    with TcpProxy(server.port) as proxy, Model(backend=f"kserve://{HOST}:{proxy.port}") as model:
        assert model.predict_one(clinic / "phantom_000.png").status == "assessed"
        proxy.fault = Fault("reset", after=20_000)
        model.backend._client._close_idle()  # type: ignore[attr-defined]
        cut = proxy.connections

        def heal() -> None:
            proxy.fault = None

        timer = threading.Timer(0.5, heal)
        timer.start()
        found = model.predict_one(clinic / "phantom_001.png")
        timer.join()
        assert found.status == "assessed"
        assert proxy.connections > cut + 1


def test_a_name_that_no_text_holds_is_assessed(address: str, clinic: Path, tmp_path: Path) -> None:
    image = (clinic / "phantom_000.png").read_bytes()
    names = [os.fsdecode(b"a.pn\xff"), "a." + "x" * 250, "a.röntgen"]
    for name in names:
        (tmp_path / name).write_bytes(image)
    with Model(backend=address) as model:
        assert [one.status for one in model.predict(tmp_path)] == ["assessed"] * len(names)


def test_an_image_that_is_too_large_for_the_server_is_an_answer(tmp_path: Path) -> None:
    """The server may close while its answer and the rest of the image are under way."""
    with (
        RunningServer(tmp_path, "--max-image", 1, "--assessors", 1) as server,
        Client(Address.of(f"kserve://{HOST}:{server.port}"), MODEL, patience=5) as client,
    ):
        for size in (2, 30):
            with pytest.raises(NotAssessedError, match="larger than 1 MiB") as caught:
                client.record(bytes(size << 20), "image.png")
            assert caught.value.reason is Reason.TOO_BIG


@pytest.mark.parametrize(("key", "sent"), [("abc\n", "Bearer abc"), (" abc ", "Bearer abc")])
def test_a_key_may_end_in_a_line_feed(key: str, sent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with Client(Address.of(f"kserve://{HOST}"), MODEL) as client:
        assert client._headers == {"authorization": sent}


@pytest.mark.parametrize("key", ["a\nb", "schlüssel"])
def test_a_key_that_is_none_is_refused_and_not_shown(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, key)
    with pytest.raises(UsageError, match=KEY_VARIABLE) as caught:
        Client(Address.of(f"kserve://{HOST}"), MODEL)
    assert key not in str(caught.value)


def test_a_server_that_is_away_ends_the_run_and_no_image_is_blamed(clinic: Path) -> None:
    began = time.monotonic()
    done = command("infer", clinic, "--backend", f"kserve://{HOST}:{free_port()}")
    assert time.monotonic() - began < 30
    assert done.returncode == ExitCode.NOT_THERE
    assert not done.stdout
    assert "no server answers" in done.stderr
    assert "start `deepcovid-edge serve`" in done.stderr
    assert "--resume" not in done.stderr


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("http://x", "expected one of kserve"),
        ("kserve://", "expected one of kserve"),
        ("kserve://a:b@x", "set DEEPCOVID_EDGE_API_KEY"),
        ("kserve://x:99999", "got 'kserve://x:99999'"),
        ("kserve://x/?a=1", "expected one of kserve"),
    ],
)
def test_an_address_is_checked(address: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Address.of(address)


def test_addresses_have_a_port_and_perhaps_a_path() -> None:
    assert str(Address.of("triton://pacs")) == "http://pacs:8000"
    assert str(Address.of("kserve+https://pacs/edge/")) == "https://pacs:443/edge"


def test_a_server_runs_models_with_a_manifest(address: str) -> None:
    with pytest.raises((UsageError, ModelFileError)):
        Model(__file__, backend=address)


@pytest.mark.parametrize("with_output", [True, False])
def test_a_server_that_goes_away_in_a_run_leaves_what_is_written(
    clinic: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_output: bool
) -> None:
    """Only a file of records can be gone on with."""
    record, asked = Client.record, iter(range(100))

    def away(self: Client, image: bytes, name: str) -> object:
        if next(asked) < 2:
            return record(self, image, name)
        raise BackendUnavailableError("backend: x: no answer in 120 s")

    monkeypatch.setattr(Client, "record", away)
    output = ("-o", tmp_path / "r.jsonl") if with_output else ()
    done = command("infer", clinic, "--backend", address, *output)
    assert done.returncode == ExitCode.NOT_THERE
    assert "no answer in 120 s" in done.stderr
    assert ("--resume goes on" in done.stderr) == with_output


@pytest.mark.parametrize(("kind", "times"), [(signal.SIGINT, 1), (signal.SIGTERM, 3)])
def test_a_stop_does_not_wait_for_a_server_that_hangs(
    clinic: Path,
    server: RunningServer,
    address: str,
    tmp_path: Path,
    kind: signal.Signals,
    times: int,
) -> None:
    for number in range(300):
        (tmp_path / f"{number}.png").symlink_to(clinic / "phantom_001.png")
    program = [sys.executable, "-m", "deepcovid_edge", "infer", str(tmp_path), "--json"]
    # A shell's background job ignores SIGINT, and hands that on to what it starts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        pipe = subprocess.PIPE
        process = subprocess.Popen([*program, "--backend", address], stdout=pipe, stderr=pipe)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            assert process.stdout
            assert process.stdout.readline()
            server.freeze()
            time.sleep(0.5)
            for _ in range(times):
                process.send_signal(kind)
                time.sleep(0.1)
            _, messages = process.communicate(timeout=20)
        finally:
            server.thaw()
            process.kill()
    assert process.returncode == ExitCode.INTERRUPTED, messages
    assert b"Traceback" not in messages
