"""Sending again: to the destinations that the configuration names, and to no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from cart_store import Store, open_store

from deepcovid_edge.cart.store.deliveries import Deliveries
from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.cli.main import run

_TABLE = '[[destination]]\nname = "{0}"\nae_title = "{0}"\nhost = "127.0.0.1"\nport = 104\n'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A cart whose destination `pacs` had a result, and is called otherwise now; one is new."""
    path = tmp_path / "cart.toml"
    path.write_text(
        '[cart]\nspool = "spool"\nfloor_mib = 0\nfloor_share = 0.0\nballast_mib = 0\n'
        '[[peer]]\nae_title = "A"\naddress = "127.0.0.1"\n'
        + _TABLE.format("renamed")
        + _TABLE.format("reports")
        + 'objects = ["sr"]\n'
    )
    with open_store(tmp_path / "spool") as store:
        store.take()
        store.assess(decision="positive")
        outbox = Deliveries(store.ledger, store.spool)
        for delivery in outbox.due("pacs"):
            outbox.sent(delivery, "0x0000")
    return path


def resend(config: Path, *arguments: object) -> int:
    return run(["cart", "resend", str(config), *map(str, arguments)])


def rows(store: Store) -> list[tuple[str, str, str, int]]:
    found = store.ledger.rows(
        "SELECT destination, kind, state, urgent FROM outbox JOIN object ON object.id = object_id"
        " ORDER BY destination, kind"
    )
    return [(*row,) for row in found]


SENT = [("pacs", "sc", "sent", 1), ("pacs", "sr", "sent", 0)]
RENAMED = [("renamed", "sc", "queued", 1), ("renamed", "sr", "queued", 0)]
REPORTS = [("reports", "sr", "queued", 0)]


def test_an_image_s_results_go_to_new_destinations_and_not_to_removed_ones(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resend(config, 1, "--to", "reports") == ExitCode.DONE
    assert capsys.readouterr().out == "1 object is queued.\n"
    with open_store(config.parent / "spool") as store:
        assert rows(store) == SENT + REPORTS
    assert resend(config, 1) == ExitCode.DONE
    assert capsys.readouterr().out == "3 objects are queued.\n"
    with open_store(config.parent / "spool") as store:
        assert rows(store) == SENT + RENAMED + REPORTS
        outbox = Deliveries(store.ledger, store.spool)
        for name in ("renamed", "reports"):
            for delivery in outbox.due(name):
                outbox.park(delivery, "0x0122")
        with store.ledger.transaction() as now:
            now.execute("UPDATE outbox SET state = 'parked' WHERE destination = 'pacs'")
    assert resend(config) == ExitCode.DONE
    assert capsys.readouterr().out == "3 objects are queued.\n"
    with open_store(config.parent / "spool") as store:
        assert Deliveries(store.ledger, store.spool).of_removed(["renamed", "reports"]) == {
            "pacs": 2
        }
        assert [state for _, _, state, _ in rows(store)][2:] == ["queued"] * 3


def test_kinds_that_a_destination_does_not_get_any_more_are_not_queued(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_store(config.parent / "spool") as store, store.ledger.transaction() as now:
        now.execute("UPDATE outbox SET destination = 'reports', state = 'parked'")
    assert resend(config) == ExitCode.DONE
    assert capsys.readouterr().out == "1 object is queued.\n"
    assert resend(config, 1, "--to", "reports") == ExitCode.DONE
    with open_store(config.parent / "spool") as store:
        assert rows(store) == [("reports", "sc", "parked", 1), ("reports", "sr", "queued", 0)]


def test_what_is_being_sent_is_not_queued_a_second_time(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        image_id = store.take().image_id
        store.assess()
        outbox = Deliveries(store.ledger, store.spool)
        first, _ = outbox.due("pacs")
        outbox.begin(first)
        assert outbox.resend(image_id) == 1
        (row,) = store.ledger.rows("SELECT object_id FROM outbox WHERE state = 'sending'")
        assert row["object_id"] == first.object_id
        assert outbox.due("pacs")[0].is_uncertain


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((9999,), ExitCode.NOT_THERE, "none with the number 9999"),
        ((1, "--to", "pacs"), ExitCode.USAGE, "--to: got pacs, expected a destination of"),
        (("--to", "pacs"), ExitCode.USAGE, "--to: got pacs, expected a destination of"),
    ],
)
def test_an_unknown_image_or_destination_is_an_error(
    config: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    code: int,
    words: str,
) -> None:
    assert resend(config, *arguments) == code
    assert words in capsys.readouterr().err
    with open_store(config.parent / "spool") as store:
        assert rows(store) == SENT
        assert "send again" not in store.events()
