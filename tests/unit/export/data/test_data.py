"""The images of a run: what is excluded and why, how splits are drawn, and what stops a run."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from commands import Done, command
from numpy.typing import NDArray

pytest.importorskip("torch", reason="the workstation side needs extra export")

from deepcovid_edge.datasets.dataset import load_dataset
from deepcovid_edge.errors import DataError, OutputError
from deepcovid_export.data.images import TrainingData, training_data, write_splits
from deepcovid_export.recipe import DataSettings, Recipe

THREE = {"train": 0.7, "val": 0.15, "test": 0.15}


def recipe(classes: dict[str, list[str]] | None = None, **data: Any) -> Recipe:
    classes = classes or {"non": ["non"], "covid": ["covid"]}
    return Recipe("r", "squeezenet1_1", "covid", classes, data=DataSettings(**data))


def picture(seed: int) -> NDArray[np.uint8]:
    draw = np.random.default_rng(seed)
    field = cv2.resize(draw.normal(size=(12, 12)).astype(np.float32), (128, 120))
    return np.clip(128 + 40 * field, 0, 255).astype(np.uint8)


def image(path: Path, seed: int | None = None) -> Path:
    """An image with content of its own, seeded by its path unless a seed is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if seed is None:
        seed = int.from_bytes(
            hashlib.sha256("/".join(path.parts[-3:]).encode()).digest()[:4], "big"
        )
    cv2.imwrite(str(path), picture(seed))
    return path


@pytest.fixture
def split_data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    for split, count in (("train", 3), ("val", 2)):
        for label in ("non", "covid"):
            for number in range(count):
                image(data / split / label / f"{number}.png")
    return data


def placed(found: TrainingData) -> dict[str, str]:
    images = (*found.train, *found.val, *found.aside)
    return {"/".join(one.path.parts[-2:]): one.split for one in images}


def test_what_is_excluded_is_named_and_counted(split_data: Path) -> None:
    broken = split_data / "train/covid/broken.png"
    broken.write_text("no image")
    image(split_data / "train/fracture/1.png")
    image(split_data / "val/fracture/2.png")
    image(split_data / "test/covid/3.png")
    found = training_data(split_data, recipe())
    assert len(found.train) == 6
    assert len(found.val) == 4
    reasons = {key: count for key, count in found.excluded.items() if "broken" not in key}
    assert reasons == {"label fracture is in no class of the recipe": 2, "split test": 1}
    (named,) = (key for key in found.excluded if "broken" in key)
    assert named.startswith(f"E_NOT_IMAGE {broken}: ")
    assert [one.path.name for one in found.aside] == ["3.png"]


def test_a_class_without_an_image_is_named_with_split_and_folder(split_data: Path) -> None:
    for path in (split_data / "val/covid").iterdir():
        path.write_bytes(b"")
    expected = (
        r"data: class 'covid' has no image in split 'val'; expected images labelled covid, "
        r"such as in .*data/val/covid; excluded: 1 image: E_\w+ .*data/val/covid/"
    )
    with pytest.raises(DataError, match=expected):
        training_data(split_data, recipe())


def test_a_class_that_no_row_of_a_table_has_is_named_with_the_table(tmp_path: Path) -> None:
    for number in (1, 2):
        image(tmp_path / f"{number}.png", seed=number)
    (tmp_path / "manifest.csv").write_text("path,label,split\n1.png,non,train\n2.png,non,val\n")
    expected = r"class 'covid' has no image in split 'train'; .*manifest\.csv$"
    with pytest.raises(DataError, match=expected):
        training_data(tmp_path, recipe())


def test_data_in_which_nothing_fits_says_what_it_has(split_data: Path) -> None:
    other = recipe({"clear": ["clear"], "covid": ["hazy"]})
    with pytest.raises(DataError, match=r"excluded: 5 images: label (non|covid) is in no class"):
        training_data(split_data, other)


def test_one_patient_in_two_splits_is_named_with_both_images(split_data: Path) -> None:
    rows = ["path,label,split,patient"]
    for number, path in enumerate(sorted(split_data.rglob("*.png"))):
        split, label, name = path.parts[-3:]
        patient = "p7" if label == "covid" and name == "1.png" else f"q{number}"
        rows.append(f"{split}/{label}/{name},{label},{split},{patient}")
    (split_data / "manifest.csv").write_text("\n".join(rows) + "\n")
    expected = (
        r"patient p7 is in train and in val "
        r"\(.*train/covid/1\.png, .*val/covid/1\.png\): give all images of a patient"
    )
    with pytest.raises(DataError, match=expected):
        training_data(split_data, recipe())


def test_a_test_image_in_training_stops_the_run_unless_allowed(split_data: Path) -> None:
    image(split_data / "test/covid/copy.png", seed=4)
    original = image(split_data / "train/covid/first.png", seed=4)
    grey = cv2.imread(str(original), cv2.IMREAD_GRAYSCALE)
    assert grey is not None
    smaller = cv2.resize(grey, (110, 104))
    cv2.imwrite(str(split_data / "val/covid/small.jpg"), smaller)
    report = split_data.parent / "leaks.json"
    with pytest.raises(DataError, match=r"copy\.png in test and .*first\.png in train are one"):
        training_data(split_data, recipe(), leaks_file=report)
    reasons = [leak["why"] for leak in json.loads(report.read_text())["leaks"]]
    assert sorted(reasons) == ["near-duplicate", "near-duplicate", "same bytes"]
    allowed = training_data(split_data, recipe(), allow_leaks=True)
    assert len(allowed.leaks) == 3
    assert len(allowed.train) == 7


def test_many_leaks_are_counted_and_three_are_named(split_data: Path) -> None:
    for number in range(5):
        image(split_data / f"train/covid/x{number}.png", seed=number)
        image(split_data / f"val/covid/x{number}.png", seed=number)
    with pytest.raises(DataError, match="and 2 more: give all images") as caught:
        training_data(split_data, recipe())
    assert str(caught.value).count("are one image") == 3


def test_an_image_of_test_that_the_recipe_does_not_want_is_measured_and_so_shared(
    split_data: Path,
) -> None:
    """A recipe for PA: `evaluate --split test` counts the AP image of a patient of `train`."""
    image(split_data / "test/covid/ap.png")
    image(split_data / "train/covid/ap.png")
    rows = ["path,label,split,patient,view"]
    patients = {("train", "1.png"): "p7", ("test", "ap.png"): "p7", ("train", "ap.png"): "p8"}
    for number, path in enumerate(sorted(split_data.rglob("*.png"))):
        split, label, name = path.parts[-3:]
        known = patients.get((split, name)) if label == "covid" else None
        view = "AP" if name == "ap.png" else "PA"
        rows.append(f"{split}/{label}/{name},{label},{split},{known or f'q{number}'},{view}")
    (split_data / "manifest.csv").write_text("\n".join(rows) + "\n")
    pa = recipe(views=("PA",))
    with pytest.raises(DataError, match="patient p7 is in train and in test"):
        training_data(split_data, pa)
    found = training_data(split_data, pa, exclude_leaks=True)
    assert len(found.train) == 5
    assert found.excluded == {
        "view AP; the recipe takes PA": 2,
        "shared with another split": 1,
    }


def test_an_image_of_train_that_the_recipe_does_not_want_is_shared_with_none(
    split_data: Path,
) -> None:
    for split, label in (("train", "fracture"), ("test", "covid")):
        image(split_data / split / label / "same.png", seed=4)
    assert training_data(split_data, recipe()).leaks == ()
    image(split_data / "test/fracture/other.png", seed=5)
    image(split_data / "val/covid/other.png", seed=5)
    with pytest.raises(DataError, match=r"other\.png in val and .*other\.png in test are"):
        training_data(split_data, recipe())


METADATA = "patientid,finding,view,modality,folder,filename,url\n"


def chestxray(folder: Path, patients: int = 12) -> Path:
    rows = []
    for number in range(patients):
        finding = ("Pneumonia/Viral/COVID-19", "No Finding")[number % 2]
        for view in ("PA", "AP", "AP Supine", "L"):
            name = f"{number}-{view}.png"
            image(folder / "images" / name)
            rows.append(f"{number},{finding},{view},X-ray,images,{name},https://example.org\n")
    rows.append("99,Pneumonia/Viral/COVID-19,Axial,CT,volumes,99.nii.gz,https://example.org\n")
    (folder / "metadata.csv").write_text(METADATA + "".join(rows))
    return folder


def test_views_are_chosen_by_the_recipe(tmp_path: Path) -> None:
    views = recipe({"non": ["normal"], "covid": ["covid"]}, views=("pa", "AP"))
    found = training_data(chestxray(tmp_path), views)
    assert Counter(one.view for one in (*found.train, *found.val)) == {"PA": 12, "AP": 12}
    assert found.excluded == {
        "modality CT is not X-ray": 1,
        "view AP Supine; the recipe takes pa, AP": 12,
        "view L; the recipe takes pa, AP": 12,
    }


def test_views_where_none_is_known_are_told(split_data: Path) -> None:
    with pytest.raises(DataError, match="excluded: 10 images: unknown view; the recipe takes PA"):
        training_data(split_data, recipe(views=("PA",)))


def test_images_of_unknown_view_are_taken_where_the_recipe_says_so(tmp_path: Path) -> None:
    folder = chestxray(tmp_path)
    metadata = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text(metadata.replace(",PA,", ",,"))
    views = recipe({"non": ["normal"], "covid": ["covid"]}, views=("PA", ""))
    found = training_data(folder, views)
    assert Counter(one.view for one in (*found.train, *found.val)) == {"": 12}
    assert found.excluded["view AP; the recipe takes PA, unknown"] == 12


@pytest.mark.parametrize("visible", [False, True])
def test_a_recipe_may_exclude_positives_on_which_nothing_is_seen(
    tmp_path: Path, visible: bool
) -> None:
    rows = ["path,label,split,no_visible_abnormality"]
    for split in ("train", "val"):
        for label in ("non", "covid"):
            for number, clear in enumerate(("0", "1", "", "yes")):
                path = image(tmp_path / split / label / f"{number}.png")
                rows.append(f"{path.relative_to(tmp_path)},{label},{split},{clear}")
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    found = training_data(tmp_path, recipe(visible=visible))
    count = Counter(one.label for one in (*found.train, *found.val))
    assert count == {"non": 8, "covid": 4 if visible else 8}
    assert found.excluded == ({"label covid without a visible abnormality": 4} if visible else {})


def test_drawn_splits_keep_patients_together(tmp_path: Path) -> None:
    both = recipe({"non": ["normal"], "covid": ["covid"]}, shares=THREE)
    found = training_data(chestxray(tmp_path, patients=40), both)
    splits: dict[str, set[str]] = {}
    for one in (*found.train, *found.val, *found.aside):
        splits.setdefault(one.patient, set()).add(one.split)
    assert len(splits) == 40
    assert all(len(names) == 1 for names in splits.values())
    counts = Counter(name for names in splits.values() for name in names)
    assert counts["train"] > counts["val"] + counts["test"]
    assert min(counts.values()) >= 2
    assert found.excluded["split test"] == 4 * counts["test"]


def plain(folder: Path, count: int) -> Path:
    for label in ("non", "covid"):
        for number in range(count):
            image(folder / label / f"{number:03d}.png")
    return folder


def test_drawn_shares_come_out_and_hold_when_images_are_added(tmp_path: Path) -> None:
    shares = recipe(shares=THREE)
    before = placed(training_data(plain(tmp_path, 100), shares))
    counts = Counter(before.values())
    assert 115 <= counts["train"] <= 165
    assert 15 <= counts["val"] <= 45
    assert 15 <= counts["test"] <= 45
    after = placed(training_data(plain(tmp_path, 150), shares))
    assert {name: after[name] for name in before} == before


def test_a_test_share_takes_nothing_from_validation(tmp_path: Path) -> None:
    two = placed(training_data(plain(tmp_path, 40), recipe()))
    three = placed(training_data(tmp_path, recipe(shares=THREE)))
    val = [{name for name, split in names.items() if split == "val"} for names in (two, three)]
    assert val[0] == val[1]


def test_renamed_and_reduced_copies_are_drawn_into_one_split(tmp_path: Path) -> None:
    plain(tmp_path, 12)
    for number in range(12):
        original = tmp_path / f"covid/{number:03d}.png"
        grey = cv2.imread(str(original), cv2.IMREAD_GRAYSCALE)
        assert grey is not None
        (tmp_path / f"covid/renamed{number}.png").write_bytes(original.read_bytes())
        cv2.imwrite(str(tmp_path / f"covid/mirrored{number}.jpg"), grey[:, ::-1])
    names = placed(training_data(tmp_path, recipe(shares=THREE)))
    for number in range(12):
        near_duplicates = (f"{number:03d}.png", f"renamed{number}.png", f"mirrored{number}.jpg")
        assert len({names[f"covid/{name}"] for name in near_duplicates}) == 1
    assert set(names.values()) == {"train", "val", "test"}


@pytest.mark.parametrize("count", [3, 4, 5, 7])
def test_a_small_folder_gets_every_class_in_every_split(tmp_path: Path, count: int) -> None:
    names = placed(training_data(plain(tmp_path, count), recipe(shares=THREE)))
    assert {(name.partition("/")[0], split) for name, split in names.items()} == {
        (label, split) for label in ("non", "covid") for split in THREE
    }


def test_one_image_of_a_class_is_too_few_to_draw(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class 'non' has no image in split 'val'"):
        training_data(plain(tmp_path, 1), recipe())


def test_covid_xray_5k_gets_its_validation_from_train_and_keeps_its_test(tmp_path: Path) -> None:
    for split, count in (("train", 24), ("test", 10)):
        for label in ("covid", "non"):
            for number in range(count):
                image(tmp_path / "data_upload_v3" / split / label / f"{number}.jpg")
    found = training_data(tmp_path, recipe(shares=THREE))
    assert len(found.train) + len(found.val) == 48
    assert 2 <= len(found.val) <= 20
    assert {one.path.parts[-3] for one in (*found.train, *found.val)} == {"train"}
    assert {one.path.parts[-3] for one in found.aside} == {"test"}


def test_radiography_database_in_four_classes(tmp_path: Path) -> None:
    classes = {name: [name] for name in ("COVID", "Normal", "Viral Pneumonia", "Lung_Opacity")}
    for name in classes:
        for number in range(8):
            image(tmp_path / name / "images" / f"{name}-{number}.png")
            image(tmp_path / name / "masks" / f"{name}-{number}.png")
    four = Recipe("r", "resnet18", "COVID", classes, data=DataSettings(shares=THREE))
    found = training_data(tmp_path, four)
    images = (*found.train, *found.val, *found.aside)
    assert len(images) == 32
    assert {one.path.parent.name for one in images} == {"images"}


def test_a_copy_within_a_split_is_chosen_on_once_and_told(split_data: Path) -> None:
    for split in ("train", "val"):
        for name in ("copy.png", "another.png"):
            content = (split_data / split / "covid/0.png").read_bytes()
            (split_data / split / "covid" / name).write_bytes(content)
    found = training_data(split_data, recipe())
    assert (len(found.train), len(found.val)) == (8, 4)
    assert found.repeated == {"train": 2, "val": 2}
    assert found.excluded == {"the content of an earlier image of val": 2}
    assert [one.path.name for one in found.aside] == ["another.png", "copy.png"]
    (split_data / "val/non/copy.png").write_bytes(content)
    with pytest.raises(DataError, match="the same image is labelled covid and non"):
        training_data(split_data, recipe())


def test_splits_are_written_as_a_manifest_that_gives_the_same_images(tmp_path: Path) -> None:
    found = training_data(chestxray(tmp_path / "data"), recipe(
        {"non": ["normal"], "covid": ["covid"]}, shares=THREE))  # fmt: skip
    place = tmp_path / "runs/first"
    place.mkdir(parents=True)
    write_splits(found, place / "splits.csv")
    again = load_dataset(place / "splits.csv")
    facts = [(one.path.resolve(), one.label, one.split, one.patient, one.view) for one in again]
    assert facts == [
        (one.path.resolve(), one.label, one.split, one.patient, one.view)
        for one in (*found.train, *found.val, *found.aside)
    ]
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_splits(found, tmp_path / "taken/splits.csv")


def test_check_data_reports_and_stops(split_data: Path, tmp_path: Path) -> None:
    (split_data / "train/covid/broken.png").write_text("no image")
    image(split_data / "train/covid/same.png", seed=8)
    image(split_data / "train/covid/twice.png", seed=8)
    image(split_data / "val/non/other.png", seed=8)
    toml = tmp_path / "r.toml"
    toml.write_text(
        'name = "r"\narchitecture = "squeezenet1_1"\npositive_class = "covid"\n'
        '[classes]\nnon = ["non"]\ncovid = ["covid"]\n'
    )
    run, report = tmp_path / "run", tmp_path / "leaks.csv"

    def train(*more: object) -> Done:
        return command("train", "--check-data", "--recipe", toml, split_data, "-o", run, *more)

    refused = train("--leaks", report)
    assert refused.returncode == 1
    assert "are one image (same bytes)" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert len(report.read_text().splitlines()) == 2
    allowed = train("--allow-leaks")
    assert allowed.returncode == 0, allowed.stderr
    assert "8 images to fit on, 5 to choose on" in allowed.stderr
    assert "1 of those to fit on have the content of an earlier one" in allowed.stderr
    assert "excluded: 1 image: E_NOT_IMAGE" in allowed.stderr
    assert "allowed: " in allowed.stderr
    assert not run.exists()


def test_splits_are_read_where_the_run_lies_behind_a_link(tmp_path: Path) -> None:
    classes = {"non": ["normal"], "covid": ["covid"]}
    found = training_data(chestxray(tmp_path / "data"), recipe(classes, shares=THREE))
    (tmp_path / "far/away/runs").mkdir(parents=True)
    (tmp_path / "runs").symlink_to(tmp_path / "far/away/runs")
    write_splits(found, tmp_path / "runs/splits.csv")
    again = load_dataset(tmp_path / "runs/splits.csv")
    assert {image.path.resolve() for image in again} == {
        image.path.resolve() for image in (*found.train, *found.val, *found.aside)
    }


def test_what_a_manifest_marks_stays_marked_in_the_splits(split_data: Path) -> None:
    rows = ["path,label,split,paediatric,no_visible_abnormality"]
    for number, path in enumerate(sorted(split_data.rglob("*.png"))):
        split, label, name = path.parts[-3:]
        rows.append(f"{split}/{label}/{name},{label},{split},{number % 2},{number % 3 // 2}")
    (split_data / "manifest.csv").write_text("\n".join(rows))
    found = training_data(split_data, recipe())
    write_splits(found, split_data / "splits.csv")
    again = load_dataset(split_data / "splits.csv")
    marks = [(one.is_child, one.clear) for one in again]
    assert marks == [(one.is_child, one.clear) for one in (*found.train, *found.val)]
    assert len(set(marks)) == 4


def test_data_without_splits_beside_others_is_drawn_and_copies_go_where_the_others_are(
    split_data: Path, tmp_path: Path
) -> None:
    bare = plain(tmp_path / "bare", 20)
    copy = bare / "covid/copy.png"
    copy.write_bytes((split_data / "val/covid/0.png").read_bytes())
    found = training_data([split_data, bare], recipe())
    own = {one.path: one.split for one in (*found.train, *found.val, *found.aside)}
    assert len(own) == 10 + 41
    assert own[copy] == "val"
    assert {own[path] for path in bare.rglob("*.png")} == {"train", "val"}
    for path in split_data.rglob("*.png"):
        assert own[path] == path.parts[-3]


def test_a_label_in_no_class_is_told_with_the_setting_that_takes_it(tmp_path: Path) -> None:
    other = recipe({"non": ["normal"], "covid": ["covid"]})
    expected = (
        r"to take label 'non' as class 'non', add --set 'classes.non=\[\"normal\", \"non\"\]'"
    )
    with pytest.raises(DataError, match=expected):
        training_data(plain(tmp_path, 4), other)
