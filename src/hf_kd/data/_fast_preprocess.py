"""Resizing uint8 batches exactly as Pillow does, by torch's faster kernel where the two are proven equal.

Both resample with fixed-point weights, along rows first and along columns second, rounding to uint8 in between. But
Pillow keeps 22 bits of each weight and torch as many as fit 16, so they round differently for most pairs of sizes and
filters: a few pixels per thousand, by one or two grey levels, and with some pairs so rarely that a hundred equal
images prove nothing.

Enlarging bilinearly is the case that can be settled, because each output value then depends on two neighbouring input
values only: `equal_to_pillow` tries all 65,536 pairs at every position. Where a pair of sizes passes (32 -> 224,
224 -> 256 do; 32 -> 33, 64 -> 224 do not) torch is used; all else goes to Pillow.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

WORTH_PROVING = 512
"""Images of one size to be seen before the proof is tried, which takes about as long as torch saves on so many."""

_LARGEST_PROVEN = 512
_ALL_PAIRS = 256 * 256
_LINES = (
    23  # per picture: no multiple of a vector length, so that the kernel's blocks and its remainders both take part
)
_PICTURES = 64


def resize_batch(images: Sequence[Image.Image], height: int, width: int, resample: int, fast: bool) -> Tensor:
    """RGB images as uint8 [b, height, width, 3], resized by Pillow's filter number `resample`.

    `fast` says that these sizes passed `equal_to_pillow`; the images then have to share one size.
    """
    if fast:
        return _torch_bilinear(_stack(images), height, width)
    # Pillow copies an image that already has the size
    return _stack([image.resize((width, height), resample=resample) for image in images])


def equal_to_pillow(old: tuple[int, int], new: tuple[int, int], resample: int) -> bool:
    """Whether torch's uint8 resize from `old` to `new` (height, width) gives Pillow's result, bit for bit, on any
    image.

    True only if proven on this machine (the kernel depends on the CPU). The proof is kept for the life of the process.
    """
    if resample != Image.Resampling.BILINEAR or old == new:
        return False
    return all(o <= n <= _LARGEST_PROVEN for o, n in zip(old, new, strict=True)) and all(
        _axis_equal(o, n, axis) for axis, (o, n) in enumerate(zip(old, new, strict=True))
    )


@lru_cache(maxsize=256)
def _axis_equal(old: int, new: int, axis: int) -> bool:
    """Whether all pairs of neighbouring values are resized alike from `old` to `new` along `axis` (0 rows, 1
    columns).
    """
    if old == new:
        return True  # both skip the pass
    # Each line holds one pair (a, b) as a, b, a, b, ...: wherever two neighbours are weighed they are (a, b) or (b, a).
    # Three lines travel as the three channels of one.
    for first in range(0, _ALL_PAIRS, 3 * _LINES * _PICTURES):
        pairs = torch.arange(first, first + 3 * _LINES * _PICTURES) % _ALL_PAIRS
        two = torch.stack([pairs // 256, pairs % 256], dim=1).to(torch.uint8)
        lines = two.repeat(1, (old + 1) // 2)[:, :old].view(-1, 3, old).transpose(1, 2)  # [line, position, channel]
        pictures = lines.reshape(_PICTURES, _LINES, old, 3)
        if axis == 1:
            by_torch = _torch_bilinear(pictures, _LINES, new)
            by_pillow = _pillow_bilinear(lines, len(lines), new)
        else:
            by_torch = _torch_bilinear(pictures.transpose(1, 2).contiguous(), new, _LINES).transpose(1, 2)
            by_pillow = _pillow_bilinear(lines.transpose(0, 1), new, len(lines)).transpose(0, 1)
        if not torch.equal(by_torch.reshape(by_pillow.shape), by_pillow):
            return False
    return True


def _pillow_bilinear(image: Tensor, height: int, width: int) -> Tensor:
    resized = Image.fromarray(image.contiguous().numpy()).resize((width, height), resample=Image.Resampling.BILINEAR)
    return _stack([resized])[0]


def _torch_bilinear(batch: Tensor, height: int, width: int) -> Tensor:
    """uint8 [b, H, W, 3] -> uint8 [b, height, width, 3]; the layout is torch's channels_last, in and out."""
    channels_last = batch.permute(0, 3, 1, 2)
    resized = interpolate(channels_last, size=(height, width), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1)


def _stack(images: Sequence[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images]))
