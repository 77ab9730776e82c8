"""Attack 4: train the whole network on a few labelled images of the class beside as many of each other class."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hf_kd.data.devices import own_generators
from hf_kd.errors import InvalidValueError
from hf_kd.metrics.attack_data import AttackResult

from .answers import head_scores
from .network import RECALIBRATION, Network, WhiteBoxData, answer, recalibrated, train_step, with_rows

SHOTS = (5, 50, 500)
RATES = tuple(10 ** (-4 + 0.75 * i) for i in range(5))
"""1e-4 to 1e-1 in equal ratios."""

STEPS = (0, 10, 50, 200, 500)
"""After which the network is asked."""

RACE = 50
"""All learning rates go so far; the best `FINALISTS` of them, by the area so far, go to the end."""

FINALISTS = 2
HALF = 50.0


@dataclass(frozen=True)
class RelearningCurve:
    """What one number of labelled images brings back, at the learning rate that brings back most."""

    shots: int
    learning_rate: float
    steps: tuple[int, ...]
    auc: tuple[float, ...]
    """Of the class's margin, in percent."""
    recall: tuple[float, ...]
    """F of the head."""
    retained: tuple[float, ...]
    """R of the head."""
    false_alarms: tuple[float, ...]
    row: str
    """Whether the class's row in the head was its "own" or had to be "made" of the same images."""
    images: int = 0
    """Labelled images of all classes together: fewer than `shots` of each where a class has no more."""

    @property
    def area(self) -> float:
        """Mean AUC over the steps, between 0 and 1."""
        return _area(self.steps, self.auc) / 100

    @property
    def steps_to_half(self) -> float | None:
        """Steps until F is 50 %, between two readings on the line between them; None where it is not reached."""
        if self.recall[0] >= HALF:
            return 0.0
        for (a, low), (b, high) in pairwise(zip(self.steps, self.recall, strict=True)):
            if high >= HALF:
                return a + (b - a) * (HALF - low) / (high - low)
        return None

    def result(self) -> AttackResult:
        """Its end, as the result of an attack."""
        about = {"learning_rate": self.learning_rate, "area": self.area, "row": self.row, "shots": self.shots}
        name = f"relearning, {self.shots} images"
        return AttackResult(name, self.recall[-1], self.retained[-1], self.false_alarms[-1], self.auc[-1], about)


def relearn(
    network: Network,
    data: WhiteBoxData,
    shots: int,
    *,
    seed: int = 0,
    steps: Sequence[int] = STEPS,
    rates: Sequence[float] = RATES,
    batch_size: int = 16,
) -> RelearningCurve:
    """SGD with momentum on all weights, BatchNorm in train mode, at each learning rate; the worst for us is kept.

    All rates see the same batches. After `RACE` steps the best two go on. The rate is chosen by the area under the AUC
    over steps on the test images, in favour of the attacker. BatchNorm is recalibrated before each reading, on a copy.

    Args:
        network: Where it starts; a class without a row in the head gets one, made of the same images.
        data: Its images; `balanced_test` makes the readings cheaper.
        shots: Labelled images of every class.
        seed: Of the images and their order.
        steps: After which it is read, ascending from 0.
        rates: Learning rates.
        batch_size: Images a step.

    Raises:
        InvalidValueError: For a head without a row for every class that none can be added to.
    """
    reason = network.without_rows(data.classes)
    if reason:
        raise InvalidValueError(f"Nothing can be relearned here: {reason}. Leave this attack out.")
    rows = data.shots(shots, seed)
    start, row = with_rows(network, data, rows)
    few = data.train.rows(rows)
    rng = torch.Generator().manual_seed(seed)
    size = min(batch_size, len(few))
    order = torch.stack([torch.randperm(len(few), generator=rng)[:size] for _ in range(steps[-1])]).to(
        few.labels.device
    )
    columns = torch.tensor(start.columns_of(data.classes), device=network.device)
    targets = torch.searchsorted(data.classes, few.labels).to(network.device)
    race = [step for step in steps if step <= RACE] or [steps[0]]
    runs = [_Run(start, rate, columns, data) for rate in rates]
    kept: list[_Run] = []
    with own_generators(network.device, seed):
        for run in runs:
            run.go(race, few.inputs, targets, order)
            kept = sorted([*kept, run], key=lambda own: -own.area)[:FINALISTS]
            for other in runs:
                if other.started and other not in kept:
                    other.release()
        for run in kept:
            run.go([step for step in steps if step > race[-1]], few.inputs, targets, order)
    best = max(kept, key=lambda own: own.area)
    auc, recall, retained, alarms = zip(*best.readings, strict=True)
    return RelearningCurve(shots, best.rate, tuple(steps), auc, recall, retained, alarms, row, len(few))


class _Run:
    """One learning rate."""

    def __init__(self, start: Network, rate: float, columns: Tensor, data: WhiteBoxData) -> None:
        self.start, self.rate, self.columns, self.data = start, rate, columns, data
        self.started, self.done = False, 0
        self.model: Any = None
        self.optimiser: Any = None
        self.readings: list[tuple[float, ...]] = []
        self.steps: list[int] = []

    @property
    def area(self) -> float:
        return _area(self.steps, [reading[0] for reading in self.readings])

    def release(self) -> None:
        """Give the memory of the weights back."""
        self.model = self.optimiser = None

    def go(self, steps: Sequence[int], inputs: dict[str, Tensor], targets: Tensor, order: Tensor) -> None:
        """On to each of `steps`, with a reading there; where the weights are no longer finite the last one stays."""
        if not self.started:
            self.started = True
            self.model = copy.deepcopy(self.start.model).requires_grad_(True)
            self.optimiser = torch.optim.SGD(self.model.parameters(), self.rate, momentum=0.9)
        for step in steps:
            self.model.train()
            for rows in order[self.done : step]:
                part = {name: value[rows] for name, value in inputs.items()}
                train_step(self.model, self.optimiser, part, targets[rows.to(targets.device)], self.columns)
            self.done = step
            reading = self._read()
            self.readings.append(self.readings[-1] if reading is None else reading)
            self.steps.append(step)

    @torch.no_grad()
    def _read(self) -> tuple[float, ...] | None:
        data = self.data
        now = replace(self.start, model=self.model.eval())
        read = recalibrated(now, data.train.rows(slice(RECALIBRATION))).model
        logits = torch.cat([answer(read, part.inputs) for part in data.test.batches()])
        logits = logits[:, self.columns].to(data.test.labels.device)
        if not bool(torch.isfinite(logits).all()):
            return None if self.readings else (50.0, 0.0, 0.0, 0.0)
        return head_scores(logits, data)


def _area(steps: Sequence[int], values: Sequence[float]) -> float:
    if len(steps) < 2:
        return values[0] if values else 0.0
    pairs = pairwise(zip(steps, values, strict=True))
    return math.fsum((b - a) * (x + y) / 2 for (a, x), (b, y) in pairs) / (steps[-1] - steps[0])
