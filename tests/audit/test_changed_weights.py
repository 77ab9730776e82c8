"""An audit of changed weights: what stands as the original's is the original's, and where it was not given nothing does."""

from __future__ import annotations

import re
from unittest import mock

import pytest
import torch
from transformers import ViTImageProcessorPil

from hf_kd import AuditOptions, ErasedModel, Unseen
from hf_kd.audit import hidden_states
from hf_kd.data.progress import Steps
from tests.audit.test_render import printed
from tests.audit.test_weight_access import resnet
from tests.helpers.small import make_dataset

TRAIN, TEST = make_dataset([0, 1, 2, 3, 4] * 8), make_dataset([0, 1, 2, 3, 4] * 6, seed=9)
PROCESSOR = ViTImageProcessorPil(size={"height": 16, "width": 16})


def wrapped(network):
    return ErasedModel.from_model(network, PROCESSOR)


def erased(model):
    return model.erase(make_dataset([2] * 8), k=1, progress=False, allow_unrecognised=True)


def options(**more):
    return AuditOptions(**{"attacks": ["linear"], "draws": 1, "shots": [1]} | more)


@pytest.fixture(scope="module")
def record():
    return erased(wrapped(resnet())).erasures[0].to_dict() | {"method": "scrub", "classes": [2]}


@pytest.fixture
def changed(record):
    """Other weights, and a record that says so."""
    network = resnet(5)
    network.config.hf_kd_unlearned = [record]
    return wrapped(network)


def said(report):
    return f"{report.to_markdown()} {' '.join(printed(report).split())}"


def test_an_original_of_another_width_is_refused_in_words(changed):
    config = changed.inner.config.to_dict() | {"hidden_sizes": [4, 16], "hf_kd_unlearned": None}
    wider = wrapped(type(changed.inner)(type(changed.inner.config).from_dict(config)))
    with pytest.raises(ValueError, match="same network before unlearning"):
        changed.audit(TRAIN, TEST, original=wider, options=options(), progress=False)


def test_without_the_original_nothing_stands_in_its_place(changed):
    report = changed.audit(
        TRAIN, TEST, options=options(access="weights", budget=1e-6, layer_profile=True), progress=False
    )
    assert not report.original_known
    assert not [(score.group, score.name) for score in report if score.original is not None]
    assert "the model before the change was not given" in report.verdict
    assert "original" not in report.context["weights"]["profile"]
    for words in ("bit for bit", "as it was", "takes the eraser off", "| original"):
        assert words not in said(report), words
    assert "changed" in report.to_markdown()


def test_the_bar_calls_a_model_by_what_was_done_to_it(changed, monkeypatch):
    begun = []
    monkeypatch.setattr(Steps, "begin", lambda self, name: begun.append(name))
    for model, word in ((changed, "changed"), (erased(wrapped(resnet())), "erased"), (wrapped(resnet()), "audited")):
        begun.clear()
        report = model.audit(TRAIN, TEST, "cat", options=options(access="weights", budget=1e-6), progress=False)
        words = {word for name in begun for word in re.findall(r"\w+", name)} & {"changed", "erased", "audited"}
        assert words == {word} == {report.treatment}


def test_figures_of_changed_weights_without_their_original(changed, tmp_path):
    pytest.importorskip("matplotlib")
    report = changed.audit(TRAIN, TEST, options=options(layer_profile=True), progress=False)
    assert {path.stem for path in report.figures(tmp_path)} == {"recovery", "norms", "layer_profile", "tsne"}


@pytest.mark.parametrize("folded", [False, True])
def test_what_stood_before_an_eraser_on_changed_weights_is_not_called_the_original(record, folded):
    network = resnet(5)
    setattr(network.config, "hf_kd_folded" if folded else "hf_kd_unlearned", [record])
    report = erased(wrapped(network)).audit(TRAIN, TEST, options=options(), progress=False)
    alone = wrapped(resnet(5)).audit(TRAIN, TEST, "cat", options=options(), progress=False)
    assert not [(score.group, score.name) for score in report if score.original is not None]
    for key, name in (("converged", "D_ft"), ("head", "D_ft"), ("worst_case", "recall")):
        assert report.score(key, name).before_projection == alone.score(key, name).value, key
    assert "before" not in report.verdict.partition("What it was before is not known")[0]
    assert "before the eraser" in report.to_markdown()
    assert "before the eraser" in printed(report)
    assert "as from the original" not in report.summary()


def test_with_the_original_every_block_and_unseen_classes_are_read_through_it(changed):
    original = wrapped(resnet())
    unseen = Unseen(make_dataset([0] * 12 + [1] * 12, seed=5, names=["fox", "gnu"]))
    given = {"options": options(layer_profile=True), "progress": False, "reference": unseen}
    report = changed.audit(TRAIN, TEST, original=original, **given)
    own = original.audit(TRAIN, TEST, "cat", **given)
    for score in report.section("layer_profile").scores:
        assert score.original == own.score("layer_profile", score.name, score.group).value
    assert any(s.value != s.original for s in report.section("layer_profile").scores if s.group != "tap")
    assert not any("as it was" in note for note in report.section("layer_profile").notes)
    found = [score.reference for score in report.section("label_efficiency").scores]
    assert found == [score.reference for score in own.section("label_efficiency").scores]
    assert any(reference is not None for reference in found)


def test_grad_cam_draws_the_original_that_is_given_or_none(changed, tmp_path):
    images, original = make_dataset([2] * 3), wrapped(resnet())
    changed.processor = ViTImageProcessorPil(size={"height": 64, "width": 64})

    def drawn(model, **given):
        with mock.patch.object(hidden_states, "panel") as panel:
            hidden_states.grad_cam(model, images, tmp_path / "grad_cam.png", "cat", **given)
        return panel.call_args.args[1], panel.call_args.kwargs["treatment"]

    maps, treatment = drawn(changed)
    assert maps.original is None
    assert treatment == "changed"
    original.processor = changed.processor
    maps, treatment = drawn(original)
    assert torch.equal(drawn(changed, original=original)[0].original, maps.erased)
    assert treatment == "audited", "as in the report of such a model"


def test_grad_cam_without_an_original_has_no_column_of_it(changed, tmp_path):
    pytest.importorskip("matplotlib")
    changed.processor = ViTImageProcessorPil(size={"height": 64, "width": 64})
    assert hidden_states.grad_cam(changed, make_dataset([2] * 2), tmp_path / "grad_cam.png", "cat").exists()


def test_a_model_to_which_nothing_was_done_is_not_said_to_have_forgotten():
    report = wrapped(resnet()).audit(TRAIN, TEST, "cat", options=options(), progress=False)
    assert "Audited: cat (no record says that the model was made to forget it)." in report.summary()
    assert "orgotten" not in repr(report).partition(";")[0]
    assert report.treatment == "audited"
