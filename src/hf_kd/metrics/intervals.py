"""What a number of test images can tell: 95 % intervals of a share, and of the difference between two shares.

Everything is in percent, as in `scores`. A difference of the same images before and after is *paired*: only images that
changed sides speak, and the interval holds 0 exactly where McNemar's exact test finds no difference.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from hf_kd.errors import InvalidValueError

TAIL = 0.025
"""What may lie beyond each end."""


def wilson_interval(hits: float, samples: int) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927).

    Args:
        hits: How many of the samples; a mean over seeds need not be whole.
        samples: n.

    Returns:
        Lower and upper end in percent.

    Raises:
        InvalidValueError: Unless 0 <= hits <= samples and there is a sample.

    Example:
        >>> low, high = wilson_interval(23, 25)
        >>> round(low, 1), round(high, 1)
        (75.0, 97.8)
    """
    if samples < 1 or not 0 <= hits <= samples:
        raise InvalidValueError(f"{hits} of {samples} is no share; pass 0 <= hits <= samples with at least one sample.")
    return _wilson(hits, samples, TAIL)


def _wilson(hits: float, samples: int, tail: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf(1 - tail)
    share, square = hits / samples, z * z
    centre = share + square / (2 * samples)
    width = z * math.sqrt(share * (1 - share) / samples + square / (4 * samples * samples))
    scale = 100 / (1 + square / samples)
    low, high = max(0.0, scale * (centre - width)), min(100.0, scale * (centre + width))
    return (low if hits else 0.0), (high if hits < samples else 100.0)  # which rounding may miss


def paired_difference(lost: float, gained: float, samples: int, comparisons: int = 1) -> tuple[float, float]:
    """Interval of a change on the same samples, on the careful side; 0 lies outside just where McNemar's exact p < 0.05.

    The wider of two at each end: Clopper and Pearson's of the share of losses among the changed samples, which takes their
    number for given, and Newcombe's of the shares of gained and lost samples (Wilson's intervals, combined), which does
    not. An end by which the first leaves out 0 stays as it is.

    Args:
        lost: Samples that were hits before and are none now. Fractions, means over draws, are rounded so that less differs.
        gained: Samples that are hits now and were none before.
        samples: All of them, n.
        comparisons: Among how many such changes this one was picked; what lies beyond an end is divided by it (Bonferroni).

    Returns:
        Lower and upper end of (now - before), in points.

    Raises:
        InvalidValueError: Where more were lost and gained than there are samples.

    Example:
        >>> [round(end, 1) for end in paired_difference(lost=6, gained=0, samples=25)]
        [-43.4, -2.0]
        >>> [round(end, 1) for end in paired_difference(lost=5, gained=0, samples=25)]
        [-39.1, 0.9]
    """
    if samples < 1 or lost < 0 or gained < 0 or lost + gained > samples + 1e-6:
        raise InvalidValueError(f"{lost} lost and {gained} gained of {samples} is no change of these samples.")
    fewer, more = math.ceil(min(lost, gained) - 1e-6), math.floor(max(lost, gained) + 1e-6)
    more = max(more, fewer)
    lost, gained = (more, fewer) if lost >= gained else (fewer, more)
    changed, tail = lost + gained, TAIL / comparisons
    low, high = _clopper_pearson(gained, changed, tail) if changed else (0.5, 0.5)
    scale = 100 * changed / samples
    low, high = scale * (2 * low - 1), scale * (2 * high - 1)
    least, most = _newcombe(lost, gained, samples, tail)
    return (low if low > 0 else min(low, least)), (high if high < 0 else max(high, most))


def _newcombe(lost: int, gained: int, samples: int, tail: float) -> tuple[float, float]:
    """Ends of gained - lost from the Wilson interval of each, with the correlation that shares of one sample have."""
    (low, high), (low_lost, high_lost) = _wilson(gained, samples, tail), _wilson(lost, samples, tail)
    share, share_lost = 100 * gained / samples, 100 * lost / samples
    rest = (100 - share) * (100 - share_lost)
    together = math.sqrt(share * share_lost / rest) if rest else 1.0  # minus their correlation
    below, above = share - low, high_lost - share_lost
    down = math.sqrt(below**2 + above**2 + 2 * together * below * above)
    below, above = share_lost - low_lost, high - share
    up = math.sqrt(below**2 + above**2 + 2 * together * below * above)
    return max(-100.0, share - share_lost - down), min(100.0, share - share_lost + up)


def unpaired_difference(now: float, samples: int, before: float, samples_before: int) -> tuple[float, float]:
    """Interval of a difference between shares of unrelated samples, from both Wilson intervals (Newcombe 1998, method 10).

    Args:
        now: Hits.
        samples: Of how many.
        before: Hits of the other.
        samples_before: Of how many.

    Returns:
        Lower and upper end of (now - before), in points.

    Raises:
        InvalidValueError: As `wilson_interval`.

    Example:
        >>> [round(end, 1) for end in unpaired_difference(10, 25, 20, 25)]
        [-60.0, -12.9]
    """
    (low, high), (low_before, high_before) = wilson_interval(now, samples), wilson_interval(before, samples_before)
    share, share_before = 100 * now / samples, 100 * before / samples_before
    difference = share - share_before
    return (
        difference - math.hypot(share - low, high_before - share_before),
        difference + math.hypot(high - share, share_before - low_before),
    )


def _clopper_pearson(hits: int, samples: int, tail: float) -> tuple[float, float]:
    """Ends of the exact interval of a share, as fractions: quantiles of beta distributions."""
    from scipy.special import betaincinv

    low = betaincinv(hits, samples - hits + 1, tail) if hits else 0.0
    high = betaincinv(hits + 1, samples - hits, 1 - tail) if hits < samples else 1.0
    return float(low), float(high)
