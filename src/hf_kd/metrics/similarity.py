"""How far two models, or one model before and after erasing, are apart: in outputs, in features, in weights.

None of these says whether knowledge is gone: ZRF and the distances look at outputs, CKA is blind to rotations and to
the mean, and ESC changes no weight at all. They describe side effects, and are reported beside the probes.

Distances between outputs compare softmax probabilities; logits may be -inf for removed classes. Everything is
computed in float64, in chunks of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from ._inputs import ArrayLike, aligned_chunks, as_features, as_logits, same_shape
from .neighbours import distinct_rows
from .scaling import unit_rows

NEGLIGIBLE = 1e-12
"""Centred energy below this share of the total is rounding: float32 rows that are equal differ by about 1e-7."""


@dataclass(frozen=True)
class ActivationDistances:
    """Distances between the softmax outputs of two models on the same images; 0 when equal."""

    l1: float
    """mean_i ||p_i - q_i||_1, in [0, 2] (Golatkar et al.)."""
    l2: float
    """mean_i ||p_i - q_i||_2, in [0, sqrt 2] (BadT, SSD)."""
    rms: float
    """sqrt(mean_i ||p_i - q_i||_2^2), in [0, sqrt 2] (SUPREME)."""


@dataclass(frozen=True)
class CosineAgreement:
    """Cosine between the two vectors of each sample, not centred."""

    mean: float
    sd: float
    """Over samples."""
    zero_rows: int
    """Samples whose vector is zero in one of the two; their cosine counts as 0."""


def js_divergence(logits: ArrayLike, other_logits: ArrayLike, log_base: float = math.e) -> Tensor:
    """Jensen-Shannon divergence of each sample's softmax outputs.

    JS(p, q) = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2.

    Args:
        logits: [n, C].
        other_logits: [n, C].
        log_base: Unit of the result: e for nats, 2 for bits.

    Returns:
        float64 [n] in [0, log 2 / log `log_base`].

    Raises:
        InvalidValueError: On logits of different shapes, or a base of 1 or less.

    Example:
        >>> js_divergence(torch.tensor([[0.0, float("-inf")]]), torch.tensor([[float("-inf"), 0.0]]), log_base=2).tolist()
        [1.0]
    """
    _check_base(log_base)
    divergences = []
    for p, q in _probabilities(logits, other_logits):
        middle = (p + q) / 2
        nats = sum(((torch.xlogy(r, r) - torch.xlogy(r, middle)).sum(1) for r in (p, q)), start=p.new_zeros(len(p))) / 2
        divergences.append(nats.clamp(0, math.log(2)) / math.log(log_base))
    return torch.cat(divergences).cpu()


def zrf(logits: ArrayLike, random_logits: ArrayLike, log_base: float = 2) -> float:
    """Zero-retrain forgetting, 1 - mean JS to a randomly initialised model on D_f (Chundawat et al.).

    1 means that the model answers like a random one. A randomly initialised model answers nearly uniformly, so uniform
    outputs score close to 1.

    Args:
        logits: [n, C].
        random_logits: [n, C] of the random model.
        log_base: In base 2 the score spans [0, 1]; in nats it cannot fall below 1 - ln 2.

    Raises:
        InvalidValueError: As `js_divergence`.

    Example:
        >>> zrf(torch.zeros(2, 3), torch.zeros(2, 3))
        1.0
    """
    return 1 - float(js_divergence(logits, random_logits, log_base).mean())


def activation_distances(logits: ArrayLike, other_logits: ArrayLike) -> ActivationDistances:
    """Mean L1, mean L2 and root-mean-square L2 distance of softmax outputs; papers use each under the same name.

    Args:
        logits: [n, C].
        other_logits: [n, C].

    Raises:
        InvalidValueError: On logits of different shapes.

    Example:
        >>> activation_distances(torch.zeros(2, 3), torch.zeros(2, 3))
        ActivationDistances(l1=0.0, l2=0.0, rms=0.0)
    """
    l1, l2 = [], []
    for p, q in _probabilities(logits, other_logits):
        l1.append((p - q).abs().sum(1))
        l2.append(torch.linalg.vector_norm(p - q, dim=1))
    distance = torch.cat(l2)
    return ActivationDistances(
        l1=float(torch.cat(l1).mean()), l2=float(distance.mean()), rms=float((distance**2).mean().sqrt())
    )


def completeness(logits: ArrayLike, reference_logits: ArrayLike) -> float:
    """Share of samples on which both models predict the same class, in percent; the reference is usually retrained.

    Args:
        logits: [n, C].
        reference_logits: [n, C].

    Raises:
        InvalidValueError: On logits of different shapes.

    Example:
        >>> completeness(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        50.0
    """
    a, b = as_logits(logits, "logits"), as_logits(reference_logits, "reference_logits")
    same_shape(a, b, "logits and reference_logits")
    return 100 * float((a.argmax(1) == b.argmax(1).to(a.device)).double().mean())


def linear_cka(features: ArrayLike, other_features: ArrayLike) -> float:
    """Linear centred kernel alignment, in [0, 1]: 1 when equal up to rotation, scale and shift.

    ||Yc^T Xc||_F^2 / (||Xc^T Xc||_F ||Yc^T Yc||_F) with columns centred (Kornblith et al. 2019). Biased upwards when n
    is not much larger than d. Centring hides the removal of a common mean, which is most of what ESC at k = 1 does: read
    it with `uncentred_cosine`. Features that are all equal align with nothing: 0.

    Args:
        features: [n, d].
        other_features: [n, d'].

    Raises:
        InvalidValueError: On different numbers of samples.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [5.0, 3.0]])
        >>> round(linear_cka(x, 3 * x.flip(1) + 7), 6)
        1.0
    """
    x, y = as_features(features, "features"), as_features(other_features, "other features")
    same_shape(x, y, "features and other_features", rows_only=True)
    mean_x, mean_y = (sum(columns) / len(x) for columns in zip(*_column_sums(x, y), strict=True))
    size = x.shape[1] + y.shape[1]
    gram = torch.zeros(size, size, dtype=torch.float64, device=x.device)
    total_x = total_y = 0.0
    for part_x, part_y in aligned_chunks(x, y):
        total_x, total_y = total_x + float((part_x**2).sum()), total_y + float((part_y**2).sum())
        both = torch.cat([part_x - mean_x, part_y - mean_y], dim=1)
        gram += both.T @ both
    xx, yy = gram[: x.shape[1], : x.shape[1]], gram[x.shape[1] :, x.shape[1] :]
    if float(xx.trace()) <= NEGLIGIBLE * total_x or float(yy.trace()) <= NEGLIGIBLE * total_y:
        return 0.0
    return float((gram[: x.shape[1], x.shape[1] :] ** 2).sum() / (torch.linalg.norm(xx) * torch.linalg.norm(yy)))


def uncentred_cosine(features: ArrayLike, other_features: ArrayLike) -> CosineAgreement:
    """Cosine between each sample's original and erased feature; 1 when only lengths changed.

    Args:
        features: [n, d].
        other_features: [n, d].

    Raises:
        InvalidValueError: On different shapes.

    Example:
        >>> uncentred_cosine(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[6.0, 8.0], [0.0, 0.0]]))
        CosineAgreement(mean=0.5, sd=0.5, zero_rows=1)
    """
    x, y = as_features(features, "features"), as_features(other_features, "other features")
    same_shape(x, y, "features and other_features")
    cosines, zero_rows = [], 0
    for parts in aligned_chunks(x, y):
        (a, length_a), (b, length_b) = map(unit_rows, parts)
        cosines.append((a * b).sum(1))
        zero_rows += int(((length_a == 0) | (length_b == 0)).sum())
    cosine = torch.cat(cosines)
    return CosineAgreement(float(cosine.mean()), float(cosine.std(unbiased=False)), zero_rows)


def share_changed(original: ArrayLike, erased: ArrayLike, tolerance: float = 0.0) -> float:
    """Percent of rows that differ in any entry by more than `tolerance`.

    Args:
        original: Features [n, d].
        erased: Features [n, d] of the same samples.
        tolerance: In the features' own unit.

    Raises:
        InvalidValueError: On unequal shapes.

    Example:
        >>> share_changed(torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
        50.0
    """
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
    """Count exact copies among the rows of features.

    Args:
        features: [n, d].

    Raises:
        InvalidValueError: On malformed features.

    Example:
        >>> repeated_vectors(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [5.0, 6.0]]))
        RepeatedVectors(rows=4, distinct=3, repeated=1, share=50.0, largest=2)
    """
    features = as_features(features)
    _, group = distinct_rows(features)
    sizes = group.bincount()
    shared = sizes[sizes > 1]
    share = 100 * int(shared.sum()) / features.shape[0]
    return RepeatedVectors(features.shape[0], sizes.numel(), shared.numel(), share, int(sizes.max()))


def _column_sums(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for part_x, part_y in aligned_chunks(x, y):
        yield part_x.sum(0), part_y.sum(0)


def _probabilities(logits: ArrayLike, other_logits: ArrayLike) -> Iterator[tuple[Tensor, Tensor]]:
    a, b = as_logits(logits, "logits"), as_logits(other_logits, "other_logits")
    same_shape(a, b, "logits and other_logits")
    for part_a, part_b in aligned_chunks(a, b):
        yield torch.softmax(part_a, 1), torch.softmax(part_b, 1)


def _check_base(log_base: float) -> None:
    if not log_base > 1:
        raise InvalidValueError(f"log_base={log_base}; use 2 for a score in [0, 1], or math.e for nats.")
