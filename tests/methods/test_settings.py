"""Which settings may be given, and which of a record were chosen."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Literal

import pytest

from hf_kd.errors import InvalidValueError
from hf_kd.methods.choices import refuse_unfit, words_of
from hf_kd.methods.concepts import ConceptMethod
from hf_kd.methods.registry import available_methods, get_method, make_method, make_unlearning_method, method_info
from hf_kd.methods.settings import chosen_settings


@pytest.mark.parametrize("name", available_methods(None))
def test_numbers_are_asked_for_before_anything_is_read(name):
    make = make_method if method_info(name).kind == "eraser" else make_unlearning_method
    for option in method_info(name).options:
        if option.type in ("float", "float | None"):
            for value in ("1e-3", True, [0.1]):  # the first is a text in YAML
                with pytest.raises(
                    InvalidValueError, match=rf"{option.name}={re.escape(repr(value))} .* to be a number"
                ):
                    make(name, **{option.name: value})
            for value in (math.inf, -math.inf, math.nan):  # --lr 1e999: no receipt could be written of it
                with pytest.raises(InvalidValueError, match=rf"{option.name}={value!r} .* a finite number"):
                    make(name, **{option.name: value})
        if option.type in ("int", "int | None"):
            for value in (1.5, 2.0, True, "2"):
                with pytest.raises(InvalidValueError, match=rf"{option.name}={value!r} .* whole number"):
                    make(name, **{option.name: value})
                with pytest.raises(InvalidValueError, match=rf"{option.name}={value!r} .*out of range"):
                    get_method(name)(**{option.name: value})


@pytest.mark.parametrize("name", [name for name in available_methods(None) if name != "lau"])  # whose rate is constant
def test_of_several_whole_numbers_one_alone_will_do(name):
    make = make_method if method_info(name).kind == "eraser" else make_unlearning_method
    for option in method_info(name).options:
        if option.type in ("Sequence[int] | None", "tuple[int, ...]"):
            alone, listed = (make(name, **{option.name: value}) for value in (1, (1,)))
            assert alone == listed
            for value in (1.5, "x", ["x"], [1.5]):
                with pytest.raises(
                    InvalidValueError, match=rf"{option.name}={re.escape(repr(value))} .* whole numbers"
                ):
                    make(name, **{option.name: value})
                with pytest.raises(
                    InvalidValueError, match=rf"{option.name}={re.escape(repr(value))} .* whole numbers"
                ):
                    get_method(name)(**{option.name: value})


def test_words_may_be_beside_none():
    assert words_of('Literal["mean", "max"] | None') == ("mean", "max")
    assert words_of('Literal["mean"] | float') == ()
    refuse_unfit("mine", {"pooling": 'Literal["mean", "max"] | None'}, {"pooling": None})
    refuse_unfit("mine", {"pooling": Literal["mean", "max"] | None, "k": int}, {"pooling": "max", "k": 2})
    with pytest.raises(InvalidValueError, match="pooling='least': expected 'mean' or 'max'"):
        refuse_unfit("mine", {"pooling": 'Literal["mean", "max"] | None'}, {"pooling": "least"})


@pytest.mark.parametrize("name", available_methods(None))
def test_of_a_method_as_it_is_nothing_was_chosen(name):
    method = get_method(name)()
    stored = json.loads(json.dumps(method.settings()))
    assert chosen_settings(name, stored) == {}, "also where None stands for a value, and after JSON"
    given = {"seed": 7} if "seed" in stored else {}
    assert chosen_settings(name, stored | given) == given


def test_by_name_all_methods_have_the_same_settings():
    stored = dataclasses.asdict(ConceptMethod(name="esc", k=1))
    del stored["name"]
    assert chosen_settings("esc", stored, by_name=True) == {"k": 1}
