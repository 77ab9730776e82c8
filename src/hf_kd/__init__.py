"""hf_kd: make trained Hugging Face vision models forget, and measure what they still know.

All names load when they are first used, so that `import hf_kd` costs nothing. It does one thing besides: `ErasedModel` is
registered with the Auto classes of transformers, whenever those are imported, so that saved erased models load with
`AutoModelForImageClassification.from_pretrained` and `pipeline`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hf_kd.model import auto_classes

if TYPE_CHECKING:
    from hf_kd.audit import AuditOptions, RetentionReport, Retrained, Unseen, audit_features
    from hf_kd.errors import HfKdError, LabelMismatchError, MissingPackageError, TapNotFoundError, UnreadableImageError
    from hf_kd.features.reader import ReadOptions
    from hf_kd.hub.spaces import KNOWLEDGE_RETENTION
    from hf_kd.methods.erasers.base import Eraser, Method
    from hf_kd.methods.erasers.cover import Cover
    from hf_kd.methods.erasers.esc import ESC
    from hf_kd.methods.erasers.esc_t import ESCT
    from hf_kd.methods.erasers.moments import SecondMoment
    from hf_kd.methods.records import Erasure
    from hf_kd.methods.registry import available_methods, register_eraser, register_method, unlearning_methods
    from hf_kd.metrics import knowledge_retention
    from hf_kd.model.configuration import ErasedConfig
    from hf_kd.model.erased_model import ErasedModel
    from hf_kd.model.train import train_original
    from hf_kd.model.unlearn import unlearn

    __version__: str

__all__ = [
    "ESC",
    "ESCT",
    "KNOWLEDGE_RETENTION",
    "AuditOptions",
    "Cover",
    "ErasedConfig",
    "ErasedModel",
    "Eraser",
    "Erasure",
    "HfKdError",
    "LabelMismatchError",
    "Method",
    "MissingPackageError",
    "ReadOptions",
    "RetentionReport",
    "Retrained",
    "SecondMoment",
    "TapNotFoundError",
    "UnreadableImageError",
    "Unseen",
    "audit_features",
    "available_methods",
    "knowledge_retention",
    "register_eraser",
    "register_method",
    "train_original",
    "unlearn",
    "unlearning_methods",
]

_HOME = {
    "ESC": "methods.erasers.esc",
    "ESCT": "methods.erasers.esc_t",
    "KNOWLEDGE_RETENTION": "hub.spaces",
    "AuditOptions": "audit",
    "Cover": "methods.erasers.cover",
    "ErasedConfig": "model.configuration",
    "ErasedModel": "model.erased_model",
    "Eraser": "methods.erasers.base",
    "Erasure": "methods.records",
    "HfKdError": "errors",
    "LabelMismatchError": "errors",
    "Method": "methods.erasers.base",
    "MissingPackageError": "errors",
    "ReadOptions": "features.reader",
    "RetentionReport": "audit",
    "Retrained": "audit",
    "SecondMoment": "methods.erasers.moments",
    "TapNotFoundError": "errors",
    "UnreadableImageError": "errors",
    "Unseen": "audit",
    "audit_features": "audit",
    "available_methods": "methods.registry",
    "knowledge_retention": "metrics",
    "register_eraser": "methods.registry",
    "register_method": "methods.registry",
    "train_original": "model.train",
    "unlearn": "model.unlearn",
    "unlearning_methods": "methods.registry",
}
"""Where each public name is defined."""

_PACKAGES = ("audit", "bench", "data", "errors", "features", "hub", "methods", "metrics", "testing")
"""Parts that are reached as attributes: `hf_kd.metrics.run_attacks`."""


def __getattr__(name: str) -> Any:
    """A public name or a part of the package, imported when it is first used."""
    if name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in _PACKAGES:
        value = import_module(f"{__name__}.{name}")
    elif name == "__version__":
        from importlib.metadata import version

        value = version("hf-kd")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name[:2] == "__"), *_HOME, *_PACKAGES, "__version__"})


auto_classes.install()
