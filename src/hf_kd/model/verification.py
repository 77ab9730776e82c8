"""What was found where a checkpoint was compared with its receipt, check by check."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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
    """Whether the erasure was carried out again."""
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

    def to_dict(self) -> dict[str, Any]:
        """Fields and properties as plain values."""
        return asdict(self) | {"ok": self.ok, "undecided": self.undecided, "as_published": self.as_published}
