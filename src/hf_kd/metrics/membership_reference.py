"""Membership attacks that compare the model with reference models: per-example, and stronger than population attacks.

The user trains the reference (shadow) models; here are only the tests on their outputs. RMIA works with a handful of
models that never saw the images; LiRA wants dozens. U-LiRA is `lira_scores` with shadow models that were trained with
the image and then unlearned by the method under test.

A score [n] goes into `membership.separate` with that of images which were never seen: AUC and the true-positive rate
at a low false-positive rate, both two-sided.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from ._inputs import ArrayLike, as_classes, as_logits
from .membership import LOG_FLOOR, Separation, separate, true_class_log_probabilities

SHADOWS_FOR_OWN_VARIANCE = 16
"""With fewer shadow models a side, LiRA pools one variance over all images (Carlini et al. 2022)."""


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
    the model never saw. p(x) = ((1 + a) p_out(x) + 1 - a) / 2, p_out the mean over reference models that did not see
    x; `a` stands in for the models that did.

    Shapes: `logits` [n, C] of the audited model, `reference_logits` [m, n, C] of m reference models on the same
    images, `labels` [n]; likewise for the population. Raises ValueError on malformed input, `gamma` <= 0 or `a`
    outside [0, 1].
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
    """RMIA of D_f against `unseen` images of the same classes; each argument is (logits, reference logits, labels).

    Shapes and errors as in `rmia_scores`. `population` must not overlap with either set.
    """
    members, nonmembers = (rmia_scores(*side, *population, gamma=gamma, a=a) for side in (forget, unseen))
    return separate(members, nonmembers, fpr=fpr, draws=draws, seed=seed)


def lira_scores(
    logits: ArrayLike,
    labels: ArrayLike,
    shadow_logits: ArrayLike,
    trained_on: np.ndarray | Tensor | None = None,
) -> np.ndarray:
    """LiRA (Carlini et al. 2022): log likelihood ratio of "trained on x" for each x; high claims membership.

    phi = log p_y / (1 - p_y) of the audited model under N(mu_in, s_in) against N(mu_out, s_out), both fitted per image
    on the shadow models; below 16 models a side the variance is pooled over images. Without `trained_on` every shadow
    is taken not to have seen x and the score is log Pr[N(mu_out, s_out) <= phi] (offline).

    Shapes: `logits` [n, C], `labels` [n], `shadow_logits` [m, n, C], `trained_on` bool [m, n]. Raises ValueError when
    an image has fewer than 2 shadow models on a side.
    """
    logits = as_logits(logits, "logits")
    labels = as_classes(labels, logits, "labels")
    shadows = _reference(shadow_logits, logits, "shadow_logits")
    phi = _logit_of_label(logits, labels)
    shadow_phi = torch.stack([_logit_of_label(model, labels) for model in shadows])
    if trained_on is None:
        mean, deviation = _gaussian(shadow_phi, torch.ones_like(shadow_phi, dtype=torch.bool), "without")
        return torch.special.log_ndtr((phi - mean) / deviation).numpy()
    inside = torch.as_tensor(trained_on).cpu()
    if inside.dtype != torch.bool or inside.shape != shadow_phi.shape:
        raise InvalidValueError(
            f"trained_on is {inside.dtype} {tuple(inside.shape)}; it says for each shadow model and image whether the "
            f"model was trained on it: bool {tuple(shadow_phi.shape)}."
        )
    likelihood = []
    for mask, name in ((inside, "with"), (~inside, "without")):
        mean, deviation = _gaussian(shadow_phi, mask, name)
        likelihood.append(-deviation.log() - 0.5 * ((phi - mean) / deviation) ** 2)
    return (likelihood[0] - likelihood[1]).numpy()


def _relative_likelihood(
    logits: ArrayLike, reference_logits: ArrayLike, labels: ArrayLike, a: float, name: str
) -> np.ndarray:
    logits = as_logits(logits, f"{name}logits")
    labels = as_classes(labels, logits, f"{name}labels")
    references = _reference(reference_logits, logits, f"{name}reference_logits")
    p_out = sum(true_class_log_probabilities(model, labels).exp() for model in references) / len(references)
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


def _logit_of_label(logits: Tensor, labels: Tensor) -> Tensor:
    """phi = log p_y / (1 - p_y) = logit_y - logsumexp of the others, [n], clipped to +-100."""
    logits, column = logits.to(torch.float64), labels[:, None]
    others = logits.scatter(1, column, float("-inf")).logsumexp(1)
    return (logits.gather(1, column)[:, 0] - others).clamp(LOG_FLOOR, -LOG_FLOOR).cpu()


def _gaussian(phi: Tensor, mask: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [n] of phi [m, n] over the shadow models selected by `mask`."""
    count = mask.sum(0)
    if int(count.min()) < 2:
        raise InvalidValueError(
            f"Image {int(count.argmin())} has {int(count.min())} shadow models trained {name} it; a Gaussian needs at "
            "least 2. Train more shadow models, or use `rmia_scores`, which works with one."
        )
    mean = (phi * mask).sum(0) / count
    squares = ((phi - mean) ** 2 * mask).sum(0)
    if int(count.min()) < SHADOWS_FOR_OWN_VARIANCE:
        variance = (squares.sum() / (count - 1).sum()).expand_as(mean)
    else:
        variance = squares / (count - 1)
    return mean, variance.sqrt().clamp(min=1e-6)
