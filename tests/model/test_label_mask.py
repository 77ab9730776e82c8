"""Masked classes: never answered, whatever asks; the model inside keeps its names, by which data sets are matched."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass

import pytest
import torch
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments, pipeline

from hf_kd import ESC, AuditOptions, ErasedModel, ReadOptions
from hf_kd.data.masked_classes import MASKED_LOGIT
from hf_kd.methods.erasers.cover import CoverMap
from hf_kd.model import label_mask as masking
from tests.helpers.small import NAMES, make_dataset, picture
from tests.helpers.taught import taught

QUICK = {"options": AuditOptions(attacks=["linear", "norm"], draws=1, shots=[1]), "progress": False}
KEPT = [0, 1, 3, 4]


def erase(model, processor, **options) -> ErasedModel:
    """A model that has forgotten "cat" (class 2) and never answers it."""
    options = {"method": "esc", "k": 1, "mask_head": True} | options
    return ErasedModel.from_model(model, processor).erase(make_dataset([2] * 20), progress=False, **options)


def answer(model, pixels) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values=pixels).logits


@pytest.fixture(params=["(erased)", None], ids=["labelled", "dropped"])
def label(request):
    return request.param


# Never answered.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_masked_logit_is_never_and_its_probability_exactly_zero(model, processor, pixels, dtype):
    erased = erase(model, processor)
    logits = answer(erased, pixels)
    assert (logits[:, 2] == MASKED_LOGIT).all()
    if dtype != torch.float32:
        erased.to(dtype)
        logits = answer(erased, pixels.to(dtype))
        assert logits.dtype == dtype
    assert (logits.softmax(dim=1)[:, 2] == 0).all()
    assert torch.isfinite(logits.softmax(dim=1)).all()
    assert torch.isfinite(logits.log_softmax(dim=1)).all()


def test_the_other_logits_are_those_of_the_eraser_alone(model, processor, pixels, label):
    plain = answer(erase(copy.deepcopy(model), processor, mask_head=False), pixels)
    logits = answer(erase(model, processor, erased_label=label), pixels)
    assert torch.equal(logits if label is None else logits[:, KEPT], plain[:, KEPT])


def test_losses_are_finite_whatever_the_label(model, processor, pixels):
    erased = erase(model, processor)
    for c in range(5):
        output = erased(pixel_values=pixels, labels=torch.full((10,), c))
        assert torch.isfinite(output.loss)
        assert torch.allclose(output.loss, F.cross_entropy(output.logits, torch.full((10,), c)))
        output.loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in erased.parameters() if p.grad is not None)


def test_dropped_classes_leave_no_column_and_the_others_are_numbered_anew(model, processor, pixels):
    erased = erase(model, processor, erased_label=None)
    assert answer(erased, pixels).shape == (10, 4)
    assert erased.config.num_labels == 4
    assert erased.config.id2label == {0: "ape", 1: "bee", 2: "dog", 3: "elk"}
    assert erased.config.label2id == {"ape": 0, "bee": 1, "dog": 2, "elk": 3}
    assert erased.class_names == dict(enumerate(NAMES)), "the model inside keeps its own"
    labels = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0, 2, -100])
    output = erased(pixel_values=pixels, labels=labels)
    assert torch.allclose(output.loss, F.cross_entropy(output.logits, labels)), "-100 is ignored as ever"
    loss, logits = erased(pixel_values=pixels, labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)


def test_dropped_classes_of_a_multi_label_model(model, processor, pixels):
    erased = erase(model, processor, erased_label=None)
    labels = (torch.rand(10, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    output = erased(pixel_values=pixels, labels=labels)
    right = F.binary_cross_entropy_with_logits(output.logits, labels)
    assert torch.allclose(output.loss * 5 / 4, right), "the dropped column adds nothing to the sum"


def test_a_class_under_its_new_name(model, processor):
    erased = erase(model, processor, erased_label="someone")
    assert erased.config.id2label == {0: "ape", 1: "bee", 2: "someone", 3: "dog", 4: "elk"}
    assert erased.config.label2id["someone"] == 2
    assert erased.class_names[2] == "cat"


def test_no_two_classes_get_one_name_and_no_other_class_is_renamed(model, processor):
    other = erase(copy.deepcopy(model), processor, erased_label="elk")
    assert (other.config.id2label[2], other.config.id2label[4]) == ("elk 2", "elk")
    erased = erase(model, processor)
    for labels in ([0], [1], [3]):
        erased.erase(make_dataset(labels * 10), k=1, mask_head=True, progress=False)
    names = erased.config.id2label
    assert names == {0: "(erased) 2", 1: "(erased) 3", 2: "(erased)", 3: "(erased) 4", 4: "elk"}
    assert len(erased.config.label2id) == 5


# Like any other model.


def test_pipelines_never_name_them(model, processor, tmp_path, label):
    erased = erase(model, processor, erased_label=label)
    image = picture(2, 5)
    for given in (erased, tmp_path):
        if given is tmp_path:
            erased.save_pretrained(tmp_path)
        tool = pipeline("image-classification", model=given if given is erased else str(given),
                        image_processor=processor)  # fmt: skip
        answers = tool(image, top_k=5)
        assert sum(a["score"] for a in answers) == pytest.approx(1, abs=1e-5)
        assert {a["label"] for a in answers if a["score"] > 0} == {"ape", "bee", "dog", "elk"}
        assert "cat" not in [a["label"] for a in answers]
        assert len(answers) == (4 if label is None else 5)


def test_trainer_evaluates(model, processor, pixels, tmp_path, label):
    erased = erase(model, processor, erased_label=label)
    numbers = [0, 1, 2, 3] if label is None else KEPT
    rows = [{"pixel_values": x, "labels": numbers[i % 4]} for i, x in enumerate(pixels)]
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, per_device_eval_batch_size=4)
    trainer = Trainer(erased, arguments, eval_dataset=rows)
    labels = torch.tensor([row["labels"] for row in rows])
    expected = answer(erased, pixels)
    predicted = trainer.predict(rows)
    assert torch.allclose(torch.from_numpy(predicted.predictions), expected, atol=1e-5)
    assert predicted.metrics["test_loss"] == pytest.approx(float(F.cross_entropy(expected, labels)), rel=1e-4)


def test_saved_loaded_and_copied_bit_for_bit(model, processor, pixels, tmp_path, label):
    erased = erase(model, processor, erased_label=label)
    erased.save_pretrained(tmp_path)
    expected = answer(erased, pixels)
    for other in (ErasedModel.from_pretrained(tmp_path), copy.deepcopy(erased)):
        assert torch.equal(answer(other, pixels), expected)
        assert other.config.id2label == erased.config.id2label
        assert other.config.label2id == erased.config.label2id
        assert (other.config.masked, other.config.dropped) == ([2], label is None)
        assert other.erasures == erased.erasures
        other.reset()
    assert torch.equal(answer(erased, pixels), expected), "copies own their masks"


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_and_exported_they_stay_dropped(resnet, processor, pixels):
    """A label that stays is compiled and exported with a cover, in test_architectures.py; and into ONNX."""
    erased = erase(resnet, processor, erased_label=None)
    expected = answer(erased, pixels)
    with torch.no_grad():  # captured only
        compiled = torch.compile(erased, fullgraph=True, backend="eager")(pixel_values=pixels).logits
        exported = torch.export.export(erased, (), {"pixel_values": pixels}, strict=False)
        logits = exported.module()(pixel_values=pixels).logits
    assert torch.allclose(compiled, expected, atol=1e-5)
    assert torch.allclose(logits, expected, atol=1e-5)


def test_reset_takes_the_mask_back(model, processor, pixels, label):
    before = answer(model, pixels)
    erased = erase(model, processor, erased_label=label).reset()
    assert torch.equal(answer(erased, pixels), before)
    assert erased.config.id2label == dict(enumerate(NAMES))
    assert erased.config.label2id == {name: c for c, name in enumerate(NAMES)}
    assert (erased.config.masked, erased.config.dropped) == ([], False)


def test_two_requests(model, processor, pixels, label):
    erased = erase(model, processor, erased_label=label)
    erased.erase(make_dataset([0] * 20), k=1, mask_head=True, erased_label=label, progress=False)
    logits = answer(erased, pixels)
    assert erased.config.masked == [0, 2]
    if label is None:
        assert erased.config.id2label == {0: "bee", 1: "dog", 2: "elk"}
        assert logits.shape == (10, 3)
    else:
        assert (logits[:, [0, 2]] == MASKED_LOGIT).all()
    assert [erasure.classes for erasure in erased.erasures] == [(2,), (0,)]
    assert [erasure.masked for erasure in erased.erasures] == [True, True]
    third = make_dataset([3] * 20)
    erased.erase(third, k=1, progress=False)
    assert erased.config.masked == [0, 2], "a request that does not mask leaves the mask as it is"


def test_folded_the_mask_is_in_the_head(model, processor, pixels, label):
    erased = erase(model, processor, erased_label=label)
    stock = erased.fold()
    assert type(stock) is type(model)
    logits = answer(stock, pixels)
    assert (logits[:, 2] == MASKED_LOGIT).all()
    expected = answer(erased, pixels)
    assert torch.allclose(logits[:, KEPT], expected if label is None else expected[:, KEPT], atol=1e-4)


def test_a_head_without_a_bias_cannot_take_the_mask_and_says_so(vit, processor):
    vit.classifier = torch.nn.Linear(32, 5, bias=False)
    erased = erase(vit, processor)
    with pytest.raises(ValueError, match=r"no bias.*save_pretrained keeps the mask"):
        erased.fold()


def test_audits_match_data_sets_by_the_names_of_the_model_inside(model, processor, label):
    erased = erase(model, processor, erased_label=label)
    splits = make_dataset([0, 1, 2, 3, 4] * 12), make_dataset([0, 1, 2, 3, 4] * 8, seed=9)
    report = erased.audit(*splits, **QUICK)
    assert report.forget_labels == (2,)
    assert report.score("head", "D_ft").value == 0
    assert report.samples["D_ft"] == 8
    inputs = processor([image.convert("RGB") for image in splits[1]["image"]], return_tensors="pt")["pixel_values"]
    logits = answer(erased, inputs)
    numbers = torch.tensor(KEPT) if label is None else torch.arange(5)
    truth = torch.tensor(splits[1]["label"])
    right = (numbers[logits.argmax(dim=1)] == truth)[truth != 2].float().mean()
    assert report.score("head", "D_rt").value == pytest.approx(100 * float(right))


# Which requests mask.


def test_cover_masks_unless_told_otherwise(vit, processor, pixels):
    vit = taught(vit, processor)
    forget = make_dataset([2] * 20)
    by_default = ErasedModel.from_model(copy.deepcopy(vit), processor).erase(forget, method="cover", progress=False)
    assert by_default.config.masked == [2]
    assert by_default.config.id2label[2] == "(erased)"
    left = ErasedModel.from_model(vit, processor)
    left.erase(forget, method="cover", mask_head=False, progress=False)
    assert left.config.masked == []
    assert left.config.id2label[2] == "cat"
    assert not (answer(left, pixels) == MASKED_LOGIT).any()
    assert isinstance(left.sites[0].eraser, CoverMap)


def test_esc_masks_only_when_asked(model, processor, forget, pixels):
    plain = ErasedModel.from_model(model, processor).erase(forget, k=1, progress=False)
    assert plain.config.masked == []
    assert not (answer(plain, pixels) == MASKED_LOGIT).any()


def test_a_method_of_ones_own_can_be_used_without_registering_it(vit, processor, forget):
    @dataclass(frozen=True)
    class Own(ESC):
        name = "own"
        masks_head = True

    erased = ErasedModel.from_model(vit, processor).erase(forget, method=Own(k=1), progress=False)
    assert erased.config.masked == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_head": True, "whole_classes": False}, "Only known classes"),
        ({"mask_head": True, "erased_label": None}, "masked under a label before"),
        ({"method": "cover", "whole_classes": False}, "takes whole classes out"),
        ({"method": "cover", "guard": 2}, "guard=2"),
        ({"method": "leace"}, "retain="),
    ],
)
def test_a_refused_request_changes_nothing(vit, processor, pixels, options, message):
    erased = erase(taught(vit, processor), processor)
    state = {name: value.clone() for name, value in erased.state_dict().items()}
    before, config = answer(erased, pixels), erased.config.to_dict()
    with pytest.raises(ValueError, match=message):
        erased.erase(make_dataset([0] * 20), progress=False, **options)
    assert torch.equal(answer(erased, pixels), before)
    assert erased.config.to_dict() == config
    assert all(torch.equal(value, state[name]) for name, value in erased.state_dict().items())


@pytest.mark.parametrize("where", ["masking", "composing"])
def test_an_error_after_fitting_leaves_neither_a_mask_nor_an_eraser(vit, processor, pixels, forget, monkeypatch, where):
    wrapped = ErasedModel.from_model(vit, processor).erase(make_dataset([0] * 20), k=1, progress=False)
    before, config = answer(wrapped, pixels), wrapped.config.to_dict()

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    if where == "masking":
        monkeypatch.setattr(masking, "mask_classes", fail)
    else:
        monkeypatch.setattr(type(wrapped.sites[0].eraser), "then", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        wrapped.erase(forget, k=1, mask_head=True, progress=False)
    assert torch.equal(answer(wrapped, pixels), before)
    assert wrapped.config.to_dict() == config
    assert wrapped.sites[0].masked == ()


def test_images_of_no_known_class_cannot_be_masked(vit, processor, pixels):
    wrapped = ErasedModel.from_model(vit, processor)
    before = answer(wrapped, pixels)
    with pytest.raises(ValueError, match="Only known classes"):
        wrapped.erase([picture(2, i) for i in range(10)], k=1, mask_head=True, progress=False)
    assert torch.equal(answer(wrapped, pixels), before)
    assert not wrapped.is_erased


def test_something_has_to_be_left_to_answer(vit, processor):
    erased = erase(vit, processor)
    for labels in ([0], [1], [3]):
        erased.erase(make_dataset(labels * 10), k=1, mask_head=True, progress=False)
    with pytest.raises(ValueError, match="nothing would be left to answer"):
        erased.erase(make_dataset([4] * 10), k=1, mask_head=True, progress=False)


def test_one_class_that_is_left_keeps_the_column_of_the_others(vit, processor):
    """transformers takes num_labels = 1 for a regression: the pipeline would answer with a sigmoid."""
    wrapped = ErasedModel.from_model(vit, processor)
    with pytest.raises(ValueError, match="One class would be left"):
        wrapped.erase(make_dataset([0, 1, 2, 3] * 5), k=1, mask_head=True, erased_label=None, progress=False)
    assert wrapped.config.num_labels == 5
    assert not wrapped.is_erased


def test_a_configuration_that_masks_what_is_not_there_is_damaged(vit, processor, tmp_path):
    erase(vit, processor).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for masked in ([99], [-1], ["2"]):
        (tmp_path / "config.json").write_text(json.dumps(config | {"masked": masked}))
        with pytest.raises(ValueError, match="damaged"):
            ErasedModel.from_pretrained(tmp_path)


def test_masks_are_those_of_the_classes_of_the_model_whatever_the_data_set_calls_them(vit, processor, pixels):
    data = make_dataset([1] * 20, names=("x", "felines"))
    erased = ErasedModel.from_model(vit, processor)
    erased.erase(
        data, k=1, mask_head=True, reading=ReadOptions(label_mapping={"felines": "cat", "x": "ape"}), progress=False
    )
    assert erased.config.masked == [2]
