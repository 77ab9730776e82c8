"""Below the tap: blocks of any backbone, the layer profile of a model, Grad-CAM by closed form and by gradient."""

from __future__ import annotations

import pytest
import torch

from hf_kd import ErasedModel
from hf_kd.looking import _closed_form, blocks_of, class_maps, grad_cam, sampled_rows
from hf_kd.taps import as_map, find_blocks, main_input

from .. import zoo
from ..conftest import make_dataset, randomise

QUICK = {"attacks": ["linear"], "draws": 1, "shots": [1], "progress": False}


@pytest.fixture(scope="module")
def splits():
    return make_dataset([0, 1, 2, 3, 4] * 16), make_dataset([0, 1, 2, 3, 4] * 10, seed=9)


@pytest.fixture
def erased(model, processor, forget):
    return ErasedModel.from_model(model, processor).erase(forget, k=2, progress=False)


def test_blocks_follow_each_other_and_thin_out_evenly():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=8, num_hidden_layers=40, num_attention_heads=2, intermediate_size=8,
                       image_size=16, patch_size=8)  # fmt: skip
    model = randomise(ViTForImageClassification(config))
    names = find_blocks(model, {"pixel_values": torch.randn(2, 3, 16, 16)})
    depth = [int(name.rpartition(".")[2]) for name in names]
    assert len(depth) == 16
    assert depth == sorted(depth)
    assert depth[0] == 0
    assert depth[-1] == 39


def test_channels_last_maps_are_told_by_their_shape():
    assert as_map(torch.zeros(2, 7, 7, 5)).shape == (2, 5, 49)
    assert as_map(torch.zeros(2, 5, 7, 7)).shape == (2, 5, 49)
    assert as_map(torch.zeros(2, 50, 5)).shape == (2, 5, 50)


def test_the_profile_of_a_model_ends_at_its_tap(erased, splits):
    report = erased.audit(*splits, **QUICK, layer_profile=True)
    rows = report.section("layers").rows()
    assert [name for name in rows if name != "tap"] == list(blocks_of(erased))
    assert list(rows)[-1] == "tap"
    for name, (forgotten, _) in rows.items():
        assert name == "tap" or forgotten.value == forgotten.original
    assert abs(rows["tap"][0].value - report.score("converged", "D_ft").value) <= 10
    again = erased.audit(*splits, **QUICK, layer_profile=True)
    assert again.section("layers") == report.section("layers")


def test_rows_are_sampled_with_the_forgotten_in_proportion_or_more():
    labels = torch.arange(1000) % 100
    rows = sampled_rows(labels, torch.ones(1000, dtype=torch.bool), [7], 200)
    assert rows.numel() == 200
    assert (labels[rows] == 7).sum() == 10, "all of the few that there are"
    assert torch.equal(rows, rows.sort().values)
    half = torch.arange(1000) < 500
    assert sampled_rows(labels, half, [7], 2000).tolist() == list(range(500))


def test_the_closed_form_is_the_gradient(resnet, processor, forget, pixels):
    resnet.classifier[1].weight.data[2].abs_()  # so that the map is not empty
    erased = ErasedModel.from_model(resnet, processor).erase(forget, k=1, progress=False)
    maps = class_maps(erased, {"pixel_values": pixels}, 2)
    assert maps.closed_form
    head = resnet.classifier[1].weight
    before = [erased.pooled_features(pixels, stage="before")]
    wanted = torch.full((len(pixels),), 2)
    eraser = erased.sites[0].eraser
    projected = eraser(head[2].detach())  # P is symmetric: P^T W_c = P W_c
    assert torch.allclose(_closed_form(erased, before, wanted)[0], projected, atol=1e-6)
    hidden = {}
    hook = resnet.get_submodule(maps.block).register_forward_hook(lambda m, a, out: hidden.update(out=out))
    logit = erased.inner(pixel_values=pixels).logits[:, 2].sum()
    hook.remove()
    (gradient,) = torch.autograd.grad(logit, hidden["out"])
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    expected = torch.relu((weights * hidden["out"]).sum(dim=1))
    assert torch.allclose(maps.erased, expected, atol=1e-5)
    assert maps.original.amax() > 100 * 1e-5
    assert maps.erased.shape[1:] == hidden["out"].shape[2:]


def test_a_class_token_is_not_part_of_the_map(vit, processor, forget, pixels):
    erased = ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False)
    maps = class_maps(erased, {"pixel_values": pixels}, 2)
    assert not maps.closed_form
    assert maps.block == blocks_of(erased, every=True)[-2], "the last block's output is read at its class token only"
    assert maps.original.shape == (len(pixels), 2, 2)
    assert (maps.original >= 0).all()
    assert not torch.equal(maps.original, maps.erased)
    assert erased.is_erased


def test_an_eraser_that_leaves_nothing_leaves_an_empty_map(model, processor, pixels):
    head = model.classifier[-1] if isinstance(model.classifier, torch.nn.Sequential) else model.classifier
    head.weight.data[2].abs_()
    erased = ErasedModel.from_model(model, processor).erase(make_dataset([2] * 8), k=2, progress=False)
    erased.sites[0].eraser = torch.nn.Linear(erased.taps[0].dim, erased.taps[0].dim)
    torch.nn.init.zeros_(erased.sites[0].eraser.weight)
    torch.nn.init.zeros_(erased.sites[0].eraser.bias)
    maps = class_maps(erased, {"pixel_values": pixels}, 2)
    assert maps.erased.abs().max() == 0
    assert maps.original.abs().max() > 0


def test_the_panel_is_drawn_for_forgotten_images_and_refused_without(erased, splits, tmp_path):
    drawn = grad_cam(erased, splits[1], tmp_path / "deep" / "grad_cam.png", most=2)
    assert drawn.stat().st_size > 5000
    with pytest.raises(ValueError, match="No image in the data has the label 2"):
        grad_cam(erased, make_dataset([0, 1]), tmp_path / "none.png")


@pytest.mark.parametrize("name", zoo.CLASSIFIERS)
def test_blocks_are_found_in_every_architecture(name):
    model = zoo.build(name)
    inputs = zoo.inputs(name)
    names = find_blocks(model, inputs, main_input(model))
    assert len(set(names)) == len(names) >= 1
