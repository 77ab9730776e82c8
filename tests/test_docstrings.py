"""All that is public says what it takes: the docstring has an `Args:` section that names each parameter."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from types import FunctionType
from typing import Any

import pytest

import hf_kd

PACKAGES = ["hf_kd", *(m.name for m in pkgutil.walk_packages(hf_kd.__path__, "hf_kd.") if m.ispkg)]
SECTION = re.compile(r"^Args:\n((?:[ ]+.*\n|\n)*)", re.M)
METHODS = (FunctionType, classmethod, staticmethod)
KINDS = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def public_callables(package: str) -> Iterator[tuple[str, Callable[..., Any], bool]]:
    """(name, callable, whether its first parameter is self) of `__all__`: functions, classes and their own methods."""
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        found = getattr(module, name)
        if inspect.isfunction(found):
            yield name, found, False
        elif inspect.isclass(found) and found.__module__.startswith("hf_kd"):
            if "__init__" in vars(found) and not is_dataclass(found):  # of a dataclass each field says what it is
                yield name, found, False
            for key, member in vars(found).items():
                if isinstance(member, METHODS) and not key.startswith(("_", "test_")):
                    # through the class, where an override without a docstring has that of its base
                    yield f"{name}.{key}", getattr(found, key), inspect.isfunction(member)


def undocumented(function: Callable[..., Any], has_self: bool) -> list[str]:
    """The parameters that its `Args:` section does not name."""
    parameters = list(inspect.signature(function).parameters.values())[has_self:]
    names = [KINDS.get(parameter.kind, "") + parameter.name for parameter in parameters]
    section = SECTION.search((inspect.getdoc(function) or "") + "\n")
    entries = section[1] if section else ""
    entry = r"^    %s( \(\w+\))?:"  # in brackets the type, as torch has it in what is inherited
    return [name for name in names if not re.search(entry % re.escape(name), entries, re.M)]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_args_section_names_every_parameter(package):
    faults = {name: missing for name, *of in public_callables(package) if (missing := undocumented(*of))}
    assert not faults, "\n".join(f"{package}.{name}: no `Args:` entry of {missing}" for name, missing in faults.items())
