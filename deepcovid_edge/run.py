"""One run over many files: images are read ahead, classified, explained and written as records.

A run goes on after a kill, does not fill the disk, and keeps its memory flat. What a terminal
shows of it, and how a person stops it, is the command line's.
"""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcovid_edge.backends import AUTO
from deepcovid_edge.backends.settings import is_address
from deepcovid_edge.datasets.folders import FolderWalk
from deepcovid_edge.device import shares
from deepcovid_edge.device.memory import check_address_space
from deepcovid_edge.device.progress import number_of
from deepcovid_edge.errors import UsageError
from deepcovid_edge.files import missing_folders, remove_empty
from deepcovid_edge.pipeline.disk_guard import LEAST_FREE_MIB, DiskGuard
from deepcovid_edge.pipeline.sources import check_folders, check_paths, list_images

if TYPE_CHECKING:
    from deepcovid_edge.decision.record import Prediction, RunFacts
    from deepcovid_edge.heatmaps.explainer import HeatMapSettings, HeatMapWriter
    from deepcovid_edge.model import Model
    from deepcovid_edge.pipeline.earlier_records import Earlier
    from deepcovid_edge.pipeline.html_page import HtmlPage
    from deepcovid_edge.pipeline.writers import RecordFile, RecordWriter

_FORMATS = {".jsonl": "jsonl", ".csv": "csv", "": "jsonl"}


@dataclass(frozen=True)
class RunSettings:
    """The images of a run, and what is done with them.

    Attributes:
        paths: Files and folders.
        output: File for the records; None for stdout.
        format: `jsonl`, `csv` or `table`; None for what fits the output.
        resume: Continue the records in `output`.
        min_free: No image is assessed while the disk of the results has less free, MiB.
        heatmaps: Which heat maps are made, if any.
        html: Folder for a page of the records, with the pictures of `heatmaps`; None for none.
    """

    paths: tuple[Path, ...]
    output: Path | None = None
    format: str | None = None
    resume: bool = False
    min_free: int = LEAST_FREE_MIB
    heatmaps: HeatMapSettings | None = None
    html: Path | None = None

    def __post_init__(self) -> None:
        if self.resume and self.html:
            raise UsageError("html: got resume too, expected one of them: a page shows a whole run")
        if self.resume and self.output is None:
            raise UsageError("resume: needs an output file of JSON Lines or CSV to continue")
        check_paths(self.paths)
        output = self.output
        if (
            output
            and output.is_file()
            and any(map(output.samefile, filter(shares.is_file, self.paths)))
        ):
            raise UsageError(f"output: {output} is one of the images: choose another file")
        check_folders(self.paths, but=output, html=self.html, maps=self._maps)

    @property
    def record_format(self) -> str:
        """What was asked for, else what the output's suffix says, else what stdout is for.

        Raises:
            UsageError: Records are not written into files of that suffix, or others than asked for.
        """
        suffix = self.output.suffix.lower() if self.output else ""
        if self.format:
            if suffix and _FORMATS.get(suffix, self.format) != self.format:
                raise UsageError(
                    f"output: {self.output}: got {self.format} records for a {suffix} file: choose "
                    "another name, or leave the format out"
                )
            return self.format
        if self.output is None:
            return "table" if sys.stdout.isatty() else "jsonl"
        if suffix not in _FORMATS and not (self.output.exists() and not self.output.is_file()):
            raise UsageError(
                f"output: {self.output}: {suffix} is not written: expected .jsonl or .csv"
            )
        return _FORMATS.get(suffix, "jsonl")

    @property
    def draws(self) -> bool:
        """Whether pictures are drawn on the radiographs."""
        return self.heatmaps is not None and self.heatmaps.overlay

    def images(self, walk: FolderWalk | None = None) -> Iterator[Path]:
        """The image files, in their order; the walk counts what is passed over."""
        return list_images(self.paths, but=self.output, html=self.html, maps=self._maps, walk=walk)

    @property
    def _maps(self) -> Path | None:
        return self.heatmaps.folder if self.heatmaps else None


class Run:
    """A run that has begun: the model is loaded, the file of records is open.

    Images are read while the model loads, by threads that would be idle else.

    Args:
        settings: The images and the records.
        model: Keywords of `Model`.

    Raises:
        DeepCovidEdgeError: See `Model`, `RunSettings` and `pipeline.writers.RecordFile`.
        MemoryError: A limit of this process leaves too little room for the threads.
    """

    def __init__(self, settings: RunSettings, **model: Any) -> None:
        from deepcovid_edge.manifest import InputSpec
        from deepcovid_edge.pipeline.duplicates import Duplicates
        from deepcovid_edge.pipeline.pipeline import default_workers
        from deepcovid_edge.pipeline.reader import ImageReader, Reading

        self.settings, self.format = settings, settings.record_format
        self.counts: Counter[str] = Counter()
        self._maps = 0
        self._overlays: list[str] = []  # the first two: a single picture is named
        self._duplicates = Duplicates()
        self._disk = _disk_guard(settings)
        # Start reading for the default input size; start again if the model needs another.
        reader = ImageReader(InputSpec(), disk=self._disk, keeps_radiographs=settings.draws)
        self._walk = FolderWalk()
        reading = Reading(settings.images(self._walk), reader)
        begins_later = (
            settings.resume or settings.draws or is_address(str(model.get("backend", AUTO)))
        )
        workers = model.get("workers") or default_workers()
        check_address_space(workers)
        with ExitStack() as opened:
            with reading.ahead(0 if begins_later else workers - 1):  # one loads the model
                self.model: Model = opened.enter_context(_load(model))
            self._explainer = _explainer(settings, self.model, opened)
            # The page may be somebody else's: earlier records stay until that is known.
            self._page = _page(settings, self.model.facts, opened)
            self._open_output(self.model.facts)
            opened.callback(self._writer.close)
            if self._page:
                self._page.begin()
            wanted = self.model.reader(disk=self._disk, keeps_radiographs=settings.draws)
            if settings.resume or wanted != reader:
                reader = wanted
                self._walk = FolderWalk()
                images = settings.images(self._walk)
                reading = Reading(self._earlier.left_of(images), reader)
            self._reading = reading
            self._opened = opened.pop_all()

    def _open_output(self, facts: RunFacts) -> None:
        from deepcovid_edge.pipeline.earlier_records import ShownOptions
        from deepcovid_edge.pipeline.writers import RecordFile, make_writer

        self.file: RecordFile | None = None
        self._writer: RecordFile | RecordWriter
        if self.settings.output is None:
            _reconfigure_stdout(self.format)
            self._writer = make_writer(self.format, sys.stdout, facts)
        else:
            settings = self.settings
            maps = settings.heatmaps is not None
            self._writer = self.file = RecordFile(
                self.settings.output,
                facts,
                kind=self.format,
                resume=settings.resume,
                options=ShownOptions(self.model.settings.ood, maps, settings.draws),
            )

    @property
    def _earlier(self) -> Earlier:
        from deepcovid_edge.pipeline.earlier_records import Earlier

        return self.file.earlier if self.file else Earlier()

    def records(self) -> Generator[list[Prediction]]:
        """Classify the images, in groups of records that are ready. Closing ends the threads."""
        return self.model.predict_groups(
            self._reading, explainer=self._explainer, duplicates=self._duplicates
        )

    def write(self, records: list[Prediction]) -> None:
        """Write and count records.

        Raises:
            OutputError: The disk is full or gone.
        """
        self._writer.write(*records)
        if self._page:
            self._page.write(*records)
        self.counts.update(record.decision or record.status for record in records)
        self._maps += sum(record.heatmap is not None for record in records)
        drawn = [record.overlay for record in records if record.overlay]
        self._overlays = [*self._overlays, *drawn][:2]

    def count(self) -> int:
        """How many images have no record yet; it walks the folders once more."""
        earlier = self._earlier
        return sum(not earlier.holds(str(image)) for image in self.settings.images())

    @property
    def can_resume(self) -> bool:
        """Whether the same command with --resume goes on with what is written."""
        return self.file is not None and self.file.can_resume and self.settings.html is None

    @property
    def not_assessed(self) -> int:
        """Images without a result, those of the run that is gone on with included."""
        return self.counts["not_assessed"] + self._earlier.not_assessed

    def summary(self, how: str) -> str:
        """How many images came to which decision, in one sentence."""
        counts = self.counts
        earlier = len(self._earlier.records)
        unclear = f"{counts['indeterminate']} indeterminate, " if counts["indeterminate"] else ""
        found = (
            f"{number_of(counts.total(), 'image')} {how}: {counts['positive']} positive, "
            f"{counts['negative']} negative, {unclear}{counts['not_assessed']} not assessed"
        )
        if not earlier:
            return found
        return f"{found}. {number_of(earlier, 'image was', 'images were')} done before"

    def notes(self) -> Iterator[str]:
        """What to know of the run beside its records: duplicates, a full disk, the heat maps."""
        yield from self._walk.notes()
        if again := self._earlier.again:
            files = number_of(again, "file has", "files have")
            yield f"{files} changed since the first record: there is a second one now."
        if same := self._earlier.not_assessed:
            images = number_of(same, "image")
            yield f"{images} without a result: unchanged, not classified again."
        if same := self._duplicates.same:
            images = number_of(same, "image is identical", "images are identical")
            yield f"{images} to an earlier one: the first result is kept."
        if self._earlier.records and self._duplicates.has_uids:
            yield "Images done before were not compared: W_DUP_UID covers this command alone."
        if self._disk.full:
            goes_on = "; --resume goes on" if self.can_resume else " and run the command again"
            yield f"The disk is full: {self._disk.full}. Free some room{goes_on}."
        if self._explainer:
            yield _about_maps(self._explainer, self._maps, self._overlays)
        if self._page:
            yield f"The page is {self._page.path}."

    def close(self) -> None:
        """Close the file of records, and free the model.

        Raises:
            OutputError: The disk is full or gone.
        """
        self._opened.close()


def _reconfigure_stdout(record_format: str) -> None:
    """Records on stdout are the bytes that a file holds; a table is written as people read it."""
    if not isinstance(sys.stdout, io.TextIOWrapper):
        return
    if record_format == "table":
        sys.stdout.reconfigure(errors="replace")
    else:  # names of files may hold any letter, or any byte
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def _load(model: dict[str, Any]) -> Model:
    from deepcovid_edge.model import Model

    return Model(**model)


def _disk_guard(settings: RunSettings) -> DiskGuard:
    output = settings.output
    folders = [settings.heatmaps.folder] if settings.heatmaps else []
    if output and (output.is_file() or not output.exists()):  # no /dev/null, no pipe
        folders.append(output.parent)
    return DiskGuard(map(_nearest, folders), settings.min_free)


def _nearest(folder: Path) -> Path:
    """The folder, or the parent in which it will be made."""
    return next((place for place in (folder, *folder.parents) if place.exists()), folder)


def _explainer(settings: RunSettings, model: Model, opened: ExitStack) -> HeatMapWriter | None:
    if settings.heatmaps is None:
        return None
    from deepcovid_edge.heatmaps.explainer import HeatMapWriter

    maker = opened.enter_context(
        model.heatmap_maker(settings.heatmaps.method, settings.heatmaps.occlusion)
    )
    opened.callback(remove_empty, missing_folders(settings.heatmaps.folder))
    return HeatMapWriter(maker, settings.heatmaps)


def _page(settings: RunSettings, facts: RunFacts, opened: ExitStack) -> HtmlPage | None:
    if settings.html is None:
        return None
    from deepcovid_edge.pipeline.html_page import HtmlPage

    page = HtmlPage(settings.html, facts)
    opened.callback(page.close)
    return page


def _about_maps(explainer: HeatMapWriter, made: int, overlays: Sequence[str]) -> str:
    """Where the heat maps are, and why some are not."""
    slow = explainer.maker.too_slow
    found = f"Heat maps are in {explainer.settings.folder}." if made else "No heat map was made."
    if len(overlays) == 1:
        found = f"The heat map is {overlays[0]}."
    if slow:
        images = number_of(len(slow), "image has", "images have")
        found += (
            f" {images} no heat map: --budget is shorter than one pass, which takes about "
            f"{max(slow):.0f} ms here: raise it, or take a larger --stride."
        )
    return found
