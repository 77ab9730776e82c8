"""A saved folder that was damaged or edited is refused in words, or acts as its records say. `make fuzz` runs more of it."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file

from hf_kd import ErasedModel
from hf_kd.errors import HfKdError
from tests.helpers import fuzz
from tests.helpers.fuzz import OLD
from tests.helpers.fuzz_models import eraser_bases


@pytest.fixture(scope="module")
def bases():
    return [base.learn() for base in fuzz.old_bases()]


# Numbers behind the ranges draw a kind of mutation, or meet a refusal, that none within them does.


def test_mutated_folders_act_as_their_records_say_or_are_refused_in_words(bases, tmp_path):
    results = fuzz.run(3, [*range(70), 72, 87, 95, 104, 117, 135, 138], bases, tmp_path)
    faults = [
        f"{result.outcome}: {result.base}, {result.mutation}: {result.found}" for result in results if result.is_fault
    ]
    assert not faults, "\n".join(faults)
    seen = {result.outcome for result in results}
    assert {"refused", "loads and acts as before", "loads and differs, verify notices"} <= seen


def test_mutated_erasers_act_as_their_records_say_on_their_base_or_are_refused_in_words(tmp_path):
    erasers = [base.learn() for base in eraser_bases(tmp_path / "saved")]
    results = fuzz.run(5, [*range(50), 54, 59, 68, 69, 79, 86, 93, 102], erasers, tmp_path)
    faults = [
        f"{result.outcome}: {result.base}, {result.mutation}: {result.found}" for result in results if result.is_fault
    ]
    assert not faults, "\n".join(faults)
    assert {"refused", "loads and acts as before"} <= {result.outcome for result in results}


def test_the_same_number_is_the_same_mutation(bases, tmp_path):
    first, second = (fuzz.run(7, range(5), bases, tmp_path) for _ in range(2))
    told = [[(result.base, result.way, result.mutation, result.outcome) for result in run] for run in (first, second)]
    assert told[0] == told[1]


def test_a_model_whose_eraser_is_gone_is_noticed(bases, tmp_path):
    """The oracle itself: what hf_kd would never load is called a fault."""
    base = next(base for base in bases if base.folder.name == "masked")
    shutil.copytree(base.folder, tmp_path / "model")
    model = ErasedModel.from_pretrained(tmp_path / "model").eval()
    fuzz.check(model, tmp_path / "model", base)
    model.sites[0].masked = ()
    with pytest.raises(fuzz.Wrong, match="masked by its record"):
        fuzz.check(model, tmp_path / "model", base)
    model.sites[0].masked = (2,)
    model.sites[0].eraser.directions.data = model.sites[0].eraser.directions.flip(0)
    with pytest.raises(fuzz.Wrong, match="something else"):
        fuzz.check(model, tmp_path / "model", base)
    model.sites[0].eraser = None
    with pytest.raises(fuzz.Wrong, match="no eraser"):
        fuzz.check(model, tmp_path / "model", base)


# What it has found.


def copied(name, folder, change):
    shutil.copytree(OLD / name, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    change(config.get("inner", config))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["projection", "unlearned"])
@pytest.mark.parametrize(
    "settings",
    [
        {"qkv_bias": 7},
        {"hidden_dropout_prob": "x"},
        {"layer_norm_eps": None},
        {"hidden_act": "gel0"},
        {"num_attention_heads": 0},
        {"hidden_size": 0},
        {"model_type": ["vit"]},
        {"num_labels": 10**12},
        {"num_labels": "x"},
        {"id2label": {"x": "cat"}},
    ],
    ids=str,
)
def test_settings_that_make_no_model_are_refused_in_words(tmp_path, name, settings):
    folder = copied(name, tmp_path / "model", lambda config: config.update(settings))
    with pytest.raises(HfKdError, match=r"damaged|does not fit|do not fit"):
        ErasedModel.from_pretrained(folder)


@pytest.mark.parametrize("content", ["null", "[]", "3", "[" * 5000, "{"])
def test_a_configuration_that_is_no_object_is_refused_in_words(tmp_path, content):
    shutil.copytree(OLD / "projection", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises((ValueError, OSError), match=r"config\.json"):
        ErasedModel.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("name", ["projection", "unlearned", "sharded"])
def test_a_depth_that_the_weights_do_not_have_is_refused_soon(tmp_path, name):
    folder = copied(name, tmp_path / "model", lambda config: config.update(num_hidden_layers=10**8))
    started = time.process_time()
    with pytest.raises(HfKdError, match="parts"):
        ErasedModel.from_pretrained(folder)
    assert time.process_time() - started < 20


@pytest.mark.parametrize("name", ["projection", "unlearned", "sharded"])
@pytest.mark.parametrize(
    "setting", [{"patch_size": 10**5}, {"intermediate_size": 10**9}, {"num_channels": 10**9}], ids=str
)
def test_a_size_that_the_weights_do_not_have_is_refused_soon(tmp_path, name, setting):
    """It would be filled with random values for minutes, only to be found of another shape."""
    folder = copied(name, tmp_path / "model", lambda config: config.update(setting))
    started = time.process_time()
    with pytest.raises(HfKdError, match="values, and its weights have"):
        ErasedModel.from_pretrained(folder)
    assert time.process_time() - started < 20


def test_images_that_only_a_configuration_asks_for_are_not_probed_for_minutes(tmp_path):
    folder = copied("resnet", tmp_path / "model", lambda config: config.update(image_size=10**5))
    started = time.process_time()
    assert ErasedModel.from_pretrained(folder).is_erased
    assert time.process_time() - started < 20


@pytest.mark.parametrize("erased", [True, False])
def test_weights_of_an_erased_model_in_a_bin_are_not_read_as_a_stock_model(tmp_path, erased):
    """Under an erased configuration no pickle is opened; under a stock one its tensors are seen to be an erased model's."""
    shutil.copytree(OLD / "projection", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    if not erased:
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))["inner"]), encoding="utf-8")
    weights = tmp_path / "model" / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "model" / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(HfKdError, match="pickle" if erased else "those of an erased model"):
        ErasedModel.from_pretrained(tmp_path / "model")


def test_a_pickle_of_code_beside_a_stock_configuration_is_refused_in_words(tmp_path):
    folder = copied("unlearned", tmp_path / "model", lambda config: None)
    (folder / "model.safetensors").unlink()
    torch.save({"x": print}, folder / "pytorch_model.bin")
    with pytest.raises(HfKdError, match="pickle"):
        ErasedModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["masked", "dropped"])
def test_a_mask_without_a_head_to_act_on_is_refused(tmp_path, name):
    shutil.copytree(OLD / name, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["taps"][0]["heads"] = []
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(HfKdError, match="names no head"):
        ErasedModel.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(("name", "kind"), [("projection", "normed-projection"), ("normed-projection", "projection")])
def test_an_eraser_of_another_kind_than_its_record_is_refused(tmp_path, name, kind):
    """A digest of 0.1.0 is of the buffers alone, which both kinds have alike."""
    shutil.copytree(OLD / name, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["erasers"][0]["kind"] = kind
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(HfKdError, match="another kind"):
        ErasedModel.from_pretrained(tmp_path / "model")
