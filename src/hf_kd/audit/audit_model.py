"""`audit_model`: read the features of a model once, and measure what they reveal.

Features are read before the erasers; erased features and the answers of the head follow from them, since both are
functions of features alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_kd.data.devices import refuse_unreachable_weights
from hf_kd.data.views import VIEWS
from hf_kd.errors import InvalidValueError
from hf_kd.features.heads import has_head, head_logits, no_choice, several_labels, side_by_side
from hf_kd.features.protocol import TappedModel
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.features.taps.inputs import takes_pictures
from hf_kd.methods.records import changes_of
from hf_kd.metrics._inputs import check_labels, trained_forget_labels
from hf_kd.metrics.attacks import attack_names, views_needed

from .audit_features import AuditExtras, audit_features
from .by_name import measure_by_name
from .classes import forgotten_labels, resolved_labels
from .options import AuditOptions, Reference, Retrained, Unseen, checked_options, checked_reference
from .other_models import wrapped
from .report import RetentionReport
from .schema import Section
from .sections.features import class_fit
from .sections.reference_level import ReadLevel, converged_point, reference_level_section
from .sections.weights import moved_weights, of_other_weights, of_same_weights, of_taught
from .splits import AuditSplits, Split, complete
from .weight_access import measure_weight_access

logger = logging.getLogger(__name__)


def audit_model(
    model: TappedModel,
    train: Any,
    test: Any,
    forget_labels: int | str | Iterable[int | str] | None = None,
    *,
    retain_labels: int | str | Iterable[int | str] | None = None,
    original: Any = None,
    reference: Reference = None,
    options: AuditOptions | None = None,
    reading: ReadOptions | None = None,
) -> RetentionReport:
    """Measure what the features behind the erasers of `model` still reveal of the forgotten classes.

    Each split is read in one pass (`attacks="full"` reads two further views of every image too). Other models may be an
    `ErasedModel`, any `PreTrainedModel`, or the name or folder of one. Of a model with several taps the features are joined.
    An embedding model is audited without the scores of a head.

    Args:
        model: The model to audit.
        train: Labelled images, anything `erase` takes, on which attackers train.
        test: Labelled images on which they are scored.
        forget_labels: Names or ids of the model's labels; by default all classes in the records of erasing and unlearning.
        retain_labels: Likewise, the labels that count as retained; by default all the rest in the data.
        original: The model before unlearning, where that changed weights. By default `model` without its erasers, and none
            of changed weights.
        reference: `Retrained(model)`, trained without the forgotten classes, or `Unseen(images)`, classes that `model` was
            never trained on.
        options: Attacks, seeds and what else is measured.
        reading: How images are read, as in `erase`.

    Returns:
        The report. It prints as a screen, and has `to_markdown()`, `to_json()` and `figures()`.

    Raises:
        ValueError: Where no forgotten classes are known, for samples without a label, for a split without forgotten or
            without retained samples, for features that are not finite, for an original of another feature dimension.
    """
    started, reading = time.perf_counter(), reading or ReadOptions()
    reference, options = checked_reference(reference, of_features=False), checked_options(options)
    attacks = attack_names(options.attacks, len(VIEWS) if takes_pictures(model.inner) else 0)
    changes = changes_of(model.config)
    original = None if original is None else wrapped(model, original)
    if options.access == "weights":
        for one in (model, *([] if original is None else [original])):
            refuse_unreachable_weights(one.inner, "access='weights'")
    _refuse_no_choice(model)
    data = AuditSplits(model, train, test, reading, original, bool(changes))
    forget = forgotten_labels(model, forget_labels, data.names)
    if changes and original is None:
        logger.warning(
            "The weights of this model were changed, and without the original model (original=...) nothing of before stands "
            "in the report: it cannot tell what was forgotten."
        )
    if forget_labels is None:
        data.check_recorded()
    data.read(None if retain_labels is None else [*forget, *resolved_labels(retain_labels, data.names)])
    asked, forget = forget, trained_forget_labels(forget, data.labels[0])
    check_labels(*data.labels, forget)  # before anything is measured
    features, logits, sections = _versions(data)
    if options.layer_profile:
        sections.append(data.layer_profile(forget, features))
    if options.texts is not None:
        shown = reading.progress and options.progress
        by_name = measure_by_name(model, options.texts, features, data.labels, forget, data.names, shown)
        sections.append(by_name)
    read, retrained = _read_reference(data, reference, features, forget, options.max_classes)
    beside, weights = _beside_references(data, retrained, forget, options)
    report = audit_features(
        {version: pair[0] for version, pair in features.items()},
        data.labels[0],
        {version: pair[1] for version, pair in features.items()},
        data.labels[1],
        asked,
        reference=read,
        options=_of_features(options, data, attacks),
        logits=logits,
        extras=AuditExtras(
            class_names=_names(data.names, data.labels, [_given(model, b) for _, b in logits.values()]),
            views=_views(data, attacks),
            random_logits=data.untrained_logits(forget) if options.attacks == "full" and has_head(model) else None,
            fit_class=class_fit(model),
            extra_sections=[*sections, *beside],
            sampled=data.sampled,
            several_labels=several_labels(model),
            context={**_context(data, retrained.models, forget), **weights},
        ),
    )
    return replace(report, seconds=round(time.perf_counter() - started, 2))


Pairs = dict[str, tuple[Tensor, Tensor]]
"""Train and test rows of each version."""


def _versions(data: AuditSplits) -> tuple[Pairs, Pairs, list[Section]]:
    """Features and logits of each version, and the section about moved weights where there is an original model."""
    read = data.versions()
    features = {version: _joined(pair) for version, pair in read.items()}
    sections: list[Section] = []
    if data.original is not None:
        _check_dimension(features)
        sections += moved_weights(data.original, data.model)
    logits = {
        version: _logits(data.original, pair)
        if version == "original" and data.original is not None
        else _logits(data.model, pair, masked=version == "erased")
        for version, pair in read.items()
    }
    return features, {version: pair for version, pair in logits.items() if pair is not None}, sections


@dataclass(frozen=True)
class _RetrainedModels:
    """Those that were given, the one nearest in R first, and what their converged probes read beside the audited one's."""

    models: tuple[TappedModel, ...] = ()
    level: ReadLevel | None = None


def _read_reference(
    data: AuditSplits, reference: Reference, features: Pairs, forget: Sequence[int], most: int | None
) -> tuple[Reference, _RetrainedModels]:
    """The reference as matrices of features, of several the one whose R is nearest to the audited model's."""
    if isinstance(reference, Unseen):
        found = ImageReader(data.original or data.model, reference.source, data.reading).read(own_labels=True)
        return Unseen(side_by_side(found.before), complete(found.labels, "unseen")), _RetrainedModels()
    if not isinstance(reference, Retrained):
        return None, _RetrainedModels()
    own = converged_point(features["erased"], data.labels, forget, most)
    read = []
    for source in reference.sources:
        other = wrapped(data.model, source)
        behind = data.of_other(other)
        logits = _logits(other, behind) if other.class_names == data.model.class_names else None
        matrices = _joined(behind)
        read.append((converged_point(matrices, data.labels, forget, most), other, Retrained(*matrices, logits)))
    read.sort(key=lambda one: abs(one[0][0] - own[0]))
    level = ReadLevel("features", own, tuple(point for point, _, _ in read))
    return read[0][2], _RetrainedModels(tuple(model for _, model, _ in read), level)


def _beside_references(
    data: AuditSplits, retrained: _RetrainedModels, forget: Sequence[int], options: AuditOptions
) -> tuple[list[Section], dict[str, Any]]:
    """What access to the weights gives, where that is asked for, and the level of the references; the data of the former."""
    sections: list[Section] = []
    weights, levels = {}, [retrained.level] if retrained.level else []
    if options.access == "weights":
        images, models = data.for_weights(forget), retrained.models
        measured = measure_weight_access(
            data.model, images, data.original, models, options.budget, changed=data.changed
        )
        sections.append(measured.section)
        weights, levels = {"weights": measured.data}, [*levels, *measured.levels]
    if levels:
        forgotten = int(torch.isin(data.labels[1], torch.tensor(forget)).sum())
        sections.append(reference_level_section(levels, forgotten))
    return sections, weights


def _of_features(options: AuditOptions, data: AuditSplits, attacks: Sequence[str]) -> AuditOptions:
    """What `audit_features` is asked, for which a model's references are their logits."""
    has_logits = has_head(data.model)
    return replace(
        options,
        attacks=attacks,
        identities=not has_logits if options.identities is None else options.identities,
        layer_profile=False,
        progress=data.reading.progress and options.progress,
        access="features",
        budget=None,
        texts=None,
        membership_references=_reference_logits(data, options) if has_logits else (),
    )


def _context(data: AuditSplits, references: Sequence[TappedModel], forget: Sequence[int]) -> dict[str, Any]:
    model, original = data.model, data.original
    return {
        "architecture": type(model.inner).__name__,
        "taps": [str(tap) for tap in model.taps],
        "erasures": [erasure.to_dict() for erasure in model.erasures],
        "changes": [change.to_dict() for change in changes_of(model.config)],
        "original_given": original is not None,
        "warnings": [
            *([] if original is None else of_other_weights(original, model)),
            *of_same_weights(references, model, original),
            *of_taught(references, data.names, forget),
        ],
    }


def _reference_logits(data: AuditSplits, options: AuditOptions) -> list[tuple[Tensor, Tensor]]:
    """Train and test logits of the models that never saw D_f, those that have a head."""
    models = (wrapped(data.model, source) for source in options.membership_references)
    pairs = [_logits(model, data.of_other(model)) for model in models]  # one at a time: they may be large
    return [pair for pair in pairs if pair is not None]


def _joined(pair: tuple[Split, Split]) -> tuple[Tensor, Tensor]:
    train, test = (side_by_side(split) for split in pair)
    return train, test


def _logits(model: TappedModel, pair: tuple[Split, Split], masked: bool = True) -> tuple[Tensor, Tensor] | None:
    """What the heads of `model` make of features, with or without the masks of its classes; None without a head."""
    if not has_head(model):
        return None
    train, test = (head_logits(model, split, masked) for split in pair)
    return train, test


def _views(data: AuditSplits, attacks: Sequence[str]) -> dict[str, tuple[list[Tensor], list[Tensor]]] | None:
    """Features of as many further views as the attacks need, for each version."""
    count = max(views_needed(name) for name in attacks)
    if not count:
        return None
    views: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for view in list(VIEWS)[:count]:
        for version, pair in data.versions(view).items():
            for place, features in zip(views.setdefault(version, ([], [])), _joined(pair), strict=True):
                place.append(features)
    return views


def _check_dimension(features: dict[str, tuple[Tensor, Tensor]]) -> None:
    found = {version: pair[0].shape[1] for version, pair in features.items()}
    if found["original"] != found["erased"]:
        raise InvalidValueError(
            f"The original model has features of dimension {found['original']} and this one of {found['erased']}: "
            "original has to be the same network before unlearning."
        )


def _refuse_no_choice(model: TappedModel) -> None:
    if what := no_choice(model):
        raise InvalidValueError(
            f"{type(model.inner).__name__} answers with {what} and no choice among classes, so an audit cannot say what "
            "its head answers. Audit its features with hf_kd.audit_features: `before`, `erased(model)` and "
            "`labels` of hf_kd.features.reader.ImageReader(model, images).read(own_labels=True)."
        )


def _given(model: TappedModel, logits: Tensor) -> Tensor:
    """Class ids that logits [n, C] give to any sample."""
    return (logits > 0).any(dim=0).nonzero().flatten() if several_labels(model) else logits.argmax(dim=1)


def _names(names: Any, labels: Iterable[Tensor], answers: Iterable[Tensor]) -> dict[int, str]:
    present = {label for part in (*labels, *answers) for label in part.unique().tolist()}
    return {label: names[label] for label in sorted(present) if names and label in names}
