"""References at equal accuracy: each row with the spread of the images that were read for it."""

from __future__ import annotations

import pytest

from hf_kd.audit.sections.reference_level import ReadLevel, reference_level_section


def test_the_spread_is_that_of_the_images_behind_each_row():
    """The bare network is read on a sample of the test images, so its level is less exact than that of all of them."""
    point, references = (86.0, 66.0), ((84.0, 62.0), (88.0, 70.0))
    levels = [ReadLevel("features", point, references), ReadLevel("bare network", point, references, 100)]
    every, sample = reference_level_section(levels, 10_000).scores
    assert every.reference == sample.reference == 66.0
    assert sample.settings["level_sd"] == pytest.approx(10 * every.settings["level_sd"])


def test_a_level_that_no_reference_has_is_left_open_and_said():
    section = reference_level_section([ReadLevel("features", (92.0, 80.0), ((84.0, 62.0), (88.0, 70.0)))], 1_000)
    assert section.scores[0].reference is None
    assert "no reference at this accuracy" in section.notes[0]
