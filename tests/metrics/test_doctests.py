"""The examples in the docstrings of `hf_kd.metrics` run, and every public function has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import hf_kd.metrics
from hf_kd.metrics.attacks import ATTACKS

MODULES = [name for _, name, _ in pkgutil.iter_modules(hf_kd.metrics.__path__) if not name.startswith("_")]


def module_of(name: str):
    return importlib.import_module(f"hf_kd.metrics.{name}")


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    assert doctest.testmod(module_of(name)).failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_public_function_has_an_example(name):
    """But for the attacks themselves, which have one signature and the example of `run_attacks`."""
    module = module_of(name)
    attacks = {getattr(attack.function, "func", attack.function) for attack in ATTACKS.values()}
    own = [f for _, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__]
    public = [f for f in own if not f.__name__.startswith("_") and f not in attacks]
    assert [f.__name__ for f in public if ">>>" not in (f.__doc__ or "")] == []
