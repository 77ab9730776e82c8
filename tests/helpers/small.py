"""Small models, pictures and data sets that many tests need."""

from __future__ import annotations

import functools

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

NAMES = ["ape", "bee", "cat", "dog", "elk"]


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights and BatchNorm statistics large enough that nothing is equal by being near zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        scale = 0.5 / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.2
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale * (2 if parameter.ndim > 1 else 1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
        elif name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model.eval()


def labelled(config_class, **kwargs):
    return config_class(id2label=dict(enumerate(NAMES)), label2id={n: i for i, n in enumerate(NAMES)}, **kwargs)


def picture(label: int, seed: int, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> PILImage.Image:
    """Stripes whose period says the label, with noise."""
    rng = np.random.default_rng(seed)
    stripes = (np.sin(np.arange(size[0]) * (label + 1) * 0.7)[None, :, None] + 1) * 100
    pixels = np.broadcast_to(stripes, (size[1], size[0], 3)) + rng.normal(0, 25, (size[1], size[0], 3))
    return PILImage.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def make_dataset(labels, seed: int = 0, names=NAMES, **kwargs) -> Dataset:
    """Images of these labels: drawn once, a data set is never changed."""
    return _drawn(tuple(labels), seed, tuple(names), tuple(kwargs.items()))


@functools.cache
def _drawn(labels, seed: int, names, kwargs) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    images = [picture(label, seed * 1000 + i, **dict(kwargs)) for i, label in enumerate(labels)]
    return Dataset.from_dict({"image": images, "label": list(labels)}, features=features)
