"""Settings that are one of a few words, told by their annotation: `Literal["sgd", "adam"]`. Imports no torch."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from hf_kd.errors import check_choice


def words_of(annotation: str) -> tuple[str, ...]:
    """The words that a setting may be; none where it may be anything else.

    Example:
        >>> words_of('Literal["steps", "cosine"]'), words_of("float | str")
        (('steps', 'cosine'), ())
    """
    if not annotation.startswith("Literal["):
        return ()
    return ast.literal_eval(f"({annotation.removeprefix('Literal[').removesuffix(']')},)")


def refuse_unknown_words(types: Mapping[str, str], given: Mapping[str, Any]) -> None:
    """Refuse a setting that is none of the words it may be.

    Args:
        types: Of all settings their annotation.
        given: Settings and their values.

    Raises:
        InvalidValueError: With the words, and the one that was probably meant.
    """
    for name, value in given.items():
        if words := words_of(types[name]):
            check_choice(name, value, words)
