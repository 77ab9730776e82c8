"""The section of a report about changed weights (Fig. 2 of the paper)."""

from __future__ import annotations

from hf_kd.audit.schema import Score, Section
from hf_kd.metrics.weights import WeightDistance


def weights_section(distance: WeightDistance, most: int = 12) -> Section:
    """The section of a report about changed weights (Fig. 2): head, everything else, and the `most` tensors moved most."""
    moved = sorted(distance.tensors, key=lambda tensor: -(tensor.relative or 0.0))[:most]
    scores = []
    for row in (distance.head, distance.other, distance.total, *(tensor for tensor in moved if tensor.frobenius)):
        about = {"entries": row.entries, "not_finite": row.not_finite, "frobenius": row.frobenius}
        for name, value in (("relative", row.relative), ("mean_abs", row.mean_abs)):
            scores.append(
                Score(name, value, "none", row.name, unit="relative", protocol="current - original", settings=about)
            )
    notes = [
        "relative: ||change||_F / ||original||_F; mean abs: mean |change| per entry. Erasers are not weights and are not "
        "counted: ESC leaves every weight as it was, and changes the head once folded."
    ]
    if not distance.total.frobenius and not distance.total.not_finite:
        notes.append("No weight differs from the original's: everything it knew is still in them.")
    return Section("weights", "Weights moved (Fig. 2)", tuple(scores), tuple(notes))
