"""Nearest neighbours and class prototypes: classifiers that compare distances, and how they treat exact ties.

Each returns the probability with which each class is predicted. Erasers that map many inputs onto one vector produce
exact ties; breaking them by row order would let the order of the data set decide, so ties are broken at random and the
expectation is returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_kd.errors import InvalidValueError, check_choice

from ._inputs import ArrayLike, as_columns, as_features, as_labels, generator

Metric = Literal["l2", "cosine"]


def tie_shares(scores: Tensor, tolerance: float = 0.0) -> Tensor:
    """Probability of predicting each class when the highest score wins and ties are broken at random.

    Args:
        scores: [n, K].
        tolerance: Scores this near the highest are equal to it.

    Returns:
        Shares [n, K], float64, that add up to 1 in each row.

    Example:
        >>> tie_shares(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])).tolist()
        [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    """
    best = scores >= scores.max(dim=1, keepdim=True).values - tolerance
    return best.double() / best.sum(dim=1, keepdim=True)


def _checked(train: ArrayLike, train_labels: ArrayLike, test: ArrayLike) -> tuple[Tensor, Tensor, Tensor]:
    """Train features, test features and train labels, on the device of the first."""
    train = as_features(train, "training features")
    test = as_columns(test, train.shape[1], "test features").to(train.device)
    return train, test, as_labels(train_labels, train.shape[0], train.device, "training labels")


def knn_predictions(
    train: ArrayLike,
    train_labels: ArrayLike,
    test: ArrayLike,
    k: int = 20,
    metric: Metric = "l2",
    draws: int = 8,
    seed: int = 0,
) -> Tensor:
    """Probability that a k-nearest-neighbour vote predicts each class.

    Training rows that are one and the same vector (for cosine: the same direction) lie at one distance. Where only some
    of them fit among the k nearest, that many are drawn from them without replacement, `draws` times; tied votes are
    shared.

    Args:
        train: Features [n, d].
        train_labels: [n].
        test: Features [m, d].
        k: Neighbours that vote; all where there are fewer.
        metric: Euclidean distance or angle.
        draws: Times that ties at the boundary are drawn.
        seed: Of these draws.

    Returns:
        Shares [m, K], a column for each class in ascending order.

    Raises:
        InvalidValueError: On malformed input, k below 1, an unknown metric.

    Example:
        >>> train, labels = torch.tensor([[0.0], [1.0], [5.0], [6.0]]), torch.tensor([0, 0, 1, 1])
        >>> knn_predictions(train, labels, torch.tensor([[0.4], [5.1]]), k=2).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    train, test, train_labels = _checked(train, train_labels, test)
    classes, targets = train_labels.unique(return_inverse=True)
    if k < 1:
        raise InvalidValueError(f"k is {k}; a vote needs at least one neighbour.")
    k = min(k, train.shape[0])
    reference, queries = _metric_space(train, test, metric)
    if metric == "cosine":  # equal directions of other lengths are one vector
        reference, queries = (x.mul(2**20).round().div(2**20) for x in (reference, queries))
    reference, queries = reference.float(), queries.float()
    points, group = distinct_rows(reference)
    size = group.bincount(minlength=points.shape[0])
    counts = torch.zeros(points.shape[0], classes.numel(), dtype=torch.int32, device=train.device)
    counts.index_put_((group, targets), torch.ones_like(targets, dtype=torch.int32), accumulate=True)
    half_norm = points.square().sum(dim=1) / 2
    rng = np.random.default_rng(seed)
    out = []
    for part in queries.split(max(1, 2**25 // points.shape[0])):
        closeness = torch.addmm(-half_norm, part, points.T)
        nearest = closeness.topk(min(k, points.shape[0]), dim=1).indices
        out.append(_vote(size[nearest], counts[nearest], k, draws, rng))
    return torch.cat(out)


def _vote(members: Tensor, counts: Tensor, k: int, draws: int, rng: np.random.Generator) -> Tensor:
    """Shares [n, K] of the k nearest rows: `members` [n, j] and `counts` [n, j, K] are of groups of equal ones, in order."""
    before = members.cumsum(dim=1) - members
    taken = (k - before).clamp_min(0).minimum(members)
    whole = (taken == members) & (taken > 0)
    votes = torch.einsum("nj,njc->nc", whole.double(), counts.double())
    partial = (taken > 0) & ~whole  # at most one a row: the group at the boundary
    rows = torch.nonzero(partial.any(dim=1)).flatten()
    shares = tie_shares(votes)
    if rows.numel():
        at = partial[rows].double().argmax(dim=1)
        pool, wanted = counts[rows, at].cpu().numpy(), taken[rows, at].cpu().numpy()
        drawn = [_draw_without_replacement(pool, wanted, rng) for _ in range(draws)]
        drawn = [tie_shares(votes[rows] + torch.from_numpy(d).to(votes)) for d in drawn]
        shares[rows] = sum(drawn) / draws
    return shares


def _draw_without_replacement(pool: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Multivariate hypergeometric draws: from each row of class counts [m, K], wanted [m] members at random."""
    drawn = np.zeros_like(pool)
    left, rest = wanted.astype(np.int64), pool.sum(axis=1).astype(np.int64)
    for column in range(pool.shape[1]):
        rest = rest - pool[:, column]
        drawn[:, column] = rng.hypergeometric(pool[:, column], rest, left)
        left = left - drawn[:, column]
    return drawn


def _metric_space(train: Tensor, test: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Both in float64: centred, which keeps float32 distances accurate far from the origin, or of length one."""
    check_choice("metric", metric, ("l2", "cosine"))
    if metric == "cosine":
        return F.normalize(train.double(), dim=1), F.normalize(test.double(), dim=1)
    mean = train.double().mean(dim=0)
    return train.double() - mean, test.double() - mean


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows and, for every row, which of them it is; compared as bytes, so only exact copies are one.

    Args:
        rows: [n, d].

    Returns:
        The distinct rows [m, d], and for every row its number among them [n].

    Example:
        >>> points, group = distinct_rows(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]]))
        >>> len(points), bool(group[0] == group[2])
        (2, True)
    """
    wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    array = np.ascontiguousarray((wide + 0.0).cpu().numpy())  # + 0.0 turns -0.0 into 0.0
    keys = array.view(np.dtype((np.void, array.dtype.itemsize * array.shape[1]))).ravel()
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    return rows[torch.from_numpy(first).to(rows.device)], torch.from_numpy(group.ravel()).to(rows.device)


def prototype_predictions(
    train: ArrayLike,
    train_labels: ArrayLike,
    test: ArrayLike,
    forget: tuple[int, ...],
    shots: int,
    metric: Metric = "l2",
    draws: int = 20,
    seed: int = 0,
) -> Tensor:
    """Probability of each class by the nearest class mean, with few labelled samples of forgotten classes.

    The mean over `prototype_draws`, which see for arguments and errors.

    Returns:
        Shares [m, K], a column for each class in ascending order.

    Example:
        >>> train, labels = torch.tensor([[0.0], [1.0], [5.0], [6.0]]), torch.tensor([0, 0, 1, 1])
        >>> prototype_predictions(train, labels, torch.tensor([[0.4], [5.1]]), forget=(0,), shots=1).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    drawn = list(prototype_draws(train, train_labels, test, forget, shots, metric, draws, seed))
    return reduce(torch.add, drawn) / len(drawn)


def prototype_draws(
    train: ArrayLike,
    train_labels: ArrayLike,
    test: ArrayLike,
    forget: tuple[int, ...],
    shots: int,
    metric: Metric = "l2",
    draws: int = 20,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Nearest class mean, once for every random choice of `shots` labelled samples of each forgotten class.

    Retained means come from all their training samples. Means at the same distance up to rounding share the prediction.
    A single draw is made where all forgotten samples are used.

    Args:
        train: Features [n, d].
        train_labels: [n].
        test: Features [m, d].
        forget: The forgotten classes.
        shots: Labelled samples of each of them.
        metric: Euclidean distance or angle.
        draws: Choices of the samples.
        seed: Of these choices.

    Yields:
        Shares [m, K], a column for each class in ascending order.

    Raises:
        InvalidValueError: On malformed input, shots below 1, an unknown metric, a forgotten class without a sample.

    Example:
        >>> train, labels = torch.tensor([[0.0], [1.0], [5.0], [6.0]]), torch.tensor([0, 0, 1, 1])
        >>> len(list(prototype_draws(train, labels, torch.tensor([[0.4]]), forget=(0,), shots=1, draws=3)))
        3
    """
    train, test, train_labels = _checked(train, train_labels, test)
    classes, targets = train_labels.unique(return_inverse=True)
    if shots < 1:
        raise InvalidValueError(f"shots is {shots}; a prototype needs at least one labelled sample.")
    absent = sorted(set(forget) - set(classes.tolist()))
    if absent:
        raise InvalidValueError(
            f"No training sample has a label among the forgotten classes {absent}; a prototype is the mean of samples. Add "
            "some, or leave these classes out."
        )
    reference, queries = _metric_space(train, test, metric)
    sums = reference.new_zeros(classes.numel(), train.shape[1]).index_add_(0, targets, reference)
    means = sums / targets.bincount(minlength=classes.numel()).unsqueeze(1)
    members = {
        column: torch.nonzero(targets == column).flatten()
        for column in torch.searchsorted(classes, torch.tensor(forget, device=classes.device)).tolist()
    }
    if shots >= max(rows.numel() for rows in members.values()):
        draws = 1
    rng = generator(seed)
    # 1e-9: class means of one repeated vector differ by float64 rounding only
    tolerance = 1e-9 * float(queries.square().sum(dim=1).mean())
    scores = _closeness(queries, means, metric)
    for _ in range(draws):
        for column, rows in members.items():
            chosen = rows[torch.randperm(rows.numel(), generator=rng)[:shots].to(rows.device)]
            scores[:, column] = _closeness(queries, reference[chosen].mean(dim=0, keepdim=True), metric)[:, 0]
        yield tie_shares(scores, tolerance)


def _closeness(queries: Tensor, means: Tensor, metric: str) -> Tensor:
    if metric == "cosine":
        return queries @ F.normalize(means, dim=1).T
    return queries @ means.T - means.square().sum(dim=1) / 2
