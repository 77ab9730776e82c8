"""Hooks of the sites: found again where they stand, first in line where features pass, and taken off with their like."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from hf_kd.features.taps.hooks import is_registered, register, remove_alike
from hf_kd.features.taps.places import Place, Tap


class Owner:
    """Hooks are told apart by the tap of whom they are bound to."""

    def __init__(self, dim: int = 3):
        self.tap = Tap(dim, (Place("", "input"),))
        self.seen: list[str] = []

    def act(self, number, module, *passed):
        self.seen.append(f"own {number}")


@pytest.mark.parametrize("kind", ["input", "output", "logits"])
def test_a_hook_is_found_on_its_side_alone_and_taken_off_with_those_of_copies(kind):
    owner, module = Owner(), nn.Linear(3, 3)
    hook = functools.partial(owner.act, 0)
    assert not is_registered(module, hook, kind)
    register(module, hook, kind)
    assert is_registered(module, hook, kind)
    assert not is_registered(module, functools.partial(owner.act, 1), kind)
    assert not is_registered(module, hook, "output" if kind == "input" else "input")
    remove_alike(nn.Sequential(module), functools.partial(Owner(dim=4).act, 0), kind)
    assert is_registered(module, hook, kind), "that of another tap stays"
    remove_alike(nn.Sequential(module), functools.partial(copy.deepcopy(owner).act, 0), kind)
    assert not is_registered(module, hook, kind)
    module(torch.zeros(1, 3))
    assert owner.seen == []


@pytest.mark.parametrize("kind", ["input", "output"])
def test_no_other_hook_sees_features_first(kind):
    owner, module = Owner(), nn.Linear(3, 3)
    other = module.register_forward_pre_hook if kind == "input" else module.register_forward_hook
    other(lambda *_: owner.seen.append("other"))
    register(module, functools.partial(owner.act, 0), kind)
    module(torch.zeros(1, 3))
    assert owner.seen == ["own 0", "other"]
