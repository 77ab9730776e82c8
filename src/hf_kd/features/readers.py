"""Several data sets that are read by one `ReadOptions`: a label mapping is for those that have a label of its names."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hf_kd.data.draw import stored_labels, with_rows
from hf_kd.data.labels import NamedIds, own_mapping
from hf_kd.errors import LabelMismatchError
from hf_kd.features.protocol import TappedModel
from hf_kd.features.reader import ImageReader, ReadOptions


def open_readers(model: TappedModel, options: ReadOptions, **sets: Any) -> dict[str, ImageReader]:
    """Of those sets of images that are not None, by their names."""
    readers = {name: ImageReader(model, data, options) for name, data in sets.items() if data is not None}
    share_mapping(readers)
    return readers


def share_mapping(readers: Mapping[str, ImageReader]) -> None:
    """Leave each reader that part of its label mapping that no other one alone has a label for.

    What none has a label for stays with all of them, who refuse it.
    """
    names = {name: reader.label_names for name, reader in readers.items()}
    for name, reader in readers.items():
        if reader.options.label_mapping:
            others = [known for other, known in names.items() if other != name]
            own = own_mapping(reader.options.label_mapping, names[name], others)
            reader.options = replace(reader.options, label_mapping=own)


def options_of(sets: Sequence[Any], others: Sequence[Any], model: TappedModel, options: ReadOptions) -> ReadOptions:
    """The options for some of several data sets: without labels that only `others` have. Any may be None."""
    if not options.label_mapping:
        return options
    numbered = {str(number): data for number, data in enumerate([*sets, *others])}
    readers = open_readers(model, replace(options, limit=None), **numbered)
    own = [readers[name].options.label_mapping or {} for name in list(numbered)[: len(sets)] if name in readers]
    mapping = {theirs: ours for theirs, ours in options.label_mapping.items() if any(theirs in part for part in own)}
    return replace(options, label_mapping=mapping)


def leave_out(classes: Collection[int], readers: Mapping[str, ImageReader]) -> tuple[int, int]:
    """Leave retained images of some classes of the model out before any are drawn; how many, and of how many.

    As far as the data says it, and before it is read: of a stream or a loader nothing is known beforehand.

    Args:
        classes: Ids of the model.
        readers: "retain", and "forget", whose labels the model knows.
    """
    reader = readers.get("retain")
    if reader is None or not classes or reader.whole.kind not in ("dataset", "rows"):
        return 0, 0
    try:
        labels = labels_of(classes, reader, readers["forget"])
    except LabelMismatchError:  # which who needs the labels refuses
        return 0, 0
    stays = np.array([label not in labels for label in stored_labels(reader.whole)], dtype=bool)
    total, gone = len(stays), int((~stays).sum())
    if 0 < gone < total:
        reader.whole = with_rows(reader.whole, np.flatnonzero(stays))
        reader.images = reader.draw(reader.whole)
    return gone, total


def labels_of(classes: Collection[int], reader: ImageReader, other: ImageReader) -> dict[int, int]:
    """Which labels of a data set are some classes of the model, as far as it says so: ids of the model by those labels.

    Args:
        classes: Ids of the model.
        reader: Of the data set. Where the model does not have all its labels, they are told by what they are called.
        other: Of a data set whose labels the model knows, which may call them otherwise than the model.
    """
    if not reader.images.has_labels:
        return {}
    try:
        found = {} if reader.mapping is None else reader.mapping.to_model
    except LabelMismatchError:
        called = [(reader.model.class_names[c], c) for c in classes]
        if (beside := other.mapping) is not None:
            known = [(beside.names[n], beside.to_model.get(n)) for n in beside.names]
            called += [(name, c) for name, c in known if c is not None and c in classes]
        named = NamedIds(reader.label_names)
        found = {own: c for name, c in called for own in named([name, *name.split(",")])}
    return {label: class_id for label, class_id in found.items() if class_id in classes}
