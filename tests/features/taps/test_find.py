"""Taps are found by what flows where: networks made to mislead a search that goes by names, shapes or `num_labels`."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPImageProcessorPil,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

from hf_kd import ErasedModel
from hf_kd.errors import TapNotFoundError
from hf_kd.features.reader import makes_one_size
from hf_kd.features.taps.find import find_taps
from hf_kd.features.taps.inputs import probe_inputs, reduced, run
from hf_kd.features.taps.intervention import check_taps
from hf_kd.features.taps.places import Place, Tap
from hf_kd.features.taps.site import TapSite, record
from hf_kd.features.taps.trace import leaves
from tests.helpers import zoo

D, CLASSES = 12, 5


class Small(nn.Module):
    """Pixels -> convolution -> ReLU -> mean -> features [B, d] -> head. Variants override `answer`."""

    def __init__(self, head: nn.Module | None = None):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, D, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = head or nn.Linear(D, CLASSES)
        zoo.randomise(self).eval()

    def answer(self, features: Tensor, pixel_values: Tensor) -> Any:
        return ImageClassifierOutput(logits=self.head(features))

    def forward(self, pixel_values: Tensor) -> Any:
        return self.answer(self.backbone(pixel_values), pixel_values)


def pixels(n: int = 2, seed: int = 0) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))}


def features_at(model: nn.Module, taps: tuple[Tap, ...], inputs: dict[str, Tensor]) -> list[Tensor]:
    sites = [TapSite(tap).attach(model) for tap in taps]
    with torch.no_grad(), record(sites) as take:
        run(model, inputs)
        taken = take()
    for site in sites:
        site.detach()
    return taken


# What is found.


def test_a_plain_head_is_found_and_its_input_is_what_is_read():
    model = Small()
    search = find_taps(model, pixels())
    assert search.taps == (Tap(D, (Place("head", "input"),), ("head",), (D,)),)
    assert search.leaking == ()
    assert torch.equal(features_at(model, search.taps, pixels(5))[0], model.backbone(pixels(5)["pixel_values"]))


@pytest.mark.parametrize("name", ["ViTForImageClassification", "ResNetForImageClassification",
                                  "LevitForImageClassification", "SwiftFormerForImageClassification",
                                  "PerceiverForImageClassificationFourier"])  # fmt: skip
def test_the_number_of_classes_does_not_matter(name):
    dim = zoo.CASES[name].dim
    expected = find_taps(zoo.build(name), zoo.inputs(name)).taps
    for num_labels in (1, 2, 16, 32, 48, dim):
        assert find_taps(zoo.build(name, num_labels=num_labels), zoo.inputs(name)).taps == expected


def test_behind_an_mlp_head_the_last_affine_part_is_taken_and_said():
    model = Small(nn.Sequential(nn.Linear(D, 9), nn.GELU(), nn.Linear(9, CLASSES)))
    search = find_taps(model, pixels())
    assert [(tap.dim, tap.heads) for tap in search.taps] == [(9, ("head.2",))]
    assert "head is not affine" in search.note
    assert "head.2" in search.note


def test_a_head_of_several_affine_layers_is_one_head():
    search = find_taps(Small(nn.Sequential(nn.Linear(D, 9), nn.Dropout(0.5), nn.Linear(9, CLASSES))), pixels())
    assert [(tap.dim, tap.heads) for tap in search.taps] == [(D, ("head",))]
    assert not search.note


def test_a_head_that_begins_in_place_is_read_as_it_was_given():
    model = Small(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(D, CLASSES)))
    search = find_taps(model, pixels())
    assert [tap.heads for tap in search.taps] == [("head.1",)]


class Averaged(Small):
    """Two heads on the same features, or on two kinds of features."""

    def __init__(self, same: bool):
        self.same = same
        super().__init__()
        self.second = nn.Linear(D, CLASSES)
        zoo.randomise(self)

    def answer(self, features: Tensor, pixel_values: Tensor) -> Any:
        other = features if self.same else features.flip(1) ** 2
        return ImageClassifierOutput(logits=(self.head(features) + self.second(other)) / 2)


def test_averaged_heads_are_all_found():
    (tap,) = find_taps(Averaged(same=True), pixels()).taps
    assert tap.heads == ("head", "second")
    assert [place.module for place in tap.places] == ["head", "second"]
    first, second = find_taps(Averaged(same=False), pixels()).taps
    assert (first.heads, second.heads) == (("head",), ("second",))


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, D, 3)

    def forward(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        hidden = self.conv(pixel_values).flatten(2)
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=hidden.mean(2))


class WithTower(nn.Module):
    """A head on the tower's pooled output, or on the same pooled once more."""

    def __init__(self, pools_again: bool):
        super().__init__()
        self.pools_again = pools_again
        self.tower, self.head = Tower(), nn.Linear(D, CLASSES)
        zoo.randomise(self).eval()

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        output = self.tower(pixel_values)
        features = output.last_hidden_state.mean(2) if self.pools_again else output.pooler_output
        return ImageClassifierOutput(logits=self.head(features))


def test_the_tap_is_at_the_tower_only_if_its_pooled_output_is_what_the_head_takes():
    at_tower = Place("tower", "output", "pooler_output")
    assert find_taps(WithTower(pools_again=False), pixels()).taps[0].places == (at_tower,)
    assert find_taps(WithTower(pools_again=True), pixels()).taps[0].places == (Place("head", "input"), at_tower)


class AsTuple(Small):
    def answer(self, features: Tensor, pixel_values: Tensor) -> Any:
        return (self.head(features), pixel_values)


class AsTensor(Small):
    def answer(self, features: Tensor, pixel_values: Tensor) -> Any:
        return self.head(features)


@pytest.mark.parametrize("cls", [AsTuple, AsTensor])
def test_outputs_without_names(cls):
    search = find_taps(cls(), pixels())
    assert search.taps[0].heads == ("head",)
    assert search.leaking == (("1",) if cls is AsTuple else ())


def test_the_tuples_of_transformers():
    name, inputs = "ResNetForImageClassification", zoo.inputs("ResNetForImageClassification")
    model = zoo.build(name, return_dict=False)
    assert isinstance(model(**inputs), tuple)
    assert find_taps(model, probe_inputs(model)).taps[0].heads == zoo.CASES[name].heads
    wrapped = ErasedModel.from_model(model)
    expected = ErasedModel.from_model(zoo.build(name)).pooled_features(**inputs)
    assert torch.equal(wrapped.pooled_features(**inputs), expected)
    assert torch.equal(wrapped(**inputs)[0], model(**inputs)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["ViTForImageClassification", "ResNetForImageClassification", "CLIPModel"])
def test_in_half_precision_the_same_taps_are_found(name, dtype):
    model = zoo.build(name)
    expected = find_taps(model, probe_inputs(model))
    assert find_taps(model.to(dtype), probe_inputs(model)) == expected


def test_lora_does_not_confuse_it():
    peft = pytest.importorskip("peft")
    name, inputs = "ViTForImageClassification", zoo.inputs("ViTForImageClassification", 4)
    base = zoo.build(name)
    expected = ErasedModel.from_model(zoo.build(name)).pooled_features(**inputs)
    config = peft.LoraConfig(r=CLASSES, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"])
    model = peft.get_peft_model(base, config).eval()
    search = find_taps(model, probe_inputs(model))
    assert len(search.taps) == 1
    assert search.taps[0].dim == 32
    assert "lora" not in search.taps[0].heads[0]
    assert torch.allclose(features_at(model, search.taps, inputs)[0], expected, atol=1e-5), "fresh adapters do nothing"
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(0))
    tuned = features_at(model, search.taps, inputs)[0]
    assert not torch.allclose(tuned, expected, atol=1e-2)
    assert torch.allclose(ErasedModel.from_model(model).pooled_features(**inputs), tuned, atol=1e-4), "merged"


def test_searching_leaves_nothing_behind():
    model = zoo.build("ResNetForImageClassification").train()
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    find_taps(model, probe_inputs(model))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_tap_survives_json():
    for tap in find_taps(Averaged(same=False), pixels()).taps:
        assert Tap.from_dict(tap.to_dict()) == tap


# What the intervention catches.


class Skip(Small):
    """logits = head(features) + auxiliary(image): the head's input is not all the answer is made of."""

    def __init__(self):
        super().__init__()
        self.auxiliary = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES))
        zoo.randomise(self)

    def answer(self, features: Tensor, pixel_values: Tensor) -> Any:
        return ImageClassifierOutput(logits=self.head(features) + self.auxiliary(pixel_values))


def test_a_way_around_the_head_is_not_mistaken_for_a_head():
    with pytest.raises(TapNotFoundError, match="No module of Skip maps one pooled feature vector to its logits"):
        find_taps(Skip(), pixels())
    with pytest.raises(TapNotFoundError, match="logits of Skip still depends on the image"):
        find_taps(Skip(), pixels(), tap="head")


class Revealing(Small):
    """Returns, besides its logits, features, a picture, and an object nobody can look into."""

    def answer(self, features: Tensor, pixel_values: Tensor) -> Any:
        return {
            "logits": self.head(features),
            "features": features,
            "nested": {"picture": pixel_values},
            "cache": object(),
            "size": 8,
            "constant": torch.ones(len(features), 3),
        }


def test_whatever_depends_on_the_image_past_the_tap_is_listed_as_leaking():
    search = find_taps(Revealing(), pixels())
    assert search.leaking == ("features", "nested.picture", "cache")


# What is not found, and how it is said.


class NoHead(Small):
    def answer(self, features: Tensor, pixel_values: Tensor) -> Any:
        return ImageClassifierOutput(logits=torch.tanh(self.head(features)) * features.norm(dim=1, keepdim=True))


def test_when_nothing_is_found_the_candidates_are_listed_with_their_shapes():
    with pytest.raises(TapNotFoundError) as error:
        find_taps(NoHead(), pixels())
    assert f"head (input [2, {D}])" in str(error.value)
    assert f"backbone:output ([2, {D}])" in str(error.value)
    assert "tap='path.to.module'" in str(error.value)


class DenseOutput(Small):
    def answer(self, features: Tensor, pixel_values: Tensor) -> Any:
        return ImageClassifierOutput(logits=pixel_values * features.mean())


def test_a_model_without_a_pooled_answer_is_refused_with_what_it_returned():
    with pytest.raises(TapNotFoundError, match=r"neither logits \[B, C\] nor a pooled embedding.*\[2, 3, 8, 8\]"):
        find_taps(DenseOutput(), pixels())


def test_a_model_whose_features_are_constant_proves_nothing():
    model = Small()
    with torch.no_grad():
        model.backbone[0].weight.zero_()
    with pytest.raises(TapNotFoundError, match="the same for every probe image"):
        find_taps(model, pixels())


def test_two_equal_images_prove_nothing():
    with pytest.raises(TapNotFoundError, match="pass two different ones"):
        find_taps(Small(), {"pixel_values": pixels(1)["pixel_values"].repeat(2, 1, 1, 1)})


def test_answers_that_a_precision_cannot_hold_are_said_to_be_so():
    """Beyond its range nothing is finite; below its steps all images are answered alike."""
    model = zoo.build("ResNetForImageClassification")
    inputs = probe_inputs(model)
    head = model.classifier[1]
    with torch.no_grad():
        head.weight.mul_(1e7 / head.weight.abs().max())
    assert find_taps(model, inputs).taps
    with pytest.raises(TapNotFoundError, match="logits of ResNet.* has no finite value, in float16"):
        find_taps(copy.deepcopy(model).half(), inputs)
    with torch.no_grad():
        head.weight.mul_(1e-12)
        head.bias.fill_(1)
    assert find_taps(model, inputs).taps
    with pytest.raises(TapNotFoundError, match="at least by more than float16 tells apart"):
        find_taps(copy.deepcopy(model).half(), inputs)


@pytest.mark.parametrize("cls", [BertModel, BertForSequenceClassification])
def test_probe_inputs_of_a_text_model_are_refused(cls):
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )  # fmt: skip
    with pytest.raises(ValueError, match="does not look like a vision model"):
        probe_inputs(cls(config))


# Naming the place.


def test_a_place_can_be_named():
    model = Small(nn.Sequential(nn.Linear(D, 9), nn.GELU(), nn.Linear(9, CLASSES)))
    assert find_taps(model, pixels(), tap="head").taps == (Tap(D, (Place("head", "input"),), (), (D,)),)
    assert find_taps(model, pixels(), tap="head.2").taps[0].heads == ("head.2",)
    (tap,) = find_taps(model, pixels(), tap="backbone:output").taps
    assert tap.places == (Place("backbone", "output"),)
    assert torch.equal(features_at(model, (tap,), pixels(3))[0], model.backbone(pixels(3)["pixel_values"]))
    (tap,) = find_taps(WithTower(pools_again=False), pixels(), tap="tower:output.pooler_output").taps
    assert tap.places == (Place("tower", "output", "pooler_output"),)


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("classifier", r"ran no module of that name.*head"),
        ("head:middle", r"is not a place"),
        ("head:input.field", r"is not a place"),
        ("backbone.0", r"carries a tensor of shape \(2, 3, 8, 8\)"),
        ("backbone:output.pooler_output", r"carries no single tensor"),
    ],
)
def test_a_place_that_does_not_exist_or_carries_no_features_is_refused(tap, message):
    with pytest.raises(ValueError, match=message):
        find_taps(Small(), pixels(), tap=tap)


def test_a_named_place_beside_the_answer_is_refused():
    model = zoo.build("CLIPForImageClassification")  # its tower pools too, and its head does not look there
    with pytest.raises(TapNotFoundError, match="still depends on the image"):
        find_taps(model, probe_inputs(model), tap="vision_model.post_layernorm:output")


def test_erased_model_passes_the_name_on():
    model = ErasedModel.from_model(zoo.build("ViTForImageClassification"), tap="classifier:input")
    assert isinstance(model.inner, ViTForImageClassification)
    assert [str(tap) for tap in model.taps] == ["input of classifier (d = 32)"]


REDUCED = [
    *(
        f"{name}ForImageClassification"
        for name in ("Beit", "Data2VecVision", "DeiT", "IJepa", "Siglip", "ViT", "ViTMSN")
    ),
    *("DeiTForImageClassificationWithTeacher", "ViTModel", "SiglipVisionModel", "CLIPVisionModelWithProjection"),
    *("CLIPModel", "MetaClip2Model", "SiglipModel"),
]


@pytest.mark.parametrize("name", REDUCED)
def test_a_reduced_probe_finds_what_the_whole_one_does_and_changes_nothing(name, monkeypatch):
    monkeypatch.setattr("hf_kd.features.taps.inputs.FEW_PATCHES", 1)  # these models are small
    model, inputs = zoo.build(name).eval(), zoo.inputs(name)
    small = reduced(model, inputs)
    assert small["pixel_values"].numel() < inputs["pixel_values"].numel()
    with torch.no_grad():
        before = dict(leaves(run(model, inputs)))
    taps = find_taps(model, inputs).taps
    assert check_taps(model, small, taps) == check_taps(model, inputs, taps)
    with torch.no_grad():
        after = dict(leaves(run(model, inputs)))
    assert all(torch.equal(before[field], after[field]) for field in before if isinstance(before[field], Tensor))


@pytest.mark.parametrize("name", ["SwinForImageClassification", "ResNetForImageClassification"])
def test_a_model_of_stages_is_probed_as_it_is(name, monkeypatch):
    """Some keep another window ever after when an image is smaller than theirs."""
    monkeypatch.setattr("hf_kd.features.taps.inputs.FEW_PATCHES", 1)
    assert reduced(zoo.build(name), zoo.inputs(name)).keys() == zoo.inputs(name).keys()


def test_a_probe_is_reduced_where_position_embeddings_fit_any_size():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=2, num_labels=3, **sizes)).eval()
    inputs = probe_inputs(model)
    assert reduced(model, inputs)["pixel_values"].shape == (2, 3, 8, 8)
    taps = find_taps(model, inputs).taps
    assert check_taps(model, reduced(model, inputs), taps) == check_taps(model, inputs, taps)


@pytest.mark.parametrize("settings", [{"do_resize": False}, {"size": {"shortest_edge": 16}}, None], ids=str)
def test_noise_has_the_size_that_the_model_states_where_its_processor_leaves_it_to_the_image(vit, processor, settings):
    for name, value in (settings or {}).items():
        setattr(processor, name, value)

    def function(image):
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255

    with_processor = ErasedModel.from_model(vit, function if settings is None else processor)
    assert not makes_one_size(with_processor)
    with_processor.find_taps()
    assert with_processor.taps == find_taps(vit, probe_inputs(vit)).taps


def test_a_processor_that_resizes_or_crops_makes_one_size(vit, processor):
    assert makes_one_size(ErasedModel.from_model(vit, processor))
    cropping = CLIPImageProcessorPil(do_resize=False, crop_size=16)
    assert makes_one_size(ErasedModel.from_model(copy.deepcopy(vit), cropping))
