"""What an audit is asked: checked when it is said, with all known names in the message."""

from __future__ import annotations

import dataclasses

import pytest

import hf_kd
from hf_kd.cli._app import in_options
from hf_kd.metrics import ATTACKS


def test_options_are_checked_when_they_are_made():
    with pytest.raises(ValueError, match="Unknown attacks.*telepathy") as refused:
        hf_kd.AuditOptions(attacks=["telepathy"])
    assert all(name in str(refused.value) for name in ATTACKS)
    for wrong in ({"seeds": 0}, {"draws": 0}, {"seeds": 1.5}):
        with pytest.raises(ValueError, match="at least one"):
            hf_kd.AuditOptions(**wrong)
    for wrong in ([], [0, 5], [1.5]):
        with pytest.raises(ValueError, match="shots"):
            hf_kd.AuditOptions(shots=wrong)
    with pytest.raises(ValueError, match="budget='soon' minutes"):
        hf_kd.AuditOptions(access="weights", budget="soon")


def test_a_budget_names_what_it_is_for_in_python_and_on_the_command_line():
    with pytest.raises(ValueError, match="budget=2 is for the attacks of access='weights' alone") as refused:
        hf_kd.AuditOptions(budget=2)
    flags = {"budget": ("--budget", None), "access": ("--access", None)}
    assert in_options(str(refused.value), flags).startswith("--budget 2 is for the attacks of --access weights alone")


def test_options_and_references_stay_as_they_were_made():
    for made, name in (
        (hf_kd.AuditOptions(), "seeds"),
        (hf_kd.Retrained("m"), "source"),
        (hf_kd.Unseen("d"), "source"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, name, 2)
