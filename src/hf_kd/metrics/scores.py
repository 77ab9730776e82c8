"""The numbers an audit reports, and nothing else: accuracies of forget and retain samples and what is made of them.

Everything is in percent. D_f and D_r are the accuracies on forget and retain training samples, D_ft and D_rt on their
test counterparts, as in the paper's Table 1; forgetting wants the first and third low and the others high.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from ._inputs import ArrayLike, as_forget_labels, as_labels, forget_mask


def harmonic_mean(forget_accuracy: float, retain_accuracy: float) -> float:
    """HM = 2 (100 - D_f) D_r / ((100 - D_f) + D_r) (paper, Table 1); 0 where both terms are 0.

    Args:
        forget_accuracy: D_f or D_ft, percent.
        retain_accuracy: D_r or D_rt, percent.

    Returns:
        The harmonic mean in percent: 100 where everything is forgotten and everything else kept.

    Raises:
        InvalidValueError: Outside [0, 100].

    Example:
        >>> harmonic_mean(0.0, 50.0)
        66.66666666666667
    """
    for name, value in (("forget_accuracy", forget_accuracy), ("retain_accuracy", retain_accuracy)):
        if not 0 <= value <= 100:
            raise InvalidValueError(f"{name} is {value}; expected percent in [0, 100].")
    forgotten = 100.0 - forget_accuracy
    total = forgotten + retain_accuracy
    return 2 * forgotten * retain_accuracy / total if total else 0.0


@dataclass(frozen=True)
class ForgetRetainScores:
    """The four accuracies of the paper's tables, in percent."""

    D_f: float
    D_r: float
    D_ft: float
    D_rt: float

    @property
    def HM(self) -> float:
        """Harmonic mean on the training samples."""
        return harmonic_mean(self.D_f, self.D_r)

    @property
    def HM_t(self) -> float:
        """Harmonic mean on the test samples."""
        return harmonic_mean(self.D_ft, self.D_rt)

    @classmethod
    def from_predictions(
        cls,
        train_predictions: ArrayLike,
        train_labels: ArrayLike,
        test_predictions: ArrayLike,
        test_labels: ArrayLike,
        forget_labels: int | ArrayLike,
    ) -> ForgetRetainScores:
        """Top-1 accuracies over all samples of all forget classes together (micro), and over all others.

        Args:
            train_predictions: Predicted labels [n].
            train_labels: True labels [n].
            test_predictions: Predicted labels [m].
            test_labels: True labels [m].
            forget_labels: The forgotten classes.

        Raises:
            InvalidValueError: Where a split has no forget or no retain sample.

        Example:
            >>> ForgetRetainScores.from_predictions([0, 1, 1], [0, 0, 1], [1, 1], [0, 1], forget_labels=0)
            ForgetRetainScores(D_f=50.0, D_r=100.0, D_ft=0.0, D_rt=100.0)
        """
        train = forget_retain_accuracy(train_predictions, train_labels, forget_labels, "train")
        test = forget_retain_accuracy(test_predictions, test_labels, forget_labels, "test")
        return cls(*train, *test)


def forget_retain_accuracy(
    predictions: ArrayLike, labels: ArrayLike, forget_labels: int | ArrayLike, split: str = "given"
) -> tuple[float, float]:
    """Accuracy on the forget samples and on all others of one split, in percent.

    Args:
        predictions: Predicted labels [n].
        labels: True labels [n].
        forget_labels: The forgotten classes.
        split: What error messages call the samples.

    Raises:
        InvalidValueError: On malformed labels, and where there is no forget or no retain sample.

    Example:
        >>> forget_retain_accuracy([0, 1, 1, 2], [0, 0, 1, 2], forget_labels=0)
        (50.0, 100.0)
    """
    predictions, labels = _pair(predictions, labels)
    forget = forget_mask(labels, forget_labels, split)
    hits = (predictions == labels).double()
    return 100 * float(hits[forget].mean()), 100 * float(hits[~forget].mean())


@dataclass(frozen=True)
class ClassAccuracy:
    """One row of the per-class table."""

    label: int
    samples: int
    accuracy: float
    """Percent."""
    forgotten: bool


def per_class_accuracy(
    predictions: ArrayLike, labels: ArrayLike, forget_labels: int | ArrayLike
) -> tuple[ClassAccuracy, ...]:
    """Accuracy of every class present in `labels`, in ascending order of label.

    Args:
        predictions: Predicted labels [n].
        labels: True labels [n].
        forget_labels: The forgotten classes, which are marked.

    Raises:
        InvalidValueError: On malformed labels, or none.

    Example:
        >>> [(row.label, row.accuracy, row.forgotten) for row in per_class_accuracy([0, 1, 1], [0, 0, 1], 0)]
        [(0, 50.0, True), (1, 100.0, False)]
    """
    predictions, labels = _pair(predictions, labels)
    forget = set(as_forget_labels(forget_labels))
    rows = []
    for label in labels.unique().tolist():
        hits = (predictions[labels == label] == label).double()
        rows.append(ClassAccuracy(label, hits.numel(), 100 * float(hits.mean()), label in forget))
    return tuple(rows)


@dataclass(frozen=True)
class NearestClass:
    """One retained class that forgotten samples are now taken for."""

    label: int
    share: float
    """Percent of the forgotten samples."""


def nearest_retained_classes(
    predictions: ArrayLike, labels: ArrayLike, forget_labels: int | ArrayLike, most: int | None = None
) -> tuple[NearestClass, ...]:
    """Where forgotten samples are sent: retained classes predicted for them, most frequent first.

    Shares are of all forgotten samples, so they add up to 100 minus the share still predicted as a forgotten class.

    Args:
        predictions: Predicted labels [n].
        labels: True labels [n].
        forget_labels: The forgotten classes.
        most: At most so many rows; all by default.

    Raises:
        InvalidValueError: Where there is no forget or no retain sample.

    Example:
        >>> nearest_retained_classes([2, 2, 1, 0, 1], [0, 0, 0, 0, 1], forget_labels=0)
        (NearestClass(label=2, share=50.0), NearestClass(label=1, share=25.0))
    """
    predictions, labels = _pair(predictions, labels)
    mask = forget_mask(labels, forget_labels, "given")
    forget = set(as_forget_labels(forget_labels))
    values, counts = predictions[mask].unique(return_counts=True)
    total = int(mask.sum())
    rows = [
        NearestClass(label, 100 * count / total)
        for label, count in zip(values.tolist(), counts.tolist(), strict=True)
        if label not in forget
    ]
    return tuple(sorted(rows, key=lambda row: (-row.share, row.label))[:most])


def recovery_ratio(probe_accuracy: float, original_accuracy: float) -> float:
    """Fig. 1's recovery rate 100 acc_probe / acc_original: a probe on erased features over the original head.

    Args:
        probe_accuracy: On the forgotten classes, percent.
        original_accuracy: Of the original's own head on them, percent.

    Returns:
        Percent; above 100 where the probe reads more than the head answered.

    Raises:
        InvalidValueError: Where the original accuracy is 0: nothing was known that could come back.

    Example:
        >>> recovery_ratio(60.0, 80.0)
        75.0
    """
    if original_accuracy <= 0:
        raise InvalidValueError(f"The original accuracy is {original_accuracy}; a recovery ratio needs one above 0.")
    return 100 * probe_accuracy / original_accuracy


def normalised_retention(erased: float, original: float, reference: float | None = None) -> float | None:
    """KRn = (f - f_ref) / (f_orig - f_ref): 0 = as little as a reference without the classes, 1 = nothing forgotten.

    Args:
        erased: f, probe accuracy on the forgotten classes in the erased features, percent.
        original: f_orig, the same in the original features.
        reference: f_ref, the same in features of a network that was not trained on the classes; 0 where there is none.

    Returns:
        A number without a unit; below 0 the erased features reveal less than the reference. None where original and
        reference do not differ: then nothing can be said.

    Example:
        >>> normalised_retention(erased=50.0, original=90.0, reference=10.0)
        0.5
    """
    base = 0.0 if reference is None else reference
    return (erased - base) / (original - base) if original != base else None


def average_gap(scores: Sequence[float], reference: Sequence[float]) -> float:
    """Avg Gap of Table 5: mean absolute difference to the retrained model over (D_f, D_r, D_t, MIA), in points.

    Args:
        scores: Of the model, percent.
        reference: The same scores of the retrained model, percent.

    Raises:
        InvalidValueError: On empty or unequal lengths.

    Example:
        >>> average_gap([0.0, 90.0], [2.0, 94.0])
        3.0
    """
    if not scores or len(scores) != len(reference):
        raise InvalidValueError(
            f"Got {len(scores)} scores and {len(reference)} reference values; expected as many of each."
        )
    return sum(abs(a - b) for a, b in zip(scores, reference, strict=True)) / len(scores)


@dataclass(frozen=True)
class MeanAndSD:
    """A score over repetitions: mean and sample standard deviation (None for a single repetition)."""

    mean: float
    sd: float | None
    count: int


def mean_and_sd(values: Sequence[float]) -> MeanAndSD:
    """Mean and sample standard deviation (n - 1) over repetitions.

    HM has to be computed per seed and then averaged: HM is concave, so the HM of averages is higher.

    Args:
        values: One number for each repetition.

    Raises:
        InvalidValueError: On no values.

    Example:
        >>> mean_and_sd([1.0, 3.0])
        MeanAndSD(mean=2.0, sd=1.4142135623730951, count=2)
    """
    values = [float(value) for value in values]
    if not values:
        raise InvalidValueError("There are no values to average; pass at least one.")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return MeanAndSD(mean, None, 1)
    return MeanAndSD(mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)), len(values))


def scores_over_seeds(runs: Sequence[ForgetRetainScores]) -> dict[str, MeanAndSD]:
    """Mean and sd of D_f, D_r, D_ft, D_rt, HM and HM_t over runs; harmonic means are taken per run, as in the paper.

    Args:
        runs: The scores of each run.

    Raises:
        InvalidValueError: On no runs.

    Example:
        >>> runs = [ForgetRetainScores(0, 90, 0, 80), ForgetRetainScores(0, 90, 10, 90)]
        >>> scores_over_seeds(runs)["D_ft"].mean
        5.0
    """
    names = ("D_f", "D_r", "D_ft", "D_rt", "HM", "HM_t")
    return {name: mean_and_sd([getattr(run, name) for run in runs]) for name in names}


def _pair(predictions: ArrayLike, labels: ArrayLike) -> tuple[Tensor, Tensor]:
    labels = torch.as_tensor(labels)
    labels = as_labels(labels, labels.shape[0] if labels.ndim else 1)
    if not labels.numel():
        raise InvalidValueError("There are no samples to score.")
    return as_labels(predictions, labels.shape[0], name="predictions"), labels


def area_under_roc(score: ArrayLike, positive: ArrayLike) -> float:
    """P(a positive scores above a negative), ties counted half, in percent; chance is 50.

    Args:
        score: [n], higher for positives; may be infinite.
        positive: Bool [n], with at least one of each.

    Raises:
        InvalidValueError: On shapes that differ, on NaN, or where one of the two kinds is missing.

    Example:
        >>> area_under_roc([3.0, 2.0, 2.0, 1.0], [True, True, False, False])
        87.5
    """
    from sklearn.metrics import auc

    return 100 * float(auc(*_roc(score, positive)))


def recall_at(score: ArrayLike, positive: ArrayLike, rate: float, weights: ArrayLike | None = None) -> float:
    """Share of positives accepted when the share `rate` of the negatives is, in percent: TPR at FPR, TAR at FAR.

    Scores equal to the threshold are accepted with the probability that makes the rate exact, the mean over random
    tie-breaking; so the ROC curve is interpolated, and where all scores are equal the recall is the rate.

    Args:
        score: [n], higher for positives; may be infinite.
        positive: Bool [n], with at least one of each.
        rate: Between 0 and 1.
        weights: How much each sample counts [n]; 1 by default.

    Raises:
        InvalidValueError: On shapes that differ, on NaN, or where one of the two kinds is missing.

    Example:
        >>> recall_at([3.0, 1.0, 2.0, 0.0], [True, True, False, False], rate=0.25)
        50.0
        >>> recall_at([0.0, 0.0, 0.0, 0.0], [True, True, False, False], rate=0.25)
        25.0
    """
    return 100 * float(np.interp(rate, *_roc(score, positive, weights)))


def _roc(score: ArrayLike, positive: ArrayLike, weights: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Shares of negatives and of positives at or above each distinct score, from none of them on down to all."""
    from sklearn.metrics import roc_curve

    score, positive = _flat(score, float), _flat(positive, bool)
    weights = None if weights is None else _flat(weights, float)
    shapes = {own.shape for own in (score, positive, weights) if own is not None}
    if score.ndim != 1 or len(shapes) > 1 or positive.all() or not positive.any():
        raise InvalidValueError(
            f"score {list(score.shape)}, positive {list(positive.shape)} with {int(positive.sum())} that hold, weights "
            f"{None if weights is None else list(weights.shape)}; there has to be one of each for every sample [n], and "
            "samples of both kinds."
        )
    alarms, recall, _ = roc_curve(positive, score, sample_weight=weights, drop_intermediate=False)
    return alarms, recall


def _flat(values: ArrayLike, dtype: type) -> np.ndarray:
    """Values [n] as an array; infinite scores become the largest finite ones, which changes no order."""
    array = np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, dtype=float)
    if missing := int(np.isnan(array).sum()):
        raise InvalidValueError(f"{missing:,} of {array.size:,} values are NaN, which have no order: leave them out.")
    return np.nan_to_num(array).astype(dtype)


def check_rate(rate: float, name: str) -> None:
    """Refuse what is not a rate.

    Raises:
        InvalidValueError: Unless 0 < rate < 1.

    Example:
        >>> check_rate(0.01, "far")
    """
    if not 0 < rate < 1:
        raise InvalidValueError(f"{name}={rate}; a rate is a fraction between 0 and 1: 0.01 stands for 1 %.")
