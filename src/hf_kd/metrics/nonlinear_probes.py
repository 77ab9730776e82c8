"""Probes that are not linear, and few-shot prototypes: an eraser that only fools a linear reader has erased little.

Each returns either class scores or, where ties matter, the probability with which each class is predicted. Erasers that
map many inputs onto one vector produce exact ties; breaking them by row order would let the order of the data set
decide, so ties are broken at random and the expectation is returned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hf_kd.errors import InvalidValueError

from ._inputs import ROWS_PER_CHUNK, FeatureScale, fit_standardisation, generator, principal_scales, stratified_subset
from .linear_probe import SAMPLES_PER_DIRECTION, require_classes


def tie_shares(scores: Tensor, tolerance: float = 0.0) -> Tensor:
    """Probability [n, K] of predicting each class when the highest score wins and ties are broken at random."""
    best = scores >= scores.max(dim=1, keepdim=True).values - tolerance
    return best.double() / best.sum(dim=1, keepdim=True)


@dataclass(frozen=True, eq=False)
class MLPProbe:
    """A fitted multi-layer perceptron on rescaled features."""

    scale: FeatureScale
    layers: tuple[tuple[Tensor, Tensor], ...]
    """(weight [out, in], bias [out]) of each layer, float32."""
    classes: Tensor
    held_out_loss: float
    """Cross-entropy in nats on the tenth of the training samples that chose the epoch."""
    epochs: int

    def logits(self, features: Tensor) -> Tensor:
        """Class scores [n, K] in float32."""
        with torch.no_grad():
            return _perceptron(self.scale(features, torch.float32), self.layers)


def fit_mlp_probe(
    features: Tensor,
    labels: Tensor,
    hidden: tuple[int, ...] = (256,),
    *,
    geometry: Literal["whitened", "standardised"] = "whitened",
    learning_rate: float = 2e-3,
    weight_decay: float = 1e-2,
    batch_size: int = 256,
    seed: int = 0,
) -> MLPProbe:
    """A ReLU network with AdamW and a one-cycle rate; the epoch with the lowest held-out loss (a tenth) is kept.

    About 1,200 steps whatever n is, between 12 and 60 epochs. With fewer than 10 samples a direction `whitened` uses
    the principal axes at their own spread instead, where a network generalises far better.
    """
    classes, targets = require_classes(labels)
    scale = nonlinear_scale(features, geometry)
    rng = generator(seed)
    held_out = torch.zeros_like(targets, dtype=torch.bool)
    held_out[stratified_subset(targets, 0.1, rng)] = True
    held_out &= targets.bincount()[targets] > 1
    x = scale(features, torch.float32)
    fit_x, fit_y, val_x, val_y = x[~held_out], targets[~held_out], x[held_out], targets[held_out]
    widths = (x.shape[1], *hidden, classes.numel())
    parameters = []
    for fan_in, fan_out in pairwise(widths):
        weight = torch.randn(fan_out, fan_in, generator=rng) * math.sqrt(2 / max(1, fan_in))
        parameters += [weight.to(x.device).requires_grad_(), x.new_zeros(fan_out).requires_grad_()]
    layers = list(zip(parameters[::2], parameters[1::2], strict=True))
    steps_per_epoch = math.ceil(fit_x.shape[0] / batch_size)
    epochs = min(60, max(12, round(1200 / steps_per_epoch)))
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=epochs * steps_per_epoch)
    best, kept = math.inf, None
    for _ in range(epochs):
        order = torch.randperm(fit_x.shape[0], generator=rng).to(x.device)
        for rows in order.split(batch_size):
            loss = F.cross_entropy(_perceptron(fit_x[rows], layers), fit_y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            value = float(F.cross_entropy(_perceptron(val_x, layers), val_y)) if val_y.numel() else -1.0
        if value < best or kept is None or not val_y.numel():
            best, kept = value, [tensor.detach().clone() for tensor in parameters]
    return MLPProbe(scale, tuple(zip(kept[::2], kept[1::2], strict=True)), classes, best, epochs)


def nonlinear_scale(features: Tensor, geometry: str) -> FeatureScale:
    """`standardised`, or `whitened` where samples allow it and the principal axes at their own spread where not."""
    if geometry == "standardised":
        return fit_standardisation(features)
    if geometry != "whitened":
        raise InvalidValueError(f"geometry is {geometry!r}; expected 'whitened' or 'standardised'.")
    scales = principal_scales(features)
    few = features.shape[0] < SAMPLES_PER_DIRECTION * scales["whitened"].rank
    return scales["principal" if few else "whitened"]


def _perceptron(x: Tensor, layers) -> Tensor:
    for weight, bias in layers[:-1]:
        x = F.relu(F.linear(x, weight, bias))
    return F.linear(x, *layers[-1])


@dataclass(frozen=True, eq=False)
class RBFProbe:
    """Ridge regression on random Fourier features: an approximate kernel classifier with a Gaussian kernel."""

    scale: FeatureScale
    frequencies: Tensor
    """[rank, m]."""
    phases: Tensor
    """[m]."""
    weight: Tensor
    """[m + 1, K]; the last row is the intercept."""
    classes: Tensor
    bandwidth: float
    ridge: float

    def logits(self, features: Tensor) -> Tensor:
        """Regression scores [n, K]: near 1 for the predicted class, near 0 for others."""
        mapped = _fourier(self.scale(features, torch.float32), self.frequencies, self.phases)
        return torch.addmm(self.weight[-1], mapped, self.weight[:-1])


def fit_rbf_probe(
    features: Tensor,
    labels: Tensor,
    components: int = 1024,
    *,
    geometry: Literal["standardised", "whitened"] = "standardised",
    seed: int = 0,
) -> RBFProbe:
    """Random Fourier features of a Gaussian kernel, then ridge regression on one-hot labels in closed form.

    `geometry` as in `fit_mlp_probe`. Bandwidth (1/2, 1 or 2 times the median distance) and ridge are chosen by accuracy
    on a held-out fifth of at most 4,000 samples.
    """
    classes, targets = require_classes(labels)
    scale = nonlinear_scale(features, geometry)
    rng = generator(seed)
    x = scale(features, torch.float32)
    rank = max(1, x.shape[1])
    normal = torch.randn(x.shape[1], components, generator=rng).to(x.device)
    phases = (2 * math.pi * torch.rand(components, generator=rng)).to(x.device)
    sample = torch.randperm(x.shape[0], generator=rng)[:4000].to(x.device)
    near = sample[:500]
    distances = torch.cdist(x[near], x[near]).flatten()
    positive = distances[distances > 0]
    median = float(positive.median()) if positive.numel() else math.sqrt(rank)
    cut = max(1, sample.numel() // 5)
    val, fit = sample[:cut], sample[cut:]
    candidates = []
    for factor in (0.5, 1.0, 2.0):
        mapped = _fourier(x[sample], normal / (factor * median), phases)
        for ridge in (1e-3, 1e-2, 1e-1):
            weight = _ridge(mapped[cut:], targets[fit], classes.numel(), ridge)
            guess = torch.addmm(weight[-1], mapped[:cut], weight[:-1]).argmax(dim=1)
            candidates.append(
                (float((guess == targets[val]).double().mean()), -len(candidates), factor * median, ridge)
            )
    _, _, bandwidth, ridge = max(candidates)
    frequencies = normal / bandwidth
    weight = _ridge(_fourier(x, frequencies, phases), targets, classes.numel(), ridge)
    return RBFProbe(scale, frequencies, phases, weight, classes, bandwidth, ridge)


def _fourier(x: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
    return torch.addmm(phases, x, frequencies).cos_().mul_(math.sqrt(2 / phases.numel()))


def _ridge(mapped: Tensor, targets: Tensor, num_classes: int, ridge: float) -> Tensor:
    """Weights [m + 1, K] of centred ridge regression on one-hot targets; `ridge` is relative to the mean eigenvalue.

    The ridge is at least 1e-6 of the trace: float32 products know the smaller eigenvalues no better.
    """
    n, m = mapped.shape
    one_hot = F.one_hot(targets, num_classes).to(mapped)
    mean, share = mapped.mean(dim=0), one_hot.mean(dim=0)
    gram, cross = mapped.new_zeros(m, m, dtype=torch.float64), mapped.new_zeros(m, num_classes, dtype=torch.float64)
    for part, wanted in zip(mapped.split(ROWS_PER_CHUNK), one_hot.split(ROWS_PER_CHUNK), strict=True):
        part = part - mean
        gram += part.T @ part
        cross += part.T @ (wanted - share)
    gram /= n
    gram.diagonal().add_(max(ridge, 1e-6 * m) * gram.diagonal().mean() + 1e-12)
    weight = torch.cholesky_solve(cross / n, torch.linalg.cholesky(gram)).to(mapped)
    return torch.cat([weight, (share - mean @ weight).unsqueeze(0)])


def knn_predictions(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    k: int = 20,
    metric: Literal["l2", "cosine"] = "l2",
    draws: int = 8,
    seed: int = 0,
) -> Tensor:
    """Probability [n_test, K] that a k-nearest-neighbour vote predicts each class (columns: classes ascending).

    Training rows that are one and the same vector (for cosine: the same direction) lie at one distance. Where only some
    of them fit among the k nearest, that many are drawn from them without replacement, `draws` times; tied votes are
    shared.
    """
    classes, targets = train_labels.unique(return_inverse=True)
    if k < 1:
        raise InvalidValueError(f"k is {k}; a vote needs at least one neighbour.")
    k = min(k, train.shape[0])
    reference, queries = _metric_space(train, test, metric)
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
        members = size[nearest]
        before = members.cumsum(dim=1) - members
        taken = (k - before).clamp_min(0).minimum(members)
        whole = (taken == members) & (taken > 0)
        votes = torch.einsum("nj,njc->nc", whole.double(), counts[nearest].double())
        partial = (taken > 0) & ~whole  # at most one a row: the group at the boundary
        rows = torch.nonzero(partial.any(dim=1)).flatten()
        shares = tie_shares(votes)
        if rows.numel():
            at = partial[rows].double().argmax(dim=1)
            pool, wanted = counts[nearest[rows, at]].cpu().numpy(), taken[rows, at].cpu().numpy()
            drawn = [_draw_without_replacement(pool, wanted, rng) for _ in range(draws)]
            drawn = [tie_shares(votes[rows] + torch.from_numpy(d).to(votes)) for d in drawn]
            shares[rows] = sum(drawn) / draws
        out.append(shares)
    return torch.cat(out)


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
    if metric == "l2":
        mean = train.double().mean(dim=0)  # centring keeps float32 distances accurate far from the origin
        return (train.double() - mean).float(), (test.double() - mean).float()
    if metric == "cosine":
        return tuple(F.normalize(x.double(), dim=1).mul(2**20).round().div(2**20).float() for x in (train, test))
    raise InvalidValueError(f"metric is {metric!r}; expected 'l2' or 'cosine'.")


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows and, for every row, which of them it is; compared as bytes, so only exact copies are one."""
    wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
    array = np.ascontiguousarray((wide + 0.0).cpu().numpy())  # + 0.0 turns -0.0 into 0.0
    keys = array.view(np.dtype((np.void, array.dtype.itemsize * array.shape[1]))).ravel()
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    return rows[torch.from_numpy(first).to(rows.device)], torch.from_numpy(group.ravel()).to(rows.device)


def prototype_predictions(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    forget: tuple[int, ...],
    shots: int,
    metric: Literal["l2", "cosine"] = "l2",
    draws: int = 20,
    seed: int = 0,
) -> Tensor:
    """Probability [n_test, K] of each class by the nearest class mean, with few labelled samples of forgotten classes.

    The mean over `prototype_draws`.
    """
    drawn = list(prototype_draws(train, train_labels, test, forget, shots, metric, draws, seed))
    return sum(drawn) / len(drawn)


def prototype_draws(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    forget: tuple[int, ...],
    shots: int,
    metric: Literal["l2", "cosine"] = "l2",
    draws: int = 20,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Nearest class mean, once for every random choice of `shots` labelled samples of each forgotten class.

    Retained means come from all their training samples. Means at the same distance up to rounding share the prediction.
    A single draw is made where all forgotten samples are used.
    """
    classes, targets = train_labels.unique(return_inverse=True)
    if shots < 1:
        raise InvalidValueError(f"shots is {shots}; a prototype needs at least one labelled sample.")
    if metric == "cosine":
        reference, queries = (F.normalize(x.double(), dim=1) for x in (train, test))
    elif metric == "l2":
        centre = train.double().mean(dim=0)
        reference, queries = train.double() - centre, test.double() - centre
    else:
        raise InvalidValueError(f"metric is {metric!r}; expected 'l2' or 'cosine'.")
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
