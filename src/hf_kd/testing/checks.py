"""How a tester says that something does not hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor

from hf_kd.methods.registry import available_methods, get_method, make_method, make_unlearning_method


def expect(holds: bool, message: str) -> None:
    """Fail the test with `message` where something does not hold."""
    if not holds:
        pytest.fail(message, pytrace=False)


def close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Whether two tensors differ by at most `tolerance`, relative to the largest entry of the second."""
    scale = max(float(second.abs().max()), 1e-12) if second.numel() else 1.0
    return first.shape == second.shape and bool(((first - second).abs() <= tolerance * scale).all())


def equal_states(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two state dictionaries hold the same tensors, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def expect_declared(measured: Mapping[str, Any], typed: type) -> None:
    """What was measured is plain, and declared by the TypedDict of the method (`measures`)."""
    json.dumps(dict(measured), allow_nan=False)
    unknown = sorted(measured.keys() - get_type_hints(typed).keys())
    expect(typed is dict or not unknown, f"{', '.join(unknown)} was measured, and {typed.__name__} does not say so")


def expect_settings_come_back(method: Any) -> None:
    """The settings of a method are plain values that give the method again, also after JSON."""
    stored = json.loads(json.dumps(method.settings()))
    if method.name in available_methods(None) and get_method(method.name) is type(method):
        make = make_method if hasattr(method, "fit_taps") else make_unlearning_method
        again = make(method.name, **stored)
    else:
        again = type(method)(**stored)
    found = json.loads(json.dumps(again.settings()))
    expect(found == stored, f"settings() after JSON give {found}, and were {stored}")
