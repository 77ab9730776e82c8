"""Probes that are not linear: an eraser that only fools a linear probe has erased little."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_kd.errors import check_choice

from ._inputs import (
    ROWS_PER_CHUNK,
    ArrayLike,
    as_columns,
    as_features,
    as_labels,
    generator,
    require_classes,
    stratified_subset,
)
from .linear_probe import SAMPLES_PER_DIRECTION
from .scaling import FeatureScale, fit_standardisation, principal_scales


@dataclass(frozen=True, eq=False)
class MLPProbe:
    """A fitted multi-layer perceptron on rescaled features."""

    scale: FeatureScale
    network: nn.Sequential
    """Linear layers and ReLUs in turn, float32."""
    classes: Tensor
    held_out_loss: float
    """Cross-entropy in nats on the tenth of the training samples that chose the epoch."""
    epochs: int

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return tuple(layer.out_features for layer in self.network if isinstance(layer, nn.Linear))[:-1]

    def logits(self, features: ArrayLike) -> Tensor:
        """Class scores [n, K] in float32."""
        features = as_columns(features, self.scale.mean.numel())
        with torch.no_grad():
            return self.network(self.scale(features, torch.float32))


def fit_mlp_probe(
    features: ArrayLike,
    labels: ArrayLike,
    hidden: tuple[int, ...] = (256,),
    *,
    geometry: Literal["whitened", "standardised"] = "whitened",
    learning_rate: float = 2e-3,
    weight_decay: float = 1e-2,
    batch_size: int = 256,
    seed: int = 0,
) -> MLPProbe:
    """A ReLU network with AdamW and a one-cycle rate; the epoch with the lowest held-out loss (a tenth) is kept.

    About 1,200 steps whatever n is, between 12 and 60 epochs.

    Args:
        features: [n, d].
        labels: [n].
        hidden: Widths of the hidden layers.
        geometry: See `nonlinear_scale`.
        learning_rate: The highest of the cycle.
        weight_decay: Of AdamW.
        batch_size: Samples a step.
        seed: Of initialisation, order and the held-out tenth.

    Raises:
        InvalidValueError: On malformed input, a single class, no more samples than classes, an unknown geometry.

    Example:
        >>> x = torch.tensor([[0.0, 0.1], [0.1, 0.0], [5.0, 5.1], [5.2, 5.0], [9.0, 0.0], [9.1, 0.2]])
        >>> y = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> fit_mlp_probe(x.repeat(9, 1), y.repeat(9)).logits(x).argmax(dim=1).tolist()
        [0, 0, 1, 1, 2, 2]
    """
    x = as_features(features, "training features")
    classes, targets = require_classes(as_labels(labels, x.shape[0], x.device, "training labels"))
    scale = nonlinear_scale(x, geometry)
    rng = generator(seed)
    held_out = _held_out_tenth(targets, rng)
    x = scale(x, torch.float32)
    fit_x, fit_y, val_x, val_y = x[~held_out], targets[~held_out], x[held_out], targets[held_out]
    network = _perceptron((x.shape[1], *hidden, classes.numel()), rng).to(x.device)
    steps_per_epoch = math.ceil(fit_x.shape[0] / batch_size)
    epochs = min(60, max(12, round(1200 / steps_per_epoch)))
    fused = x.device.type in ("cpu", "cuda")  # in one call for all parameters, where there is one
    optimiser = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=fused)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=epochs * steps_per_epoch)
    best, kept = math.inf, {}
    for epoch in range(epochs):
        order = torch.randperm(fit_x.shape[0], generator=rng).to(x.device)
        for rows in order.split(batch_size):
            loss = F.cross_entropy(network(fit_x[rows]), fit_y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            value = float(F.cross_entropy(network(val_x), val_y)) if val_y.numel() else -1.0
        if value < best or epoch == 0 or not val_y.numel():
            best, kept = value, copy.deepcopy(network.state_dict())
    network.load_state_dict(kept)
    return MLPProbe(scale, network.requires_grad_(False), classes, best, epochs)


def _held_out_tenth(targets: Tensor, rng: torch.Generator) -> Tensor:
    """A mask of a tenth of every class that has more than one sample."""
    held_out = torch.zeros_like(targets, dtype=torch.bool)
    held_out[stratified_subset(targets, 0.1, rng)] = True
    return held_out & (targets.bincount()[targets] > 1)


def nonlinear_scale(features: Tensor, geometry: str) -> FeatureScale:
    """`standardised`, or `whitened` where samples allow it and the principal axes at their own spread where not.

    With fewer than 10 samples a direction a network on whitened features generalises far worse.

    Args:
        features: [n, d].
        geometry: `whitened` or `standardised`.

    Raises:
        InvalidValueError: On another geometry.

    Example:
        >>> nonlinear_scale(torch.tensor([[0.0, 7.0], [4.0, 7.0]]), "standardised").rank
        1
    """
    if geometry == "standardised":
        return fit_standardisation(features)
    check_choice("geometry", geometry, ("whitened", "standardised"))
    scales = principal_scales(features)
    few = features.shape[0] < SAMPLES_PER_DIRECTION * scales["whitened"].rank
    return scales["principal" if few else "whitened"]


def _perceptron(widths: Sequence[int], rng: torch.Generator) -> nn.Sequential:
    """Linear layers of these widths with ReLUs between them; He's initialisation from `rng`, biases 0."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        linear = cast(nn.Linear, nn.utils.skip_init(nn.Linear, fan_in, fan_out))  # the global generator is not moved
        with torch.no_grad():
            linear.weight.copy_(torch.randn(fan_out, fan_in, generator=rng) * math.sqrt(2 / max(1, fan_in)))
            linear.bias.zero_()
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


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

    def logits(self, features: ArrayLike) -> Tensor:
        """Regression scores [n, K]: near 1 for the predicted class, near 0 for others."""
        features = as_columns(features, self.scale.mean.numel())
        mapped = _fourier(self.scale(features, torch.float32), self.frequencies, self.phases)
        return torch.addmm(self.weight[-1], mapped, self.weight[:-1])


def fit_rbf_probe(
    features: ArrayLike,
    labels: ArrayLike,
    components: int = 1024,
    *,
    geometry: Literal["standardised", "whitened"] = "standardised",
    seed: int = 0,
) -> RBFProbe:
    """Random Fourier features of a Gaussian kernel, then ridge regression on one-hot labels in closed form.

    Bandwidth (1/2, 1 or 2 times the median distance) and ridge are chosen by accuracy on a held-out fifth of at most 4,000
    samples.

    Args:
        features: [n, d].
        labels: [n].
        components: Number m of random features.
        geometry: As in `fit_mlp_probe`.
        seed: Of the random features and the held-out fifth.

    Raises:
        InvalidValueError: On malformed input, a single class, no more samples than classes, an unknown geometry.

    Example:
        >>> x = torch.tensor([[0.0, 0.1], [0.1, 0.0], [5.0, 5.1], [5.2, 5.0], [9.0, 0.0], [9.1, 0.2]])
        >>> y = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> fit_rbf_probe(x, y, 64).logits(x).argmax(dim=1).tolist()
        [0, 0, 1, 1, 2, 2]
    """
    x = as_features(features, "training features")
    classes, targets = require_classes(as_labels(labels, x.shape[0], x.device, "training labels"))
    scale = nonlinear_scale(x, geometry)
    rng = generator(seed)
    x = scale(x, torch.float32)
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
        ridges = (1e-3, 1e-2, 1e-1)
        for ridge, weight in zip(ridges, _ridge(mapped[cut:], targets[fit], classes.numel(), ridges), strict=True):
            guess = torch.addmm(weight[-1], mapped[:cut], weight[:-1]).argmax(dim=1)
            candidates.append(
                (float((guess == targets[val]).double().mean()), -len(candidates), factor * median, ridge)
            )
    _, _, bandwidth, ridge = max(candidates)
    frequencies = normal / bandwidth
    (weight,) = _ridge(_fourier(x, frequencies, phases), targets, classes.numel(), (ridge,))
    return RBFProbe(scale, frequencies, phases, weight, classes, bandwidth, ridge)


def _fourier(x: Tensor, frequencies: Tensor, phases: Tensor) -> Tensor:
    return torch.addmm(phases, x, frequencies).cos_().mul_(math.sqrt(2 / phases.numel()))


def _ridge(mapped: Tensor, targets: Tensor, num_classes: int, ridges: Sequence[float]) -> list[Tensor]:
    """Weights [m + 1, K] of centred ridge regression on one-hot targets, for each ridge, relative to the mean eigenvalue.

    The ridge is at least 1e-6 of the trace: float32 products know the smaller eigenvalues no better. Of fewer samples than
    features the products of samples are solved, [n, n] in place of [m, m], for the same weights.
    """
    n, m = mapped.shape
    one_hot = F.one_hot(targets, num_classes).to(mapped)
    mean, share = mapped.mean(dim=0), one_hot.mean(dim=0)
    if n < m:
        centred, side = (mapped - mean).double(), (one_hot - share).double()
        gram = centred @ centred.T
    else:
        gram, side = mapped.new_zeros(m, m, dtype=torch.float64), mapped.new_zeros(m, num_classes, dtype=torch.float64)
        for part, wanted in zip(mapped.split(ROWS_PER_CHUNK), one_hot.split(ROWS_PER_CHUNK), strict=True):
            part = part - mean
            gram += part.T @ part
            side += part.T @ (wanted - share)
    gram /= n
    mean_eigenvalue = gram.trace() / m
    found = []
    for ridge in ridges:
        regular = gram.clone()
        regular.diagonal().add_(max(ridge, 1e-6 * m) * mean_eigenvalue + 1e-12)
        weight = torch.cholesky_solve(side / n, torch.linalg.cholesky(regular))
        weight = (centred.T @ weight if n < m else weight).to(mapped)
        found.append(torch.cat([weight, (share - mean @ weight).unsqueeze(0)]))
    return found
