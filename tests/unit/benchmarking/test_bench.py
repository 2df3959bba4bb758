"""The timing code on a clock that the test turns: a fake backend whose answers take known times.

A fake stands in here because only what is around a backend is tested; the shipped model runs
through the real command line in tests/integration/test_bench.py.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_once import phantom_files

from deepcovid_edge.backends.base import Inference
from deepcovid_edge.benchmarking.measure import BenchImages, bench, bench_images
from deepcovid_edge.benchmarking.percentiles import PERCENTILES, percentiles, smallest_count
from deepcovid_edge.benchmarking.results import EVENTS, Result, Run
from deepcovid_edge.benchmarking.samples import Query, Samples
from deepcovid_edge.benchmarking.scenarios import (
    MILLISECOND,
    SECOND,
    Done,
    HostClock,
    Until,
    Work,
    in_threads,
    offline,
    poisson_arrivals,
    server,
)
from deepcovid_edge.benchmarking.settings import (
    MULTI,
    NETWORK,
    OFFLINE,
    SERVER,
    SINGLE,
    BenchSettings,
)
from deepcovid_edge.benchmarking.stability import assess_stability
from deepcovid_edge.benchmarking.work import NetworkWork
from deepcovid_edge.errors import BenchError, UsageError
from deepcovid_edge.manifest import InputSpec, ModelManifest
from deepcovid_edge.reasons import WarningCode

MANIFEST = ModelManifest(
    name="fake",
    architecture="fake",
    classes=("non", "covid"),
    positive_class="covid",
    threshold=0.5,
    input=InputSpec(32, 32),
)


class FakeClock:
    """Stands still until somebody takes time."""

    def __init__(self) -> None:
        self.time = 7_000_000_000

    def now(self) -> int:
        return self.time

    def wait_until(self, moment: int, _: threading.Event) -> None:
        self.time = max(self.time, moment)

    def take(self, milliseconds: float) -> None:
        self.time += round(milliseconds * MILLISECOND)


class TimedBackend:
    """Its answers take the given milliseconds, one after another."""

    name = "fake-cpu"
    sha256 = "0" * 64
    warnings: tuple[WarningCode, ...] = ()
    manifest = MANIFEST
    on_cpu = True

    def __init__(self, clock: FakeClock, milliseconds: Iterable[float]) -> None:
        self.clock, self.milliseconds = clock, iter(milliseconds)
        self.batches: list[np.ndarray] = []

    def infer(self, batch: np.ndarray, *, activation_maps: bool = False) -> Inference:
        self.clock.take(next(self.milliseconds))
        self.batches.append(batch)
        return Inference(np.zeros((len(batch), 2), np.float32))

    def close(self) -> None: ...

    def __enter__(self) -> TimedBackend:
        return self

    def __exit__(self, *_: object) -> None: ...


def images(_: InputSpec, count: int = 3) -> BenchImages:
    pixels = np.arange(count, dtype=np.uint8)[:, None, None] + np.zeros((1, 32, 32), np.uint8)
    return BenchImages((), pixels, "drawn", {})


def measured(
    milliseconds: Iterable[float], scenario: str = SINGLE, **settings: Any
) -> tuple[Run, TimedBackend, Result]:
    clock = FakeClock()
    first = iter([0.5])  # what `bench` itself asks for the first result
    backend = TimedBackend(clock, (value for part in (first, milliseconds) for value in part))
    chosen = {"seconds": 0.0, "warm_up": 0.0, **settings}
    result = bench(
        lambda: backend,
        images,
        BenchSettings(scenarios=(scenario,), scopes=(NETWORK,), workers=1, **chosen),
        clock=clock,
        gauge=SilentGauge(),
    )
    return result.runs[0], backend, result


class SilentGauge:
    def versions(self) -> dict[str, str | None]:
        return {"driver": "1", "cuda": "13.0"}

    def reading(self) -> dict[str, float | str | None]:
        return {}

    def close(self) -> None: ...


def alone(run: Run) -> Any:
    """The verdict on the samples, whatever else this machine is doing."""
    return assess_stability(run.samples, run.scenario, {}, {})


def test_known_times_give_the_known_percentiles() -> None:
    times = np.random.default_rng(0).permutation(np.arange(1, 1001)).astype(float)
    run, _, _ = measured([99.0, *times], queries=1000)
    latency = run.figures()["latency_ms"]
    values = {name: entry["value"] for name, entry in latency["percentiles"].items()}
    assert values == {"50": 500, "90": 900, "95": 950, "99": 990, "99.9": None}
    assert (latency["mean"], latency["median"]) == (500.5, 500.5)
    assert (latency["min"], latency["max"]) == (1, 1000)


def test_on_the_host_s_clock_nothing_is_told_that_did_not_pass() -> None:
    """Real sleeps: no sample is shorter than its own, all together are no longer than it took."""
    slept = [float(value) for value in np.random.default_rng(0).permutation(np.arange(1, 31)) / 4]
    waits = iter([0.5, 0.5, *slept])

    class Sleeper(TimedBackend):
        def infer(self, batch: np.ndarray, *, activation_maps: bool = False) -> Inference:
            time.sleep(next(waits) / 1000)
            return Inference(np.zeros((len(batch), 2), np.float32))

    settings = BenchSettings((SINGLE,), (NETWORK,), seconds=0, queries=30, warm_up=0)
    began = time.perf_counter()
    result = bench(lambda: Sleeper(FakeClock(), ()), images, settings, gauge=SilentGauge())
    took = (time.perf_counter() - began) * 1000
    latency = result.runs[0].samples.latency_ms
    assert (latency >= slept).all()
    assert latency.sum() <= took
    percentiles_told = result.runs[0].figures()["latency_ms"]["percentiles"]
    assert percentiles_told["50"]["value"] >= np.percentile(slept, 50, method="inverted_cdf")
    assert percentiles_told["90"]["value"] is None


def test_every_sample_and_every_warm_up_is_kept_apart() -> None:
    warm, cold = [50.0, 30.0, 20.0], [float(value) for value in range(2, 82)]
    run, _, _ = measured([*warm, *cold], queries=80, warm_up=0.1)
    assert run.warm_up.latency_ms.tolist() == warm
    assert run.samples.latency_ms.tolist() == cold


def test_too_few_samples_give_null_and_say_how_many_are_needed() -> None:
    run, _, _ = measured(repeat(2.0), queries=63)
    entries = run.figures()["latency_ms"]["percentiles"]
    assert entries["50"]["value"] == 2.0
    assert entries["90"] == {"value": None, "upper_99": None, "needs": 64}
    assert entries["99.9"] == {"value": None, "upper_99": None, "needs": 6636}


def test_counts_that_support_a_percentile_are_those_of_mlperf_and_of_the_binomial() -> None:
    binomial = pytest.importorskip("scipy.stats", reason="scipy (extra export) is missing").binom
    for percentile in PERCENTILES:
        count, above = smallest_count(percentile), 1 - percentile / 100
        assert binomial.cdf(1, count, above) <= 0.01 < binomial.cdf(1, count - 1, above)
    assert (smallest_count(90), smallest_count(99)) == (64, 662)  # MLPerf's floors


def test_upper_limit_is_the_tightest_order_statistic_that_keeps_its_promise() -> None:
    binomial = pytest.importorskip("scipy.stats", reason="scipy (extra export) is missing").binom
    for count in (11, 64, 100, 662, 1000, 30_000):
        values = np.arange(1, count + 1, dtype=float)
        for name, entry in percentiles(values).items():
            if entry["upper_99"] is None:
                continue
            above, share = count - int(entry["upper_99"]), 1 - float(name) / 100
            assert binomial.cdf(above, count, share) <= 0.01 < binomial.cdf(above + 1, count, share)


def test_a_steady_backend_is_stable() -> None:
    run, _, _ = measured(cycle([2.0, 2.1, 1.9]), queries=90)
    verdict = alone(run)
    assert verdict.stable
    assert verdict.drift == pytest.approx(0, abs=1e-3)


def test_a_drifting_backend_is_unstable_and_the_drift_is_told() -> None:
    run, _, result = measured((2 * (1 + 0.1 * step / 200) for step in range(300)), queries=200)
    verdict = alone(run)
    assert not verdict.stable
    assert verdict.drift == pytest.approx(0.09, abs=0.01)  # window centres: nine tenths of 10 %
    assert "drift: +" in verdict.reasons[0]
    assert "network, single-stream: drift" in result.unstable()[0]


def test_a_speed_that_jumps_to_and_fro_is_unstable() -> None:
    windows = np.repeat([2.0, 3.0] * 5, 20)
    run, _, _ = measured([2.0, *windows], queries=200)
    assert any("variation" in reason for reason in alone(run).reasons)


def test_one_late_answer_makes_no_run_unstable_and_is_not_left_out() -> None:
    times = [2.0] * 200
    times[77] = 900.0
    run, _, _ = measured([2.0, *times], queries=200)
    assert alone(run).stable
    assert run.figures()["latency_ms"]["max"] == 900


def test_images_that_differ_are_no_instability() -> None:
    """Images of 1, 5 and 20 ms in turn: each is held against itself."""
    run, _, _ = measured(cycle([1.0, 5.0, 20.0]), queries=93)
    assert alone(run).stable
    assert alone(run).variation == pytest.approx(0, abs=1e-9)


def test_too_few_samples_to_judge_are_not_called_stable() -> None:
    run, _, _ = measured(repeat(2.0), queries=29)
    assert alone(run).reasons == ("29 samples are too few: 30 are needed",)
    assert not alone(run).stable


@pytest.mark.parametrize(
    ("watched", "reason"),
    [
        ({"cpu_mhz": {"min": 1500, "max": 3000}}, "clock of the CPU: 1500 to 3000 MHz"),
        ({"gpu_mhz": {"min": 900, "max": 1980}}, "clock of the GPU: 900 to 1980 MHz"),
        (
            {"gpu_celsius": {"first": 40.0, "last": 71.0}},
            "temperature of the GPU: 40 to 71 Celsius",
        ),
        ({"slowed": ["heat"]}, "the GPU lowered its clock: heat"),
        ({"others_share": 0.4}, "other processes used 40% of the cores, allowed 10%"),
        ({"stolen_share": 0.2}, "the host used 20% of the cores, allowed 10%"),
    ],
)
def test_what_the_machine_did_beside_it_is_named(watched: dict[str, Any], reason: str) -> None:
    run, _, _ = measured(repeat(20.0), queries=100)
    assert assess_stability(run.samples, SINGLE, {}, watched).reasons == (reason,)


def test_compute_on_a_gpu_that_varies_as_trtexec_warns_is_unstable() -> None:
    run, _, _ = measured(repeat(2.0), queries=100)
    steady, unsteady = np.full(100, 1.0), np.where(np.arange(100) % 2, 1.0, 1.2)
    assert assess_stability(run.samples, SINGLE, {"compute": steady}, {}).stable
    (reason,) = assess_stability(run.samples, SINGLE, {"compute": unsteady}, {}).reasons
    assert "variation of compute on the GPU: 9.1%, allowed 2.5%" in reason


def test_multi_stream_brings_its_images_together_and_in_turn() -> None:
    run, backend, _ = measured(repeat(8.0), MULTI, queries=30, streams=8)
    assert {len(batch) for batch in backend.batches[1:]} == {8}
    numbers = np.concatenate([batch[:, 0, 0] for batch in backend.batches[2:]])
    np.testing.assert_array_equal(numbers, np.arange(len(numbers)) % 3)
    figures = run.figures()
    assert figures["latency_ms"]["median"] == 8
    assert figures["images_per_second"] == pytest.approx(1000)


def test_offline_tells_images_a_second_and_no_latency() -> None:
    run, backend, _ = measured(repeat(4.0), OFFLINE, queries=50, batch_size=2)
    figures = run.figures()
    assert figures["latency_ms"] is None
    assert (figures["images"], figures["images_per_second"]) == (100, pytest.approx(500))
    np.testing.assert_allclose(run.samples.gaps_ms, 2.0)
    assert {len(batch) for batch in backend.batches[1:]} == {2}


def test_offline_counts_the_time_until_the_first_result() -> None:
    """As `infer` does it, the start of the work on a group is not known: only its result is."""
    clock = FakeClock()

    class Groups:
        images = 6

        def payload(self, first: int, size: int) -> None: ...

        def run(self, payload: None) -> tuple[()]:
            return ()

        def offline(self, batches: Iterator[tuple[int, int]], done: Done) -> None:
            for first, size in batches:
                clock.take(100)
                done(None, first, size, ())

    outcome = offline(Groups(), 2, Until(0, 5), clock)
    samples = Samples.of(outcome.queries, zero=outcome.zero)
    run = Run(NETWORK, OFFLINE, 2, 1, samples, Samples.of([]))
    figures = run.figures()
    assert (figures["images"], figures["seconds"], figures["images_per_second"]) == (10, 0.5, 20)
    assert samples.gaps_ms.tolist() == [50] * 5
    assert run.warm_up.seconds == 0


def test_an_error_in_one_thread_ends_the_others() -> None:
    begun = []

    def work(number: int, _: threading.Event) -> None:
        begun.append(number)
        time.sleep(0.001)
        if number == 10:
            raise BenchError("image 10")

    with pytest.raises(BenchError, match="image 10"):
        in_threads(work, range(10_000), 3)
    assert len(begun) < 1000


def network_for_a_minute(work: Work) -> None:
    offline(work, 1, Until(60, 1), HostClock())


def arrivals_in_a_minute(work: Work) -> None:
    server(work, np.array([0, 60, 61]) * SECOND, SECOND, 2, HostClock())


@pytest.mark.parametrize("scenario", [network_for_a_minute, arrivals_in_a_minute])
def test_ctrl_c_ends_the_threads_of_a_run(scenario: Callable[[Work], None]) -> None:
    class Sleeper(TimedBackend):
        def infer(self, batch: np.ndarray, *, activation_maps: bool = False) -> Inference:
            time.sleep(0.001)
            return Inference(np.zeros((len(batch), 2), np.float32))

    work = NetworkWork(
        Sleeper(FakeClock(), ()), images(MANIFEST.input).pixels, HostClock(), lanes=2
    )
    main = threading.main_thread().ident or 0
    pressed = threading.Timer(0.3, lambda: signal.pthread_kill(main, signal.SIGINT))
    began = time.monotonic()
    pressed.start()
    with pytest.raises(KeyboardInterrupt):
        scenario(work)
    assert time.monotonic() - began < 20


def test_a_run_lasts_as_long_and_has_as_many_samples_as_asked_for() -> None:
    by_time, _, _ = measured(repeat(2.0), seconds=1.0, queries=5)
    by_count, _, _ = measured(repeat(2.0), seconds=0.01, queries=70)
    assert (len(by_time.samples), len(by_count.samples)) == (500, 70)


def test_images_that_arrive_at_random_wait_as_queueing_theory_says() -> None:
    """One lane, constant service: mean wait of M/D/1, Pollaczek and Khinchine."""
    service, rate = 8.0, 100.0
    run, _, _ = measured(repeat(service), SERVER, rate=rate, queries=40_000)
    busy = rate * service / 1000
    expected = busy * service / (2 * (1 - busy))
    waits = (run.samples.started - run.samples.arrived) / MILLISECOND
    assert waits.mean() == pytest.approx(expected, rel=0.1)
    np.testing.assert_allclose(run.samples.service_ms, service)
    latency = run.samples.latency_ms
    assert latency.mean() == pytest.approx(expected + service, rel=0.1)


def test_server_counts_who_met_the_deadline() -> None:
    run, _, _ = measured(cycle([1.0, 1.0, 1.0, 9.0]), SERVER, rate=0.01, queries=100, deadline_ms=5)
    deadline = run.figures()["deadline"]
    assert (deadline["arrived"], deadline["met"], deadline["share"]) == (100, 75, 0.75)
    assert deadline["interval_95"][0] < 0.75 < deadline["interval_95"][1]


def test_a_server_that_falls_behind_is_given_up_and_the_unserved_count_as_late() -> None:
    run, _, _ = measured(repeat(100.0), SERVER, rate=100.0, queries=1000, deadline_ms=500)
    deadline = run.figures()["deadline"]
    assert deadline["arrived"] == 1000
    assert deadline["unserved"] == 1000 - len(run.samples) > 700
    assert deadline["share"] < 0.02


def test_arrivals_are_a_poisson_process_and_the_same_for_a_seed() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy (extra export) is missing")
    arrivals = poisson_arrivals(250.0, Until(20.0, 1), seed=3)
    assert len(arrivals) == 5000
    gaps = np.diff(arrivals, prepend=0) / SECOND
    assert stats.kstest(gaps, "expon", args=(0, 1 / 250)).pvalue > 0.01
    np.testing.assert_array_equal(arrivals, poisson_arrivals(250.0, Until(20.0, 1), seed=3))
    assert not np.array_equal(arrivals, poisson_arrivals(250.0, Until(20.0, 1), seed=4))


def test_first_result_counts_loading_and_not_reading_the_image() -> None:
    clock = FakeClock()
    backend = TimedBackend(clock, repeat(3.0))

    def load() -> TimedBackend:
        clock.take(40.0)
        return backend

    def read(spec: InputSpec) -> BenchImages:
        clock.take(1000.0)
        return images(spec)

    settings = BenchSettings((SINGLE,), (NETWORK,), seconds=0, warm_up=0)
    start = bench(load, read, settings, clock=clock, gauge=SilentGauge()).header["start"]
    assert (start["load_ms"], start["first_result_ms"]) == (40, 43)


class PartsBackend(TimedBackend):
    on_cpu = False

    def infer_in_parts(self, batch: np.ndarray) -> dict[str, float]:
        return {"host_to_device": 0.25, "compute": 1.5, "device_to_host": 0.125}


def test_parts_of_a_device_are_taken_by_its_events_and_named_so() -> None:
    clock = FakeClock()
    settings = BenchSettings((SINGLE,), (NETWORK,), seconds=0, warm_up=0)
    backend = PartsBackend(clock, repeat(2.0))
    run = bench(lambda: backend, images, settings, clock=clock, gauge=SilentGauge()).runs[0]
    assert {part.clock for part in run.parts.values()} == {EVENTS}
    medians = {name: part["median"] for name, part in run.figures()["parts_ms"].items()}
    assert medians == {"host_to_device": 0.25, "compute": 1.5, "device_to_host": 0.125}


def test_header_names_machine_versions_model_data_and_equivalence() -> None:
    header = measured(repeat(2.0), queries=30)[2].header
    assert {"processor", "cores", "gpu", "jetpack", "power_mode"} <= set(header["device"])
    assert header["device"]["gpu_cuda"] == "13.0"
    assert {"deepcovid-edge", "python", "numpy"} <= set(header["versions"])
    assert header["model"]["equivalence"] == "the reference itself"
    assert header["memory"]["peak_rss_mib"] > 10
    assert header["settings"]["queries"] == 30
    assert "transfers are included" in header["timing"]["network"]


def test_a_form_that_was_not_verified_says_so() -> None:
    class Unproved(TimedBackend):
        warnings = (WarningCode.UNVERIFIED,)

    clock = FakeClock()
    settings = BenchSettings((SINGLE,), (NETWORK,), seconds=0, warm_up=0)
    backend = Unproved(clock, repeat(2.0))
    result = bench(lambda: backend, images, settings, clock=clock, gauge=SilentGauge())
    assert result.header["model"]["equivalence"] == "not verified"


def test_refused_images_are_left_out_and_named(tmp_path: Path) -> None:
    good = phantom_files(tmp_path, count=2)
    broken = tmp_path / "broken.png"
    broken.write_text("no image")
    chosen = bench_images([*good, broken], InputSpec(), name="folder")
    assert chosen.pixels.shape == (2, 224, 224)
    assert chosen.facts()["excluded"] == {"broken.png": "E_NOT_IMAGE"}
    with pytest.raises(BenchError, match="no image to measure with"):
        bench_images([broken], InputSpec(), name="folder")


def test_samples_stand_in_the_order_of_their_results() -> None:
    queries = [Query(0, 0, 9, 0, 1), Query(1, 1, 4, 1, 1), Query(2, 2, 6, 2, 1)]
    samples = Samples.of(queries, zero=0)
    assert samples.ended.tolist() == [4, 6, 9]
    assert samples.image.tolist() == [1, 2, 0]


def bad_settings() -> Iterator[tuple[dict[str, Any], str]]:
    yield {"scenarios": ("burst",)}, "scenarios: got 'burst'"
    yield {"scopes": ()}, "scopes: got ''"
    yield {"seconds": -1}, "seconds: got -1"
    yield {"queries": 0}, "queries: got 0"
    yield {"streams": 0}, "streams: got 0"
    yield {"batch_size": 5000}, "batch_size: got 5000"
    yield {"rate": 20.0}, "rate: got .* the server scenario"
    yield {"scenarios": (SERVER,)}, "rate: got .* the server scenario"
    yield {"seconds": float("nan")}, "seconds: got nan"


@pytest.mark.parametrize(("settings", "message"), list(bad_settings()))
def test_wrong_settings_name_the_flag(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BenchSettings(**settings)
