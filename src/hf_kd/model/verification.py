"""What was found where a checkpoint was compared with its receipt, check by check."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

ACTS = "acts as its records say"
AGAIN = "erasure carried out again"
TEXTS = "forgotten texts"
NO_NAMES = "not tried: no file holds the retained names of a request by name"
WORDS = "texts=['TEXT'] tells whether these are its words"
"""What can be verified of a request by name."""
GIVE_IMAGES = "give its images"
"""What carries an erasure out again."""
FILE = "file "
"""How the name of a check of a file begins."""


@dataclass(frozen=True)
class Check:
    """One thing that was checked."""

    what: str
    ok: bool | None
    """None where what was given is too little to tell."""
    found: str
    """What was found, in words."""
    skipped: bool = False
    """Whether it was left out, which is no fault: `ok` is True."""
    of_given: bool = False
    """Whether it compares what the caller gave: where that differs, it says nothing against what was published."""


@dataclass(frozen=True)
class Verification:
    """What matches the receipt and what does not."""

    source: str
    checks: tuple[Check, ...]
    repeated: bool
    """Whether the erasure was carried out again, and compared."""
    repeatable: bool = True
    """Whether there is an eraser that the forget set alone fits again; not where only weights were changed."""
    by_name: bool = False
    """Whether a request by name is among the records, which images alone do not carry out again."""

    @property
    def ok(self) -> bool:
        """Whether everything that was asked is as the receipt says."""
        return all(check.ok for check in self.checks)

    @property
    def undecided(self) -> bool:
        """Whether nothing differs, and something could not be told."""
        return not self.ok and all(check.ok is not False for check in self.checks)

    @property
    def as_published(self) -> bool:
        """Whether all that differs is what was given to compare with: another base, other texts."""
        return all(check.ok is not False or check.of_given for check in self.checks)

    @property
    def headline(self) -> str:
        """What matches the receipt, and what does not or could not be verified, in a sentence or two."""
        wrong = [check for check in self.checks if check.ok is False]
        if not self.as_published:
            count = sum(not check.skipped for check in self.checks)
            return f"Not as published: {len(wrong)} of {count} checks differ from the receipt: {_names(wrong)}."
        claim = "Everything matches the receipt."
        if wrong:
            claim = f"It matches its receipt, and what was given to compare with it does not: {_names(wrong)}."
        elif self.undecided:
            claim = f"{self._matching()} match the receipt."
        return claim if self.repeated else f"{claim} {self._not_again()}"

    def _matching(self) -> str:
        """What matches, counted: "3 files and 5 other checks"."""
        matching = [check for check in self.checks if check.ok and not check.skipped]
        files = sum(check.what.startswith(FILE) for check in matching)
        counts = ((files, "file"), (len(matching) - files, "other check"))
        return " and ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)

    def _not_again(self) -> str:
        """That nothing says yet whether the request gives these erasers, and why."""
        open_ = next((check for check in self.checks if check.ok is None), None)
        words = f"; {WORDS}" if self.by_name and all(check.what != TEXTS for check in self.checks) else ""
        if open_ is not None:
            why = open_.found.removeprefix("not tried: ")
            if open_.what == AGAIN and not self.repeatable:
                return f"What changed the weights was not carried out again: {why}."
            if open_.what == ACTS:
                return f"Whether it acts as its records say could not be verified: {why}"
            why = why if open_.what == AGAIN else f"{open_.what}: {why}"
            return f"Whether the erasure gives the same eraser again could not be verified: {why}{words}."
        if self.by_name:
            return f"A request by name is not carried out again: no file holds its retained names{words}."
        if not self.repeatable:
            return "What changed the weights was not carried out again."
        return f"The erasure was not carried out again: {GIVE_IMAGES}."

    def to_dict(self) -> dict[str, Any]:
        """Fields and properties as plain values."""
        told = {"ok": self.ok, "undecided": self.undecided, "as_published": self.as_published}
        return asdict(self) | told | {"headline": self.headline}


def _names(checks: list[Check]) -> str:
    return ", ".join(check.what for check in checks)
