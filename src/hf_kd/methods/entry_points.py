"""Entry points of the methods that other packages bring."""

from __future__ import annotations

import functools
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

ENTRY_POINT_GROUP = "hf_kd.methods"
"""Packages name their methods here, of either kind."""


def entry_points_of_methods() -> tuple[EntryPoint, ...]:
    """Of all packages that can be imported now.

    Finding them reads a file of every installed package, 10 ms, so it is done again only after something was installed.
    """
    return _found(tuple((path, _changed_at(path)) for path in sys.path))


@functools.lru_cache(maxsize=1)
def _found(installed: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=ENTRY_POINT_GROUP))


def _changed_at(path: str) -> int:
    """Of a folder on the path; installing and removing a package changes it."""
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0
