"""Membership attack that compares the model with reference models: per example, and stronger than population attacks.

The user trains the reference models; here is only the test on their outputs. RMIA works with a handful of models that
were not trained on the images.

A score [n] goes into `membership.separate` with that of images that were not trained on: AUC and the true-positive rate
at a low false-positive rate, both two-sided.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from ._inputs import ArrayLike, as_classes, as_logits
from .membership import Separation, separate, true_class_log_probabilities


def rmia_scores(
    logits: ArrayLike,
    reference_logits: ArrayLike,
    labels: ArrayLike,
    population_logits: ArrayLike,
    population_reference_logits: ArrayLike,
    population_labels: ArrayLike,
    *,
    gamma: float = 1.0,
    a: float = 0.3,
) -> np.ndarray:
    """Offline RMIA (Zarifzadeh et al. 2024): Pr_z[LR(x, z) >= gamma] for each x, in [0, 1]; high claims membership.

    LR(x, z) = (p(x | model) / p(x)) / (p(z | model) / p(z)) on the true class's probability, z from a population that
    the model was not trained on. p(x) = ((1 + a) p_out(x) + 1 - a) / 2, p_out the mean over reference models that were not
    trained on x; `a` stands in for the models that were.

    Args:
        logits: [n, C] of the audited model.
        reference_logits: [m, n, C] of m reference models on the same images.
        labels: [n].
        population_logits: [k, C] of the audited model on the population.
        population_reference_logits: [m, k, C].
        population_labels: [k].
        gamma: What the likelihood ratio is compared with.
        a: The offline correction.

    Returns:
        A score [n] for each image.

    Raises:
        InvalidValueError: On malformed input, `gamma` <= 0 or `a` outside [0, 1].

    Example:
        >>> sure, unsure = torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> y = torch.tensor([0])
        >>> float(rmia_scores(sure, unsure[None], y, unsure, unsure[None], y)[0])
        1.0
    """
    if not gamma > 0:
        raise InvalidValueError(f"gamma={gamma}; the likelihood ratio is compared with a positive number, usually 1.")
    if not 0 <= a <= 1:
        raise InvalidValueError(f"a={a}; the offline correction lies in [0, 1], 0.3 by default.")
    ratio = _relative_likelihood(logits, reference_logits, labels, a, "")
    population = np.sort(
        _relative_likelihood(population_logits, population_reference_logits, population_labels, a, "population_")
    )
    return np.searchsorted(population, ratio / gamma, side="right") / len(population)


def rmia_attack(
    forget: tuple[ArrayLike, ArrayLike, ArrayLike],
    unseen: tuple[ArrayLike, ArrayLike, ArrayLike],
    population: tuple[ArrayLike, ArrayLike, ArrayLike],
    *,
    gamma: float = 1.0,
    a: float = 0.3,
    fpr: float = 0.01,
    draws: int = 20,
    seed: int = 0,
) -> Separation:
    """RMIA of D_f against images of the same classes that the model was not trained on.

    Args:
        forget: (logits [n, C], reference logits [m, n, C], labels [n]) of D_f.
        unseen: The same of images that were not trained on.
        population: The same of other images that were not trained on.
        gamma: See `rmia_scores`.
        a: See `rmia_scores`.
        fpr: False-positive rate at which members are counted.
        draws: Bootstrap resamples.
        seed: Of these.

    Raises:
        InvalidValueError: As `rmia_scores`.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> y = torch.zeros(30, dtype=torch.int64)
        >>> base = torch.randn(30, 2, generator=rng)
        >>> known = (base + torch.tensor([4.0, 0.0]), base[None], y)  # surer than its reference
        >>> rmia_attack(known, (base, base[None], y), (base, base[None], y), draws=1).auc > 90
        True
    """
    members, nonmembers = (rmia_scores(*side, *population, gamma=gamma, a=a) for side in (forget, unseen))
    return separate(members, nonmembers, fpr=fpr, draws=draws, seed=seed)


def _relative_likelihood(
    logits: ArrayLike, reference_logits: ArrayLike, labels: ArrayLike, a: float, name: str
) -> np.ndarray:
    logits = as_logits(logits, f"{name}logits")
    labels = as_classes(labels, logits, f"{name}labels")
    references = _reference(reference_logits, logits, f"{name}reference_logits")
    p_out = torch.stack([true_class_log_probabilities(model, labels).exp() for model in references]).mean(dim=0)
    p = ((1 + a) * p_out + 1 - a) / 2
    ratio = true_class_log_probabilities(logits, labels).exp() / p.clamp(min=torch.finfo(p.dtype).tiny)
    return ratio.numpy()


def _reference(values: ArrayLike, logits: Tensor, name: str) -> Tensor:
    models = as_logits(values, name, dims=3)
    if models.shape[1:] != logits.shape:
        raise InvalidValueError(
            f"{name} has shape {tuple(models.shape)}; it holds the logits of m models on the same images, "
            f"[m, {logits.shape[0]}, {logits.shape[1]}]. Stack the models' logits along a first dimension."
        )
    return models.to(logits.device)
