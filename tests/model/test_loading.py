"""What is loaded is what the folder says it holds: its own weights, by safetensors, adapters with the answers of PEFT."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, ViTModel

from hf_kd import ErasedModel, unlearn
from hf_kd.errors import InvalidValueError, UnreachableError
from hf_kd.features.reader import noise_inputs
from hf_kd.features.taps.find import find_taps
from hf_kd.features.taps.inputs import probe_inputs, run
from hf_kd.features.taps.site import record
from hf_kd.methods.unlearning.fresh import fresh_model
from hf_kd.model import checkpoint_files
from hf_kd.model.checkpoint_files import checkpoint_errors
from hf_kd.model.loading import load_processor
from hf_kd.model.stored_eraser import find_eraser
from tests.helpers import zoo
from tests.helpers.two_towers import two_towers
from tests.model.test_erase import logits_of
from tests.model.test_saving import edit_config


@pytest.fixture
def stock(vit, processor, tmp_path):
    vit.save_pretrained(tmp_path / "stock")
    processor.save_pretrained(tmp_path / "stock")
    return tmp_path / "stock"


@pytest.fixture
def saved(vit, processor, forget, tmp_path):
    ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False).save_pretrained(tmp_path / "erased")
    return tmp_path / "erased"


# Weights of another model.


@pytest.mark.parametrize("drop", [(), ("sites.",)])
def test_a_stock_configuration_over_erased_weights_is_refused(stock, saved, drop):
    tensors = {k: v for k, v in load_file(saved / "model.safetensors").items() if not k.startswith(drop or ("-",))}
    save_file(tensors, stock / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="those of an erased model"):
        ErasedModel.from_pretrained(stock)


def test_weights_that_are_mostly_missing_are_refused(stock):
    tensors = {k: v for k, v in load_file(stock / "model.safetensors").items() if "classifier" in k}
    save_file(tensors, stock / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="less than half of the weights"):
        ErasedModel.from_pretrained(stock)


def without(folder, part):
    """Take the tensors with this in their names out of a checkpoint."""
    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if part not in k}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_features_that_come_out_of_weights_drawn_at_random_are_refused(vit, processor, tmp_path, caplog):
    """As of DINO's backbones, which have no pooler: each process would erase and measure other features."""
    folder = tmp_path / "backbone"
    ViTModel(vit.config).save_pretrained(folder)
    processor.save_pretrained(folder)
    ErasedModel.from_pretrained(folder)
    assert "drawn at random" not in caplog.text
    without(folder, "pooler.")
    with pytest.raises(InvalidValueError, match="does not bring pooler.dense.*tap='pooler.dense'"):
        ErasedModel.from_pretrained(folder)
    first, second = (ErasedModel.from_pretrained(folder, tap="pooler.dense") for _ in range(2))
    assert "pooler.dense.bias: drawn at random" in caplog.text
    weights = [model.inner.pooler.dense.weight for model in (first, second)]
    assert not torch.equal(*weights)
    assert all(weight.requires_grad for weight in weights)
    inputs = noise_inputs(first, 2)
    found = [pooled_features(model, inputs) for model in (first, second)]
    assert torch.equal(*found)


def test_an_eraser_is_not_saved_alone_where_its_base_has_weights_drawn_at_random(stock, forget, tmp_path):
    """It would know its base by these, which nobody loads again; the whole model brings them."""
    without(stock, "classifier.")
    erased = ErasedModel.from_pretrained(stock).erase(forget, k=2, progress=False, allow_unrecognised=True)
    with pytest.raises(InvalidValueError, match="classifier.* drawn at random.*save_pretrained"):
        erased.save_eraser(tmp_path / "eraser")
    erased.save_pretrained(tmp_path / "whole")
    ErasedModel.from_pretrained(tmp_path / "whole").save_eraser(tmp_path / "eraser")


@pytest.mark.parametrize("brings", [None, ["pooler"]])
def test_an_adapter_brings_what_its_base_lacks_or_is_refused(vit, processor, tmp_path, brings):
    peft = pytest.importorskip("peft")
    base, folder = tmp_path / "base", tmp_path / "adapter"
    ViTModel(vit.config).save_pretrained(base)
    without(base, "pooler.")
    config = peft.LoraConfig(target_modules="all-linear", exclude_modules=["dense"], modules_to_save=brings)
    peft.get_peft_model(ViTModel.from_pretrained(base), config).save_pretrained(folder)
    processor.save_pretrained(folder)
    if brings:
        first, second = (ErasedModel.from_pretrained(folder) for _ in range(2))
        inputs = noise_inputs(first, 2)
        assert [tap.places[0].module for tap in first.find_taps()] == ["pooler"]
        second.find_taps()
        assert torch.equal(pooled_features(first, inputs), pooled_features(second, inputs))
    else:
        with pytest.raises(InvalidValueError, match="does not bring pooler.dense"):
            ErasedModel.from_pretrained(folder)


def test_a_block_that_a_checkpoint_lacks_is_no_part_of_features_and_a_head_may_be_new(stock, caplog):
    without(stock, "classifier.")
    assert ErasedModel.from_pretrained(stock).find_taps()
    assert "classifier.bias: drawn at random" in caplog.text
    without(stock, "layer.1.")
    with pytest.raises(InvalidValueError, match="vit.layers.1.*come out of them") as refused:
        ErasedModel.from_pretrained(stock)
    assert "tap=" not in str(refused.value)


def pooled_features(model, inputs):
    with record(list(model.sites)) as take, torch.no_grad():
        run(model.inner, inputs)
        return take()[0]


@pytest.mark.parametrize("allocate", [torch.empty, np.empty])
def test_memory_that_runs_out_is_not_said_to_be_weights_that_do_not_fit(allocate):
    with pytest.raises(InvalidValueError, match="Memory does not hold user/name"), checkpoint_errors("user/name"):
        allocate(2**48)


def test_a_stock_checkpoint_gets_a_new_head_on_request(stock):
    model = ErasedModel.from_pretrained(stock, num_labels=3, ignore_mismatched_sizes=True)
    assert model.config.num_labels == 3


# Side doors.


@pytest.mark.parametrize("which", ["stock", "saved"])
@pytest.mark.parametrize("shard", ["../outside.safetensors", "pytorch_model.bin", "sub/inside.safetensors"])
@pytest.mark.parametrize("door", ["index", "transformers_weights"])
def test_shards_are_safetensors_beside_the_index(request, tmp_path, which, shard, door):
    folder = request.getfixturevalue(which)
    weights = folder / "model.safetensors"
    shutil.copy(weights, tmp_path / "outside.safetensors")
    (folder / "sub").mkdir()
    shutil.copy(weights, folder / "sub" / "inside.safetensors")
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    names = dict.fromkeys(load_file(weights), shard)
    name = "model.safetensors.index.json" if door == "index" else "other.safetensors.index.json"
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    if door == "index":
        weights.unlink()
    else:
        edit_config(folder, lambda config: config.update(transformers_weights=name))
    with pytest.raises(OSError, match="beside it|as its weights"):
        ErasedModel.from_pretrained(folder)


def test_an_adapter_beside_an_erased_model_is_refused(saved):
    (saved / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "elsewhere"})
    )
    with pytest.raises(OSError, match="folder of their own"):
        ErasedModel.from_pretrained(saved)


# Adapters.

METHODS = {
    "lora": ("LoraConfig", {"r": 2, "target_modules": ["q_proj"], "init_lora_weights": False}),
    "ia3": ("IA3Config", {"target_modules": ["v_proj"], "feedforward_modules": [], "init_ia3_weights": False}),
    "loha": ("LoHaConfig", {"r": 2, "target_modules": ["q_proj"], "init_weights": False}),
    "lokr": ("LoKrConfig", {"r": 2, "target_modules": ["q_proj"], "init_weights": False}),
    "oft": ("OFTConfig", {"oft_block_size": 8, "target_modules": ["q_proj"], "init_weights": False}),
    "hra": ("HRAConfig", {"r": 2, "target_modules": ["q_proj"], "init_weights": False}),
    "vera": ("VeraConfig", {"r": 2, "target_modules": ["q_proj"], "init_weights": False}),
    "ln": ("LNTuningConfig", {"target_modules": ["layernorm_before"]}),
    "all linear": ("LoraConfig", {"r": 2, "target_modules": "all-linear", "init_lora_weights": False}),
    "saved norm": (
        "LoraConfig",
        {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["layernorm"], "init_lora_weights": False},
    ),
    "saved head": (
        "LoraConfig",
        {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["classifier"], "init_lora_weights": False},
    ),
}


@pytest.mark.parametrize(("method", "labels"), [*((method, 5) for method in METHODS), ("saved head", 3)])
def test_an_adapter_answers_as_peft_has_it(stock, pixels, tmp_path, method, labels):
    peft = pytest.importorskip("peft")
    name, options = METHODS[method]
    base = type(ErasedModel.from_pretrained(stock).inner).from_pretrained(
        stock, num_labels=labels, ignore_mismatched_sizes=True
    )
    tuned = peft.get_peft_model(base, getattr(peft, name)(**options)).eval()
    for parameter in (parameter for parameter in tuned.parameters() if parameter.requires_grad):
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    expected = logits_of(tuned, pixels)
    tuned.save_pretrained(tmp_path / "adapter")
    loaded = ErasedModel.from_pretrained(tmp_path / "adapter")
    assert torch.allclose(logits_of(loaded, pixels), expected, atol=1e-4)
    if labels == 5:
        assert loaded.class_names[0] == "ape"
    assert loaded.processor is not None, "the base's, because peft saves none with an adapter"


def test_a_pickled_adapter_is_refused(vit, stock, tmp_path):
    peft = pytest.importorskip("peft")
    tuned = peft.get_peft_model(type(vit).from_pretrained(stock), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    tuned.save_pretrained(tmp_path / "adapter", safe_serialization=False)
    for file in (tmp_path / "adapter").glob("*.safetensors"):  # peft of today writes no other
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    with pytest.raises(OSError, match="no pickle"):
        ErasedModel.from_pretrained(tmp_path / "adapter")


def test_an_adapter_of_an_erased_model_stays_behind_the_eraser(saved, pixels, tmp_path):
    peft = pytest.importorskip("peft")
    base = ErasedModel.from_pretrained(saved)
    config = peft.LoraConfig(r=2, target_modules=["classifier"], init_lora_weights=False)
    tuned = peft.get_peft_model(base, config).eval()
    expected = logits_of(tuned, pixels)
    tuned.save_pretrained(tmp_path / "adapter")
    again = ErasedModel.from_pretrained(tmp_path / "adapter")
    assert again.is_erased
    assert torch.allclose(logits_of(again, pixels), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel"])
def test_an_adapter_of_an_erased_two_tower_model_stays_behind_the_eraser(tmp_path, name):
    peft = pytest.importorskip("peft")
    ErasedModel.from_model(*two_towers(name)).erase(texts=["cat"], progress=False).save_pretrained(tmp_path / "erased")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(ErasedModel.from_pretrained(tmp_path / "erased"), config)
    tuned.save_pretrained(tmp_path / "adapter")
    again = ErasedModel.from_pretrained(tmp_path / "adapter")
    assert again.is_erased
    assert len(again.erasures) == 1


@pytest.mark.parametrize("task_type", [None, "FEATURE_EXTRACTION"])
def test_an_adapter_of_a_model_that_was_erased_in_memory_names_no_base(stock, forget, tmp_path, task_type):
    peft = pytest.importorskip("peft")
    model = ErasedModel.from_pretrained(stock).erase(forget, k=2, progress=False)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type=task_type)
    tuned = peft.get_peft_model(model, config)
    tuned.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="names no base model"):
        ErasedModel.from_pretrained(tmp_path / "adapter")
    # what earlier versions left: the stock model as the base, on which nothing of the adapter fits
    told = tmp_path / "adapter" / "adapter_config.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | {"base_model_name_or_path": str(stock)}))
    with pytest.raises(OSError, match="was not trained on .*save it with save_pretrained, load it"):
        ErasedModel.from_pretrained(tmp_path / "adapter")


def test_a_model_with_other_weights_than_its_checkpoint_has_not_its_name(stock, saved, forget, tmp_path):
    """PEFT writes it into the configuration of an adapter, which would come back on a model that forgot nothing."""
    model = ErasedModel.from_pretrained(stock)
    assert model.name_or_path == model.inner.name_or_path == str(stock)
    changed = unlearn(model, forget, "head-surgery", progress=False)
    reset = ErasedModel.from_pretrained(saved).reset()
    model.erase(forget, k=2, progress=False).save_eraser(tmp_path / "eraser")
    beside = ErasedModel.from_pretrained(stock, eraser=tmp_path / "eraser")
    others = [changed, reset, reset.inner, model, model.inner, model.fold(), beside, beside.inner]
    assert [(other.name_or_path, other.config.name_or_path) for other in others] == [("", "")] * len(others)


# What the search has to see.


def test_image_only_calls_of_a_two_tower_model_are_searched_too():
    model = zoo.build("CLIPModel")
    leaking = find_taps(model, probe_inputs(model)).leaking
    assert {"last_hidden_state", "vision_model_output.last_hidden_state"} <= set(leaking)


def test_no_hook_that_was_there_before_sees_the_features_unerased(resnet, processor, forget, pixels):
    seen = []
    resnet.resnet.register_forward_hook(lambda module, args, output: seen.append(output.pooler_output.flatten(1)))
    erased = ErasedModel.from_model(resnet, processor).erase(forget, k=2, progress=False)
    seen.clear()
    logits_of(erased, pixels)
    assert float((seen[0] @ erased.sites[0].eraser.directions).abs().max()) < 1e-4


@pytest.mark.parametrize(
    "text", ["[" * 20_000, "{", "[1]", '{"image_processor_type": "ViTImageProcessor", "size": []}']
)
@pytest.mark.parametrize("name", ["preprocessor_config.json", "adapter_config.json"])
def test_damaged_settings_beside_a_model_are_told_in_words(vit, processor, tmp_path, name, text, caplog):
    if name == "preprocessor_config.json":
        vit.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        (tmp_path / name).write_text(text)
        with caplog.at_level("INFO", "hf_kd"):
            assert ErasedModel.from_pretrained(tmp_path).processor is None
        assert "No image processor was found" in caplog.text
    elif not text.startswith('{"'):
        (tmp_path / name).write_text(text)
        with pytest.raises(OSError, match=r"adapter_config\.json of .* save"):
            ErasedModel.from_pretrained(tmp_path)


def test_a_processor_that_does_not_come_back_is_told_when_it_is_saved_or_loaded(vit, forget, tmp_path, caplog):
    def prepare(image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255

    ErasedModel.from_model(vit, prepare).erase(forget, k=2, progress=False).save_pretrained(tmp_path)
    assert "The image processor is a function, which cannot be saved" in caplog.text
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "OwnProcessor"}', encoding="utf-8")
    caplog.clear()
    assert ErasedModel.from_pretrained(tmp_path).processor is None
    assert "that can be read" in caplog.text


def test_a_model_that_is_neither_here_nor_in_the_cache_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UnreachableError, match=r"^The model 'nobody/nothing' could not be fetched, and is no folder here\."
    ):
        ErasedModel.from_pretrained("nobody/nothing")


def test_a_hub_that_does_not_answer_is_not_asked_for_one_file_after_the_other(tmp_path, monkeypatch):
    """Since each is tried for half a minute."""
    monkeypatch.chdir(tmp_path)
    asked = []

    def find(name, file, **given):
        asked.append((file, given.get("local_files_only")))

    monkeypatch.setattr(checkpoint_files, "cached_file", find)
    for look in (ErasedModel.from_pretrained, lambda name: find_eraser(name, {})):
        asked.clear()
        with pytest.raises(UnreachableError, match="HF_HUB_OFFLINE=1"):
            look("nobody/nothing")
        assert asked
        assert all(local for _, local in asked)


def test_a_revision_in_a_name_is_one_for_processors_and_for_weights_to_begin_with(vit, processor, monkeypatch):
    asked = []

    def found(name, result, **hub):
        asked.append((name, hub.get("revision")))
        return result

    monkeypatch.setattr("hf_kd.methods.unlearning.fresh.refuse_missing_model", lambda name: None)
    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", lambda name, **hub: found(name, processor, **hub))
    monkeypatch.setattr(type(vit), "from_pretrained", lambda name, **hub: found(name, type(vit)(hub["config"]), **hub))
    assert load_processor("someone/something@v1", {}) is processor
    fresh_model(vit, 0, "someone/something@v2")
    assert asked == [("someone/something", "v1"), ("someone/something", "v2")]
