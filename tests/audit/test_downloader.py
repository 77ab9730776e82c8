"""What a downloader finds, in words: held to its numbers, and nothing that is missing goes unsaid."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hf_kd.audit import RetentionReport, Score, Section
from hf_kd.audit.downloader import downloader_sentence, left_out_words
from tests.audit.test_render import printed
from tests.helpers.audited import audited

LATER = ["removal", "regrown", "relearning"]


def details(recall: float, alarms: float = 2.0, name: str = "k-nn at layer.3") -> dict:
    return {"F": recall, "R": 80.0, "false_alarms": alarms, "called": name}


def with_weights(report: RetentionReport, **weights) -> RetentionReport:
    """The same report with what a downloader finds."""
    return replace(report, context={**report.context, "weights": weights})


@pytest.fixture(scope="module")
def report() -> RetentionReport:
    return audited(class_names={0: "fox", 1: "gnu", 2: "hen"})


def test_the_attack_and_its_false_alarms_stand_beside_its_recall_and_no_count_of_images_that_it_may_not_have_asked():
    weights = {
        "best": {"erased": 85.0, "original": 92.5, "name": "k-nn at layer.3"},
        "strongest": {"erased": details(85.0), "original": details(92.5)},
        "n_forget": 40,  # in earlier reports: all there were, of which attacks that train ask a part
    }
    told = downloader_sentence(weights)
    assert told.startswith("Whoever downloads the weights reads 85 % (by k-nn at layer.3, ")
    assert told.endswith("at 2 % false alarms; from the original 92 %).")


def test_that_there_is_no_number_of_the_original_is_said():
    assert "from the original: not measured" in downloader_sentence({"best": {"erased": 85.0}})


@pytest.mark.parametrize("original", [{}, {"original": 92.0}])
def test_how_well_the_never_seen_network_knows_the_others_is_said_of_that_network(original):
    strongest = {"erased": details(85.0) | {"R": 70.0}, "reference": details(40.0) | {"R": 90.0}}
    told = downloader_sentence({"best": {"erased": 85.0, "reference": 40.0} | original, "strongest": strongest})
    assert "from a network that never saw it 40 %, which knows the others better by 20 points" in told


@pytest.mark.parametrize("outside", [None, 10.0, 60.0, 85.0, 99.0])
def test_who_has_the_weights_reads_at_least_what_is_read_without_them(outside):
    told = downloader_sentence({"best": {"erased": 60.0, "original": 90.0}}, outside)
    assert ("at least" in told) == (outside is not None and outside > 60)
    first = float(told.split(" %")[0].split()[-1])
    assert first == max(60.0, outside or 0.0)


def test_what_the_budget_left_out_is_said_once_where_it_is_the_same_everywhere():
    assert left_out_words({"erased": LATER, "original": LATER}) == (
        "The budget had no time for removal, regrown, relearning."
    )
    assert left_out_words({"erased": [], "original": []}) == left_out_words({}) == ""
    assert left_out_words({"erased": LATER[1:], "original": LATER}) == (
        "The budget had no time for regrown, relearning of this model; removal, regrown, relearning of the original."
    )


@pytest.mark.parametrize("best", [{}, {"erased": 60.0, "name": "k-nn at layer.3"}])
def test_what_the_budget_left_out_stands_in_verdict_summary_and_screen(report, best):
    rows = (Score("F", 60.0, "chance", "strongest probe"),) if best else ()
    asked = replace(report, sections=(*report.sections, Section("weight_access", "What a downloader finds", rows)))
    asked = with_weights(asked, best=best, left_out={"erased": LATER, "original": LATER})
    screen = " ".join(printed(asked, 80).split())
    assert screen.count("The budget had no time for removal, regrown, relearning.") == 2, "above the table and in it"
    assert "had no time for removal" in asked.verdict
    assert "had no time for removal" in asked.summary()
    assert max(len(line.rstrip()) for line in printed(asked, 80).splitlines()) <= 80


def test_the_rule_of_strongest_is_said_once_on_screen_and_page(report):
    for text in (printed(report), report.to_markdown()):
        assert text.count("Strongest, of each column by itself: the highest recall minus false alarms.") == 1


def test_two_numbers_of_the_same_kind_stand_with_the_rule_that_parts_them(report):
    rule = "An attack with a higher recall takes more of the other images for the forgotten."
    worst, shown = report.section("worst_case"), report.worst_case
    of_one = tuple(score for score in worst.scores if score.group == shown.group)
    for scores in (of_one, (*of_one, Score("recall", shown.value + 5, shown.direction, "of another attack"))):
        made = tuple(replace(worst, scores=scores) if section is worst else section for section in report.sections)
        for text in (printed(replace(report, sections=made)), replace(report, sections=made).to_markdown()):
            assert (rule in text) == (scores is not of_one)


def test_a_summary_of_an_audit_of_the_weights_has_their_line_and_does_not_say_that_no_layer_was_read(report):
    assert "the layers below" in report.summary()
    asked = with_weights(
        report,
        best={"erased": 60.0, "original": 90.0},
        strongest={"erased": details(60.0), "original": details(90.0, name="linear at tap")},
    )
    line = next(line for line in asked.summary().splitlines() if line.startswith("With the weights"))
    outside = asked.worst_case.value
    assert (f"at least the {outside:.0f} % that are read from the features" in line) == (round(outside) > 60)
    assert "reads of this model 60 % (k-nn at layer.3; 2 % false alarms), of the original 90 % (linear at tap" in line
    assert "the layers below" not in asked.summary()


def test_ten_lines_stay_ten_the_last_ones_among_them_and_warnings_are_counted(report):
    warnings = ["The rest fell.", "No retained image is of 991 classes.", "A third."]
    warned = replace(report, context={"erasures": [{"method": "esc", "n_forget": 9, "warnings": warnings}]})
    concepts = Section("concepts", "By name", (Score("recall, all templates", 20.0, "lower"),))
    lines = replace(warned, sections=(*warned.sections, concepts)).summary().splitlines()
    assert len(lines) == 10
    assert lines[1] == "Warning: The rest fell. (and 2 more warnings: see the whole report)", "which is not below it"
    assert lines[-1].startswith("Not said here")
    for whole in (warned.to_markdown(), printed(warned)):
        assert all(warning in whole for warning in warnings)


def test_taking_the_eraser_away_reads_no_less_than_the_best_attacker(report):
    line = next(line for line in report.summary().splitlines() if line.startswith("Whoever holds the weights"))
    told = float(line.split("at least ")[1].split(" %")[0])
    linear = report.score("worst_case", "recall_without_eraser").value
    assert told == math.floor(max(linear, report.worst_case.value, report.worst_case.original))


def test_no_row_is_about_an_eraser_that_is_not_there():
    about = {"erasures": [], "changes": [{"method": "scrub", "n_forget": 9}], "original_given": True}
    changed = audited(context=about)
    for text in (printed(changed), changed.to_markdown(), changed.summary()):
        assert "eraser taken away" not in text
        assert "take the eraser away" not in text
        assert "without the eraser" not in text
    scores = [replace(score, before_projection=1.0) for score in changed.section("converged").scores]
    sections = [replace(s, scores=tuple(scores)) if s.key == "converged" else s for s in changed.sections]
    for context, columns in ((changed.context, 0), ({"erasures": [{"method": "esc", "n_forget": 9}]}, 1)):
        page = replace(changed, sections=tuple(sections), context=context).to_markdown()
        assert page.count("before the eraser |") == columns
