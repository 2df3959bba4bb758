"""What a process and all below it use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from deepcovid_edge.device.process_tree import process_tree

GRANDCHILD = "import os; print(os.getpid(), flush=True); input()"
CHILD = f"""
import subprocess, sys
held = bytearray(64 << 20)
held[::4096] = b"x" * len(held[::4096])
below = [sys.executable, "-c", {GRANDCHILD!r}]
with subprocess.Popen(below, stdin=subprocess.PIPE) as running:
    input()
    running.communicate(b"\\n")
"""
"""The grandchild says that it runs: a process that was only just made holds no memory yet."""


def test_a_tree_has_the_process_first_and_all_below_it() -> None:
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        whole, own = process_tree(os.getpid()), process_tree(child.pid)
        child.communicate(b"\n")
    assert whole[0].pid == os.getpid()
    assert {child.pid, grandchild} < {one.pid for one in whole}
    assert [one.pid for one in own] == [child.pid, grandchild]
    assert own[0].rss_mib > 64 > own[1].rss_mib > 1
    assert whole[0].cpu_seconds > 0


def test_a_process_that_has_ended_has_no_tree() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        pass
    assert not Path(f"/proc/{child.pid}").exists()
    assert process_tree(child.pid) == []
