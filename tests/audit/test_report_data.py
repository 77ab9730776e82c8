"""The data of a report: equal after JSON, those of 0.1.0 too; scores are found by section, name and group."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_kd.audit import RetentionReport
from hf_kd.audit.report_data import RENAMED, SCHEMA_VERSION
from hf_kd.audit.schema import SECTIONS
from tests.helpers.audited import audited


@pytest.fixture(scope="module")
def report() -> RetentionReport:
    return audited(class_names={0: "fox", 1: "gnu", 2: "hen"})


def test_json_round_trip_gives_an_equal_report(report, tmp_path):
    assert RetentionReport.from_json(report.to_json()) == report
    report.to_json(tmp_path / "report.json")
    assert RetentionReport.from_json(tmp_path / "report.json") == report
    assert json.loads(report.to_json())["schema_version"] == SCHEMA_VERSION
    again = RetentionReport.from_json(report.to_json())
    assert again.to_markdown() == report.to_markdown()


def test_what_is_no_report_or_a_later_one_is_refused(report):
    with pytest.raises(ValueError, match="no retention report"):
        RetentionReport.from_dict({"sections": []})
    with pytest.raises(ValueError, match="install a later one"):
        RetentionReport.from_dict({**report.to_dict(), "schema_version": SCHEMA_VERSION + 1})


def test_what_cannot_be_read_says_what_to_pass(report, tmp_path):
    with pytest.raises(ValueError, match=r"'report.json' is no JSON.*Path"):
        RetentionReport.from_json("report.json")
    with pytest.raises(ValueError, match="is no JSON"):
        RetentionReport.from_json("[" * 200_000)
    with pytest.raises(ValueError, match="no retention report"):
        RetentionReport.from_json("[]")
    for damage in ({"sections": None}, {"sections": [{}]}, {"forget_labels": 3}, {"class_names": []}):
        with pytest.raises(ValueError, match="damaged"):
            RetentionReport.from_dict(report.to_dict() | damage)


def test_reports_of_version_1_are_read_with_the_names_of_today(report):
    values = report.to_dict() | {"schema_version": 1}
    before = {new: old for old, new in RENAMED.items()}
    for section in values["sections"]:
        section["key"] = before.get(section["key"], section["key"])
        for score in section["scores"]:
            score["name"] = before.get(score["name"], score["name"])
    assert "recovery" in [section["key"] for section in values["sections"]]
    assert RetentionReport.from_dict(values) == report
    stored = Path(__file__).parents[1] / "saved_0_1_0" / "with-report" / "retention_report.json"
    old = RetentionReport.from_json(stored)
    assert old.score("recovery_ratio", "recovery_ratio", "converged").value is not None
    assert old.to_markdown()
    assert RetentionReport.from_json(old.to_json()) == old


def test_every_section_is_there_in_reading_order_and_every_score_has_its_meaning(report):
    keys = [section.key for section in report.sections]
    asked_for = ("concepts", "weight_access", "reference_level", "layer_profile", "identities", "gap", "weights")
    assert keys == [key for key in SECTIONS if key not in asked_for]
    for score in report:
        assert score.direction
        assert score.protocol or score.name == "gradient_norm"
    with pytest.raises(KeyError, match="converged"):
        report.section("nothing")
    with pytest.raises(KeyError, match="D_ft"):
        report.score("converged", "nothing")
