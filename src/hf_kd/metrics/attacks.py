"""Attacks: ways to read a forgotten class back out of features, from a ridge of random features to a nearest mean.

An attacker trains on the train split, all labels included, and is scored on the test split. Each attack is a function
of `AuditData` and a seed that returns one `AttackResult`; `ATTACKS` names them. To add one, write the function and its
row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from hf_kd.errors import InvalidValueError, check_names

from ._inputs import ArrayLike, generator, stratified_subset
from .attack_data import AttackResult, AuditData, result_from_flags, result_from_logits, result_from_shares
from .linear_probe import fit_linear_probe
from .neighbours import Metric, knn_predictions, prototype_predictions, tie_shares
from .nonlinear_probes import fit_mlp_probe, fit_rbf_probe
from .scores import area_under_roc, recall_at


def linear(data: AuditData, seed: int = 0) -> AttackResult:
    """The converged multi-class probe: Knowledge Retention's own attacker."""
    probe, fit = data.linear_probe, data.linear_probe.convergence
    return result_from_logits(data, "linear", probe.logits(data.test), geometry=fit.geometry, converged=fit.converged)


def linear_binary(data: AuditData, seed: int = 0) -> AttackResult:
    """A converged probe for forgotten against retained, both sides weighted alike so that it decides in the middle."""
    positive = data.train_forget
    weights = torch.where(positive, 0.5 / positive.double().mean(), 0.5 / (~positive).double().mean())
    probe = fit_linear_probe(
        data.train, positive.long(), sample_weights=weights, scales=data.scales, tolerance=1e-5, seed=seed
    )
    logits = probe.logits(data.test)
    score = logits[:, 1] - logits[:, 0]
    return result_from_flags(data, "linear-binary", score > 0, score, geometry=probe.convergence.geometry)


def mlp(data: AuditData, seed: int = 0, *, size: str) -> AttackResult:
    """A multi-layer perceptron; see `AuditData.mlp` for the two sizes."""
    probe = data.mlp(size, seed)
    hidden = "-".join(map(str, probe.hidden))
    return result_from_logits(data, f"mlp-{size}", probe.logits(data.test), hidden=hidden, epochs=probe.epochs)


def rbf(data: AuditData, seed: int = 0, *, geometry: Literal["standardised", "whitened"]) -> AttackResult:
    """A Gaussian kernel classifier on random Fourier features."""
    probe = fit_rbf_probe(data.train, data.train_labels, geometry=geometry, seed=seed)
    scores = probe.logits(data.test)
    settings = {"components": probe.phases.numel(), "bandwidth": probe.bandwidth, "ridge": probe.ridge}
    score = scores[:, data.forget_columns].amax(dim=1) - scores[:, ~data.forget_columns].amax(dim=1)
    return result_from_shares(data, f"rbf-{geometry}", tie_shares(scores), score, **settings)


def knn(data: AuditData, seed: int = 0, *, metric: Metric, k: int = 20, draws: int = 8) -> AttackResult:
    """Vote of the nearest training samples, ties broken at random and averaged."""
    shares = knn_predictions(data.train, data.train_labels, data.test, k, metric, draws, seed)
    return result_from_shares(data, f"knn-{metric}", shares, k=k, tie_draws=draws)


def few_shot(data: AuditData, seed: int = 0, *, shots: int, metric: Metric, draws: int = 20) -> AttackResult:
    """Nearest class mean with only `shots` labelled samples of each forgotten class, averaged over draws."""
    shares = prototype_predictions(data.train, data.train_labels, data.test, data.forget, shots, metric, draws, seed)
    return result_from_shares(data, f"few-shot-{shots}-{metric}", shares, shots=shots, draws=draws)


def relearn(data: AuditData, seed: int = 0, *, percent: int, draws: int = 3) -> AttackResult:
    """A head relearned to convergence on `percent` of the labels of every class, two where that is less; mean over draws.

    The scale comes from all training features: whoever holds them needs no labels for that.
    """
    rng = generator(seed)
    shares, samples = torch.zeros(1, dtype=torch.float64), 0
    for draw in range(draws):
        rows = stratified_subset(data.train_labels, percent / 100, rng, least=2)
        samples = rows.numel()
        probe = fit_linear_probe(
            data.train[rows], data.train_labels[rows], scales=data.scales, tolerance=1e-5, seed=seed + draw
        )
        shares = shares.to(data.test.device) + tie_shares(probe.logits(data.test)) / draws
    return result_from_shares(data, f"relearn-{percent}%", shares, samples=samples, draws=draws)


def norm(data: AuditData, seed: int = 0) -> AttackResult:
    """A threshold on the feature norm, either way round: erased directions shorten what they came from.

    Threshold and side are the best on train; the AUC is two-sided, max(AUC, 100 - AUC). Lengths that are equal but for
    rounding, as of one point that many images are put on, are equal: a threshold may lie on them.
    """
    from sklearn.metrics import roc_curve

    length, test_length = data.train.double().norm(dim=1), data.test.double().norm(dim=1)
    step = (float(length.max()) or 1.0) * 2.0**-30
    length, test_length = (length / step).round(), (test_length / step).round()
    positive = data.train_forget.cpu().numpy()
    options = []
    for sign in (1.0, -1.0):
        alarms, recall, thresholds = roc_curve(positive, (sign * length).cpu().numpy())
        best = int(np.argmax(recall - alarms))
        options.append((float(recall[best] - alarms[best]), sign, float(thresholds[best])))
    _, sign, threshold = max(options)
    score = sign * test_length
    result = result_from_flags(data, "norm", score >= threshold, score, forgotten_are="long" if sign > 0 else "short")
    area = area_under_roc(score, data.test_forget)
    return replace(result, auc=max(area, 100 - area))


def weighted(data: AuditData, seed: int = 0, *, weight: float = 3.0) -> AttackResult:
    """An attacker who accepts false alarms: the converged probe with forgotten samples counted `weight` times."""
    weights = torch.where(data.train_forget, weight, 1.0)
    probe = fit_linear_probe(
        data.train, data.train_labels, sample_weights=weights, scales=data.scales, tolerance=1e-5, seed=seed
    )
    return result_from_logits(data, f"weighted-{weight:g}", probe.logits(data.test), forget_weight=weight)


def at_false_alarms(data: AuditData, seed: int = 0, *, percent: float) -> AttackResult:
    """Recall at a stated rate of false alarms, from the better of the linear probe's and the large perceptron's
    log-odds.

    Read off the test ROC curve; between two attainable points the attacker tosses a coin, so the curve is interpolated.
    """
    best = None
    for probe in (data.linear_probe, data.mlp("large", seed)):
        score = data.forget_score(probe.logits(data.test))
        value = recall_at(score, data.test_forget, percent / 100)
        if best is None or value > best[0]:
            best = (value, area_under_roc(score, data.test_forget), type(probe).__name__)
    recall, auc, probe = best
    settings = {"task": "binary", "reader": probe, "stated_false_alarms": percent}
    return AttackResult(f"at-{percent:g}%-false-alarms", recall, 100.0 - percent, float(percent), auc, settings)


def groups(data: AuditData, seed: int = 0, *, kind: str, size: int = 5, partitions: int = 5) -> AttackResult:
    """`size` samples known to share a label, read together: the sum of their log-probabilities decides.

    Each class of the test split is cut into random groups, several times over; a class with fewer samples is one group.
    """
    probe = data.linear_probe if kind == "linear" else data.mlp("large", seed)
    log_probabilities = probe.logits(data.test).double().log_softmax(dim=1)
    rng = generator(seed)
    sums, labels = [], []
    for label in data.test_labels.unique():
        rows = torch.nonzero(data.test_labels == label).flatten()
        width = min(size, rows.numel())
        for _ in range(partitions):
            order = rows[torch.randperm(rows.numel(), generator=rng).to(rows.device)]
            order = order[: rows.numel() // width * width].view(-1, width)
            sums.append(log_probabilities[order].sum(dim=1))
            labels.append(label.expand(order.shape[0]))
    scores, grouped = torch.cat(sums), torch.cat(labels)
    view = AuditData(data.train, data.train_labels, scores, grouped, data.forget)
    found = result_from_logits(view, f"groups-of-{size}-{kind}", scores, size=size, groups=scores.shape[0])
    return replace(found, hits=None)  # these are of groups


def views(data: AuditData, seed: int = 0, *, kind: str, count: int) -> AttackResult:
    """`count` views of every image, their features joined: an eraser that decides view by view gives itself away.

    Raises ValueError where `data` has fewer.
    """
    if len(data.train_views) < count - 1:
        raise InvalidValueError(
            f"The attack on {count} views needs features of {count - 1} further views of every image (the mirrored one, "
            f"say), and there are {len(data.train_views)}; pass train_views and test_views."
        )
    train = torch.cat([data.train, *data.train_views[: count - 1]], dim=1)
    test = torch.cat([data.test, *data.test_views[: count - 1]], dim=1)
    if kind == "linear":
        probe = fit_linear_probe(train, data.train_labels, tolerance=1e-5, seed=seed)
    else:
        probe = fit_mlp_probe(train, data.train_labels, (256, 256), geometry="standardised", seed=seed)
    return result_from_logits(data, f"views-{count}-{kind}", probe.logits(test), views=count)


@dataclass(frozen=True)
class Attack:
    """A row of the registry."""

    function: Callable[[AuditData, int], AttackResult]
    suite: str
    """`standard` attacks also run in `full`."""


ATTACKS: dict[str, Attack] = {
    "linear": Attack(linear, "standard"),
    "linear-binary": Attack(linear_binary, "standard"),
    **{f"mlp-{size}": Attack(partial(mlp, size=size), "standard") for size in ("small", "large")},
    **{f"rbf-{g}": Attack(partial(rbf, geometry=g), "standard") for g in ("standardised", "whitened")},
    **{f"knn-{metric}": Attack(partial(knn, metric=metric), "standard") for metric in ("l2", "cosine")},
    **{
        f"few-shot-{shots}-{metric}": Attack(partial(few_shot, shots=shots, metric=metric), "standard")
        for shots in (1, 5, 10)
        for metric in ("l2", "cosine")
    },
    **{f"relearn-{percent}%": Attack(partial(relearn, percent=percent), "standard") for percent in (1, 2, 5)},
    "norm": Attack(norm, "standard"),
    "weighted-3": Attack(weighted, "full"),
    **{f"at-{p}%-false-alarms": Attack(partial(at_false_alarms, percent=p), "full") for p in (1, 5, 25)},
    **{f"groups-of-5-{kind}": Attack(partial(groups, kind=kind), "full") for kind in ("linear", "mlp")},
    **{
        f"views-{count}-{kind}": Attack(partial(views, kind=kind, count=count), "full")
        for count in (2, 3)
        for kind in ("linear", "mlp")
    },
}
"""Every attack by name."""

SUITES = ("standard", "full")
"""Words for several attacks."""


def views_needed(name: str) -> int:
    """Further views of every image that an attack needs.

    Example:
        >>> views_needed("views-3-linear"), views_needed("norm")
        (2, 0)
    """
    return int(name.split("-")[1]) - 1 if name.startswith("views-") else 0


def attack_names(names: str | Sequence[str], views: int = 0) -> tuple[str, ...]:
    """Names of a suite or those given, checked.

    Args:
        names: `standard`, `full`, or names among `ATTACKS`.
        views: Further views of every image that there are; `full` leaves out what needs more.

    Raises:
        InvalidValueError: On unknown names, or none.

    Example:
        >>> attack_names(["norm", "linear"])
        ('norm', 'linear')
        >>> set(attack_names("standard")) < set(attack_names("full"))
        True
    """
    if names == "standard":
        return tuple(name for name, attack in ATTACKS.items() if attack.suite == "standard")
    if names == "full":
        return tuple(name for name in ATTACKS if views_needed(name) <= views)
    chosen = (names,) if isinstance(names, str) else tuple(names)
    check_names("attacks", chosen, ATTACKS, SUITES)
    return chosen


def run_attacks(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    forget_labels: int | ArrayLike,
    names: str | Sequence[str] = "standard",
    *,
    seed: int = 0,
    train_views: Sequence[ArrayLike] = (),
    test_views: Sequence[ArrayLike] = (),
) -> tuple[AttackResult, ...]:
    """Run a suite of attacks on features.

    Args:
        train_features: [n, d].
        train_labels: [n], those of the forgotten classes included.
        test_features: [m, d].
        test_labels: [m].
        forget_labels: The forgotten classes.
        names: `standard`, `full`, or names among `ATTACKS`.
        seed: Of everything that is random.
        train_views: Features [n, d] of further views of the same images, for the views attacks of `full`.
        test_views: Features [m, d] of the same views of the test images.

    Returns:
        Results in percent, in the order of the names.

    Raises:
        InvalidValueError: On malformed input as `knowledge_retention`, and on unknown names.

    Example:
        >>> x = torch.tensor([[0.0, 0.1], [0.1, 0.0], [5.0, 5.1], [5.2, 5.0], [9.0, 0.0], [9.1, 0.2]])
        >>> y = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> result, = run_attacks(x, y, x, y, forget_labels=0, names=["norm"])
        >>> result.recall_forget, result.false_alarms, result.settings["forgotten_are"]
        (100.0, 0.0, 'short')
    """
    data = AuditData.of(
        train_features, train_labels, test_features, test_labels, forget_labels, train_views, test_views
    )
    return tuple(ATTACKS[name].function(data, seed) for name in attack_names(names, len(data.train_views)))
