"""Everything the audit measures on one feature matrix: one `Measurement` for each of original, erased and reference.

The probes that several scores share are fitted once. What depends on a seed is measured for every seed; the converged
probe is an optimum and has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError
from hf_kd.metrics._inputs import generator
from hf_kd.metrics.attack_data import AttackResult, AuditData
from hf_kd.metrics.attacks import ATTACKS
from hf_kd.metrics.label_efficiency import (
    CodeLength,
    EfficiencyPoint,
    FewLabelAttack,
    LabelEfficiency,
    label_efficiency_of,
)
from hf_kd.metrics.linear_probe import Convergence, fit_paper_probe
from hf_kd.metrics.scores import ForgetRetainScores

from .options import AuditOptions
from .schema import VERSIONS, none_missing


@dataclass(frozen=True)
class Measurement:
    """What one set of features reveals."""

    converged: ForgetRetainScores
    convergence: Convergence
    paper: tuple[ForgetRetainScores, ...]
    """One for each seed, as everything below."""
    paper_convergence: Convergence
    attacks: tuple[dict[str, AttackResult], ...]
    efficiency: tuple[LabelEfficiency, ...]

    def advantage(self, attack: str) -> float:
        """Recall minus false alarms of an attack, its mean over the seeds."""
        return mean(run[attack].advantage for run in self.attacks)

    def recall(self, attack: str) -> float:
        """Recall of an attack, its mean over the seeds."""
        return mean(run[attack].recall_forget for run in self.attacks)

    def hits(self, attack: str) -> Tensor | None:
        """How often an attack reads each forgotten test sample [n_ft], over the seeds; None where it does not say."""
        found = [run[attack].hits for run in self.attacks]
        return torch.stack(found).mean(dim=0) if none_missing(found) else None

    def strongest(self, among: Sequence[str] | None = None) -> tuple[str, str]:
        """The attack with the highest recall minus false alarms, and the one with the highest recall."""
        names = among or list(self.attacks[0])
        return max(names, key=self.advantage), max(names, key=self.recall)


@dataclass(frozen=True)
class Measurements:
    """What was measured on each version of the features."""

    erased: Measurement
    original: Measurement | None
    """None where no original was given."""
    reference: Measurement | None
    before_projection: Measurement | None
    """Before the eraser, where that is not the original (weights were changed too)."""
    classes: int
    equal: bool
    """Whether erased and original features are the same bit for bit, though two were given."""
    reference_labels: int | None = None
    """Labelled samples of the reference's class, where they are fewer than the forgotten classes'."""

    @property
    def versions(self) -> dict[str, Measurement]:
        """All that there are."""
        found = {version: getattr(self, version) for version in VERSIONS}
        return {version: measured for version, measured in found.items() if measured is not None}

    @property
    def comparable(self) -> dict[str, Measurement]:
        """Without a reference that had fewer labels than the forgotten classes: for attackers that take all there are."""
        short = self.reference_labels is not None
        return {version: m for version, m in self.versions.items() if version != "reference" or not short}


def steps_of(attacks: Sequence[str], options: AuditOptions) -> int:
    """How often `measure` begins a step."""
    return 1 + options.seeds * (2 + len(attacks))


def measure(
    data: AuditData, attacks: Sequence[str], options: AuditOptions, begin: Callable[[str], None] = lambda step: None
) -> Measurement:
    """Measure one set of features; attacks and draws once for each seed in 0..seeds-1. `begin` hears of each step."""
    begin("converged probe")
    probe = data.linear_probe
    seeds = range(options.seeds)

    def named(name: str, function: Callable[[int], Any]) -> tuple[Any, ...]:
        found = []
        for seed in seeds:
            begin(name if options.seeds == 1 else f"{name}, seed {seed}")
            found.append(function(seed))
        return tuple(found)

    papers = named("paper's probe", lambda seed: fit_paper_probe(data.train, data.train_labels, seed=seed))
    ran = {name: named(name, lambda seed, name=name: ATTACKS[name].function(data, seed)) for name in attacks}
    return Measurement(
        converged=_scores(data, probe),
        convergence=probe.convergence,
        paper=tuple(_scores(data, fitted) for fitted in papers),
        paper_convergence=papers[0].convergence,
        attacks=tuple({name: ran[name][seed] for name in attacks} for seed in seeds),
        efficiency=named(
            "label efficiency", lambda seed: label_efficiency_of(data, options.shots, draws=options.draws, seed=seed)
        ),
    )


def _scores(data: AuditData, probe) -> ForgetRetainScores:
    return ForgetRetainScores.from_predictions(
        probe.predict(data.train), data.train_labels, probe.predict(data.test), data.test_labels, data.forget
    )


def unseen_data(original: AuditData, features: Tensor, labels: Tensor) -> tuple[AuditData, ...]:
    """Each unseen class in turn in the place of the forgotten ones, beside all retained classes.

    `features` [m, d] are the original model's, a quarter of every class held out as its test. No class gets more
    training samples than the forgotten class with the most has, so that curves end at comparable numbers.

    Raises ValueError on classes with fewer than 8 samples.
    """
    place = original.forget[0]
    keep, keep_test = ~original.train_forget, ~original.test_forget
    most = max(int((original.train_labels == label).sum()) for label in original.forget)
    in_turn = []
    rng = generator(0)
    for label in labels.unique().tolist():
        rows = torch.nonzero(labels == label).flatten()
        if rows.numel() < 8:
            raise InvalidValueError(
                f"Unseen class {label} has {rows.numel()} samples; at least 8 are needed, a quarter of them for testing. "
                "Give more of it, or leave the class out."
            )
        rows = rows[torch.randperm(rows.numel(), generator=rng)]
        held_out = rows.numel() // 4
        test_rows, train_rows = rows[:held_out], rows[held_out : held_out + most]
        in_turn.append(
            AuditData(
                torch.cat([original.train[keep], features[train_rows].to(original.train)]),
                torch.cat([original.train_labels[keep], original.train_labels.new_full((len(train_rows),), place)]),
                torch.cat([original.test[keep_test], features[test_rows].to(original.test)]),
                torch.cat([original.test_labels[keep_test], original.test_labels.new_full((held_out,), place)]),
                (place,),
            )
        )
    return tuple(in_turn)


def mean_measurement(measurements: Sequence[Measurement]) -> Measurement:
    """The mean of several, of the same attacks and seeds: the unseen reference over its classes."""

    def scores(of: Sequence[ForgetRetainScores]) -> ForgetRetainScores:
        return ForgetRetainScores(*(mean(getattr(s, name) for s in of) for name in ("D_f", "D_r", "D_ft", "D_rt")))

    worst = max(measurements, key=lambda m: m.convergence.gradient_norm)
    seeds = range(len(measurements[0].efficiency))
    return Measurement(
        converged=scores([m.converged for m in measurements]),
        convergence=worst.convergence,
        paper=tuple(scores(of) for of in zip(*(m.paper for m in measurements), strict=True)),
        paper_convergence=measurements[0].paper_convergence,
        attacks=tuple(
            {name: mean_attack([m.attacks[seed][name] for m in measurements]) for name in measurements[0].attacks[seed]}
            for seed in range(len(measurements[0].attacks))
        ),
        efficiency=tuple(mean_curve([m.efficiency[seed] for m in measurements]) for seed in seeds),
    )


def mean_attack(results: Sequence[AttackResult]) -> AttackResult:
    """One attacker's mean over several runs."""
    aucs = [result.auc for result in results]
    return AttackResult(
        results[0].name,
        mean(result.recall_forget for result in results),
        mean(result.accuracy_retain for result in results),
        mean(result.false_alarms for result in results),
        None if None in aucs else mean(aucs),
        results[0].settings,
    )


def mean_curve(curves: Sequence[LabelEfficiency]) -> LabelEfficiency:
    """The mean of the best attackers' curves; values at n that a curve lacks are interpolated in log n.

    Covers the range that all curves have. The attacker of the mean is called `best`.
    """
    if len(curves) == 1:
        return curves[0]
    low, high = max(c.points[0].n for c in curves), min(c.points[-1].n for c in curves)
    points = []
    for n in sorted({point.n for curve in curves for point in curve.points if low <= point.n <= high}):
        at = [_at(curve, n) for curve in curves]
        draws = min(point.attackers[point.best].draws for curve in curves for point in curve.points)
        recall, alarms = mean(recall for recall, _ in at), mean(alarms for _, alarms in at)
        points.append(EfficiencyPoint(n, {"best": FewLabelAttack(recall, None, alarms, draws)}, "best"))
    codes = [curve.code_length for curve in curves]
    code = CodeLength(
        mean(code.forget for code in codes), mean(code.retain for code in codes), codes[0].uniform, codes[0].blocks
    )
    return LabelEfficiency(tuple(points), code, curves[0].seed)


def _at(curve: LabelEfficiency, n: int) -> tuple[float, ...]:
    """Recall and false alarms of a curve at n."""
    known = [(point.n, point.recall, point.attackers[point.best].false_alarms) for point in curve.points]
    for (a, *left), (b, *right) in pairwise(known):
        if a <= n <= b:
            share = math.log(n / a) / math.log(b / a)
            return tuple(x + share * (y - x) for x, y in zip(left, right, strict=True))
    return known[-1][1:]


def mean(values) -> float:
    """Of any numbers; there is at least one."""
    values = list(values)
    return math.fsum(values) / len(values)
