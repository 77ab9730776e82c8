"""Moved weights: the section names what moved."""

from __future__ import annotations

import pytest
import torch

from hf_kd.audit import RetentionReport
from hf_kd.audit.sections.weights import weights_section
from hf_kd.metrics.weights import weight_distance
from tests.helpers.audited import LEAST, audited


def test_weights_section_names_what_moved():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))
    before = {name.replace("1.", "classifier."): value.clone() for name, value in model.state_dict().items()}
    same = weights_section(weight_distance(before, before))
    assert any("No weight differs" in note for note in same.notes)
    after = {name: value.clone() for name, value in before.items()}
    after["classifier.weight"] += 1
    section = weights_section(weight_distance(before, after))
    rows = {score.group: score.value for score in section.scores if score.name == "mean_abs"}
    assert rows["other"] == 0
    assert rows["classifier.weight"] == pytest.approx(1)
    assert "0.weight" not in rows
    report = audited(**LEAST, extra_sections=[section])
    assert "Weights moved" in report.to_markdown()
    assert RetentionReport.from_json(report.to_json()) == report
