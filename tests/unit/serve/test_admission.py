"""Who may call, and what is let in: keys, places, memory, settings that contradict each other."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from deepcovid_edge.errors import NotThereError, UsageError
from deepcovid_edge.serve.admission import Admission
from deepcovid_edge.serve.keys import Callers, add_key, read_keys
from deepcovid_edge.serve.protocol import MOST_HEADER, RequestError
from deepcovid_edge.serve.settings import BASE64_COST, ServeSettings


def test_a_key_lets_its_caller_in_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key, other = add_key(path, "cart-1"), add_key(path, "cart-2")
    callers = Callers(path)
    assert callers.name_of(f"Bearer {key}") == "cart-1"
    assert callers.name_of(f"bearer {other}") == "cart-2"
    for wrong in ("", key, f"Basic {key}", f"Bearer {key}x", "Bearer", "Bearer \udcff"):
        assert callers.name_of(wrong) is None
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_that_is_taken_back_lets_nobody_in(tmp_path: Path) -> None:
    path, now = tmp_path / "keys", [0.0]
    first, second = add_key(path, "a"), add_key(path, "b")
    callers = Callers(path, lambda: now[0])
    path.write_text("# taken back\n" + path.read_text().splitlines()[1] + "\n")
    now[0] = 2.0
    assert callers.name_of(f"Bearer {first}") is None
    assert callers.name_of(f"Bearer {second}") == "b"
    path.unlink()
    now[0] = 4.0
    assert callers.name_of(f"Bearer {second}") is None


@pytest.mark.parametrize("text", ["", "# nothing\n", "a b\n", "A " + "0" * 64 + "\n", "\xff"])
def test_a_file_that_holds_no_keys_is_not_taken_for_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(NotThereError, match="keys"):
        read_keys(path)


def test_a_key_is_added_to_comments_alone_and_not_to_another_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# Röntgen\n", encoding="utf-8")
    add_key(path, "cart-1")
    assert [*read_keys(path).values()] == ["cart-1"]
    path.write_text("[settings]\n", encoding="utf-8")
    with pytest.raises(NotThereError, match="line 1"):
        add_key(path, "cart-1")


def test_a_caller_s_name_is_plain(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="small letters"):
        add_key(tmp_path / "keys", "Dr. Who\n")


def test_places_are_counted_for_all_and_for_each_caller() -> None:
    admission = Admission(ServeSettings(waiting=3, waiting_a_caller=2))
    with admission.place("a"), admission.place("a"):
        with pytest.raises(RequestError, match="of this caller") as caught:
            admission.check("a")
        assert (caught.value.status, caught.value.retry) == (429, 1)
        with admission.place("b"), pytest.raises(RequestError, match="3 images wait"):
            admission.check("c")
        admission.check("c")
    assert admission.waiting == 0


def test_memory_of_bodies_has_an_end_and_comes_back() -> None:
    admission = Admission(ServeSettings(memory_mib=4))
    with admission.body("a") as one, admission.body("b") as other:
        one.grow(2 << 20)
        other.grow(1 << 20)
        with admission.body("c") as late:
            late.grow(1 << 20)
            with pytest.raises(RequestError, match="4 MiB of images are in memory") as caught:
                other.grow(1)
        assert (caught.value.status, caught.value.retry) == (429, 1)
        assert admission.memory == 3 << 20
        one.shrink(1 << 20)
        assert admission.memory == 2 << 20
        one.grow(1 << 20)
    assert admission.memory == 0
    assert not admission._memory_of


def test_no_caller_takes_the_memory_of_all() -> None:
    """As four bodies of 255 MiB of the default 1 GiB did, which then did not go on."""
    admission = Admission(ServeSettings())
    with admission.body("a") as first, admission.body("a") as second, admission.body("a") as third:
        first.grow(255 << 20)
        second.grow(255 << 20)
        with pytest.raises(RequestError, match="510 MiB of images of this caller") as caught:
            third.grow(255 << 20)
        assert caught.value.status == 429
        with admission.body("b") as other:
            other.grow(ServeSettings().most_bytes)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"host": "0.0.0.0"}, "without keys"),
        ({"host": "0.0.0.0", "keys": Path("k")}, "without certificate .* or --no-tls"),
        ({"certificate": Path("c")}, "expected both or neither"),
        ({"certificate": Path("c"), "key": Path("k"), "no_tls": True}, "no_tls: got certificate"),
        ({"port": 70000}, "port"),
        ({"header_seconds": float("nan")}, "header_seconds"),
        ({"group": 0}, "group"),
        ({"image_seconds": 60.0}, "answer_seconds: got 120, expected at least 4 times"),
        ({"answer_seconds": 60.0}, "answer_seconds: got 60, expected at least 4 times"),
    ],
)
def test_settings_that_would_let_in_too_much_are_errors(
    changes: dict[str, object], why: str
) -> None:
    with pytest.raises(UsageError, match=why):
        ServeSettings(**changes)  # type: ignore[arg-type]


def test_no_image_is_allowed_that_the_memory_could_never_hold() -> None:
    assert ServeSettings(max_image_mib=256, memory_mib=2).most_bytes < 1 << 20
    assert ServeSettings(max_image_mib=2, memory_mib=256).most_bytes == 2 << 20


@pytest.mark.parametrize("memory_mib", [1, 3, 256, 1024])
def test_an_image_in_base64_that_is_allowed_finds_room(memory_mib: int) -> None:
    settings = ServeSettings(memory_mib=memory_mib)
    digits = -(-settings.most_base64_bytes // 3) * 4
    assert 0 < settings.most_base64_bytes <= settings.most_bytes
    with Admission(settings).body("a") as body:
        body.grow(BASE64_COST * (digits + MOST_HEADER))


def test_beyond_this_machine_keys_and_a_proxy_do() -> None:
    assert not ServeSettings(host="0.0.0.0", keys=Path("k"), no_tls=True).is_local
