"""A model that has seen nothing, of one whose parts were replaced by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import Dinov2Config, Dinov2ForImageClassification

from hf_kd import ErasedModel, unlearn
from hf_kd.audit.whitebox.network import Images, Network, WhiteBoxData
from hf_kd.audit.whitebox.regrowing import no_regrowing, regrow_attack
from hf_kd.errors import InvalidValueError
from hf_kd.methods.unlearning.fresh import fresh_model
from hf_kd.testing.unlearning import loader, planted_images, trained_model

HEADS = {
    "dropout": lambda d: nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(d, 5)),
    "norm": lambda d: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(d), nn.Linear(d, 5)),
    "layers": lambda d: nn.Sequential(nn.Flatten(), nn.Linear(d, 8), nn.GELU(), nn.Linear(8, 5)),
}


def with_head(kind: str, head: str) -> nn.Module:
    """A trained network with another head, whose weights nothing would be equal to by chance."""
    model = copy.deepcopy(trained_model(kind))
    width = [module for module in model.classifier.modules() if isinstance(module, nn.Linear)][-1].in_features
    model.classifier = HEADS[head](width)
    for parameter in model.classifier.parameters():
        nn.init.normal_(parameter)
    return model.eval()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", ["convolutional", "transformer"])
def test_a_head_that_was_replaced_is_drawn_anew(kind, head):
    model = with_head(kind, head)
    fresh = fresh_model(model, seed=0)
    state, drawn = model.state_dict(), fresh.state_dict()
    assert {name: tensor.shape for name, tensor in state.items()} == {n: t.shape for n, t in drawn.items()}
    matrices = [name for name in state if name.startswith("classifier") and state[name].ndim > 1]
    assert matrices
    assert not any(torch.equal(state[name], drawn[name]) for name in matrices)
    again = fresh_model(model, seed=0).state_dict()
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)


@pytest.mark.parametrize("method", ["regrow", "retrain"])
@pytest.mark.parametrize("head", HEADS)
def test_methods_that_start_anew_take_it(method, head):
    forget, retain = (loader(*planted_images(classes)) for classes in ([2], [0, 1, 3, 4]))
    model = with_head("convolutional", head)
    changed = unlearn(
        model, forget, method, retain=retain, progress=False, epochs=1, batch_size=16, allow_unrecognised=True
    )
    assert changed.state_dict().keys() == model.state_dict().keys()


def test_beside_a_kept_part_no_weights_are_drawn_with_which_it_was_trained_from_the_start():
    """Whatever the seed of the training, the method with the same seed draws others: those would know what it was taught."""
    forget, retain = (loader(*planted_images(classes)) for classes in ([2], [0, 1, 3, 4]))
    for method, more in {"regrow": {}, "eu-k": {"keep": 0.5}, "layer-resets": {}}.items():
        for seed in (0, 1, 42):
            untrained = fresh_model(trained_model("transformer"), seed)
            changed = unlearn(
                untrained, forget, method, retain=retain, seed=seed, progress=False, epochs=1, lr=1e-12, batch_size=64,
                allow_unrecognised=True, **more,
            )  # fmt: skip
            first, now = untrained.state_dict(), changed.state_dict()
            layers = [name for name in first if name.startswith("vit.layers.1.") and first[name].ndim > 1]
            assert any(not torch.allclose(first[name], now[name], atol=1e-3) for name in layers), (method, seed)


def test_nor_those_of_an_earlier_change_with_the_same_seed():
    """What lies between two cuts was trained with what the first of them drew above."""
    images, model, drawn = planted_images, trained_model("transformer"), []
    for gone, kept in ((2, [0, 1, 3, 4]), (1, [0, 3, 4])):
        model = unlearn(
            model, loader(*images([gone])), "regrow", retain=loader(*images(kept)), progress=False, epochs=1, lr=1e-12,
            batch_size=64, allow_unrecognised=True,
        )  # fmt: skip
        drawn.append({name: value for name, value in model.state_dict().items() if name.startswith("vit.layers.1.")})
    matrices = [name for name, value in drawn[0].items() if value.ndim > 1]
    assert matrices
    assert not any(torch.allclose(drawn[0][name], drawn[1][name], atol=1e-3) for name in matrices)


def test_a_network_answers_no_class_that_it_was_not_shown_since_it_was_drawn_anew():
    """One image of one class: what the others are could only be known from weights that were trained with the kept part."""
    forget, (images, labels) = loader(*planted_images([2])), planted_images([0])
    changed = unlearn(
        trained_model("convolutional"),
        forget,
        "regrow",
        retain=loader(images[:1], labels[:1]),
        epochs=1,
        progress=False,
    )
    others, names = planted_images([1, 3, 4], seed=9)
    with torch.no_grad():
        answered = changed(pixel_values=others).logits.argmax(dim=1)
    assert float((answered == names).float().mean()) < 0.5


class Scale(nn.Module):
    """Has a weight and no way to draw it."""

    def __init__(self, d: int):
        super().__init__()
        self.by = nn.Parameter(torch.ones(d))

    def forward(self, features):
        return features.flatten(1) * self.by


def test_what_cannot_be_drawn_anew_is_refused_by_its_place():
    model = with_head("convolutional", "norm")
    model.classifier[1] = Scale(model.classifier[2].in_features)
    with pytest.raises(ValueError, match=r"classifier\.1 \(Scale\).*reset_parameters"):
        fresh_model(model, seed=0)
    model = with_head("convolutional", "norm")
    model.prompt = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="other tensors than its class makes"):
        fresh_model(model, seed=0)


class Scaled(nn.Linear):
    """Draws its weight and its bias anew, and keeps what it learnt beside them."""

    def __init__(self, d: int):
        super().__init__(d, 5)
        self.by = nn.Parameter(torch.ones(5))

    def forward(self, features):
        return super().forward(features) * self.by


@pytest.mark.parametrize("where", [0, 1])
def test_a_part_that_would_stay_as_it_learnt_to_be_is_refused(where):
    model = with_head("convolutional", "norm")
    d = model.classifier[2].in_features
    model.classifier = nn.Sequential(*[nn.Flatten()] * where, Scaled(d))
    with pytest.raises(ValueError, match=rf"classifier\.{where} \(Scaled\).*all of it"):
        fresh_model(model, seed=0)


def test_layers_that_were_cut_off_are_not_made_anew_and_the_others_as_the_class_makes_them():
    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=16, patch_size=4
    )
    model = Dinov2ForImageClassification(config)
    whole = fresh_model(model, seed=0).state_dict()
    model.dinov2.encoder.layer = model.dinov2.encoder.layer[:2]
    model.dinov2.layernorm = None
    fresh = fresh_model(model, seed=0)
    assert fresh.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in fresh.state_dict().items())
    assert fresh.dinov2.layernorm is None


@pytest.mark.parametrize("head", [*HEADS, "scale"])
def test_who_regrows_draws_it_anew_or_says_why_not(head):
    pixels, labels = planted_images(list(range(5)), per_class=4)
    data = WhiteBoxData(*[Images({"pixel_values": pixels}, labels)] * 2, (2,))
    model = with_head("convolutional", "norm" if head == "scale" else head)
    if head == "scale":
        model.classifier[1] = Scale(model.classifier[2].in_features)
    network = Network.of(ErasedModel.from_model(model))
    reason = no_regrowing(network, data)
    assert ("reset_parameters" in reason) == (head == "scale")
    if not reason:
        assert 0 <= regrow_attack(network, data, epochs=1).recall_forget <= 100


def test_a_batch_of_one_value_is_refused_with_the_way_out():
    model, forget, one = (
        with_head("convolutional", "norm"),
        loader(*planted_images([2])),
        loader(*planted_images([0], 1)),
    )
    settings = {"retain": one, "progress": False, "epochs": 1, "allow_unrecognised": True}
    with pytest.raises(InvalidValueError, match="BatchNorm cannot take statistics .* bn_mode='freeze'"):
        unlearn(model, forget, "regrow", **settings)
    unlearn(model, forget, "regrow", bn_mode="freeze", **settings)
