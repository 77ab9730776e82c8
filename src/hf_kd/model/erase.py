"""Carry out one request: forget set -> features -> eraser -> record. Changes nothing in the model it is given.

`ErasedModel.erase` puts the result in place.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_kd.data.distributed import process_state
from hf_kd.data.progress import working
from hf_kd.data.read_files import files_of
from hf_kd.errors import InvalidValueError
from hf_kd.features.forward import FeatureStore
from hf_kd.features.heads import answered, no_choice, several_labels
from hf_kd.features.protocol import TappedModel
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.features.readers import open_readers
from hf_kd.features.taps.inputs import input_device
from hf_kd.features.taps.site import head_function
from hf_kd.methods.erasers.base import Eraser, Method
from hf_kd.methods.records import Erasure, forgotten_classes, versions
from hf_kd.methods.registry import MethodInfo, make_method, missing_retain

from . import outcome
from .configuration import take_name
from .fit_data import MappedLabels, MomentsByTap, forget_views, label_mapping, retained_moments

logger = logging.getLogger(__name__)


def fit_erasers(
    model: TappedModel,
    forget: Any,
    method: str | Method,
    options: ReadOptions,
    method_options: Mapping[str, Any],
    whole_classes: bool = True,
    retain: Any = None,
    mask_head: bool | None = None,
    allow_unrecognised: bool = False,
) -> tuple[list[Eraser], Erasure]:
    """One fitted eraser for each tap, and the record of the request."""
    method = make_method(method, **method_options)
    info = MethodInfo.of(type(method))
    if method.needs_retain and retain is None:
        raise missing_retain(method.name, info.kind)
    if method.masks_head and not whole_classes:
        raise InvalidValueError(
            f"Method {method.name!r} takes whole classes out by what the head answers; for samples of classes that stay "
            "there is nothing it could tell them by. Use method='esc', and audit what it leaves: for such requests no "
            "method on features does much."
        )
    readers = open_readers(model, options, forget=forget, retain=retain if method.needs_retain else None)
    reader = readers["forget"]
    reader.find_taps()
    told = (model.config.masked, forgotten_classes(model))
    head = head_function(model.inner, model.taps, *told) if method.needs_head else None
    if method.needs_head and head is None:
        raise InvalidValueError(
            f"Method {method.name!r} needs a classification head, and {type(model.inner).__name__} has none: its pooled "
            "features are its answer. Use method='esc', which needs the images alone."
        )
    masks = method.masks_head if mask_head is None else mask_head
    uses_labels = method.needs_head or method.needs_labels
    if (uses_labels or masks) and model.taps[0].heads:
        outcome.refuse_other_heads(model, method.name if uses_labels else None)
    mapping = label_mapping(reader, required=uses_labels or method.by_class, known=uses_labels)

    started = time.perf_counter()
    asked = answering_head(model, model.config.masked) if mapping is not None and not no_choice(model) else None
    original = asked if not model.config.masked else answering_head(model)
    several = several_labels(model)
    witness, retained = outcome.Witness(None if asked is None else original, several), outcome.Witness()
    store = FeatureStore() if method.needs_features else MomentsByTap(method.by_class)
    consumer = MappedLabels(model, store, mapping, witness)
    count = reader.run(consumer, stage="before", description="forget set")
    if count == 0:
        raise InvalidValueError(
            "The forget set is empty: there is nothing to forget. Check the filter that selected it."
        )
    data, labels = consumer.collect(len(model.sites))
    classes = consumer.classes() if whole_classes else None
    unknown = whole_classes and len(model.class_names) > 1  # a model of embeddings has no classes to be missed
    dataset_classes = consumer.dataset_classes(reader.label_names) if unknown else None
    _refuse_every_class(model, classes)
    if uses_labels:
        consumer.refuse_unlabelled(method.name, count)
    # a label that nothing but the record uses, or a mask that follows a name, does no more harm than its text
    refuse = uses_labels or (masks and mapping is not None and mapping.how in ("same ids", "numbers"))
    earlier = outcome.forgotten_before(model)
    warnings = outcome.check_recognised(
        witness.answers, model.class_names, mapping, earlier=earlier, refuse=refuse and not allow_unrecognised
    )
    given: dict[str, Any] = {}
    if method.views:
        given["views"] = forget_views(reader, method.views, data)
    if method.needs_retain:
        given["retain"] = retained_moments(readers["retain"], method.needs_labels, classes, retained)
    between = time.perf_counter()
    with working(f"fitting {method.name}", options.progress):
        fitted = method.fit_taps(data, labels, head, **given)
    finished = time.perf_counter()

    for tap, eraser in zip(model.taps, fitted, strict=True):
        warnings += _still_right(method, tap, eraser)
    erased = [_through(fitted, seen.features) for seen in (witness, retained)]
    changed = outcome.changed_features(witness.features, erased[0]) > outcome.SAME
    outcome.refuse_unchanged(method.name, changed, fitted[0].measured)
    if asked is not None:
        after = head_function(model.inner, model.taps, {*model.config.masked, *(classes or () if masks else ())})
        told = []
        for seen, features in zip((witness, retained), erased, strict=True):
            if not len(seen.labels):
                told.append(None)
                continue
            before = _answers(model, asked, seen.features, seen.labels)
            told.append((seen.labels, before, _answers(model, after, features, seen.labels)))
        warnings += outcome.accuracy_warnings(*told)
    for text in warnings:
        logger.warning(text)
    conditions = [eraser.condition_number for eraser in fitted]
    return fitted, Erasure(
        method=method.name,
        settings=method.settings(),
        taps=tuple(map(str, model.taps)),
        n_forget=count,
        classes=classes,
        measured=tuple(dict(eraser.measured) for eraser in fitted),
        rank_removed=tuple(eraser.rank_removed for eraser in fitted),
        condition_number=tuple(c if c != float("inf") else None for c in conditions),
        sha256=tuple(map(fingerprint, fitted)),
        dtype=str(next(model.inner.parameters()).dtype).removeprefix("torch."),
        feature_seconds=round(between - started, 3),
        fit_seconds=round(finished - between, 3),
        processes=process_state().num_processes,
        versions=versions(),
        n_retain=given["retain"][0].moment.count if method.needs_retain else None,
        masked=False if method.masks_head else None,
        needs=info.needs,
        source=info.source or None,
        warnings=tuple(warnings),
        dataset_classes=dataset_classes,
        sampled=sampled(readers),
        files=files_read(readers),
    )


def files_read(readers: Mapping[str, ImageReader]) -> dict[str, dict[str, Any]] | None:
    """Which files these sets were read from, as far as that is known."""
    return {name: files for name, reader in readers.items() if (files := files_of(reader.data)) is not None} or None


def sampled(readers: Mapping[str, ImageReader]) -> dict[str, dict[str, int]] | None:
    """Which of these sets are a sample, and of how many; None where all are read as a whole."""
    return {name: reader.sampled for name, reader in readers.items() if reader.sampled is not None} or None


def answering_head(model: TappedModel, masked: Sequence[int] = ()) -> Any:
    """The head as a function of features, which never answers `masked` classes; None where there is none to ask.

    One that is offloaded is copied into memory.
    """
    return None if len(model.class_names) < 2 else head_function(model.inner, model.taps, masked)


def _through(fitted: Sequence[Eraser], features: Sequence[Tensor]) -> list[Tensor]:
    """Features [n, d] at each tap behind the fitted erasers."""
    pairs = zip(fitted, features, strict=True) if features else ()
    with torch.no_grad():
        return [eraser(part.to(next(eraser.buffers()).device)).cpu() for eraser, part in pairs]


def _answers(model: TappedModel, head: Any, features: Sequence[Tensor], labels: Tensor) -> Tensor:
    """Class ids [n] that the head answers for features [n, d] at each tap, of samples with `labels` [n]."""
    device = input_device(model.inner)
    with torch.no_grad():
        logits = head([part.to(device) for part in features])
    return answered(logits, labels if several_labels(model) else None).cpu()


def _refuse_every_class(model: TappedModel, classes: tuple[int, ...] | None) -> None:
    if classes is not None and model.taps[0].heads and len(classes) >= len(model.class_names):
        raise InvalidValueError(
            f"The forget set holds all {len(model.class_names)} classes of the model; nothing would be left to answer. "
            "Forget fewer classes; if these are samples of classes that stay, say so: whole_classes=False."
        )


def _still_right(method: Method, tap: Any, eraser: Eraser) -> list[str]:
    """What to say where images to forget are still answered as labelled."""
    left, soft = eraser.measured.get("forget_hits_hard"), eraser.measured.get("forget_hits_soft")
    if not left:
        return []
    before = eraser.measured["forget_hits_before"]
    advice = (
        "The loss has no gradient where the head is sure of itself (probability 1 in float32): use method='esc' here."
        if soft == before
        else "Try a higher threshold: it is the step from the soft to the hard mask that brings them back."
        if soft == 0
        else "Try a larger lr or more epochs."
    )
    return [
        f"{method.name} at the {tap}: {left:.1f} % of the forget set is still classified correctly (before: {before:.1f} %, "
        f"soft mask: {soft:.1f} %). {advice}"
    ]


def fingerprint(eraser: Eraser) -> str:
    """sha256 of the eraser's buffers: name, shape and little-endian float32 values, in order of the names."""
    digest = hashlib.sha256()
    for name, buffer in sorted(eraser.named_buffers()):
        values = buffer.detach().float().cpu().contiguous().numpy().astype("<f4")
        digest.update(f"{name}{values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def leave_checkpoint(model: Any) -> None:
    """A model whose erasers changed has no checkpoint's name any more, and no graph of torch.compile answers as before."""
    for part in (model, model.inner):
        take_name(part)
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
