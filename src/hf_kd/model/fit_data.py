"""What a method is fitted on: moments or features of D_f, features of further views of it, moments of D_r."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hf_kd.data.distributed import ABSENT, gather_rows, process_state, sum_over_processes
from hf_kd.data.labels import LabelMapping
from hf_kd.data.text import shell_word
from hf_kd.data.views import VIEWS
from hf_kd.errors import InvalidValueError, LabelMismatchError
from hf_kd.features.forward import FeatureStore
from hf_kd.features.heads import apply_erasers
from hf_kd.features.protocol import TappedModel
from hf_kd.features.reader import ImageReader
from hf_kd.features.taps.inputs import main_input
from hf_kd.methods.erasers.base import ForgetData, Method
from hf_kd.methods.erasers.moments import RetainMoments, SecondMoment
from hf_kd.methods.records import forgotten_classes

from .outcome import Witness, left_out

logger = logging.getLogger(__name__)


def label_mapping(
    reader: ImageReader, required: bool, known: bool | None = None, level: int = logging.WARNING
) -> LabelMapping | None:
    """From the data set's labels to the model's; None where they stay unknown and nothing needs them.

    Args:
        reader: Of the images.
        required: Whether there have to be labels.
        known: Whether the model has to know them; by default where they are required.
        level: Of the message that they stay unknown.

    Raises:
        ValueError: Where labels are `required` and there are none.
        LabelMismatchError: Where the model has to know them and does not, and for a label mapping that is wrong.
    """
    known = required if known is None else known
    if required and not reader.images.has_labels:
        raise InvalidValueError(
            "This method needs the labels of the forget set and it has none. Name the column with label_column=..., "
            "give (image, id) pairs instead of images, "
            "or use method='esc', which needs the images alone."
        )
    reader.images = replace(reader.images, labels_needed=known)
    try:
        return reader.mapping
    except LabelMismatchError as error:
        if known or reader.options.label_mapping:  # which is wrong
            raise
        logger.log(
            level,
            f"The record does not say which classes of the model were forgotten: {error}",
        )
        return None


class MomentsByTap:
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


class MappedLabels:
    """Takes features before the erasers and hands on those behind them, with labels in the model's ids; remembers which
    classes came by.
    """

    def __init__(self, model: TappedModel, consumer: Any, mapping: LabelMapping | None, witness: Witness):
        self.model = model
        self.consumer = consumer
        self.mapping = mapping
        self.witness = witness
        self.seen: set[int] = set()
        self.unlabelled = 0

    def __call__(self, features: Sequence[Tensor], labels: Tensor, rows: Tensor) -> None:
        if self.mapping is not None:
            labels = self.mapping(labels)
        behind = apply_erasers(self.model, features)
        self.seen |= set(labels.unique().tolist())
        self.unlabelled += int((labels < 0).sum())
        self.witness.see(features, behind, labels)
        self.consumer(behind, labels, rows)

    def collect(self, taps: int) -> tuple[list[ForgetData], Tensor | None]:
        self.witness.gather(taps)
        return self.consumer.collect(taps)

    def refuse_unlabelled(self, method: str, count: int) -> None:
        """Raise ValueError where some of `count` images have no label, for a method that needs one for each."""
        missing = int(sum_over_processes(torch.tensor([self.unlabelled], dtype=torch.float64))[0])
        if missing:
            raise InvalidValueError(
                f"Method {method!r} needs a label for every image to forget; {missing} of {count} have none (None or -1). "
                "Fill them in or leave these images out, or use method='esc', which needs the images alone."
            )

    def classes(self) -> tuple[int, ...] | None:
        """Model ids of the classes that came by in any process; None when some or all are unknown."""
        seen = self._seen_anywhere()
        if self.mapping is None or not seen:
            return None
        if min(seen) < 0:
            logger.warning(
                "The record does not say which classes of the model were forgotten: some images have no label that it knows."
            )
            return None
        return tuple(sorted(seen))

    def dataset_classes(self, names: Sequence[str] | None) -> tuple[str, ...] | None:
        """The data set's names of the labels that came by, where nothing says which classes of the model they are.

        None where that is known, and where the data set has no names.
        """
        if self.mapping is not None or not names:
            return None
        return tuple(names[label] for label in sorted(self._seen_anywhere()) if label >= 0) or None

    def _seen_anywhere(self) -> set[int]:
        """Labels that came by in any process."""
        return set(gather_rows(torch.tensor(sorted(self.seen), dtype=torch.long), fill=ABSENT).tolist()) - {ABSENT}


@dataclass(frozen=True)
class ForgetSet:
    """D_f as one pass over it was read."""

    count: int
    data: list[ForgetData]
    """At each tap."""
    labels: Tensor | None
    classes: tuple[int, ...] | None
    """Ids of the model; None for samples of classes that stay, and where the model does not know the labels."""
    dataset_classes: tuple[str, ...] | None
    """What the data set calls the labels that the model does not know."""


def read_forget_set(
    reader: ImageReader, method: Method, mapping: LabelMapping | None, witness: Witness, whole_classes: bool
) -> ForgetSet:
    """Read D_f behind earlier erasers, as the method is fitted on it; `witness` sees it too.

    Raises:
        InvalidValueError: Where it is empty, holds every class, or lacks labels that the method needs.
    """
    model = reader.model
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
    if classes is not None and model.taps[0].heads and len(classes) >= len(model.class_names):
        raise InvalidValueError(
            f"The forget set holds all {len(model.class_names)} classes of the model; nothing would be left to answer. "
            "Forget fewer classes; if these are samples of classes that stay, say so: whole_classes=False."
        )
    if method.needs_head or method.needs_labels:
        consumer.refuse_unlabelled(method.name, count)
    return ForgetSet(count, data, labels, classes, dataset_classes)


def forget_views(reader: ImageReader, wanted: int, features: Sequence[Any]) -> list[tuple[Tensor, ...]]:
    """For each tap the features [n, d] of further views of the forget images, in the order of the images.

    Empty where inputs are no pictures [b, channels, height, width], and where the data cannot be read twice in one order.

    Args:
        reader: Of the forget set.
        wanted: How many views, in the order of `VIEWS`.
        features: [n, d] at each tap, of the images as they are.
    """
    sites = len(reader.model.sites)
    first = next(iter(reader.batches()), None)
    pictures = first is None or first["inputs"][main_input(reader.model.inner)].ndim == 4
    nothing: list[tuple[Tensor, ...]] = [() for _ in range(sites)]
    if not bool(sum_over_processes(torch.tensor([0.0 if pictures else 1.0], dtype=torch.float64))[0] == 0):
        return nothing
    found = []
    as_they_are = [] if reader.reads_the_same_again else [None]
    for view in [*as_they_are, *list(VIEWS)[:wanted]]:
        store = FeatureStore()
        reader.run(store, view=view, description=f"forget set, {view or 'again'}")
        seen = store.collect(sites)[0]
        if seen[0].shape != features[0].shape or (view is None and not _all_close(seen, features)):
            logger.warning(
                "The forget set gave other images, or in another order, when it was read again: views of them cannot be "
                "compared. Give a data set, or a DataLoader without shuffling and random augmentation."
            )
            return nothing
        if view is not None:
            found.append(seen)
    return [tuple(features[i] for features in found) for i in range(sites)]


def _all_close(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-2, atol=1e-2 * float(b.std())) for a, b in zip(some, others, strict=True))


def retained_moments(
    reader: ImageReader, needs_labels: bool, forgotten: tuple[int, ...] | None, witness: Witness
) -> list[RetainMoments]:
    """The moments of retained images at each tap, of all processes: one pass, as over the forget set.

    Images of classes that an earlier request was to forget are left out, as far as their labels say it: here those of a
    stream or a loader, of which `outcome.without_earlier` knows nothing.

    Raises:
        ValueError: For an empty set, for images of the forgotten classes in it, and for missing labels where they count.
    """
    mapping = label_mapping(reader, needs_labels, level=logging.INFO)  # the forget set said it
    found: list[RetainMoments] = []
    earlier = torch.tensor(sorted(forgotten_classes(reader.model)), dtype=torch.long)
    dropped = torch.zeros(1, dtype=torch.float64)

    def keep(features: Sequence[Tensor], labels: Tensor, rows: Tensor) -> None:
        own = torch.full_like(labels, -1) if mapping is None else mapping(labels)
        if forgotten and bool((wrong := torch.isin(own, torch.tensor(forgotten))).any()):
            names = dict(enumerate(reader.label_names or ()))
            called = [names.get(label, label) for label in labels[wrong].unique().tolist()]
            options = " ".join(f"--forget-labels {shell_word(str(label))}" for label in called)
            raise InvalidValueError(
                f"Among the retained images are labels of the forgotten classes {list(forgotten)}: "
                f"{', '.join(map(repr, called))}. What stays is D_r, without them: retain=... ({options} on the command "
                "line, which forgets them too)."
            )
        gone = torch.isin(own, earlier)
        if bool(gone.any()):
            dropped.add_(gone.sum())
            features, own = [f[~gone.to(f.device)] for f in features], own[~gone]
        if not len(own):
            return
        if not found:
            found.extend(RetainMoments(f.shape[1], f.device) for f in features)
        for moments, part in zip(found, features, strict=True):
            moments.update(part, own)
        witness.see(features, features, own)

    count = reader.run(keep, description="retained")
    if count == 0:
        raise InvalidValueError("The retained set is empty. Check the filter that selected it.")
    if gone := int(sum_over_processes(dropped)):
        logger.warning(left_out(gone, count))
    if process_state().num_processes > 1:
        found = found or [RetainMoments(tap.dim) for tap in reader.model.taps]
        own = torch.tensor(sorted(found[0].sums), dtype=torch.long)
        labels = sorted(set(gather_rows(own, fill=ABSENT).tolist()) - {ABSENT})
        found = [moments.all_reduce(sum_over_processes, labels) for moments in found]
    witness.gather(len(reader.model.taps))
    return found
