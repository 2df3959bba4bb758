"""`deepcovid-edge infer`: files and folders in, one record per film out."""

from __future__ import annotations

import io
import os
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepcovid_edge.backends import BACKENDS, PROVIDERS
from deepcovid_edge.models import DEFAULT_MODEL

if TYPE_CHECKING:
    from deepcovid_edge.output import RecordFile, RecordWriter
    from deepcovid_edge.records import Prediction, RunFacts

_SOME_NOT_ASSESSED = 4
_KINDS = {".jsonl": "jsonl", ".csv": "csv", "": "jsonl"}


@click.command(
    epilog="Example: deepcovid-edge infer films/ -o results.jsonl. Research use only.",
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write here: .jsonl or .csv.")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Shipped name or file.")
@click.option(
    "--backend", type=click.Choice(["auto", *BACKENDS]), default="auto", show_default=True
)
@click.option("--provider", type=click.Choice(PROVIDERS), help="ONNX Runtime's.  [default: cpu]")
@click.option("--threshold", type=float, help="Positive from this probability on, 0 to 1.")
@click.option("--batch-size", type=int, help="Films an inference.  [default: 2, on a GPU 8]")
@click.option("--workers", type=int, help="Threads that work.  [default: one a core]")
@click.option("--json", "kind", flag_value="jsonl", help="JSON Lines (default in a pipe).")
@click.option("--csv", "kind", flag_value="csv", help="CSV with the same columns.")
@click.option("--table", "kind", flag_value="table", help="A table (default on a terminal).")
@click.option("--resume", is_flag=True, help="Go on with the records already in --output.")
def command(
    paths: tuple[Path, ...],
    output: Path | None,
    model: str,
    backend: str,
    provider: str | None,
    threshold: float | None,
    batch_size: int | None,
    workers: int | None,
    kind: str | None,
    resume: bool,
) -> int:
    """Judge chest radiographs: one record for each file of PATHS, in a stable order.

    Folders are walked. A file that cannot be judged gets a record with the reason and no
    probability; the run goes on and exits with 4.

    `--backend auto` runs the fastest form of the model that was proved to decide alike: a verified
    engine, else INT8 for CPUs. Every record names what ran. Name a backend to run the file itself.
    """
    import cv2

    from deepcovid_edge.backends import BackendSettings, fastest_verified, load_backend
    from deepcovid_edge.models import find_model
    from deepcovid_edge.predict import PredictSettings, predict, run_facts

    settings = PredictSettings(batch_size, workers, threshold)
    kind = _kind(kind, output)
    if resume and output is None:
        raise click.UsageError("--resume needs -o FILE.jsonl or FILE.csv to go on with.")
    _check_paths(paths, output)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service's stop is a Ctrl-C
    cv2.setNumThreads(1)  # films are decoded side by side; threads inside one would only wait
    # Broken files get a reason instead.
    warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")
    file = find_model(model)
    if backend == "auto" and provider is None:
        file = fastest_verified(file)
    loaded_settings = BackendSettings(provider=provider)
    with load_backend(file, backend=backend, settings=loaded_settings) as loaded:
        facts = run_facts(loaded, settings)
        sink = _Sink(output, kind, facts, resume=resume)
        films = partial(list_films, paths, but=output)
        records = predict(sink.left_of(films()), loaded, facts, settings)
        return _drain(records, sink, _count(films, sink))


def list_films(paths: Iterable[Path], *, but: Path | None = None) -> Iterator[Path]:
    """Files of PATHS in a stable order, each once; folders are walked.

    Args:
        paths: Files and folders.
        but: A file to leave out: the output may lie among the films.
    """
    from deepcovid_edge.dataset import walk_files

    named = list(paths)
    left_out = but.resolve() if but else None
    seen: set[Path] = set()
    for path in named:
        for film in walk_files(path) if path.is_dir() else (path,):
            if left_out and film.name == left_out.name and film.resolve() == left_out:
                continue
            if len(named) > 1:  # one folder names no file twice: keep memory flat
                if film in seen:
                    continue
                seen.add(film)
            yield film


def _check_paths(paths: tuple[Path, ...], output: Path | None) -> None:
    from deepcovid_edge.errors import NotThereError

    for path in paths:
        if not os.path.lexists(path):
            raise NotThereError(f"{path}: no such file or folder")
        if output and output.is_file() and path.is_file() and output.samefile(path):
            raise click.UsageError(f"-o {output}: is one of the films; choose another file.")


def _kind(kind: str | None, output: Path | None) -> str:
    """The format: what was asked for, else the output's suffix, else what stdout is."""
    if kind:
        return kind
    if output is None:
        return "table" if sys.stdout.isatty() else "jsonl"
    suffix = output.suffix.lower()
    if suffix not in _KINDS and not (output.exists() and not output.is_file()):
        raise click.UsageError(f"-o {output}: {suffix} is not written; expected .jsonl or .csv.")
    return _KINDS.get(suffix, "jsonl")


class _Sink:
    """Where records go, with a count of what happened."""

    def __init__(self, output: Path | None, kind: str, facts: RunFacts, *, resume: bool) -> None:
        from deepcovid_edge.output import RecordFile, make_writer

        self.file: RecordFile | None = None
        self.writer: RecordFile | RecordWriter
        if output is None:
            if isinstance(sys.stdout, io.TextIOWrapper):  # file names may be no Unicode
                errors = "replace" if kind == "table" else "surrogateescape"
                sys.stdout.reconfigure(errors=errors)
            self.writer = make_writer(kind, sys.stdout)
        else:
            self.writer = self.file = RecordFile(output, facts, kind=kind, resume=resume)
        self.facts = facts
        self.counts: Counter[str] = Counter()

    def left_of(self, films: Iterable[Path]) -> Iterator[Path]:
        """The films that have no record yet."""
        done = self.file.earlier.paths if self.file else set()
        return (film for film in films if str(film) not in done)

    def write(self, record: Prediction) -> None:
        """Write and count a record."""
        self.writer.write(record)
        self.counts[record.decision or record.status] += 1

    @property
    def not_assessed(self) -> int:
        """Films without a result, those of the run that is gone on with included."""
        earlier = self.file.earlier.not_assessed if self.file else 0
        return self.counts["not_assessed"] + earlier


def _count(films: Callable[[], Iterator[Path]], sink: _Sink) -> int | None:
    """How many films there are, where a progress bar wants to know."""
    shown_on_terminal = sink.file is None and sys.stdout.isatty()
    if shown_on_terminal or not sys.stderr.isatty():
        return None
    return sum(1 for _ in sink.left_of(films()))


def _drain(records: Iterator[Prediction], sink: _Sink, total: int | None) -> int:
    from rich.console import Console
    from rich.progress import track

    shown: Iterable[Prediction] = records
    if total is not None:
        shown = track(records, "films", total, console=Console(stderr=True), transient=True)
    try:
        for record in shown:
            sink.write(record)
    except KeyboardInterrupt:
        how = "written; --resume goes on" if sink.file else "written"
        click.echo(_summary(sink, how), err=True)
        raise
    finally:
        for kind in (signal.SIGINT, signal.SIGTERM):  # what is done is written, whoever hurries
            signal.signal(kind, signal.SIG_IGN)
        records.close()  # type: ignore[attr-defined]
        sink.writer.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
    click.echo(_summary(sink, f"done on {sink.facts.backend}"), err=True)
    return _SOME_NOT_ASSESSED if sink.not_assessed else 0


def _summary(sink: _Sink, how: str) -> str:
    counts = sink.counts
    earlier = len(sink.file.earlier.paths) if sink.file else 0
    parts = [
        f"{counts.total()} films {how}: {counts['positive']} positive, {counts['negative']} "
        f"negative, {counts['not_assessed']} not assessed"
    ]
    if earlier:
        parts.append(f"{earlier} films were done before")
    return ". ".join(parts) + ". Research use only."
