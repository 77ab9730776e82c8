"""Whether a request did what its record will say: asked once, in one place, of erasers and of changed weights alike.

Before a fit: does the head take the images for the classes they are said to be? A label of another numbering would make an
eraser for one class and a record that names another. After it: did anything change, did the forgotten classes become easier
to answer, did the others suffer? What cannot be meant is an error; what may be meant is a warning, and stands in the record.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_kd.data.distributed import ABSENT, gather_rows
from hf_kd.data.labels import LabelMapping
from hf_kd.errors import InvalidValueError, LabelMismatchError
from hf_kd.features.heads import answered, no_choice, problem_type, several_labels
from hf_kd.features.protocol import TappedModel
from hf_kd.features.reader import ImageReader
from hf_kd.features.readers import leave_out
from hf_kd.features.taps.inputs import input_device
from hf_kd.features.taps.site import HeadFunction, head_function
from hf_kd.methods.erasers.base import Eraser
from hf_kd.methods.records import changes_of, classes_in, forgotten_classes

logger = logging.getLogger(__name__)

RECALL = 0.05
"""Below this share of images answered as their class, and less than as another one, a class counts as not recognised."""

FEWEST = 10
"""Images from which on that is held against the labels. A class of which the model knows one image in four (badly, that is)
would give no hit among so many in 6 % of the cases; of fewer images less can be said, so they only give a warning."""

FELL = 5.0
"""Percentage points by which the accuracy on retained images may fall without a warning."""

SAMPLE, SAMPLE_OF_CLASS = 4096, 64
"""Images whose features are kept, of all classes and of each, to ask the head about them again after the fit; of more
classes so many fewer of each, that images in the order of their classes are not only of the first of them."""

SAME = 1e-6
"""Relative change of features up to which nothing has changed: float32 rounding."""

Pairs = Counter[tuple[int, int]]
"""How many images of a label (id of the model) got an answer (likewise)."""


class Witness:
    """What the head answers for images that pass by, and some of their features [n, d] at each tap with labels [n].

    Args:
        original: From features at each tap to the logits of the model before any erasure, which labels are judged by; None
            where it has none.
        several: Whether an image may be given several labels by them.
        classes: How many there may be.
    """

    def __init__(self, original: Any = None, several: bool = False, classes: int = 1):
        self.original, self.several = original, several
        self._least = min(SAMPLE_OF_CLASS, max(1, SAMPLE // max(1, classes)))
        self.answers: Pairs = Counter()
        self.features: list[Tensor] = []
        self.labels = torch.zeros(0, dtype=torch.long)
        self._parts: list[tuple[list[Tensor], Tensor]] = []
        self._kept, self._taken = Counter[int](), 0

    def see(self, before: Sequence[Tensor], features: Sequence[Tensor], labels: Tensor) -> None:
        """One batch: features [b, d] at each tap before and behind earlier erasers, labels [b] (ids of the model, or -1)."""
        labels = labels.cpu()
        if self.original is not None:
            with torch.autocast(before[0].device.type, enabled=False):
                logits = self.original([part.float() for part in before])
            if int(labels.max()) >= logits.shape[1]:
                raise LabelMismatchError(
                    f"Class {int(labels.max())} is named by the model's configuration, and its head has the ids 0 to "
                    f"{logits.shape[1] - 1}. Correct its id2label (config.json)."
                )
            answers = answered(logits, labels if self.several else None).cpu()
            self.answers.update(zip(labels.tolist(), answers.tolist(), strict=True))
        rows = []
        for row, label in enumerate(labels.tolist()):
            most = SAMPLE_OF_CLASS if self._taken < SAMPLE else self._least
            if self._kept[label] < most:
                self._kept[label] += 1
                self._taken += 1
                rows.append(row)
        if rows:
            self._parts.append(([part[rows].float().cpu() for part in features], labels[rows]))

    def _alike(self, labels: Tensor) -> Tensor:
        """Rows of as many images of each class as there is room for, ascending: those that came first had more kept."""
        order = torch.argsort(labels, stable=True)
        sizes = labels[order].unique_consecutive(return_counts=True)[1]
        place = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
        return order[place < max(self._least, SAMPLE // max(1, len(sizes)))].sort().values

    def gather(self, taps: int) -> None:
        """What all processes have seen together."""
        empty = ([torch.zeros(0, 1)] * taps, self.labels)
        parts = self._parts or [empty]
        own = [torch.cat([part[0][tap] for part in parts]) for tap in range(taps)]
        labels = gather_rows(torch.cat([part[1] for part in parts]), fill=ABSENT)
        present = torch.nonzero(labels != ABSENT).flatten()
        rows = present[self._alike(labels[present])]
        self.features = [gather_rows(part)[rows] for part in own]
        self.labels = labels[rows]
        rows = torch.tensor([[*pair, n] for pair, n in self.answers.items()], dtype=torch.long).reshape(-1, 3)
        self.answers = Counter()
        for label, answer, n in gather_rows(rows, fill=ABSENT).tolist():
            if n > 0:
                self.answers[label, answer] += n


@dataclass(frozen=True)
class Witnesses:
    """Of D_f and D_r, and the head as it is before a fit: None without one, or without labels that it could answer."""

    forget: Witness
    retain: Witness
    head: HeadFunction | None

    @classmethod
    def of(cls, model: TappedModel, mapping: LabelMapping | None) -> Witnesses:
        """Of a model and a data set whose labels it knows by this mapping."""
        head = original = None
        if mapping is not None and not no_choice(model) and len(model.class_names) > 1:
            head = head_function(model.inner, model.taps, model.config.masked)  # an offloaded one is copied into memory
            original = head_function(model.inner, model.taps) if model.config.masked else head
        classes = len(model.class_names)
        return cls(Witness(original, several_labels(model), classes), Witness(classes=classes), head)

    def compare(self, model: TappedModel, method: str, fitted: Sequence[Eraser], masked: Collection[int]) -> list[str]:
        """What to say of the answers behind fitted erasers, `masked` classes never among them.

        Raises:
            InvalidValueError: Where no feature changed.
        """
        behind = [_through(fitted, seen.features) for seen in (self.forget, self.retain)]
        refuse_unchanged(method, changed_features(self.forget.features, behind[0]) > SAME, fitted[0].measured)
        if self.head is None:
            return []
        after = head_function(model.inner, model.taps, {*model.config.masked, *masked})
        told: list[Any] = []
        for seen, erased in zip((self.forget, self.retain), behind, strict=True):
            both = ((self.head, seen.features), (after, erased)) if len(seen.labels) else ()
            answers = [_answers(model, head, features, seen.labels) for head, features in both]
            told.append((seen.labels, *answers) if answers else None)
        return accuracy_warnings(*told)


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


def pairs(labels: Tensor, answers: Tensor) -> Pairs:
    """Labels [n] and answers [n], counted."""
    return Counter(zip(labels.tolist(), answers.tolist(), strict=True))


def refuse_other_heads(model: TappedModel, name: str | None) -> None:
    """Raise ValueError where the head answers something else than one class of several, for a method that asks it.

    name: Of the method; None where it is mask_head=True alone that does.
    """
    problem = problem_type(model)
    if len(model.class_names) > 1 and problem in (None, "single_label_classification"):
        return
    what = "a regression" if len(model.class_names) < 2 or problem == "regression" else "several labels an image"
    who, way = f"Method {name!r}", "Erase with method='esc', which needs the images alone"
    if name is None:
        who, way = "mask_head=True", "Leave mask_head out"
    raise InvalidValueError(
        f"{who} takes the head for a choice of one class among several, and that of this {type(model.inner).__name__} is "
        f"made for {what} (problem_type {problem!r}, {len(model.class_names)} labels). {way}; if it does choose one class, "
        'say so in its configuration (config.json): "problem_type": "single_label_classification".'
    )


def forgotten_before(model: TappedModel) -> set[int]:
    """Classes that weights were changed for: that the model does not answer them any more says nothing about labels."""
    return classes_in(changes_of(model.config))


def without_earlier(model: Any, readers: Mapping[str, ImageReader]) -> list[str]:
    """Leave retained images out that show what earlier requests were to forget, before any are drawn; what is said of it."""
    gone, count = leave_out(forgotten_classes(model), readers)
    if not gone:
        return []
    said = left_out(gone, count)
    logger.warning(said)
    return [said]


def left_out(gone: int, count: int) -> str:
    """What to say of `gone` of `count` retained images: they show classes that earlier requests were to forget.

    Raises:
        ValueError: Where no other is left.
    """
    told = f"{gone:,} retained images are of classes that an earlier request was to forget"
    if gone == count:
        raise InvalidValueError(f"No retained image is left: {told}. Give images of classes that stay.")
    return f"{told}, and were left out."


def check_recognised(
    answers: Pairs,
    names: Mapping[int, str],
    mapping: LabelMapping | None,
    *,
    earlier: Collection[int] = (),
    refuse: bool = True,
) -> list[str]:
    """Whether the head, before anything is done, takes the images of D_f for the classes they are said to be.

    A class is not recognised where less than `RECALL` of its images are answered as it and more are answered as one other
    class. That holds of a class by class, and of all images together, each from `FEWEST` images on. A class that the model
    knows badly (a recall of 20 %, say) passes.

    Args:
        answers: Of the head before the request.
        names: Of the model's classes.
        mapping: How the data set's labels were matched; None where they are unknown to the model.
        earlier: Classes that earlier requests took from the head; not asked about.
        refuse: Whether that is an error; otherwise it is only said.

    Returns:
        What the record should say, without names of classes.

    Raises:
        LabelMismatchError: Naming the class that the images are said to be and the one they are answered as.
    """
    if mapping is None:
        return []
    asked = {label: Counter() for label, _ in answers if label >= 0 and label not in earlier}
    for (label, answer), n in answers.items():
        if label in asked:
            asked[label][answer] += n
    doubtful = {label: found for label, found in asked.items() if not _is_recognised(found[label], found, label)}
    if not doubtful:
        return []
    all_of = {label: sum(found.values()) for label, found in asked.items()}
    hits = sum(found[label] for label, found in asked.items())
    clear = [label for label in doubtful if all_of[label] >= FEWEST]
    if not clear and sum(all_of.values()) >= FEWEST and hits < RECALL * sum(all_of.values()):
        clear = list(doubtful)
    told = []
    for label in sorted(clear or doubtful, key=lambda label: -all_of[label])[:3]:
        answer, most = doubtful[label].most_common(1)[0]
        told.append((label, answer, doubtful[label][label], all_of[label], most))
    if clear and refuse:
        raise LabelMismatchError(_unrecognised(told, names, mapping))
    return [
        f"Of {n} images labelled as class {label}, {right} were answered as it beforehand, and {most} as class {answer}."
        for label, answer, right, n, most in told
    ]


def _is_recognised(hits: int, found: Counter, label: int) -> bool:
    others = max((n for answer, n in found.items() if answer != label), default=0)
    return hits >= RECALL * found.total() or hits >= others


def _unrecognised(
    told: Sequence[tuple[int, int, int, int, int]], names: Mapping[int, str], mapping: LabelMapping
) -> str:
    theirs = {own: label for label, own in mapping.to_model.items()}
    parts, hint = [], {}
    for label, answer, right, n, most in told:
        source = theirs.get(label, label)
        known = f"{source} ({mapping.names[source]!r})" if source in mapping.names else f"{source}"
        hint[mapping.names.get(source, source)] = answer
        parts.append(
            f"label {known} of the data set is taken for {names.get(label, label)!r} ({label}), and {right} of its {n} "
            f"images are answered so, but {most} as {names.get(answer, answer)!r} ({answer})"
        )
    how = {
        "names": "Labels were matched by their names.",
        "mapping": "Labels were matched by the label mapping.",
        "numbers": "Names that are numbers were taken for the model's ids.",
        "same ids": "The labels have no names, so they were taken for the model's ids.",
    }[mapping.how]
    return (
        f"The model does not take the images to forget for what they are said to be: {'; '.join(parts)}. {how} If they "
        f"are other classes, say which: reading=ReadOptions(label_mapping={hint}). If the labels are right and the model "
        "does not know these classes, allow_unrecognised=True carries on."
    )


def changed_features(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest relative change ||after - before|| / ||before|| of features [n, d], over the taps."""
    return max(
        (float((b - a).norm() / a.norm().clamp(min=1e-30)) for a, b in zip(before, after, strict=True)), default=0.0
    )


def refuse_unchanged(name: str, changed: bool, measured: Mapping[str, Any]) -> None:
    """Raise ValueError where a request leaves everything as it was: a record of it would claim what did not happen."""
    if changed:
        return
    if measured.get("forget_hits_before") == 0:
        why = "none of the images was answered as labelled before the first step, so there was nothing to train against"
    elif measured.get("forget_hits_hard", 0) > measured.get("forget_hits_soft", 100):
        why = "it forgot, but its threshold rounds the mask back to where it began; raise the threshold"
    else:
        why = str(measured.get("stopped") or "what it was given moved nothing")
    advice = "a smaller lr" if measured.get("stopped") else "a larger lr, more epochs"
    raise InvalidValueError(
        f"{name} changed nothing: {why}. Nothing was erased, and no record is made. Check the labels and the settings "
        f"({advice}), or use method='esc', which needs the images alone."
    )


def accuracy_warnings(
    forget: tuple[Tensor, Tensor, Tensor] | None, retain: tuple[Tensor, Tensor, Tensor] | None
) -> list[str]:
    """What to say where forgotten classes became easier to answer or retained ones suffered.

    Args:
        forget: Labels [n], answers [n] before and answers [n] after of images of D_f; None where they are unknown.
        retain: The same of D_r.
    """
    said = []
    for split, given in (("forget", forget), ("retain", retain)):
        if given is None:
            continue
        labels, before, after = given
        known = labels >= 0
        if not bool(known.any()):
            continue
        was, now = (100.0 * float((part[known] == labels[known]).double().mean()) for part in (before, after))
        if split == "forget" and now > was:
            said.append(
                f"The images to forget are answered correctly more often than before: {now:.1f} %, not {was:.1f} %."
            )
        if split == "retain" and was - now > FELL:
            said.append(f"Accuracy on the retained training images (D_r) fell from {was:.1f} to {now:.1f} %.")
    return said
