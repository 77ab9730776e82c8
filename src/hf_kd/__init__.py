"""hf_kd: make trained Hugging Face vision models forget, and measure what they still know.

Importing the package registers `ErasedModel` with the Auto classes of transformers, so that saved erased models load
with `AutoModelForImageClassification.from_pretrained` and `pipeline`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

from hf_kd.methods.erasers.base import Eraser, Method
from hf_kd.methods.erasers.cover import Cover
from hf_kd.methods.erasers.esc import ESC
from hf_kd.methods.erasers.esc_t import ESCT
from hf_kd.methods.erasers.moments import SecondMoment
from hf_kd.methods.records import Erasure
from hf_kd.methods.registry import available_methods, register_eraser, register_method
from hf_kd.model.configuration import ErasedConfig
from hf_kd.model.erased_model import ErasedModel

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
    "ReadOptions",
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
    "ReadOptions": ".features.reader",
    "RetentionReport": ".audit",
    "audit_features": ".audit",
    "knowledge_retention": ".metrics",
    "train_original": ".model.train",
    "unlearn": ".model.unlearn",
    "unlearning_methods": ".methods.registry",
}


def __getattr__(name: str) -> Any:
    """What few programs need loads when it is first used: scikit-learn takes a second to import."""
    if name in _LATER:
        return getattr(import_module(_LATER[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
