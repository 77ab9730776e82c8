"""From what a user holds - a data set, a list, a loader, a folder - to batches of a model's inputs and labels.

`load` opens what a command line can name, `image_source` finds images and labels in it, `images` and `preprocess` make
model inputs of them (`_fast_preprocess` holds the exact fast path), `loader` makes batches, `samples` reads them in any
order, `views` shows them again, `labels` tells the data set's classes in the model's terms, `distributed` says which process
reads what. Names load when they are first used: `text` alone, which cleans names for display, needs none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_kd.errors import LabelMismatchError, UnreadableImageError

    from .distributed import gather_rows, process_state, sum_over_processes
    from .image_source import ImageSource, inspect_images
    from .images import to_rgb
    from .labels import LabelMapping, check_class_ids, match_labels, resolve_forget_labels
    from .load import filter_by_labels, load_source
    from .loader import make_loader
    from .preprocess import ImagePreprocessor
    from .views import VIEWS, apply_view

__all__ = [
    "VIEWS",
    "ImagePreprocessor",
    "ImageSource",
    "LabelMapping",
    "LabelMismatchError",
    "UnreadableImageError",
    "apply_view",
    "check_class_ids",
    "filter_by_labels",
    "gather_rows",
    "inspect_images",
    "load_source",
    "make_loader",
    "match_labels",
    "process_state",
    "resolve_forget_labels",
    "sum_over_processes",
    "to_rgb",
]

_HOME = {
    "VIEWS": "hf_kd.data.views",
    "ImagePreprocessor": "hf_kd.data.preprocess",
    "ImageSource": "hf_kd.data.image_source",
    "LabelMapping": "hf_kd.data.labels",
    "LabelMismatchError": "hf_kd.errors",
    "UnreadableImageError": "hf_kd.errors",
    "apply_view": "hf_kd.data.views",
    "check_class_ids": "hf_kd.data.labels",
    "filter_by_labels": "hf_kd.data.load",
    "gather_rows": "hf_kd.data.distributed",
    "inspect_images": "hf_kd.data.image_source",
    "load_source": "hf_kd.data.load",
    "make_loader": "hf_kd.data.loader",
    "match_labels": "hf_kd.data.labels",
    "process_state": "hf_kd.data.distributed",
    "resolve_forget_labels": "hf_kd.data.labels",
    "sum_over_processes": "hf_kd.data.distributed",
    "to_rgb": "hf_kd.data.images",
}
"""Where each name is defined."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
