"""The section about a concept by its name: there where texts are given, with rows of both text towers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image

from hf_kd import AuditOptions, ErasedModel
from hf_kd.audit import RetentionReport, Score, Section
from hf_kd.audit.by_name import TextAudit
from hf_kd.audit.verdict import verdict
from hf_kd.errors import InvalidValueError
from tests.audit.test_render import printed
from tests.helpers.two_towers import NAMES, TEMPLATES, two_towers

CLASSES = ["cat", "dog", "ship"]

pytestmark = pytest.mark.usefixtures("few_draws")


def data(count: int, seed: int) -> Dataset:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    rows = {"image": list(pixels), "label": [n % 3 for n in range(count)]}
    return Dataset.from_dict(rows, features=Features({"image": Image(), "label": ClassLabel(names=CLASSES)}))


@pytest.fixture(scope="module")
def model() -> ErasedModel:
    return ErasedModel.from_model(*two_towers("CLIPModel")).erase(
        texts=["cat"], retain_texts=NAMES, templates=TEMPLATES
    )


@pytest.fixture
def bars(monkeypatch) -> set[tuple[str, bool]]:
    """What texts were read with a bar, or with none."""
    names = set()

    def noted(items, what, unit, shown=True):
        names.add((what, shown))
        return nullcontext(items)

    monkeypatch.setattr("hf_kd.features.text_reader.counted", noted)
    return names


def test_a_report_has_the_section_only_where_texts_are_given(model, bars):
    asked = TextAudit(("cat", "tabby cat", "what is tabby and the kitten"), tuple(TEMPLATES))
    options = AuditOptions(texts=asked, attacks=["linear"])
    report = model.audit(data(48, 0), data(30, 1), 0, options=options, progress=False)
    assert bars == {("reading names", False)}
    section = report.section("concepts")
    found = {(score.group, score.name): score for score in section.scores}
    assert found["", "recall, worst wording"].original is not None
    assert ("original texts", "recall, all templates") in found
    assert ("optimised prompt", "recall") in found
    assert "3 candidates in 3 templates" in " ".join(section.notes)
    assert "original text tower is public" in report.to_markdown()
    without = model.audit(data(48, 0), data(30, 1), 0, options=AuditOptions(attacks=["linear"]), progress=False)
    assert "concepts" not in [section.key for section in without.sections]


def test_labels_without_names_and_several_concepts_are_refused(model):
    options = AuditOptions(texts=["cat"], attacks=["linear"])
    with pytest.raises(InvalidValueError, match="one forgotten label"):
        model.audit(data(48, 0), data(30, 1), [0, 1], options=options, progress=False)


def test_long_texts_stand_alone():
    asked = TextAudit(("cat", "something furry with whiskers that purrs"), ("a {}", "the {}"))
    assert asked.wordings() == ["a cat", "the cat", "something furry with whiskers that purrs"]


RECORD = {"method": "oblique", "n_forget": 0, "n_texts": 2}


def told(now=6.0, before=94.0, public=6.0, images=(27.0, 30.0), name="tench, Tinca tinca", chance=10.0, **fields):
    """A report of 50 images of the concept with these percentages."""

    def score(name: str, value: float, old: float, group: str = "", chance: float | None = None) -> Score:
        return Score(name, value, "lower", group, chance=chance, original=old)

    concepts = (
        score("recall, all templates", now, before, chance=chance),
        score("recall, worst wording", 12.0, 96.0),
        score("accuracy of the others", 70.0, 71.0),
        score("recall, all templates", public, before, "original texts"),
        score("image to image R@1", *images),
    )
    recall, false = score("recall", 80.0, 90.0, "linear"), score("false_alarms", 1.0, 1.0, "linear")
    sections = (
        Section("worst_case", "", (recall, false, score("advantage", 79.0, 89.0)), settings={"compared": "different"}),
        Section("concepts", "A concept by its name", concepts),
        *(Section(key, "") for key in ("converged", "label_efficiency")),
        *fields.pop("sections", ()),
    )
    about = {"samples": {"D_ft": 50, "D_rt": 450}, "dimension": 8, "seeds": 1, "reference": "none"}
    about |= {"forget_labels": (0,), "class_names": {0: name}, "context": {"erasures": [RECORD]}}
    return RetentionReport(sections=sections, **about | fields)


def test_what_the_name_finds_comes_first_then_what_images_give_away():
    first, second, third, *_ = verdict(told()).sentences
    assert first == (
        "tench by its name: 3 of 50 images are labelled so (before 47); by the wording that finds most 6 (before 48)."
    )
    assert second == "Images of it are still found by images: 27 % (before 30 %)."
    assert third == "An attacker with labels still reads 40 of 50 from the features (before 45: " + (
        "within what 50 images can tell, -24 to +4 points)."
    )


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"now": 94.0}, "47 of 50 images are labelled so, as many as before."),
        (
            {"now": 90.0},
            "45 of 50 images are labelled so (before 47: within what 50 images can tell, -16 to +8 points).",
        ),
        ({"now": 94.0, "before": 50.0}, "47 of 50 images are labelled so, MORE than before (25)."),
        (
            {"now": 0.0, "before": 4.0, "public": 0.0},
            "it knew nothing to begin with; by the wording that finds most 6 (before 48).",
        ),
        ({"public": 40.0}, "3 of 50 images are labelled so (before 47); with the original's text tower 20."),
        (
            {"public": 8.0},
            "(before 47); with the original's text tower 4; by the wording that finds most 6 (before 48).",
        ),
    ],
)
def test_the_name_claims_no_more_than_its_numbers(numbers, said):
    assert verdict(told(**numbers)).sentences[0].endswith(said)


def test_a_wording_that_finds_more_than_before_is_told_with_what_it_found():
    report = told(before=40.0, now=0.0, public=0.0)
    concepts = report.section("concepts")
    scores = [
        replace(s, value=100.0, original=40.0) if s.name == "recall, worst wording" else s for s in concepts.scores
    ]
    other = [replace(s, original=16.0) if s.value == 100.0 else s for s in scores]
    for changed, said in ((scores, "finds most 50."), (other, "finds most 50 (before 8).")):
        sections = [replace(s, scores=tuple(changed)) if s.key == "concepts" else s for s in report.sections]
        assert verdict(replace(report, sections=tuple(sections))).sentences[0].endswith(said)


def test_the_other_classes_are_told_by_the_measure_of_the_forgotten_one():
    searched = Section(
        "identities", "", (Score("rank1_retained", 40.0, "higher", "closed set, cosine", original=50.0),)
    )
    text = verdict(told(sections=(searched,))).text
    assert "The other classes: 70 % right by their names" in text
    assert "found, before" not in text


def test_images_that_are_found_no_more_than_by_guessing_are_not_still_found():
    assert verdict(told(images=(8.0, 30.0))).sentences[1] == "Images of it are found by images: 8 % (before 30 %)."


def test_a_gallery_search_that_was_asked_for_stands_for_the_images():
    searched = Section("identities", "", (Score("rank1", 40.0, "lower", "closed set, cosine", original=50.0),))
    second = verdict(told(sections=(searched,))).sentences[1]
    assert second == "Images of it are still found by images: 40 % (before 50 %)."
    centred = Score("rank1", 54.0, "lower", "closed set, centred", original=51.0)
    second = verdict(told(sections=(replace(searched, scores=(*searched.scores, centred)),))).sentences[1]
    assert second.endswith(": 54 % by the centred cosine (before 51 %), by the plain cosine 40 %.")


def test_ten_lines_and_the_terminal_have_it_too():
    report = told()
    lines = report.summary().splitlines()
    assert len(lines) <= 10
    assert "Forgotten: tench, by oblique from 2 texts." in lines
    (line,) = (line for line in lines if line.startswith("Labelled by its name"))
    assert line.startswith("Labelled by its name, zero-shot: 3 of 50 (95 % interval 2 to 16 %); before 47 (")
    assert line.endswith("; the wording that finds most 12 % (before 96 %); other classes 70 % (before 71 %).")
    screen = printed(report, 80)
    assert "By its name, zero-shot" in screen
    assert max(map(len, screen.splitlines())) <= 80
    (row,) = (line for line in screen.splitlines() if "recall of its name" in line)
    assert row.split()[-2:] == ["6.0", "94.0"]
    assert "by name 3 of 50 (before 47)" in verdict(report).short


def test_a_name_that_is_markup_stays_text_and_no_text_that_was_asked_with_is_told():
    report = told(name="<b>[red]tench\n# big")
    assert "\n" not in verdict(report).text
    assert "<b>" not in report.to_markdown()
    assert "[red]tench" in printed(report)


def test_an_audit_by_texts_says_the_name_of_the_label_and_never_the_texts(model, bars):
    options = AuditOptions(texts=["whiskered purrer"], attacks=["linear"])
    report = model.audit(data(48, 0), data(30, 1), 0, options=options, progress=True)
    assert bars == {("reading names", True)}
    assert verdict(report).sentences[0].startswith("cat by its name: ")
    assert "purrer" not in report.summary() + printed(report)
