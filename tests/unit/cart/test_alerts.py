"""Alerts: a closed list, raised and cleared, shown with their fix."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from cart_store import Store, open_store
from click.testing import CliRunner

from deepcovid_edge.cart.alerts import AlertCode
from deepcovid_edge.cart.commands import command
from deepcovid_edge.cart.config import (
    CartConfig,
    CartSettings,
    Destination,
    PageSettings,
    ReceiveSettings,
    read_config,
)
from deepcovid_edge.cart.heartbeat import RECEIVER, WORKER, Heartbeat
from deepcovid_edge.cart.page import health
from deepcovid_edge.cart.status import raised_alerts
from deepcovid_edge.cart.store import retention, spool
from deepcovid_edge.cart.store.backup import back_up
from deepcovid_edge.cart.store.deliveries import Deliveries
from deepcovid_edge.cart.store.ledger import Ledger
from deepcovid_edge.cart.store.spool import Spool, SpoolSettings
from deepcovid_edge.cart.work import housekeeping
from deepcovid_edge.cart.work.housekeeping import Housekeeping, certificate_end
from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.device import shares
from deepcovid_edge.errors import UsageError

ROOM = Path(housekeeping.__file__).parents[1]


def config_of(folder: Path, **keys: object) -> CartConfig:
    path = folder / "cart.toml"
    named = {"spool": "spool", "floor_mib": 0, "floor_share": 0.0, "ballast_mib": 0, **keys}
    lines = [f"{key} = {json.dumps(value)}" for key, value in named.items()]
    path.write_text("\n".join(["[cart]", *lines, "[receive]", 'folders = ["incoming"]']))
    return read_config(path)


def codes(ledger: Ledger) -> set[str]:
    return {row["code"] for row in ledger.rows("SELECT code FROM alert")}


def test_every_alert_has_a_sentence_and_a_fix() -> None:
    assert len({one.code for one in AlertCode}) == len(AlertCode)
    for one in AlertCode:
        assert re.fullmatch(r"[A-Z].*\.", one.sentence)
        assert re.fullmatch(r"[A-Z].*\.", one.fix)
        assert AlertCode.of(one.code) is one


def test_the_code_names_alerts_by_the_list_alone() -> None:
    names = {one.code for one in AlertCode if "_" in one.code}  # the others are words as well
    for path in ROOM.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and path.name != "alerts.py":
                assert node.value not in names, f"{path.name}:{node.lineno}"
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "raise_alert":
                assert not isinstance(node.args[1], ast.Constant), f"{path.name}:{node.lineno}"


def test_a_code_that_no_alert_has_is_an_error() -> None:
    with pytest.raises(ValueError, match="AlertCode: got 'no_code', expected one of unknown_"):
        AlertCode.of("no_code")


def test_the_status_shows_an_alert_with_its_fix_and_a_person_ends_it(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with open_store(config.cart.spool) as store:
        store.ledger.raise_alert("quarantined 7", AlertCode.QUARANTINED.code, image=7)
    shown = CliRunner().invoke(command, ["status", str(config.path)]).output
    assert AlertCode.QUARANTINED.fix in shown
    assert "`quarantined 7`" in shown
    values = json.loads(CliRunner().invoke(command, ["status", "--json", str(config.path)]).output)
    assert values["alerts"][0]["detail"] == {"image": 7}
    done = CliRunner().invoke(command, ["acknowledge", str(config.path), "quarantined 7"])
    assert "over" in done.output
    assert "No alert." in CliRunner().invoke(command, ["status", str(config.path)]).output


def acknowledge(config: CartConfig, named: str) -> str:
    return CliRunner().invoke(command, ["acknowledge", str(config.path), named]).output


def test_an_alert_is_acknowledged_by_its_key_or_by_a_code_that_it_alone_has(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with open_store(config.cart.spool) as store:
        store.ledger.raise_alert("ledger", AlertCode.LEDGER_REBUILT.code)
        store.ledger.raise_alert("assessor", AlertCode.MODEL.code)
        store.ledger.raise_alert("clock", AlertCode.CLOCK.code)
        for image in (7, 9):
            store.ledger.raise_alert(f"quarantined {image}", AlertCode.QUARANTINED.code)
    shown = CliRunner().invoke(command, ["status", str(config.path)]).output
    assert "Alert `ledger_rebuilt`, key `ledger`, since 2" in shown
    assert "Alert `clock` since 2" in shown
    assert acknowledge(config, "ledger_rebuilt") == "The alert is over.\n"
    assert acknowledge(config, "assessor") == "The alert is over.\n"
    assert acknowledge(config, "assessor_stopped") == "There is no alert 'assessor_stopped'.\n"
    with pytest.raises(UsageError, match='expected one of "quarantined 7", "quarantined 9"'):
        command.main(["acknowledge", str(config.path), "quarantined"], standalone_mode=False)
    acknowledge(config, "quarantined 7")
    assert acknowledge(config, "quarantined") == "The alert is over.\n"
    with open_store(config.cart.spool) as store:
        assert codes(store.ledger) == {"clock"}


def test_no_person_ends_the_alert_that_a_process_does_not_run(tmp_path: Path) -> None:
    config, code = config_of(tmp_path), AlertCode.WORKER_STOPPED.code
    with open_store(config.cart.spool) as store:
        store.ledger.set_meta(WORKER, '[1, "another start", 0]')
        Heartbeat(store.ledger, RECEIVER).beat()
    done = CliRunner().invoke(
        command, ["acknowledge", str(config.path), code], standalone_mode=False
    )
    assert done.output == "The alert ends once `cart work` runs.\n"
    assert done.return_value == ExitCode.ERROR
    assert f"Alert `{code}`" in CliRunner().invoke(command, ["status", str(config.path)]).output


def test_while_the_disk_cannot_be_written_the_alert_names_it_and_not_the_roles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    config = config_of(tmp_path)
    with open_store(config.cart.spool) as store:
        for key in (RECEIVER, WORKER):
            store.ledger.set_meta(key, '[1, "another start", 0]')
        assert codes_shown(store) == {"receiver_stopped", "worker_stopped"}
        with monkeypatch.context() as broken:
            broken.setattr(spool, "TemporaryFile", fails)
            (alert,) = raised_alerts(store.ledger)
            assert alert.code is AlertCode.DISK_FAILS
            assert alert.detail == {"why": "Read-only file system"}
            assert {one.part: one.state for one in lights_of(config, store)}.items() >= {
                ("images", "look"),
                ("assessor", "look"),
                ("disk", "bad"),
            }
            obstacles = health.obstacles(config, store.ledger, store.ledger, store.spool)
            assert obstacles == ["disk"]
            said = CliRunner().invoke(command, ["acknowledge", str(config.path), "disk_fails"])
            assert said.output == "The alert ends once the disk can be written.\n"
        assert codes_shown(store) == {"receiver_stopped", "worker_stopped"}


def codes_shown(store: Store) -> set[str]:
    return {alert.code.code for alert in raised_alerts(store.ledger)}


def look(config: CartConfig, folder: Path, settings: SpoolSettings) -> set[str]:
    with open_store(folder, settings) as store:
        Housekeeping(config, store.ledger, store.spool, threading.Event()).look()
        return codes(store.ledger)


def test_a_disk_below_its_floor_is_told_until_it_has_room(tmp_path: Path) -> None:
    config, place = config_of(tmp_path, backup_keep=0), tmp_path / "spool"
    assert look(config, place, SpoolSettings(1 << 30, 0.0, 0)) == {"disk_floor"}
    assert look(config, place, SpoolSettings(0, 0.0, 0)) == set()


def test_a_disk_without_room_for_the_largest_image_is_told_as_the_receiver_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, place = config_of(tmp_path), tmp_path / "spool"
    tight = SpoolSettings(1024, 0.0, 0)
    free = (tight.floor_mib + config.receive.max_image_mib - 1) << 20
    usage = SimpleNamespace(total=2 * free, used=free, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with open_store(place, tight) as store:
        store.spool.check_room(0)  # a small image is taken
        code = AlertCode.DISK_FLOOR.code
        store.ledger.raise_alert(code, code)  # by the receiver, of a large one
        assert [one.state for one in lights_of(config, store) if one.part == "disk"] == ["bad"]
        assert "disk" in health.obstacles(config, store.ledger, store.ledger, store.spool)
    assert look(config, place, tight) == {"disk_floor"}


def lights_of(config: CartConfig, store: Store) -> list[health.Light]:
    return health.lights(config, store.ledger, store.spool)


@pytest.mark.parametrize(
    ("key", "code", "word"),
    [
        ("waits:pacs", AlertCode.DESTINATION_SILENT, "light.silent"),
        ("waits:pacs", AlertCode.DESTINATION_FAILS, "light.look"),
        ("commitment:pacs", AlertCode.DESTINATION_FAILS, "light.look"),
        ("stuck:pacs", AlertCode.RESULT_STUCK, "light.look"),
        ("file:pacs", AlertCode.FILE_DAMAGED, "light.look"),
        ("fault:pacs", AlertCode.SENDING_FAILS, "light.look"),
        ("rejects:pacs", AlertCode.DESTINATION_REJECTS, "light.rejects"),
        ("waits:other", AlertCode.DESTINATION_SILENT, "light.ok"),
    ],
)
def test_the_light_of_a_destination_says_what_its_alert_says(
    tmp_path: Path, key: str, code: AlertCode, word: str
) -> None:
    config = replace(config_of(tmp_path), destinations=(Destination("pacs", "PACS", "h"),))
    with open_store(config.cart.spool) as store:
        store.ledger.raise_alert(key, code.code)
        (light,) = [one for one in lights_of(config, store) if one.part == "destination"]
    assert light.word == word


def test_copies_on_a_share_that_does_not_answer_stop_no_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, answers = config_of(tmp_path, backup="copies"), threading.Event()

    def stalls(*_: object) -> Path:
        answers.wait(20)
        return tmp_path / "copies"

    share = shares._Share()
    monkeypatch.setattr(housekeeping, "back_up", stalls)
    monkeypatch.setattr(shares, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(shares, "_find_mount", lambda folder, _: (folder, "/share"))
    monkeypatch.setattr(shares, "_share", lambda _: share)
    with open_store(config.cart.spool) as store:
        house = Housekeeping(config, store.ledger, store.spool, threading.Event())
        for _ in range(2):
            house._back_up()
            assert codes(store.ledger) == {"backup"}
        answers.set()
        deadline = time.monotonic() + 10
        while codes(store.ledger) and time.monotonic() < deadline:
            house._back_up()
        assert codes(store.ledger) == set()


def test_a_long_copy_says_that_it_goes_on(tmp_path: Path) -> None:
    steps: list[None] = []
    with open_store(tmp_path / "spool") as store:
        with store.ledger.transaction():
            for number in range(5000):
                store.ledger.event("test", number=number)
        back_up(store.spool.folder, tmp_path / "copies", 1, lambda: steps.append(None))
    assert len(steps) > 2


def test_a_clock_before_the_program_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, place, roomy = config_of(tmp_path), tmp_path / "spool", SpoolSettings(0, 0.0, 0)
    monkeypatch.setattr(housekeeping, "clock_is_plausible", lambda: False)
    assert look(config, place, roomy) == {"clock"}
    monkeypatch.setattr(housekeeping, "clock_is_plausible", lambda: True)
    assert look(config, place, roomy) == set()


def test_images_that_stay_away_are_told(tmp_path: Path) -> None:
    config = config_of(tmp_path, no_image_hours=8)
    with open_store(config.cart.spool) as store:
        house = Housekeeping(config, store.ledger, store.spool, threading.Event())
        house.look()
        assert codes(store.ledger) == set()  # none has ever come
        store.take()
        long_ago = datetime.now(timezone.utc) - timedelta(hours=9)
        with store.ledger.transaction() as now:
            now.execute("UPDATE arrival SET at_utc = ?", (long_ago.isoformat(),))
        house.look()
        assert codes(store.ledger) == {"no_image"}
        store.take(1)
        house.look()
        assert codes(store.ledger) == set()


def test_a_certificate_that_ends_soon_is_told(tmp_path: Path) -> None:
    settings = CartSettings(tmp_path / "spool")
    file = tmp_path / "no.pem"
    file.write_text("no certificate")
    assert certificate_end(file) is None
    receive = ReceiveSettings(folders=(tmp_path / "in",), certificate=file, key=file)
    config = CartConfig(tmp_path / "cart.toml", settings, receive)
    assert look(config, tmp_path / "spool", SpoolSettings(0, 0.0, 0)) == {"certificate"}


def test_certificates_of_one_name_are_told_apart(tmp_path: Path) -> None:
    receive, page = (tmp_path / part / "cert.pem" for part in ("receive", "page"))
    for path in (receive, page):
        path.parent.mkdir()
    page.write_text("no certificate")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "400"]
    command += ["-subj", "/CN=cart", "-keyout", str(tmp_path / "key.pem"), "-out", str(receive)]
    subprocess.run(command, check=True, capture_output=True)
    config = CartConfig(
        tmp_path / "cart.toml",
        CartSettings(tmp_path / "spool"),
        ReceiveSettings(folders=(receive.parent,), certificate=receive, key=receive),
        page=PageSettings(certificate=page, key=page),
    )
    with open_store(tmp_path / "spool") as store:
        house = Housekeeping(config, store.ledger, store.spool, threading.Event())
        for _ in range(3):
            house.look()
        (told,) = store.ledger.rows("SELECT detail FROM event WHERE kind = 'alert'")
    assert json.loads(told["detail"])["file"] == str(page)


def test_what_fails_keeps_nothing_else_from_being_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, backup="b" * 300)  # stat(2) fails: the name is too long

    def fails(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(housekeeping, "delete_old", fails)
    monkeypatch.setattr(housekeeping, "LOOK_SECONDS", 0.01)
    done, stop = threading.Semaphore(0), threading.Event()
    with open_store(tmp_path / "spool") as store:
        house = Housekeeping(config, store.ledger, store.spool, stop, done.release)
        house.start()
        assert all(done.acquire(timeout=10) for _ in range(2)), "the thread goes on"
        stop.set()
        house.join(10)
        assert codes(store.ledger) == {"backup"}


def test_the_ballast_is_there_after_a_look(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    place = tmp_path / "spool"
    look(config, place, SpoolSettings(0, 0.0, 1))
    assert Spool(place, SpoolSettings(0, 0.0, 1)).drop_ballast()


def test_what_waits_for_a_removed_destination_is_told_until_it_is_given_up(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with open_store(config.cart.spool) as store:
        store.take()
        store.assess()
        house = Housekeeping(config, store.ledger, store.spool, threading.Event())
        house.look()
        assert codes(store.ledger) == {"destination_removed"}
        waits = store.ledger.row("SELECT count(*) AS n FROM outbox WHERE destination = 'pacs'")
        assert waits is not None
        given_up = CliRunner().invoke(command, ["drain", str(config.path), "--give-up", "pacs"])
        assert given_up.output == f"{waits['n']} objects are not sent to pacs.\n"
        house.look()
        assert codes(store.ledger) == set()
        events = store.ledger.row("SELECT count(*) AS n FROM event")
        mistyped = CliRunner().invoke(command, ["drain", str(config.path), "--give-up", "pasc"])
        assert "got pasc, for which nothing waits" in str(mistyped.exception or mistyped.output)
        assert store.ledger.row("SELECT count(*) AS n FROM event") == events


def test_what_a_removed_destination_has_is_not_forgotten(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with open_store(config.cart.spool) as store:
        for number in range(2):
            store.take(number)
            store.assess()
        outbox = Deliveries(store.ledger, store.spool)
        sent, committed, parked, _ = outbox.due("pacs")
        for delivery in (sent, committed):
            outbox.sent(delivery, "0x0000")
        outbox.ask_commitment("pacs", "2.25.1", [committed.sop_uid])
        outbox.settle_commitment("pacs", "2.25.1", [committed.sop_uid], [])
        outbox.park(parked, "0x0122")
        done = CliRunner().invoke(command, ["drain", str(config.path), "--give-up", "pacs"])
        assert done.output == "2 objects are not sent to pacs.\n"
        left = store.ledger.rows("SELECT object_id, state FROM outbox ORDER BY object_id")
        assert [(*row,) for row in left] == [
            (sent.object_id, "sent"),
            (committed.object_id, "committed"),
        ]


def test_a_destination_that_is_named_is_not_given_up(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    named = '\n[[destination]]\nname = "pacs"\nurl = "http://127.0.0.1:1/dicom-web"\n'
    config.path.write_text(config.path.read_text() + named)
    done = CliRunner().invoke(command, ["drain", str(config.path), "--give-up", "pacs"])
    assert "is named in" in str(done.exception or done.output)


def test_a_clock_that_goes_ahead_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, place, roomy = config_of(tmp_path), tmp_path / "spool", SpoolSettings(0, 0.0, 0)
    assert look(config, place, roomy) == set()
    with monkeypatch.context() as patched:
        patched.setattr(retention, "now_seconds", lambda: time.time() + 8 * 86400)
        assert look(config, place, roomy) == {"clock"}
    assert look(config, place, roomy) == set()


def test_alerts_end_with_what_the_configuration_no_longer_names(tmp_path: Path) -> None:
    file = tmp_path / "no.pem"
    file.write_text("no certificate")
    before = replace(
        config_of(tmp_path, no_image_hours=8),
        destinations=(
            Destination("pacs", "PACS", "h", certificate=file, key=file, commitment=True),
            Destination("other", "OTHER", "h"),
        ),
    )
    raised = {
        "waits:other": AlertCode.DESTINATION_SILENT,
        "rejects:other": AlertCode.DESTINATION_REJECTS,
        "rejects cart:other": AlertCode.DESTINATION_REJECTS,
        "file:other": AlertCode.FILE_DAMAGED,
        "file 7": AlertCode.FILE_DAMAGED,
        "fault:other": AlertCode.SENDING_FAILS,
        "file:pacs": AlertCode.FILE_DAMAGED,
        "commitment:pacs": AlertCode.DESTINATION_FAILS,
        "certificate:pacs": AlertCode.CERTIFICATE,
        "waits:pacs": AlertCode.DESTINATION_FAILS,
    }
    with open_store(before.cart.spool) as store:
        store.take()
        with store.ledger.transaction() as now:
            now.execute("UPDATE arrival SET at_utc = '2026-01-01T00:00:00.000+00:00'")
        for key, code in raised.items():
            store.ledger.raise_alert(key, code.code)
        assert keys_after(before, store) == {*raised, "certificate destination pacs", "no_image"}
        after = replace(config_of(tmp_path), destinations=(Destination("pacs", "PACS", "h"),))
        assert keys_after(after, store) == {
            *("waits:pacs", "certificate:pacs", "file:pacs", "file 7")
        }


def keys_after(config: CartConfig, store: Store) -> set[str]:
    """The keys of all alerts after a look."""
    Housekeeping(config, store.ledger, store.spool, threading.Event()).look()
    return {row["key"] for row in store.ledger.rows("SELECT key FROM alert")}


def test_files_of_expired_images_are_deleted_once_for_each_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[None] = []
    monkeypatch.setattr(housekeeping, "delete_leftovers", lambda *_: calls.append(None))
    config = config_of(tmp_path)
    with open_store(config.cart.spool) as store:
        house = Housekeeping(config, store.ledger, store.spool, threading.Event())
        for _ in range(3):
            house.look()
    assert len(calls) == 1


def test_files_stay_while_a_ledger_that_was_replaced_may_be_wrong(tmp_path: Path) -> None:
    """An image of which it says `expired` was taken again before the roles had it."""
    config = config_of(tmp_path)
    with open_store(config.cart.spool) as store:
        store.take()
        with store.ledger.transaction() as now:
            now.execute("UPDATE image SET state = 'expired'")
        store.ledger.raise_alert("ledger", AlertCode.LEDGER_RESTORED.code)
        house = Housekeeping(config, store.ledger, store.spool, threading.Event())
        house.look()
        assert [*store.spool.folder.glob("images/??/*")]
        store.ledger.clear_alert("ledger")
        house.look()
        assert not [*store.spool.folder.glob("images/??/*")]


def test_an_alert_of_another_version_is_shown_and_ended_like_any_other(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    with open_store(config.cart.spool) as store:
        store.ledger.raise_alert("a key", "a_newer_code", why="something")
    shown = CliRunner().invoke(command, ["status", str(config.path)])
    assert "Alert `a_newer_code`, key `a key`, since 2" in shown.output
    assert "why: something" in shown.output
    as_json = CliRunner().invoke(command, ["status", "--json", str(config.path)])
    assert json.loads(as_json.output)["alerts"][0]["code"] == "a_newer_code"
    assert acknowledge(config, "a_newer_code") == "The alert is over.\n"
