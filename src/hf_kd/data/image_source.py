"""What a set of images may be, and which of its columns are the images and the labels.

`inspect_images` looks at whatever the user holds, once, and says in a `ImageSource` how to read it; `loader.py`
then reads. Images are never decoded by `datasets` where that can be avoided: undecoded, a damaged image is met by our
own reader, which knows its row.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from datasets import Array3D, ClassLabel, Dataset, Features, IterableDataset, List, Value
from datasets import Image as ImageFeature
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset as TorchIterableDataset

from hf_kd.errors import InvalidTypeError, InvalidValueError, did_you_mean

logger = logging.getLogger(__name__)

LABEL_KEYS = ("labels", "label")
"""Names under which integer labels are looked for where nothing says more."""

_EMPTY = "A set of images is empty. Check the filter or the split that selected it."


@dataclass(frozen=True)
class ImageSource:
    """How to read a set of images; made by `inspect_images`."""

    source: Any = field(repr=False)
    """The data, with the columns reduced to images and labels and the images left encoded where possible."""
    kind: str
    """"dataset" (datasets.Dataset), "stream" (IterableDataset), "rows" (any by number) or "loader" (a DataLoader)."""
    image_column: Any = None
    """Key of the image in a row, a name or a place; None where a row is the image itself, or holds the model's inputs."""
    label_column: Any = None
    label_names: tuple[str, ...] | None = None
    """Name of each label id, where the data set knows them."""
    length: int | None = None
    """Number of samples (of a loader: batches), where it is known beforehand."""
    is_prepared: bool = False
    """Whether rows hold tensors for the model, which need no image processor."""
    label_candidates: tuple[str, ...] = ()
    """Columns that could be the labels where several could, so that none was taken."""
    grey_mode: str | None = None
    """The mode "1" or "L" that the image column says its images have, whatever their files hold."""
    drawn_of: int | None = None
    """Of how many samples these were drawn; None where they are all there are."""
    labels_needed: bool = True
    """Whether a text that is none of `label_names` is refused; else its sample has no label."""
    rows: Sequence[int] | None = None
    """Row numbers of the samples in what they were drawn from."""

    @property
    def has_labels(self) -> bool:
        """Whether it is known which label each sample has."""
        return self.label_column is not None


def inspect_images(
    source: Any,
    image_column: str | None = None,
    label_column: str | None = None,
    main_input: str = "pixel_values",
    names: Sequence[str] = (),
    in_order: bool = False,
) -> ImageSource:
    """How to read a set of images.

    In pairs and dicts a floating-point tensor counts as ready for the model, a uint8 tensor as an image; pictures may be
    arrays too: `Array3D` or nested lists. A format or transform set on a `datasets` object is not applied: images go through
    the model's own processor.

    Args:
        source: A `datasets.Dataset` or streaming `IterableDataset`; a list (or map-style torch Dataset) of images, of
            (image, label) pairs or of dicts; or a DataLoader whose batches are dicts of the model's own inputs, `labels`
            optional.
        image_column: Overrules the one of type `datasets.Image`.
        label_column: Overrules the one of type `ClassLabel`, or else the integer column, or the one of class names, that is
            called label or labels. Without a single such column there are no labels, which only some methods need.
        main_input: Name of the images in a DataLoader's batches, if they are no floating-point tensors (ImageGPT reads
            sequences of colour ids).
        names: Those of all labels that may come, where a stream, a DataLoader or rows that are no list have texts as labels.
            Of a string column of a `Dataset`, and of texts in a list of rows, the sorted values are the label names.
        in_order: Whether texts in a `Dataset` and a list are numbered by `names` too.

    Raises:
        InvalidValueError: For an empty set, one without images or with several image columns (listing the columns), and a
            named column that does not exist or cannot hold labels.
        InvalidTypeError: For what is no set of images at all.
    """
    if isinstance(source, Dataset):
        return _describe_dataset(source, image_column, label_column, names if in_order else ())
    if isinstance(source, IterableDataset):
        return _describe_stream(source, image_column, label_column, names)
    if isinstance(source, DataLoader):
        return _describe_loader(source, image_column, label_column, main_input, names)
    if isinstance(source, Mapping):
        raise InvalidTypeError(
            f"A set of images is one set of samples, not a {type(source).__name__} of several. Take one, for example "
            f"[{next(iter(source), 'train')!r}] (there are: {', '.join(map(repr, source))})."
        )
    is_map_style = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    if isinstance(source, (str, bytes, Image.Image, TorchIterableDataset)) or not is_map_style:
        raise InvalidTypeError(
            f"A {type(source).__name__} is no set of images. Pass a datasets.Dataset (also streaming), a list of images, "
            "of (image, label) pairs or of dicts, or a DataLoader of dict batches; a single image goes into a list."
        )
    return _describe_rows(source, image_column, label_column, names, in_order or not isinstance(source, (list, tuple)))


def _describe_dataset(source: Dataset, image_column: str | None, label_column: str | None, given: Any) -> ImageSource:
    if len(source) == 0:
        raise InvalidValueError(_EMPTY)
    if source.format["type"] == "custom":
        logger.warning("The transform set on the images is not applied; its images go through the model's processor.")
    features = source.features
    image_column = _image_column(features, image_column)
    label_column, candidates = _label_column(features, label_column, texts=True)
    grey = _grey_mode(features[image_column])
    source = source.with_format(None).select_columns(_unique(image_column, label_column))
    names = _names(features, label_column)
    if label_column is not None and is_string(features[label_column]):
        names = tuple(given or sorted(name for name in source.unique(label_column) if name is not None))
    if isinstance(features[image_column], ImageFeature):
        source = source.cast_column(image_column, ImageFeature(decode=False))
    return ImageSource(
        source, "dataset", image_column, label_column, names, len(source), label_candidates=candidates, grey_mode=grey
    )


def _describe_stream(
    source: IterableDataset, image_column: str | None, label_column: str | None, names: Sequence[str]
) -> ImageSource:
    features = source.features
    if features is None:  # as after .map(): only the rows themselves say what they hold
        first = next(iter(islice(source, 1)), None)
        if first is None:
            raise InvalidValueError(_EMPTY)
        features = _features_of(first)
    image_column = _image_column(features, image_column)
    label_column, candidates = _label_column(features, label_column, texts=bool(names))
    given = _names(features, label_column)
    if label_column is not None and is_string(features[label_column]):
        given = _given_names(names, f"Label column {label_column!r} of a streaming data set")
    grey = _grey_mode(features[image_column])
    source = source.select_columns(_unique(image_column, label_column))
    if source.features is not None:
        source = source.with_format(None)
        if isinstance(features[image_column], ImageFeature):
            source = source.cast_column(image_column, ImageFeature(decode=False))
        if next(iter(islice(source, 1)), None) is None:
            raise InvalidValueError(_EMPTY)
    return ImageSource(source, "stream", image_column, label_column, given, label_candidates=candidates, grey_mode=grey)


def _describe_rows(
    source: Sequence[Any], image_column: str | None, label_column: str | None, names: Sequence[str], in_order: bool
) -> ImageSource:
    if len(source) == 0:
        raise InvalidValueError(_EMPTY)
    first = source[0]
    if isinstance(first, Mapping):
        features = _features_of(first)
        label_column, candidates = _label_column(features, label_column, texts=True)
        given = None
        if label_column is not None and is_string(features[label_column]):
            given = _names_in_rows(source, label_column, names, in_order)
        tensors = [key for key, value in first.items() if isinstance(value, Tensor) and value.is_floating_point()]
        if image_column is None and tensors and not _image_columns(features):
            return ImageSource(source, "rows", None, label_column, given, len(source), True, candidates)
        return ImageSource(
            source, "rows", _image_column(features, image_column), label_column, given, len(source), False, candidates
        )
    if image_column is not None or label_column is not None:
        raise InvalidValueError(
            "image_column and label_column name columns, but the rows of this set have none: the first one is a "
            f"{type(first).__name__}. Leave them out, or give rows as dicts."
        )
    if isinstance(first, (tuple, list)):
        if len(first) != 2 or not _looks_like_image(first[0]) or not _looks_like_label(first[1]):
            if len(first) == 2 and isinstance(first[1], str) and _looks_like_image(first[0]):
                given = _names_in_rows(source, 1, names, in_order)
                return ImageSource(source, "rows", 0, 1, given, len(source), _is_prepared(first[0]))
            kinds = ", ".join(type(value).__name__ for value in first)
            raise InvalidValueError(
                f"Rows have to be (image, label) pairs, got ({kinds}). Give rows as dicts otherwise."
            )
        return ImageSource(source, "rows", 0, 1, None, len(source), _is_prepared(first[0]))
    if not _looks_like_image(first):
        raise InvalidValueError(
            f"The data set has no images: its first row is a {type(first).__name__}. Pass PIL images, (image, label) "
            "pairs, or dicts with an image."
        )
    return ImageSource(source, "rows", None, None, None, len(source), _is_prepared(first))


def _names_in_rows(source: Sequence[Any], column: str | int, names: Sequence[str], in_order: bool) -> tuple[str, ...]:
    """The texts that are labels of rows: `names`, or else those that are read."""
    if in_order:
        return _given_names(names, f"Label {column!r} of a {type(source).__name__}")
    return tuple(sorted({row[column] for row in source if isinstance(row[column], str)}))


def _given_names(names: Sequence[str], what: str) -> tuple[str, ...]:
    if names:
        return tuple(names)
    raise InvalidValueError(
        f"{what} holds texts, and which ones is not known before its end. Name them in order, labels=['cat', ...], or give "
        "integer ids."
    )


def _describe_loader(
    source: DataLoader, image_column: str | None, label_column: str | None, main_input: str, names: Sequence[str]
) -> ImageSource:
    if image_column is not None:
        raise InvalidValueError(
            f"image_column={image_column!r} is for data sets, and a DataLoader brings the model's inputs: leave it out."
        )
    data = source.dataset
    if isinstance(data, TorchIterableDataset) and source.num_workers == 0 and iter(data) is iter(data):
        raise InvalidValueError(
            f"The {type(data).__name__} of the DataLoader gives one iterator that goes on where it was left: what was "
            "looked at would be missing, and nothing could be read twice. Let its __iter__ begin anew each time."
        )
    first = next(iter(source), None)
    if first is None:
        raise InvalidValueError(_EMPTY)
    if not isinstance(first, Mapping):
        raise InvalidValueError(
            "Batches of a DataLoader have to be dicts of the model's inputs (for example pixel_values, and labels "
            f"if there are any), got a {type(first).__name__}. Use a collate_fn that returns a dict, or pass the data set "
            "itself."
        )
    inputs = [key for key, value in first.items() if isinstance(value, Tensor) and value.is_floating_point()]
    if not inputs and main_input not in first:
        raise InvalidValueError(
            f"The data set has no images: the batches hold {', '.join(map(repr, first)) or 'nothing'}, and no "
            "floating-point tensor is among them. Let the collate_fn give the model's inputs, such as pixel_values."
        )
    if label_column is not None and label_column not in first:
        raise InvalidValueError(f"The batches have no {label_column!r}; they hold {', '.join(map(repr, first))}.")
    column = label_column or next((key for key in LABEL_KEYS if first.get(key) is not None), None)
    labels = first.get(column) if column else None
    words = isinstance(labels, (list, tuple)) and any(isinstance(label, str) for label in labels)
    return ImageSource(source, "loader", None, column, tuple(names) if words else None, _length(source), True)


def _image_column(features: Mapping[str, Any], wanted: str | None) -> str:
    if wanted is not None:
        _require_column(features, wanted, "image_column")
        return wanted
    found = _image_columns(features)
    if len(found) == 1:
        return found[0]
    if found:
        raise InvalidValueError(
            f"The data set has several image columns ({', '.join(map(repr, found))}). Choose one with "
            f"image_column=..., for example image_column={found[0]!r}."
        )
    raise InvalidValueError(
        f"The data set has no images: none of its columns is of type datasets.Image or an array. Its columns are "
        f"{_listing(features)}. If one of them holds paths or bytes of images, name it with image_column=..."
    )


def _image_columns(features: Mapping[str, Any]) -> list[str]:
    found = [name for name, feature in features.items() if isinstance(feature, ImageFeature) or _is_encoded(feature)]
    return found or [name for name, feature in features.items() if _is_array(feature)]


def _grey_mode(feature: Any) -> str | None:
    mode = feature.mode if isinstance(feature, ImageFeature) else None
    return {"1": "1", "L": "L", "LA": "L"}.get(mode or "")


def _is_array(feature: Any) -> bool:
    """Whether a column surely holds pictures as arrays: of three axes, or nested lists of bytes (boxes are floats)."""
    if isinstance(feature, Array3D):
        return True
    depth = 0
    while isinstance(feature, List):
        feature, depth = feature.feature, depth + 1
    return depth in (2, 3) and isinstance(feature, Value) and feature.dtype == "uint8"


def _is_encoded(feature: Any) -> bool:
    """Whether these are image files as parquet written by other programs than `datasets` holds them."""
    return isinstance(feature, Mapping) and set(feature) == {"bytes", "path"}


def _label_column(
    features: Mapping[str, Any], wanted: str | None, texts: bool = False
) -> tuple[str | None, tuple[str, ...]]:
    """The label column, or None and the columns among which the user has to choose. texts: whether class names will do."""
    if wanted is not None:
        _require_column(features, wanted, "label_column")
        feature = features[wanted]
        if not (isinstance(feature, ClassLabel) or is_integer(feature) or is_string(feature)):
            raise InvalidValueError(
                f"Column {wanted!r} is {_type_name(feature)} and cannot be the labels: those are one class, integer or "
                f"string a sample. The columns are {_listing(features)}."
            )
        return wanted, ()
    found = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    found = found or [name for name in LABEL_KEYS if name in features and is_integer(features[name])]
    found = found or [name for name in LABEL_KEYS if texts and is_string(features.get(name))]
    if len(found) == 1:
        return found[0], ()
    for name in () if found else LABEL_KEYS:
        if name in features and not is_string(features[name]) and not _is_encoded(features[name]):
            logger.warning(
                f"Column {name!r} is {_type_name(features[name])} and not taken for the labels: those are one class, "
                "integer or string a sample."
            )
    return None, tuple(found or (name for name, feature in features.items() if is_string(feature)))


def _require_column(features: Mapping[str, Any], name: str, argument: str) -> None:
    if name not in features:
        raise InvalidValueError(
            f"{argument}={name!r} is no column of the data set.{did_you_mean(name, features)} Its columns are "
            f"{_listing(features)}."
        )


def _names(features: Mapping[str, Any], label_column: str | None) -> tuple[str, ...] | None:
    feature = None if label_column is None else features.get(label_column)
    return tuple(feature.names) if isinstance(feature, ClassLabel) else None


def _features_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The types of a row's values, as far as they matter here, in the words of `datasets`."""
    features: dict[str, Any] = {}
    for name, value in row.items():
        if _is_encoded(value) or (_looks_like_image(value) and not _is_prepared(value)):
            features[name] = ImageFeature()
        elif _looks_like_label(value):
            features[name] = Value("int64")
        elif isinstance(value, str):
            features[name] = Value("string")
        else:
            features[name] = value
    return features


def _looks_like_image(value: Any) -> bool:
    if isinstance(value, (np.ndarray, Tensor)):
        return value.ndim in (2, 3)
    return isinstance(value, Image.Image)


def _is_prepared(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _looks_like_label(value: Any) -> bool:
    if isinstance(value, (np.ndarray, Tensor)):
        return value.ndim == 0 and not (isinstance(value, Tensor) and value.is_floating_point())
    return isinstance(value, (int, np.integer))


def is_integer(feature: Any) -> bool:
    """Whether a column of this feature holds integers."""
    return isinstance(feature, Value) and (feature.dtype.startswith(("int", "uint")) or feature.dtype == "bool")


def is_string(feature: Any) -> bool:
    """Whether a column of this feature holds texts."""
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _listing(features: Mapping[str, Any] | Features) -> str:
    return ", ".join(f"{name!r} ({_type_name(feature)})" for name, feature in features.items()) or "none at all"


def _type_name(feature: Any) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def _unique(*columns: str | None) -> list[str]:
    return [column for column in dict.fromkeys(columns) if column is not None]


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except TypeError:  # a loader over an iterable data set has none
        return None
