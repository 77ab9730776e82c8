"""What the `Attributes` sections of docstrings say, for help, tables and cards."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any, is_typeddict


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


def typed_texts(typed: Any) -> dict[str, str]:
    """What a TypedDict and those that it extends say about each of their keys, the nearest first.

    Its MRO leaves them out, so they are those of its module whose keys it has.
    """
    beside = vars(sys.modules[typed.__module__]).values() if typed.__module__ in sys.modules else ()
    found = [other for other in beside if is_typeddict(other) and _keys(other) <= _keys(typed)]
    return attribute_texts(typed, *sorted(found, key=lambda other: -len(_keys(other))))


def _keys(typed: Any) -> frozenset[str]:
    return typed.__required_keys__ | typed.__optional_keys__ if is_typeddict(typed) else frozenset()


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
