"""What an eraser visibly does to a feature matrix: how many rows it changes, and how many it makes the same."""

from __future__ import annotations

from dataclasses import dataclass

from hf_kd.errors import InvalidValueError

from ._inputs import ArrayLike, as_features
from .nonlinear_probes import distinct_rows


def share_changed(original: ArrayLike, erased: ArrayLike, tolerance: float = 0.0) -> float:
    """Percent of rows [n, d] that differ in any entry by more than `tolerance`; raises ValueError on unequal shapes."""
    before, after = as_features(original, "original features"), as_features(erased, "erased features")
    if before.shape != after.shape:
        raise InvalidValueError(
            f"Shapes {tuple(before.shape)} and {tuple(after.shape)} differ; compare the same samples."
        )
    difference = (after.to(before.device).double() - before.double()).abs().amax(dim=1)
    return 100 * float((difference > tolerance).double().mean())


@dataclass(frozen=True)
class RepeatedVectors:
    """How many inputs share their feature vector with another input, bit for bit."""

    rows: int
    distinct: int
    """Different vectors among all rows."""
    repeated: int
    """Vectors that occur more than once."""
    share: float
    """Percent of rows whose vector occurs more than once."""
    largest: int
    """Rows that share the most frequent vector."""


def repeated_vectors(features: ArrayLike) -> RepeatedVectors:
    """Count exact copies among the rows of features [n, d]."""
    features = as_features(features)
    _, group = distinct_rows(features)
    sizes = group.bincount()
    shared = sizes[sizes > 1]
    share = 100 * int(shared.sum()) / features.shape[0]
    return RepeatedVectors(features.shape[0], sizes.numel(), shared.numel(), share, int(sizes.max()))
