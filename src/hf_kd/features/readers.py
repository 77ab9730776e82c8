"""Several data sets that are read by one `ReadOptions`: a label mapping is for those that have a label of its names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hf_kd.data.labels import own_mapping
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
