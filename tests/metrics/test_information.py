"""Bits of a probe and IDI: full where classes are apart, none in noise, undefined where nothing can be told."""

from __future__ import annotations

import math

import pytest
import torch

from hf_kd.metrics.attack_data import AuditData
from hf_kd.metrics.information import class_information, information_difference
from hf_kd.testing.probes import noise, planted


def test_all_bits_where_classes_are_apart_and_none_in_noise():
    entropy = -(1 / 3) * math.log2(1 / 3) - (2 / 3) * math.log2(2 / 3)
    apart = class_information(AuditData.of(*planted(strength=8.0), 0))
    assert float(apart.mean()) == pytest.approx(entropy, abs=0.03)
    nothing = class_information(AuditData.of(*noise(), 0))
    assert abs(float(nothing.mean())) < 0.03


def test_the_prior_is_that_of_train_whatever_the_test_split_holds():
    train, y, test, test_y = planted(strength=1.0, n=3000)
    every = class_information(AuditData.of(train, y, test, test_y, 0)).mean()
    rows = torch.cat([torch.nonzero(test_y == 0).flatten(), torch.nonzero(test_y != 0).flatten()[:300]])
    more = class_information(AuditData.of(train, y, test[rows], test_y[rows], 0)).mean()
    assert float(more) == pytest.approx(float(every), abs=0.05)


def test_idi_is_signed_and_undefined_without_a_difference():
    rng = torch.Generator().manual_seed(0)
    terms = {name: torch.rand(400, generator=rng).double() for name in ("low", "high", "below")}
    low, high, below = ({"a": terms[n] + s, "b": terms[n] + s} for n, s in (("low", 0), ("high", 1), ("below", -0.5)))
    assert information_difference(high, high, low).idi == 1
    assert information_difference(low, high, low).idi == 0
    found = information_difference(below, high, low)
    assert found.idi == pytest.approx(-0.5, abs=4 * found.sd)
    assert information_difference(high, low, low).idi is None
