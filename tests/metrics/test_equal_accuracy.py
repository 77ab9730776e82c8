"""The level of references at a network's own accuracy: read on their line, and not beyond them."""

from __future__ import annotations

import pytest

from hf_kd.metrics.equal_accuracy import level_at


def test_on_the_line_of_the_references():
    found = level_at(87.0, [(84.0, 62.0), (86.0, 66.0), (89.0, 72.0)], n_forget=1000)
    assert found.level == pytest.approx(68.0)
    assert 1.4 < found.sd < 1.6, "no scatter: what is left is the test set's"


def test_scatter_widens_the_spread():
    assert level_at(86.0, [(84.0, 60.0), (86.0, 70.0), (88.0, 62.0)]).sd > 5


@pytest.mark.parametrize(("r", "known"), [(83.4, False), (84.0, True), (89.4, True), (89.6, False)])
def test_nothing_is_extrapolated(r, known):
    found = level_at(r, [(84.0, 60.0), (89.0, 70.0)])
    assert (found.level is not None) is known
    assert known or "no reference at this accuracy" in found.reason


@pytest.mark.parametrize("references", [[(84.0, 60.0), (85.1, 71.0)], [(84.0, 60.0), (84.5, 66.0), (85.1, 71.0)]])
def test_beyond_the_references_the_level_is_that_at_their_end(references):
    """A line through references that are almost as accurate is steep by chance: half a point more would add five."""
    end = level_at(85.1, references)
    assert level_at(85.5, references) == end
    assert level_at(83.6, references) == level_at(84.0, references)


def test_one_reference_or_several_alike():
    assert level_at(85.8, [(85.0, 64.0)]).level == 64.0
    assert level_at(87.0, [(85.0, 64.0)]).level is None
    assert level_at(85.2, [(85.0, 64.0), (85.4, 66.0), (85.2, 68.0)]).level == 66.0
    assert level_at(85.0, []).reason == "no reference was given"


def test_a_level_is_a_share():
    """The line of references of which some are read whole, or not at all, goes on beyond 0 and 100 %."""
    assert level_at(90.0, [(90.0, 100.0), (91.0, 100.0), (92.0, 90.0)]).level == 100.0
    assert level_at(92.0, [(90.0, 9.0), (91.0, 0.0), (92.0, 0.0)], n_forget=100).level == 0.0
