"""An erased model in Trainer, with PEFT, compiled and exported: like any other model of transformers."""

from __future__ import annotations

import copy
import inspect
import json
import logging

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from hf_kd import ErasedModel
from hf_kd.data.masked_classes import MASKED_LOGIT
from hf_kd.errors import InvalidTypeError
from tests.helpers import zoo
from tests.helpers.small import make_dataset
from tests.model.test_erase import logits_of


@pytest.fixture
def erased(model, processor, forget):
    return ErasedModel.from_model(model, processor).erase(forget, k=2, progress=False)


def test_trainer_trains_saves_and_reloads_behind_the_eraser(erased, processor, pixels, tmp_path, caplog):
    rows = [{"pixel_values": x, "labels": i % 5} for i, x in enumerate(pixels)]
    directions = erased.sites[0].eraser.directions.clone()
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        save_steps=3,
        report_to=[],
        use_cpu=True,
        logging_steps=1,
    )
    trainer = Trainer(erased, arguments, train_dataset=rows, eval_dataset=rows)
    before = [p.clone() for p in erased.inner.parameters()]
    with caplog.at_level(logging.WARNING, logger="transformers"), caplog.at_level(logging.WARNING):
        trainer.train()
    assert any(not torch.equal(a, b) for a, b in zip(before, erased.inner.parameters(), strict=True))
    assert torch.equal(erased.sites[0].eraser.directions, directions)
    assert trainer.evaluate()["eval_loss"] > 0
    again = ErasedModel.from_pretrained(tmp_path / "checkpoint-3")
    assert torch.equal(logits_of(again, pixels), logits_of(erased.eval(), pixels))


def test_training_mode_warns_that_training_can_restore(erased, capfd, monkeypatch):
    from hf_kd.model import erased_model as modeling

    said = []
    monkeypatch.setattr(modeling, "warning_once", lambda _, message: said.append(message))
    erased.train()
    assert "can restore what was erased" in said[0]
    said.clear()
    erased.eval()
    assert not said


def test_labels_give_the_loss_of_the_erased_logits(erased, pixels):
    labels = torch.arange(10) % 5
    output = erased(pixel_values=pixels, labels=labels)
    assert torch.allclose(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    loss, logits = erased(pixel_values=pixels, labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)


def test_hidden_states_come_only_when_asked_for(erased, pixels):
    with torch.no_grad():
        assert erased(pixel_values=pixels).get("hidden_states") is None
        assert erased(pixel_values=pixels, output_hidden_states=True).hidden_states is not None


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_graphs_follow_erasures(model, processor, forget, pixels):
    """Compiled before anything is erased; what is compiled and exported after it: test_architectures.py."""
    erased = ErasedModel.from_model(model, processor)
    compiled = torch.compile(
        erased, fullgraph=True, backend="eager"
    )  # captured anew or not; lowering is no question here
    before = logits_of(compiled, pixels)
    assert torch.allclose(before, logits_of(erased, pixels), atol=1e-5)
    erased.erase(forget, k=2, mask_head=True, progress=False)
    after = logits_of(compiled, pixels)
    assert not torch.allclose(after[:, 3:], before[:, 3:], atol=1e-5)
    assert (after[:, 2] == MASKED_LOGIT).all(), "compiled before it was masked"
    assert torch.allclose(after, logits_of(erased, pixels), atol=1e-5)
    erased.reset()
    assert torch.allclose(logits_of(compiled, pixels), before, atol=1e-5)


# PEFT


@pytest.fixture
def peft():
    return pytest.importorskip("peft")


def lora(peft, **kwargs):
    return peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **kwargs)


def test_a_lora_tuned_classifier_is_merged_and_erased(peft, vit, processor, forget, pixels):
    tuned = peft.get_peft_model(vit, lora(peft, modules_to_save=["classifier"])).eval()
    answers = logits_of(tuned, pixels)
    erased = ErasedModel.from_model(tuned, processor)
    assert torch.allclose(logits_of(erased, pixels), answers, atol=1e-5)
    erased.erase(forget, k=2, progress=False)
    assert type(erased.inner).__name__ == "ViTForImageClassification"
    assert not any("lora" in name for name, _ in erased.named_parameters())


def test_an_adapter_repository_is_loaded_merged_and_erased(peft, vit, processor, forget, pixels, tmp_path):
    base = copy.deepcopy(vit)
    base.classifier = torch.nn.Linear(32, 3)  # the base has another number of labels, as in every tutorial
    base.config.id2label = {i: f"LABEL_{i}" for i in range(3)}
    base.save_pretrained(tmp_path / "base")
    vit.name_or_path = vit.config._name_or_path = str(tmp_path / "base")
    tuned = peft.get_peft_model(vit, lora(peft, modules_to_save=["classifier"])).eval()
    answers = logits_of(tuned, pixels)
    tuned.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    erased = ErasedModel.from_pretrained(tmp_path / "adapter")
    assert torch.allclose(logits_of(erased, pixels), answers, atol=1e-5)
    erased.erase(forget, k=2, progress=False)
    erased.save_pretrained(tmp_path / "erased")
    assert torch.equal(logits_of(ErasedModel.from_pretrained(tmp_path / "erased"), pixels), logits_of(erased, pixels))


def test_lora_on_an_erased_model_trains_behind_the_eraser(peft, vit, processor, forget, pixels):
    erased = ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False)
    directions = erased.sites[0].eraser.directions
    tuned = peft.get_peft_model(erased, lora(peft))
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
    answers = logits_of(tuned.eval(), pixels)
    tuned(pixel_values=pixels, labels=torch.arange(10) % 5).loss.backward()
    optimizer.step()
    assert not torch.allclose(logits_of(tuned, pixels), answers)
    features = erased.pooled_features(pixels)
    assert float((features @ directions).abs().max()) < 1e-4
    merged = tuned.merge_and_unload()
    assert isinstance(merged, ErasedModel)
    assert merged.is_erased


@pytest.mark.parametrize("where", ["around", "inside", "injected"])
def test_a_model_with_adapters_in_it_is_not_saved_into_a_folder_that_would_not_load(peft, erased, tmp_path, where):
    erased.save_pretrained(tmp_path / "m")
    if where == "injected":
        peft.get_peft_model(erased, peft.LoraConfig(r=2, target_modules="all-linear"))
    else:
        (erased if where == "around" else erased.inner).add_adapter(peft.LoraConfig(r=2, target_modules="all-linear"))
    for write in (lambda: erased.save_pretrained(tmp_path / "m"), erased.fold, lambda: erased.push_to_hub("ana/m")):
        with pytest.raises(ValueError, match="get_peft_model"):
            write()
    assert ErasedModel.from_pretrained(tmp_path / "m").erasures == erased.erasures


def test_copies_of_data_parallel_are_refused_with_the_way_out(erased):
    with pytest.raises(InvalidTypeError, match="torchrun"):
        for module in erased.modules():  # what nn.DataParallel does before a forward on two GPUs
            module._replicate_for_data_parallel()


def test_a_loader_of_model_inputs_needs_no_processor(model, pixels):
    loader = DataLoader([{"pixel_values": x, "labels": 2} for x in pixels], batch_size=4)
    erased = ErasedModel.from_model(model).erase(loader, k=1, progress=False)
    assert erased.erasures[0].n_forget == 10


def test_data_sets_may_be_many_classes_wide(vit, processor):
    data = make_dataset([0] * 10 + [1] * 10)
    erased = ErasedModel.from_model(vit, processor).erase(data, k=2, progress=False)
    assert erased.erasures[0].classes == (0, 1)


@pytest.mark.parametrize("name", ["Siglip2ForImageClassification", "ImageGPTForImageClassification"])
def test_trainer_keeps_every_column_that_the_model_inside_takes(name, tmp_path):
    inner = zoo.build(name)
    inputs = zoo.inputs(name, 4)
    rows = Dataset.from_dict({key: value.tolist() for key, value in inputs.items()} | {"labels": [0, 1, 2, 3]})
    arguments = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    expected = Trainer(inner, arguments).predict(rows.with_format("torch")).predictions
    wrapped = ErasedModel.from_model(inner)
    found = Trainer(wrapped, arguments).predict(rows.with_format("torch")).predictions
    assert torch.allclose(torch.as_tensor(found), torch.as_tensor(expected), atol=1e-5)
    assert inspect.signature(wrapped.forward) == inspect.signature(inner.forward)
    assert inspect.signature(copy.deepcopy(wrapped).forward) == inspect.signature(inner.forward)
