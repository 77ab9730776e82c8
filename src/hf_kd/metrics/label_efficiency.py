"""Label efficiency: how few labelled examples of the forgotten class an attacker needs.

Given enough labels a converged probe reads unseen classes almost as well as known ones; knowledge shows in needing few.
The curve gives the recall of the forgotten classes against the number of labelled samples of each, the prequential code
length says the same in bits, and `relative_area` compares a curve with the original model's and with that of a reference
that was not trained on the class.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError, check_choice

from ._inputs import ArrayLike, generator, is_in
from .attack_data import AuditData, result_from_shares
from .linear_probe import SAMPLES_PER_DIRECTION, Geometry, fit_linear_probe
from .neighbours import prototype_draws, tie_shares
from .scores import mean_and_sd

UNIFORM_SHARE = 0.01
"""Share of the uniform distribution mixed into code probabilities, so that no label costs infinitely many bits."""


@dataclass(frozen=True)
class FewLabelAttack:
    """One attacker with n labelled samples of each forgotten class: percent, means over draws."""

    recall: float
    recall_sd: float | None
    """Standard deviation over draws; None for a single draw."""
    false_alarms: float
    draws: int

    @property
    def advantage(self) -> float:
        """Recall minus false alarms."""
        return self.recall - self.false_alarms


@dataclass(frozen=True)
class EfficiencyPoint:
    """All attackers with n labelled samples of each forgotten class, and the best of them."""

    n: int
    attackers: Mapping[str, FewLabelAttack]
    best: str
    """The attacker with the highest advantage."""

    @property
    def recall(self) -> float:
        """Recall of the best attacker, in percent."""
        return self.attackers[self.best].recall

    @property
    def advantage(self) -> float:
        """Advantage of the best attacker, in points."""
        return self.attackers[self.best].advantage


@dataclass(frozen=True)
class CodeLength:
    """Prequential code length of the labels, in bits per image."""

    forget: float
    """Mean over the forgotten samples."""
    retain: float
    """Mean over all others."""
    uniform: float
    """log2 K: the price without any knowledge."""
    blocks: tuple[int, ...]
    """Number of labels known when each block is coded."""


@dataclass(frozen=True)
class LabelEfficiency:
    """The label-efficiency curve and the code length."""

    points: tuple[EfficiencyPoint, ...]
    code_length: CodeLength
    seed: int


def label_efficiency(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    forget_labels: int | ArrayLike,
    shots: Sequence[int] | None = None,
    *,
    draws: int = 10,
    seed: int = 0,
) -> LabelEfficiency:
    """Recall of the forgotten classes on test against the number n of labelled samples of each in training.

    Four attackers at each n, the best (by recall minus false alarms) making the curve:

    - `prototype-l2`, `prototype-cosine`: nearest class mean, retained means from all their samples;
    - `linear-whitened`, `linear-principal`: converged probes on n samples of every class (at least 2 of retained ones),
      with l2 = 1/samples. A retained class gets no more samples than a forgotten one so that the prior does not decide.
      `principal` (see `fit_linear_probe`) only below 10 samples a direction, where it is the stronger one.

    Args:
        train_features: [n, d].
        train_labels: [n], those of the forgotten classes included.
        test_features: [m, d].
        test_labels: [m].
        forget_labels: The forgotten classes.
        shots: 1, 2, 5, 10, 20, 50, ... and all by default.
        draws: Choices of the samples that are averaged (half as many for linear probes, fewer from 100 samples on, one for
            all).
        seed: Of these choices.

    Raises:
        InvalidValueError: On malformed input as `knowledge_retention`, and on shots that are not positive.

    Example:
        >>> import torch
        >>> rng = torch.Generator().manual_seed(0)
        >>> y = torch.arange(60) % 3
        >>> x = torch.eye(3)[y] + 0.1 * torch.randn(60, 3, generator=rng)
        >>> curve = label_efficiency(x, y, x, y, forget_labels=0, shots=(1, 20), draws=2)
        >>> [(point.n, point.recall) for point in curve.points]
        [(1, 100.0), (20, 100.0)]
    """
    data = AuditData.of(train_features, train_labels, test_features, test_labels, forget_labels)
    return label_efficiency_of(data, shots, draws=draws, seed=seed)


def label_efficiency_of(
    data: AuditData, shots: Sequence[int] | None = None, *, draws: int = 10, seed: int = 0
) -> LabelEfficiency:
    """`label_efficiency` on data that are checked already.

    Raises:
        InvalidValueError: On shots or draws that are not positive.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> y = torch.arange(60) % 3
        >>> x = torch.eye(3)[y] + 0.1 * torch.randn(60, 3, generator=rng)
        >>> [point.n for point in label_efficiency_of(AuditData.of(x, y, x, y, 0), shots=(5, 1), draws=1).points]
        [1, 5]
    """
    most = max(int((data.train_labels == label).sum()) for label in data.forget)
    shots = default_shots(most) if shots is None else sorted({min(int(n), most) for n in shots})
    if not shots or shots[0] < 1 or draws < 1:
        raise InvalidValueError(
            f"shots are {list(shots)} and draws {draws}; expected at least one, all of them positive."
        )
    points = tuple(_point(data, n, most, draws, seed) for n in shots)
    return LabelEfficiency(points, prequential_code_length(data, seed), seed)


def default_shots(most: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50, ... below `most`, and `most`.

    Example:
        >>> default_shots(30)
        (1, 2, 5, 10, 20, 30)
    """
    steps = (base * 10**power for power in range(10) for base in (1, 2, 5))
    return (*(n for n in steps if n < most), most)


def _point(data: AuditData, n: int, most: int, draws: int, seed: int) -> EfficiencyPoint:
    attackers = {
        f"prototype-{metric}": _summary(
            data, prototype_draws(data.train, data.train_labels, data.test, data.forget, n, metric, draws, seed)
        )
        for metric in ("l2", "cosine")
    }
    repeats = 1 if n == most else max(1, draws // 2 if n < 100 else draws // 5)
    few = n * data.classes.numel() < SAMPLES_PER_DIRECTION * data.scales["whitened"].rank
    for geometry in ("whitened", "principal") if few else ("whitened",):
        attackers[f"linear-{geometry}"] = _summary(data, _linear_draws(data, n, repeats, geometry, seed))
    best = max(attackers, key=lambda name: attackers[name].advantage)
    return EfficiencyPoint(n, attackers, best)


def _summary(data: AuditData, shares: Iterator[Tensor]) -> FewLabelAttack:
    results = [result_from_shares(data, "", share) for share in shares]
    recall = mean_and_sd([result.recall_forget for result in results])
    alarms = mean_and_sd([result.false_alarms for result in results])
    return FewLabelAttack(recall.mean, recall.sd, alarms.mean, len(results))


def _linear_draws(data: AuditData, n: int, draws: int, geometry: Geometry, seed: int) -> Iterator[Tensor]:
    rng = generator(seed)
    for _ in range(draws):
        rows = []
        for label in data.classes.tolist():
            members = torch.nonzero(data.train_labels == label).flatten()
            count = n if label in data.forget else max(2, n)
            rows.append(members[torch.randperm(members.numel(), generator=rng)[:count].to(members.device)])
        chosen = torch.cat(rows)
        labels = data.train_labels[chosen]
        # classes run out at different sizes: weigh each as a whole
        weights = 1 / labels.unique(return_inverse=True, return_counts=True)[2].double()
        inverse = labels.unique(return_inverse=True)[1]
        probe = fit_linear_probe(
            data.train[chosen],
            labels,
            sample_weights=weights[inverse],
            geometry=geometry,
            scales=data.scales,
            tolerance=1e-4,
        )
        yield tie_shares(probe.logits(data.test))


def prequential_code_length(data: AuditData, seed: int = 0) -> CodeLength:
    """The online code: labels are sent in random order, each block coded by a probe fitted on all blocks before it.

    Blocks double in size. The first is coded uniformly at log2 K bits; afterwards a label costs -log2 of its
    probability under the converged probe (l2 = 1/samples), mixed with 1 % of the uniform distribution. Of the two
    geometries of `fit_linear_probe` each block uses the one that coded the block before in fewer bits. Every label of
    the train split is sent, the mean is reported over the forgotten samples and over the others.

    Args:
        data: Features and labels; the train split is coded.
        seed: Of the order.

    Returns:
        Bits per image.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> y = torch.arange(60) % 3
        >>> x = torch.eye(3)[y] + 0.1 * torch.randn(60, 3, generator=rng)
        >>> length = prequential_code_length(AuditData.of(x, y, x, y, forget_labels=0))
        >>> 0 < length.forget < length.uniform
        True
    """
    n, num_classes = data.train.shape[0], data.classes.numel()
    order = torch.randperm(n, generator=generator(seed)).to(data.train.device)
    bits = torch.full((n,), math.log2(num_classes), dtype=torch.float64, device=data.train.device)
    start = min(n, max(32, 4 * num_classes))
    ends = [start]
    while ends[-1] < n:
        ends.append(min(n, 2 * ends[-1]))
    spent = {"principal": 0.0, "whitened": 0.0}
    for known, end in pairwise(ends):
        fit, block = order[:known], order[known:end]
        if data.train_labels[fit].unique().numel() < 2:
            continue
        costs = {}
        enough = known >= SAMPLES_PER_DIRECTION * data.scales["whitened"].rank
        for geometry in ("whitened",) if enough else ("principal", "whitened"):
            probe = fit_linear_probe(
                data.train[fit], data.train_labels[fit], geometry=geometry, scales=data.scales, tolerance=1e-4
            )
            costs[geometry] = _bits(
                probe.logits(data.train[block]), probe.classes, data.train_labels[block], num_classes
            )
        chosen = min(costs, key=lambda name: spent[name])
        spent = {name: float(cost.mean()) for name, cost in costs.items()}
        bits[block] = costs[chosen]
    forget = data.train_forget
    return CodeLength(float(bits[forget].mean()), float(bits[~forget].mean()), math.log2(num_classes), (0, *ends[:-1]))


def _bits(logits: Tensor, classes: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """-log2 of the mixed probability of each label; classes the probe has not seen have the uniform share only."""
    column = torch.searchsorted(classes, labels).clamp_max(classes.numel() - 1)
    probability = logits.softmax(dim=1).gather(1, column.unsqueeze(1)).squeeze(1)
    probability = torch.where(is_in(labels, classes.tolist()), probability, 0.0)
    return -torch.log2((1 - UNIFORM_SHARE) * probability + UNIFORM_SHARE / num_classes)


@dataclass(frozen=True)
class RelativeArea:
    """The label-efficiency curve as one number: 0 = as of an unseen class, 1 = nothing forgotten."""

    value: float | None
    """None where original and reference hardly differ."""
    erased_gap: float
    """Mean over log n of erased minus reference, in points."""
    original_gap: float
    """Mean over log n of original minus reference, in points."""
    reason: str | None = None
    """Why there is no value."""


def relative_area(
    erased: LabelEfficiency,
    original: LabelEfficiency,
    reference: LabelEfficiency,
    measure: Literal["recall", "advantage"] = "advantage",
    resolution: float = 1.0,
) -> RelativeArea:
    """Area between the curves of erased and reference over that between original and reference, over log n.

    `advantage` (recall minus false alarms) is the default because an eraser can raise recall alone: ESC's cluster at
    the origin draws retained samples too, and by recall its curve lies above the original's.

    Curves are interpolated linearly in log n over the range that all three cover.

    Args:
        erased: Curve of the erased features.
        original: Curve of the original features.
        reference: Curve of features of a network that was not trained on the classes.
        measure: What is compared.
        resolution: Least mean distance of original and reference in points; nearer ones make the ratio noise.

    Returns:
        The ratio: below 0 the erased features are harder to read than the reference; above 1 easier than the original
        ones. Without a range in common, or below the resolution, `value` is None and `reason` says so.

    Raises:
        InvalidValueError: On an unknown measure.

    Example:
        >>> def curve(*advantages):
        ...     found = [{"a": FewLabelAttack(advantage, None, 0.0, 1)} for advantage in advantages]
        ...     points = tuple(EfficiencyPoint(n, attackers, "a") for n, attackers in enumerate(found, start=1))
        ...     return LabelEfficiency(points, CodeLength(1.0, 1.0, 2.0, (0,)), 0)
        >>> relative_area(curve(40.0, 60.0), original=curve(60.0, 80.0), reference=curve(20.0, 40.0)).value
        0.5
    """
    check_choice("measure", measure, ("recall", "advantage"))
    curves = [
        sorted((math.log(point.n), getattr(point, measure)) for point in curve.points)
        for curve in (erased, original, reference)
    ]
    low, high = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    if not low < high:
        return RelativeArea(None, 0.0, 0.0, "the curves have no range of labelled samples in common")
    grid = sorted({low, high} | {x for curve in curves for x, _ in curve if low < x < high})
    values = [[_interpolate(curve, x) for x in grid] for curve in curves]
    gap_erased, gap_original = (
        sum((b - a) * (f[i] - r[i] + f[i + 1] - r[i + 1]) / 2 for i, (a, b) in enumerate(pairwise(grid))) / (high - low)
        for f, r in ((values[0], values[2]), (values[1], values[2]))
    )
    if gap_original < resolution:
        reason = (
            f"the original lies {gap_original:.2f} points above the reference on average, less than the {resolution:g} "
            "that this measurement resolves"
        )
        return RelativeArea(None, gap_erased, gap_original, reason)
    return RelativeArea(gap_erased / gap_original, gap_erased, gap_original)


def _interpolate(curve: list[tuple[float, float]], x: float) -> float:
    for (left, low), (right, high) in pairwise(curve):
        if left <= x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return curve[-1][1] if x >= curve[-1][0] else curve[0][1]
