"""How original models are trained, by name: settings of `Retrain`. Imports nothing, so that help can name them."""

from __future__ import annotations

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    "allcnn-cifar10": {
        "epochs": 50,
        "lr": 0.01,
        "weight_decay": 0.0,
        "batch_size": 64,
        "decay_epochs": (),
        "augment": "flip",
    },
    "resnet18-cifar10": {},
    "resnet18-pretrained": {
        "epochs": 25,
        "lr": 0.01,
        "batch_size": 128,
        "schedule": "cosine",
        "warmup": 1.0,
        "decay_epochs": (),
    },
    "vit-pretrained": {
        "epochs": 8,
        "lr": 5e-5,
        "head_lr": 1e-3,
        "optimizer": "adamw",
        "weight_decay": 0.05,
        "batch_size": 128,
        "schedule": "cosine",
        "warmup": 0.5,
        "decay_epochs": (),
        "augment": "flip",
    },
}
"""The first is the published code's; the second, all defaults, fits the numbers of Table 5; the paper gives none for the
others, and these are ours."""

PRETRAINED = ("resnet18-pretrained", "vit-pretrained")
"""Recipes that start from the model's own weights where nobody says otherwise; the others start from fresh ones."""
