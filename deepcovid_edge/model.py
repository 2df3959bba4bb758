"""A loaded model in Python: images in, predictions and heat maps out.

    with Model("squeezenet1_1") as model:
        for prediction in model.predict("images/"):
            print(prediction)

The command line runs through this class, so that both give the same records.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from deepcovid_edge.backends import AUTO, load_model
from deepcovid_edge.backends.base import AssessesFiles, Backend
from deepcovid_edge.backends.settings import BackendSettings
from deepcovid_edge.decision.out_of_distribution import REJECT
from deepcovid_edge.decision.record import Prediction, RunFacts
from deepcovid_edge.errors import NotAssessedError, UsageError
from deepcovid_edge.files import Closing
from deepcovid_edge.imaging.files import ImageSource
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.manifest import ModelManifest
from deepcovid_edge.models import DEFAULT_MODEL
from deepcovid_edge.pipeline.classifier import Classifier, Explainer
from deepcovid_edge.pipeline.duplicates import Duplicates
from deepcovid_edge.pipeline.pipeline import (
    PredictSettings,
    default_batch_size,
    predict_groups,
    run_facts,
)
from deepcovid_edge.pipeline.reader import ImageReader, Reading
from deepcovid_edge.pipeline.remote import make_classifier
from deepcovid_edge.pipeline.sources import image_sources
from deepcovid_edge.reasons import Reason

if TYPE_CHECKING:  # a cold start needs neither site files nor heat maps
    from deepcovid_edge.decision.site_file import Site
    from deepcovid_edge.heatmaps.explainer import Explanation, HeatMapMaker
    from deepcovid_edge.heatmaps.windows import OcclusionSettings
    from deepcovid_edge.pipeline.disk_guard import DiskGuard


class Model(Closing):
    """A loaded model. Safe to use from several threads; ends with `close` or `with`.

    Args:
        model: Shipped name, or a .onnx, .engine or .pt file.
        variant: `fp32`, `int8-cpu`, ...; `auto` takes the fastest one that was proved to decide as
            the model does, or the file itself if a backend or provider is named.
        backend: `onnxruntime`, `openvino`, `tensorrt`, `torch`, or `auto`; or the address of a
            server, `kserve://HOST[:PORT]`, which gets the image files.
        provider: What ONNX Runtime runs on: `cpu`, `cuda`, `tensorrt` or `rtx`.
        site: Site file of `site_check`: its threshold decides.
        threshold: Probability from which an image is positive; None for the model's own.
        indeterminate: Whether images too close to the threshold are indeterminate.
        ood: `reject`: out-of-distribution images are not assessed; `warn`: they get a warning.
        batch_size: Most images in one inference call; None for what suits the backend.
        workers: Threads; None for one a core.

    Raises:
        NotThereError: The model, the variant, the backend's package or its device is not there.
        ModelFileError: The file is not a model that the backend runs.
        SettingsMismatchError: The site file is of another model, or found it not usable.
        UsageError: A setting is out of range, or two contradict each other.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        variant: str = AUTO,
        backend: str = AUTO,
        provider: str | None = None,
        site: str | Path | Site | None = None,
        threshold: float | None = None,
        indeterminate: bool = True,
        ood: str = REJECT,
        batch_size: int | None = None,
        workers: int | None = None,
    ) -> None:
        known = _site(Path(site)) if isinstance(site, str | Path) else site
        settings = PredictSettings(
            batch_size, workers, threshold, indeterminate=indeterminate, site=known, ood=ood
        )
        loaded = load_model(
            model,
            variant=variant,
            backend=backend,
            settings=BackendSettings(provider=provider),
            site_model_sha256=known.model_sha256 if known else None,
        )
        try:
            self._set(loaded, settings)
        except BaseException:
            loaded.close()
            raise

    @classmethod
    def of(cls, backend: Backend, settings: PredictSettings | None = None) -> Model:
        """A model whose backend is loaded already; closing the model closes the backend.

        Raises:
            SettingsMismatchError: The site file is of another model, or found it not usable.
        """
        model = cls.__new__(cls)
        model._set(backend, settings or PredictSettings())
        return model

    def _set(self, backend: Backend, settings: PredictSettings) -> None:
        self.backend, self.settings = backend, settings
        self.facts: RunFacts = run_facts(backend, settings)

    @property
    def manifest(self) -> ModelManifest:
        """What the model file states about itself: classes, threshold, input, training."""
        return self.backend.manifest

    def predict(
        self,
        sources: ImageSource | Iterable[ImageSource],
        *,
        change: Callable[[Radiograph], Radiograph] | None = None,
    ) -> Iterator[Prediction]:
        """Classify images one after another, in their order, in constant memory.

        Args:
            sources: A file or a folder, or several: paths, open binary files, `ImageBytes`.
            change: Called with every radiograph before it is prepared, for example to hide a part
                of it; from several threads.

        Yields:
            One prediction for each image; one that cannot be assessed has a reason and no
            probability. Closing the generator ends the threads.

        Raises:
            NotThereError: The only source is a path that does not exist.
        """
        reading = Reading(image_sources(sources), self.reader(change=change))
        return self._predict(self.predict_groups(reading))

    @staticmethod
    def _predict(groups: Generator[list[Prediction]]) -> Iterator[Prediction]:
        with closing(groups):
            for predictions in groups:
                yield from predictions

    def predict_one(self, source: ImageSource) -> Prediction:
        """Classify one image."""
        return self.predict_together([source])[0]

    def predict_together(self, sources: Sequence[ImageSource]) -> list[Prediction]:
        """Classify a few images on the calling thread, with as few inference calls as may be.

        Args:
            sources: Images; no folders.
        """
        images = [self._reader.read(source) for source in sources]
        return self._classifier.classify(images, self.batch_size)

    @property
    def batch_size(self) -> int:
        """Most images in one inference call."""
        return self.settings.batch_size or default_batch_size(self.backend)

    def reader(
        self,
        *,
        change: Callable[[Radiograph], Radiograph] | None = None,
        disk: DiskGuard | None = None,
        keeps_radiographs: bool = False,
    ) -> ImageReader:
        """What reads images for this model; see `ImageReader`.

        Raises:
            UsageError: `change` is given, and a server reads the images.
        """
        sends = isinstance(self.backend, AssessesFiles)
        if sends and change:
            raise UsageError("change: a server reads the images: run the model on this machine")
        return ImageReader(
            self.manifest.input, change, disk, keeps_radiographs=keeps_radiographs, sends=sends
        )

    def predict_groups(
        self,
        reading: Reading,
        *,
        explainer: Explainer | None = None,
        duplicates: Duplicates | None = None,
    ) -> Generator[list[Prediction]]:
        """Classify images that are being read; see `pipeline.predict_groups`."""
        return predict_groups(
            reading,
            self.backend,
            self.facts,
            self.settings,
            explainer=explainer,
            duplicates=duplicates,
        )

    def explain(
        self,
        source: ImageSource,
        *,
        method: str = "occlusion",
        budget: float | None = None,
        window: int = 32,
        stride: int = 8,
        baseline: str = "black",
    ) -> Explanation:
        """Show where the model looked on one image.

        Args:
            source: The image.
            method: `occlusion` hides windows and classifies again; `activation` is the class
                activation map.
            budget: Most seconds for an occlusion; None for all windows.
            window: Side of a window, pixels of the model input.
            stride: From window to window, pixels of the model input.
            baseline: What a hidden window shows: `black`, `mean` or `blurred`.

        Raises:
            NotAssessedError: The image cannot be assessed, or the network gave no usable number for
                its map; `reason` says why.
            UsageError: A setting is out of range, or the budget is too short for one pass.
        """
        from deepcovid_edge.heatmaps.explainer import Explanation, is_finite
        from deepcovid_edge.heatmaps.heatmap import regions
        from deepcovid_edge.heatmaps.windows import OcclusionSettings

        occlusion = OcclusionSettings(window, stride, baseline, budget and budget * 1000.0)
        with self.heatmap_maker(method, occlusion) as maker:
            image = self.reader(keeps_radiographs=True).read(source)
            assessed = self._classifier.assess(image, with_maps=maker.reads_activation_maps)
            (heatmap, _) = next(maker.maps([assessed]))
            radiograph = image.radiograph
        if heatmap is None or radiograph is None:
            needed = max(maker.too_slow, default=0.0) / 1000.0
            raise UsageError(f"budget: got {budget} s, one pass takes about {needed:.2f} s here")
        if not is_finite(heatmap):
            raise NotAssessedError(Reason.RESULT, "heat map")
        places = tuple(regions(heatmap, image.shape, self.manifest.input, image.box_shape))
        return Explanation(heatmap, places, assessed.record, radiograph, self.manifest.input)

    def heatmap_maker(self, method: str, occlusion: OcclusionSettings) -> HeatMapMaker:
        """What makes heat maps with this model; to be closed.

        Raises:
            UsageError: A server runs the model.
        """
        if isinstance(self.backend, AssessesFiles):
            raise UsageError("heatmap: a server gives no heat maps: run the model on this machine")
        from deepcovid_edge.heatmaps.explainer import HeatMapMaker

        return HeatMapMaker(
            self.backend,
            method,
            occlusion,
            limits=[*self.facts.limits.values()],
            workers=self.settings.workers,
        )

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run the network alone.

        Args:
            batch: Model inputs of shape (N, height, width), uint8, from `imaging.prepare.prepare`.

        Returns:
            Logits of shape (N, classes), float32, before softmax.

        Raises:
            UsageError: The batch has another shape or type, or the model is closed.
        """
        return self.backend.infer(batch).logits

    def close(self) -> None:
        """Free what the model holds."""
        self.backend.close()

    @cached_property
    def _reader(self) -> ImageReader:
        return self.reader()

    @cached_property
    def _classifier(self) -> Classifier:
        return make_classifier(self.backend, self.facts, self.settings.ood)

    def __repr__(self) -> str:
        return f"Model({self.facts.model!r}, backend={self.backend.name!r})"


def _site(path: Path) -> Site:
    from deepcovid_edge.decision.site_file import read_site

    return read_site(path)


def backend_of(model: Model | Backend) -> Backend:
    """The backend of a model, or the backend itself."""
    return model.backend if isinstance(model, Model) else model
