"""How a report looks: on a screen, as Markdown and in one line."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from rich.console import Console

from hf_kd.audit import RetentionReport, Score, Section
from hf_kd.audit.render import _shown
from hf_kd.audit.schema import PAPER_NOTE
from hf_kd.audit.sections.reference_level import ReadLevel, reference_level_section
from tests.helpers.audited import audited
from tests.metrics.planted import planted

CLAIMS = re.compile(r"irreversib|certif|guarantee|better than retrain", re.I)


def printed(report: RetentionReport, width: int = 200) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report)
    return console.export_text()


@pytest.fixture(scope="module")
def report() -> RetentionReport:
    return audited(class_names={0: "fox", 1: "gnu", 2: "hen"})


def test_verdict_strongest_attack_and_converged_number_come_first_in_text_and_markdown(report):
    titles = ("fox: the head answers", "Strongest attack", "converged", "Label efficiency", "paper protocol")
    for text in (printed(report), report.to_markdown()):
        positions = [text.index(title) for title in titles]
        assert positions == sorted(positions)
        assert "fox" in text
        assert not CLAIMS.search(text)
    lines = printed(report).splitlines()
    assert lines[0].startswith("fox: the head answers")
    assert "recall" in lines[6], "the first number of the table is the best attacker's"
    assert max(len(line.rstrip()) for line in printed(report, width=80).splitlines()) <= 80
    assert len(lines) <= 45


def test_of_many_classes_those_that_moved_most_are_shown_also_beside_one_without_a_number():
    def score(label: int) -> Score:
        about = {"label": label, "forgotten": False}
        return Score("accuracy", float(label) or None, "higher", f"class {label}", original=0.0, settings=about)

    shown = _shown(Section("head", "Head", tuple(map(score, range(40)))))
    assert [score.settings["label"] for score in shown] == list(range(10, 40))


def test_screen_and_summary_have_the_level_of_references_at_equal_accuracy(report):
    beside = replace(
        report,
        reference="retrained",
        sections=tuple(
            replace(s, scores=tuple(replace(score, reference=60.0) for score in s.scores)) for s in report.sections
        ),
    )
    references = ((60.0, 30.0), (70.0, 40.0))
    levels = [ReadLevel("features", (65.0, 50.0), references), ReadLevel("bare network", (90.0, 50.0), references)]
    for own, row, told in (
        (
            levels,
            "D_ft, features, at R = 65.0 %",
            "Of 2 such models a linear probe reads 35 % at this model's accuracy",
        ),
        (levels[1:], "D_ft, bare network, at R = 90.0 %", "Of 2 such models none is as accurate as this one."),
    ):
        several = replace(beside, sections=(*beside.sections, reference_level_section(own, 100)))
        text = " ".join(printed(several, 80).split())
        assert row in text
        assert "Bare network: no reference at this accuracy (references have R 60.0 to 70.0)" in text
        assert told in several.summary()
    assert "equal accuracy" not in printed(beside)
    assert "such models" not in beside.summary()


def test_what_is_loaded_looks_the_same(report):
    again = RetentionReport.from_json(report.to_json())
    assert printed(again) == printed(report)
    assert again.to_markdown() == report.to_markdown() == report._repr_markdown_()
    assert repr(again) == repr(report)


def test_the_repr_is_one_line_with_what_matters(report):
    text = repr(report)
    assert "\n" not in text
    assert len(text) < 300
    for words in (
        "class 0 (fox) forgotten; best attacker ",
        " of 100 (before 100)",
        "head ",
        "other classes 100 % right",
    ):
        assert words in text, words
    by = replace(report, context={"erasures": [{"method": "esc"}, {"method": "esc"}], "changes": [{"method": "scrub"}]})
    assert "forgotten by scrub, esc;" in repr(by)


def test_a_report_without_sections_has_a_repr_too():
    report = RetentionReport((2,), "none", {}, 8, 1, (), class_names={2: "cat\n<b>"})
    assert repr(report).startswith("<RetentionReport: class 2 (cat")
    assert "\n" not in repr(report)


def test_the_papers_probe_is_never_shown_without_its_note_and_equal_numbers_say_so(report):
    for text in (printed(report), report.to_markdown(), " ".join(printed(report, 80).split())):
        assert PAPER_NOTE in text
        assert "same: equal to the original's" in text
    untouched = audited(planted(n=300), lambda x: x.clone())
    rows = [line for line in printed(untouched).splitlines() if line.strip().startswith(("recall", "D_ft", "D_rt"))]
    assert len(rows) >= 5
    assert all(line.rstrip().endswith("same") for line in rows)


def test_identities_and_layer_profile_are_on_the_screen_in_short_where_they_were_asked_for(report):
    assert "Identities" not in printed(report)
    assert "Layer profile" not in printed(report)
    asked = printed(audited(planted(n=300), identities=True))
    assert "rank-1, centred" in asked
    depths = {"stem": 30.0, "block 1": 96.0, "block 2": 94.0, "tap": 50.0}
    scores = tuple(Score("D_ft", value, "lower", name, original=max(value, 94.0)) for name, value in depths.items())
    deep = replace(report, sections=(*report.sections, Section("layer_profile", "Layer profile", scores)))
    text = printed(deep)
    assert "block 1 (most of all blocks)" in text
    assert "stem" in text
    assert "block 2" not in text
    assert max(len(line.rstrip()) for line in printed(deep, width=80).splitlines()) <= 80


def test_the_summary_opens_markdown_and_has_at_most_ten_lines(report):
    lines = report.to_markdown().splitlines()
    assert lines[2].startswith("**fox: the head answers")
    assert lines.index("### How it was measured") <= 15
    assert len(report.summary().splitlines()) <= 10
    assert not CLAIMS.search(report.summary())


def test_names_that_are_markup_stay_text_in_the_verdict():
    nasty = audited(class_names={0: "<b>*fox*</b> [x](http://y)", 1: "gnu", 2: "hen"}).to_markdown()
    first = nasty.splitlines()[2]
    assert "<b>" not in first
    assert "[x](" not in first
