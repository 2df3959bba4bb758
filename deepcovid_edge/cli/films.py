"""Commands that judge films: what `infer` and `heatmap` share."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepcovid_edge.backends import BACKENDS, PROVIDERS
from deepcovid_edge.cli.main import INTERRUPTED
from deepcovid_edge.decision.out_of_distribution import CHOICES, REFUSE
from deepcovid_edge.models import DEFAULT_MODEL
from deepcovid_edge.pipeline.disk_guard import LEAST_FREE_MIB

if TYPE_CHECKING:
    from deepcovid_edge.backends import Backend
    from deepcovid_edge.decision.record import Prediction, RunFacts
    from deepcovid_edge.decision.site_file import Site
    from deepcovid_edge.heatmaps.explainer import Explainer, HeatMapSettings
    from deepcovid_edge.pipeline.disk_guard import DiskGuard
    from deepcovid_edge.pipeline.duplicates import Repeats
    from deepcovid_edge.pipeline.pipeline import PredictSettings
    from deepcovid_edge.pipeline.writers import RecordFile, RecordWriter

_SOME_NOT_ASSESSED = 4
_MAP_NAME = re.compile(r".*-[0-9a-f]{8}\.(npz|png)")
"""As `explain` names heat maps and their pictures: the film's name and the start of its hash."""
_KINDS = {".jsonl": "jsonl", ".csv": "csv", "": "jsonl"}


def run_options(command: Callable[..., int]) -> Callable[..., int]:
    """The options that every command has which judges films."""
    options = [
        click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Name or file."),
        click.option(
            "--backend", type=click.Choice(["auto", *BACKENDS]), default="auto", show_default=True
        ),
        click.option(
            "--provider", type=click.Choice(PROVIDERS), help="ONNX Runtime's.  [default: cpu]"
        ),
        click.option("--threshold", type=float, help="Positive from this probability on; no band."),
        click.option(
            "--site",
            type=click.Path(path_type=Path),
            help="Site file of `calibrate`: judge by its threshold.",
        ),
        click.option(
            "--band/--no-band",
            default=True,
            help="Films too close to call are indeterminate, or not.  [default: --band]",
        ),
        click.option(
            "--ood",
            type=click.Choice(CHOICES),
            default=REFUSE,
            show_default=True,
            help="What becomes of films unlike those that the model learned from.",
        ),
        click.option(
            "--workers",
            type=int,
            help="Threads that work.  [default: one a core]",
        ),
        click.option(
            "--min-free",
            type=click.IntRange(0),
            default=LEAST_FREE_MIB,
            show_default=True,
            metavar="MIB",
            help="Refuse films while less is free where results go.",
        ),
        click.option("--json", "kind", flag_value="jsonl", help="JSON Lines (default in a pipe)."),
        click.option("--csv", "kind", flag_value="csv", help="CSV with the same columns."),
        click.option(
            "--table", "kind", flag_value="table", help="A table (default on a terminal)."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def duration(text: str) -> float:
    """A time with its unit, such as `200ms` or `1.5s`, in milliseconds."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?) *(ms|s)", text.strip())
    if not found:
        raise click.BadParameter(f"got {text!r}, expected a time with its unit: 200ms or 1.5s")
    return float(found[1]) * (1000.0 if found[2] == "s" else 1.0)


@dataclass(frozen=True)
class FilmRun:
    """What a command that judges films was asked to do.

    Attributes:
        paths: Files and folders.
        output: File for the records; None for stdout.
        kind: `jsonl`, `csv` or `table`; None for what the output says.
        model: Shipped name or file.
        backend: Its name, or `auto`.
        provider: ONNX Runtime's, or None.
        threshold: Probability from which a film is positive; None for the model's own.
        ood: `refuse` or `warn`: what becomes of films unlike those that the model learned from.
        workers: Threads; None for `default_workers`.
        site: Site file, or None.
        band: Films too close to call are indeterminate.
        min_free: Films are refused below so many MiB; 0 for never.
        batch_size: Films an inference; None for what suits the backend.
        resume: Go on with the records in `output`.
        heatmaps: Which heat maps are made, if any.
    """

    paths: tuple[Path, ...]
    output: Path | None
    kind: str | None
    model: str
    backend: str
    provider: str | None
    threshold: float | None
    ood: str
    workers: int | None
    site: Path | None = None
    band: bool = True
    min_free: int = LEAST_FREE_MIB
    batch_size: int | None = None
    resume: bool = False
    heatmaps: HeatMapSettings | None = None


def judge_films(run: FilmRun) -> int:
    """Judge films and write their records; the exit code."""
    from deepcovid_edge.device.process import set_up
    from deepcovid_edge.manifest import InputSpec
    from deepcovid_edge.models import find_model
    from deepcovid_edge.pipeline.duplicates import Repeats
    from deepcovid_edge.pipeline.pipeline import default_workers, predict_together, run_facts
    from deepcovid_edge.pipeline.reader import FilmReader, Reading

    settings = _settings(run)
    kind = _kind(run.kind, run.output)
    if run.resume and run.output is None:
        raise click.UsageError("--resume needs -o FILE.jsonl or FILE.csv to go on with.")
    _check_paths(run.paths, run.output)
    model = find_model(run.model)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service's stop is a Ctrl-C
    set_up()
    maps = run.heatmaps.folder if run.heatmaps else None
    films = partial(list_films, run.paths, but=run.output, maps=maps)
    disk, repeats = _disk(run), Repeats()
    # Read as nearly every model wants it; one that turns out to want it otherwise starts anew.
    reader = FilmReader(InputSpec(), disk=disk, keeps_films=_draws(run))
    reading = Reading(films(), reader)
    begins_later = run.resume or reader.keeps_films
    idle = (run.workers or default_workers()) - 1  # threads, while one loads the model
    with ExitStack() as opened:
        with _stopping_at_once():
            with reading.ahead(0 if begins_later else idle):
                backend = opened.enter_context(_load(model, run, settings.site))
            facts = run_facts(backend, settings)
            explainer = _explainer(run, backend, facts.threshold, opened)
            sink = _Sink(run.output, kind, facts, resume=run.resume)
        if run.resume or backend.manifest.input != reader.spec:
            reader = replace(reader, spec=backend.manifest.input)
            reading = Reading(sink.left_of(films()), reader)
        records = predict_together(
            reading, backend, facts, settings, explainer=explainer, repeats=repeats
        )
        code = _drain(records, sink, _count(films, sink))
        for line in _afterwards(explainer, disk, repeats):
            click.echo(line, err=True)
        return code


@contextmanager
def _stopping_at_once() -> Iterator[None]:
    """Let a stop end the process, whatever its threads do: there is no record yet to be kept.

    An interrupt in the middle of an import may leave Python's import lock taken. Threads that read
    films import what a film needs, would wait for it, and be waited for, for ever (CPython 3.11).
    """

    def stop(*_: object) -> None:
        os.write(2, b"Stopped.\n")
        os._exit(INTERRUPTED)

    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    for kind, handler in before.items():
        if handler is not signal.SIG_IGN:  # as in a shell's background job
            signal.signal(kind, stop)
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _settings(run: FilmRun) -> PredictSettings:
    from deepcovid_edge.pipeline.pipeline import PredictSettings

    site = None
    if run.site:
        from deepcovid_edge.decision.site_file import read_site

        site = read_site(run.site)
    return PredictSettings(
        run.batch_size, run.workers, run.threshold, band=run.band, site=site, ood=run.ood
    )


def _load(model: Path, run: FilmRun, site: Site | None) -> Backend:
    """The fastest form of the model; with a site file the form that it was made with, if it can."""
    from deepcovid_edge.backends import BackendSettings, fastest_verified, load_backend
    from deepcovid_edge.manifest import file_sha256

    settings = BackendSettings(provider=run.provider)
    as_it_is = run.backend != "auto" or run.provider is not None
    if not as_it_is and not (site and file_sha256(model) == site.model_sha256):
        model = fastest_verified(model)
    return load_backend(model, backend=run.backend, settings=settings)


def _draws(run: FilmRun) -> bool:
    return run.heatmaps is not None and run.heatmaps.overlay


def _disk(run: FilmRun) -> DiskGuard:
    from deepcovid_edge.pipeline.disk_guard import DiskGuard

    folders = [run.heatmaps.folder] if run.heatmaps else []
    if run.output and (run.output.is_file() or not run.output.exists()):  # no /dev/null, no pipe
        folders.append(run.output.parent)
    return DiskGuard(map(_nearest, folders), run.min_free)


def _nearest(folder: Path) -> Path:
    """The folder, or the parent in which it will be made."""
    return next((place for place in (folder, *folder.parents) if place.exists()), folder)


def _afterwards(explainer: Explainer | None, disk: DiskGuard, repeats: Repeats) -> Iterator[str]:
    if repeats.same:
        yield f"{repeats.same} films had come before, byte for byte: their first result stands."
    if disk.full:
        yield f"Films were refused: {disk.full}. Free some room; --resume goes on."
    if explainer:
        yield _about_maps(explainer)


def _explainer(
    run: FilmRun, backend: Backend, threshold: float, opened: ExitStack
) -> Explainer | None:
    if run.heatmaps is None:
        return None
    from deepcovid_edge.heatmaps.explainer import Explainer

    made = Explainer(backend, run.heatmaps, threshold=threshold, workers=run.workers)
    return opened.enter_context(made)


def _about_maps(explainer: Explainer) -> str:
    """Where the heat maps are, and why some are not."""
    slow = explainer.too_slow
    said = f"Heat maps are in {explainer.settings.folder}."
    if slow:
        said += (
            f" {len(slow)} films have no heat map: --budget does not hold one pass, which takes "
            f"about {max(slow):.0f} ms here: raise it, or take a larger --stride."
        )
    return said


def list_films(
    paths: Iterable[Path], *, but: Path | None = None, maps: Path | None = None
) -> Iterator[Path]:
    """Files of PATHS in a stable order, each once; folders are walked.

    Args:
        paths: Files and folders.
        but: A file to leave out: the output may lie among the films.
        maps: A folder whose heat maps are left out: it may lie among the films too.
    """
    from deepcovid_edge.datasets.dataset import walk_files

    named = list(paths)
    left_out, maps = (place.resolve() if place else None for place in (but, maps))
    seen: set[Path] = set()
    for path in named:
        for film in walk_files(path) if path.is_dir() else (path,):
            if left_out and film.name == left_out.name and film.resolve() == left_out:
                continue
            if maps and _MAP_NAME.fullmatch(film.name) and film.resolve().parent == maps:
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
        from deepcovid_edge.pipeline.writers import RecordFile, make_writer

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

    def write(self, records: list[Prediction]) -> None:
        """Write and count records."""
        self.writer.write(*records)
        self.counts.update(record.decision or record.status for record in records)

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


def _drain(together: Generator[list[Prediction]], sink: _Sink, total: int | None) -> int:
    try:
        with closing(_shown(together, total)) as shown:
            for records in shown:
                sink.write(records)
    except KeyboardInterrupt:
        how = "written; --resume goes on" if sink.file else "written"
        click.echo(_summary(sink, how), err=True)
        raise
    finally:
        for kind in (signal.SIGINT, signal.SIGTERM):  # what is done is written, whoever hurries
            signal.signal(kind, signal.SIG_IGN)
        together.close()
        sink.writer.close()
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, signal.default_int_handler)
    click.echo(_summary(sink, f"done on {sink.facts.backend}"), err=True)
    return _SOME_NOT_ASSESSED if sink.not_assessed else 0


def _shown(together: Iterator[list[Prediction]], total: int | None) -> Generator[list[Prediction]]:
    """The same, with a bar of so many films on a terminal."""
    if total is None:
        yield from together
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        films = bar.add_task("films", total=total)
        for records in together:
            yield records
            bar.advance(films, len(records))


def _summary(sink: _Sink, how: str) -> str:
    counts = sink.counts
    earlier = len(sink.file.earlier.paths) if sink.file else 0
    unclear = f"{counts['indeterminate']} indeterminate, " if counts["indeterminate"] else ""
    parts = [
        f"{counts.total()} films {how}: {counts['positive']} positive, {counts['negative']} "
        f"negative, {unclear}{counts['not_assessed']} not assessed"
    ]
    if earlier:
        parts.append(f"{earlier} films were done before")
    return ". ".join(parts) + ". Research use only."
