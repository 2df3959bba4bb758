"""Commands that classify images: what `infer` and `heatmap` share."""

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
from deepcovid_edge.decision.out_of_distribution import CHOICES, REJECT
from deepcovid_edge.models import DEFAULT_MODEL
from deepcovid_edge.pipeline.disk_guard import LEAST_FREE_MIB

if TYPE_CHECKING:
    from deepcovid_edge.backends import Backend
    from deepcovid_edge.decision.record import Prediction, RunFacts
    from deepcovid_edge.decision.site_file import Site
    from deepcovid_edge.heatmaps.explainer import Explainer, HeatMapSettings
    from deepcovid_edge.pipeline.disk_guard import DiskGuard
    from deepcovid_edge.pipeline.duplicates import Duplicates
    from deepcovid_edge.pipeline.pipeline import PredictSettings
    from deepcovid_edge.pipeline.writers import RecordFile, RecordWriter

_SOME_NOT_ASSESSED = 4
_MAP_NAME = re.compile(r".*-[0-9a-f]{8}\.(npz|png)")
"""As `explain` names heat maps and their pictures: the image's name and the start of its hash."""
_KINDS = {".jsonl": "jsonl", ".csv": "csv", "": "jsonl"}


def run_options(command: Callable[..., int]) -> Callable[..., int]:
    """The options that every command has which classifies images."""
    options = [
        click.option("--model", default=DEFAULT_MODEL, show_default=True, help="Name or file."),
        click.option(
            "--backend", type=click.Choice(["auto", *BACKENDS]), default="auto", show_default=True
        ),
        click.option(
            "--provider", type=click.Choice(PROVIDERS), help="ONNX Runtime's.  [default: cpu]"
        ),
        click.option(
            "--threshold",
            type=float,
            help="Positive from this probability on; no indeterminate range.",
        ),
        click.option(
            "--site",
            type=click.Path(path_type=Path),
            help="Site file of `site-check`: classify by its threshold.",
        ),
        click.option(
            "--indeterminate/--no-indeterminate",
            default=True,
            help="Images too close to call are indeterminate, or not.  [default: --indeterminate]",
        ),
        click.option(
            "--ood",
            type=click.Choice(CHOICES),
            default=REJECT,
            show_default=True,
            help="What becomes of images unlike those that the model learned from.",
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
            help="Refuse images while less is free where results go.",
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
class ImageRun:
    """What a command that classifies images was asked to do.

    Attributes:
        paths: Files and folders.
        output: File for the records; None for stdout.
        kind: `jsonl`, `csv` or `table`; None for what the output says.
        model: Shipped name or file.
        backend: Its name, or `auto`.
        provider: ONNX Runtime's, or None.
        threshold: Probability from which an image is positive; None for the model's own.
        ood: `reject` or `warn`: what becomes of images unlike those that the model learned from.
        workers: Threads; None for `default_workers`.
        site: Site file, or None.
        indeterminate_range: Images too close to call are indeterminate.
        min_free: Images are refused below so many MiB; 0 for never.
        batch_size: Images an inference; None for what suits the backend.
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
    indeterminate_range: bool = True
    min_free: int = LEAST_FREE_MIB
    batch_size: int | None = None
    resume: bool = False
    heatmaps: HeatMapSettings | None = None


def classify_images(run: ImageRun) -> int:
    """Classify images and write their records; the exit code."""
    from deepcovid_edge.device.process import set_up
    from deepcovid_edge.manifest import InputSpec
    from deepcovid_edge.models import find_model
    from deepcovid_edge.pipeline.duplicates import Duplicates
    from deepcovid_edge.pipeline.pipeline import default_workers, predict_together, run_facts
    from deepcovid_edge.pipeline.reader import ImageReader, Reading

    settings = _settings(run)
    kind = _kind(run.kind, run.output)
    if run.resume and run.output is None:
        raise click.UsageError("--resume needs -o FILE.jsonl or FILE.csv to go on with.")
    _check_paths(run.paths, run.output)
    model = find_model(run.model)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service's stop is a Ctrl-C
    set_up()
    maps = run.heatmaps.folder if run.heatmaps else None
    images = partial(list_images, run.paths, but=run.output, maps=maps)
    disk, duplicates = _disk(run), Duplicates()
    # Read as nearly every model wants it; one that turns out to want it otherwise starts anew.
    reader = ImageReader(InputSpec(), disk=disk, keeps_radiographs=_draws(run))
    reading = Reading(images(), reader)
    begins_later = run.resume or reader.keeps_radiographs
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
            reading = Reading(sink.left_of(images()), reader)
        records = predict_together(
            reading, backend, facts, settings, explainer=explainer, duplicates=duplicates
        )
        code = _drain(records, sink, _count(images, sink))
        for line in _afterwards(explainer, disk, duplicates):
            click.echo(line, err=True)
        return code


@contextmanager
def _stopping_at_once() -> Iterator[None]:
    """Let a stop end the process, whatever its threads do: there is no record yet to be kept.

    An interrupt in the middle of an import may leave Python's import lock taken. Threads that read
    images import what an image needs, would wait for it, and be waited for, for ever (CPython
    3.11).
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


def _settings(run: ImageRun) -> PredictSettings:
    from deepcovid_edge.pipeline.pipeline import PredictSettings

    site = None
    if run.site:
        from deepcovid_edge.decision.site_file import read_site

        site = read_site(run.site)
    return PredictSettings(
        run.batch_size,
        run.workers,
        run.threshold,
        indeterminate_range=run.indeterminate_range,
        site=site,
        ood=run.ood,
    )


def _load(model: Path, run: ImageRun, site: Site | None) -> Backend:
    """The fastest variant of the model, or the one that the site file was made with."""
    from deepcovid_edge.backends import BackendSettings, fastest_verified, load_backend
    from deepcovid_edge.manifest import file_sha256

    settings = BackendSettings(provider=run.provider)
    as_it_is = run.backend != "auto" or run.provider is not None
    if not as_it_is and not (site and file_sha256(model) == site.model_sha256):
        model = fastest_verified(model)
    return load_backend(model, backend=run.backend, settings=settings)


def _draws(run: ImageRun) -> bool:
    return run.heatmaps is not None and run.heatmaps.overlay


def _disk(run: ImageRun) -> DiskGuard:
    from deepcovid_edge.pipeline.disk_guard import DiskGuard

    folders = [run.heatmaps.folder] if run.heatmaps else []
    if run.output and (run.output.is_file() or not run.output.exists()):  # no /dev/null, no pipe
        folders.append(run.output.parent)
    return DiskGuard(map(_nearest, folders), run.min_free)


def _nearest(folder: Path) -> Path:
    """The folder, or the parent in which it will be made."""
    return next((place for place in (folder, *folder.parents) if place.exists()), folder)


def _afterwards(
    explainer: Explainer | None, disk: DiskGuard, duplicates: Duplicates
) -> Iterator[str]:
    if duplicates.same:
        yield f"{duplicates.same} images had come before, byte for byte: their first result stands."
    if disk.full:
        yield f"Images were refused: {disk.full}. Free some room; --resume goes on."
    if explainer:
        yield _about_maps(explainer)


def _explainer(
    run: ImageRun, backend: Backend, threshold: float, opened: ExitStack
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
            f" {len(slow)} images have no heat map: --budget does not hold one pass, which takes "
            f"about {max(slow):.0f} ms here: raise it, or take a larger --stride."
        )
    return said


def list_images(
    paths: Iterable[Path], *, but: Path | None = None, maps: Path | None = None
) -> Iterator[Path]:
    """Files of PATHS in a stable order, each once; folders are walked.

    Args:
        paths: Files and folders.
        but: A file to leave out: the output may lie among the images.
        maps: A folder whose heat maps are left out: it may lie among the images too.
    """
    from deepcovid_edge.datasets.dataset import walk_files

    named = list(paths)
    excluded, maps = (place.resolve() if place else None for place in (but, maps))
    seen: set[Path] = set()
    for path in named:
        for image in walk_files(path) if path.is_dir() else (path,):
            if excluded and image.name == excluded.name and image.resolve() == excluded:
                continue
            if maps and _MAP_NAME.fullmatch(image.name) and image.resolve().parent == maps:
                continue
            if len(named) > 1:  # one folder names no file twice: keep memory flat
                if image in seen:
                    continue
                seen.add(image)
            yield image


def _check_paths(paths: tuple[Path, ...], output: Path | None) -> None:
    from deepcovid_edge.errors import NotThereError

    for path in paths:
        if not os.path.lexists(path):
            raise NotThereError(f"{path}: no such file or folder")
        if output and output.is_file() and path.is_file() and output.samefile(path):
            raise click.UsageError(f"-o {output}: is one of the images; choose another file.")


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

    def left_of(self, images: Iterable[Path]) -> Iterator[Path]:
        """The images that have no record yet."""
        done = self.file.earlier.paths if self.file else set()
        return (image for image in images if str(image) not in done)

    def write(self, records: list[Prediction]) -> None:
        """Write and count records."""
        self.writer.write(*records)
        self.counts.update(record.decision or record.status for record in records)

    @property
    def not_assessed(self) -> int:
        """Images without a result, those of the run that is gone on with included."""
        earlier = self.file.earlier.not_assessed if self.file else 0
        return self.counts["not_assessed"] + earlier


def _count(images: Callable[[], Iterator[Path]], sink: _Sink) -> int | None:
    """How many images there are, where a progress bar wants to know."""
    shown_on_terminal = sink.file is None and sys.stdout.isatty()
    if shown_on_terminal or not sys.stderr.isatty():
        return None
    return sum(1 for _ in sink.left_of(images()))


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
    """The same, with a bar of so many images on a terminal."""
    if total is None:
        yield from together
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        images = bar.add_task("images", total=total)
        for records in together:
            yield records
            bar.advance(images, len(records))


def _summary(sink: _Sink, how: str) -> str:
    counts = sink.counts
    earlier = len(sink.file.earlier.paths) if sink.file else 0
    unclear = f"{counts['indeterminate']} indeterminate, " if counts["indeterminate"] else ""
    parts = [
        f"{counts.total()} images {how}: {counts['positive']} positive, {counts['negative']} "
        f"negative, {unclear}{counts['not_assessed']} not assessed"
    ]
    if earlier:
        parts.append(f"{earlier} images were done before")
    return ". ".join(parts) + ". Research use only."
