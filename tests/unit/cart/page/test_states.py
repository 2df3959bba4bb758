"""The page in every state of an image and of the ledger; what a fault of the program leaves."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from cart_page import CONSOLE, HOSTILE, drawn_image, filled, put, served, write_config
from cart_peers import HOST
from cart_store import open_store
from click.testing import CliRunner

from deepcovid_edge.cart.alerts import AlertCode, UnknownCode
from deepcovid_edge.cart.commands import command
from deepcovid_edge.cart.heartbeat import RECEIVER, WORKER
from deepcovid_edge.cart.page import health, images
from deepcovid_edge.cart.page.changes import LOOK_SECONDS
from deepcovid_edge.cart.page.metrics import metrics
from deepcovid_edge.cart.page.statistics import read_statistics
from deepcovid_edge.cart.store.ledger import Ledger, LedgerBusyError, LedgerDamagedError
from deepcovid_edge.cart.store.retention import RetentionSettings, delete_old
from deepcovid_edge.cart.store.schema import ASSESSOR_KEY, HAS_NONE, IMAGE_STATES

PAGES = ("/", "/image/1", "/alerts", "/statistics", "/audit", "/metrics", "/readyz")


@pytest.fixture
def no_ledger(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Exception]]:
    """While the list holds an error, every query of a ledger raises it."""
    raised: list[Exception] = []
    rows = Ledger.rows

    def read(self: Ledger, query: str, *values: Any) -> Any:
        if raised:
            raise raised[0]
        return rows(self, query, *values)

    monkeypatch.setattr(Ledger, "rows", read)
    yield raised
    raised.clear()


def test_an_image_without_a_result_yet_has_a_page(tmp_path: Path) -> None:
    with open_store(tmp_path / "spool") as store, served(tmp_path) as found:
        taken = store.intake.take_file(drawn_image(1), name="1.dcm", arrival=CONSOLE)
        for state in ("received", "assessing"):
            assert store.states() == [state]
            answer = found.reader.get(f"/image/{taken.image_id}")
            assert answer.status == 200
            assert "WAITING" in answer.text
            assert found.reader.get("/").status == 200
            store.images.claim()


def test_an_image_that_comes_again_after_its_days_stands_first_with_its_new_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "PAGE_ROWS", 2)
    with open_store(tmp_path / "spool") as store:
        for number in range(1, 6):
            put(store, number, "negative", picture=False)
        with store.ledger.transaction() as now:
            now.execute("UPDATE outbox SET state = 'sent'")
            old = "2026-01-01T10:00:00.000+00:00"
            now.execute("UPDATE image SET received_utc = ?, settled_utc = ?", (old, old))
            now.execute("UPDATE arrival SET at_utc = ?", (old,))
        assert delete_old(store.ledger, store.spool, RetentionSettings(0, 0)) == 5
        assert put(store, 2, "negative", picture=False) == 2
        pages, before = list[list[int]](), None
        for _ in range(3):
            listed = images.list_images(store.ledger, store.spool, before)
            pages.append([row.image_id for row in listed.rows])
            before = listed.older
        first = images.list_images(store.ledger, store.spool).rows[0]
        found = read_statistics(store.ledger)
    assert (pages, before) == ([[2, 5], [4, 3], [1]], None)
    assert datetime.now(timezone.utc) - datetime.fromisoformat(first.received) < timedelta(hours=1)
    assert found.times[1].seconds[99] < 60
    assert sum(day.total for day in found.days) == 1


def test_an_alert_of_another_version_has_a_sentence_and_a_fix(tmp_path: Path) -> None:
    with open_store(tmp_path / "spool") as store, served(tmp_path) as found:
        store.ledger.raise_alert("a key", "a_newer_code", why="something")
        shown = found.reader.get("/alerts").text
    assert UnknownCode.sentence in shown
    assert UnknownCode.fix in shown
    assert "alert.a_newer_code" not in shown


def test_only_an_alert_that_a_person_can_end_has_a_button(tmp_path: Path) -> None:
    with open_store(tmp_path / "spool") as store, served(tmp_path) as found:
        store.ledger.set_meta(WORKER, '[1, "another start", 0]')
        store.ledger.raise_alert("clock", AlertCode.CLOCK.code)
        shown = found.reader.get("/alerts").text
    assert 'name="key" value="clock"' in shown
    assert "<bdi>cart work</bdi>" in shown
    assert shown.count('action="/alerts/acknowledge"') == 1


def test_an_image_has_a_page_in_every_state(tmp_path: Path) -> None:
    """Whatever its result, and where a field of its record holds nothing."""
    empty = ("timings_ms", "warnings", "limits", "site")
    with open_store(tmp_path / "spool") as store:
        wanted = {
            put(store, number, decision, picture=False, record=dict.fromkeys([missing])): state
            for number, (state, decision, missing) in enumerate(
                product(IMAGE_STATES, ("positive", None), empty)
            )
        }
        with store.ledger.transaction() as now:
            for number, state in wanted.items():
                now.execute("UPDATE image SET state = ? WHERE id = ?", (state, number))
    with served(tmp_path) as found:
        paths = ["/", "/statistics", "/metrics", *(f"/image/{number}" for number in wanted)]
        answers = {path: found.reader.get(path).status for path in paths}
    assert answers == dict.fromkeys(paths, 200)


@pytest.mark.parametrize("code", [AlertCode.MODEL, AlertCode.ASSESSOR_STOPPED])
def test_a_cart_whose_model_cannot_be_loaded_is_not_ready(tmp_path: Path, code: AlertCode) -> None:
    """The worker lives and tries again; what comes meanwhile is not assessed."""
    with served(filled(tmp_path)) as found, open_store(tmp_path / "spool") as store:
        assert json.loads(found.reader.get("/readyz").data) == {"ready": True, "obstacles": []}
        store.ledger.raise_alert("assessor", code.code, why="no such file", model="mine.onnx")
        answer = found.reader.get("/readyz")
        assert answer.status == 503
        assert json.loads(answer.data)["obstacles"] == ["assessor"]
        (light,) = [
            one
            for one in health.lights(found.config, store.ledger, store.spool)
            if one.part == "assessor"
        ]
        assert (light.state, light.word) == (health.BAD, "light.stopped")
        assert "assessor_alive 0" in found.reader.get("/metrics").text
        store.ledger.clear_alert("assessor")
        assert found.reader.get("/readyz").status == 200


@pytest.mark.parametrize(
    ("key", "obstacle", "part", "code"),
    [
        (RECEIVER, "receiver", "images", AlertCode.RECEIVER_STOPPED),
        (WORKER, "assessor", "assessor", AlertCode.WORKER_STOPPED),
    ],
)
def test_a_role_that_does_not_run_is_told_by_all_who_are_asked(
    tmp_path: Path, key: str, obstacle: str, part: str, code: AlertCode
) -> None:
    with served(filled(tmp_path)) as found, open_store(tmp_path / "spool") as store:
        assert code.sentence not in found.reader.get("/alerts").text.partition("<details>")[0]
        store.ledger.set_meta(key, '[1, "another start", 0]')
        answer = found.reader.get("/readyz")
        assert (answer.status, json.loads(answer.data)["obstacles"]) == (503, [obstacle])
        lights = {one.part: one for one in health.lights(found.config, store.ledger, store.spool)}
        assert (lights[part].state, lights[part].word) == (health.BAD, "light.stopped")
        assert code.sentence in found.reader.get("/alerts").text.partition("<details>")[0]
        metrics = found.reader.get("/metrics").text
        assert f'cart_alerts{{code="{code.code}"}} 1.0' in metrics
        assert f"{obstacle}_alive 0.0" in metrics
        said = CliRunner().invoke(command, ["status", str(found.config.path)]).output
        assert f"Alert `{code.code}` since" in said
        assert "(process: cart " in said


@pytest.mark.parametrize(
    ("code", "state"), [(AlertCode.MODEL, health.BAD), (AlertCode.MODEL_NOT_IN_USE, health.LOOK)]
)
def test_a_model_that_is_only_named_is_no_fault_of_the_one_in_use(
    tmp_path: Path, code: AlertCode, state: str
) -> None:
    with served(filled(tmp_path)) as found, open_store(tmp_path / "spool") as store:
        store.ledger.raise_alert("model", code.code, why="the configuration names another one")
        lights = health.lights(found.config, store.ledger, store.spool)
        assert [one.state for one in lights if one.part == "model"] == [state]
        assert found.reader.get("/readyz").status == 200


def test_an_alert_that_is_acknowledged_starts_no_assessor(tmp_path: Path) -> None:
    with served(filled(tmp_path)) as found, open_store(tmp_path / "spool") as store:
        store.ledger.set_meta(ASSESSOR_KEY, HAS_NONE)
        store.ledger.raise_alert("assessor", AlertCode.ASSESSOR_STOPPED.code, why="no memory")
        store.ledger.clear_alert("assessor")  # as `cart acknowledge` does
        answer = found.reader.get("/readyz")
        assert (answer.status, json.loads(answer.data)["obstacles"]) == (503, ["assessor"])
        store.ledger.set_meta(ASSESSOR_KEY, "started")
        assert found.reader.get("/readyz").status == 200


@pytest.mark.parametrize("kind", [LedgerBusyError, LedgerDamagedError])
def test_while_the_ledger_cannot_be_read_every_page_says_so_and_then_goes_on(
    tmp_path: Path, no_ledger: list[Exception], kind: type[Exception]
) -> None:
    with served(filled(tmp_path)) as found:
        no_ledger.append(kind("ledger.db: locking protocol"))
        assert {path: found.reader.get(path).status for path in PAGES} == dict.fromkeys(PAGES, 503)
        assert found.reader.get("/healthz").status == 200
        no_ledger.clear()
        assert {found.reader.get(path).status for path in PAGES[:-1]} == {200}


def test_open_pages_are_told_of_changes_after_the_ledger_was_away(
    tmp_path: Path, no_ledger: list[Exception]
) -> None:
    with (
        served(filled(tmp_path)) as found,
        socket.create_connection((HOST, found.reader.port), timeout=30) as stream,
    ):
        stream.sendall(f"GET /changes HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert b"200 OK" in stream.recv(4096)
        no_ledger.append(LedgerBusyError("ledger.db: locking protocol"))
        time.sleep(4 * LOOK_SECONDS)
        no_ledger.clear()
        with open_store(tmp_path / "spool") as store:
            put(store, 7, "negative")
        told = b""
        while b"data: changed" not in told:  # 30 s at most
            told += stream.recv(4096)


def test_a_fault_is_told_by_its_place_and_without_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise KeyError(HOSTILE)

    monkeypatch.setattr(images, "find_image", fail)
    with served(filled(tmp_path)) as found:
        assert found.reader.get("/image/1").status == 500
        assert found.reader.get("/").status == 200
    said = capfd.readouterr()
    assert HOSTILE not in said.out + said.err
    assert "Traceback" not in said.out + said.err
    (fault,) = [json.loads(line) for line in said.out.splitlines() if "request failed" in line]
    assert fault["kind"] == "KeyError"
    assert any(place.startswith("handlers.py:") for place in fault["where"])


def test_a_share_of_no_images_is_a_dash(tmp_path: Path) -> None:
    """On a cart's first days all results are the reference: none is later."""
    with open_store(tmp_path / "spool") as store:
        put(store, 1, "positive", picture=False)
    with served(tmp_path) as found:
        text = found.reader.get("/statistics").text
    row = text.rpartition("<tbody>")[2]
    assert [re.sub("<[^>]+>", "", cell) for cell in re.findall("<td>(.*?)</td>", row)] == [
        *("1", "0"),
        *("0.0 %", "\N{EN DASH}"),
    ]


def test_metrics_do_not_say_what_runs_while_no_role_can_say_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, 8080)
    with open_store(config.cart.spool) as store:
        store.ledger.set_meta(RECEIVER, '[1, "another start", 0]')
        assert b"cart_receiver_alive 0" in metrics(config, store.ledger, store.spool)
        monkeypatch.setattr(health, "write_fault", lambda _: "Read-only file system")
        said = metrics(config, store.ledger, store.spool)
    assert b"_alive" not in said
    assert b"cart_disk_free_bytes" in said
