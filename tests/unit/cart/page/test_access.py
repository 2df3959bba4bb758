"""PIN, delays and sessions: what a guesser gains, and what nobody can take from others."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cart_page import PIN, write_config
from click.testing import CliRunner

from deepcovid_edge.cart.commands import command
from deepcovid_edge.cart.page import access
from deepcovid_edge.cart.page.access import (
    LONGEST_DELAY,
    LONGEST_TOTAL_DELAY,
    SESSION_SECONDS,
    Access,
    Delays,
    Pin,
    Sessions,
)
from deepcovid_edge.errors import NotThereError, UsageError


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_pin_fits_its_hash_alone_and_the_file_is_for_its_owner(tmp_path: Path) -> None:
    pin, path = Pin.of(PIN), tmp_path / "pin"
    pin.write(path)
    again = Pin.read(path)
    assert again.fits(PIN)
    assert not again.fits("274952")
    assert not again.fits("")
    assert PIN not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Pin.of(PIN) != pin  # another salt


@pytest.mark.parametrize("digits", ["12345", "", "12345a", "١٢٣٤٥٦", "1" * 65])
def test_a_short_or_strange_pin_is_refused(digits: str) -> None:
    with pytest.raises(UsageError, match=r"^pin: "):
        Pin.of(digits)


@pytest.mark.parametrize("text", ["", "scrypt 00", "md5 00 00", "scrypt zz 00", "\xff"])
def test_a_damaged_hash_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "pin").write_text(text, encoding="utf-8")
    with pytest.raises(NotThereError, match="cart set-pin"):
        Pin.read(tmp_path / "pin")


def test_each_wrong_pin_doubles_the_wait_of_its_address() -> None:
    clock = Clock()
    delays, waits = Delays(clock), []
    for _ in range(13):
        delays.begin("a")
        waits.append(delays.left("a"))
        clock.now += waits[-1]
    assert waits[:6] == [1, 2, 4, 8, 16, 32]
    assert waits[-1] == LONGEST_DELAY


def test_many_addresses_gain_nothing() -> None:
    clock = Clock()
    delays = Delays(clock)
    tries = 0
    while clock.now < 1000.0 + 3600.0:
        address = f"10.0.0.{tries}"
        clock.now += delays.left(address)
        delays.begin(address)
        tries += 1
    assert tries < 80
    assert delays.left("another") == LONGEST_TOTAL_DELAY


def test_nobody_locks_out_an_address_that_knows_the_pin() -> None:
    clock = Clock()
    delays = Delays(clock)
    delays.begin("reading room")
    delays.right("reading room")
    for number in range(30):
        delays.begin(f"10.0.0.{number}")
    assert delays.left("stranger") > 0
    assert delays.left("reading room") == 0


def test_wrong_pins_are_forgotten_after_an_hour() -> None:
    clock = Clock()
    delays = Delays(clock)
    for _ in range(5):
        delays.begin("a")
    clock.now += 3601 + LONGEST_DELAY
    delays.begin("a")
    assert delays.left("a") == 1


def test_memory_does_not_grow_with_addresses() -> None:
    delays = Delays(Clock())
    for number in range(3 * access._MOST_ADDRESSES):
        delays.begin(str(number))
    assert len(delays._by_address) <= access._MOST_ADDRESSES


def test_a_session_ends_after_twelve_hours_and_when_it_is_closed() -> None:
    clock = Clock()
    sessions = Sessions(clock)
    one, other = sessions.open(), sessions.open()
    assert one != other
    assert sessions.holds(one)
    assert not sessions.holds("")
    sessions.close(one)
    assert not sessions.holds(one)
    clock.now += SESSION_SECONDS + 1
    assert not sessions.holds(other)


def test_sessions_are_bounded_and_kept_as_hashes() -> None:
    sessions = Sessions(Clock())
    cookies = [sessions.open() for _ in range(300)]
    assert not sessions.holds(cookies[0])
    assert sessions.holds(cookies[-1])
    assert len(sessions._ends) == 256
    assert cookies[-1].encode() not in b"".join(sessions._ends)


def test_a_try_at_once_after_a_wrong_one_is_not_even_looked_at() -> None:
    it = Access(Pin.of(PIN))
    assert it.log_in("a", "000000")[0] is None
    cookie, wait = it.log_in("a", PIN)
    assert cookie is None
    assert 0 < wait <= 1


def test_a_form_s_token_is_of_its_browser_and_of_this_process() -> None:
    one, other = Access(None), Access(None)
    assert one.token_for("a") == one.token_for("a")
    assert len({one.token_for("a"), one.token_for("b"), other.token_for("a")}) == 3


def test_set_pin_asks_twice_and_writes_the_hash_alone(tmp_path: Path) -> None:
    config = write_config(tmp_path, 8080, pin_file="pin")
    runner = CliRunner()
    unlike = runner.invoke(command, ["set-pin", str(config.path)], input=f"{PIN}\n111111\n")
    assert unlike.exit_code != 0
    assert not (tmp_path / "pin").exists()
    done = runner.invoke(command, ["set-pin", str(config.path)], input=f"{PIN}\n{PIN}\n")
    assert done.exit_code == 0, done.output
    assert PIN not in done.output
    assert Pin.read(tmp_path / "pin").fits(PIN)


def test_set_pin_says_which_key_is_missing(tmp_path: Path) -> None:
    config = write_config(tmp_path, 8080)
    done = CliRunner().invoke(command, ["set-pin", str(config.path)], input=f"{PIN}\n{PIN}\n")
    assert isinstance(done.exception, UsageError)
    assert "[page] needs pin_file, the file for the hash of the PIN" in str(done.exception)
