"""Carry out one request: forget set -> features -> eraser -> record. Changes nothing in the model it is given.

Part of the modelling room: `ErasedModel.erase` puts the result in place.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import ImageProcessingMixin
from transformers.utils import logging

from hf_kd.data.image_source import inspect_images
from hf_kd.data.labels import LabelMapping
from hf_kd.data.loader import make_loader
from hf_kd.data.preprocess import ImagePreprocessor
from hf_kd.features.forward import (
    FeatureStore,
    feature_pass,
    gather_rows,
    probe_from_batch,
    process_state,
    sum_over_processes,
)
from hf_kd.features.reader import (
    ABSENT,
    ReadOptions,
    forget_views,
    label_mapping,
    loader_of,
    preprocessor_of,
    retained_moments,
)
from hf_kd.features.taps.inputs import main_input, probe_inputs
from hf_kd.features.taps.site import head_function
from hf_kd.methods.erasers.base import Eraser, ForgetData, Method, available_methods, make_method
from hf_kd.methods.erasers.moments import SecondMoment
from hf_kd.methods.unlearning.base import unlearning_methods

from .configuration import Erasure, versions

if TYPE_CHECKING:
    from .erased_model import ErasedModel

logger = logging.get_logger(__name__)


def fit_erasers(
    model: ErasedModel,
    forget: Any,
    method: str | Method,
    settings: ReadOptions,
    options: Mapping[str, Any],
    whole_classes: bool = True,
    retain: Any = None,
) -> tuple[list[Eraser], Erasure]:
    """One fitted eraser for each tap, and the record of the request."""
    if isinstance(method, str) and method in unlearning_methods() and method not in available_methods():
        raise ValueError(
            f"{method!r} changes weights and fits no eraser: use hf_kd.unlearn(model, images, {method!r}, ...), or "
            "hf-kd unlearn on the command line."
        )
    method = make_method(method, **options)
    if method.needs_retain and retain is None:
        raise ValueError(
            f"Method {method.name!r} reads retained images and none were given: pass retain=... (images of the classes that "
            "stay), or use method='esc' or 'mean-projection', which need the forget set alone."
        )
    if method.masks_head and not whole_classes:
        raise ValueError(
            f"Method {method.name!r} takes whole classes out by what the head answers; for samples of classes that stay "
            "there is nothing it could tell them by. Use method='esc', and audit what it leaves: for such requests no "
            "method on features does much."
        )
    forget_set = inspect_images(
        forget, settings.image_column, settings.label_column, main_input=main_input(model.inner)
    )
    loader = loader_of(model, forget_set, settings)
    if not model.sites:
        # Only the data itself shows what a loader or a callable makes; every process probes with the same batch, also
        # one that gets none of its own.
        known = isinstance(model.processor, ImageProcessingMixin) and forget_set.kind != "loader"
        first = (
            None
            if known
            else next(iter(make_loader(forget_set, preprocessor_of(model, forget_set), batch_size=2, num_workers=0)))
        )
        model.find_taps(None if first is None else probe_from_batch(first))
    head = head_function(model.inner, model.taps, model.config.masked) if method.needs_head else None
    if method.needs_head and head is None:
        raise ValueError(
            f"Method {method.name!r} needs a classification head, and {type(model.inner).__name__} has none: its pooled "
            "features are its answer. Use method='esc', which needs the images alone."
        )
    mapping = label_mapping(model, forget_set, settings.label_mapping, method.needs_head or method.needs_labels)

    started = time.perf_counter()
    consumer = _MappedLabels(FeatureStore() if method.needs_features else _Moments(method.by_class), mapping)
    count = feature_pass(
        model.inner,
        list(model.sites),
        loader,
        consumer,
        mixed_precision=settings.mixed_precision,
        progress=settings.progress,
        description="forget set",
    )
    if count == 0:
        raise ValueError("The forget set is empty: there is nothing to forget. Check the filter that selected it.")
    data, labels = consumer.collect(len(model.sites))
    classes = consumer.classes() if whole_classes else None
    _refuse_every_class(model, classes)
    given: dict[str, Any] = {}
    if method.views:
        given["views"] = forget_views(model, loader, method.views, settings, data)
    if method.needs_retain:
        given["retain"] = retained_moments(model, retain, settings, method.needs_labels, classes)
    between = time.perf_counter()
    fitted = method.fit_taps(data, labels, head, **given)
    finished = time.perf_counter()

    for tap, eraser in zip(model.taps, fitted, strict=True):
        _warn(method, tap, eraser)
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
    )


class _Moments:
    """A consumer that keeps second moments at each tap, of all samples or of each class."""

    def __init__(self, by_class: bool):
        self.by_class = by_class
        self.moments: dict[int, list[SecondMoment]] = {}
        self.dims: list[int] = []

    def __call__(self, features: Sequence[Tensor], labels: Tensor, rows: Tensor) -> None:
        labels = labels.to(features[0].device)
        for label in labels.unique().tolist() if self.by_class else [None]:
            parts = features if label is None else [f[labels == label] for f in features]
            moments = self.moments.setdefault(
                -1 if label is None else label, [SecondMoment(f.shape[1], f.device) for f in features]
            )
            for moment, part in zip(moments, parts, strict=True):
                moment.update(part)

    def collect(self, taps: int) -> tuple[list[ForgetData], None]:
        state = process_state()
        if state.num_processes > 1:
            self._share(taps)
        if self.by_class:
            return [{label: moments[i] for label, moments in self.moments.items()} for i in range(taps)], None
        return [self.moments[-1][i] for i in range(taps)], None

    def _share(self, taps: int) -> None:
        """Give every process the same classes and dimensions, then add up over processes."""
        labels = gather_rows(torch.tensor(sorted(self.moments), dtype=torch.long), fill=ABSENT)
        own = [[moment.dim for moment in next(iter(self.moments.values()))]] if self.moments else [[0] * taps]
        dims = gather_rows(torch.tensor(own, dtype=torch.long)).max(dim=0).values.tolist()
        for label in sorted(set(labels.tolist()) - {ABSENT}):
            moments = self.moments.setdefault(label, [SecondMoment(dim) for dim in dims])
            for moment in moments:
                moment.all_reduce(sum_over_processes)
        self.moments = {label: self.moments[label] for label in sorted(self.moments)}


class _MappedLabels:
    """Puts the data set's labels into the model's ids on their way, and remembers which classes came by."""

    def __init__(self, consumer: Any, mapping: LabelMapping | None):
        self.consumer = consumer
        self.mapping = mapping
        self.seen: set[int] = set()

    def __call__(self, features: Sequence[Tensor], labels: Tensor, rows: Tensor) -> None:
        if self.mapping is not None:
            labels = self.mapping(labels)
        self.seen |= set(labels.unique().tolist())
        self.consumer(features, labels, rows)

    def collect(self, taps: int) -> tuple[list[ForgetData], Tensor | None]:
        return self.consumer.collect(taps)

    def classes(self) -> tuple[int, ...] | None:
        """Model ids of the classes that came by in any process; None when some or all are unknown."""
        seen = set(gather_rows(torch.tensor(sorted(self.seen), dtype=torch.long), fill=ABSENT).tolist()) - {ABSENT}
        if self.mapping is None or not seen or min(seen) < 0:
            return None
        return tuple(sorted(seen))


def _refuse_every_class(model: ErasedModel, classes: tuple[int, ...] | None) -> None:
    if classes is not None and model.taps[0].heads and len(classes) >= len(model.class_names):
        raise ValueError(
            f"The forget set holds all {len(model.class_names)} classes of the model; nothing would be left to answer. "
            "Forget fewer classes; if these are samples of classes that stay, say so: whole_classes=False."
        )


def _warn(method: Method, tap: Any, eraser: Eraser) -> None:
    left, soft = eraser.measured.get("forget_hits_hard"), eraser.measured.get("forget_hits_soft")
    if not left:
        return
    before = eraser.measured["forget_hits_before"]
    advice = (
        "The loss has no gradient where the head is sure of itself (probability 1 in float32): use method='esc' here."
        if soft == before
        else "Try a higher threshold: it is the step from the soft to the hard mask that brings them back."
        if soft == 0
        else "Try a larger lr or more epochs."
    )
    logger.warning(
        f"{method.name} at the {tap}: {left:.1f} % of the forget set is still classified correctly (before: {before:.1f} %, "
        f"soft mask: {soft:.1f} %). {advice}"
    )


def fingerprint(eraser: Eraser) -> str:
    """sha256 of the eraser's buffers: name, shape and little-endian float32 values, in order of the names."""
    digest = hashlib.sha256()
    for name, buffer in sorted(eraser.named_buffers()):
        values = buffer.detach().float().cpu().contiguous().numpy().astype("<f4")
        digest.update(f"{name}{values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def probe_batch(model: ErasedModel, inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Inputs for the tap search: those given, two random images through the model's processor, or what its config says.

    A two-tower model also gets text, or fields that only its whole forward returns would go unseen.
    """
    inner = model.inner
    if inputs is None and model.processor is not None:
        pixels = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
        inputs = ImagePreprocessor(model.processor)([Image.fromarray(image) for image in pixels])
    if inputs is None:
        return probe_inputs(inner)
    inputs = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    if hasattr(inner, "get_image_features") and "input_ids" not in inputs:
        inputs |= {
            name: value for name, value in probe_inputs(inner).items() if name in ("input_ids", "attention_mask")
        }
    return inputs


def forget_compiled_graphs() -> None:
    """Graphs that torch.compile made of the un-erased model must not answer any more."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
