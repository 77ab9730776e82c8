"""What a report is made of: scores, each with its meaning, and the sections in which they are read together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard, TypeVar

import numpy as np

from hf_kd.errors import InvalidValueError
from hf_kd.metrics.scores import MeanAndSD, mean_and_sd

_Value = TypeVar("_Value")

SECTIONS = (
    "worst_case",
    "concepts",
    "weight_access",
    "converged",
    "label_efficiency",
    "paper",
    "head",
    "recovery_ratio",
    "attacks",
    "reference_level",
    "layer_profile",
    "identities",
    "membership",
    "agreement",
    "gap",
    "similarity",
    "weights",
    "inputs",
    "norms",
)
"""Keys of all sections in reading order: what misleads least comes first. A section can be empty but for a note; concepts,
weight access, the level of references, the layer profile, identities, gap and weights are there only where they were asked
for or can exist."""

VERSIONS = ("erased", "original", "reference", "before_projection")
"""Of features and answers: behind the eraser, of the original model, of a reference without the knowledge, and before the
eraser where that is not the original."""

PAPER_NOTE = (
    "The paper's probe is stopped long before it converges and measures mostly how large the features are: multiplying the "
    "original's by 0.1, which erases nothing, lowers it too."
)
"""Wherever a number of that probe is shown."""

DIRECTIONS = {
    "lower": "forgetting lowers it",
    "higher": "higher is better: what should be kept was kept, or forgotten and kept are weighed together",
    "chance": "forgetting moves it towards what the reference has; chance, where given, is no leak",
    "none": "describes; neither way is forgetting",
}


@dataclass(frozen=True)
class Score:
    """One number, measured on the erased features, beside the same number of other features."""

    name: str
    value: float | None
    """On the erased features; None where it does not exist, and a note of the section says why."""
    direction: str
    """A key of `DIRECTIONS`."""
    group: str = ""
    """The row it belongs to in a table: the attack, the class, the number of labels."""
    unit: str = "%"
    chance: float | None = None
    """What guessing gives; None where that is no fixed number."""
    original: float | None = None
    """The same score of the original model."""
    reference: float | None = None
    """The same score of the reference; see `RetentionReport.reference`."""
    before_projection: float | None = None
    """The same score on the features before the eraser; None where these are the original's."""
    sd: float | None = None
    """Standard deviation of `value` over seeds, or over what `settings["sd_over"]` names; None for a single seed or where
    nothing depends on it."""
    protocol: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            raise InvalidValueError(f"direction is {self.direction!r}; expected one of {', '.join(DIRECTIONS)}.")
        for name in ("value", "original", "reference", "before_projection", "sd", "chance"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise InvalidValueError(
                    f"{name} of score {self.name!r} is {number}; use None where there is no number."
                )
        object.__setattr__(self, "settings", json_ready(self.settings))

    def __repr__(self) -> str:
        numbers = {name: getattr(self, name) for name in ("value", "sd", *VERSIONS[1:], "chance")}
        told = [f"{name} {number:.4g}" for name, number in numbers.items() if number is not None]
        name = f"{self.group}: {self.name}" if self.group else self.name
        unit = f" in {self.unit}" if self.unit else ""
        return f"<Score {name}{unit}: {', '.join(told) or 'does not exist'}; forgetting: {self.direction}>"


@dataclass(frozen=True)
class Section:
    """Scores that are read together, and the sentences without which they would mislead."""

    key: str
    title: str
    scores: tuple[Score, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", json_ready(self.settings))

    def __repr__(self) -> str:
        lines = [f"<Section {self.key}: {self.title}", *map(repr, self.scores), *self.notes]
        return "\n  ".join(lines) + ">"

    def rows(self) -> dict[str, tuple[Score, ...]]:
        """Scores by group, in order."""
        rows: dict[str, list[Score]] = {}
        for score in self.scores:
            rows.setdefault(score.group, []).append(score)
        return {group: tuple(scores) for group, scores in rows.items()}


@dataclass(frozen=True)
class Quantity:
    """What a score measures: its name, which way is forgetting, and how it is taken from the measurement of one version."""

    name: str
    direction: str
    """A key of `DIRECTIONS`."""
    pick: Callable[[Any], float | Sequence[float | None] | None]
    """From the measurement of a version to the number, or to one number for each seed."""
    unit: str = "%"
    chance: float | None = None
    sd: float | None = None
    """Where it is not that over seeds."""


def scores_of(
    versions: Mapping[str, Any], quantities: Iterable[Quantity], group: str = "", **about: Any
) -> list[Score]:
    """A score for each quantity, the same number of every version beside that of `erased`.

    versions: what was measured, by version: `erased` and any of `original`, `reference`, `before_projection`.
    about: fields of `Score` that all of them share. Numbers for several seeds become their mean, with the deviation of
        `erased`.
    """
    found = []
    for quantity in quantities:
        means = {version: _mean(quantity.pick(measured)) for version, measured in versions.items()}
        erased = means.pop("erased", None)
        found.append(
            Score(
                quantity.name,
                erased and erased.mean,
                quantity.direction,
                group,
                unit=quantity.unit,
                chance=quantity.chance,
                sd=quantity.sd if erased is None or erased.sd is None else erased.sd,
                **{version: mean and mean.mean for version, mean in means.items()},
                **about,
            )
        )
    return found


def none_missing(values: list[_Value | None]) -> TypeGuard[list[_Value]]:
    """Whether there is a value at every place."""
    return all(value is not None for value in values)


def _mean(picked: float | Sequence[float | None] | None) -> MeanAndSD | None:
    """Mean and sd over seeds; None where there is no number."""
    numbers = list(picked) if isinstance(picked, Sequence) else [picked]
    return mean_and_sd(numbers) if numbers and none_missing(numbers) else None


def json_ready(value: Any) -> Any:
    """Tuples to lists, arrays to lists, keys to strings: what JSON gives back unchanged."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return json_ready(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [json_ready(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
