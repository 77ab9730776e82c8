"""Where the report and the panels of a row lie, and whether what lies there is of the cell that is asked about.

A folder is named by the row's label, and a label may come to stand for other settings; so the folder says whose it is.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

from .config import Experiment, Row

MOST = 80
"""Signs of a label in the name of a folder."""
OWNER = "cell.txt"
"""Holds the key of the cell that a folder's files are of. What was drawn before there was one has none."""
WRITTEN = (".png", ".json", ".md")


def place_of(folder: Path, kind: str, experiment: Experiment, row: Row) -> Path:
    """Where the "reports" or "panels" of a row lie.

    Args:
        folder: Of the results.
        kind: Which of the two.
        experiment: That the row is of.
        row: The row.
    """
    return folder / kind / experiment.name / _name(row.label, [other.label for other in experiment.rows])


def belongs(place: Path, key: str) -> bool:
    """Whether what lies in a folder is of the cell `key`, as far as the folder says."""
    owner = place / OWNER
    return not owner.is_file() or owner.read_text(encoding="utf-8") == key


def make_room(place: Path, key: str) -> None:
    """Make a folder that of the cell `key`, without what another cell left in it.

    Args:
        place: The folder.
        key: The cell's.
    """
    place.mkdir(parents=True, exist_ok=True)
    owner = place / OWNER
    if not owner.is_file() or not belongs(place, key):
        for path in place.iterdir():
            if path.suffix in WRITTEN:
                path.unlink()
        owner.write_text(key, encoding="utf-8")


def _name(label: str, labels: list[str]) -> str:
    """A label as the name of a folder, which is no other label's of these, also where a system knows no capitals."""
    name, taken = _plain(label), Counter(_plain(other).casefold() for other in labels)
    if taken[name.casefold()] < 2 and len(label) <= MOST and name.strip("."):
        return name
    return f"{name.strip('.')}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


def _plain(label: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "-_.=" else "-" for sign in label)[:MOST]
