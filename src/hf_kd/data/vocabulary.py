"""Words for concepts that are forgotten by name: templates that make prompts of names, and names of common things."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from hf_kd.errors import InvalidTypeError, InvalidValueError


@cache
def templates() -> tuple[str, ...]:
    """Eighty wordings with {} where a name goes; the last is the name alone."""
    return _lines("templates.txt")


@cache
def objects() -> tuple[str, ...]:
    """Names of common things, animals, places and foods: what stays where nobody says what else should."""
    return _lines("objects.txt")


def _lines(name: str) -> tuple[str, ...]:
    return tuple((files("hf_kd.data") / "words" / name).read_text(encoding="utf-8").splitlines())


def checked_names(names: Sequence[str], what: str) -> tuple[str, ...]:
    """Names without spaces around them, each once.

    Raises:
        InvalidTypeError: For one string, or what is no string among them.
        InvalidValueError: For none, or an empty one.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InvalidTypeError(f"{what}={names!r} has to be a list of names, such as {what}=['tabby cat', 'tabby'].")
    found = tuple(dict.fromkeys(" ".join(name.split()) for name in names))
    if not found or "" in found:
        raise InvalidValueError(f"{what}={list(names)!r} holds no name, or an empty one.")
    return found


def checked_templates(wordings: Sequence[str] | None) -> tuple[str, ...]:
    """The wordings, or those of the package.

    Raises:
        InvalidValueError: For one without {}.
    """
    if wordings is None:
        return templates()
    found = checked_names(wordings, "templates")
    wrong = [wording for wording in found if wording.count("{}") != 1]
    if wrong:
        raise InvalidValueError(f"The template {wrong[0]!r} has to have {{}} once, where the name goes.")
    return found


def shares_words(name: str, forgotten: Sequence[str]) -> bool:
    """Whether a name holds a forgotten one as whole words, in the singular or plural, or is held by it."""
    padded = f" {_plain(name)} "
    return any(f" {_plain(other)} " in padded or padded in f" {_plain(other)} " for other in forgotten)


def _plain(name: str) -> str:
    return " ".join(re.sub(r"(?<=\w\w[^s])s$", "", word) for word in re.findall(r"\w+", name.lower()))
