"""`screen --on ray`: the records of `infer`, also when an actor is killed or an image harms it.

Ray takes long to start, so one run shows all of it. The rest is `make archive-campaigns`.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from archive_runs import (
    COMMAND,
    KILLER,
    RUN_SECONDS,
    harmful_environment,
    harmful_image,
    inferred,
    linked_images,
    run_command,
    screened,
)
from commands import command
from ray_cluster import actors

from deepcovid_edge.archive.cluster.actor import ShardActor
from deepcovid_edge.archive.cluster.ray_run import ClusterSettings, RayRun, _connected
from deepcovid_edge.archive.screening import ScreenSettings

pytest.importorskip("pyarrow", reason="screen needs extra archive")
pytestmark = pytest.mark.ray

OPTIONS = ("--variant", "fp32", "--ood", "warn")
IMAGES, SHARD = 300, 20


def needs_ray() -> None:
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: extra ray")


def test_an_actor_that_is_killed_and_an_image_that_harms_cost_no_record(tmp_path: Path) -> None:
    needs_ray()
    images = linked_images(tmp_path / "images", IMAGES)
    command("infer", images, "-o", tmp_path / "infer.jsonl", *OPTIONS)
    harmful_image(images / "00123.png", KILLER)
    command("manifest", images, "-o", tmp_path / "m.parquet")
    results = tmp_path / "results"
    process = subprocess.Popen(
        [
            *COMMAND,
            *map(str, ("screen", tmp_path / "m.parquet", "-o", results, *OPTIONS)),
            *("--shard-size", str(SHARD), "--on", "ray"),
        ],
        env={**os.environ, **harmful_environment(tmp_path / "site")},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        ends = time.monotonic() + RUN_SECONDS
        while not list(results.glob("*.parquet")) and time.monotonic() < ends:
            time.sleep(0.02)
        (actor,) = actors(process.pid)
        os.kill(actor, signal.SIGKILL)
        _, told = process.communicate(timeout=RUN_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 4, told
    assert f"{IMAGES} images done on Ray" in told
    found = screened(results)
    assert len(found) == IMAGES
    harmful = found.pop(str(images / "00123.png"))
    assert harmful["reason"] == "E_DECODE"
    assert "the decoder died (-11)" in harmful["message"]
    whole = inferred(tmp_path / "infer.jsonl")
    assert found == {path: whole[path] for path in found}
    assert not list(results.glob("*.part"))


def test_an_actor_reads_images_again_that_could_not_be_read(tmp_path: Path) -> None:
    """A shard that is there is its answer, as after a loss, but for one with such images."""
    images = linked_images(tmp_path / "images", 4)
    command("manifest", images, "-o", tmp_path / "m.parquet")
    settings = ScreenSettings(tmp_path / "m.parquet", tmp_path / "r", {"variant": "fp32"})
    actor = ShardActor(settings, 1, str(tmp_path), MagicMock())
    assert actor._screener
    shard = tmp_path / "r/shard-000000.parquet"
    with actor._screener:
        images.rename(tmp_path / "away")
        assert actor._finished(0).counts.unreadable == 4
        (tmp_path / "away").rename(images)
        assert actor._finished(0).counts.unreadable == 0
        written = shard.stat().st_mtime_ns
        assert actor._finished(0).counts.images == 4
        assert shard.stat().st_mtime_ns == written


def test_another_threshold_is_refused_before_any_image_is_assessed(tmp_path: Path) -> None:
    needs_ray()
    images = linked_images(tmp_path / "images", 6)
    command("manifest", images, "-o", tmp_path / "m.parquet")
    words = ("screen", tmp_path / "m.parquet", "-o", tmp_path / "r", *OPTIONS)
    assert command(*words).returncode == 0
    done = run_command(*words, "--on", "ray", "--threshold", 0.9)
    assert done.returncode == 2, done.stderr
    assert "another run" in done.stderr
    assert "threshold" in done.stderr


@pytest.mark.slow  # the plan itself has unit tests
def test_a_plan_that_would_fill_the_cluster_is_refused(tmp_path: Path) -> None:
    needs_ray()
    images = linked_images(tmp_path / "images", 6)
    command("manifest", images, "-o", tmp_path / "m.parquet")
    done = run_command(
        *("screen", tmp_path / "m.parquet", "-o", tmp_path / "r", *OPTIONS),
        *("--on", "ray", "--actors", 99),
    )
    assert done.returncode == 2, done.stderr
    assert "--actors: got 99" in done.stderr
    assert "would fill the cluster" in done.stderr


def as_ray(number: int, _: object) -> None:
    """What Ray makes of SIGTERM."""
    sys.exit(number)


@pytest.fixture
def ray_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[MagicMock]:
    """Ray as far as it is started; `init` sets a handler as Ray's own does."""
    module = MagicMock()
    module.init.side_effect = lambda **_: signal.signal(signal.SIGTERM, as_ray)
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield module
    signal.signal(signal.SIGTERM, before)


def test_a_stop_is_a_stop_also_when_ray_is_there(ray_module: MagicMock) -> None:
    assert _connected(ClusterSettings()) is ray_module
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_ray_starts_ends_ray(ray_module: MagicMock, kind: signal.Signals) -> None:
    def stopped(**_: object) -> None:
        signal.signal(signal.SIGTERM, as_ray)
        signal.raise_signal(kind)

    ray_module.init.side_effect = stopped
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            _connected(ClusterSettings())
    finally:
        signal.signal(signal.SIGINT, before)
    ray_module.shutdown.assert_called_once()
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


def test_what_fails_in_ray_because_of_a_stop_is_not_shown(
    tmp_path: Path, ray_module: MagicMock, caplog: pytest.LogCaptureFixture
) -> None:
    own = logging.getLogger("ray.data.exceptions")
    ray_module.nodes.return_value = [{"Alive": True, "Resources": {"CPU": 8.0}}]
    ray_module.available_resources.return_value = {"CPU": 8.0}
    ray_module.shutdown.side_effect = lambda: own.error("Full stack trace:")
    images = linked_images(tmp_path / "images", 2)
    command("manifest", images, "-o", tmp_path / "m.parquet")
    settings = ScreenSettings(tmp_path / "m.parquet", tmp_path / "r", {"variant": "fp32"})
    with pytest.raises(KeyboardInterrupt), RayRun(settings, ClusterSettings()):
        raise KeyboardInterrupt
    ray_module.shutdown.assert_called_once()
    assert not caplog.records


def test_without_ray_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    images = linked_images(tmp_path / "images", 2)
    command("manifest", images, "-o", tmp_path / "m.parquet")
    done = command("screen", tmp_path / "m.parquet", "-o", tmp_path / "r", "--on", "ray")
    assert done.returncode == 6
    assert "pip install 'deepcovid-edge[ray]'" in done.stderr
