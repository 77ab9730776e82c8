"""Words for concepts that are forgotten by name: templates that make prompts of names, and names of common things."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from hf_kd.errors import InvalidTypeError, InvalidValueError

LANGUAGES = ("de", "es", "fr", "it", "ja", "nl", "pt", "zh")
"""Languages beside English ("en") of which there are wordings."""


@cache
def templates(*languages: str) -> tuple[str, ...]:
    """Wordings with {} where a name goes: eighty in English, the last of which is the name alone, or eight in each language.

    Args:
        *languages: "en" or one of `LANGUAGES`; English without any. Names are the caller's: `texts` has to hold those of
            each language, `texts=["cat", "Katze", "chat"]`.

    Raises:
        InvalidValueError: For another language.
    """
    unknown = [language for language in languages if language not in ("en", *LANGUAGES)]
    if unknown:
        raise InvalidValueError(f"There are no templates in {unknown[0]!r}; there are en, {', '.join(LANGUAGES)}.")
    lists = ["templates.txt" if each == "en" else f"templates_{each}.txt" for each in languages or ("en",)]
    return tuple(dict.fromkeys(line for name in lists for line in _lines(name)))


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
        raise InvalidValueError(
            f"{what}={list(names)!r} holds no name, or an empty one: give at least one, such as {what}=['tabby cat']."
        )
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
        raise InvalidValueError(
            f"The template {wrong[0]!r} has to have {{}} once, where the name goes, as 'a photo of a {{}}' has."
        )
    return found


def shares_words(name: str, forgotten: Sequence[str]) -> bool:
    """Whether a name holds a forgotten one as whole words, in the singular or plural, or is held by it."""
    padded = f" {_plain(name)} "
    return any(f" {_plain(other)} " in padded or padded in f" {_plain(other)} " for other in forgotten)


def _plain(name: str) -> str:
    return " ".join(re.sub(r"(?<=\w\w[^s])s$", "", word) for word in re.findall(r"\w+", name.lower()))
