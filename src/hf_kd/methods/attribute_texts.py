"""What the `Attributes` sections of docstrings say, for help, tables and cards."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable


def attribute_texts(*classes: type) -> dict[str, str]:
    """What the `Attributes` sections of classes say about each name.

    Args:
        *classes: In the order in which they are asked: the first that speaks of a name counts.
    """
    texts: dict[str, str] = {}
    for base in classes:
        lines = iter(inspect.cleandoc(base.__dict__.get("__doc__") or "").splitlines())
        for name, text in _entries(lines):
            texts.setdefault(name, text)
    return texts


def _entries(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    """(name, text) of each entry of the `Attributes` section among the lines of a docstring."""
    inside, found = False, []
    for line in lines:
        if line and not line[0].isspace():
            inside = line == "Attributes:"
        elif inside and (entry := re.match(r"    (\w+)(?: \(.*?\))?: (.*)", line)):
            found.append([entry[1], entry[2]])
        elif inside and found and line.strip():
            found[-1][1] += f" {line.strip()}"
    return [(name, text) for name, text in found]
