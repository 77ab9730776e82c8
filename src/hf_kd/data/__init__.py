"""From what a user holds - a data set, a list, a loader, a folder - to the pooled features of its images.

`sources` opens what a command line can name, `forget_set` finds images and labels in it, `images` and `preprocess` make
model inputs of them (`resize` holds the exact fast path), `loader` makes batches, `samples` reads them in any order,
`views` shows them again, `labels` tells the data set's classes in the model's terms, and `features` runs the model. Knows
`hf_kd.features.taps` and no other room.
"""

from hf_kd.features.forward import (
    FeatureStore,
    feature_pass,
    gather_rows,
    probe_from_batch,
    process_state,
    sum_over_processes,
)

from .image_source import ImageSource, inspect_images
from .images import UnreadableImageError, to_rgb
from .labels import LabelMapping, LabelMismatchError, match_labels, resolve_forget_labels
from .load import filter_by_labels, load_source
from .loader import make_loader
from .preprocess import ImagePreprocessor
from .views import VIEWS, apply_view

__all__ = [
    "VIEWS",
    "FeatureStore",
    "ImageSource",
    "ImagePreprocessor",
    "LabelMapping",
    "LabelMismatchError",
    "UnreadableImageError",
    "inspect_images",
    "feature_pass",
    "filter_by_labels",
    "gather_rows",
    "load_source",
    "make_loader",
    "match_labels",
    "probe_from_batch",
    "process_state",
    "resolve_forget_labels",
    "apply_view",
    "sum_over_processes",
    "to_rgb",
]
