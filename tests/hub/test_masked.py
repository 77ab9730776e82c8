"""Cover-erased models with masked classes, seen through everything that shows them: audit, card, figures, demo."""

from __future__ import annotations

import copy
import functools
import json
import re

import pytest
import torch

from hf_kd import AuditOptions, ErasedModel
from hf_kd.audit.hidden_states import grad_cam
from hf_kd.audit.report import RetentionReport
from hf_kd.cli.demo.page import answers
from hf_kd.features.heads import predictions
from hf_kd.features.reader import ImageReader
from hf_kd.hub.card_results import results_table
from hf_kd.hub.document import REPORT, document
from hf_kd.hub.receipt import RECEIPT
from tests.conftest import image_processor, small_resnet, small_vit
from tests.helpers.small import NAMES, make_dataset, picture
from tests.helpers.taught import taught

QUICK = {"options": AuditOptions(attacks=["linear"], draws=1, shots=[1, 5]), "progress": False}


@pytest.fixture(params=[("vit", "(erased)"), ("resnet", None)], ids=["vit-renamed", "resnet-dropped"])
def case(request):
    """A network, and what the forgotten class is called afterwards; None where it is dropped. Masks and labels of all four
    pairs are tested where they are made; what shows them reads records and labels, whatever the network."""
    return request.param


@functools.cache
def covered_once(family: str, label: str | None) -> tuple[ErasedModel, RetentionReport]:
    """A model that has covered "cat", and its audit."""
    model = {"vit": small_vit, "resnet": small_resnet}[family]()
    erased = ErasedModel.from_model(copy.deepcopy(model), image_processor())
    erased.erase(make_dataset([2] * 40), "cover", progress=False, erased_label=label)
    return erased, erased.audit(*SPLITS, **QUICK)


@pytest.fixture
def covered(case):
    return copy.deepcopy(covered_once(*case)[0])


@pytest.fixture
def report(case):
    return covered_once(*case)[1]


SPLITS = make_dataset([0, 1, 2, 3, 4] * 16, seed=6), make_dataset([0, 1, 2, 3, 4] * 10, seed=9)


@pytest.fixture
def splits():
    return SPLITS


def test_the_record_says_what_was_masked_and_old_records_say_nothing(covered):
    (record,) = covered.erasures
    label = None if covered.config.dropped else "(erased)"
    assert (record.masked, record.erased_label, record.n_retain) == (True, label, None)
    old = {key: value for key, value in record.to_dict().items() if key not in ("masked", "erased_label", "n_retain")}
    assert type(record).from_dict(old).masked is None
    plain = ErasedModel.from_model(covered.inner.__class__(covered.config.inner), covered.processor)
    plain.erase(make_dataset([2] * 20), k=2, progress=False)
    assert plain.erasures[0].masked is None, "nobody asked"


def test_an_audit_knows_classes_by_the_names_inside_and_the_original_answers_without_the_mask(covered, report, splits):
    assert report.class_names == dict(enumerate(NAMES))
    assert report.score("head", "D_ft").value == 0
    assert report.score("head", "D_ft").original > 50, "the original was not masked"
    test = ImageReader(covered, splits[1]).read()
    original = predictions(covered, test.before, masked=False)
    right = 100 * float((original[test.labels == 2] == 2).double().mean())
    assert report.score("head", "D_ft").original == pytest.approx(right)
    assert report.forget_labels == (2,)
    by_name = covered.audit(*splits, forget_labels=["cat"], retain_labels=["ape", "elk"], **QUICK)
    assert by_name.samples["D_rt"] == 20


def test_a_report_measures_what_a_map_replaces_and_is_silent_where_it_changes_everything(covered, report, splits):
    test = ImageReader(covered, splits[1]).read()
    rows = (test.before[0] != test.erased(covered)[0]).any(dim=1)
    cover = covered.erasures[0].measured[0]["cover_classes"]
    for group, mask in (("D_ft", test.labels == 2), ("D_rt", test.labels != 2)):
        changed = report.score("inputs", "changed", group).value
        assert changed == pytest.approx(100 * float(rows[mask].double().mean()))
        assert changed > 0
        vectors = report.score("inputs", "changed_vectors", group).value
        assert vectors == len(test.erased(covered)[0][rows & mask].unique(dim=0))
        assert 1 <= vectors <= len(cover)
    table = results_table(report)
    assert "| Inputs that the eraser changes, forgotten (D_ft) |" in table
    assert "| Different vectors among these, retained (D_rt) |" in table
    assert "vectors among the changed" in report.to_markdown()
    covered.reset()
    covered.erase(make_dataset([2] * 40), k=2, progress=False)
    linear = covered.audit(*splits, **QUICK)
    assert not [score for score in linear.section("inputs").scores if score.name == "changed_vectors"]
    assert "Different vectors" not in results_table(linear)


def test_classes_are_drawn_behind_their_own_eraser_only_where_the_method_needs_nothing_else(resnet, processor, splits):
    taught(resnet, processor)
    for method in ("cover", "leace", "mean-projection"):
        erased = ErasedModel.from_model(copy.deepcopy(resnet), processor)
        given = {"retain": make_dataset([0, 1, 3, 4] * 8)} if method == "leace" else {}
        erased.erase(make_dataset([2] * 40), method, progress=False, **given)
        assert "after_each" not in erased.audit(*splits, **QUICK).plots["cosines"], method
    erased = ErasedModel.from_model(resnet, processor).erase(make_dataset([2] * 40), k=1, progress=False)
    assert "after_each" in erased.audit(*splits, **QUICK).plots["cosines"]


def test_a_card_names_cover_classes_and_never_the_forgotten(covered, report, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_kd.hub.document.has_package", lambda name: False)  # figures are another test's
    covered.save_pretrained(tmp_path)
    document(covered, tmp_path, report=report)
    text = (tmp_path / "README.md").read_text()
    told = " ".join(text.split())
    measured = covered.erasures[0].measured[0]
    for label in measured["cover_classes"]:
        assert f"{label} ({NAMES[label]})" in told
    for words in (f"{measured['share_of_forget_replaced']:.1%} of the forgotten images were replaced", "no guard",
                  "keep their label and lose all detail", "Exactly repeated vectors", "deniability and cover, not deletion",
                  "the white box", "accepts false alarms", "several views of one image", "known to share a label",
                  "inputs unlike the training data", "no evidence of equivalence to retraining",
                  "Different vectors among these", "--method cover", "--mask-head"):  # fmt: skip
        assert words in told, words
    dropped = covered.config.dropped
    assert ("labels and logits are without it" in told) == dropped
    assert ("--drop-label" in told) == dropped
    for words in ("direction removed", "ESC removes", "condition number"):
        assert words not in text, words
    for name in ("README.md", RECEIPT, REPORT):
        assert not re.search(r"\bcat\b", (tmp_path / name).read_text()), name
    document(covered, tmp_path, show_class_names=True)
    assert "made to forget cat," in (tmp_path / "README.md").read_text()


def test_a_cover_class_that_is_forgotten_later_is_not_named(model, processor, tmp_path):
    erased = ErasedModel.from_model(taught(model, processor), processor)
    erased.erase(make_dataset([2] * 40), "cover", cover_classes=[0, 1], progress=False)
    erased.erase(make_dataset([0] * 40, seed=2), "mean-projection", progress=False)
    erased.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "cover classes 0, 1 (bee)" in text
    assert not re.search(r"\bape\b", text)
    assert "Cover erasure puts" in text
    assert "Mean projection removes" in text, "each method that was used is described"
    assert "ESC removes" not in text


def test_a_reloaded_model_shows_both_answers_by_name(covered, tmp_path):
    covered.save_pretrained(tmp_path)
    model = ErasedModel.from_pretrained(tmp_path)
    image = picture(2, 31)
    before, after = answers(model, image)
    assert max(before, key=before.get) == "cat"
    assert set(before) == set(NAMES)
    assert "cat" not in after
    assert after.get("(erased)", 0.0) == 0.0
    assert len(after) == (4 if model.config.dropped else 5)
    with torch.no_grad():
        logits = model(model.processor([image], return_tensors="pt")["pixel_values"]).logits
    assert logits.shape[1] == len(after), "and everything is back in its place"
    assert max(after, key=after.get) == model.config.id2label[int(logits.argmax())]


def test_grad_cam_draws_a_masked_class_by_its_name(covered, splits, tmp_path):
    pytest.importorskip("matplotlib")
    path = grad_cam(covered, splits[1], tmp_path / "cam.png", "cat", most=2)
    assert path.stat().st_size > 1000


def test_the_configuration_is_json_and_holds_the_masks(covered, tmp_path):
    covered.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["masked"] == [2]
    assert config["erasures"][0]["masked"] is True
