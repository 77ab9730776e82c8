"""hf_kd: make trained Hugging Face vision models forget, and measure what they still know.

Importing the package registers `ErasedModel` with the Auto classes of transformers, so that saved erased models load
with `AutoModelForImageClassification.from_pretrained` and `pipeline`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

from .configuration import ErasedConfig, Erasure
from .erasers import ESC, ESCT, Eraser, Method, SecondMoment, available_methods, register_eraser, register_method
from .modeling import ErasedModel

__version__ = version("hf-kd")

__all__ = [
    "ESC",
    "ESCT",
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
]

_OF_AUDIT = ("RetentionReport", "audit_features", "knowledge_retention")


def __getattr__(name: str) -> Any:
    """What comes from the audit loads when it is first used: scikit-learn takes a second to import."""
    if name in _OF_AUDIT:
        return getattr(import_module(".audit", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
