"""DATA: which images a folder or a manifest CSV means."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path

import pytest

from deepcovid_edge.datasets.dataset import LabelledImage, dataset_sha256, load_dataset, walk_files
from deepcovid_edge.errors import DataError, NotThereError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"image")
    return path


def test_walk_is_sorted_and_leaves_out_what_accompanies_images(tmp_path: Path) -> None:
    for name in ("b/2.png", "a.png", "b/1.png", "c.txt", ".hidden", "manifest.csv", "Thumbs.db"):
        touch(tmp_path / name)
    names = [str(path.relative_to(tmp_path)) for path in walk_files(tmp_path)]
    assert names == ["a.png", "b/1.png", "b/2.png", "c.txt"]


def test_walk_follows_links_but_not_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path / "images/1.png")
    (tmp_path / "images/again").symlink_to(tmp_path / "images")
    touch(tmp_path / "other/2.png")
    (tmp_path / "images/other").symlink_to(tmp_path / "other")
    names = [str(path.relative_to(tmp_path)) for path in walk_files(tmp_path / "images")]
    assert names == ["images/1.png", "images/other/2.png"]


def test_a_link_to_itself_is_a_file_like_others_and_stops_nothing(tmp_path: Path) -> None:
    touch(tmp_path / "image.png")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert [path.name for path in walk_files(tmp_path)] == ["image.png", "loop"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_not_lost(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    assert list(walk_files(tmp_path)) == [closed]


def test_folder_per_class(tmp_path: Path) -> None:
    for name in ("covid/1.png", "normal/2.png"):
        touch(tmp_path / name)
    found = [(image.path.name, image.label, image.split) for image in load_dataset(tmp_path)]
    assert found == [("1.png", "covid", ""), ("2.png", "normal", "")]


def test_folder_per_split_and_class(tmp_path: Path) -> None:
    for name in ("train/covid/1.png", "val/covid/2.png"):
        touch(tmp_path / name)
    (image,) = load_dataset(tmp_path, split="val")
    assert (image.path.name, image.label, image.split) == ("2.png", "covid", "val")


def test_manifest_csv_with_columns_beyond_the_needed(tmp_path: Path) -> None:
    touch(tmp_path / "x/1.png")
    text = "path,label,split,patient,source,view,colour\nx/1.png,covid,test,p1,here,PA,grey\n"
    (tmp_path / "manifest.csv").write_text(text)
    for data in (tmp_path, tmp_path / "manifest.csv"):
        (image,) = load_dataset(data)
        assert (image.label, image.split, image.patient, image.source) == (
            "covid",
            "test",
            "p1",
            "here",
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,class\n1.png,covid\n", "columns label are missing; it has path, class"),
        ("path,label\nno.png,covid\n", r"line 2: no such file: .*no\.png"),
        ("", "columns label, path are missing"),
        ("path,Label,label\nx.png,covid,normal\n", "has the column 'label' twice"),
        ("path,label,paediatric\nx.png,covid,perhaps\n", "line 2: paediatric: got 'perhaps', exp"),
        (
            "path,label,patient,split\nx.png,covid,p,test\nx.png,covid,D, J,test\n",
            "line 3: got 5 c",
        ),
        ("path,label,patient,split\nx.png,covid,D, J,\n", "line 2: got 5 cells, expected 4"),
        ("path;label\nx.png;covid;\n", "line 2: got 3 cells, .* a cell with a semicolon needs"),
        ("sep=;\npath;label\nno.png;covid\n", r"line 3: no such file: .*no\.png"),
        ("sep=|\npath|label\nx.png|covid\n", r"columns label, path are missing; it has path\|"),
        ("path,label\n", "has only a header: list one image per line below it"),
        ("path;label\n;\n", "has only a header"),
        ('path,label,note\nx.png,covid,"old\nx.png,normal,\n', "line 2: a quote of the row"),
        ('path,label,note\nx.png,covid,\nx.png,covid,"old', "line 3: a quote of the row"),
        (
            'path,label,note\nx.png,covid,"old\nx.png,normal,"new"\nx.png,covid,\n',
            "line 2: a quote of the row that begins here is not closed, or text follows",
        ),
        ('path,"label\nx.png,covid\n', "line 1: a quote of the row that begins"),
        (
            'path,label,note\nx.png,covid,"old\nx.png,covid,\nx.png,normal,12"\nx.png,covid,\n',
            "line 4: a cell that ends here holds whole rows: close its quote before them",
        ),
        (
            'path,label,note\nx.png,covid,"' + "x.png,normal,\n" * 12_000,
            "line 2: a quote of the row that begins",
        ),
    ],
)
def test_wrong_manifest_is_named(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path / "x.png")
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path)


def test_quotes_are_read_as_spreadsheets_and_people_write_them(tmp_path: Path) -> None:
    rows = (
        '"x.png",covid,"a ""good"" film, seen"',
        'x.png,covid,"two\r\nlines, with a "" quote"',
        'x.png,"covid" ,12" film',  # as read before, though no standard's
        'x.png,covid,"P"1',
        'x.png,covid,"last\nline"',
    )
    touch(tmp_path / "x.png")
    text = "\r\n".join(("path,label,patient", *rows))
    (tmp_path / "manifest.csv").write_text(text, newline="")
    found = load_dataset(tmp_path)
    assert {image.label for image in found} == {"covid"}
    assert [image.patient for image in found] == [
        'a "good" film, seen',
        'two\r\nlines, with a " quote',
        '12" film',
        "P1",
        "last\nline",
    ]


def test_a_row_without_the_commas_of_its_last_empty_cells_is_whole(tmp_path: Path) -> None:
    """Excel leaves them out where a column is empty in a block of rows."""
    touch(tmp_path / "x.png")
    touch(tmp_path / "y.png")
    text = "path,label,patient,split,note\nx.png,covid,P1,test,seen\ny.png,normal,P2\n"
    (tmp_path / "manifest.csv").write_text(text)
    found = [(image.label, image.patient, image.split) for image in load_dataset(tmp_path)]
    assert found == [("covid", "P1", "test"), ("normal", "P2", "")]


def test_an_empty_line_and_a_comma_that_ends_the_header_name_nothing(tmp_path: Path) -> None:
    touch(tmp_path / "x.png")
    (tmp_path / "manifest.csv").write_text('path,label,patient,\n\nx.png,covid,"D, J"\n\n')
    (image,) = load_dataset(tmp_path)
    assert (image.label, image.patient) == ("covid", "D, J")


@pytest.mark.parametrize(
    "text",
    [
        "path,label,boxes\r\n,,\r\nx.png,covid,{boxes}\r\n , ,\r\n",
        "path;label;boxes\r\nx.png;covid;{boxes}\r\n;;\r\n",
        "sep=;\r\npath;label;boxes\r\n;;\r\nx.png;covid;{boxes}\r\n",
        "sep=\t\npath\tlabel\tboxes\nx.png\tcovid\t{boxes}\n\t\t\n",
        "path\tlabel\tboxes\nx.png\tcovid\t{boxes}\n",
        'path,label,boxes,"note; by reader; free; text"\nx.png,covid,{boxes},\n',
    ],
    ids=["comma", "semicolon", "stated semicolon", "stated tab", "tab", "quoted semicolons"],
)
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "byte order mark"])
def test_a_csv_is_read_as_excel_writes_it_anywhere(start: str, text: str, tmp_path: Path) -> None:
    """With the list separator of the country, and rows that a person emptied."""
    touch(tmp_path / "x.png")
    written = start + text.format(boxes='"[[0.1, 0.2, 0.3, 0.4]]"')
    (tmp_path / "manifest.csv").write_bytes(written.encode())
    (image,) = load_dataset(tmp_path)
    assert (image.label, image.boxes) == ("covid", ((0.1, 0.2, 0.3, 0.4),))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", True), ("1.0", True), ("Y", True), ("True", True), ("", False), ("0.0", False)],
)
def test_a_flag_is_read_as_people_and_programs_write_it(
    text: str, expected: bool, tmp_path: Path
) -> None:
    touch(tmp_path / "x.png")
    (tmp_path / "manifest.csv").write_text(f"path,label,paediatric\nx.png,covid,{text}\n")
    (image,) = load_dataset(tmp_path)
    assert image.is_child is expected


def test_missing_split_lists_those_present(tmp_path: Path) -> None:
    touch(tmp_path / "train/covid/1.png")
    with pytest.raises(DataError, match=r"no image of split 'test'; it has train: .*data\.shares"):
        load_dataset(tmp_path, split="test")


def test_nothing_there_and_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(NotThereError, match="no such file or folder"):
        load_dataset(tmp_path / "no")
    with pytest.raises(DataError, match="no labelled image"):
        load_dataset(tmp_path)


def found(data: Path) -> list[tuple[str, ...]]:
    return [
        (str(image.path.relative_to(data)), image.label, image.split)
        for image in load_dataset(data)
    ]


def test_covid_xray_5k_as_published(tmp_path: Path) -> None:
    """Shipped as data_upload_v3/{train,test}/{covid,non}; its archive adds __MACOSX."""
    for name in ("train/covid/a.jpg", "train/non/b.jpg", "test/covid/c.jpg", "test/non/d.jpg"):
        touch(tmp_path / "data_upload_v3" / name)
    touch(tmp_path / "__MACOSX/train/covid/._a.jpg")
    expected = [
        ("data_upload_v3/test/covid/c.jpg", "covid", "test"),
        ("data_upload_v3/test/non/d.jpg", "non", "test"),
        ("data_upload_v3/train/covid/a.jpg", "covid", "train"),
        ("data_upload_v3/train/non/b.jpg", "non", "train"),
    ]
    assert found(tmp_path) == expected


@pytest.mark.parametrize("wrapper", [".", "COVID-19_Radiography_Dataset"])
@pytest.mark.parametrize("inner", [".", "images"], ids=["older", "newer"])
def test_radiography_database_takes_images_and_never_masks(
    tmp_path: Path, wrapper: str, inner: str
) -> None:
    place = tmp_path / wrapper
    for label in ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"):
        touch(place / label / inner / f"{label}-1.png")
        if inner == "images":
            touch(place / label / "masks" / f"{label}-1.png")
        touch(place / f"{label}.metadata.xlsx")
    touch(place / "README.md.txt")
    labels = ["COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"]
    expected = [(str(Path(wrapper, name, inner, f"{name}-1.png")), name, "") for name in labels]
    assert found(tmp_path) == expected


METADATA = """\
patientid,offset,finding,survival,view,modality,folder,filename,url,license,
2,0,Pneumonia/Viral/COVID-19,Y,PA,X-ray,images,a.jpeg,https://www.nejm.org/doi/x,,
2,3,Pneumonia/Viral/COVID-19,Y,AP Supine,X-ray,images,b.jpeg,https://www.nejm.org/doi/x,,
17,9,Pneumonia/Viral/COVID-19,Y,Axial,CT,volumes,c.nii.gz,https://coronacases.org/,,
3,4,Pneumonia/Viral/SARS,N,L,X-ray,images,d.jpeg,https://pubs.rsna.org/doi/y,CC BY,
9,,No Finding,,PA,X-ray,images,e.png,,,
10,,Tuberculosis,,AP,X-ray,images,f.png,https://radiopaedia.org/cases/z,,
"""


def test_covid_chestxray_metadata(tmp_path: Path) -> None:
    """Columns and values as in ieee8023/covid-chestxray-dataset, its last version."""
    for name in ["a.jpeg", "b.jpeg", "d.jpeg", "e.png", "f.png"]:
        touch(tmp_path / "images" / name)
    (tmp_path / "metadata.csv").write_text(METADATA)
    excluded: Counter[str] = Counter()
    images = load_dataset(tmp_path, excluded=excluded)
    facts = [
        (image.path.name, image.label, image.patient, image.source, image.view) for image in images
    ]
    assert facts == [
        ("a.jpeg", "covid", "2", "nejm.org", "PA"),
        ("b.jpeg", "covid", "2", "nejm.org", "AP Supine"),
        ("d.jpeg", "pneumonia", "3", "pubs.rsna.org", "L"),
        ("e.png", "normal", "9", "", "PA"),
        ("f.png", "tuberculosis", "10", "radiopaedia.org", "AP"),
    ]
    assert excluded == {"modality CT is not X-ray": 1}
    assert load_dataset(tmp_path / "metadata.csv") == images


def test_covid_chestxray_metadata_of_an_early_version(tmp_path: Path) -> None:
    """Then: no modality, no folder, `Patientid`, a space before `url`, findings without a path."""
    text = (
        "Patientid,offset,sex,age,finding,survival,view,date,location,filename,doi, url,license\n"
        '1, ,,,"COVID-19, ARDS",,PA,2019,,a.jpg,,https://radiopaedia.org/cases/1,\n'
        "17,9,M,54,COVID-19,Y,CT,2020,,b.jpg,,https://www.jkms.org/x,\n"
        "5,,,,ARDS,,PA,2017,,c.jpg,,https://en.wikipedia.org/wiki/x,\n"
        "6,,,,ARDS,,PA,2017,,d.jpg,,https://[no address,\n"
    )
    for name in ("a.jpg", "c.jpg", "d.jpg"):
        touch(tmp_path / "images" / name)
    (tmp_path / "metadata.csv").write_text(text)
    facts = [(image.label, image.patient, image.source) for image in load_dataset(tmp_path)]
    assert facts == [
        ("covid", "1", "radiopaedia.org"),
        ("ards", "5", "en.wikipedia.org"),
        ("ards", "6", ""),
    ]


def test_an_image_that_metadata_lists_and_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(METADATA)
    with pytest.raises(DataError, match=r"metadata\.csv, line 2: no such file: .*a\.jpeg"):
        load_dataset(tmp_path)


def test_a_metadata_csv_of_something_else_is_no_layout(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("colour,weight\nred,3\n")
    touch(tmp_path / "covid/1.png")
    assert found(tmp_path) == [("covid/1.png", "covid", "")]


def test_other_names_of_the_validation_split(tmp_path: Path) -> None:
    for name in ("Train/covid/1.png", "valid/covid/2.png", "TEST/covid/3.png"):
        touch(tmp_path / name)
    assert [split for _, _, split in found(tmp_path)] == ["test", "train", "val"]


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    touch(tmp_path / ".ipynb_checkpoints/1.png")
    touch(tmp_path / "covid/1.png")
    assert found(tmp_path) == [("covid/1.png", "covid", "")]


def test_one_class_with_folders_inside_stays_one_class(tmp_path: Path) -> None:
    for name in ("covid/here/1.png", "covid/there/2.png"):
        touch(tmp_path / name)
    assert {label for _, label, _ in found(tmp_path)} == {"covid"}


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_bytes(b"path,label\nM\xfcller.png,covid\n")
    with pytest.raises(DataError, match=r"manifest\.csv: not a CSV in UTF-8"):
        load_dataset(tmp_path)


def test_a_data_set_has_one_hash_whatever_its_names_hold(tmp_path: Path) -> None:
    image = touch(tmp_path / "ü" / "胸部.png")
    expected = hashlib.sha256("胸部.png\0ü\0".encode() + hashlib.sha256(b"image").digest())
    assert dataset_sha256([LabelledImage(image, "ü")]) == expected.hexdigest()
    odd = touch(tmp_path / "\udcfc" / "c\udcff.png")  # Latin-1: not UTF-8
    (found,) = (image for image in load_dataset(tmp_path) if image.path == odd)
    expected = hashlib.sha256(b"c\xff.png\0\xfc\0" + hashlib.sha256(b"image").digest())
    assert dataset_sha256([found]) == expected.hexdigest()
