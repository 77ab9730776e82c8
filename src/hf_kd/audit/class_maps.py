"""Grad-CAM (paper, Fig. 6): from activation maps and channel weights to class maps, and the panel that shows them.

A map is normalised by its own maximum and by the original's: ReLU and min-max alone amplify what noise an eraser leaves
into what looks like attention to the background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_kd.errors import require

from .plotting import STYLE, add_title, caption, short

STATED = 8.5
"""Font size of titles."""


@dataclass(frozen=True)
class ClassMaps:
    """Class maps [n, height, width], not negative, not normalised."""

    original: Tensor | None
    """Of the true class, before erasing; None where no original is known."""
    erased: Tensor
    """Of the true class, after erasing."""
    answered: Tensor
    """Of the class that is answered after erasing."""
    predicted: Tensor
    """[n]: that class."""
    block: str
    """The module whose output is drawn."""
    closed_form: bool
    """Whether the weights are the closed form at the pooled features."""


def class_map(maps: Tensor, weights: Tensor) -> Tensor:
    """ReLU(sum_c w_c A_c): activation maps [n, channels, positions], weights [n, channels, 1] -> [n, positions]."""
    return torch.relu((maps * weights).sum(dim=1))


NOTE = (
    'Grad-CAM: bright is what speaks for "{name}", as a share of the maximum of its scale. On its own scale every map '
    "has a brightest place"
)


OF_ORIGINAL = "; on the scale of the original dark means that little is left."


def scaled(maps: Tensor, by: Tensor | None = None) -> Tensor:
    """Each map [height, width] over the maximum of its counterpart in `by` (itself without), in [0, 1]; 0 stays 0."""
    top = (maps if by is None else by).flatten(1).amax(dim=1)[:, None, None]
    return torch.where(top > 0, maps / top.clamp(min=torch.finfo(maps.dtype).tiny), torch.zeros_like(maps)).clamp(max=1)


def panel(
    images: Tensor,
    maps: ClassMaps,
    name: str,
    answers: Sequence[str],
    path: Path,
    *,
    title: str = "",
    treatment: str = "erased",
) -> None:
    """One row for each image: the image and four maps over it, without an original two.

    Args:
        images: As the model takes them, [n, channels, height, width].
        maps: The maps of both models.
        name: The forgotten class.
        answers: What is answered after erasing [n].
        path: The PNG to write.
        title: Over the panel; by default how many of the images are still answered so.
        treatment: What was done to the second model, in a word.

    Raises:
        ImportError: Without matplotlib.
    """
    rc_context, Figure = require("matplotlib", "figures").rc_context, require("matplotlib.figure", "figures").Figure
    title = title or f"{short(name)}: {answers.count(name)} of {len(answers)} images shown are still answered so"
    name = short(name, 18)
    columns = []
    if maps.original is not None:
        columns += [
            (f"original: {name}", scaled(maps.original)),
            (f"{treatment}: {name}\nscale of the original", scaled(maps.erased, maps.original)),
        ]
    columns += [
        (f"{treatment}: {name}\nown scale", scaled(maps.erased)),
        (f"{treatment}: its answer\nown scale", scaled(maps.answered)),
    ]
    with rc_context(STYLE):
        figure = Figure(figsize=(1.55 * max(4, len(columns) + 1), 1.6 * len(images) + 0.9))
        axes = figure.subplots(len(images), len(columns) + 1, squeeze=False)
        for row, image in enumerate(images):
            picture = _picture(image)
            grey = picture.mean(axis=2)
            axes[row, 0].imshow(picture)
            for column, (_, drawn) in enumerate(columns, 1):
                _overlay(axes[row, column], grey, drawn[row])
            axes[row, -1].set_xlabel(f"answers {short(answers[row], 24)}", fontsize=7)
        for column, above in enumerate(["image", *(above for above, _ in columns)]):
            axes[0, column].set_title(above, fontsize=STATED)
        for ax in axes.flat:
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
        bar = figure.colorbar(axes[0, -1].images[-1], ax=axes, location="bottom", shrink=0.4, aspect=35)
        bar.set_label(
            caption(figure, NOTE.format(name=name) + ("." if maps.original is None else OF_ORIGINAL)), fontsize=7
        )
        add_title(figure, title)
        figure.savefig(path)


def _overlay(ax: Any, grey: np.ndarray, drawn: Tensor) -> None:
    """A map over the grey image, whose size it is stretched to."""
    ax.imshow(grey, cmap="gray", vmin=0, vmax=1.4)
    extent = (-0.5, grey.shape[1] - 0.5, grey.shape[0] - 0.5, -0.5)
    ax.imshow(drawn.numpy(), cmap="inferno", vmin=0, vmax=1, alpha=0.6, interpolation="bilinear", extent=extent)


def _picture(pixels: Tensor) -> np.ndarray:
    """Normalised pixels [channels, height, width] as a picture [height, width, 3] in [0, 1]."""
    values = pixels.float()
    values = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-6)
    picture = values.permute(1, 2, 0).numpy()
    return np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture[..., :3]
