"""RGB images in, model inputs out: any image processor or callable, with shortcuts that never change a bit.

An image processor of `transformers` spends most of its time on conversions and on double-precision arithmetic per
pixel. For the plain pipeline (resize, centre crop, rescale, normalise) `ImagePreprocessor` does the same in fewer
steps:

- Rescaling and normalising map each of the 256 values of a channel to one float. That table is read off the processor
  itself, so it holds whatever the processor's order of operations is, and a batch is one look-up.
- Resizing goes straight to Pillow, which is what the processor calls too, or, where it is *proven* equal for the sizes
  at hand (`resize.py`), to torch's uint8 kernel.

Everything else takes the processor's own path: settings this file does not know, processors that override the pixel
operations, callables. And the first images of the first input sizes, and of every size that turns to torch's kernel,
are also run through the processor; one differing bit sends this object to the processor's own path for good.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import ChannelDimension

from hf_kd.errors import InvalidTypeError, InvalidValueError, UnreadableImageError

from ._fast_preprocess import WORTH_PROVING, equal_to_pillow, resize_batch

logger = logging.getLogger(__name__)

CHECKED_IMAGES = 4
"""How many images of a new input size are also run through the processor."""

CHECKED_SIZES = 16
"""For how many input sizes that is done. Data sets where every photograph has its own size would gain nothing else."""

MOST_PIXELS = 50_000_000
"""Of an image once it is resized by its short side: a strip of 1 x 4000 pixels would be 200 millions at 224 x 224."""

Size = tuple[int, int]  # height, width

# What a setting may be called without making the plain pipeline wrong for an RGB image and a classifier or encoder.
_KNOWN_SETTINGS = frozenset(
    {
        "do_resize",
        "size",
        "default_to_square",
        "resample",
        "do_center_crop",
        "crop_size",
        "do_rescale",
        "rescale_factor",
    }
    | {"do_normalize", "image_mean", "image_std", "do_convert_rgb", "do_reduce_labels"}
    | {"image_processor_type", "feature_extractor_type", "processor_class"}
)
_PIXEL_OPERATIONS = ("resize", "rescale", "normalize", "center_crop", "process_image", "convert_to_rgb")


@dataclass(frozen=True)
class _Plain:
    """The settings of a processor that resizes, crops the centre and maps the values of each channel, and nothing
    else.
    """

    size: Size | int | None
    """(height, width), the length of the shortest edge, or None where nothing is resized."""
    resample: int
    crop: Size | None
    table: Tensor
    """The output for each channel and value, [3 * 256]."""

    def resized(self, size: Size) -> Size:
        """Height and width of an image of (height, width) `size` after resizing."""
        if self.size is None:
            return size
        if isinstance(self.size, tuple):
            return self.size
        shape_only = np.broadcast_to(np.uint8(0), (3, *size))
        return get_resize_output_image_size(
            shape_only, size=self.size, default_to_square=False, input_data_format=ChannelDimension.FIRST
        )

    def target(self, size: Size) -> Size | None:
        """Height and width of the output, or None where the crop is larger than the image (the processor pads then)."""
        resized = self.resized(size)
        if self.crop is None:
            return resized
        return self.crop if self.crop[0] <= resized[0] and self.crop[1] <= resized[1] else None

    def cropped(self, batch: Tensor) -> Tensor:
        """The centre of uint8 [b, H, W, 3]."""
        if self.crop is None:
            return batch
        (height, width), (crop_height, crop_width) = batch.shape[1:3], self.crop
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        return batch[:, top : top + crop_height, left : left + crop_width]

    def mapped(self, batch: Tensor) -> Tensor:
        """uint8 [b, H, W, 3] -> rescaled and normalised [b, 3, H, W]."""
        # NumPy's take wants no wide copy of the indices, and plane by plane it stays in the cache: 5x as fast
        # as torch.index_select.
        pixels, tables = batch.numpy(), self.table.view(3, 256).numpy()
        mapped = np.empty((len(pixels), 3, *pixels.shape[1:3]), dtype=tables.dtype)
        for image, planes in zip(pixels, mapped, strict=True):
            for channel in range(3):
                np.take(tables[channel], image[:, :, channel], out=planes[channel], mode="clip")
        return torch.from_numpy(mapped)


class ImagePreprocessor:
    """A callable from a list of b RGB PIL images to a dict of batched tensors, `pixel_values` [b, C, H, W] among them.

    Pixels that the processor leaves as bytes become floats of the same values, as models take no others; what else it
    yields (SigLIP 2's masks and shapes) is passed on. The object can be pickled when the processor can, so DataLoader
    workers may be forked or spawned.

    Args:
        processor: An image processor of `transformers`, a processor that holds one as `.image_processor` (CLIP and its
            like), or any callable on one PIL image that returns a tensor [C, H, W] or a mapping of tensors with or without
            a leading batch axis of 1.
        exact_shortcuts: False keeps to the processor's own path.
        channels: How many the model takes; for one channel an image processor is given grey images, a callable RGB ones.

    Raises:
        InvalidValueError: Where there is nothing to preprocess, an image is a strip that resizing would make huge, or the
            outputs do not form a batch.
        InvalidTypeError: Where the processor or what it returns is of no use.
    """

    def __init__(self, processor: Any, exact_shortcuts: bool = True, channels: int | None = None) -> None:
        inner = getattr(processor, "image_processor", None)
        self.processor = processor if inner is None else inner
        if not callable(self.processor) or isinstance(self.processor, PreTrainedTokenizerBase):
            raise InvalidTypeError(
                f"{type(processor).__name__} is no image processor. Pass one of transformers, such as "
                "AutoImageProcessor.from_pretrained(...), or a callable from an RGB PIL image to a tensor [C, H, W]."
            )
        self._grey = channels == 1 and isinstance(self.processor, ImageProcessingMixin)
        self._plain = _plain_settings(self.processor) if exact_shortcuts and not self._grey else None
        self._seen: Counter[Size] = Counter()
        self._checked: set[tuple[Size, bool]] = set()

    @property
    def uses_shortcuts(self) -> bool:
        """Whether batches may take the short way; False once an output was not bit-equal to the processor's."""
        return self._plain is not None

    def __call__(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        if len(images) == 0:
            raise InvalidValueError("There is nothing to preprocess: the list of images is empty. Give at least one.")
        if not isinstance(self.processor, ImageProcessingMixin):
            return with_float_pixels(_batched([self.processor(image) for image in images]))
        for place, image in enumerate(images):
            _refuse_strip(self.processor, image, place)
        pixel_values = None if self._plain is None else self._by_shortcut(images, self._plain)
        return with_float_pixels(self._by_processor(images) if pixel_values is None else {"pixel_values": pixel_values})

    def _by_processor(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        name = type(self.processor).__name__
        try:
            given = [image.convert("L") for image in images] if self._grey else list(images)
            outputs = self.processor(given, return_tensors="pt")
        except ValueError as error:
            sizes = sorted({image.size for image in images})
            raise InvalidValueError(
                f"{name} makes no batch of {len(images)} {'grey ' if self._grey else ''}images of (width, height) "
                f"{', '.join(map(str, sizes[:5]))}{', ...' if len(sizes) > 5 else ''}: {str(error).splitlines()[0]}. "
                + (
                    "If it leaves images at different sizes, let it resize or crop to one, or use batch_size=1."
                    if len(sizes) > 1
                    else "Correct its settings, or pass another processor."
                )
            ) from error
        tensors = {key: value for key, value in outputs.items() if isinstance(value, Tensor)}
        if not tensors:
            kinds = ", ".join(f"{key} ({type(value).__name__})" for key, value in outputs.items()) or "nothing"
            raise InvalidTypeError(
                f"{name} returned {kinds} and no tensor for a batch of {len(images)} images. Let it honour "
                "return_tensors='pt', or pass a callable on one image."
            )
        return tensors

    def _by_shortcut(self, images: Sequence[Image.Image], plain: _Plain) -> Tensor | None:
        """`pixel_values`, or None where these images (or, from now on, all) have to go through the processor."""
        places: dict[Size, list[int]] = {}
        for place, image in enumerate(images):
            if image.mode != "RGB":
                return None
            places.setdefault((image.height, image.width), []).append(place)
        targets = {plain.target(size) for size in places}
        if len(targets) != 1 or None in targets:
            return None
        parts = []
        for size, indices in places.items():
            part = self._one_size([images[i] for i in indices], size, plain)
            if part is None:
                return None
            parts.append(part)
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor([i for indices in places.values() for i in indices])
        return torch.cat(parts)[torch.argsort(order)]

    def _one_size(self, images: list[Image.Image], size: Size, plain: _Plain) -> Tensor | None:
        resized = plain.resized(size)
        self._seen[size] += len(images)
        fast = self._seen[size] >= WORTH_PROVING and equal_to_pillow(size, resized, plain.resample)
        batch = plain.mapped(plain.cropped(resize_batch(images, *resized, plain.resample, fast=fast)))
        if (size, fast) not in self._checked and (fast or len(self._checked) < CHECKED_SIZES):
            self._checked.add((size, fast))
            expected = self._by_processor(images[:CHECKED_IMAGES])
            if set(expected) != {"pixel_values"} or not _same(expected["pixel_values"], batch[:CHECKED_IMAGES]):
                name = type(self.processor).__name__
                logger.warning("%s does more than its settings say: its own, slower path is used.", name)
                self._plain = None
                return None
        return batch


def _plain_settings(processor: Any) -> _Plain | None:
    """How to do what `processor` does in fewer steps; None where it is anything but the plain pipeline."""
    if not isinstance(processor, PilBackend):
        return None
    if any(getattr(type(processor), name) is not getattr(PilBackend, name) for name in _PIXEL_OPERATIONS):
        return None
    settings = {name: value for name, value in processor.to_dict().items() if value not in (None, False)}
    if not _KNOWN_SETTINGS.issuperset(settings):
        return None
    size = crop = None
    if settings.get("do_resize"):
        edges = {name: value for name, value in dict(settings.get("size") or {}).items() if value is not None}
        if set(edges) == {"height", "width"}:
            size = (edges["height"], edges["width"])
        elif set(edges) == {"shortest_edge"}:
            size = edges["shortest_edge"]
        else:
            return None
    if settings.get("do_center_crop"):
        edges = {name: value for name, value in dict(settings.get("crop_size") or {}).items() if value is not None}
        if set(edges) != {"height", "width"}:
            return None
        crop = (edges["height"], edges["width"])
    resample = settings.get("resample", Image.Resampling.BILINEAR)  # 0 (nearest) is False above, and would be lost
    if getattr(processor, "resample", None) == Image.Resampling.NEAREST or not isinstance(resample, int):
        return None
    table = _value_table(processor)
    return None if table is None else _Plain(size, int(resample), crop, table)


def _value_table(processor: PilBackend) -> Tensor | None:
    """What `processor` makes of each value of each channel, [3 * 256], from a picture that holds them all once."""
    values = (np.arange(256)[:, None] + 85 * np.arange(3)) % 256
    picture = Image.fromarray(values.astype(np.uint8).reshape(16, 16, 3))
    try:
        outputs = processor([picture], do_resize=False, do_center_crop=False, return_tensors="pt")
    except ValueError:  # settings that contradict each other: its own path says which
        return None
    pixels = outputs.get("pixel_values")
    if not isinstance(pixels, Tensor) or pixels.shape != (1, 3, 16, 16):
        return None
    table = torch.empty(3, 256, dtype=pixels.dtype)
    return table.scatter_(1, torch.from_numpy(values.T.copy()), pixels.reshape(3, 256)).flatten()


def with_float_pixels(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs with `pixel_values` in floating point: a processor that does not rescale leaves bytes, which no model takes."""
    pixels = inputs.get("pixel_values")
    if not isinstance(pixels, Tensor) or pixels.is_floating_point():
        return dict(inputs)
    return {**inputs, "pixel_values": pixels.float()}


def _refuse_strip(processor: Any, image: Image.Image, place: int) -> None:
    """Raise UnreadableImageError for an image that `processor`, resizing by the short side alone, would make huge."""
    size = getattr(processor, "size", None)
    edges = {} if size is None or isinstance(size, int) else {name: edge for name, edge in dict(size).items() if edge}
    if not getattr(processor, "do_resize", False) or set(edges) != {"shortest_edge"}:
        return
    short, long = sorted(image.size)
    resized = edges["shortest_edge"] ** 2 * long // short
    if resized > max(MOST_PIXELS, short * long):
        raise UnreadableImageError(
            f"An image of {image.width} x {image.height} (width x height) resized to a short side of "
            f"{edges['shortest_edge']} has {resized:,} pixels; at most {MOST_PIXELS:,} are held. Leave it out or crop it.",
            place,
        )


def _batched(outputs: list[Any]) -> dict[str, Tensor]:
    """The outputs of a callable on one image each, as one batch."""
    rows = [output if isinstance(output, Mapping) else {"pixel_values": output} for output in outputs]
    tensors = [{name: _as_tensor(value) for name, value in row.items()} for row in rows]
    batch = {}
    for name in tensors[0]:
        values = [row[name] for row in tensors]
        shapes = sorted({tuple(value.shape) for value in values})
        if len(shapes) > 1:
            raise InvalidValueError(
                f"The preprocessing callable gave {name} of different shapes, {shapes[0]} and {shapes[-1]}; "
                "they make no batch. Let it resize or crop to one size, or use batch_size=1."
            )
        of_one = _is_batch_of_one(tensors[0]) and shapes[0][:1] == (1,)
        batch[name] = torch.cat(values) if of_one else torch.stack(values)
    if "pixel_values" in batch and batch["pixel_values"].ndim not in (3, 4):
        raise InvalidValueError(
            f"The preprocessing callable has to return [C, H, W] for an image, got "
            f"{tuple(batch['pixel_values'].shape[1:])}."
        )
    return batch


def _is_batch_of_one(row: Mapping[str, Tensor]) -> bool:
    """Whether a callable, as one around a processor of transformers does, returns a batch of one image.

    Pixels of three axes are an image [C, H, W], or patches [1, n, d] where their shapes [1, 2] come with them.
    """
    pixels, shapes = row.get("pixel_values"), row.get("spatial_shapes")
    patches = shapes is not None and shapes.ndim == 2
    return pixels is not None and (pixels.ndim == 4 or (patches and pixels.ndim == 3))


def _as_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        mirrored = any(stride < 0 for stride in value.strides)  # which torch does not take
        return torch.from_numpy(value.copy() if mirrored or not value.flags.writeable else value)
    if isinstance(value, list) and len(value) == 1:  # a processor called without return_tensors
        return _as_tensor(value[0])
    raise InvalidTypeError(
        f"The preprocessing callable returned a {type(value).__name__}; it has to return a tensor [C, H, W] or a "
        f"mapping "
        "with pixel_values."
    )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)
