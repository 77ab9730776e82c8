"""What a checkpoint says is compared with what it does: an edited one is refused, and no answer goes around an eraser."""

from __future__ import annotations

import copy
import threading
from importlib.metadata import version

import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from hf_kd import ErasedModel
from hf_kd.errors import NotErasedError
from hf_kd.features.taps.places import Tap, hidden_state_fields
from hf_kd.model.configuration import ErasedConfig
from hf_kd.model.unlearn import unlearn
from tests.conftest import make_dataset
from tests.helpers import zoo
from tests.helpers.processes import LONG
from tests.model.test_architectures import images, loader
from tests.model.test_erase import logits_of
from tests.model.test_saving import edit_config, edit_weights


@pytest.fixture
def erased(vit, processor, forget):
    return ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False)


@pytest.fixture
def saved(erased, tmp_path):
    erased.save_pretrained(tmp_path / "erased")
    return tmp_path / "erased"


def component(erased: ErasedModel, seen: list[torch.Tensor]) -> float:
    """Largest component of what was seen in the directions that were removed."""
    return max(float((features.detach() @ erased.sites[0].eraser.directions).abs().max()) for features in seen)


def watch(module: torch.nn.Module) -> list[torch.Tensor]:
    """What a module takes, from now on."""
    seen: list[torch.Tensor] = []
    module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    return seen


# A configuration that was edited.

TAP = {"places": [{"module": "classifier", "side": "input", "field": None}], "dim": 32}


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["taps"][0].update(places=[]),
        lambda c: c["taps"][0].update(places=c["taps"][0]["places"] * 2),
        lambda c: c["taps"][0]["places"][0].update(module="elsewhere"),
        lambda c: c["taps"][0]["places"][0].update(side="beside"),
        lambda c: c["taps"][0].update(heads=["elsewhere"]),
        lambda c: c["taps"][0]["places"][0].update(module="vit.pooler"),
        lambda c: c.update(taps=[], erasers=[], eraser_sha256=[]),
        lambda c: c.update(erasures=[]),
        lambda c: c.update(leaking=["last_hidden_state"]),
        lambda c: c.update(masked=[1]),
        lambda c: c.update(dropped=True),
        lambda c: c.update(id2label={"0": "one", "1": "two"}, label2id={"one": 0, "two": 1}),
    ],
)
def test_what_the_records_contradict_is_refused(saved, change):
    edit_config(saved, change)
    with pytest.raises(ValueError, match=r"records|config\.json|does not have|labels"):
        ErasedModel.from_pretrained(saved)


@pytest.mark.parametrize("places", [[], TAP["places"] * 2])
def test_a_configuration_with_taps_that_stand_nowhere_is_not_built(places):
    with pytest.raises(ValueError, match="taps"):
        ErasedConfig(taps=[TAP | {"places": places}])


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(masked=[]),
        lambda c: c.update(masked=[1]),
        lambda c: c["id2label"].update({"2": "cat"}),
        lambda c: c["erasures"][0].update(masked=False),
    ],
)
def test_masks_are_those_of_the_records(vit, processor, forget, tmp_path, change):
    ErasedModel.from_model(vit, processor).erase(forget, k=1, mask_head=True, progress=False).save_pretrained(tmp_path)
    edit_config(tmp_path, change)
    with pytest.raises(ValueError, match="contradicts what its records say"):
        ErasedModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("requests", [1, 2])
def test_an_eraser_of_other_values_is_refused(vit, processor, tmp_path, requests):
    erased = ErasedModel.from_model(vit, processor)
    for label in (2, 1)[:requests]:
        erased.erase(make_dataset([label] * 20), k=2, progress=False)
    erased.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in [name for name in weights if name.startswith("sites.")]:
        weights[name] = torch.eye(32)[
            :, : weights[name].shape[1]
        ].contiguous()  # an eraser as well, of other directions
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="values of an eraser are others"):
        ErasedModel.from_pretrained(tmp_path)
    edit_config(tmp_path, lambda config: config.pop("eraser_sha256"))
    # the record of a single request says it as well; of several, a configuration of today without digests was edited
    with pytest.raises(ValueError, match="sha256 of its record" if requests == 1 else "lacks the digests"):
        ErasedModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("requests", [1, 2])
def test_digests_that_were_taken_out_are_missed_and_those_of_0_1_0_are_not(vit, processor, tmp_path, requests):
    erased = ErasedModel.from_model(vit, processor)
    for label in (2, 1)[:requests]:
        erased.erase(make_dataset([label] * 20), k=2, progress=False)
    erased.save_pretrained(tmp_path)
    edit_config(tmp_path, lambda config: config.pop("eraser_sha256"))
    with pytest.raises(ValueError, match="lacks the digests"):
        ErasedModel.from_pretrained(tmp_path)
    edit_config(tmp_path, lambda config: [record.pop("withheld") for record in config["erasures"]])
    assert ErasedModel.from_pretrained(tmp_path).config.eraser_sha256 == erased.config.eraser_sha256


# Sites that stand somewhere else, in the records as well.


def moved(place=None, heads=None, shape=None):
    """The tap's description is changed wherever a folder has it."""

    def change(config):
        tap = config["taps"][0]
        tap["places"][0].update(place or {})
        tap["heads"] = tap["heads"] if heads is None else heads
        tap["head_input_shape"] = tap["head_input_shape"] if shape is None else shape
        told = str(Tap.from_dict(tap))
        for record in config["erasures"]:
            record["taps"] = [told]

    return change


HIDDEN = "vit.layers.1.mlp.fc2"


@pytest.mark.parametrize("label", ["(erased)", None], ids=["labelled", "dropped"])
@pytest.mark.parametrize(
    "change",
    [
        moved(heads=["vit.layernorm"]),
        moved(heads=[HIDDEN]),
        moved(heads=["classifier", HIDDEN]),
        moved(place={"module": "vit.layernorm", "side": "output"}, heads=["vit.layernorm"]),
        moved(shape=[16]),
    ],
)
def test_a_mask_that_stands_elsewhere_is_refused(vit, processor, forget, tmp_path, change, label):
    erased = ErasedModel.from_model(vit, processor)
    erased.erase(forget, k=1, mask_head=True, erased_label=label, progress=False).save_pretrained(tmp_path)
    edit_config(tmp_path, change)
    with pytest.raises(ValueError, match="contradicts what its records say"):
        ErasedModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "place", [{"module": HIDDEN}, {"module": HIDDEN, "side": "output"}, {"module": "vit.embeddings.dropout"}]
)
def test_an_eraser_that_stands_elsewhere_is_refused(saved, place):
    edit_config(saved, moved(place))
    with pytest.raises(ValueError, match="contradicts what its records say"):
        ErasedModel.from_pretrained(saved)


def test_a_field_that_leaks_and_that_no_record_knows_is_withheld(tmp_path):
    """As a later version of transformers may return one."""
    name = "ViTModel"
    erased = ErasedModel.from_model(zoo.build(name)).erase(loader(images(name)), k=2, progress=False)
    erased.save_pretrained(tmp_path)

    def forget_the_field(config):
        config["leaking"] = []
        config["erasures"][0]["withheld"] = []

    edit_config(tmp_path, forget_the_field)
    again = ErasedModel.from_pretrained(tmp_path)
    assert again.also_leaking == ("last_hidden_state",)
    assert again(**images(name)).get("last_hidden_state") is None
    again.save_pretrained(tmp_path)


def test_half_precision_and_moves_do_not_change_the_digest(erased, tmp_path):
    erased.half().save_pretrained(tmp_path)
    assert ErasedModel.from_pretrained(tmp_path, dtype=torch.bfloat16).is_erased


def test_tensors_of_erasers_that_no_record_knows_are_refused(vit, processor, tmp_path):
    model = ErasedModel.from_model(vit, processor)
    model.find_taps()
    model.save_pretrained(tmp_path)
    edit_weights(
        tmp_path, lambda tensors: tensors.update({"sites.0.eraser.directions": torch.eye(32)[:, :2].contiguous()})
    )
    with pytest.raises(ValueError, match="does not describe the erasers"):
        ErasedModel.from_pretrained(tmp_path)


def test_fields_withheld_by_a_record_stay_withheld(tmp_path):
    name = "ViTModel"
    erased = ErasedModel.from_model(zoo.build(name)).erase(loader(images(name)), k=2, progress=False)
    erased.save_pretrained(tmp_path)
    edit_config(tmp_path, lambda config: config.update(leaking=[]))
    with pytest.raises(ValueError, match="withheld"):
        ErasedModel.from_pretrained(tmp_path)
    edit_config(tmp_path, lambda config: config["erasures"][0].pop("withheld"))  # as 0.1.0 wrote it
    again = ErasedModel.from_pretrained(tmp_path)
    assert again.config.leaking == erased.config.leaking
    assert again(**images(name)).get("last_hidden_state") is None


def test_other_labels_are_refused_and_the_same_ones_are_not(erased, saved):
    with pytest.raises(ValueError, match="keeps its labels"):
        ErasedModel.from_pretrained(saved, num_labels=3, ignore_mismatched_sizes=True)
    with pytest.raises(ValueError, match="keeps its labels"):
        ErasedModel.from_pretrained(saved, id2label=dict(enumerate("vwxyz")))
    assert ErasedModel.from_pretrained(saved, num_labels=5, id2label=erased.config.id2label).is_erased


# Weights of an erased model in one that is not.


def test_weights_of_an_erased_model_do_not_go_into_one_that_is_not(erased, vit, processor, forget):
    plain = ErasedModel.from_model(copy.deepcopy(erased).fold(), processor)
    plain.find_taps()
    for strict in (True, False):
        with pytest.raises(ValueError, match="no such eraser"):
            plain.load_state_dict(erased.state_dict(), strict=strict)
    erased.load_state_dict(erased.state_dict())
    other = copy.deepcopy(erased).reset().erase(make_dataset([1] * 20), k=2, progress=False)
    with pytest.raises(ValueError, match="other values"):
        erased.load_state_dict(other.state_dict())


# A model whose modules change.


def test_a_replaced_head_stays_behind_the_eraser(erased, pixels):
    erased.inner.classifier = torch.nn.Linear(32, 3)
    seen = watch(erased.inner.classifier)
    assert erased(pixel_values=pixels).logits.shape == (10, 3)
    erased.inner(pixel_values=pixels)
    assert component(erased, seen) < 1e-4
    erased.inner.classifier = copy.deepcopy(erased.inner.classifier)  # a copy of its hooks is not its own
    seen = watch(erased.inner.classifier)
    erased(pixel_values=pixels)
    assert component(erased, seen) < 1e-4


def test_a_fresh_head_is_kept_as_the_error_says(erased, pixels, tmp_path):
    own, fresh = erased.inner.classifier, torch.nn.Linear(32, 3)
    erased.inner.classifier = fresh
    expected = logits_of(erased, pixels)
    labels = erased.inner.config.id2label
    for names in (labels, dict(enumerate("abc"))):  # which earlier errors asked for
        erased.inner.config.id2label = names
        with pytest.raises(ValueError, match="put back that of which the records speak .* file of its own"):
            erased.save_pretrained(tmp_path / "erased")
    erased.inner.config.id2label = labels
    save_file(fresh.state_dict(), tmp_path / "head.safetensors")
    erased.inner.classifier = own
    erased.save_pretrained(tmp_path / "erased")
    again = ErasedModel.from_pretrained(tmp_path / "erased")
    again.inner.classifier = torch.nn.Linear(32, 3)
    again.inner.classifier.load_state_dict(load_file(tmp_path / "head.safetensors"))
    assert torch.allclose(logits_of(again, pixels), expected, atol=1e-6)


@pytest.mark.parametrize("call", [lambda m, x: m(pixel_values=x), lambda m, x: m.inner(pixel_values=x),
                                  lambda m, x: m.pooled_features(x)])  # fmt: skip
def test_a_forward_that_does_not_pass_the_eraser_raises(erased, pixels, call):
    erased.inner.classifier.forward  # noqa: B018  (the module stays; nothing calls it)
    erased.inner.unused, erased.inner.head = erased.inner.classifier, torch.nn.Identity()
    place = erased.sites[0].tap.places[0]
    erased.sites[0].detach()
    object.__setattr__(erased.sites[0].tap, "places", (type(place)("unused", "input"),))
    object.__setattr__(erased.sites[0].tap, "heads", ())
    erased.inner.classifier = torch.nn.Linear(32, 5)
    erased.sites[0].attach(erased.inner)
    with pytest.raises(NotErasedError, match="pass"):
        call(erased, pixels)


def test_a_head_that_is_gone_raises(erased, pixels):
    erased.inner.classifier = torch.nn.Identity()
    del erased.inner.classifier
    with pytest.raises(NotErasedError, match="no such module"):
        erased(pixel_values=pixels)


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantisation_keeps_the_eraser(erased, pixels):
    if not torch.backends.quantized.supported_engines[1:]:
        pytest.skip("this build of torch has no quantised kernels")
    quantised = torch.ao.quantization.quantize_dynamic(erased, {torch.nn.Linear})
    seen = watch(quantised.inner.classifier)
    assert torch.allclose(quantised(pixel_values=pixels).logits, logits_of(erased, pixels), atol=0.2)
    assert component(erased, seen) < 1e-4


@pytest.mark.parametrize("options", [{"target_modules": ["classifier"]}, {"target_modules": "all-linear"},
                                     {"target_modules": ["q_proj"], "modules_to_save": ["classifier"]}])  # fmt: skip
def test_every_branch_of_an_adapter_on_the_head_sees_erased_features(erased, pixels, options):
    peft = pytest.importorskip("peft")
    tuned = peft.get_peft_model(erased, peft.LoraConfig(r=4, init_lora_weights=False, **options)).eval()
    branches = (
        "classifier",
        "classifier.base_layer",
        "classifier.lora_A.default",
        "classifier.modules_to_save.default",
    )
    seen = [watch(module) for name, module in tuned.named_modules() if name.endswith(branches)]
    with torch.no_grad():
        logits = tuned(pixel_values=pixels).logits
    taken = [features for part in seen[1:] for features in part]  # the hook on the wrapper came before that of the site
    assert taken
    assert component(erased, taken) < 1e-4
    merged = tuned.merge_and_unload()
    assert torch.allclose(logits_of(merged, pixels), logits, atol=1e-5)


# Other threads.


def test_who_answers_meanwhile_never_answers_half_erased(vit, processor, pixels):
    erased = ErasedModel.from_model(vit, processor)
    before, found, begun, stop = logits_of(erased, pixels), [], threading.Event(), threading.Event()

    def answer():
        while not stop.is_set():
            found.append(logits_of(erased, pixels))
            begun.set()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        assert begun.wait(LONG)
        erased.erase(make_dataset([2] * 20), k=2, mask_head=True, progress=False)
    finally:
        stop.set()
        thread.join()
    after = logits_of(erased, pixels)
    assert all(
        torch.allclose(logits, before, atol=1e-5) or torch.allclose(logits, after, atol=1e-5) for logits in found
    )


# Offloaded.


WHOLE = Version(version("accelerate")) >= Version("1.15")
"""Earlier versions of accelerate offload a part of a model and not all of it."""


def test_a_model_that_is_partly_offloaded_is_erased_and_loads(vit, processor, forget, pixels, tmp_path):
    vit.save_pretrained(tmp_path / "stock")
    processor.save_pretrained(tmp_path / "stock")
    expected = ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False)
    for number, device_map in enumerate([{"vit": "disk", "classifier": "cpu"}, *([{"": "disk"}] if WHOLE else [])]):
        model = ErasedModel.from_pretrained(
            tmp_path / "stock", device_map=device_map, offload_folder=str(tmp_path / f"offload-{number}")
        )
        model.erase(forget, k=2, progress=False)
        assert torch.allclose(logits_of(model, pixels), logits_of(expected, pixels), atol=1e-4)
        assert model.erasures[0].warnings == expected.erasures[0].warnings, "its head was asked as well"
    if not WHOLE:
        return
    expected.save_pretrained(tmp_path / "erased")
    again = ErasedModel.from_pretrained(
        tmp_path / "erased", device_map={"": "disk"}, offload_folder=str(tmp_path / "offload-erased")
    )
    assert not any(buffer.is_meta for buffer in again.sites.buffers())
    assert torch.allclose(logits_of(again, pixels), logits_of(expected, pixels), atol=1e-5)


def test_offloaded_weights_are_saved_and_never_changed_in_vain(vit, processor, forget, pixels, tmp_path):
    vit.save_pretrained(tmp_path / "stock")
    processor.save_pretrained(tmp_path / "stock")
    model = ErasedModel.from_pretrained(
        tmp_path / "stock",
        device_map={"vit": "cpu", "classifier": "disk"},
        offload_folder=str(tmp_path / "offload"),
    )
    with pytest.raises(ValueError, match=r"offloaded \(classifier.*without device_map"):
        unlearn(model, forget, "head-surgery", progress=False)
    model.erase(forget, k=2, progress=False)
    with pytest.raises(ValueError, match=r"fold.* offloaded \(inner\.classifier.*without device_map"):
        model.fold()
    model.save_pretrained(tmp_path / "erased")
    again = ErasedModel.from_pretrained(tmp_path / "erased")
    assert torch.allclose(logits_of(again, pixels), logits_of(model, pixels), atol=1e-5)


def test_a_quantised_model_inside_is_not_saved_as_what_cannot_be_loaded(erased, tmp_path):
    erased.inner.hf_quantizer = object()  # as transformers leaves it; the packages that pack weights are none of ours
    for call in (erased.fold, lambda: erased.save_pretrained(tmp_path / "packed")):
        with pytest.raises(ValueError, match="quantised.*without quantization_config"):
            call()
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("name", ["SwinForImageClassification", "CLIPModel"])
def test_hidden_states_are_answered_to_the_call_alone(name, tmp_path):
    """They go around the erasers: a configuration that asks for them changes no answer."""
    inputs, images = zoo.inputs(name, 2), zoo.inputs(name, 8)["pixel_values"]
    batches = DataLoader([{"pixel_values": image} for image in images], batch_size=4)
    erased = ErasedModel.from_model(zoo.build(name)).erase(batches, k=2, progress=False)
    erased.save_pretrained(tmp_path)

    def ask(config):
        inside = [part for part in config["inner"].values() if isinstance(part, dict) and "model_type" in part]
        for part in (config, config["inner"], *inside):
            part["output_hidden_states"] = True

    edit_config(tmp_path, ask)
    loaded = ErasedModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        answered, asked = loaded(**inputs), loaded(**inputs, output_hidden_states=True)
    assert not hidden_state_fields(answered)
    assert hidden_state_fields(asked)
    assert len(loaded(**inputs, return_dict=False)) == len(answered.to_tuple())
