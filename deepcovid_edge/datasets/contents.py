"""Each content once: a file that holds the same bytes as an earlier one is no further evidence."""

from __future__ import annotations

from deepcovid_edge.datasets.layouts import LabelledImage
from deepcovid_edge.device.progress import number_of
from deepcovid_edge.errors import DataError


class Contents:
    """The contents of the files of one run.

    Attributes:
        labels: SHA-256 of a content -> the label of the first file that has it.
        repeated: Files with the content of an earlier file.
    """

    def __init__(self) -> None:
        self.labels: dict[str, str] = {}
        self.repeated = 0

    def is_new(self, image: LabelledImage, sha256: str | None) -> bool:
        """Note a file; whether no earlier one has its content.

        Args:
            image: The file and its label.
            sha256: Of its bytes; None for a file that could not be read, which is always new.

        Raises:
            DataError: An earlier file has the same content and another label.
        """
        if sha256 is None:
            return True
        known = self.labels.get(sha256)
        if known is None:
            self.labels[sha256] = image.label
            return True
        if known != image.label:
            raise DataError(f"{image.path}: the same image is labelled {known} and {image.label}")
        self.repeated += 1
        return False


def repeated_text(repeated: int) -> str:
    """What people read of files that were counted once."""
    files = number_of(repeated, "file has", "files have")
    return f"{files} the content of an earlier file: counted once"
