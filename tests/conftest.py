"""Small models and data sets that many tests need, and where the shared real data lies if it is there."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a network

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

# small models gain nothing from threads, and with several test processes they only get in each other's way
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))

NAMES = ["ape", "bee", "cat", "dog", "elk"]
SHARED = Path(__file__).resolve().parents[1].parent / "shared"


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


@pytest.fixture
def vit(processor) -> ViTForImageClassification:
    from tests.helpers.taught import taught

    config = labelled(
        ViTConfig,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=16,
        patch_size=8,
    )
    return taught(randomise(ViTForImageClassification(config)), processor)


@pytest.fixture
def resnet(processor) -> ResNetForImageClassification:
    from tests.helpers.taught import taught

    config = labelled(ResNetConfig, embedding_size=8, hidden_sizes=[8, 24], depths=[1, 1], layer_type="basic")
    return taught(randomise(ResNetForImageClassification(config)), processor)


@pytest.fixture(params=["vit", "resnet"])
def model(request):
    """A transformer whose tap is the head's input, and a conv net with BatchNorm whose tap is the tower's output."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def picture(label: int, seed: int, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> PILImage.Image:
    """Stripes whose period says the label, with noise."""
    rng = np.random.default_rng(seed)
    stripes = (np.sin(np.arange(size[0]) * (label + 1) * 0.7)[None, :, None] + 1) * 100
    pixels = np.broadcast_to(stripes, (size[1], size[0], 3)) + rng.normal(0, 25, (size[1], size[0], 3))
    return PILImage.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def make_dataset(labels, seed: int = 0, names=NAMES, **kwargs) -> Dataset:
    features = Features({"image": Image(), "label": ClassLabel(names=list(names))})
    images = [picture(label, seed * 1000 + i, **kwargs) for i, label in enumerate(labels)]
    return Dataset.from_dict({"image": images, "label": list(labels)}, features=features)


@pytest.fixture
def forget() -> Dataset:
    """20 images of "cat"."""
    return make_dataset([2] * 20)


@pytest.fixture
def pixels(processor) -> torch.Tensor:
    images = [picture(i % 5, 777 + i) for i in range(10)]
    return processor(images, return_tensors="pt")["pixel_values"]


@pytest.fixture
def shared() -> Path:
    """The folder of real data and trained weights; the test is skipped where it is not there."""
    if not SHARED.is_dir():
        pytest.skip("the folder of shared data and weights is not beside the project")
    return SHARED
