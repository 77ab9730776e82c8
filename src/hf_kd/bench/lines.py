"""The rows of a bench's tables: of each the records of its seeds, and what is worked out of these alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hf_kd.audit.schema import none_missing
from hf_kd.metrics.scores import average_gap, mean_and_sd

from .config import Experiment, Row
from .store import Store, cell_settings, key_of

Record = Mapping[str, Any]
SEVERAL = ("views-", "groups-")
"""Attacks that see more of a subject than one output."""
BINARY = ("linear-binary", "norm", "weighted-", "at-")
"""Attacks that say forgotten or not, or count the forgotten class more: they accept false alarms."""


@dataclass(frozen=True)
class Line:
    """One row of a table: the records of its seeds."""

    row: Row
    records: tuple[Record, ...]
    failed: tuple[Record, ...]
    missing: int
    other: tuple[str, ...] = ()
    """Names of the settings in which a result differs that the store has in the place of a missing one."""

    @property
    def label(self) -> str:
        return self.row.label

    @property
    def was_run(self) -> bool:
        return bool(self.records or self.failed)

    def values(self, key: str) -> list[float]:
        """Of each seed; a key of an attack's result is written attacks/NAME/KEY."""
        found = []
        for record in self.records:
            value: Any = record["scores"]
            for part in key.split("/"):
                value = (value or {}).get(part)
            found += [] if value is None else [value]
        return found

    def stopped(self) -> list[tuple[Record, str]]:
        """Results of a method that ended before it was done, since its loss was no number any more; each with the reason."""
        return [
            (record, measured["stopped"])
            for record in self.records
            for done in record.get("records", ())
            for measured in done.get("measured", ())
            if "stopped" in measured
        ]

    def mean(self, key: str) -> float | None:
        values = self.values(key)
        return mean_and_sd(values).mean if values else None

    def seconds(self) -> tuple[float, float] | None:
        """Feature pass or reading, and fit: means over seeds; None for what was not made here."""
        if not self.records or not self.row.is_method:
            return None
        took = [record["seconds"] for record in self.records]
        features, fit = (mean_and_sd([each[name] for each in took]).mean for name in ("features", "fit"))
        return features, fit

    def passes(self) -> float | None:
        """Seconds of the method over those of a bare pass in the same cell: median over seeds."""
        ratios = [
            (r["seconds"]["features"] + r["seconds"]["fit"]) / r["seconds"]["bare pass"]
            for r in self.records
            if r["seconds"].get("bare pass")
        ]
        return statistics.median(ratios) if ratios else None


def lines(experiment: Experiment, store: Store) -> list[Line]:
    """The rows of an experiment with what the store has of them; Avg Gap and RTE are worked out here.

    Args:
        experiment: What was asked for.
        store: The results there are.
    """
    found = []
    for row in experiment.rows:
        cells = {seed: cell_settings(experiment, row, seed) for seed in row.seeds}
        keys = {seed: key_of(settings) for seed, settings in cells.items()}
        records = [store.records[key] for key in keys.values() if key in store.records]
        missing = [seed for seed, key in keys.items() if key not in store.records]
        other = {name for s in missing for name in store.other_settings(experiment.name, row.label, s, cells[s])}
        good = tuple(_with_worst(_with_time(r, row)) for r in records if r["status"] == "ok")
        bad = tuple(r for r in records if r["status"] != "ok")
        found.append(Line(row, good, bad, len(missing), tuple(sorted(other))))
    reference = reference_of(found)
    return [_with_gap(line, reference) for line in found]


def reference_of(rows: Sequence[Line]) -> Line | None:
    """The row that stands for the model retrained without D_f: the first of those that have a result.

    Args:
        rows: As `lines` gives them.
    """
    return next((line for line in rows if line.row.reference and line.records), None)


def _with_time(record: Record, row: Row) -> Record:
    if not row.is_method:
        return record
    took = record["seconds"]["features"] + record["seconds"]["fit"]
    return {**record, "scores": record["scores"] | {"RTE": took}}


def _with_worst(record: Record) -> Record:
    """The strongest attackers who see one output, by recall minus false alarms: of those who name a class, and of all."""
    attacks = record["scores"].get("attacks") or {}
    scores = dict(record["scores"])
    for key, left_out in (("worst class", (*SEVERAL, *BINARY)), ("worst", SEVERAL)):
        among = {name: found for name, found in attacks.items() if not name.startswith(left_out)}
        if among:
            name = max(among, key=lambda each: among[each]["recall"] - among[each]["false_alarms"])
            found = among[name]
            scores[key] = {**found, "advantage": found["recall"] - found["false_alarms"], "name": name}
    return {**record, "scores": scores}


def _with_gap(line: Line, reference: Line | None) -> Line:
    """Each seed's Avg Gap to the mean of the retrained models. Of those it is what their seeds differ by."""
    keys = ("D_f", "D_r", "D_t", "MIA")
    aim = [] if reference is None else [reference.mean(key) for key in keys]
    if not aim or not none_missing(aim):
        return line
    records = []
    for record in line.records:
        scores = dict(record["scores"])
        if all(scores.get(key) is not None for key in keys):
            scores["Avg Gap"] = average_gap([scores[key] for key in keys], aim)
        records.append({**record, "scores": scores})
    return replace(line, records=tuple(records))
