"""One image of a dataset, whatever it is stored as, as an RGB PIL image.

Vision datasets hold far more than 8-bit RGB: greyscale, 16-bit, palettes with a transparent colour, CMYK scans,
photographs turned by an EXIF tag, arrays and tensors. Everything after this file sees upright 8-bit RGB and nothing
else, and an image that cannot be read is reported with the number of its row instead of a decoder's message from
somewhere inside a pass.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Image as ImageFeature
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from hf_kd.errors import InvalidValueError, UnreadableImageError, shortened

logger = logging.getLogger(__name__)

DECODER_ERRORS = (
    OSError,  # includes PIL.UnidentifiedImageError and truncated files
    SyntaxError,  # broken PNG chunks
    ValueError,
    IndexError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    RuntimeError,  # of the decoder of AVIF
)
_EXIF_ERRORS = (*DECODER_ERRORS, KeyError, TypeError, ZeroDivisionError)
PREPARED = "; what a processor made already goes in as DataLoader(dataset.with_format('torch'), batch_size=32)"
"""Where arrays of inputs that a model takes as they are were given as images."""
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")


LARGE = 1_000_000
"""Pixels above which an image waits undecoded for its turn: a batch of photographs is gigabytes."""


@dataclass(frozen=True)
class LargeImage:
    """An image of more than `LARGE` pixels, of which nothing but the size was read yet."""

    value: Any
    """What it is stored as."""
    row: int
    mode: str | None

    def decoded(self) -> Image.Image:
        """The image, as `small_to_rgb` gives it."""
        return _in_mode(to_rgb(self.value, self.row), self.mode)


def small_to_rgb(value: Any, row: int, mode: str | None = None) -> Image.Image | LargeImage:
    """As `to_rgb`, with the pixels that an image of `mode` has; a large one is decoded later."""
    image = _read(value, row, None, only_small=True)
    return LargeImage(value, row, mode) if image is None else _in_mode(image, mode)


def _in_mode(image: Image.Image, mode: str | None) -> Image.Image:
    return image if mode is None else image.convert(mode).convert("RGB")


def to_rgb(value: Any, row: int, called: str | None = None) -> Image.Image:
    """An image as an upright 8-bit RGB image.

    - Transparency (alpha channel, or a transparent palette colour) is composited onto white, as `transformers` does.
    - 16 bits are scaled by the full range, 65535 -> 255. Integers of other types (Pillow mode I, int16) count as 16-bit
      unless no pixel exceeds 255. Floating-point images have to lie in [0, 1]; booleans become 0 and 255.
    - An EXIF orientation is applied. Of an encoded animation the first frame is taken, of one that was
      opened with Pillow the frame that it stands at.

    Args:
        value: A PIL image, encoded bytes, a path, the {"bytes", "path"} of `datasets.Image(decode=False)`, a NumPy array
            (HxW, HxWx1, HxWx3, HxWx4, or channels first where that is the only reading), such an array as nested lists, or a
            torch tensor (channels first, or last where that is the only reading).
        row: Its number in the data set, which errors name.
        called: What errors call it instead, where it stands in no data set.

    Raises:
        UnreadableImageError: For anything else: damaged or empty files, None, values out of range.
    """
    return cast("Image.Image", _read(value, row, called, only_small=False))


def _read(value: Any, row: int, called: str | None, only_small: bool) -> Image.Image | None:
    """As `to_rgb`; None, `only_small`, for a large image."""
    try:
        if isinstance(value, Image.Image):
            return None if only_small and _is_large(value) else _pil_to_rgb(value, row)
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            value = value.float() if value.dtype == torch.bfloat16 else value  # which NumPy has not
            return _pil_to_rgb(_from_array(value.numpy(), channels_first=True), row)
        if isinstance(value, list):  # as `datasets` hands out an array
            value = np.asarray(value)
            if value.dtype.kind not in "buif":
                raise InvalidValueError(f"a list of {value.dtype} is no image; expected nested lists of numbers")
        if isinstance(value, np.ndarray):
            return _pil_to_rgb(_from_array(value, channels_first=False), row)
        with _open(value) as image:
            return None if only_small and _is_large(image) and not _is_remote(value) else _pil_to_rgb(image, row)
    except DECODER_ERRORS as error:
        raise UnreadableImageError(
            f"{called or f'The image in row {row}{_file_of(value)}'} cannot be read: {_reason(error)}. "
            f"{'Repair it or leave this row out' if called is None else 'Repair it, or send another'}.",
            row,
        ) from error


def _file_of(value: Any) -> str:
    """The file of an image in brackets, where it has one of its own: the row is counted behind filters and draws."""
    path = value.get("path") if isinstance(value, dict) else value
    return f" ({os.fspath(path)})" if isinstance(path, str | os.PathLike) and os.path.isfile(path) else ""


def _is_large(image: Image.Image) -> bool:
    width, height = image.size
    return width * height > LARGE


def _is_remote(value: Any) -> bool:
    """Whether it is a file inside an archive or on the Hub, as streaming data sets name them, to be fetched once."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else None
    return isinstance(value, str) and "://" in value


def _open(value: Any) -> Image.Image:
    if value is None:
        raise InvalidValueError("it is empty (None)")
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            value = value["bytes"]
        elif value.get("path") is not None:
            return _open(value["path"])
        else:
            raise InvalidValueError("neither 'bytes' nor 'path' is filled")
    if isinstance(value, (bytes, bytearray, memoryview)):
        if not len(value):
            raise InvalidValueError("it has 0 bytes")
        return Image.open(io.BytesIO(value))
    if isinstance(value, (str, os.PathLike)):
        path = os.fspath(value)
        if _is_remote(path):
            return ImageFeature().decode_example({"path": path, "bytes": None})
        if not os.path.isfile(path):
            raise InvalidValueError(
                f"there is no file {shortened(path)} (a text is taken for a path; decode base64 to bytes first)"
            )
        return Image.open(Path(path))
    raise InvalidValueError(
        f"a {type(value).__name__} is no image; expected a PIL image, bytes, a path, a dict with 'bytes' or 'path', "
        "an array or a tensor"
    )


def _pil_to_rgb(image: Image.Image, row: int) -> Image.Image:
    if 0 in image.size:
        raise InvalidValueError(f"its size is {image.width} x {image.height}")
    image.load()
    image = _upright(image, row)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BIT_MODES or image.mode in ("I", "F"):
        return Image.fromarray(_to_uint8(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        if image.mode == "La":
            image = image.convert("LA")  # Pillow has no direct way
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image, row: int) -> Image.Image:
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except _EXIF_ERRORS as error:
        # The pixels are sound, only their description is not: use them as they are stored, and say so.
        logger.warning(
            "Row %d: its EXIF block is damaged (%s), so its orientation is not applied.", row, type(error).__name__
        )
        return image


def _from_array(array: np.ndarray, channels_first: bool) -> Image.Image:
    if array.ndim == 3:
        first, last = array.shape[0] in (1, 3, 4), array.shape[2] in (1, 3, 4)
        if first and (channels_first or not last):
            array = np.moveaxis(array, 0, -1)
        elif not last:
            raise InvalidValueError(f"no axis of an array of shape {array.shape} can be 1, 3 or 4 channels")
        if array.shape[2] == 1:
            array = array[:, :, 0]
    elif array.ndim != 2:
        raise InvalidValueError(f"an array of shape {array.shape} is no single image")
    if 0 in array.shape:
        raise InvalidValueError(f"its shape is {array.shape}")
    return Image.fromarray(np.ascontiguousarray(_to_uint8(array, PREPARED)))


def _to_uint8(pixels: np.ndarray, way_out: str = "") -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = pixels.min(), pixels.max()
    if np.issubdtype(pixels.dtype, np.floating):
        if not (low >= 0 and high <= 1):  # also catches NaN
            raise InvalidValueError(f"floating-point pixels have to lie in [0, 1], got [{low:g}, {high:g}]{way_out}")
        return np.rint(pixels.astype(np.float64) * 255).astype(np.uint8)
    if low < 0 or high > 65535:
        raise InvalidValueError(f"integer pixels have to lie in [0, 65535], got [{low}, {high}]")
    if high <= 255 and not (pixels.dtype.kind == "u" and pixels.dtype.itemsize == 2):
        return pixels.astype(np.uint8)
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # round(v * 255 / 65535)


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):  # its message is the address of a buffer
        return "it is in no image format that Pillow knows"
    text = str(error) or type(error).__name__
    return text if len(text) <= 400 else f"{text[:399]}…"
