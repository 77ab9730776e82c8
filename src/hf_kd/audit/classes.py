"""Which classes an audit is about: those given by name or id, or those of the records."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hf_kd.data.labels import resolve_forget_labels
from hf_kd.errors import InvalidValueError
from hf_kd.features.protocol import TappedModel
from hf_kd.methods.records import all_records, classes_in


def forgotten_labels(model: TappedModel, given: Any, names: Any) -> list[int]:
    """Ids of the labels given by name or id, or else of all classes in the records of erasing and unlearning."""
    if given is not None:
        return resolved_labels(given, names)
    records = all_records(model)
    if not records:
        raise InvalidValueError(
            "Nothing was erased from this model, so forget_labels has to say which classes to look for."
        )
    if any(record.n_texts for record in records):
        raise InvalidValueError(
            "A request by name records no classes, since it reads none. Say which label of the data is the concept, and "
            "what to ask for it by: forget_labels=['LABEL'] and options=AuditOptions(texts=['TEXT'])."
        )
    if any(record.classes is None for record in records):
        raise InvalidValueError(
            "A record does not name its classes (samples of classes that stay were forgotten, the forget set had no labels "
            "that the model knows, or the model got a head of other labels since). Say which they are: forget_labels=[...]."
        )
    return sorted(classes_in(records))


def resolved_labels(given: Any, names: Any) -> list[int]:
    """Ids of labels given as names or ids, one or several."""
    if isinstance(given, Tensor):
        given = given.tolist()
    return resolve_forget_labels(given, names)
