"""The labels of a data set in the terms of a model: which class is which.

A data set numbers its classes from 0 as it likes, a model likewise, and the names differ in case, in underscores, in
synonyms. Erasing the wrong class because two numberings were confused would look like success, so what does not match
for certain is an error that shows how to say it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_kd.errors import LabelMismatchError, did_you_mean

logger = logging.getLogger(__name__)

_SHOWN = 8


@dataclass(frozen=True)
class LabelMapping:
    """Data set label id -> model label id. Calling it maps a tensor of labels; -1 (no label) stays -1."""

    to_model: Mapping[int, int]
    names: Mapping[int, str]
    """The data set's name of each label id, for messages."""
    how: str
    """"names", "mapping" (the user's), "numbers" (names that are the ids of the model) or "same ids" (no names at all)."""

    def __call__(self, labels: Tensor) -> Tensor:
        """Model ids [n] for data set labels [n]; raises LabelMismatchError naming a label without a counterpart."""
        values, inverse = torch.unique(labels, return_inverse=True)
        mapped = []
        for value in values.tolist():
            if value != -1 and value not in self.to_model:
                known = f" ({self.names[value]!r})" if value in self.names else ""
                raise LabelMismatchError(
                    f"Label {value}{known} of the data is no label of the model, whose counterparts are known for "
                    f"{_range(self.to_model)}. {_way_out(self.names.get(value, value))}"
                )
            mapped.append(-1 if value == -1 else self.to_model[value])
        return torch.tensor(mapped, dtype=torch.int64, device=labels.device)[inverse]


def match_labels(
    dataset_names: Sequence[str] | None,
    id2label: Mapping[Any, str],
    mapping: Mapping[Any, Any] | None = None,
    own_ids: bool = False,
) -> LabelMapping:
    """Find the model's id for each label of a data set.

    Names are compared as they are, then without regard to case, then by the first synonym before a comma ("tench" is
    "tench, Tinca tinca"), then with underscores, hyphens and spaces alike; the first comparison with any hit decides.
    A name that is a number and no name of the model is that id (folders 0, 1, 10, 2 are in the order of their names,
    not of their numbers). A data set without names is taken to use the model's ids. So is one whose number of classes
    is the model's where the model itself has no names but LABEL_0, LABEL_1, ... and none of them is the data's (a warning
    says so).

    Args:
        dataset_names: Name of each label id of the data set; None where it has none.
        id2label: Name of each class id of the model.
        mapping: Overrules: data set label (name or id) -> model label (id or name). What it leaves out is matched by name,
            and is an error only if it occurs.
        own_ids: Whether ids without names are the data set's own, so that `mapping` alone says which is which.

    Raises:
        LabelMismatchError: Listing names with no or several counterparts and two names with the same one, and for ids
            that are the data set's own without a mapping.
    """
    labels = {int(number): str(label) for number, label in id2label.items()}
    names = dict(enumerate(dataset_names or ()))
    given = _given(mapping or {}, names, labels)
    if not names:
        return _by_ids(labels, given, own_ids)
    numbers, by_key = _numbers(names.values()), _index(labels)
    unnamed = not given and numbers is None and has_no_names(labels) and len(labels) == len(names)
    if unnamed and not any(_hits(name, by_key) for name in names.values()):
        logger.warning(
            "The model names its labels LABEL_0, LABEL_1, ...: taking it that they are the data set's, in the same "
            "order (LABEL_0 is %r). If they are not, say which is which with label_mapping=...",
            names[0],
        )
        return LabelMapping({number: number for number in names}, names, "same ids")
    hits = {number: _hits(name, by_key) for number, name in names.items() if number not in given}
    by_number = {
        number: [numbers[names[number]]]
        for number, own in hits.items()
        if numbers is not None and not own and numbers[names[number]] in labels
    }
    hits |= by_number
    if not given:
        _refuse_unmatched(names, labels, hits)
    found = {number: own[0] for number, own in hits.items() if len(own) == 1}
    return LabelMapping(found | given, names, "mapping" if given else "numbers" if by_number else "names")


def _by_ids(labels: Mapping[int, str], given: dict[int, int], own_ids: bool) -> LabelMapping:
    """The mapping of a data set without names."""
    if own_ids and not given:
        raise LabelMismatchError(
            "The label ids are the data set's own and have no names, so nothing says which classes of the model they "
            "are. Say so: reading=ReadOptions(label_mapping={0: 'MODEL_LABEL', ...})."
        )
    same = {} if own_ids else {number: number for number in labels}
    return LabelMapping(same | given, {}, "mapping" if given else "same ids")


def _refuse_unmatched(names: Mapping[int, str], labels: Mapping[int, str], hits: Mapping[int, Sequence[int]]) -> None:
    """Refuse names that none, several or the same of the model's labels were found for."""
    missing = [repr(names[number]) for number, own in hits.items() if not own]
    ambiguous = [
        f"{names[number]!r} (could be {', '.join(f'{hit}: {labels[hit]!r}' for hit in own[:3])})"
        for number, own in hits.items()
        if len(own) > 1
    ]
    first: dict[int, int] = {}
    twice = [
        f"{names[first[own[0]]]!r} and {names[number]!r} (both {labels[own[0]]!r})"
        for number, own in hits.items()
        if len(own) == 1 and first.setdefault(own[0], number) != number
    ]
    if missing or ambiguous or twice:
        raise LabelMismatchError(
            "The labels of the data set do not match the model's. "
            + "".join(
                f"{what}: {_some(which)}. "
                for what, which in (("Not in the model", missing), ("Ambiguous", ambiguous), ("Same label", twice))
                if which
            )
            + f"The model has {len(labels)} labels, such as {_some(map(repr, labels.values()), 3)}. "
            + _way_out((missing or ambiguous or twice)[0].split(" (")[0].strip("'\""))
        )


def in_numbering(labels: Tensor, names: Sequence[str], others: Sequence[str]) -> Tensor:
    """Labels of one data set by the ids that another one has for classes of these names.

    Args:
        labels: Ids [n]; -1 (no label) stays.
        names: Name of each of their ids.
        others: Name of each id of the other data set; compared as in `match_labels`.

    Returns:
        Ids [n] of the other data set.

    Raises:
        LabelMismatchError: For a label that occurs, and whose name there is not or several times.
    """
    if tuple(names) == tuple(others):
        return labels
    known = dict(enumerate(others))
    by_key, ids = _index(known), torch.full((len(names) + 1,), -1)
    for label in labels.unique().tolist():
        if label == -1:
            continue
        name = names[int(label)]
        hits = _hits(name, by_key)
        if len(hits) != 1:
            raise LabelMismatchError(
                f"Label {name!r} of the test images is {'several' if hits else 'none'} of the training images'."
                f"{_did_you_mean(name, known) or _for_example(known)} Call it as there, or leave these images out."
            )
        ids[label] = hits[0]
    return ids[labels]


def counterparts(names: Mapping[int, str], id2label: Mapping[Any, str]) -> dict[int, int]:
    """The id that another model has for each class of one.

    Args:
        names: Name of each class id; compared as in `match_labels`.
        id2label: Those of the other model.

    Returns:
        Its id by class id; classes that it has none or several names for are left out. Classes of the same name (ImageNet
        has two cranes) stand for those of that name in their order, where both have as many.

    Example:
        >>> counterparts({0: "tench", 1: "golden_retriever", 2: "cat"}, {0: "Golden retriever", 1: "tench, Tinca tinca"})
        {0: 1, 1: 0}
    """
    by_key = _index({int(number): str(label) for number, label in id2label.items()})
    same: dict[str, list[int]] = {}
    for number in sorted(names):
        same.setdefault(names[number], []).append(number)
    found = {}
    for name, numbers in same.items():
        hits = _hits(name, by_key)
        if len(hits) == 1 or len(hits) == len(numbers):
            found |= dict(zip(numbers, sorted(hits) if len(hits) > 1 else hits * len(numbers), strict=True))
    return {number: found[number] for number in names if number in found}


def check_class_ids(id2label: Mapping[Any, str]) -> None:
    """Refuse a model whose classes' ids are not those of its logits, 0 to C - 1.

    Args:
        id2label: Name of each class id.

    Raises:
        LabelMismatchError: Naming ids that no logit stands for, as where a configuration counts from 1.
    """
    ids = sorted(int(number) for number in id2label)
    if ids == list(range(len(ids))):
        return
    strange = [number for number in ids if not 0 <= number < len(ids)]
    raise LabelMismatchError(
        f"The configuration names {len(ids)} labels, {_range(dict.fromkeys(ids))}, and a head of {len(ids)} logits has the "
        f"ids 0 to {len(ids) - 1}: it has no {_some(map(str, strange))}. Every class would be taken for its neighbour. "
        "Number them from 0 in its configuration (config.json): id2label, and label2id likewise."
    )


def resolve_forget_labels(wanted: Iterable[str | int], names: Sequence[str] | Mapping[Any, str] | None) -> list[int]:
    """The ids of requested labels, in the order of the request and without repetitions.

    Args:
        wanted: Names or ids ("tench", "3", 7), or one of them. Names are compared like in `match_labels`; a string that is
            no name but a number is an id, so a class called "3" wins over the id 3.
        names: A data set's label names or a model's id2label; None where there are only ids.

    Raises:
        LabelMismatchError: For a name that is unknown (with the closest ones) or ambiguous, for an id out of range, and for
            an empty request.
    """
    if isinstance(wanted, str) or not isinstance(wanted, Iterable):
        wanted = [wanted]
    labels = None
    if names is not None:
        items = names.items() if isinstance(names, Mapping) else enumerate(names)
        labels = {int(number): str(label) for number, label in items}
    ids = list(dict.fromkeys(_resolve(label, labels) for label in wanted))
    if not ids:
        raise LabelMismatchError("No label to forget was named; give at least one name or id.")
    return ids


def _resolve(label: str | int, labels: dict[int, str] | None) -> int:
    if isinstance(label, str) and labels:
        # a list such as "tench,church" is not the label "tench" with a synonym, unless the label is written that way
        whole = {key(name) for name in labels.values() for key in (str.casefold, _normal)}
        if "," in label and not {label.casefold(), _normal(label)} & whole:
            raise LabelMismatchError(
                f"No label is called {label!r}. If these are several labels, name each on its own; a label that has "
                "synonyms is found by its first one."
            )
        hits = _hits(label, _index(labels))
        if len(hits) == 1:
            return hits[0]
        if hits:
            choices = ", ".join(f"{hit} ({labels[hit]!r})" for hit in hits[:_SHOWN])
            raise LabelMismatchError(f"Label {label!r} is ambiguous; give the id instead: {choices}.")
    try:
        number = int(label)
        if number != label and not isinstance(label, str):
            raise ValueError("part of an id")
    except (ValueError, TypeError, OverflowError):
        if not labels:
            raise LabelMismatchError(f"Label {label!r}: there are no label names; give the integer id.") from None
        near = _did_you_mean(str(label), labels) or _for_example(labels)
        raise LabelMismatchError(f"No label is called {label!r}.{near}") from None
    if number < 0 or (labels and number not in labels):
        allowed = f"ids are {_range(labels)}" if labels else "ids count from 0"
        names = f" Give one of these, or a name.{_for_example(labels)}" if labels else ""
        raise LabelMismatchError(f"Label id {number} does not exist: {allowed}.{names}")
    return number


class NamedIds:
    """The ids of labels that are called like one of some texts, by their whole name or one of its synonyms.

    Args:
        names: Name of each label id, synonyms with commas between them; None where there are none. In names and texts, case,
            underscores and hyphens make no difference.
    """

    def __init__(self, names: Sequence[str] | None) -> None:
        self.ids: dict[str, set[int]] = {}
        for number, name in enumerate(names or ()):
            for called in (name, *name.split(",")):
                self.ids.setdefault(_normal(called), set()).add(number)

    def __call__(self, texts: Iterable[str]) -> list[int]:
        return sorted({number for text in texts for number in self.ids.get(_normal(text), ())})


def _for_example(labels: Mapping[int, str]) -> str:
    return f" There are, for example, {_some(map(repr, labels.values()), 5)}."


def _did_you_mean(label: str, labels: dict[int, str]) -> str:
    """The names most like `label`, any synonym counting."""
    synonyms = {_normal(part): name for name in labels.values() for part in name.split(",")}
    return did_you_mean(_normal(label), synonyms, called=synonyms)


def _normal(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.casefold()).strip()


def _first(name: str) -> str:
    return name.split(",")[0].strip().casefold()


_COMPARISONS = (str, str.casefold, _first, _normal, lambda name: _normal(_first(name)))


def _index(labels: Mapping[int, str]) -> list[dict[str, list[int]]]:
    """For each comparison, the ids that a key stands for."""
    indexes: list[dict[str, list[int]]] = []
    for key in _COMPARISONS:
        index: dict[str, list[int]] = {}
        for number, label in labels.items():
            index.setdefault(key(label), []).append(number)
        indexes.append(index)
    return indexes


def _hits(name: str, indexes: Sequence[Mapping[str, list[int]]]) -> list[int]:
    """Ids for `name` by the first comparison that finds any."""
    return next((index[key(name)] for key, index in zip(_COMPARISONS, indexes, strict=True) if key(name) in index), [])


def _given(mapping: Mapping[Any, Any], names: Mapping[int, str], labels: Mapping[int, str]) -> dict[int, int]:
    """The user's mapping in ids, checked against both sides."""
    if not mapping:
        return {}
    checked = {}
    for theirs, ours in mapping.items():
        source = theirs if isinstance(theirs, int) and not names else _resolve(theirs, dict(names) or None)
        number = _resolve(ours, dict(labels))
        if (first := checked.setdefault(source, number)) != number:
            called = f"{source} ({names[source]!r})" if source in names else str(source)
            raise LabelMismatchError(
                f"By the label mapping, label {called} is {labels[first]!r} and {labels[number]!r}. Leave one of both; an "
                "id is that of every data set that is read."
            )
    return checked


def own_mapping(
    mapping: Mapping[Any, Any], names: Sequence[str] | None, others: Iterable[Sequence[str] | None]
) -> dict[Any, Any]:
    """The part of a mapping of labels that is for one data set: without those that only data sets beside it have.

    Args:
        mapping: Data set label (name or id) -> model label, as in `match_labels`.
        names: The data set's label names; None where there are none.
        others: Those of the data sets that are read beside it.
    """
    return {
        theirs: ours
        for theirs, ours in mapping.items()
        if _is_label(theirs, names) or not any(_is_label(theirs, other) for other in others)
    }


def _is_label(label: Any, names: Sequence[str] | None) -> bool:
    try:
        _resolve(label, dict(enumerate(names or ())) or None)
    except LabelMismatchError:
        return False
    return True


def _numbers(names: Iterable[str]) -> dict[str, int] | None:
    """The number that each name is; None where one of them is no number."""
    names = list(names)
    return {name: int(name) for name in names} if all(re.fullmatch(r"[0-9]+", name) for name in names) else None


def has_no_names(labels: Mapping[int, str]) -> bool:
    """Whether a model's classes are called LABEL_0, LABEL_1, ..., as transformers calls those that have no names."""
    return all(label == f"LABEL_{number}" for number, label in labels.items())


def _range(ids: Mapping[int, Any]) -> str:
    if not ids:
        return "none"
    low, high = min(ids), max(ids)
    return f"{low} to {high}" if len(ids) == high - low + 1 else _some(map(str, sorted(ids)))


def _some(items: Iterable[str], shown: int = _SHOWN) -> str:
    items = list(items)
    return ", ".join(items[:shown]) + (f" and {len(items) - shown} more" if len(items) > shown else "")


def _way_out(example: Any) -> str:
    return (
        "Say which label of the data set is which of the model, by name or id: "
        f"reading=ReadOptions(label_mapping={{{example!r}: 'MODEL_LABEL', ...}})."
    )
