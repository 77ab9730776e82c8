"""The networks that the CIFAR-10 measurements train from scratch, each with its recipe and its preprocessing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from images import CLASSES
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

from allcnn import AllCNN, AllCNNConfig
from cifar_resnet20 import CifarResNet, CifarResNetConfig

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
NAMES = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}


@dataclass(frozen=True)
class Recipe:
    """How one kind of network is made and trained; the learning rate follows one cycle unless it is constant."""

    make: Callable[[], PreTrainedModel]
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]
    size: int = 32
    batch: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    constant: bool = False
    crop: int = 4
    """Pixels of reflected border to crop from at random; 0: mirror images only."""
    smoothing: float = 0.0
    convolutions: bool = True
    """Whether it is mostly these; else it is matrix products and attention."""

    def processor(self) -> ViTImageProcessorPil:
        """What turns a CIFAR image into the network's input."""
        mean, std = (list(values) for values in self.normalisation)
        size = {"height": self.size, "width": self.size}
        return ViTImageProcessorPil(do_resize=self.size != 32, size=size, image_mean=mean, image_std=std)


def resnet18() -> PreTrainedModel:
    """ResNet-18 of transformers as it is, 7x7 stem included: it reads CIFAR at 64 pixels."""
    shape = {"embedding_size": 64, "hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
    return ResNetForImageClassification(ResNetConfig(**shape, layer_type="basic", **NAMES))


def vit() -> PreTrainedModel:
    """A ViT of 2.7 million parameters: patches of 4 pixels, 6 layers of width 192."""
    shape = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
    return ViTForImageClassification(ViTConfig(**shape, image_size=32, patch_size=4, **NAMES))


def vit24() -> PreTrainedModel:
    """A ViT of 0.68 million parameters for a processor: 24 pixels, patches of 4, 6 layers of width 96."""
    shape = {"hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 384}
    return ViTForImageClassification(ViTConfig(**shape, image_size=24, patch_size=4, **NAMES))


RECIPES = {
    "resnet20": Recipe(lambda: CifarResNet(CifarResNetConfig(**NAMES)), IMAGENET),
    # settings of the published code: a constant rate, mirror images, no weight decay; it keeps the best of 50 epochs by the
    # test images, here the rate falls at the end
    "allcnn": Recipe(
        lambda: AllCNN(AllCNNConfig(**NAMES)), HALVES, batch=64, lr=0.01, weight_decay=0.0, constant=True, crop=0
    ),
    "resnet18": Recipe(resnet18, IMAGENET, size=64, batch=256, lr=0.2),
    "vit24": Recipe(
        vit24, HALVES, size=24, lr=1e-3, weight_decay=0.05, optimizer="adamw", smoothing=0.1, convolutions=False
    ),
    "vit": Recipe(
        vit, HALVES, batch=256, lr=1e-3, weight_decay=0.05, optimizer="adamw", smoothing=0.1, convolutions=False
    ),
}
