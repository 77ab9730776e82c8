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

from hf_kd.data.digest import inner_digest
from hf_kd.data.distributed import process_state
from hf_kd.data.progress import working
from hf_kd.data.read_files import files_of
from hf_kd.errors import InvalidValueError
from hf_kd.features.protocol import TappedModel
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.features.readers import open_readers, options_of
from hf_kd.features.taps.site import HeadFunction, head_function
from hf_kd.methods.erasers.base import Eraser, Method
from hf_kd.methods.records import Erasure, forgotten_classes, versions
from hf_kd.methods.registry import MethodInfo, missing_retain

from . import outcome
from .configuration import take_name
from .fit_data import forget_views, label_mapping, read_forget_set, retained_moments

logger = logging.getLogger(__name__)


def fit_erasers(
    model: TappedModel,
    forget: Any,
    method: Method,
    options: ReadOptions,
    whole_classes: bool = True,
    retain: Any = None,
    mask_head: bool | None = None,
    allow_unrecognised: bool = False,
) -> tuple[list[Eraser], Erasure]:
    """One fitted eraser for each tap, and the record of the request."""
    info = MethodInfo.of(type(method))
    _refuse_at_odds(method, info, whole_classes, retain)
    if not method.needs_retain:
        retain, options = None, options_of([forget], [retain], model, options)
    readers = open_readers(model, options, forget=forget, retain=retain)
    outcome.without_earlier(model, readers)
    reader = readers["forget"]
    reader.find_taps()
    head = _head(model, method)
    masks = method.masks_head if mask_head is None else mask_head
    uses_labels = method.needs_head or method.needs_labels
    if (uses_labels or masks) and model.taps[0].heads:
        outcome.refuse_other_heads(model, method.name if uses_labels else None)
    mapping = label_mapping(reader, required=uses_labels or method.by_class, known=uses_labels)

    started = time.perf_counter()
    seen = outcome.Witnesses.of(model, mapping)
    read = read_forget_set(reader, method, mapping, seen.forget, whole_classes)
    # a label that nothing but the record uses, or a mask that follows a name, does no more harm than its text
    refuse = uses_labels or (masks and mapping is not None and mapping.how in ("same ids", "numbers"))
    earlier = outcome.forgotten_before(model)
    warnings = outcome.check_recognised(
        seen.forget.answers, model.class_names, mapping, earlier=earlier, refuse=refuse and not allow_unrecognised
    )
    given: dict[str, Any] = {}
    if method.views:
        given["views"] = forget_views(reader, method.views, read.data)
    if method.needs_retain:
        given["retain"] = retained_moments(readers["retain"], method.needs_labels, read.classes, seen.retain)
    between = time.perf_counter()
    with working(f"fitting {method.name}", options.progress):
        fitted = method.fit_taps(read.data, read.labels, head, **given)
    times = (started, between, time.perf_counter())

    for tap, eraser in zip(model.taps, fitted, strict=True):
        warnings += _still_right(method, tap, eraser)
    warnings += seen.compare(model, method.name, fitted, read.classes or () if masks else ())
    for text in warnings:
        logger.warning(text)
    return fitted, Erasure(
        method=method.name,
        settings=method.settings(),
        taps=tuple(map(str, model.taps)),
        n_forget=read.count,
        classes=read.classes,
        measured=tuple(dict(eraser.measured) for eraser in fitted),
        n_retain=given["retain"][0].moment.count if method.needs_retain else None,
        masked=False if method.masks_head else None,
        needs=info.needs,
        source=info.source or None,
        warnings=tuple(warnings),
        dataset_classes=read.dataset_classes,
        **common_fields(fitted, readers, next(model.inner.parameters()).dtype, times),
    )


def common_fields(
    erasers: Sequence[Eraser], readers: Mapping[str, ImageReader], dtype: torch.dtype | str, times: Sequence[float]
) -> dict[str, Any]:
    """What the record of any request says of its erasers, its sets of images and its circumstances.

    times: when features were begun to be read, when the fit was begun, and when it was done, by `time.perf_counter`.
    """
    started, between, finished = times
    conditions = [eraser.condition_number for eraser in erasers]
    return {
        "rank_removed": tuple(eraser.rank_removed for eraser in erasers),
        "condition_number": tuple(c if c != float("inf") else None for c in conditions),
        "sha256": tuple(map(fingerprint, erasers)),
        "dtype": str(dtype).removeprefix("torch."),
        "feature_seconds": round(between - started, 3),
        "fit_seconds": round(finished - between, 3),
        "processes": process_state().num_processes,
        "versions": versions(),
        "sampled": sampled(readers),
        "files": {name: files for name, r in readers.items() if (files := files_of(r.data)) is not None} or None,
    }


def sampled(readers: Mapping[str, ImageReader]) -> dict[str, dict[str, int]] | None:
    """Which of these sets are a sample, and of how many; None where all are read as a whole."""
    return {name: reader.sampled for name, reader in readers.items() if reader.sampled is not None} or None


def _refuse_at_odds(method: Method, info: MethodInfo, whole_classes: bool, retain: Any) -> None:
    if method.needs_retain and retain is None:
        raise missing_retain(method.name, info.kind)
    if method.masks_head and not whole_classes:
        raise InvalidValueError(
            f"Method {method.name!r} takes whole classes out by what the head answers; for samples of classes that stay "
            "there is nothing it could tell them by. Use method='esc', and audit what it leaves: for such requests no "
            "method on features does much."
        )


def _head(model: TappedModel, method: Method) -> HeadFunction | None:
    """The head that the method reads; None where it reads none."""
    if not method.needs_head:
        return None
    head = head_function(model.inner, model.taps, model.config.masked, forgotten_classes(model))
    if head is None:
        raise InvalidValueError(
            f"Method {method.name!r} needs a classification head, and {type(model.inner).__name__} has none: its pooled "
            "features are its answer. Use method='esc', which needs the images alone."
        )
    return head


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


def weights_of(model: Any) -> tuple[str, str | None]:
    """Precision and digest of the weights of the model inside, one pass over them: what tells whether they are others."""
    return str(next(model.inner.parameters()).dtype), inner_digest(model)


def weights_found(model: Any) -> str | None:
    """Digest of the weights as the first request found them, which is this one where there was none."""
    if model.config.erasures:
        return model.config.weights_erased
    found = inner_digest(model)
    leave_other_base(model, found)
    return found


def leave_other_base(model: Any, found: str | None = None) -> None:
    """A model that was trained, in eval mode too, before its first request has no base any more.

    Args:
        model: Of another precision than it was loaded in, nothing is known.
        found: The digest of its weights, where it is at hand.
    """
    loaded = getattr(model, "as_loaded", None)
    if loaded is None or None in loaded or model.config.base_model is None or model.config.erasures:
        return
    dtype, digest = weights_of(model) if found is None else (str(next(model.inner.parameters()).dtype), found)
    if dtype == loaded[0] and digest != loaded[1]:
        model.config.base_model = model.config.base_commit = None


def leave_checkpoint(model: Any) -> None:
    """A model whose erasers changed has no checkpoint's name any more, and no graph of torch.compile answers as before."""
    for part in (model, model.inner):
        take_name(part)
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
