"""The data of a report: its sections and what was audited, how they are looked up, and their form as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hf_kd.data.paths import local_path
from hf_kd.errors import InvalidValueError, UnknownNameError, did_you_mean, shortened
from hf_kd.methods.records import treatment

from .schema import Score, Section, json_ready

SCHEMA_VERSION = 2
"""Of the JSON form; raised when a reader of the old form would misread the new one."""

_Report = TypeVar("_Report", bound="ReportData")

RENAMED = {"layers": "layer_profile", "recovery": "recovery_ratio"}
"""Keys of sections, and names of scores in them, of version 1."""


@dataclass(frozen=True, eq=False)
class PlotSamples:
    """A few test features for the figures that need points; stays in memory and is not part of the JSON."""

    original: np.ndarray | None
    """[n, d]; None where no original was given."""
    erased: np.ndarray
    """[n, d], the same samples."""
    labels: np.ndarray
    """[n]."""


@dataclass(frozen=True)
class ReportData:
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
    sampled: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """What was not measured on everything there was: a split ("train", "test", by `ReadOptions.limit`) or a measurement
    ("linear", "verification", ...) -> how many samples were "drawn", "of" how many, by which "seed"."""
    seconds: float = 0.0
    """Wall time of the feature passes, probes and attacks (of `audit_features`: without the passes), without what comes
    before and after: loading the model, drawing figures."""
    plot_samples: PlotSamples | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("samples", "context", "plots", "versions", "sampled"):
            object.__setattr__(self, name, json_ready(getattr(self, name)))

    # Reading

    def section(self, key: str) -> Section:
        """A section.

        Args:
            key: One of `SECTIONS`.

        Raises:
            KeyError: Where the report lacks it; the message lists those it has.
        """
        for section in self.sections:
            if section.key == key:
                return section
        known = [section.key for section in self.sections]
        raise UnknownNameError(f"No section {key!r}.{did_you_mean(key, known)} There are {', '.join(known)}.")

    def score(self, section: str, name: str, group: str | None = None) -> Score:
        """One score.

        Args:
            section: Key of its section.
            name: Its name, such as "D_ft" or "recall".
            group: Its row: the attack, the class, the number of labels. May be left out where the section has one.

        Raises:
            KeyError: Where there is none; the message lists those of the section.
        """
        for score in self.section(section).scores:
            if score.name == name and group in (None, score.group):
                return score
        own = {score.name for score in self.section(section).scores}
        known = sorted({f"{s.group + ': ' if s.group else ''}{s.name}" for s in self.section(section).scores})
        raise UnknownNameError(
            f"No score {name!r} (group {group!r}) in {section}.{did_you_mean(name, own)} There are "
            f"{', '.join(known) or 'none'}."
        )

    def __iter__(self) -> Iterator[Score]:
        return (score for section in self.sections for score in section.scores)

    @property
    def worst_case(self) -> Score:
        """Recall of the strongest attacker, the one with the highest recall minus false alarms; `group` names it."""
        return self.score("worst_case", "recall")

    @property
    def treatment(self) -> str:
        """What was done to the audited model: "changed" where its weights were and no eraser stands in it, "audited" where
        its records name nothing, else "erased".
        """
        return treatment(self.context.get("changes"), self.context.get("erasures", True))  # matrices alone do not say

    def label(self, label: int) -> str:
        """A class as the report names it.

        Args:
            label: Its id.

        Returns:
            "3 (cat)", or the id alone where it has no name.
        """
        name = self.class_names.get(label)
        return f"{label} ({name})" if name else str(label)

    @property
    def original_known(self) -> bool:
        """Whether the model before everything was at hand: not of changed weights (also by a folded eraser) alone."""
        return not self.context.get("changes") or bool(self.context.get("original_given"))

    # Keeping

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers; `plot_samples` is left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("plot_samples", "sections")}
        values["class_names"] = {str(label): name for label, name in self.class_names.items()}
        values["sections"] = [asdict(section) for section in self.sections]
        return {"schema_version": SCHEMA_VERSION, "kind": "hf_kd.RetentionReport"} | json_ready(values)

    def to_json(self, path: str | Path | None = None, indent: int | None = 1) -> str:
        """The report as JSON text.

        Args:
            path: A file to write it to as well.
            indent: Spaces of each level; None for a single line.

        Returns:
            The text, which `from_json` reads.
        """
        text = json.dumps(self.to_dict(), indent=indent, allow_nan=False)
        if path is not None:
            local_path(path).write_text(text + "\n", encoding="utf-8")
        return text

    @classmethod
    def from_dict(cls: type[_Report], data: Mapping[str, Any]) -> _Report:
        """Inverse of `to_dict`, also for reports of earlier versions.

        Args:
            data: What `to_dict` gave, also after JSON.

        Raises:
            ValueError: For another kind of object, or one of a later version.
        """
        data = data if isinstance(data, Mapping) else {}
        found = data.get("schema_version")
        if data.get("kind") != "hf_kd.RetentionReport" or not isinstance(found, int):
            raise InvalidValueError(
                "This is no retention report: it lacks its kind and schema_version. Pass what to_json wrote."
            )
        if found > SCHEMA_VERSION:
            raise InvalidValueError(
                f"The report has schema version {found}, and this hf_kd reads up to {SCHEMA_VERSION}; install a later one."
            )
        try:
            values = {f.name: data[f.name] for f in fields(cls) if f.name in data}
            values["forget_labels"] = tuple(values["forget_labels"])
            values["class_names"] = {int(label): name for label, name in values.get("class_names", {}).items()}
            values["notes"] = tuple(values.get("notes", ()))
            values["sections"] = tuple(_section(section) for section in values["sections"])
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidValueError(
                f"The report cannot be read ({type(error).__name__}: {error}): it is damaged, or something else wrote it. "
                "Pass what to_json wrote."
            ) from error

    @classmethod
    def from_json(cls: type[_Report], text: str | Path) -> _Report:
        """Load what `to_json` gave.

        Args:
            text: The text itself, or a `Path` to it.

        Raises:
            ValueError: For what is no JSON, no report, or one of a later version.
        """
        try:
            data = json.loads(local_path(text).read_text(encoding="utf-8") if isinstance(text, Path) else text)
        except (ValueError, RecursionError) as error:
            raise InvalidValueError(
                f"{shortened(text)} is no JSON ({error}). Pass the text that to_json gave, or Path(...) of its file."
            ) from error
        return cls.from_dict(data)


def scores_in(report: ReportData, key: str, name: str | None = None) -> list[Score]:
    """Scores of a section, all or those of a name; none where the report lacks it."""
    return [s for section in report.sections if section.key == key for s in section.scores if name in (None, s.name)]


def _section(data: Mapping[str, Any]) -> Section:
    """A section of the JSON form, of this version or an earlier one."""
    scores = tuple(Score(**{**score, "name": RENAMED.get(score["name"], score["name"])}) for score in data["scores"])
    key = RENAMED.get(data["key"], data["key"])
    return Section(**{**data, "key": key, "scores": scores, "notes": tuple(data["notes"])})
