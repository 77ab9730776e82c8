"""What every probe and every attack owes: `ProbeTester` and `AttackTester`, on planted features without a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import ClassVar, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_kd.errors import InvalidTypeError
from hf_kd.metrics.attack_data import AttackResult, AuditData

from .checks import close, expect

Splits = tuple[Tensor, Tensor, Tensor, Tensor]
"""Train features [n, d], train labels [n], test features [n, d], test labels [n]."""


def planted(seed: int = 0, n: int = 900, d: int = 8, classes: int = 3, strength: float = 4.0) -> Splits:
    """Gaussian classes on axes of their own, class 0 three times as far out as the others.

    Args:
        seed: Of the features.
        n: Samples of each split, the classes in turn.
        d: Dimensions.
        classes: Number of classes.
        strength: Distance of a class mean from the origin, in standard deviations within a class.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    means = strength * np.eye(classes, d)
    means[0] *= 3
    train, test = (torch.from_numpy(rng.normal(size=(n, d)) + means[labels]).float() for _ in range(2))
    return train, torch.from_numpy(labels), test, torch.from_numpy(labels)


def noise(seed: int = 0, n: int = 900, d: int = 8, classes: int = 3) -> Splits:
    """Features that know nothing of their labels; arguments as in `planted`."""
    return planted(seed, n, d, classes, strength=0.0)


def _orthogonal(d: int) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]


_Result = TypeVar("_Result")

INVARIANCES: dict[str, Callable[[Tensor], Tensor]] = {
    "shift": lambda x: x + 3.0,
    "scale": lambda x: 0.1 * x,
    "coordinate scales": lambda x: x * torch.logspace(-2, 2, x.shape[1], dtype=x.dtype),
    "rotation": lambda x: (x.double() @ _orthogonal(x.shape[1])).to(x.dtype),
    "affine": lambda x: (x.double() @ (_orthogonal(x.shape[1]) * torch.logspace(-1, 1, x.shape[1])) + 3.0).to(x.dtype),
}
"""Maps of the features [n, d], the same for train and test, that may not change what a probe or attack reads."""


def _numpy_state() -> np.ndarray:
    return np.random.get_state(legacy=False)["state"]["key"].copy()


def _undisturbed(run: Callable[[], _Result]) -> _Result:
    """The result of `run`, which may not move the global generators."""
    state, numpy_state = torch.get_rng_state(), _numpy_state()
    result = run()
    expect(torch.equal(state, torch.get_rng_state()), "the global generator of torch was moved")
    expect(np.array_equal(numpy_state, _numpy_state()), "the global generator of numpy was moved")
    return result


def _skip_without_claims(invariances: tuple[str, ...]) -> None:
    """A pass of what was not asked would read as a property that holds."""
    if not invariances:
        pytest.skip("claims no invariance")


class ProbeTester:
    """Inherit, name the class `Test...`, and define `scores`.

    Attributes:
        invariances: Names among `INVARIANCES`: maps of the features under which nearly all predictions stay.
        accuracy: Least accuracy on the planted signal, as a share.
    """

    invariances: ClassVar[tuple[str, ...]] = ()
    accuracy: ClassVar[float] = 0.95

    def scores(self, train: Tensor, labels: Tensor, test: Tensor, seed: int) -> Tensor:
        """Fit the probe and apply it.

        Args:
            train: Features [n, d].
            labels: Their classes [n].
            test: Features [m, d].
            seed: Of everything that is random.

        Returns:
            Scores or probabilities [m, K], a column for each class in ascending order.
        """
        raise InvalidTypeError(f"{type(self).__name__} has to define scores(train, labels, test, seed).")

    def _hits(self, splits: Splits, seed: int = 0) -> float:
        train, y, test, test_y = splits
        found = self.scores(train, y, test, seed)
        expect(found.shape == (len(test), int(y.max()) + 1), f"scores have shape {tuple(found.shape)}, not [m, K]")
        expect(bool(torch.isfinite(found).all()), "some scores are not finite")
        return float((found.argmax(dim=1).cpu() == test_y).double().mean())

    def test_finds_a_planted_signal(self) -> None:
        """Positive control."""
        hits = self._hits(planted(n=600))
        expect(hits >= self.accuracy, f"{hits:.3f} of the planted classes are read, less than {self.accuracy}")

    def test_finds_nothing_in_noise(self) -> None:
        """Negative control: chance on features that know nothing of their labels."""
        hits = self._hits(noise(n=600))
        expect(abs(hits - 1 / 3) < 0.1, f"{hits:.3f} of labels that cannot be known are read; chance is 0.333")

    def test_is_deterministic_for_a_seed(self) -> None:
        """Twice the same, bit for bit, without touching a global generator."""
        train, y, test, _ = planted(n=150, strength=0.4)
        first, second = (_undisturbed(lambda: self.scores(train, y, test, 3)) for _ in range(2))
        expect(torch.equal(first, second), "two fits with one seed differ")

    def test_keeps_its_invariances(self) -> None:
        """Nearly all predictions stay under each map that the probe claims to be blind to."""
        _skip_without_claims(self.invariances)
        train, y, test, _ = planted(n=300, strength=1.0)
        before = self.scores(train, y, test, 0).argmax(dim=1)
        for name in self.invariances:
            after = self.scores(INVARIANCES[name](train), y, INVARIANCES[name](test), 0).argmax(dim=1)
            same = float((before == after).double().mean())
            expect(same > 0.97, f"{1 - same:.1%} of the predictions change under {name}")

    def test_columns_are_the_classes_in_ascending_order(self) -> None:
        """Labels need not be 0..K-1."""
        train, y, test, _ = planted(n=150)
        ids = torch.tensor([7, 12, 1000])
        first, second = self.scores(train, y, test, 0), self.scores(train, ids[y], test, 0)
        expect(close(second, first, 1e-6), "other class ids in the same order give other scores")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_refuses_what_is_not_finite(self, split: str, value: float) -> None:
        """A ValueError, not scores that are not numbers."""
        train, y, test, _ = planted(n=60)
        {"train": train, "test": test}[split][17, 2] = value
        with pytest.raises(ValueError):
            self.scores(train, y, test, 0)

    def test_refuses_wrong_shapes(self) -> None:
        """A ValueError for a label too few, features without rows, and test features of another width."""
        train, y, test, _ = planted(n=60)
        for arguments in (
            (train, y[:-1], test),
            (train[0], y, test),
            (train, y, test[:, :4]),
            (train[:0], y[:0], test),
        ):
            with pytest.raises(ValueError):
                self.scores(*arguments, 0)


class AttackTester:
    """Inherit, name the class `Test...`, and define `attack`.

    Attributes:
        invariances: Names among `INVARIANCES`: maps of the features under which recall and false alarms nearly stay.
        views: Further views of every image that the attack needs.
        samples: Test samples that one decision is about: what is found by chance varies more with many.
        several: Whether the attack finds several forgotten classes at once.
        tolerated: False alarms that the attack accepts by design, in percent.
    """

    invariances: ClassVar[tuple[str, ...]] = ()
    views: ClassVar[int] = 0
    samples: ClassVar[int] = 1
    several: ClassVar[bool] = True
    tolerated: ClassVar[float] = 0.0

    def attack(self, data: AuditData, seed: int) -> AttackResult:
        """Run the attack.

        Args:
            data: Features and labels of both splits, checked, and what was forgotten.
            seed: Of everything that is random.
        """
        raise InvalidTypeError(f"{type(self).__name__} has to define attack(data, seed).")

    def test_finds_a_planted_signal(self) -> None:
        """Positive control, for one forgotten class of three and for two of four.

        Without the views that the attack needs it is a ValueError, not an attack on fewer views under the same name.
        """
        if self.views:
            with pytest.raises(ValueError):
                self.attack(AuditData.of(*planted(n=60), 0), 0)
        for forget, classes in (((0,), 3), ((0, 2), 4)) if self.several else (((0,), 3),):
            result = self.attack(_data(600, classes, 4.0, forget), 0)
            _check_plain(result)
            expect(result.advantage > 90 - self.tolerated, f"recall minus false alarms is {result.advantage:.1f}")
            expect(
                result.accuracy_retain > 90 - self.tolerated, f"{result.accuracy_retain:.1f} % of retained are right"
            )
            expect(result.auc is None or result.auc > 95, f"the area under the ROC curve is {result.auc}")

    def test_finds_nothing_in_noise(self) -> None:
        """Negative control: flagging at random has an advantage of 0 and an area of 50."""
        result = self.attack(_data(600, 3, 0.0, (0,)), 0)
        slack = self.samples**0.5
        expect(abs(result.advantage) < 15 * slack, f"recall minus false alarms is {result.advantage:.1f} on noise")
        expect(result.auc is None or abs(result.auc - 50) < 10 * slack, f"the area is {result.auc} on noise")

    def test_is_deterministic_for_a_seed(self) -> None:
        """Twice the same, without touching a global generator."""
        first, second = (_undisturbed(lambda: self.attack(_fresh(150, 3, 0.4, (0,)), 3)) for _ in range(2))
        expect(first == second, "two runs with one seed differ")

    def test_keeps_its_invariances(self) -> None:
        """Recall and false alarms move by 2 points at most under each map that the attack claims to be blind to."""
        _skip_without_claims(self.invariances)
        before = self.attack(_data(300, 3, 1.0, (0,)), 0)
        for name in self.invariances:
            after = self.attack(_data(300, 3, 1.0, (0,), INVARIANCES[name]), 0)
            moved = max(abs(getattr(after, n) - getattr(before, n)) for n in ("recall_forget", "false_alarms"))
            expect(moved <= 2, f"recall or false alarms move by {moved:.1f} points under {name}")


def _fresh(
    n: int, classes: int, strength: float, forget: tuple[int, ...], mapped: Callable[[Tensor], Tensor] = lambda x: x
) -> AuditData:
    """Planted features with two further views of every image, nothing fitted on them yet."""
    train, y, test, test_y = planted(n=n, classes=classes, strength=strength)
    rng = torch.Generator().manual_seed(0)
    views = [[mapped(x + 0.5 * torch.randn(x.shape, generator=rng)) for _ in range(2)] for x in (train, test)]
    return AuditData.of(mapped(train), y, mapped(test), test_y, forget, *views)


_data = lru_cache(maxsize=8)(_fresh)
"""The same for every attack, so that fits which attacks share are made once."""


def _check_plain(result: AttackResult) -> None:
    """Rates in percent, and settings that JSON can hold."""
    for name in ("recall_forget", "accuracy_retain", "false_alarms", "auc"):
        value = getattr(result, name)
        in_range = (value is None and name == "auc") or (isinstance(value, float) and 0 <= value <= 100 + 1e-9)
        expect(in_range, f"{name} is {value!r}, not a float in [0, 100]")
    expect(bool(result.name), "the result has no name")
    settings = dict(result.settings)
    expect(json.loads(json.dumps(settings)) == settings, f"settings {settings} are not plain values")
