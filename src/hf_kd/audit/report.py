"""The result of an audit: every number with its meaning, in the order in which it should be read.

A report holds sections and a section holds scores. A score knows what it is called, which way forgetting moves it, what
chance gives, and what the original and the reference model have. `audit_features` makes reports; `render` and `figures`
show them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from hf_kd.errors import InvalidValueError, UnknownNameError

SCHEMA_VERSION = 1
"""Of the JSON form; raised when a reader of the old form would misread the new one."""

SECTIONS = (
    "converged",
    "worst_case",
    "label_efficiency",
    "paper",
    "head",
    "recovery",
    "attacks",
    "layers",
    "identities",
    "membership",
    "agreement",
    "gap",
    "similarity",
    "weights",
    "inputs",
    "norms",
)
"""Keys of all sections in reading order: what misleads least comes first. A section can be empty but for a note; layers,
identities, gap and weights are there only where they were asked for or can exist."""

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
    """The same score of what never knew the forgotten classes; see `RetentionReport.reference`."""
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
        object.__setattr__(self, "settings", plain(self.settings))


@dataclass(frozen=True)
class Section:
    """Scores that are read together, and the sentences without which they would mislead."""

    key: str
    title: str
    scores: tuple[Score, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", plain(self.settings))

    def rows(self) -> dict[str, tuple[Score, ...]]:
        """Scores by group, in order."""
        rows: dict[str, list[Score]] = {}
        for score in self.scores:
            rows.setdefault(score.group, []).append(score)
        return {group: tuple(scores) for group, scores in rows.items()}


@dataclass(frozen=True, eq=False)
class PlotSamples:
    """A few test features for the figures that need points; stays in memory and is not part of the JSON."""

    original: np.ndarray
    """[n, d]."""
    erased: np.ndarray
    """[n, d], the same samples."""
    labels: np.ndarray
    """[n]."""


@dataclass(frozen=True)
class RetentionReport:
    """What erased features still reveal about forgotten classes, and what it took to find out. Rates are in percent.

    D_f and D_r are forgotten and retained training samples, D_ft and D_rt their test counterparts (paper, Table 1).
    """

    forget_labels: tuple[int, ...]
    reference: str
    """`none`; `retrained`: a model trained without the forgotten classes; `unseen`: classes never trained on."""
    samples: Mapping[str, int]
    """Numbers of samples: D_f, D_r, D_ft, D_rt."""
    dimension: int
    seeds: int
    """Number of seeds behind means and standard deviations."""
    sections: tuple[Section, ...]
    class_names: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    """What concerns the audit as a whole, such as splits that overlap."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """What was audited, as far as the caller knows: model, erasures, taps."""
    plots: Mapping[str, Any] = field(default_factory=dict)
    """Numbers behind the figures: cosines and lengths of class means, norm histograms."""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """Wall time of the probes and attacks, without the feature pass."""
    plot_samples: PlotSamples | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("samples", "context", "plots", "versions"):
            object.__setattr__(self, name, plain(getattr(self, name)))

    # Reading

    def section(self, key: str) -> Section:
        """A section by its key; raises KeyError listing the keys."""
        for section in self.sections:
            if section.key == key:
                return section
        raise UnknownNameError(f"No section {key!r}; there are {', '.join(section.key for section in self.sections)}.")

    def score(self, section: str, name: str, group: str | None = None) -> Score:
        """One score; `group` (attack, class, number of labels) may be left out where the section has one row."""
        for score in self.section(section).scores:
            if score.name == name and group in (None, score.group):
                return score
        known = sorted({f"{s.group + ': ' if s.group else ''}{s.name}" for s in self.section(section).scores})
        raise UnknownNameError(
            f"No score {name!r} (group {group!r}) in {section}; there are {', '.join(known) or 'none'}."
        )

    def __iter__(self) -> Iterator[Score]:
        return (score for section in self.sections for score in section.scores)

    @property
    def worst_case(self) -> Score:
        """Recall of the strongest attacker, the one with the highest recall minus false alarms; `group` names it."""
        return self.score("worst_case", "recall")

    @property
    def treatment(self) -> str:
        """What was done to the audited model: "changed" where its weights were and no eraser stands in it, else "erased"."""
        return "changed" if self.context.get("changes") and not self.context.get("erasures") else "erased"

    def label(self, label: int) -> str:
        """A class as the report names it: "3 (cat)"."""
        name = self.class_names.get(label)
        return f"{label} ({name})" if name else str(label)

    # Showing

    def __rich__(self) -> Any:
        from .render import screen

        return screen(self)

    def to_markdown(self, heading: int = 2) -> str:
        """The whole report for a model card; `heading` is the level of its title."""
        from .render import markdown

        return markdown(self, heading)

    def figures(self, directory: str | Path) -> tuple[Path, ...]:
        """Draw what the report can show into `directory` (PNG) and return the files; see `figures.draw`.

        Raises ImportError, with the command to install it, without matplotlib.
        """
        from .figures import draw

        return draw(self, directory)

    # Keeping

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers; `plot_samples` is left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("plot_samples", "sections")}
        values["class_names"] = {str(label): name for label, name in self.class_names.items()}
        values["sections"] = [asdict(section) for section in self.sections]
        return {"schema_version": SCHEMA_VERSION, "kind": "hf_kd.RetentionReport"} | plain(values)

    def to_json(self, path: str | Path | None = None, indent: int | None = 1) -> str:
        """The report as JSON text, written to `path` where one is given."""
        text = json.dumps(self.to_dict(), indent=indent, allow_nan=False)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RetentionReport:
        """Inverse of `to_dict`; raises ValueError on another kind of object or a later schema."""
        found = data.get("schema_version")
        if data.get("kind") != "hf_kd.RetentionReport" or not isinstance(found, int):
            raise InvalidValueError(
                "This is no retention report: it lacks its kind and schema_version. Pass what to_json wrote."
            )
        if found > SCHEMA_VERSION:
            raise InvalidValueError(
                f"The report has schema version {found}, and this hf_kd reads up to {SCHEMA_VERSION}; install a later one."
            )
        values = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        values["forget_labels"] = tuple(values["forget_labels"])
        values["class_names"] = {int(label): name for label, name in values.get("class_names", {}).items()}
        values["notes"] = tuple(values.get("notes", ()))
        values["sections"] = tuple(
            Section(
                **{
                    **section,
                    "scores": tuple(Score(**score) for score in section["scores"]),
                    "notes": tuple(section["notes"]),
                }
            )
            for section in values["sections"]
        )
        return cls(**values)

    @classmethod
    def from_json(cls, text: str | Path) -> RetentionReport:
        """Load what `to_json` gave: the text itself, or a `Path` to it."""
        return cls.from_dict(json.loads(text.read_text(encoding="utf-8") if isinstance(text, Path) else text))


def plain(value: Any) -> Any:
    """Tuples to lists, arrays to lists, keys to strings: what JSON gives back unchanged."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
