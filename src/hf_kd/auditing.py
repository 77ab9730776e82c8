"""Audit a model: read its features once, and let the audit room measure what they reveal.

Part of the modelling room. Features are read before the erasers; erased features and the answers of the head follow
from them, since both are functions of features alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .audit import RetentionReport, audit_features
from .audit.attacks import attack_names
from .data import resolve_forget_labels
from .erasing import PassSettings
from .measuring import ReadFeatures, logits, model_has_head, read_features

if TYPE_CHECKING:
    from .modeling import ErasedModel


def audit(
    model: ErasedModel,
    train: Any,
    test: Any,
    forget_labels: int | str | Iterable[int | str] | None = None,
    *,
    reference_model: Any = None,
    unseen: Any = None,
    attacks: str | Sequence[str] = "standard",
    seeds: int = 1,
    draws: int = 10,
    shots: Sequence[int] | None = None,
    **reading: Any,
) -> RetentionReport:
    """Measure what the features behind the erasers of `model` still reveal of the forgotten classes.

    train, test: labelled images, anything `erase` takes; attackers train on `train` and are scored on `test`. Each is
        read in one pass (`attacks="full"` reads the mirrored images too, which is a second one).
    forget_labels: names or ids of the model's labels; by default all classes in the erasure records.
    reference_model: a model retrained without the forgotten classes (ErasedModel, PreTrainedModel or the name of one).
    unseen: labelled images of classes `model` was never trained on, with the data set's own class ids.
    attacks: "standard", "full" or names of `hf_kd.audit.ATTACKS`.
    seeds, draws, shots: see `hf_kd.audit.audit_features`.
    reading: image_column, label_column, label_mapping, batch_size, mixed_precision, num_workers, progress as in `erase`.

    Of a model with several taps the features are joined. An embedding model is audited without the scores of a head.

    Raises ValueError where no forgotten classes are known, for samples without a label, for a split without forgotten or
    without retained samples, for both references at once, for features that are not finite; TypeError for an unknown
    argument.
    """
    unknown = set(reading) - {f.name for f in fields(PassSettings)}
    if unknown:
        raise TypeError(f"audit() got unknown arguments {', '.join(sorted(unknown))}; see its documentation.")
    if reference_model is not None and unseen is not None:
        raise ValueError("Both reference_model and unseen were given; a report has one reference. Pass one of them.")
    settings = PassSettings(**reading)
    chosen = attack_names(attacks, with_views=True)
    names = model.config.id2label if model.config.inner.id2label else None
    forget = _forgotten(model, forget_labels, names)
    splits = {"train": train, "test": test}
    read = {split: read_features(model, data, settings) for split, data in splits.items()}
    labels = {split: _complete(part.labels, split) for split, part in read.items()}
    versions = {split: _versions(model, part) for split, part in read.items()}
    views = None
    if any(name.startswith("views-") for name in chosen):
        mirrored = {split: _versions(model, read_features(model, data, settings, mirrored=True)) for split, data in
                    splits.items()}  # fmt: skip
        views = {
            version: ([mirrored["train"][version]], [mirrored["test"][version]]) for version in ("original", "erased")
        }
    answers = None
    if model_has_head(model):
        answers = {
            "original": (logits(model, read["train"].before), logits(model, read["test"].before)),
            "erased": (logits(model, read["train"].erased(model)), logits(model, read["test"].erased(model))),
        }
    reference = None
    if reference_model is not None:
        reference = _reference(model, reference_model, splits, labels, settings, answers)
    never = None
    if unseen is not None:
        other = read_features(model, unseen, settings, own_labels=True)
        never = (_joined(other.before), _complete(other.labels, "unseen"))
    return audit_features(
        versions["train"],
        labels["train"],
        versions["test"],
        labels["test"],
        forget,
        logits=answers,
        attacks=chosen,
        seeds=seeds,
        draws=draws,
        shots=shots,
        reference=reference,
        unseen=never,
        views=views,
        class_names=_names(names, labels.values()),
        context={
            "architecture": type(model.inner).__name__,
            "taps": [str(tap) for tap in model.taps],
            "erasures": [erasure.to_dict() for erasure in model.erasures],
        },
    )


def _forgotten(model: ErasedModel, given: Any, names: Any) -> list[int]:
    if given is not None:
        if isinstance(given, Tensor):
            given = given.tolist()
        return resolve_forget_labels([given] if isinstance(given, int | str) else given, names)
    classes = {label for erasure in model.erasures for label in erasure.classes or ()}
    if not model.erasures:
        raise ValueError("Nothing was erased from this model, so forget_labels has to say which classes to look for.")
    if any(erasure.classes is None for erasure in model.erasures):
        raise ValueError(
            "An erasure record does not name its classes (the forget set had no labels that the model knows). "
            "Say which they are: forget_labels=[...]."
        )
    return sorted(classes)


def _complete(labels: Tensor, split: str) -> Tensor:
    missing = int((labels < 0).sum())
    if missing:
        raise ValueError(
            f"{missing} of {len(labels)} {split} samples have no label; an audit needs one for every image. Name the label "
            "column with label_column=..., or filter these samples out."
        )
    return labels


def _versions(model: ErasedModel, read: ReadFeatures) -> dict[str, Tensor]:
    return {"original": _joined(read.before), "erased": _joined(read.erased(model))}


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Features at all taps side by side: [n, sum of d]."""
    parts = [part.cpu().float() for part in parts]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _reference(model: ErasedModel, other: Any, splits, labels, settings, answers) -> tuple[Tensor, Tensor]:
    """Features of the retrained model on the same samples; its answers too where its classes are the model's."""
    if isinstance(other, str):
        other = type(model).from_pretrained(other)
    elif not isinstance(other, type(model)):
        other = type(model).from_model(other, processor=model.processor)
    read = {split: read_features(other, data, settings, own_labels=True) for split, data in splits.items()}
    for split, part in read.items():
        if len(part.labels) != len(labels[split]):
            raise ValueError(
                f"The reference model read {len(part.labels)} {split} samples and the model {len(labels[split])}: the data "
                "gives other samples at each pass. Pass data that can be read again in the same order."
            )
    features = {split: _joined(part.erased(other)) for split, part in read.items()}
    same = dict(other.config.id2label or {}) == dict(model.config.id2label or {})
    if answers is not None and model_has_head(other) and same:
        answers["reference"] = tuple(logits(other, read[split].erased(other)) for split in ("train", "test"))
    return features["train"], features["test"]


def _names(names: Any, labels: Iterable[Tensor]) -> dict[int, str]:
    present = {label for part in labels for label in part.unique().tolist()}
    return {label: names[label] for label in sorted(present) if names and label in names}
