"""What an audit is asked: checked when it is said, with all known names in the message."""

from __future__ import annotations

import dataclasses

import pytest

import hf_kd
from hf_kd.metrics import ATTACKS


def test_options_are_checked_when_they_are_made():
    with pytest.raises(ValueError, match="Unknown attacks.*telepathy") as refused:
        hf_kd.AuditOptions(attacks=["telepathy"])
    assert all(name in str(refused.value) for name in ATTACKS)
    for wrong in ({"seeds": 0}, {"draws": 0}, {"seeds": 1.5}):
        with pytest.raises(ValueError, match="at least one"):
            hf_kd.AuditOptions(**wrong)
    for wrong in ([], [0, 5]):
        with pytest.raises(ValueError, match="shots"):
            hf_kd.AuditOptions(shots=wrong)


def test_options_and_references_stay_as_they_were_made():
    for made, name in (
        (hf_kd.AuditOptions(), "seeds"),
        (hf_kd.Retrained("m"), "source"),
        (hf_kd.Unseen("d"), "source"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, name, 2)
