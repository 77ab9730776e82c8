"""From what a user holds - a data set, a list, a loader, a folder - to batches of a model's inputs and labels.

`load` opens what a command line can name, `image_source` finds images and labels in it, `images` and `preprocess` make
model inputs of them (`_fast_preprocess` holds the exact fast path), `loader` makes batches, `samples` reads them in any
order, `views` shows them again, `labels` tells the data set's classes in the model's terms, `distributed` says which process
reads what.
"""

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
