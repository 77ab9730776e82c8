"""hf_kd: make trained Hugging Face vision models forget, and measure what they still know.

Importing the package registers `ErasedModel` with the Auto classes of transformers, so that saved erased models load
with `AutoModelForImageClassification.from_pretrained` and `pipeline`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

from .configuration import ErasedConfig, Erasure
from .erasers import (
    ESC,
    ESCT,
    Cover,
    Eraser,
    Method,
    SecondMoment,
    available_methods,
    register_eraser,
    register_method,
)
from .modeling import ErasedModel

__version__ = version("hf-kd")

__all__ = [
    "ESC",
    "ESCT",
    "Cover",
    "ErasedConfig",
    "ErasedModel",
    "Eraser",
    "Erasure",
    "Method",
    "RetentionReport",
    "SecondMoment",
    "audit_features",
    "available_methods",
    "knowledge_retention",
    "register_eraser",
    "register_method",
    "train_original",
    "unlearn",
    "unlearning_methods",
]

_LATER = {
    "RetentionReport": ".audit",
    "audit_features": ".audit",
    "knowledge_retention": ".audit",
    "train_original": ".originals",
    "unlearn": ".changing",
    "unlearning_methods": ".unlearning",
}


def __getattr__(name: str) -> Any:
    """What few programs need loads when it is first used: scikit-learn takes a second to import."""
    if name in _LATER:
        return getattr(import_module(_LATER[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
