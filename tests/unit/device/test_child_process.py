"""Children that stall, that leave others behind, and that must end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deepcovid_edge.device.child_process import Child, StalledError, output_of

SHELL = "/bin/sh"
FOR_EVER = [sys.executable, "-c", "import time; time.sleep(1e6)"]


def is_gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def comes_true(what: Callable[[], bool], *, seconds: float = 30) -> bool:
    ends = time.monotonic() + seconds
    while not what():
        if time.monotonic() > ends:
            return False
        time.sleep(0.05)
    return True


def said_by(script: str, *, patience: float = 30, limit: float | None = None) -> list[str]:
    with Child([SHELL, "-c", script], patience=patience, limit=limit) as child:
        return list(child.lines())


def test_lines_come_whole_with_errors_among_them() -> None:
    said = said_by("printf 'one\\ntw'; sleep 0.1; printf 'o\\nthree'; sleep 0.1; echo four >&2")
    assert said == ["one", "two", "threefour"]


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9)])
def test_exit_code_is_that_of_the_command(script: str, code: int) -> None:
    with Child([SHELL, "-c", script], patience=30) as child:
        assert list(child.lines()) == []
    assert child.code == code


def test_child_that_sleeps_for_ever_is_ended() -> None:
    with (
        pytest.raises(StalledError, match=r"made no progress for 0\.5 s"),
        Child(FOR_EVER, patience=0.5) as child,
    ):
        list(child.lines())
    assert child.code == -signal.SIGKILL


def test_child_that_computes_in_silence_is_left_alone() -> None:
    """Its processor time counts, not the clock: another program may have the cores."""
    busy = "import time\nwhile time.process_time() < 3: pass\nprint('done')"
    with Child([sys.executable, "-c", busy], patience=1.5) as child:
        assert list(child.lines()) == ["done"]


def test_work_of_a_child_of_the_child_is_progress() -> None:
    busy = "import time\nwhile time.process_time() < 3: pass"
    assert said_by(f"{sys.executable} -c '{busy}'; echo done", patience=1.5) == ["done"]


def test_child_that_speaks_now_and_then_is_left_alone() -> None:
    assert said_by("for i in 1 2 3 4; do sleep 1; echo $i; done", patience=3) == [*"1234"]


def test_child_that_only_polls_is_ended() -> None:
    """A thread that wakes up now and then does not make a builder that waits for ever work."""
    polls = "import time\nwhile True: time.sleep(0.2)"
    with (
        pytest.raises(StalledError),
        Child([sys.executable, "-c", polls], patience=2) as child,
    ):
        list(child.lines())


def test_child_that_takes_too_long_is_ended_however_busy_it_is() -> None:
    with pytest.raises(StalledError, match=r"took longer than 0\.5 s"):
        said_by("while :; do echo busy; done", limit=0.5)


def test_pipe_that_a_child_of_the_child_holds_is_not_waited_for() -> None:
    said = said_by("sleep 1000 & echo $!", patience=20)
    assert comes_true(lambda: is_gone(int(said[0])))


def test_child_that_closes_its_pipe_is_still_watched() -> None:
    with pytest.raises(StalledError):
        said_by("exec >&- 2>&-; sleep 1000", patience=0.5)


def test_output_of_a_tool_and_none_of_one_that_fails_or_hangs(tmp_path: Path) -> None:
    assert output_of([SHELL, "-c", "echo a; echo b; echo no >&2"], seconds=30) == "a\nb"
    assert output_of([SHELL, "-c", "echo a; exit 1"], seconds=30) is None
    assert output_of([SHELL, "-c", "echo a; sleep 1000"], seconds=0.5) is None
    assert output_of([str(tmp_path / "no-such-tool")], seconds=30) is None


def test_child_ends_with_a_parent_that_is_killed() -> None:
    """A killed parent cleans nothing up: the kernel ends the child, which sleeps."""
    parent = (
        "import sys\nfrom deepcovid_edge.device.child_process import Child\n"
        "command = [sys.executable, '-c', 'import os, time; print(os.getpid(), flush=True); "
        "time.sleep(1e6)']\n"
        "with Child(command, patience=1e6) as child:\n"
        "    for line in child.lines():\n"
        "        print(line, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        assert not is_gone(pid)
        process.kill()
    assert comes_true(lambda: is_gone(pid))


def test_what_is_interrupted_leaves_no_child_behind() -> None:
    with pytest.raises(KeyboardInterrupt), Child(FOR_EVER, patience=30) as child:  # noqa: PT012
        os.kill(child.pid, 0)
        raise KeyboardInterrupt
    assert is_gone(child.pid)
