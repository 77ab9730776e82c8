"""What a method refuses before torch is imported: settings that are no number, no whole ones or none of a few words where
their annotation asks for it (`float`, `int`, `Sequence[int]`, `Literal["sgd", "adam"]`), and float16 for training.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from hf_kd.errors import InvalidValueError, check_choice


def annotated(annotation: Any) -> str:
    """An annotation as its text, whether it is one already or not, without the None that may stand beside it.

    Example:
        >>> annotated("int | None"), annotated(float)
        ('int', 'float')
    """
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return text.removesuffix(" | None")


def words_of(annotation: str) -> tuple[str, ...]:
    """The words that a setting may be; none where it may be anything else.

    Example:
        >>> words_of('Literal["steps", "cosine"] | None'), words_of("float | str")
        (('steps', 'cosine'), ())
    """
    found = re.fullmatch(r"Literal\[([^\]]*)\]( \| None)?", annotation)
    return ast.literal_eval(f"({found[1]},)") if found else ()


_WHOLE_NUMBERS = ("Sequence[int]", "tuple[int, ...]")


def _several(value: Any) -> tuple[Any, ...]:
    """The values of a setting that takes several: one alone, as a command line gives it, is a list of it."""
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)


def refuse_unfit(owner: str, types: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse a setting that is no finite number, or no whole ones, where it has to be, and one that is none of its words.

    Args:
        owner: Whose settings they are.
        types: Of all settings their annotation.
        given: Settings and their values.

    Raises:
        InvalidValueError: With the rule; of words with all of them, and the one that was probably meant.
    """
    for name, value in given.items():
        kind = types[name] if isinstance(types[name], str) else inspect.formatannotation(types[name])
        if value is None and kind.endswith(" | None"):
            continue
        if annotated(kind) == "int" and type(value) is not int:
            raise InvalidValueError(f"{owner}: {name}={value!r} is out of range: it has to be a whole number.")
        if (
            annotated(kind) == "float"
            and value is not None
            and (isinstance(value, bool) or not isinstance(value, Real))
        ):
            raise InvalidValueError(f"{owner}: {name}={value!r} is out of range: it has to be a number.")
        if isinstance(value, float) and not math.isfinite(value):  # which no record can hold
            raise InvalidValueError(f"{owner}: {name}={value!r} is out of range: it has to be a finite number.")
        if annotated(kind) in _WHOLE_NUMBERS and not all(hasattr(part, "__index__") for part in _several(value)):
            raise InvalidValueError(
                f"{owner}: {name}={value!r} is out of range: expected whole numbers, one or a list."
            )
        if words := words_of(kind):
            check_choice(f"{owner}: {name}", value, words)


def check_fields(method: Any) -> None:
    """`refuse_unfit` for all fields of a dataclass with a `name`; one number where several may be becomes a tuple."""
    every = dataclasses.fields(method)
    refuse_unfit(method.name, {f.name: f.type for f in every}, {f.name: getattr(method, f.name) for f in every})
    for name in (f.name for f in every if annotated(f.type) in _WHOLE_NUMBERS):
        if hasattr(value := getattr(method, name), "__index__"):
            object.__setattr__(method, name, _several(value))


NO_FP16 = (
    "cannot be taken where weights are changed: losses are not scaled here, and gradients that float16 is too coarse for "
    "would be 0. Use 'bf16', or 'no'."
)


def refuse_fp16(mixed_precision: str | None) -> None:
    """Refuse float16 for passes in which weights are changed.

    Raises:
        InvalidValueError: For "fp16".
    """
    if mixed_precision == "fp16":
        raise InvalidValueError(f"mixed_precision='fp16' {NO_FP16}")
