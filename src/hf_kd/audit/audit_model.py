"""Audit a model: read its features once, and let the audit room measure what they reveal.

Part of the modelling room. Features are read before the erasers; erased features and the answers of the head follow
from them, since both are functions of features alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from hf_kd.audit.sections.features import FitClass
from hf_kd.audit.sections.layers import layers
from hf_kd.audit.sections.weights import weights
from hf_kd.data.views import VIEWS
from hf_kd.errors import InvalidTypeError, InvalidValueError
from hf_kd.features.heads import apply_erasers, has_head, head_logits
from hf_kd.features.protocol import TappedModel
from hf_kd.features.reader import ImageReader, ReadFeatures, ReadOptions, untrained_logits
from hf_kd.methods.erasers.base import Eraser
from hf_kd.methods.erasers.moments import SecondMoment
from hf_kd.methods.records import weight_changes
from hf_kd.methods.registry import available_methods, make_method
from hf_kd.metrics.attacks import attack_names, views_needed
from hf_kd.metrics.weights import weight_distance

from .audit_features import audit_features
from .classes import forgotten_labels, resolved_labels
from .hidden_states import FORGOTTEN_SHARE, MOST_ROWS, blocks_of, read_layers, sampled_rows
from .report import RetentionReport
from .schema import Section

logger = logging.getLogger(__name__)


def audit(
    model: TappedModel,
    train: Any,
    test: Any,
    forget_labels: int | str | Iterable[int | str] | None = None,
    *,
    retain: int | str | Iterable[int | str] | None = None,
    original_model: Any = None,
    reference_model: Any = None,
    unseen: Any = None,
    membership_references: Sequence[Any] = (),
    identities: bool | None = None,
    layer_profile: bool = False,
    attacks: str | Sequence[str] = "standard",
    seeds: int = 1,
    draws: int = 10,
    shots: Sequence[int] | None = None,
    **reading: Any,
) -> RetentionReport:
    """Measure what the features behind the erasers of `model` still reveal of the forgotten classes.

    train, test: labelled images, anything `erase` takes; attackers train on `train` and are scored on `test`. Each is
        read in one pass (`attacks="full"` reads two further views of every image too).
    forget_labels: names or ids of the model's labels; by default all classes in the records of erasing and unlearning.
    retain: names or ids of the labels that count as retained; by default all others in the data.
    original_model: the model before unlearning, where that changed weights. By default `model` without its erasers.
    reference_model: a model retrained without the forgotten classes.
    unseen: labelled images of classes `model` was never trained on, with the data set's own class ids.
    membership_references: models that never saw D_f, for the RMIA membership attack.
    identities: also ask the features for the forgotten labels as identities (faces): verification, gallery, open set.
        By default where the model has no classification head.
    layer_profile: also fit the converged probe at every block of the backbone, in a second pass over at most 4,000
        training and 2,000 test images.
    attacks: "standard", "full" or names of `hf_kd.audit.ATTACKS`. "full" also measures ZRF.
    seeds, draws, shots: see `hf_kd.audit.audit_features`.
    reading: image_column, label_column, label_mapping, batch_size, mixed_precision, num_workers, progress as in `erase`.

    Other models may be an TappedModel, any PreTrainedModel or the name of one. Of a model with several taps the features
    are joined. An embedding model is audited without the scores of a head.

    Raises ValueError where no forgotten classes are known, for samples without a label, for a split without forgotten or
    without retained samples, for both references at once, for features that are not finite, for an original model of
    another feature dimension; TypeError for an unknown argument.
    """
    unknown = set(reading) - {f.name for f in fields(ReadOptions)}
    if unknown:
        raise InvalidTypeError(f"audit() got unknown arguments {', '.join(sorted(unknown))}; see its documentation.")
    if reference_model is not None and unseen is not None:
        raise InvalidValueError(
            "Both reference_model and unseen were given; a report has one reference. Pass one of them."
        )
    options = ReadOptions(**reading)
    chosen = attack_names(attacks, len(VIEWS))
    names = model.class_names or None
    forget = forgotten_labels(model, forget_labels, names)
    if weight_changes(model.config) and original_model is None:
        logger.warning(
            "The weights of this model were changed, and without original_model (--original-model) what the report calls "
            "the original is the changed model itself: it cannot tell what was forgotten."
        )
    wanted = None if retain is None else [*forget, *resolved_labels(retain, names)]
    data = _Data(model, train, test, options, wanted)
    classifies = has_head(model)

    before, after = data.before, data.behind(model)
    features = {"original": _joined(before), "erased": _joined(after)}
    answers = {"original": _logits(model, before, masked=False), "erased": _logits(model, after)}
    more: list[Section] = []
    if original_model is not None:
        original = _wrapped(model, original_model)
        behind = data.behind(original, data.read_again(original))
        features |= {"before_projection": features["original"], "original": _joined(behind)}
        answers |= {"before_projection": answers["original"], "original": _logits(original, behind)}
        _check_dimension(features)
        more += _weights(original, model)
    if layer_profile:
        more.append(data.layers(model, forget, features))
    reference = None
    if reference_model is not None:
        other = _wrapped(model, reference_model)
        behind = data.behind(other, data.read_again(other))
        reference = _joined(behind)
        if other.class_names == model.class_names:
            answers["reference"] = _logits(other, behind)
    others = []
    for one in membership_references if classifies else ():
        other = _wrapped(model, one)
        others.append(_logits(other, data.behind(other, data.read_again(other))))
    never = None
    if unseen is not None:
        strangers = ImageReader(model, unseen, options).read(own_labels=True)
        never = (_side_by_side(strangers.before), _complete(strangers.labels, "unseen"))
    return audit_features(
        {version: pair[0] for version, pair in features.items()},
        data.labels[0],
        {version: pair[1] for version, pair in features.items()},
        data.labels[1],
        forget,
        logits={version: pair for version, pair in answers.items() if pair is not None} or None,
        attacks=chosen,
        seeds=seeds,
        draws=draws,
        shots=shots,
        reference=reference,
        unseen=never,
        views=_views(model, data, chosen) if original_model is None else None,
        random_logits=untrained_logits(ImageReader(model, train, options), forget)
        if classifies and attacks == "full"
        else None,
        membership_references=[pair for pair in others if pair is not None],
        identities=not classifies if identities is None else identities,
        fit_class=_fit_class(model),
        more=more,
        class_names=_names(names, data.labels),
        context={
            "architecture": type(model.inner).__name__,
            "taps": [str(tap) for tap in model.taps],
            "erasures": [erasure.to_dict() for erasure in model.erasures],
            "changes": [change.to_dict() for change in weight_changes(model.config)],
        },
    )


Split = tuple[Tensor, ...]
"""Features [n, d] of one split at each tap."""


class _Data:
    """Train and test images, and the features that models read from them: always a pair, train first."""

    def __init__(self, model: TappedModel, train: Any, test: Any, options: ReadOptions, wanted: Sequence[int] | None):
        """The first pass: features before the erasers of `model`; of all labels, or of the `wanted` ones."""
        self._images, self._options = {"train": train, "test": test}, options
        read = {split: ImageReader(model, images, options).read() for split, images in self._images.items()}
        self._all = {split: _complete(part.labels, split) for split, part in read.items()}
        keep = None if wanted is None else torch.tensor(list(wanted))
        self._rows = {
            split: torch.ones_like(labels, dtype=torch.bool) if keep is None else torch.isin(labels, keep)
            for split, labels in self._all.items()
        }
        self.before = self._kept(read)
        self.labels = tuple(self._all[split][rows] for split, rows in self._rows.items())

    def _kept(self, read: Mapping[str, ReadFeatures]) -> tuple[Split, Split]:
        train, test = (tuple(part[self._rows[split]] for part in read[split].before) for split in self._images)
        return train, test

    def read_again(self, other: TappedModel, view: str | None = None) -> tuple[Split, Split]:
        """Another model, or another view, on the same samples; before the erasers."""
        read = {
            split: ImageReader(other, images, self._options).read(view, own_labels=True)
            for split, images in self._images.items()
        }
        for split, part in read.items():
            if len(part.labels) != len(self._all[split]):
                raise InvalidValueError(
                    f"A second pass read {len(part.labels)} {split} samples and the first {len(self._all[split])}: the data "
                    "gives other samples each time. Pass data that can be read again in the same order."
                )
        return self._kept(read)

    def layers(
        self, model: TappedModel, forget: Sequence[int], features: Mapping[str, tuple[Tensor, Tensor]]
    ) -> Section:
        """The layer profile, and the tap beside it on the same samples."""
        blocks = blocks_of(model)
        hidden, labels, tap = [], [], []
        for number, (split, images) in enumerate(self._images.items()):
            kept = self._rows[split]
            rows = sampled_rows(self._all[split], kept, forget, MOST_ROWS[split], FORGOTTEN_SHARE[split])
            hidden.append(read_layers(model, images, self._options, blocks, rows))
            labels.append(self._all[split][rows])
            among = torch.isin(torch.nonzero(kept).flatten(), rows)
            before = features.get("before_projection", features["original"])[number]
            tap.append({"original": before[among], "erased": features["erased"][number][among]})
        return layers(hidden[0], labels[0], hidden[1], labels[1], forget, (tap[0], tap[1]))

    def behind(self, model: TappedModel, before: tuple[Split, Split] | None = None) -> tuple[Split, Split]:
        """Behind the erasers of `model`."""
        train, test = (apply_erasers(model, split) for split in (before or self.before))
        return train, test


def _joined(pair: tuple[Split, Split]) -> tuple[Tensor, Tensor]:
    train, test = (_side_by_side(split) for split in pair)
    return train, test


def _logits(model: TappedModel, pair: tuple[Split, Split], masked: bool = True) -> tuple[Tensor, Tensor] | None:
    """What the heads of `model` make of features, with or without the masks of its classes; None without a head."""
    if not has_head(model):
        return None
    train, test = (head_logits(model, split, masked) for split in pair)
    return train, test


def _views(
    model: TappedModel, data: _Data, attacks: Sequence[str]
) -> dict[str, tuple[list[Tensor], list[Tensor]]] | None:
    """Features of as many further views as the attacks need, for each version."""
    count = max(views_needed(name) for name in attacks)
    if not count:
        return None
    views: dict[str, tuple[list[Tensor], list[Tensor]]] = {"original": ([], []), "erased": ([], [])}
    for view in list(VIEWS)[:count]:
        read = data.read_again(model, view)
        for version, pair in (("original", read), ("erased", data.behind(model, read))):
            for place, features in zip(views[version], _joined(pair), strict=True):
                place.append(features)
    return views


def _wrapped(model: TappedModel, other: Any) -> TappedModel:
    if isinstance(other, str | os.PathLike):
        return type(model).from_pretrained(other)
    return other if isinstance(other, type(model)) else type(model).from_model(other, processor=model.processor)


def _check_dimension(features: dict[str, tuple[Tensor, Tensor]]) -> None:
    found = {version: pair[0].shape[1] for version, pair in features.items()}
    if found["original"] != found["erased"]:
        raise InvalidValueError(
            f"The original model has features of dimension {found['original']} and this one of {found['erased']}: "
            "original_model has to be the same network before unlearning."
        )


def _weights(original: TappedModel, model: TappedModel) -> list[Section]:
    """Fig. 2, where both are the same architecture with a head."""
    states = original.inner.state_dict(), model.inner.state_dict()
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    heads = {
        next(part for part in reversed(head.split(".")) if not part.isdigit())
        for tap in model.taps
        for head in tap.heads
    }
    return [weights(weight_distance(*states, head=sorted(heads)))] if heads and shapes[0] == shapes[1] else []


def _fit_class(model: TappedModel) -> FitClass | None:
    """The method of the last request, fitted on one class; None where it needs more than the moments of D_f, or several
    taps."""
    if not model.erasures or len(model.taps) > 1:
        return None
    record = model.erasures[-1]
    if record.method not in available_methods():
        return None
    method = make_method(record.method, **record.settings)
    if method.needs_features or method.needs_head or method.needs_retain or method.by_class or method.views:
        return None

    def fit(features: Tensor) -> Eraser | None:
        moment = SecondMoment(features.shape[1])
        moment.update(features)
        try:
            return method.fit(moment)
        except ValueError:  # too few images of this class for so many directions
            return None

    return fit


def _complete(labels: Tensor, split: str) -> Tensor:
    missing = int((labels < 0).sum())
    if missing:
        raise InvalidValueError(
            f"{missing} of {len(labels)} {split} samples have no label; an audit needs one for every image. Name the label "
            "column with label_column=..., or filter these samples out."
        )
    return labels


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Features at all taps as one matrix: [n, sum of d]."""
    parts = [part.cpu().float() for part in parts]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _names(names: Any, labels: Iterable[Tensor]) -> dict[int, str]:
    present = {label for part in labels for label in part.unique().tolist()}
    return {label: names[label] for label in sorted(present) if names and label in names}
