"""What is read of the machine: lines, libraries and files of known content."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deepcovid_edge.benchmarking import gauges
from deepcovid_edge.benchmarking.gauges import Nvml, Tegrastats, gpu_gauge, parse_line
from deepcovid_edge.benchmarking.watch import Watch, cpu_reading, energy, peak_rss_mib
from deepcovid_edge.device.gpu import find_gpu
from deepcovid_edge.errors import MissingDependencyError, NotThereError

# Of the variant in NVIDIA's Jetson Linux Developer Guide; the values are made up.
ORIN_NANO = (
    "01-02-2026 10:11:12 RAM 3158/7620MB (lfb 4x4MB) SWAP 0/3810MB (cached 0MB) "
    "CPU [3%@1510,0%@1510,off,off] EMC_FREQ 1%@2133 GR3D_FREQ 61%@[624] "
    "cpu@48.5C soc2@47.7C gpu@49.25C tj@50.1C VDD_IN 4985mW/4900mW "
    "VDD_CPU_GPU_CV 1072mW/1000mW VDD_SOC 1390mW/1300mW"
)
AGX_ORIN = (
    "RAM 5021/30588MB (lfb 10x4MB) CPU [1%@729] GR3D_FREQ 0%@[305,305] tj@40C "
    "VDD_GPU_SOC 2400mW/2400mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 3000mW/3000mW"
)


def test_a_line_of_tegrastats_is_read() -> None:
    assert parse_line(ORIN_NANO) == {
        "gpu_mhz": 624.0,
        "gpu_celsius": 49.25,
        "gpu_memory_mib": 3158.0,
        "watts": 4.985,
        "joules": None,
        "slowed": None,
        "rails": "VDD_IN",
    }


def test_a_board_without_a_module_rail_is_summed_and_the_rails_are_named() -> None:
    reading = parse_line(AGX_ORIN)
    assert reading["watts"] == pytest.approx(5.8)
    assert reading["rails"] == "VDD_CPU_CV+VDD_GPU_SOC+VIN_SYS_5V0"
    assert (reading["gpu_mhz"], reading["gpu_celsius"]) == (305.0, 40.0)


def test_a_line_that_tells_nothing_gives_no_numbers() -> None:
    assert set(parse_line("").values()) == {None}


def test_energy_is_the_counters_difference() -> None:
    told = energy([(0.0, {"joules": 100.0, "watts": 50.0}), (2.0, {"joules": 130.0, "watts": 1.0})])
    assert told == {"joules": 30.0, "by": "the GPU's energy counter (NVML)"}


def test_energy_without_a_counter_is_power_over_time() -> None:
    readings: list[tuple[float, dict[str, Any]]] = [
        (0.0, {"watts": 4.0, "rails": "VDD_IN"}),
        (1.0, {"watts": 6.0, "rails": "VDD_IN"}),
        (3.0, {"watts": 6.0, "rails": "VDD_IN"}),
    ]
    assert energy(readings) == {"joules": 5.0 + 12.0, "by": "power of VDD_IN over time"}


def test_energy_that_nothing_tells_is_none() -> None:
    assert energy([(0.0, {"cpu_mhz": 3000.0}), (1.0, {"cpu_mhz": 3000.0})]) is None


def test_clock_and_heat_of_the_cpu_come_from_the_kernel(tmp_path: Path) -> None:
    for core in os.sched_getaffinity(0):
        place = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        place.mkdir(parents=True)
        (place / "scaling_cur_freq").write_text("1984000\n")
    for number, (kind, heat) in enumerate([("CPU-therm", 51250), ("GPU-therm", 90000)]):
        zone = tmp_path / f"sys/class/thermal/thermal_zone{number}"
        zone.mkdir(parents=True)
        (zone / "type").write_text(kind)
        (zone / "temp").write_text(str(heat))
    assert cpu_reading(tmp_path) == {"cpu_mhz": 1984.0, "cpu_celsius": 51.25}


def test_a_machine_that_tells_no_clock_gives_none(tmp_path: Path) -> None:
    assert cpu_reading(tmp_path) == {"cpu_mhz": None, "cpu_celsius": None}


class FakeDriver:
    """Answers for the driver's library in place of the functions of nvidia-ml-py."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
        self.pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py (extra gpu) is missing")
        self.asked: list[tuple[str, tuple[Any, ...]]] = []
        defaults = {"nvmlInit": None, "nvmlShutdown": None, **answers}
        for name in dir(self.pynvml):
            if re.match("nvml(Device|System|Init|Shutdown)", name):
                monkeypatch.setattr(self.pynvml, name, self._function(name, defaults))

    def _function(self, name: str, answers: dict[str, Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.asked.append((name, arguments))
            if name in answers:
                return answers[name]
            if "GetHandle" in name:
                return "handle"
            raise self.pynvml.NVMLError(self.pynvml.NVML_ERROR_NOT_SUPPORTED)

        return call


def test_readings_of_a_gpu_are_scaled_to_their_units(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(
        monkeypatch,
        nvmlDeviceGetClockInfo=1980,
        nvmlDeviceGetTemperature=41,
        nvmlDeviceGetMemoryInfo=SimpleNamespace(used=3 << 30),
        nvmlDeviceGetPowerUsage=123_400,
        nvmlDeviceGetTotalEnergyConsumption=5_000_250,
        nvmlDeviceGetCurrentClocksThrottleReasons=0x4 | 0x40 | 0x1,
        nvmlSystemGetDriverVersion="580.65",
        nvmlSystemGetCudaDriverVersion_v2=13010,
    )
    gauge = Nvml()
    assert gauge.reading() == {
        "gpu_mhz": 1980.0,
        "gpu_celsius": 41.0,
        "gpu_memory_mib": 3072.0,
        "watts": 123.4,
        "joules": 5000.25,
        "slowed": "heat, power cap",
    }
    assert gauge.versions() == {"driver": "580.65", "cuda": "13.1"}
    gauge.close()
    assert driver.asked[-1] == ("nvmlShutdown", ())
    assert ("nvmlDeviceGetClockInfo", ("handle", driver.pynvml.NVML_CLOCK_SM)) in driver.asked


def test_what_a_gpu_does_not_tell_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDriver(monkeypatch)
    gauge = Nvml()
    assert set(gauge.reading().values()) == {None}
    assert gauge.versions() == {"driver": None, "cuda": None}


def test_the_visible_gpu_is_the_one_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for visible, expected in (("3,1", 3), ("GPU-8a2b,GPU-1", "GPU-8a2b"), ("", 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        driver = FakeDriver(monkeypatch)
        Nvml()
        (asked,) = [arguments for name, arguments in driver.asked if "GetHandle" in name]
        assert asked[0] == expected


def test_a_machine_without_the_driver_has_no_nvml() -> None:
    pytest.importorskip("pynvml", reason="nvidia-ml-py (extra gpu) is missing")
    if find_gpu() is not None:
        pytest.skip("this machine has an NVIDIA GPU")
    with pytest.raises(NotThereError, match="NVML: "):
        Nvml()


def test_without_nvidia_ml_py_there_is_no_gauge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependencyError, match=r"pip install 'deepcovid-edge\[gpu\]'"):
        Nvml()
    assert gpu_gauge() is None


def following(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> Tegrastats:
    """A gauge that has read its first line of a program that stands for tegrastats."""
    tool = tmp_path / "tegrastats"
    tool.write_text(f"#!{sys.executable}\n{program}")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    gauge = Tegrastats()
    while gauge.reading()["watts"] is None:
        assert gauge._process.poll() is None
    return gauge


def test_tegrastats_is_followed_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gauge = following(
        tmp_path, monkeypatch, f"import signal\nprint({ORIN_NANO!r}, flush=True)\nsignal.pause()\n"
    )
    assert gauge.reading()["rails"] == "VDD_IN"
    gauge.close()
    assert gauge._process.poll() is not None


def test_tegrastats_is_ended_also_where_it_ignores_the_polite_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge = following(
        tmp_path,
        monkeypatch,
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"print({ORIN_NANO!r}, flush=True)\nwhile True: signal.pause()\n",
    )
    gauge.close()
    assert gauge._process.poll() is not None


def test_what_tegrastats_leaves_behind_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child of the tool holds its pipe, in a session of its own where no signal reaches it."""
    gauge = following(
        tmp_path,
        monkeypatch,
        "import subprocess, time\n"
        "subprocess.Popen(['/bin/sleep', '20'], start_new_session=True)\n"
        f"print({ORIN_NANO!r}, flush=True)\ntime.sleep(1000)\n",
    )
    started = time.monotonic()
    gauge.close()
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("error", [NotThereError("NVML: no driver"), OSError("no tegrastats")])
def test_a_gpu_that_no_library_can_read_has_no_gauge(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Absent:
        def __init__(self) -> None:
            raise error

    class Answering:
        pass

    monkeypatch.setattr(gauges, "Nvml", Absent)
    monkeypatch.setattr(gauges, "Tegrastats", Answering)
    assert isinstance(gpu_gauge(), Answering)
    monkeypatch.setattr(gauges, "Tegrastats", Absent)
    assert gpu_gauge() is None


def test_a_watch_tells_first_last_and_range_of_each_reading() -> None:
    class Counting:
        def __init__(self) -> None:
            self.count = 0

        def versions(self) -> dict[str, str | None]:
            return {}

        def reading(self) -> dict[str, float | str | None]:
            self.count += 1
            return {"gpu_mhz": 1000.0 + self.count, "slowed": "heat" if self.count == 2 else None}

        def close(self) -> None: ...

    with Watch(Counting(), every=3600) as watch:
        pass
    facts = watch.facts()
    assert facts["gpu_mhz"] == {
        "first": 1001.0,
        "last": 1002.0,
        "min": 1001.0,
        "max": 1002.0,
        "median": 1001.5,
    }
    assert facts["slowed"] == ["heat"]
    assert facts["energy"] is None
    assert {"own_share", "others_share", "stolen_share", "load_average"} <= set(facts)


BUSY = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: 1\n"
WAIT = "print(flush=True)\ninput()\n"


@contextmanager
def child(program: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program that runs until it says something, and then until the end of the `with`."""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
        process.communicate(b"\n")


def test_a_watch_sees_the_work_of_others() -> None:
    """An orphan does not belong to this process any more, whoever started it."""
    orphan = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {BUSY!r}])"
    started = time.monotonic()
    with Watch(None) as watch:  # the orphan holds the pipe: `run` waits for it
        subprocess.run([sys.executable, "-c", orphan], stdout=subprocess.PIPE, check=True)
    whole = (time.monotonic() - started) * len(os.sched_getaffinity(0))
    assert watch.facts()["others_share"] * whole > 0.4


@pytest.mark.parametrize("ends", [False, True], ids=["it waits for more", "it has ended"])
def test_the_work_of_a_child_is_that_of_its_parent(ends: bool) -> None:
    """Compressed DICOM images are decoded in children, which wait for the next image."""
    started = time.monotonic()
    watch = Watch(None)
    with ExitStack() as opened:
        opened.enter_context(watch)
        with child(BUSY + WAIT):
            if not ends:
                opened.close()
    whole = (time.monotonic() - started) * len(os.sched_getaffinity(0))
    assert watch.facts()["own_share"] * whole > 0.4


def test_peak_memory_grows_with_what_was_held() -> None:
    before = peak_rss_mib()
    held = bytearray(int(before) + 64 << 20)
    held[::4096] = b"x" * len(held[::4096])
    assert peak_rss_mib() > before + 32


def test_peak_memory_is_that_of_children_too() -> None:
    before = peak_rss_mib()
    hold = "held = bytearray(96 << 20)\nheld[::4096] = b'x' * len(held[::4096])\n"
    with child(hold + WAIT):
        assert peak_rss_mib() > before + 96
