"""The wait for the services after a start, with a `systemctl` that says what a test wants."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deepcovid_edge.cart.install.starting import InstallError, wait_until_active

_UNITS = ("deepcovid-edge-work.service", "deepcovid-edge-page.service")
_FAILED = "ActiveState=failed\nNRestarts=0\n"


def say(folder: Path, monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    """Have `systemctl` print each answer once, the last one for ever."""
    program = folder / "systemctl"
    for number, answer in enumerate(answers):
        (folder / f"{number}").write_text(answer)
    program.write_text(
        f"#!/bin/sh\ncd {folder}\nn=$(cat count 2>/dev/null || echo 0)\ncat $n\n"
        "[ -e $((n + 1)) ] && n=$((n + 1))\necho $n >count\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_services_that_get_ready_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting, ready = (
        "ActiveState=activating\nNRestarts=7\n",
        "NRestarts=9\nActiveState=active\nJob=\n",
    )
    say(tmp_path, monkeypatch, starting, starting, ready)
    wait_until_active(_UNITS, 20)


@pytest.mark.parametrize("before", ["active", "failed"])
def test_what_a_service_was_before_its_restart_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    old = f"Job=31\nActiveState={before}\nNRestarts=9\n"
    say(tmp_path, monkeypatch, old, "ActiveState=activating\nNRestarts=0\nJob=31\n", _FAILED)
    with pytest.raises(InstallError, match="does not run"):
        wait_until_active(_UNITS[:1], 20)


@pytest.mark.parametrize(
    "answers",
    [
        (_FAILED,),
        ("ActiveState=activating\nNRestarts=6\n", "ActiveState=activating\nNRestarts=9\n"),
        (
            "Job=31\nActiveState=activating\nNRestarts=6\n",
            "ActiveState=activating\nNRestarts=0\n",
            "ActiveState=activating\nNRestarts=3\n",
        ),
    ],
)
def test_one_that_does_not_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: tuple[str, ...]
) -> None:
    say(tmp_path, monkeypatch, *answers)
    with pytest.raises(InstallError, match=r"^deepcovid-edge-work.service: does not run; .*-u dee"):
        wait_until_active(_UNITS[:1], 20)


def test_the_wait_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    say(tmp_path, monkeypatch, "ActiveState=activating\nNRestarts=0\n")
    with pytest.raises(InstallError, match=r"is not ready after 0\.1 s"):
        wait_until_active(_UNITS, 0.1)
