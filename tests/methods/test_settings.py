"""Which settings of a record were chosen."""

from __future__ import annotations

import dataclasses
import json

import pytest

from hf_kd.methods.concepts import ConceptMethod
from hf_kd.methods.registry import available_methods, get_method
from hf_kd.methods.settings import chosen_settings


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
