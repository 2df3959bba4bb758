"""`deepcovid-edge bench`: latency and throughput as a file that others can trust."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deepcovid_edge.benchmarking.settings import (
    MULTI,
    OFFLINE,
    SCENARIOS,
    SCOPES,
    SINGLE,
    BenchSettings,
)
from deepcovid_edge.cli.exit_codes import ExitCode
from deepcovid_edge.cli.options import (
    NamedPath,
    backend_option,
    check_needed,
    path_option,
    provider_option,
)

if TYPE_CHECKING:
    from deepcovid_edge.benchmarking.results import Result, Run

_PHANTOMS = 8


@click.command(
    epilog="Example: deepcovid-edge bench squeezenet1_1 -o cart.json. An unstable run exits with "
    "7. No GPU has been measured yet.",
)
@click.argument("model")
@click.option(
    "--data",
    type=NamedPath(),
    help="Images to measure with.  [default: synthetic ones]",
)
@click.option(
    "--images", type=click.IntRange(1, 10_000), default=64, show_default=True, help="Most images."
)
@click.option(
    "--scenario", "scenarios", multiple=True, type=click.Choice(SCENARIOS), help="Repeatable."
)
@click.option("--scope", "scopes", multiple=True, type=click.Choice(SCOPES), help="Repeatable.")
@backend_option
@provider_option
@click.option(
    "--seconds", type=float, default=5.0, show_default=True, help="Minimum seconds per run."
)
@click.option("--queries", type=int, default=64, show_default=True, help="Minimum queries per run.")
@click.option(
    "--warm-up", type=float, default=1.0, show_default=True, help="Seconds before each run."
)
@click.option(
    "--streams", type=int, default=8, show_default=True, help="Images per multi-stream query."
)
@click.option(
    "--batch-size", type=int, help="Images per offline inference call.  [default: 1, on a GPU 8]"
)
@click.option("--workers", type=int, help="Threads.  [default: one per core]")
@click.option(
    "--threads", type=int, default=1, show_default=True, help="Threads inside one inference call."
)
@click.option("--rate", type=float, help="Images per second that arrive; adds the server scenario.")
@click.option(
    "--deadline",
    "deadline_ms",
    type=float,
    default=500.0,
    show_default=True,
    help="Milliseconds from arrival to result in the server scenario.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the arrival times.")
@path_option("-o", "--output", help="Write the result as JSON.")
@click.option("--append", is_flag=True, help="Add to the result in the file of -o.")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout instead of a table.")
def command(
    model: str,
    data: Path | None,
    images: int,
    scenarios: tuple[str, ...],
    scopes: tuple[str, ...],
    backend: str,
    provider: str | None,
    rate: float | None,
    output: Path | None,
    append: bool,
    as_json: bool,
    **durations: Any,
) -> int:
    """Measure MODEL: one image at a time, several at a time, and as fast as possible.

    Scope `network` goes from prepared batch to logits, `end-to-end` from file to record. `--backend
    auto` measures what `infer` would run. The result holds the raw samples. A percentile is given
    only if there are enough samples. Measure again later with `--append`: then `compare` knows how
    much the machine varies.
    """
    from deepcovid_edge.backends import choose_file, load_backend
    from deepcovid_edge.backends.settings import BackendSettings
    from deepcovid_edge.benchmarking.invocations import check_alike, join
    from deepcovid_edge.benchmarking.measure import bench, bench_images
    from deepcovid_edge.benchmarking.results import read_result
    from deepcovid_edge.device.process import set_up
    from deepcovid_edge.files import check_writable, write_text

    if append and output is None:
        raise click.UsageError("--append: needs the file to join with: -o FILE.json")
    chosen = _scenarios(scenarios, rate)
    settings = BenchSettings(scenarios=chosen, scopes=scopes or SCOPES, rate=rate, **durations)
    if output:
        check_writable(output)
    earlier = read_result(output) if append and output and output.exists() else None
    set_up()
    file = choose_file(model, named=backend != "auto" or provider is not None)
    loaded_settings = BackendSettings(provider=provider, threads=settings.threads)
    with ExitStack() as stack:
        paths, name = _paths(data, images, stack)
        result = bench(
            partial(load_backend, file, backend=backend, settings=loaded_settings),
            partial(bench_images, paths, name=name),
            settings,
            check=partial(check_alike, earlier) if earlier else lambda _: None,
            progress=lambda run: click.echo(f"measuring {run}", err=True),
        )
    if earlier:
        result = join(earlier, result)
    try:
        if output:
            write_text(output, result.to_json())
    finally:
        code = _print(result, as_json=as_json)
    return code


def _print(result: Result, *, as_json: bool) -> int:
    """Print a result, and why it is unstable; return the exit code."""
    if as_json:
        click.echo(result.to_json(), nl=False)
    else:
        show(result)
    unstable = result.unstable()
    for reason in unstable:
        click.echo(f"unstable: {reason}", err=True)
    return ExitCode.UNSTABLE if unstable else 0


def _scenarios(asked: tuple[str, ...], rate: float | None) -> tuple[str, ...]:
    """What is measured; options of another scenario are refused."""
    chosen = asked or (SCENARIOS[:-1] if rate is None else SCENARIOS)
    check_needed("the server scenario: --rate", rate is not None, "deadline_ms", "seed")
    check_needed("--scenario multi-stream", MULTI in chosen, "streams")
    check_needed("--scenario offline", OFFLINE in chosen, "batch_size")
    check_needed("a scenario besides single-stream", {*chosen} != {SINGLE}, "workers")
    return chosen


def _paths(data: Path | None, count: int, stack: ExitStack) -> tuple[Sequence[Path], str]:
    """Files to measure with, evenly chosen from DATA; synthetic ones where none is given."""
    from deepcovid_edge.datasets.dataset import walk_files
    from deepcovid_edge.errors import NotThereError
    from deepcovid_edge.imaging.synthetic.clinic_folder import write_phantoms

    if data is None:
        place = stack.enter_context(tempfile.TemporaryDirectory())
        return write_phantoms(Path(place), count=min(count, _PHANTOMS)), "synthetic images"
    if not data.exists():
        raise NotThereError(f"{data}: no such file or folder; expected images")
    found = list(walk_files(data)) if data.is_dir() else [data]
    step = max(1, -(-len(found) // count))
    return found[::step][:count], data.name


def show(result: Result) -> None:
    """The result as a table for people."""
    from rich.table import Table

    from deepcovid_edge.pipeline.table import PipedConsole

    header = result.header
    model, device, start, memory = (header[name] for name in ("model", "device", "start", "memory"))
    gpu = ", ".join(device["gpus"]) or "no GPU"
    click.echo(
        f"{model['name']} ({model['precision']}, equivalence: {model['equivalence']}) "
        f"on {model['backend']}\n"
        f"{device['processor']}, {device['cores']} cores, {gpu}; {header['data']['images']} images "
        f"({header['data']['name']})"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("scope", "scenario", "images per query"):
        table.add_column(name)
    for name in ("median ms", "p90", "p99", "images/s", "stable"):
        table.add_column(name, justify="right")
    for run in result.runs:
        table.add_row(*_row(run))
    PipedConsole().print(table)
    for run in result.runs:
        for line in _more(run):
            click.echo(f"{run.name}: {line}")
    click.echo(
        f"load {start['load_ms']:.0f} ms, first result after {start['first_result_ms']:.0f} ms, "
        f"peak memory {memory['peak_rss_mib']:.0f} MiB{_gpu_memory(memory)}. Research use only."
    )


def _row(run: Run) -> list[str]:
    figures = run.figures()
    latency = figures["latency_ms"]
    tail = latency["percentiles"] if latency else {}
    return [
        run.scope,
        run.scenario + (f" {run.rate:g}/s" if run.rate else ""),
        str(run.batch),
        _ms(latency and latency["median"]),
        _ms(tail.get("90", {}).get("value")),
        _ms(tail.get("99", {}).get("value")),
        f"{figures['images_per_second']:.1f}",
        "yes" if run.stability().stable else "no",
    ]


def _more(run: Run) -> list[str]:
    """The deadline, parts and energy of a run."""
    figures = run.figures()
    lines = []
    if met := figures["deadline"]:
        low, high = met["interval_95"]
        lines.append(
            f"{met['share']:.1%} [{low:.1%}, {high:.1%}] of {met['arrived']} images within "
            f"{met['ms']:g} ms"
        )
    if figures["parts_ms"]:
        parts = figures["parts_ms"].items()
        medians = ", ".join(f"{name} {part['median']:.3g}" for name, part in parts)
        lines.append(f"medians of the parts, ms: {medians}")
    if joules := figures["joules_per_image"]:
        lines.append(f"{joules * 1000:.3g} mJ per image, {run.watched['energy']['by']}")
    return lines


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _gpu_memory(memory: dict[str, Any]) -> str:
    peak, before = memory["gpu_peak_mib"], memory["gpu_before_mib"]
    return "" if peak is None or before is None else f" (GPU {peak - before:.0f} MiB)"
