"""An archive in S3: listed, read and assessed from a real server as from a folder."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from archive_runs import by_name, inferred, linked_images, run_command, screened
from commands import command
from s3_server import needs_s3, s3_server

pq = pytest.importorskip("pyarrow.parquet", reason="object stores need extra archive")

pytestmark = needs_s3
OPTIONS = ("--variant", "fp32", "--ood", "warn", "--workers", "2")
UPLOAD = """
import sys
from pathlib import Path
from pyarrow import fs
store, _ = fs.FileSystem.from_uri("s3://archive?allow_bucket_creation=true")
store.create_dir("archive")
for path in sorted(Path(sys.argv[1]).iterdir()):
    number = int(path.stem)
    key = f"archive/2020 a%20?#/{number % 3}/{path.name}"
    with store.open_output_stream(key) as stream:
        stream.write(path.read_bytes())
for key in (".DS_Store", "2020 a%20?#/@eaDir/thumb.png"):
    store.open_output_stream(f"archive/{key}").close()
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """Thirty images in a bucket, one of them cut off, under names that a URI would escape."""
    folder = tmp_path_factory.mktemp("store")
    images = linked_images(folder / "images", 30)
    cut = images / "00007.png"
    data = cut.read_bytes()
    cut.unlink()
    cut.write_bytes(data[:4000])
    with s3_server(folder) as environment:
        uploaded = subprocess.run(
            [sys.executable, "-c", UPLOAD, str(images)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert uploaded.returncode == 0, uploaded.stderr
        yield folder, environment


def test_a_bucket_is_listed_and_assessed_as_a_folder(
    store: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, environment = store
    manifest = tmp_path / "m.parquet"
    done = run_command("manifest", "s3://archive/", "-o", manifest, environment=environment)
    assert done.returncode == 0, done.stderr
    table = pq.read_table(manifest)
    paths = table["path"].to_pylist()
    assert len(paths) == len(set(paths)) == 30
    assert all(path.startswith("s3://archive/2020 a%20?#/") for path in paths)
    sizes = dict(zip(paths, table["size"].to_pylist(), strict=True))
    local = folder / "images"
    assert all(size == (local / Path(path).name).stat().st_size for path, size in sizes.items())
    words = ("screen", manifest, "-o", tmp_path / "r", *OPTIONS)
    done = run_command(*words, environment=environment)
    assert done.returncode == 4, done.stderr
    command("infer", local, "-o", tmp_path / "infer.jsonl", *OPTIONS)
    assert by_name(screened(tmp_path / "r")) == by_name(inferred(tmp_path / "infer.jsonl"))


def listed_with(
    store: tuple[Path, dict[str, str]], output: Path, bucket: str, *keys: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """List a new bucket that has some keys: the command that is done, and the paths."""
    _, environment = store
    for place in (bucket, *(f"{bucket}/{key}" for key in keys)):
        address = f"{environment['AWS_ENDPOINT_URL']}/{place}"
        urllib.request.urlopen(
            urllib.request.Request(address, b"x" if "/" in place else b"", method="PUT"), timeout=20
        ).close()
    done = run_command("manifest", f"s3://{bucket}", "-o", output, environment=environment)
    return done, pq.read_table(output)["path"].to_pylist()


def test_keys_below_an_empty_folder_name_are_counted(
    store: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """A store answers the listing of their folder with that folder."""
    keys = ("1.png", "a/2.png", "a/double//3.png", "a/double/4.png", "b//5.png", "/6.png")
    done, paths = listed_with(store, tmp_path / "m.parquet", "nameless", *keys)
    assert done.returncode == 4, done.stderr
    assert "3 folders have keys below an empty folder name" in done.stderr
    assert "such as s3://nameless/b//, which cannot be listed" in done.stderr
    assert paths == [f"s3://nameless/{key}" for key in ("1.png", "a/2.png", "a/double/4.png")]
    words = ("manifest", "s3://nameless/b", "-o", tmp_path / "m.parquet")
    done = run_command(*words, environment=store[1])
    assert done.returncode == 6, done.stderr
    assert "no image found in s3://nameless/b: 1 folder has keys below an empty" in done.stderr
    assert pq.read_table(tmp_path / "m.parquet").num_rows == 3, "an earlier manifest stays"


def test_keys_below_a_key_are_listed(store: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    """Whether that key is found on the way or named."""
    keys = ("studies", "studies/1.png", "studies/2.png", "top.png")
    done, paths = listed_with(store, tmp_path / "m.parquet", "both", *keys)
    assert done.returncode == 0, done.stderr
    assert sorted(paths) == [f"s3://both/{key}" for key in keys]
    for key, count in (("studies", 3), ("top.png", 1)):
        words = ("manifest", f"s3://both/{key}", "-o", tmp_path / "m.parquet")
        assert run_command(*words, environment=store[1]).returncode == 0
        paths = pq.read_table(tmp_path / "m.parquet")["path"].to_pylist()
        assert paths == [f"s3://both/{one}" for one in keys if one.startswith(key)]
        assert len(paths) == count


def test_an_image_that_is_gone_has_a_reason(
    store: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    import pyarrow as pa

    _, environment = store
    manifest = tmp_path / "m.parquet"
    pq.write_table(pa.table({"path": ["s3://archive/nothing.png", "s3://none/a.png"]}), manifest)
    done = run_command("screen", manifest, "-o", tmp_path / "r", *OPTIONS, environment=environment)
    assert done.returncode == 4, done.stderr
    records = screened(tmp_path / "r").values()
    assert [record["reason"] for record in records] == ["E_UNREADABLE"] * 2


def test_a_bucket_that_is_not_there_is_an_error(
    store: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    _, environment = store
    done = run_command(
        "manifest", "s3://nothing/here", "-o", tmp_path / "m.parquet", environment=environment
    )
    assert done.returncode == 6, done.stderr
    assert "s3://nothing/here" in done.stderr
    assert "Traceback" not in done.stderr
