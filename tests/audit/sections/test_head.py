"""What heads answer: agreement with other models, and the gap to a retrained one."""

from __future__ import annotations

import pytest
import torch

from hf_kd.audit import Retrained
from hf_kd.audit.verdict import verdict
from tests.helpers.audited import LEAST, audited
from tests.metrics.planted import planted


def test_answers_agree_with_themselves_and_not_with_what_was_erased():
    report = audited(**LEAST, eraser=torch.clone)
    for part in ("D_ft", "D_rt"):
        group = f"{part}, from the original"
        assert report.score("agreement", "js", group).value == pytest.approx(0, abs=1e-9)
        assert report.score("agreement", "same_answer", group).value == 100
    report = audited(**LEAST)
    forgot, kept = (report.score("agreement", "js", f"{part}, from the original").value for part in ("D_ft", "D_rt"))
    assert forgot > 5 * kept
    assert 0 <= kept <= forgot <= 1


def test_the_gap_to_itself_is_nothing_and_there_is_none_without_a_reference():
    alone = audited(**LEAST)
    train, train_y, test, _ = planted(n=300)
    head = torch.eye(train.shape[1])[:, : int(train_y.max()) + 1]
    report = audited(**LEAST, reference=Retrained(train, test, (train @ head, test @ head)))
    assert any("has seen it" in warning for warning in verdict(report).warnings), "the reference is the original"
    gap = report.score("gap", "average_gap")
    assert gap.original == 0
    assert gap.reference == 0
    assert gap.value > 20
    table = [
        abs(report.score("gap", n).value - report.score("gap", n).reference)
        for n in ("D_f", "D_r", "D_t", "member_rate")
    ]
    assert gap.value == pytest.approx(sum(table) / 4)
    assert "gap" not in [section.key for section in alone.sections]
    assert alone.score("head", "D_f").value == report.score("gap", "D_f").value


def test_zrf_is_one_for_answers_that_are_those_of_the_random_model():
    _, train_y, _, _ = planted(n=300)
    rows = int((train_y == 0).sum())
    flat = torch.zeros(rows, int(train_y.max()) + 1)
    report = audited(**LEAST, random_logits=flat)
    zrf = report.score("agreement", "zrf")
    assert zrf.original < zrf.value <= 1, "erasing the axis makes the answers flatter"
    assert "zrf" not in {score.name for score in audited(**LEAST).section("agreement").scores}
