"""The section about a concept by its name: zero-shot labelling, retrieval, and what attackers make of erased embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_kd.audit.schema import Score, Section

HIGHER = ("others", "accuracy")
"""Words of scores that should stay high."""
STILL_ALIKE = 50.0
"""Percent: from which image retrieval or a converged probe counts as finding the concept."""


def concepts_section(versions: Mapping[str, Mapping[str, float]], classes: int, notes: Sequence[str] = ()) -> Section:
    """The section of a report.

    Args:
        versions: What `hf_kd.metrics.concepts.concept_scores` measured, by version; `erased` among them.
        classes: How many candidates there were.
        notes: What else is to be said.
    """
    erased = versions["erased"]
    scores = []
    for key, value in erased.items():
        others: dict[str, Any] = {version: found.get(key) for version, found in versions.items() if version != "erased"}
        group, _, short = key.rpartition(": ")
        scores.append(
            Score(
                short,
                value,
                _direction(key),
                group,
                unit="" if short == "rank" else "%",
                chance=_chance(short, classes),
                protocol="cosine of image and text embeddings",
                **others,
            )
        )
    told = []
    by_name = max(erased["recall, worst wording"], erased["original texts: recall, worst wording"])
    alike = max(erased["image to image P@10"], erased["linear probe: recall"])
    if alike > STILL_ALIKE and by_name < alike:
        gone = "it is gone" if by_name <= 2 * 100 / classes else "less is found"
        told.append(
            f"By name {gone}, and images of it are still alike: the worst wording "
            f"finds {by_name:.1f} % of them, a probe on labelled images {alike:.1f} %."
        )
    return Section("concepts", "A concept by its name", tuple(scores), (*told, *notes))


def _direction(key: str) -> str:
    if "AUROC" in key:
        return "chance"
    if "false alarms" in key:
        return "none"
    if "rank" in key or any(word in key for word in HIGHER):
        return "higher" if "rank" not in key else "none"
    return "lower"


def _chance(name: str, classes: int) -> float | None:
    if "AUROC" in name:
        return 50.0
    return 100 / classes if name.startswith("recall") or name.endswith("recall") else None
