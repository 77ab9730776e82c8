"""Intervals: they cover what they say, pairs agree with McNemar's test, and more images say more."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hf_kd.metrics.intervals import paired_difference, unpaired_difference, wilson_interval


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p: a fair coin for every image that changed sides."""
    n, k = lost + gained, min(lost, gained)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n)


def test_a_paired_interval_leaves_0_out_exactly_where_mcnemars_test_finds_a_difference():
    for lost in range(14):
        for gained in range(14):
            low, high = paired_difference(lost, gained, 40)
            assert low <= 2.5 * (gained - lost) <= high
            assert (not low <= 0 <= high) == (mcnemar(lost, gained) < 0.05), (lost, gained)
            assert paired_difference(gained, lost, 40) == pytest.approx((-high, -low)), "the other way round"


def test_what_was_picked_among_many_has_to_differ_by_as_much_more():
    for lost in range(14):
        low, high = paired_difference(lost, 0, 40, comparisons=20)
        assert (high < 0) == (mcnemar(lost, 0) < 0.05 / 20)
        wide, narrow = (low, high), paired_difference(lost, 0, 40)
        assert wide[0] <= narrow[0] <= narrow[1] <= wide[1]


def test_fractions_are_rounded_so_that_less_differs():
    assert paired_difference(6.9, 0.0, 25) == paired_difference(6, 0, 25)
    assert paired_difference(6.0, 0.2, 25) == paired_difference(6, 1, 25)
    low, high = paired_difference(0.4, 0.3, 25)
    assert low <= 0 <= high


def test_wilson_covers_a_share_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.9):
        ends = [wilson_interval(hits, 50) for hits in rng.binomial(50, share, 2_000)]
        assert np.mean([low <= 100 * share <= high for low, high in ends]) == pytest.approx(0.95, abs=0.03)


def test_ends_stay_where_shares_can_be_and_more_samples_narrow_them():
    for hits, n in ((0, 5), (5, 5), (3, 7)):
        low, high = wilson_interval(hits, n)
        wide = high - low
        low, high = wilson_interval(10 * hits, 10 * n)
        assert 0 <= low <= 100 * hits / n <= high <= 100
        assert high - low < wide
    low, high = unpaired_difference(20, 25, 20, 25)
    assert low < 0 < high
    assert unpaired_difference(200, 250, 150, 250)[0] > 0


@pytest.mark.parametrize("wrong", [(-1, 5), (6, 5), (0, 0)])
def test_what_is_no_share_is_refused(wrong):
    with pytest.raises(ValueError, match="of"):
        wilson_interval(*wrong)
    with pytest.raises(ValueError, match="no change"):
        paired_difference(3, 3, 5)


def test_images_that_all_changed_one_way_do_not_bound_a_change_by_what_was_seen():
    for gained in (0, 2, 5):
        low, high = paired_difference(lost=0, gained=gained, samples=30)
        assert low < 100 * gained / 30 < high, "another 30 images may well show more"
