"""The section about a concept by its name: there where texts are given, with rows of both text towers."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image

from hf_kd import AuditOptions, ErasedModel
from hf_kd.audit.by_name import TextAudit
from hf_kd.errors import InvalidValueError
from tests.helpers.two_towers import NAMES, TEMPLATES, two_towers

CLASSES = ["cat", "dog", "ship"]


def data(count: int, seed: int) -> Dataset:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    rows = {"image": list(pixels), "label": [n % 3 for n in range(count)]}
    return Dataset.from_dict(rows, features=Features({"image": Image(), "label": ClassLabel(names=CLASSES)}))


@pytest.fixture(scope="module")
def model() -> ErasedModel:
    return ErasedModel.from_model(*two_towers("CLIPModel")).erase(
        texts=["cat"], retain_texts=NAMES, templates=TEMPLATES
    )


def test_a_report_has_the_section_only_where_texts_are_given(model):
    asked = TextAudit(("cat", "tabby cat", "what is tabby and the kitten"), tuple(TEMPLATES))
    options = AuditOptions(texts=asked, attacks=["linear"])
    report = model.audit(data(48, 0), data(30, 1), 0, options=options, progress=False)
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
