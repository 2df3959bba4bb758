"""The server's assessor, with a decoder that does not survive every image.

Image files that end so are none that any decoder here is known to fail on; they stand for one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from deepcovid_edge.decision.record import Prediction
from deepcovid_edge.imaging.files import ImageBytes, ImageSource
from deepcovid_edge.model import Model
from deepcovid_edge.serve.assessors.child import main

ENDS, HANGS = b"it ends the process", b"it takes for ever"


class Deadly(Model):
    """A model whose decoder ends its process, or hangs."""

    def predict_together(self, sources: Sequence[ImageSource]) -> list[Prediction]:
        """See `Model.predict_together`."""
        for source in sources:
            if isinstance(source, ImageBytes) and source.data.endswith(ENDS):
                os.abort()
            if isinstance(source, ImageBytes) and source.data.endswith(HANGS):
                time.sleep(600)
        return super().predict_together(sources)


if __name__ == "__main__":
    import deepcovid_edge.serve.assessors.child as assessor

    assessor.Model = Deadly  # type: ignore[attr-defined]
    main()
