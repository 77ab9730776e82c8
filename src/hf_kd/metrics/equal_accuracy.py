"""What references are read at when they are as accurate as the network that is audited.

A better network is read better, whether it saw the class or not: the level to compare with is a curve F(R), not a number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SLACK = 0.5
"""Points of R beyond the references up to which the level is still read off: that of their nearest R."""

ALONE = 1.0
"""Points of R around a single reference, or several at one accuracy, within which they are the level."""


@dataclass(frozen=True)
class EqualAccuracyLevel:
    """F of references at a given R, in percent."""

    level: float | None
    """None where no reference is that accurate: nothing is extrapolated."""
    sd: float | None
    """How uncertain it is: the scatter of three or more references about their line, and the finite test set."""
    reason: str = ""


def level_at(
    accuracy: float, references: Sequence[tuple[float, float]], n_forget: int | None = None
) -> EqualAccuracyLevel:
    """The level of references at `accuracy`.

    Three or more: the least-squares line through them with the standard deviation of its prediction. Two: the line between
    them. One: itself, within `ALONE` points. Up to `SLACK` points beyond them, the level at the nearest end.

    Args:
        accuracy: R of the audited network, in percent.
        references: (R, F) of each reference, in percent.
        n_forget: Forgotten test images behind each F, for the part of the spread that comes from them.

    Example:
        >>> level_at(86.0, [(84.0, 60.0), (88.0, 70.0)]).level
        65.0
        >>> level_at(92.0, [(84.0, 60.0), (88.0, 70.0)]).reason
        'no reference at this accuracy (references have R 84.0 to 88.0)'
    """
    if not references:
        return EqualAccuracyLevel(None, None, "no reference was given")
    r, f = [float(pair[0]) for pair in references], [float(pair[1]) for pair in references]
    low, high = min(r), max(r)
    slack = SLACK if high - low > ALONE else ALONE
    if not low - slack <= accuracy <= high + slack:
        span = f"R {low:.1f}" if low == high else f"R {low:.1f} to {high:.1f}"
        return EqualAccuracyLevel(None, None, f"no reference at this accuracy (references have {span})")
    count, mean_r, mean_f = len(r), math.fsum(r) / len(r), math.fsum(f) / len(f)
    spread = math.fsum((x - mean_r) ** 2 for x in r)
    flat = high - low <= ALONE
    slope = 0.0 if flat else math.fsum((x - mean_r) * (y - mean_f) for x, y in zip(r, f, strict=True)) / spread
    at = min(max(accuracy, low), high)  # no line is drawn beyond the references
    level = min(max(mean_f + slope * (at - mean_r), 0.0), 100.0)  # a line through points at its end may leave it
    share = level / 100
    variance = 0.0 if n_forget is None else 1e4 * share * (1 - share) / n_forget
    free = count - (1 if flat else 2)
    if free > 0:
        rest = math.fsum((y - mean_f - slope * (x - mean_r)) ** 2 for x, y in zip(r, f, strict=True)) / free
        reach = 0.0 if flat else (at - mean_r) ** 2 / spread
        variance = max(variance, rest * (1 + 1 / count + reach))
    return EqualAccuracyLevel(level, math.sqrt(variance) if variance else None)
