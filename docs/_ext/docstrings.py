"""Docstrings on their way into reStructuredText: what only looks like markup in a formula is escaped."""

from __future__ import annotations

import re
from typing import Any

CODE = re.compile(r"(``?[^`]+``?)")
ARGUMENT = re.compile(r"[a-z]\w*(, \w+)*: ")
SECTION = re.compile(r"[A-Z][a-z]+:$")
MARKUP = re.compile(r"\\|\*|\||(?<=\w)_(?!\w)")


def plain(line: str) -> str:
    """The line with stars, bars and final underscores escaped outside of code."""
    return "".join(part if part.startswith("`") else MARKUP.sub(r"\\\g<0>", part) for part in CODE.split(line))


def escape(_app: Any, what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Escape, and set the blank lines that reStructuredText wants: before each argument of a list, and around blocks."""
    made = [""] if what in ("attribute", "data", "property") else []  # or a colon in the first line would end a type
    in_section = False
    for line in lines:
        in_section = in_section or bool(SECTION.match(line))
        before, above = (["", "", *made][-1], ["", "", *made][-2])
        if (
            line.strip()
            and before.strip()
            and (
                _indent(line) < _indent(before)
                or (not in_section and ARGUMENT.match(line) and before.endswith((".", ":")))
                or (not in_section and _indent(line) > _indent(before) == _indent(above) and above.strip())
            )
        ):
            made.append("")
        made.append(line if line.lstrip().startswith(">>>") else plain(line))
    lines[:] = made


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", escape, priority=400)  # before the sections are read
    return {"parallel_read_safe": True, "parallel_write_safe": True}
