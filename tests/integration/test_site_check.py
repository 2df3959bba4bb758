"""`site-check` and `--site` as a clinic meets them: the shipped model, and processes for some.

The others run in this process, which has the runtime loaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from commands import command as run
from drawn_once import phantom_files

from deepcovid_edge.cli.main import run as main
from deepcovid_edge.decision.site_file import read_site, write_site
from deepcovid_edge.errors import SettingsMismatchError
from deepcovid_edge.files import file_sha256
from deepcovid_edge.manifest import read_manifest
from deepcovid_edge.models import find_model

pytestmark = pytest.mark.int8

ROOT = Path(__file__).parents[2]
XRAY = Path(os.environ.get("DEEPCOVID_XRAY", ROOT.parent / "shared" / "xray"))
SITES = XRAY.parent / "sites"
SIIM = XRAY.parent / "siim"
ACTUALMED = "agchung/Actualmed-COVID-chestxray-dataset"
TB_NORMAL = "TB set via GitKentC/lundis, 256 px"
MODEL = find_model("squeezenet1_1")
needs_xray = pytest.mark.skipif(
    not (XRAY / "manifest.csv").is_file(),
    reason="no real X-rays: ../shared/xray is missing (DEEPCOVID_XRAY overrides)",
)

needs_sites = pytest.mark.skipif(
    not (SITES / "manifest.csv").is_file() or not (XRAY / "manifest.csv").is_file(),
    reason="no images of further sites: ../shared/sites is missing",
)
needs_siim = pytest.mark.skipif(
    not (SIIM / "manifest.csv").is_file(), reason="no images of SIIM: ../shared/siim is missing"
)


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "deepcovid_edge", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    phantom_files(folder, count=4)
    return folder


@pytest.fixture
def site(images: Path, tmp_path: Path) -> Path:
    """A clinic's folder: two normals of which one lies there twice, a covid image, and a letter."""
    drawn = sorted(images.iterdir())
    for label, number in (("normal", 0), ("normal", 1), ("covid", 2)):
        (tmp_path / "site" / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(drawn[number], tmp_path / "site" / label / f"Meier_Anna_{number}.png")
    shutil.copy(drawn[0], tmp_path / "site" / "normal" / "again.png")
    (tmp_path / "site" / "normal" / "letter.txt").write_text("Dear colleague")
    return tmp_path / "site"


def site_file(path: Path, **changes: Any) -> Path:
    """A site file of the shipped model in FP32, that says it is usable from 0.9 on."""
    facts = {
        "schema_version": 1,
        "name": "cart 1",
        "verdict": "usable",
        "reasons": ["All is well."],
        "threshold": 0.9,
        "indeterminate_range": None,
        "model": {"name": "squeezenet1_1", "sha256": file_sha256(MODEL)},
        **changes,
    }
    write_site(path, facts)
    return path


# --- site-check --------------------------------------------------------------------------------


def test_a_folder_per_class_becomes_a_site_file(site: Path, tmp_path: Path) -> None:
    done = process("site-check", site, "--name", "cart 1", "-o", tmp_path / "out/site.json")
    assert done.returncode == 3, done.stderr
    facts = json.loads((tmp_path / "out/site.json").read_text())
    assert facts["name"] == "cart 1"
    assert facts["data"]["images"] == 3
    assert facts["data"]["repeated"] == 1
    assert facts["data"]["not_assessed"] == {"E_NOT_IMAGE": 1}
    assert facts["data"]["by_label"]["normal"]["images"] == 2
    assert facts["own"]["specificity"]["trials"] == 2
    assert facts["verdict"] in ("not usable", "not enough images")
    assert any("synthetic, not of patients" in reason for reason in facts["reasons"])
    assert facts["verdict"].upper() in done.stdout
    assert all(reason in done.stdout for reason in facts["reasons"])
    assert read_site(tmp_path / "out/site.json").name.name == "cart 1"


def test_a_variant_that_is_named_is_checked_and_classifies(
    site: Path, images: Path, tmp_path: Path
) -> None:
    for variant, name in (("fp32", "squeezenet1_1"), ("int8-cpu", "squeezenet1_1-int8-cpu")):
        file = tmp_path / f"{variant}.json"
        assert run("site-check", site, "--variant", variant, "-o", file).returncode == 3
        assert read_site(file).model == name
        done = run("infer", images, "--variant", variant, "--site", file)
        assert done.returncode in (0, 4, 5)
        assert "cannot be used together" not in done.stderr or "the verdict is" in done.stderr


def test_decisions_of_infer_stand_beside_those_of_the_threshold(site: Path, tmp_path: Path) -> None:
    done = run("site-check", site, "-o", tmp_path / "site.json")
    decisions = json.loads((tmp_path / "site.json").read_text())["decisions"]
    found = Counter(
        (Path(record["path"]).parent.name, record["decision"])
        for record in map(json.loads, run("infer", site).stdout.splitlines())
        if record["decision"] and Path(record["path"]).name != "again.png"
    )
    for label, counts in decisions.items():
        assert counts == {name: found[label, name] for name in counts}
        words = ", ".join(f"{count} {name}" for name, count in counts.items())
        assert re.search(rf"^{label} .*  {words}$", done.stdout, re.MULTILINE)
    assert "not assessed: 1 file: E_NOT_IMAGE" in done.stdout


def test_images_of_a_soft_label_are_decided_and_count_in_no_figure(
    site: Path, images: Path, tmp_path: Path
) -> None:
    (site / "atypical").mkdir()
    shutil.copy(sorted(images.iterdir())[3], site / "atypical")
    done = run("site-check", site, "-o", tmp_path / "site.json")
    facts = json.loads((tmp_path / "site.json").read_text())
    assert facts["data"]["images"] == 4
    assert facts["data"]["by_label"]["atypical"]["images"] == 1
    assert facts["data"]["by_label"]["atypical"]["positive"] is None
    assert sum(facts["decisions"]["atypical"].values()) == 1
    assert facts["own"]["specificity"]["trials"] == 2
    assert facts["own"]["sensitivity"]["trials"] == 1
    assert "in no figure below: atypical" in done.stdout
    assert "- 1 of 5 files was not assessed: more than 10%" in done.stdout
    for label in ("normal", "covid"):
        shutil.rmtree(site / label)
    done = run("site-check", site)
    assert done.returncode == 1
    assert "give at least normal images" in done.stderr


@pytest.mark.parametrize(
    ("named", "said"),
    [(("P1", "", ""), "3 images of 3 patients. "), (("P1", "P1", ""), "3 images of 2 patients. ")],
)
def test_an_image_without_a_patient_counts_as_one_of_its_own(
    named: tuple[str, ...], said: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = "normal/Meier_Anna_0.png", "normal/Meier_Anna_1.png", "covid/Meier_Anna_2.png"
    rows = [
        f"{file};{file.split('/')[0]};{patient}\n"
        for file, patient in zip(files, named, strict=True)
    ]
    (site / "manifest.csv").write_text("path;label;patient\n" + "".join(rows))
    assert main(["site-check", str(site)]) == 3
    assert said in capsys.readouterr().out


def test_a_site_file_holds_no_file_name(site: Path, tmp_path: Path) -> None:
    run("site-check", site, "-o", tmp_path / "site.json")
    text = (tmp_path / "site.json").read_text()
    assert "Meier" not in text
    assert str(tmp_path) not in text


def test_the_hash_of_the_images_tells_contents_and_labels_and_no_order(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def digest() -> str:
        assert main(["site-check", str(site), "--json"]) == 3
        return str(json.loads(capsys.readouterr().out)["data"]["sha256"])

    before = digest()
    (site / "normal/Meier_Anna_0.png").rename(site / "normal/zzz.png")
    assert digest() == before
    (site / "normal/Meier_Anna_1.png").rename(site / "covid/Meier_Anna_1.png")
    assert digest() != before


def test_a_site_without_normals_is_refused(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(site / "normal")
    assert main(["site-check", str(site)]) == 1
    assert "give at least normal images" in capsys.readouterr().err


def test_one_image_under_two_labels_is_refused(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(site / "normal/again.png", site / "covid/again.png")
    assert main(["site-check", str(site)]) == 1
    assert "the same image is labelled" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--source", "elsewhere"), 1, "no image of source 'elsewhere'"),
        (("--split", "val"), 1, "no image of split 'val'"),
        (("--model", "none"), 6, "expected a shipped model"),
        (("--workers", "0"), 2, "--workers: got 0"),
    ],
)
def test_what_cannot_be_done_is_said(
    site: Path,
    options: tuple[str, ...],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["site-check", str(site), *options]) == code
    assert said in capsys.readouterr().err


@needs_sites
def test_the_known_failure_at_an_unseen_hospital_is_said_in_words(tmp_path: Path) -> None:
    """Of these normal images too many are called positive at the model's own threshold."""
    where = ("--split", "external", "--source", TB_NORMAL, "--name", "TB screening")
    done = run("site-check", SITES, *where, "-o", tmp_path / "site.json")
    assert done.returncode == 3
    assert "NOT USABLE. Do not use this model on images of this site" in done.stdout
    assert re.search(r"of 23\d images without covid are called positive", done.stdout)
    refused = process("infer", XRAY / "external/covid", "--site", tmp_path / "site.json")
    assert refused.returncode == 5
    assert refused.stdout == ""
    assert "the verdict is `not usable`. At the model's own threshold" in refused.stderr
    assert "required: at least 70%: failed. Choose another model" in refused.stderr


@needs_xray
@pytest.mark.parametrize(
    ("stored", "where"),
    [
        ("actualmed", (XRAY, "--split", "external", "--source", ACTUALMED)),
        pytest.param(
            "tb-normal", (SITES, "--split", "external", "--source", TB_NORMAL), marks=needs_sites
        ),
        ("test", (XRAY, "--split", "test")),
        ("external", (XRAY, "--split", "external")),
        pytest.param("siim-test", (SIIM, "--split", "test"), marks=needs_siim),
    ],
)
def test_stored_results_are_those_of_the_shipped_model(
    stored: str, where: tuple[str | Path, ...]
) -> None:
    """Where this fails after a change of the model: `make site`."""
    expected = json.loads((ROOT / f"benchmarks/results/site/{stored}.json").read_text())
    options = (
        "--backend",
        "onnxruntime",
        "--variant",
        "fp32",
        "--name",
        expected["name"],
        "--json",
    )
    found = json.loads(run("site-check", *where, *options).stdout)
    assert found["model"]["sha256"] == expected["model"]["sha256"]
    for name in ("verdict", "own", "data", "rules"):
        assert found[name] == expected[name], name


@needs_xray
def test_a_site_like_the_training_data_is_usable_with_a_threshold_of_its_own(
    tmp_path: Path,
) -> None:
    """The model's own finds 89 % of the positives there, and 90 % are required."""
    done = run("site-check", XRAY, "--split", "test", "-o", tmp_path / "site.json")
    assert done.returncode == 0, done.stdout
    assert read_site(tmp_path / "site.json").threshold < read_manifest(MODEL).threshold
    image = next((XRAY / "test/normal").iterdir())
    classified = json.loads(run("infer", image, "--site", tmp_path / "site.json").stdout)
    assert classified["site"]["sha256"] == file_sha256(tmp_path / "site.json")
    assert "W_SITE" not in classified["warnings"]


# --- infer --site ------------------------------------------------------------------------------


def test_its_threshold_decides_and_every_record_says_so(images: Path, tmp_path: Path) -> None:
    path = site_file(tmp_path / "site.json")
    done = process("infer", images, "--site", path)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        record = json.loads(line)
        assert record["limits"] == {"threshold": 0.9}
        assert record["decision"] == ("positive" if record["probability"] >= 0.9 else "negative")
        assert record["site"] == {"name": "cart 1", "sha256": file_sha256(path)}
        assert record["model_sha256"] == file_sha256(MODEL)  # the variant that it was made with
        assert record["warnings"] == ["W_SYNTHETIC"]


def test_a_check_with_too_few_images_warns_in_every_record(images: Path, tmp_path: Path) -> None:
    path = site_file(tmp_path / "site.json", verdict="not enough images")
    done = run("infer", images, "--site", path, "--csv")
    assert done.returncode == 0
    assert all("W_SITE" in line for line in done.stdout.splitlines()[1:])


def test_heat_maps_go_by_its_threshold(images: Path, tmp_path: Path) -> None:
    image = sorted(images.iterdir())[0]
    path = site_file(tmp_path / "site.json")
    done = run("heatmap", image, "--method", "activation", "-o", tmp_path, "--site", path)
    assert json.loads(done.stdout)["site"]["name"] == "cart 1"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"name": "resnet18", "sha256": "0" * 64}}, "is for resnet18 (0000000000000000)"),
        ({"verdict": "not usable"}, "the verdict is `not usable`. All is well."),
        (
            {"verdict": "not usable", "reasons": ["A: passed.", "B: failed.", "C: undecided."]},
            "the verdict is `not usable`. B: failed. Choose another model",
        ),
        ({"verdict": "fine"}, "a damaged one (verdict fine)"),
    ],
)
def test_what_does_not_belong_together_is_refused_before_an_image_is_classified(
    change: dict[str, Any], said: str, images: Path, tmp_path: Path
) -> None:
    path = site_file(tmp_path / "site.json", **change)
    done = run("infer", images, "--site", path, "-o", tmp_path / "r.jsonl")
    assert done.returncode == 5
    assert "E_MODEL: Model and site file cannot be used together." in done.stderr
    assert said in done.stderr
    assert not (tmp_path / "r.jsonl").exists()


def test_a_site_file_of_another_form_of_the_model_is_refused(images: Path, tmp_path: Path) -> None:
    path = site_file(tmp_path / "site.json")
    done = run("infer", images, "--site", path, "--model", "squeezenet1_1-int8-cpu")
    assert done.returncode == 5
    assert "this run would use squeezenet1_1-int8-cpu" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 2}, "schema_version 2, expected 1"),
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"threshold": None}, "a damaged one"),
        ({"indeterminate_range": {"low": 0.9, "high": 0.1}}, "a damaged one"),
        ({"indeterminate_range": {"low": 0.1, "high": 0.2}}, "a damaged one"),
        ({"model": "squeezenet1_1"}, "a damaged one"),
    ],
)
def test_a_site_file_that_says_nonsense_is_refused(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsMismatchError, match=f"E_MODEL.*{said}"):
        read_site(site_file(tmp_path / "site.json", **change))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": 1}', b"[" * 9999]
)
def test_a_file_of_something_else_is_no_site_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "site.json"
    path.write_bytes(content)
    with pytest.raises(SettingsMismatchError, match="no site file, or a damaged one"):
        read_site(path)


def test_a_site_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = site_file(tmp_path / "site.json")
    whole = path.read_bytes()
    for cut in range(len(whole) - 1):  # the last byte is a line end
        path.write_bytes(whole[:cut])
        with pytest.raises(SettingsMismatchError):
            read_site(path)


def test_a_threshold_changed_by_hand_is_refused(tmp_path: Path) -> None:
    path = site_file(tmp_path / "site.json")
    path.write_text(path.read_text().replace('"threshold": 0.9', '"threshold": 0.8'))
    with pytest.raises(SettingsMismatchError, match="its checksum is not that of its content"):
        read_site(path)


def test_a_site_file_goes_through_a_link(tmp_path: Path) -> None:
    """`-o /dev/stdout` as root would replace a link of the system."""
    (tmp_path / "link").symlink_to("site.json")
    site_file(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert read_site(tmp_path / "site.json").threshold == 0.9


def test_a_site_file_that_is_not_there_and_one_with_a_threshold(
    images: Path, tmp_path: Path
) -> None:
    assert run("infer", images, "--site", tmp_path / "none.json").returncode == 6
    done = run("infer", images, "--site", site_file(tmp_path / "s.json"), "--threshold", "0.5")
    assert done.returncode == 2
    assert "--threshold: got 0.5 with a site file" in done.stderr


def test_a_run_is_not_gone_on_with_by_another_site_file(images: Path, tmp_path: Path) -> None:
    first, second = (
        site_file(tmp_path / f"{name}.json", name=name) for name in ("first", "second")
    )
    output = tmp_path / "r.jsonl"
    assert run("infer", images, "--site", first, "-o", output).returncode == 0
    before = output.read_bytes()
    done = run("infer", images, "--site", second, "-o", output, "--resume")
    assert done.returncode == 2
    assert output.read_bytes() == before
    assert run("infer", images, "--site", first, "-o", output, "--resume").returncode == 0
