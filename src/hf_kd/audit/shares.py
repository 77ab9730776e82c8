"""A share of the same test images now and before: whether they differ by more than so many images can tell, and in words.

A difference is called one only where its 95 % interval leaves out 0: paired where it is known which images changed sides
(McNemar), of two Wilson intervals (Newcombe) where not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from hf_kd.metrics.intervals import paired_difference, unpaired_difference, wilson_interval

from .schema import Score

GUESSING = 20.0
"""Points above chance that the 95 % interval of what was right before may reach where nothing was known."""


@dataclass(frozen=True)
class Share:
    """How many of the same test images are read or answered rightly, now and before, and what that says."""

    now: float
    """Percent."""
    before: float | None
    samples: int
    lost: float | None = None
    """Images right before and wrong now; None where that is not known."""
    gained: float | None = None
    among: int = 1
    """Of how many shares this one was picked, which widens its interval."""
    of_groups: bool = False
    """Whether images are read several at a time: in percent then, as there is no number of images."""

    @classmethod
    def of(cls, score: Score, samples: int, compared: bool = True) -> Share | None:
        """From a score whose settings may say of how many samples it is, and how many of them changed sides.

        Args:
            score: The score.
            samples: Of how many test images it is where it does not say.
            compared: Whether its original is one.

        Returns:
            The share; None where the score has no value.
        """
        if score.value is None:
            return None
        before, size = score.original if compared else None, group_size(score)
        if size > 1:
            return cls(score.value, before, max(1, samples // size), of_groups=True)
        about = score.settings
        return cls(score.value, before, int(about.get("samples", samples)), about.get("lost"), about.get("gained"))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of (now - before), in points; None where there is nothing before."""
        if self.before is None:
            return None
        if self.lost is None or self.gained is None:
            return unpaired_difference(self._hits(self.now), self.samples, self._hits(self.before), self.samples)
        return paired_difference(self.lost, self.gained, self.samples, self.among)

    @property
    def change(self) -> str:
        """`lower` or `higher` by more than chance, `same` (equal), `within` what so many images can tell, or `unknown`."""
        if self.before is None or (interval := self.interval) is None:
            return "unknown"
        if self.now == self.before:
            return "same"
        if interval[1] < 0 or interval[0] > 0:
            return "lower" if interval[1] < 0 else "higher"
        return "within"

    def begins_at(self, chance: float | None) -> str:
        """How what was right before stands to guessing, `chance` percent: `above`, `guessing`, or `unclear` from so few."""
        if self.before is None:
            return "above"
        low, high = wilson_interval(self._hits(self.before), self.samples)
        if low > (chance or 0.0):
            return "above"
        return "guessing" if high <= (chance or 0.0) + GUESSING else "unclear"

    def _hits(self, percent: float) -> float:
        return min(self.samples, max(0.0, self.samples * percent / 100))

    def wilson(self, percent: float | None = None) -> str:
        """95 % interval of the number of now, or of another: "75 to 98 %"."""
        low, high = wilson_interval(self._hits(self.now if percent is None else percent), self.samples)
        return f"{low:.0f} to {high:.0f} %"

    # Words

    def counted(self, percent: float | None = None) -> str:
        """As in 23 of 25; of groups 92 %."""
        bare = self.bare(self.now if percent is None else percent)
        return bare if self.of_groups else f"{bare} of {self.samples:,}"

    def bare(self, percent: float) -> str:
        """The 23 in 23 of 25."""
        return f"{percent:.0f} %" if self.of_groups else f"{round(self._hits(percent)):,}"

    def beside_before(self) -> str:
        """What follows the number of now: how it stands to that of before; nothing where that is not known."""
        if self.before is None:
            return ""
        before = self.bare(self.before)
        if self.change == "same" or (self.change == "within" and before == self.bare(self.now)):
            return ", as many as before"
        if self.change == "lower":
            return f" (before {before})"
        if self.change == "higher":
            return f", MORE than before ({before})"
        return f" (before {before}: {self.cannot_tell()})"

    def cannot_tell(self) -> str:
        """That the difference is within what the images can tell, and the interval."""
        low, high = self.interval or (0.0, 0.0)
        ends = " to ".join(f"{round(end):+d}" if round(end) else "0" for end in (low, high))
        return f"within what {self.samples:,} {'groups' if self.of_groups else 'images'} can tell, {ends} points"

    def price(self, what: str = "right") -> str:
        """In percent, for the other classes: "36 % right, before 37 %"."""
        digits = 1 if self.samples >= 1_000 else 0
        now = f"{self.now:.{digits}f} % {what}"
        if self.before is None:
            return now
        before = f"{self.before:.{digits}f} %"
        if self.change == "same" or (self.change == "within" and now == f"{before} {what}"):
            return f"{now}, as before"
        return f"{now}, before {before}" + (f" ({self.cannot_tell()})" if self.change == "within" else "")


def group_size(score: Score) -> int:
    """How many images the best attacker of now or of before reads at once, as its name says."""
    names = (score.group, (score.settings.get("attackers") or {}).get("original", ""))
    return next((int(name.split("-")[2]) for name in names if name.startswith("groups-of-")), 1)


def hardest_hit(classes: Mapping[int, Share]) -> tuple[int, Share] | None:
    """The class that lost most, where that is more than chance does to the worst of so many; None where none did.

    Args:
        classes: By label; those whose changed images are not known are left out.
    """
    paired = {label: own for label, own in classes.items() if own.lost is not None and own.before is not None}
    fallen = [
        (label, replace(own, among=len(paired))) for label, own in paired.items() if own.now < (own.before or 0.0)
    ]
    for label, own in sorted(fallen, key=lambda pair: pair[1].now - (pair[1].before or 0.0)):
        if own.change == "lower":
            return label, own
    return None
