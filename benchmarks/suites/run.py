"""Measure a suite of models, variants, backends and batches with `deepcovid-edge bench`.

    python -m benchmarks.suites.run --data DATA                       suites/default.toml, stored
    python -m benchmarks.suites.run --data DATA --suite gpu           another suite
    python -m benchmarks.suites.run --data DATA -o PLACE --against    a second run, compared
    python -m benchmarks.suites.run --compare PLACE --against         the comparison alone

Each model, variant, backend and batch is one process of the command, and one file that holds all
its scenarios: results/DEVICE/MODEL/STACK-VARIANT-bBATCH.json. Batch 1 is measured in
`single-stream`, `offline` and `server`, a larger one in `multi-stream` and `offline`.

All files are measured once, then again, as often as the suite asks for. The invocations of a file
lie minutes apart and are joined, so that a comparison knows how much the machine differs
from itself. What cannot run here is skipped, with the reason. An unstable run is stored with its
reasons. suite-NAME.json lists everything. Exit code 7: a run was unstable; 3: a comparison found a
difference; 1: a measurement failed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, device_name, store, this_device
from benchmarks.measure.options import parser_of
from benchmarks.measure.programs import run_child
from benchmarks.suites.compare import against
from benchmarks.variants import VARIANTS, VariantError, file_for, named, stack
from deepcovid_edge.backends.tensorrt.files import Profile
from deepcovid_edge.benchmarking.results import Result, read_result
from deepcovid_edge.benchmarking.settings import MULTI, OFFLINE, SCENARIOS, SCOPES, SERVER, SINGLE
from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.errors import DeepCovidEdgeError, NotThereError
from deepcovid_export.settings import build_settings, read_table

SUITES = Path(__file__).parent
STABLE, UNSTABLE, SKIPPED, FAILED = "stable", "unstable", "skipped", "failed"
_NOT_HERE = (ExitCode.MISMATCH, ExitCode.NOT_THERE)
"""Exit codes of `bench` where a device, a package or a fitting engine is missing."""
_SMALLEST_ENGINE = 32
_STEP_SECONDS = 3600
"""Longest step: its runs take seconds each, an engine that must be built first minutes."""


@dataclass(frozen=True)
class Measure:
    """Runs of one model.

    Attributes:
        model: Shipped name, name in benchmarks/models, or file.
        variants: Of `variants.VARIANTS`.
        backends: `onnxruntime`, `openvino`, `tensorrt`; `onnxruntime:cuda` for a provider.
        batches: Images at once.
        scenarios: Of `SCENARIOS`; each is measured with the batches that it can have.
        scopes: Of `SCOPES`.
        seconds: Minimum seconds per run.
        queries: Minimum queries per run.
        warm_up: Seconds.
        images: Maximum images of `test`.
        rate: Images a second of `server`; without one it is not measured.
        deadline_ms: Of `server`.
    """

    model: str
    variants: tuple[str, ...] = ("fp32",)
    backends: tuple[str, ...] = ("onnxruntime",)
    batches: tuple[int, ...] = (1, 8)
    scenarios: tuple[str, ...] = SCENARIOS
    scopes: tuple[str, ...] = SCOPES
    seconds: float = 5.0
    queries: int = 64
    warm_up: float = 0.5
    images: int = 64
    rate: float | None = None
    deadline_ms: float = 100.0

    def __post_init__(self) -> None:
        for name, known in (("variants", VARIANTS), ("scenarios", SCENARIOS), ("scopes", SCOPES)):
            if unknown := [one for one in getattr(self, name) if one not in known]:
                expected = ", ".join(known)
                raise ValueError(f"{name}: got {unknown[0]!r}, expected some of {expected}")

    def scenarios_of(self, batch: int) -> tuple[str, ...]:
        """Those that a batch can have; `server` needs a rate."""
        fitting = {SINGLE, OFFLINE, SERVER} if batch == 1 else {MULTI, OFFLINE}
        if self.rate is None:
            fitting -= {SERVER}
        return tuple(one for one in self.scenarios if one in fitting)


@dataclass(frozen=True)
class Peers:
    """Programs that run beside `infer`, see speed/peers.py.

    Attributes:
        model: As of `Measure`.
        programs: Of `speed.peers.PEERS`; empty for all.
        rounds: Of all sides in turn.
        images: Maximum images of `test`.
    """

    model: str
    programs: tuple[str, ...] = ()
    rounds: int = 7
    images: int | None = None


@dataclass(frozen=True)
class Suite:
    """A suite's TOML file; each result is measured by that many invocations."""

    name: str
    measure: tuple[Measure, ...]
    peers: tuple[Peers, ...]
    invocations: int = 3


@dataclass(frozen=True)
class Step:
    """One result to measure."""

    measure: Measure
    variant: str
    backend: str
    batch: int

    @property
    def name(self) -> str:
        """As a line of the log names it."""
        return f"{self.measure.model} {self.variant} {self.backend} b{self.batch}"


def read_suite(name: str) -> Suite:
    """A suite of suites/ by its name, or a TOML file.

    Raises:
        ValueError: The file is not there, is no TOML, or has an unknown setting.
    """
    path = Path(name) if name.endswith(".toml") else SUITES / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in SUITES.glob("*.toml")))
        raise ValueError(f"--suite: got {name!r}, expected {known} or a .toml file")
    table = read_table(path)
    lists: dict[str, Any] = {
        name: tuple(build_list(kind, table.pop(name, []), name))
        for name, kind in (("measure", Measure), ("peers", Peers))
    }
    if unknown := sorted(set(table) - {"invocations"}):
        expected = "invocations, measure or peers"
        raise ValueError(f"{unknown[0]}: no such setting; expected {expected}")
    return Suite(path.stem, **lists, **table)


def build_list(kind: type[Any], values: list[Mapping[str, Any]], name: str) -> Iterator[Any]:
    """The settings in a list of tables."""
    for number, value in enumerate(values):
        lists = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
        yield build_settings(kind, lists, f"{name}[{number}].")


def steps(suite: Suite) -> Iterator[Step]:
    """All files of a suite, in their order."""
    for measure in suite.measure:
        for step in product(measure.variants, measure.backends, measure.batches):
            if measure.scenarios_of(step[-1]):
                yield Step(measure, *step)


def main() -> None:
    """Measure a suite, compare it, or both."""
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, help="folder that holds test/, and train/ and val/")
    parser.add_argument("--suite", default="default", help="name in suites/, or a .toml file")
    parser.add_argument("-o", "--output", type=Path, help="folder  [default: results/DEVICE]")
    own = RESULTS / device_name(this_device())
    parser.add_argument(
        "--against", type=Path, nargs="?", const=own, help="folder  [without one: results/DEVICE]"
    )
    parser.add_argument("--compare", type=Path, help="measure nothing: compare this folder")
    parser.add_argument(
        "--smallest-change", type=float, default=0.05, help="smaller changes are ignored"
    )
    options = parser.parse_args()
    code = 0
    if options.compare is None:
        suite = read_suite(options.suite)
        options.compare = options.output or own
        code = measure_suite(suite, options.data, options.compare)
    if options.against is not None:
        code = against(options.against, options.compare, options.smallest_change) or code
    raise SystemExit(code)


def measure_suite(suite: Suite, data: Path | None, place: Path) -> int:
    """Measure a suite, store its results and its list; the exit code."""
    every = [*steps(suite)]
    rows: list[dict[str, Any]] = [{} for _ in every]
    with tempfile.TemporaryDirectory() as folder:
        for invocation in range(1, suite.invocations + 1):
            for number, step in enumerate(every):
                if rows[number].get("status") not in (SKIPPED, FAILED):
                    started = time.perf_counter()
                    written = Path(folder, f"{number}.json")
                    row = attempt(step, data, place, written)
                    spent = rows[number].get("seconds", 0.0) + time.perf_counter() - started
                    rows[number] = {**row, "invocations": invocation, "seconds": round(spent, 1)}
    for step, row in zip(every, rows, strict=True):
        print(f"{step.name}: {row['status']} {'; '.join(row['reasons'])}", flush=True)
    store(f"suite-{suite.name}", {"suite": asdict(suite), "steps": rows}, place=place)
    counts = Counter(row["status"] for row in rows)
    print(", ".join(f"{counts[kind]} {kind}" for kind in (STABLE, UNSTABLE, SKIPPED, FAILED)))
    if counts[FAILED]:
        return ExitCode.ERROR
    return ExitCode.UNSTABLE if counts[UNSTABLE] else ExitCode.DONE


def attempt(step: Step, data: Path | None, place: Path, written: Path) -> dict[str, Any]:
    """Measure a step once more, join it with what `written` holds of it, and store that."""
    row: dict[str, Any] = {
        "model": step.measure.model,
        "variant": step.variant,
        "backend": step.backend,
        "batch": step.batch,
        "file": None,
    }
    try:
        code, message = bench(bench_command(step, data), written)
    except (VariantError, NotThereError) as error:
        return {**row, "status": SKIPPED, "reasons": [str(error)]}
    except DeepCovidEdgeError as error:
        return {**row, "status": FAILED, "reasons": [str(error)]}
    if code not in (ExitCode.DONE, ExitCode.UNSTABLE):
        status = SKIPPED if code in _NOT_HERE else FAILED
        return {**row, "status": status, "reasons": [message]}
    result = read_result(written)
    reasons = result.unstable()
    path = place / file_of(step, result)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(written.read_text("utf-8"), encoding="utf-8")
    for older in other_versions(path):
        older.unlink()
    status = UNSTABLE if reasons else STABLE
    return {**row, "file": str(file_of(step, result)), "status": status, "reasons": reasons}


def other_versions(path: Path) -> list[Path]:
    """Files of the same variant and batch from other versions of the stack; the newest is kept."""
    ((stack, rest),) = re.findall(r"^(.*?)-(?:\d[\d.]*|unknown)-(.*)$", path.name)
    alike = re.compile(rf"{re.escape(stack)}-\d[\d.]*-{re.escape(rest)}")
    return [one for one in path.parent.iterdir() if one != path and alike.fullmatch(one.name)]


def bench_command(step: Step, data: Path | None) -> list[str]:
    """Arguments of `deepcovid-edge bench`.

    Raises:
        VariantError: The variant cannot be made here.
        NotThereError: The backend does not run here.
    """
    measure, model = step.measure, named(step.measure.model)
    profile = Profile(1, step.batch, max(step.batch, _SMALLEST_ENGINE))
    file, library, provider = file_for(model, step.variant, step.backend, data, profile)
    scenarios = measure.scenarios_of(step.batch)
    command = ["bench", str(file), "--backend", library, "--batch-size", str(step.batch)]
    command += ["--provider", provider] if provider else []
    command += ["--data", str(data / "test")] if data else []
    command += ["--streams", str(step.batch)] if step.batch > 1 else []
    command += [word for name in scenarios for word in ("--scenario", name)]
    command += [word for name in measure.scopes for word in ("--scope", name)]
    if SERVER in scenarios:
        command += ["--rate", str(measure.rate), "--deadline", str(measure.deadline_ms)]
    for flag in ("seconds", "queries", "warm_up", "images"):
        command += [f"--{flag.replace('_', '-')}", str(getattr(measure, flag))]
    return command


def bench(command: list[str], output: Path) -> tuple[int, str]:
    """Run the command in a process of its own: its exit code, and its last line."""
    whole = [sys.executable, "-m", "deepcovid_edge", *command, "-o", str(output), "--append"]
    try:
        done = run_child(whole, seconds=_STEP_SECONDS)
    except subprocess.TimeoutExpired:
        return 1, f"no end after {_STEP_SECONDS} s"
    return done.returncode, next(iter(done.stderr.strip().splitlines()[-1:]), "")


def file_of(step: Step, result: Result) -> Path:
    """Where a result belongs, in the folder of its device."""
    name = stack(result.header["model"]["backend"], result.header["versions"])
    return Path(Path(step.measure.model).stem, f"{name}-{step.variant}-b{step.batch}.json")


if __name__ == "__main__":
    main()
