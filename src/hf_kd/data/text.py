"""Text from outside on its way out: names of labels, modules and data sets are data, never markup, wherever they are shown.

One function for each kind of exit. JSON needs none: it stays as it is.
"""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Sequence
from typing import Any

LONGEST = 80
"""Characters of a name that is shown."""

FENCE = re.compile(r"`{3,}")


def one_line(text: Any, most: int | None = None) -> str:
    """The text as one line of printable characters: no line ends, escape codes, controls of direction or invisible ones.

    Args:
        text: Anything; its `str` is taken.
        most: Longer lines are cut to this many characters, the last of which says so.
    """
    line = re.sub(r"[^\S ]+", " ", str(text)).strip()
    line = "".join(c for c in line if c.isprintable())
    return line if most is None or len(line) <= most else line[: most - 1] + "\u2026"


def first_sentence(text: Any) -> str:
    """The first sentence of a message as one line, with the word that was probably meant where that comes next.

    Example:
        >>> first_sentence("Unknown method 'escc'. Did you mean 'esc'? Choose cover, esc, leace.")
        "Unknown method 'escc'. Did you mean 'esc'?"
    """
    found = re.match(r".+?[.?!](?: Did you mean [^?]*\?)?(?= |$)", line := one_line(text))
    return found[0] if found else line


def escape_markdown(text: Any, most: int = LONGEST) -> str:
    """A name as one line of Markdown that shows itself: no markup, HTML, table cell, mathematics, link or comment."""
    line = html.escape(one_line(text, most), quote=False)
    line = re.sub(r"([\\`*_\[\]()!#|~{}$^])", r"\\\1", line)
    line = re.sub(r"^(\d+)([.)])", r"\1\\\2", re.sub(r"^([-+=:])", r"\\\1", line))
    line = re.sub(r"(https?|ftp)(:)", r"\1\\\2", line)
    return re.sub(r"(?i)\b(www)\.", r"\1\\.", line).replace("--", "\\-\\-")


def sentence(text: Any) -> str:
    """A line of our own Markdown with names in it: it stays one line, and holds no HTML and no comment."""
    return re.sub(r"<(?=[!/a-zA-Z])", "&lt;", one_line(text))


def table_cell(text: Any, most: int | None = 200) -> str:
    """One cell of a Markdown table that shows itself; underscores inside of words need no escape."""
    line = html.escape(one_line(text, most), quote=False)
    return re.sub(r"([\\`\[\]|$*~]|(?<!\w)_|_(?!\w))", r"\\\1", line)


def code(text: Any, most: int = 200) -> str:
    """A span of code in Markdown. What could end it is left out; it cannot be a comment either."""
    line = one_line(str(text).replace("`", "'"), most).replace("|", "\u00a6")
    return f"`{line.replace('<!--', '<! --').replace('-->', '-- >') or ' '}`"


def code_block(lines: Sequence[str], language: str = "") -> str:
    """A fenced block of Markdown that no line can end and in which no line holds a comment."""
    shown = [
        "".join(c if c.isprintable() else " " for c in line).replace("<!--", "<! --").replace("-->", "-- >")
        for line in lines
    ]
    fence = "`" * max([3, *(len(run) + 1 for line in shown for run in FENCE.findall(line))])
    return "\n".join([f"{fence}{language}", *shown, fence])


def shell_word(text: Any) -> str:
    """A word for a POSIX shell on one line; where it has characters that do not show or that end a comment: $'...'."""
    text = str(text)
    if text.isprintable() and "<!--" not in text and "-->" not in text and "```" not in text:
        return shlex.quote(text)
    return "$'" + "".join(_ansi_c(c) for c in text) + "'"


def _ansi_c(character: str) -> str:
    number = ord(character)
    if character.isprintable() and character not in "\\'<>`":
        return character
    return f"\\x{number:02x}" if number < 0x80 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def figure_text(text: Any, most: int | None = None) -> str:
    """Text of a figure: matplotlib would take $...$ for mathematics."""
    return one_line(text, most).replace("$", r"\$")


def terminal(value: Any) -> Any:
    """Strings for a terminal by `rich`, without escape codes or [markup]; in lists and dicts too. Other values stay."""
    if isinstance(value, str):
        return re.sub(r"(\\*)(\[[a-zA-Z/@#])", r"\1\1\\\2", one_line(value))  # as rich.markup.escape does
    if isinstance(value, dict):
        return {terminal(key): terminal(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(terminal(item) for item in value)
    return value
