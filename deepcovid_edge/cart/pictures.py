"""Pictures of an image for the page, made where the image is decoded anyway: by the assessor.

The page decodes nothing. An image of which nothing could be decoded has no picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcovid_edge.files import write_atomically

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deepcovid_edge.imaging.radiograph import Radiograph

PICTURE, THUMBNAIL, MAP = "picture.jpg", "thumbnail.jpg", "map.jpg"
"""In the folder of an image's results: the image, the image small, the image under its heat map."""
_PICTURE_SIDE, _THUMBNAIL_SIDE = 1024, 144
_QUALITY = 88


def write_pictures(folder: Path, radiograph: Radiograph) -> None:
    """Write an image's picture and its thumbnail, each with the shape of the image.

    Args:
        folder: Of the image's results; made where it is not there.
        radiograph: The image.

    Raises:
        OutputError: The disk is full or the folder cannot be written.
        OSError: The folder cannot be made.
    """
    import cv2

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    large = _scaled(radiograph.pixels, radiograph.whole_shape, _PICTURE_SIDE)
    grey: NDArray[Any] = cv2.convertScaleAbs(large, alpha=255.0 / radiograph.white)
    write_atomically(folder / PICTURE, _jpeg(grey))
    write_atomically(folder / THUMBNAIL, _jpeg(_scaled(grey, grey.shape, _THUMBNAIL_SIDE)))


def write_map_picture(folder: Path, overlay: Path, radiograph: Radiograph, spec: Any) -> None:
    """Cut the image under its heat map out of the picture that was drawn for the PACS.

    Args:
        folder: Of the image's results.
        overlay: The picture.
        radiograph: The image that it was drawn of.
        spec: The network's input (`manifest.InputSpec`).

    Raises:
        OutputError: The disk is full or the folder cannot be written.
    """
    import cv2

    from deepcovid_edge.heatmaps.overlay import Layout

    drawn = cv2.imread(str(overlay), cv2.IMREAD_COLOR)
    if drawn is None:
        return
    layout = Layout.of(radiograph.whole_shape, spec, radiograph.box_shape)
    top, left = layout.panels  # the margin above is that at the side
    rows, columns = layout.image
    part = drawn[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
    write_atomically(folder / MAP, _jpeg(part))


def _scaled(pixels: NDArray[Any], shape: tuple[int, ...], side: int) -> NDArray[Any]:
    """Pixels whose longest side is `side` at most, in the proportions of `shape`."""
    import cv2

    scale = min(1.0, side / max(shape))
    size = max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))
    scaled: NDArray[Any] = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return scaled


def _jpeg(pixels: NDArray[Any]) -> bytes:
    import cv2

    _, data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return data.tobytes()
