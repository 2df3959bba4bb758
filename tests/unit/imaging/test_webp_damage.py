"""Damage amid the pixels of a WebP, which libwebp decodes; whole ones are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_metadata import webp_with

from deepcovid_edge.errors import NotAssessedError
from deepcovid_edge.imaging.radiograph import Radiograph
from deepcovid_edge.reasons import Reason

Decode = Callable[..., Radiograph]
KINDS: list[dict[str, Any]] = [
    {"quality": 90},
    {"quality": 50, "method": 0},
    {"quality": 100, "method": 6},
    {"lossless": True},
    {"lossless": True, "quality": 0, "method": 0},
]


@pytest.mark.parametrize("fill", [b"\0", b"\xff", None], ids=["zeros", "ones", "noise"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_lost_sector_of_webp_is_no_pixel(
    kind: dict[str, Any], fill: bytes | None, pictures: Any, decode: Decode
) -> None:
    whole = pictures.encode(pictures.image(300, 320), "WEBP", **kind)
    decode(whole)
    for at in range(1024, len(whole) - 1024, max(1, len(whole) // 1536) * 512):
        sector = fill * 512 if fill else np.random.default_rng(at + 1).bytes(512)
        with pytest.raises(NotAssessedError) as caught:
            decode(whole[:at] + sector + whole[at + 512 :])
        assert caught.value.reason is Reason.DECODE


def test_what_is_left_over_says_so(pictures: Any, decode: Decode) -> None:
    clean = pictures.encode(pictures.image(), "WEBP", lossless=True)
    longer = clean[12:16] + (int.from_bytes(clean[16:20], "little") + 64).to_bytes(4, "little")
    body = b"WEBP" + longer + clean[20:] + b"x" * 64
    for data in (body, webp_with(b"RIFF" + bytes(4) + body, (b"XMP ", b"abc"))[8:]):
        with pytest.raises(NotAssessedError, match="data are left over") as caught:
            decode(b"RIFF" + len(data).to_bytes(4, "little") + data)
        assert caught.value.reason is Reason.DECODE


def bordered(image: NDArray[Any], side: str, value: int) -> NDArray[Any]:
    high, wide = image.shape
    places: dict[str, Any] = {
        "bottom": np.s_[high // 2 :],
        "top": np.s_[: high // 2],
        "left": np.s_[:, : wide // 2],
        "right": np.s_[:, wide // 2 :],
    }
    changed: NDArray[Any] = image.copy()
    changed[places[side]] = value
    return changed


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("side", ["bottom", "top", "left", "right"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_whole_webp_with_wide_borders_is_read(
    kind: dict[str, Any], side: str, value: int, pictures: Any, decode: Decode
) -> None:
    image = bordered(pictures.image(400, 320), side, value)
    read = decode(pictures.encode(image, "WEBP", **kind)).pixels
    assert read.shape == image.shape
    if "lossless" in kind:
        assert np.array_equal(read, image)


@pytest.mark.parametrize("method", [0, 1, 2])
def test_whole_webp_that_ends_in_zeros_amid_a_row_is_read(
    method: int, pictures: Any, decode: Decode
) -> None:
    """Black rows below, and a white strip beside them, as of a collimator."""
    image = bordered(pictures.image(400, 320), "bottom", 0)
    image[:, :40] = 255
    whole = pictures.encode(image, "WEBP", quality=100, method=method)
    assert whole.endswith(bytes(64))
    assert decode(whole).pixels.shape == image.shape


@pytest.mark.parametrize("kind", KINDS[::2], ids=str)
def test_a_webp_whose_copy_stopped_at_a_sector_lacks_its_end(
    kind: dict[str, Any], pictures: Any, decode: Decode
) -> None:
    whole = pictures.encode(pictures.image(300, 320), "WEBP", **kind)
    said = set()
    for kept in range(1024, len(whole) - 64, 512):
        with pytest.raises(NotAssessedError) as caught:
            decode(whole[:kept] + bytes(len(whole) - kept))
        said.add(caught.value.detail)
    assert "its data end in zeros" in said


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("method", range(7))
def test_whole_webp_of_any_quality_is_read(
    method: int, lossless: bool, pictures: Any, decode: Decode
) -> None:
    image = pictures.image(100, 120)
    alpha = np.full_like(image, 255)
    alpha[:30] = 0
    for quality in (1, 25, 50, 75, 100):
        for pixels in (image, pictures.rgb(image), pictures.rgb(image, alpha)):
            options = {"method": method, "quality": quality, "lossless": lossless}
            assert decode(pictures.encode(pixels, "WEBP", **options)).pixels.shape == image.shape
