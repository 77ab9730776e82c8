"""What the membership, similarity and identity scores share: checked logits, float64 chunks, and the rates they report.

Features and labels are checked in `preparation`; logits differ in that -inf is allowed. Errors name the argument, the
value found, the rule and the way out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from ._inputs import ArrayLike, as_labels

CHUNK = 4096
"""Rows promoted to float64 at a time: bounds the memory of every pass to CHUNK x columns."""

LOG_FLOOR = -100.0
"""Log-probabilities are clipped here, as SCRUB clips its losses: a class whose logit was removed has log p = -inf."""


def as_logits(values: ArrayLike, name: str, dims: int = 2) -> Tensor:
    """Logits [..., C] as a tensor; -inf is a class the model cannot answer (head surgery, masking) and is allowed.

    Raises ValueError on NaN, +inf, rows that are -inf throughout, fewer than two classes, or another number of
    dimensions than `dims`.
    """
    logits = torch.as_tensor(values).detach()
    if not logits.is_floating_point():
        raise InvalidValueError(f"{name} has dtype {logits.dtype}; logits are floating point. Convert them to float32.")
    if logits.ndim != dims or 0 in logits.shape or logits.shape[-1] < 2:
        raise InvalidValueError(
            f"{name} has shape {tuple(logits.shape)}; logits need {dims} dimensions, at least one sample and at least "
            "two classes in the last one."
        )
    if torch.isnan(logits).any() or torch.isposinf(logits).any():
        raise InvalidValueError(
            f"{name} contains NaN or +inf; logits have to be finite, or -inf for a class that was removed from the "
            "head. Compute them in float32."
        )
    if torch.isneginf(logits).all(dim=-1).any():
        raise InvalidValueError(
            f"{name} has rows in which every logit is -inf: the softmax of such a row does not exist."
        )
    return logits.cpu() if logits.device.type == "mps" else logits  # no float64 there


def as_classes(values: ArrayLike, logits: Tensor, name: str) -> Tensor:
    """The true class of each row of `logits` [n, C], int64 [n] on its device; raises ValueError outside 0..C-1."""
    labels = as_labels(values, logits.shape[-2], logits.device, name)
    if int(labels.max()) >= logits.shape[-1]:
        raise InvalidValueError(
            f"The {name} reach {int(labels.max())}, but the logits have {logits.shape[-1]} columns; labels have to lie "
            f"in 0..{logits.shape[-1] - 1}. Map the dataset's labels to the model's own ids first."
        )
    return labels


def same_shape(a: Tensor, b: Tensor, names: str, rows_only: bool = False) -> None:
    """Raise ValueError unless two matrices describe the same samples (and, unless `rows_only`, the same columns)."""
    if a.shape[0] != b.shape[0] or (not rows_only and a.shape != b.shape):
        rule = "the same samples in the same order" + ("" if rows_only else " and the same columns")
        raise InvalidValueError(f"{names} have shapes {tuple(a.shape)} and {tuple(b.shape)}; they have to hold {rule}.")


def aligned_chunks(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same few thousand rows of each matrix, in float64 on the device of the first."""
    for start in range(0, len(matrices[0]), CHUNK):
        yield tuple(matrix[start : start + CHUNK].to(matrices[0].device, torch.float64) for matrix in matrices)


def unit_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Rows scaled to length 1, float64 [n, d], and their lengths [n]; a row of zeros stays one: cosine 0 to all."""
    matrix = matrix.to(torch.float64)
    lengths = torch.linalg.vector_norm(matrix, dim=1)
    return matrix / torch.where(lengths > 0, lengths, torch.ones_like(lengths))[:, None], lengths


def acceptance(scores: np.ndarray, negatives: np.ndarray, rate: float) -> np.ndarray:
    """Probability that each score is accepted by the test that accepts exactly the share `rate` of the negatives.

    Scores equal to the threshold are accepted with the probability that makes the rate exact: the mean over random
    tie-breaking. Where all scores are equal each is accepted with probability `rate`, which is chance.
    """
    threshold = threshold_at(negatives, rate)
    above, tied = np.sum(negatives > threshold), np.sum(negatives == threshold)
    share = (rate * len(negatives) - above) / tied
    return np.where(scores == threshold, share, (scores > threshold).astype(float))


def threshold_at(negatives: np.ndarray, rate: float) -> float:
    """The score which at most the share `rate` of the negatives exceeds."""
    return float(np.sort(negatives)[::-1][min(int(rate * len(negatives)), len(negatives) - 1)])


def percent_accepted(positives: np.ndarray, negatives: np.ndarray, rate: float) -> float:
    """Share of positives accepted when the share `rate` of the negatives is, in percent: TPR at FPR, TAR at FAR."""
    return 100 * float(np.mean(acceptance(positives, negatives, rate)))


def area_under_curve(positives: np.ndarray, negatives: np.ndarray) -> float:
    """P(positive scores above negative), ties counted half, in percent (Mann-Whitney)."""
    ordered = np.sort(negatives)
    wins = np.searchsorted(ordered, positives, side="left") + np.searchsorted(ordered, positives, side="right")
    return 100 * float(np.mean(wins)) / (2 * len(ordered))


def check_rate(rate: float, name: str) -> None:
    """Raise ValueError unless 0 < rate < 1."""
    if not 0 < rate < 1:
        raise InvalidValueError(f"{name}={rate}; a rate is a fraction between 0 and 1: 0.01 stands for 1 %.")
