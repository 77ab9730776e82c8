"""Identities: found until they share a place with everybody."""

from __future__ import annotations

import torch

from hf_kd.audit.sections import identities
from hf_kd.audit.verdict import share
from tests.helpers.audited import LEAST, audited


def test_identities_are_found_until_they_share_a_place_with_everybody():
    report = audited(**LEAST, identities=True, eraser=torch.clone)
    for similarity in ("cosine", "centred"):
        assert report.score("identities", "rank1", f"closed set, {similarity}").value > 90
        tar = report.score("identities", "tar", f"verification, FAR 0.01, {similarity}")
        assert tar.value > 3 * tar.chance
        assert tar.value == tar.original
    erased = audited(**LEAST, identities=True)
    rank = erased.score("identities", "rank1", "closed set, cosine")
    assert rank.value < rank.original - 20
    assert erased.score("identities", "rank1_retained", "closed set, cosine").value > 90
    assert "identities" not in [section.key for section in audited(**LEAST).sections]


def test_identities_are_sampled_and_say_so(monkeypatch):
    monkeypatch.setattr(identities, "MOST_QUERIES", 40)
    monkeypatch.setattr(identities, "MOST_ENROLLED", 30)
    report = audited(**LEAST, identities=True, eraser=torch.clone)
    score = report.score("identities", "rank1", "closed set, cosine")
    assert score.settings["queries"] == 40
    assert score.settings["enrolled"] == 30
    assert score.value > 90
    asked = {name: share(report, "identities", name, True).samples for name in ("rank1", "rank1_retained")}
    assert sum(asked.values()) == 40, "an interval is of the images that were asked, not of all there are"
