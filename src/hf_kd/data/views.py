"""Further views of images that are at hand as model inputs: what whoever has several photographs of one subject sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError


def _cropped(pixels: Tensor) -> Tensor:
    """The middle seven eighths of [n, channels, height, width], scaled back."""
    height, width = pixels.shape[-2:]
    top, left = height // 16, width // 16
    middle = pixels[..., top : height - top, left : width - left]
    return torch.nn.functional.interpolate(middle, size=(height, width), mode="bilinear", antialias=True)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {"mirrored": lambda pixels: pixels.flip(-1), "cropped": _cropped}
"""Further views of a batch of images [n, channels, height, width], in the order in which attacks use them."""


def apply_view(loader: Iterable[Mapping[str, Any]], name: str, view: str) -> Iterator[dict[str, Any]]:
    """The batches of a loader with another view of their images.

    Args:
        loader: Batches as `make_loader` gives them.
        name: The images' name in their inputs.
        view: A key of `VIEWS`.

    Yields:
        The batches, all else in them as it was.

    Raises:
        InvalidValueError: Where those are no pictures [n, channels, height, width] but patches or sequences of colours.
    """
    for batch in loader:
        if batch["inputs"][name].ndim != 4:
            raise InvalidValueError(
                f"There is no {view} view of images that go into the model as {list(batch['inputs'][name].shape)}: it takes "
                "pictures [n, channels, height, width]. Leave out the attacks on several views."
            )
        yield {**batch, "inputs": {**batch["inputs"], name: VIEWS[view](batch["inputs"][name])}}
