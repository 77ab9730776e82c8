"""The section about references at equal accuracy: F against R of networks that never saw the class, read at this R."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from hf_kd.audit.sampling import of_fewer_classes
from hf_kd.audit.schema import Score, Section
from hf_kd.metrics.attack_data import AuditData
from hf_kd.metrics.equal_accuracy import level_at
from hf_kd.metrics.scores import forget_retain_accuracy

Point = tuple[float, float]
"""R and F of the converged probe, in percent."""


@dataclass(frozen=True)
class ReadLevel:
    """What the converged probe reads in the audited model and in references."""

    read: str
    """What was read: "features", or the "bare network"."""
    own: Point
    references: tuple[Point, ...]
    n_forget: int | None = None
    """Forgotten test samples behind each F, where they are not those of the report."""


def converged_point(
    features: tuple[Tensor, Tensor], labels: tuple[Tensor, ...], forget: Sequence[int], most: int | None = None
) -> Point:
    """R and F of the converged probe on train and test features [n, d], with at most `most` retained classes."""
    every = AuditData.of(features[0], labels[0], features[1], labels[1], list(forget))
    data = of_fewer_classes({"own": every}, most)[0]["own"]
    f, r = forget_retain_accuracy(data.linear_probe.predict(data.test), data.test_labels, list(forget))
    return r, f


def reference_level_section(levels: Sequence[ReadLevel], n_forget: int) -> Section:
    """The section of a report.

    Args:
        levels: What was read, one row each.
        n_forget: Forgotten test samples.
    """
    scores, notes = [], []
    for level in levels:
        read, (r, f), references = level.read, level.own, level.references
        found = level_at(r, references, level.n_forget or n_forget)
        scores.append(
            Score(
                "D_ft",
                f,
                "chance",
                f"{read}, at R = {r:.1f} %",
                reference=found.level,
                protocol="references interpolated at the audited model's own R",
                settings={
                    "R": r,
                    "references": [list(point) for point in references],
                    "level_sd": found.sd,
                },
            )
        )
        many = f"{len(references)} reference" + "s" * (len(references) > 1)
        if found.level is None:
            notes.append(f"{read.capitalize()}: {found.reason}; give one that is as accurate.")
        else:
            spread = "" if found.sd is None else f" ± {found.sd:.1f}"
            notes.append(
                f"{read.capitalize()}: at R = {r:.1f} % the level of {many} is {found.level:.1f}{spread} %, and this model "
                f"is read at {f:.1f} %."
            )
    notes.append("A more accurate network is read better whether it saw the class or not: compare at equal R only.")
    return Section("reference_level", "References at equal accuracy", tuple(scores), tuple(notes))
