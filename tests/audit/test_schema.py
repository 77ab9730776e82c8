"""Scores: each has its meaning, and one builder makes them of every version."""

from __future__ import annotations

import pytest

from hf_kd.audit.schema import Quantity, Score, scores_of


def test_a_score_has_a_direction_and_no_number_that_is_none():
    with pytest.raises(ValueError, match="direction"):
        Score("x", 1.0, "sideways")
    with pytest.raises(ValueError, match="None where there is no number"):
        Score("x", float("nan"), "lower")


def test_one_builder_makes_a_score_over_versions_and_seeds():
    measured = {"erased": [1.0, 3.0], "original": [4.0, 6.0], "reference": [], "before_projection": [None, 1.0]}
    (score,) = scores_of(measured, [Quantity("recall", "lower", lambda runs: runs)], "linear", protocol="p")
    assert (score.value, score.original, score.reference, score.before_projection) == (2.0, 5.0, None, None)
    assert score.sd == pytest.approx(2**0.5), "over the seeds of the erased features"
    (score,) = scores_of({"erased": 1, "original": None}, [Quantity("x", "none", lambda one: one, sd=0.5)])
    assert (score.value, score.original, score.sd) == (1.0, None, 0.5)
