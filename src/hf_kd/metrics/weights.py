"""What forgetting moved, for two figures of the paper: weights tensor by tensor (Fig. 2), class means (Fig. 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from ._inputs import CHUNK, ArrayLike, aligned_chunks, as_features, as_labels, same_shape

REMOVED = -1e3
"""A bias of a head at or below this is that of a class that is never answered (-1e4 or -inf): a mark, and no distance."""


@dataclass(frozen=True)
class TensorDistance:
    """How far one tensor, or one group of tensors, moved."""

    name: str
    frobenius: float
    """||theta_u - theta_o||_F."""
    original: float
    """||theta_o||_F."""
    relative: float | None
    """The one over the other; None where the original is zero throughout."""
    mean_abs: float
    """mean |theta_u - theta_o| per entry."""
    entries: int
    not_finite: int
    """Entries that are not finite in one of the two, or the bias of a class that is never answered; left out of every
    distance."""


@dataclass(frozen=True)
class WeightDistance:
    """Layer-wise weight distance of two state dicts; ESC is 0 throughout, or head only once folded."""

    tensors: tuple[TensorDistance, ...]
    head: TensorDistance
    other: TensorDistance
    total: TensorDistance


@dataclass(frozen=True)
class ClassMeanCosines:
    """The cosine heat-map of class means, before and after erasing (Fig. 3)."""

    classes: tuple[int, ...]
    before: np.ndarray
    """cos(mu_i, mu_j), [C, C]."""
    after: np.ndarray
    """cos(mu_i, erased mu_j), [C, C]: rows are original, columns erased."""
    after_own: np.ndarray
    """cos(erased mu_i, erased mu_j), [C, C]: of features whose directions have nothing to do with the original's."""
    norms_before: np.ndarray
    """||mu_i||, [C]."""
    norms_after: np.ndarray
    """||erased mu_j||, [C]. Where it is a small part of ||mu_j||, that column's cosines describe a remainder."""


def weight_distance(
    original: Mapping[str, Tensor], current: Mapping[str, Tensor], head: Sequence[str] = ("classifier", "head", "fc")
) -> WeightDistance:
    """How far each floating-point tensor moved, grouped into head and everything else (Fig. 2).

    The paper does not give its normalisation, so the relative Frobenius norm and the mean absolute change are both
    reported. Buffers such as BatchNorm's running statistics are included: they change outputs as weights do.

    Args:
        original: State dict before.
        current: State dict after, with the same names and shapes.
        head: Full names of modules; a tensor belongs to the head when its name begins with one of them ("classifier" matches
            "classifier.1.weight", not "model.classifier.bias" nor "gate.classifier.bias").

    Raises:
        InvalidValueError: When the state dicts differ in names or shapes, or no tensor belongs to the head.

    Example:
        >>> before = {"body.weight": torch.ones(2, 2), "head.weight": torch.ones(2, 2)}
        >>> moved = weight_distance(before, before | {"head.weight": 2 * torch.ones(2, 2)})
        >>> moved.head.relative, moved.other.frobenius
        (1.0, 0.0)
    """
    if original.keys() != current.keys():
        difference = sorted(original.keys() ^ current.keys())
        raise InvalidValueError(
            f"The state dicts differ in {len(difference)} names ({', '.join(difference[:4])}); both have to come from "
            "the same architecture. Compare the inner models, without eraser and wrapper."
        )
    rows: list[tuple[str, float, float, float, int, int]] = []
    heads = tuple(f"{name}." for name in head)
    for name, before in original.items():
        after = current[name]
        if not before.is_floating_point():
            continue
        if before.shape != after.shape:
            raise InvalidValueError(
                f"{name} has shape {tuple(before.shape)} and {tuple(after.shape)}; layer-wise distance needs equal "
                "shapes. Compare models with the same head."
            )
        a, b = before.detach().cpu().double(), after.detach().cpu().double()
        finite = torch.isfinite(a) & torch.isfinite(b)
        if name.startswith(heads) and name.endswith(".bias"):
            finite &= torch.minimum(a, b) > REMOVED
        delta = (b - a)[finite]
        squares, size = float((delta**2).sum()), float((a[finite] ** 2).sum())
        rows.append((name, squares, size, float(delta.abs().sum()), delta.numel(), a.numel() - delta.numel()))
    in_head = [row[0].startswith(heads) for row in rows]
    if not any(in_head):
        raise InvalidValueError(
            f"No tensor lies in a module {', '.join(map(repr, head))}; give the full name of the classification head's "
            f"module in head=. The last tensor is {rows[-1][0] if rows else 'missing: no floating-point tensors'!r}."
        )
    return WeightDistance(
        tensors=tuple(_distance(row[0], [row]) for row in rows),
        head=_distance("head", [row for row, inside in zip(rows, in_head, strict=True) if inside]),
        other=_distance("other", [row for row, inside in zip(rows, in_head, strict=True) if not inside]),
        total=_distance("total", rows),
    )


def class_mean_cosines(features: ArrayLike, erased_features: ArrayLike, labels: ArrayLike) -> ClassMeanCosines:
    """Cosines, not centred, between class means before and after erasing, and the means' lengths (Fig. 3).

    One eraser for all rows shows what one request does to every class. The paper's right panel erases each class in turn:
    pass erased features in which the rows of class j went through the eraser fitted on class j. A mean of length 0 has
    cosine 0 to everything.

    Args:
        features: [n, d].
        erased_features: [n, d] of the same samples.
        labels: [n].

    Raises:
        InvalidValueError: On features of different shapes, or malformed labels.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> found = class_mean_cosines(x, x * torch.tensor([0.0, 1.0]), [0, 1])
        >>> found.after.tolist(), found.norms_after.tolist()
        ([[0.0, 0.0], [0.0, 1.0]], [0.0, 2.0])
    """
    x = as_features(features, "features")
    y = as_features(erased_features, "erased features").to(x.device)
    same_shape(x, y, "features and erased_features")
    classes, index = torch.unique(as_labels(labels, len(x), x.device), return_inverse=True)
    before, after = (_means(matrix, index, len(classes)) for matrix in (x, y))
    norms_before, norms_after = (torch.linalg.vector_norm(means, dim=1) for means in (before, after))
    unit_before = before / norms_before.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    unit_after = after / norms_after.clamp(min=torch.finfo(torch.float64).tiny)[:, None]
    return ClassMeanCosines(
        classes=tuple(classes.tolist()),
        before=(unit_before @ unit_before.T).numpy(),
        after=(unit_before @ unit_after.T).numpy(),
        after_own=(unit_after @ unit_after.T).numpy(),
        norms_before=norms_before.numpy(),
        norms_after=norms_after.numpy(),
    )


def _distance(name: str, rows: Sequence[tuple[str, float, float, float, int, int]]) -> TensorDistance:
    squares, size, absolute, entries, not_finite = (
        sum(column) for column in list(zip(*rows, strict=True))[1:] or [()] * 5
    )
    return TensorDistance(
        name=name,
        frobenius=math.sqrt(squares),
        original=math.sqrt(size),
        relative=math.sqrt(squares / size) if size else None,
        mean_abs=absolute / entries if entries else 0.0,
        entries=entries,
        not_finite=not_finite,
    )


def _means(matrix: Tensor, index: Tensor, classes: int) -> Tensor:
    sums = torch.zeros(classes, matrix.shape[1], dtype=torch.float64, device=matrix.device)
    for (part,), rows in zip(aligned_chunks(matrix), index.split(CHUNK), strict=True):
        sums.index_add_(0, rows, part)
    return (sums / torch.bincount(index, minlength=classes)[:, None]).cpu()
