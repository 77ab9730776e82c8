"""Below the tap: blocks of any backbone, the layer profile of a model, Grad-CAM by closed form and by gradient."""

from __future__ import annotations

import pytest
import torch

from hf_kd import AuditOptions, ErasedModel
from hf_kd.audit.class_maps import class_map
from hf_kd.audit.hidden_states import blocks_of, blocks_read, class_maps, grad_cam, grid_of, sampled_rows
from hf_kd.data.hidden_state import as_map, hidden_state
from hf_kd.errors import InvalidValueError
from hf_kd.features.reader import ImageReader
from hf_kd.features.taps.blocks import find_blocks
from hf_kd.features.taps.inputs import image_inputs, main_input
from hf_kd.metrics.knowledge_retention import knowledge_retention
from tests.helpers import zoo
from tests.helpers.small import make_dataset, randomise

QUICK = {"attacks": ["linear"], "draws": 1, "shots": [1]}


@pytest.fixture(scope="module")
def splits():
    return make_dataset([0, 1, 2, 3, 4] * 16), make_dataset([0, 1, 2, 3, 4] * 10, seed=9)


@pytest.fixture
def erased(model, processor, forget):
    return ErasedModel.from_model(model, processor).erase(forget, k=2, progress=False)


def test_blocks_that_were_left_out_are_counted():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=8, num_hidden_layers=18, num_attention_heads=2, intermediate_size=8,
                       image_size=16, patch_size=8)  # fmt: skip
    model = ErasedModel.from_model(randomise(ViTForImageClassification(config)))
    assert blocks_read(model, blocks_of(model)) == "16 of 18 blocks"
    assert blocks_read(model, blocks_of(model, at_most=None)[:9]) == "9 of 9 blocks"


def test_blocks_follow_each_other_and_thin_out_evenly():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(hidden_size=8, num_hidden_layers=40, num_attention_heads=2, intermediate_size=8,
                       image_size=16, patch_size=8)  # fmt: skip
    model = randomise(ViTForImageClassification(config))
    images = {"pixel_values": torch.randn(2, 3, 16, 16)}
    names = find_blocks(model, images)
    depth = [int(name.rpartition(".")[2]) for name in names]
    assert len(depth) == 16
    assert depth == sorted(depth)
    assert depth[0] == 0
    assert depth[-1] == 39
    left_out = next(f"{names[0][:-1]}{number}" for number in range(40) if number not in depth)
    more = find_blocks(model, images, also=left_out)
    assert sorted(more, key=lambda name: int(name.rpartition(".")[2])) == list(more)
    assert set(more) == {*names, left_out}
    assert find_blocks(model, images, also="no.such.block") == names


class Branches(torch.nn.Module):
    """A network whose repeated modules are of all kinds; only `blocks` and the convolutions of `plain` hand on all."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Sequential(*(torch.nn.Conv2d(4, 4, 1) for _ in range(2)))
                                          for _ in range(3))  # fmt: skip
        self.gates = torch.nn.ModuleList(torch.nn.Conv2d(4, 4, 1) for _ in range(3))
        self.plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(inplace=True),
                                         torch.nn.Conv2d(4, 4, 3))  # fmt: skip
        self.around = torch.nn.ModuleList([torch.nn.Conv2d(4, 4, 1)])
        self.head = torch.nn.Linear(4, 3)

    def forward(self, pixel_values):
        x = self.plain(pixel_values)
        for block, gate in zip(self.blocks, self.gates, strict=True):
            x = block(x) * gate(x.mean((2, 3), keepdim=True)).sigmoid()
        x = x + self.around[0](x)
        return self.head(x.mean((2, 3)))


def test_what_the_image_can_go_around_is_no_block():
    model = Branches().eval()
    images = {"pixel_values": torch.randn(2, 3, 8, 8)}
    every = find_blocks(model, images, every=True)
    assert not {name.partition(".")[0] for name in every} & {"gates", "around", "blocks"}
    found = find_blocks(model, images)
    assert found == ("plain.0", "plain.3"), "weights of their own, so neither the norm nor the activation"
    assert not any(parameter.grad is not None for parameter in model.parameters())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert find_blocks(model, images) == found, "a frozen model too"


def test_blocks_are_found_behind_an_eraser_that_leaves_nothing(erased):
    before = blocks_of(erased)
    erased.sites[0].eraser = torch.nn.Linear(erased.taps[0].dim, erased.taps[0].dim).requires_grad_(False)
    torch.nn.init.zeros_(erased.sites[0].eraser.weight)
    assert blocks_of(erased) == before
    assert isinstance(erased.sites[0].eraser, torch.nn.Linear)


def test_channels_last_maps_are_told_by_their_shape():
    assert as_map(torch.zeros(2, 7, 7, 5)).shape == (2, 5, 49)
    assert as_map(torch.zeros(2, 5, 7, 7)).shape == (2, 5, 49)
    assert as_map(torch.zeros(2, 50, 5)).shape == (2, 5, 50)


def test_the_profile_of_a_model_ends_at_its_tap(erased, splits):
    report = erased.audit(*splits, options=AuditOptions(**QUICK, layer_profile=True), progress=False)
    rows = report.section("layer_profile").rows()
    assert [name for name in rows if name != "tap"] == list(blocks_of(erased))
    assert list(rows)[-1] == "tap"
    for name, scores in rows.items():
        assert name == "tap" or all(score.value == score.original for score in scores)
    for name in ("D_ft", "D_rt"):
        score, headline = report.score("layer_profile", name, "tap"), report.score("converged", name)
        assert (score.value, score.original) == (headline.value, headline.original), "all images were read"


@pytest.mark.parametrize("model", ["vit"], indirect=True)
def test_the_profile_of_few_images_is_the_retention_on_these(erased, splits, monkeypatch):
    from hf_kd.audit import splits as auditing

    monkeypatch.setattr(auditing, "MOST_ROWS", {"train": 60, "test": 30})
    report = erased.audit(*splits, options=AuditOptions(**QUICK, layer_profile=True), progress=False)
    reads = [ImageReader(erased, split).read() for split in splits]
    labels = [read.labels for read in reads]
    rows = [sampled_rows(labels[0], labels[0] >= 0, [2], 60), sampled_rows(labels[1], labels[1] >= 0, [2], 30, 0.5)]
    pairs = zip(reads, labels, rows, strict=True)
    (x, y), (x_test, y_test) = [(read.before[0][own], labels[own]) for read, labels, own in pairs]
    assert (y_test == 2).sum() == 10
    expected = knowledge_retention(x, y, x_test, y_test, 2)
    assert report.score("layer_profile", "D_ft", "tap").original == expected.scores.D_ft
    assert report.score("layer_profile", "D_ft", "tap").settings["train"] == 60
    again = erased.audit(*splits, options=AuditOptions(**QUICK, layer_profile=True), progress=False)
    assert again.section("layer_profile") == report.section("layer_profile")


def test_rows_are_sampled_with_the_forgotten_in_proportion_or_more():
    labels = torch.arange(1000) % 100
    everything = torch.ones(1000, dtype=torch.bool)
    rows = sampled_rows(labels, everything, [7], 200)
    assert rows.numel() == 200
    assert (labels[rows] == 7).sum() == 2, "in proportion: more would teach the probe to answer it"
    assert torch.equal(rows, rows.sort().values)
    rows = sampled_rows(labels, everything, [7], 300, 0.5)
    assert rows.numel() == 300
    assert (labels[rows] == 7).sum() == 10, "all of the few that there are"
    half = torch.arange(1000) < 500
    assert sampled_rows(labels, half, [7], 2000).tolist() == list(range(500))


@pytest.mark.parametrize("most", [20, 100, 400])
@pytest.mark.parametrize("sizes", [[3] * 100, [1, 1, 2, 500, 1000]])
def test_a_sample_has_two_rows_of_every_class_that_has_two(sizes, most):
    """A probe that was fitted on it knows every class; of a thousand classes four rows each never have all by chance."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    rows = sampled_rows(labels, torch.ones_like(labels, dtype=torch.bool), [0], most)
    counts = labels[rows].bincount(minlength=len(sizes))
    assert (counts >= torch.tensor(sizes).clamp(max=2)).all()
    assert len(rows) == max(min(most, len(labels)), int(torch.tensor(sizes).clamp(max=2).sum()))
    assert rows.unique().numel() == rows.numel()


def test_the_closed_form_is_the_gradient(resnet, processor, forget, pixels):
    resnet.classifier[1].weight.data[2].abs_()  # so that the map is not empty
    erased = ErasedModel.from_model(resnet, processor).erase(forget, k=1, progress=False)
    maps = class_maps(erased, {"pixel_values": pixels}, 2)
    assert maps.closed_form
    hidden = {}
    hook = resnet.get_submodule(maps.block).register_forward_hook(
        lambda m, a, out: hidden.update(out=hidden_state(out, 10))
    )
    logit = erased.inner(pixel_values=pixels).logits[:, 2].sum()
    hook.remove()
    (gradient,) = torch.autograd.grad(logit, hidden["out"])
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    expected = torch.relu((weights * hidden["out"]).sum(dim=1))
    assert torch.allclose(maps.erased, expected, atol=1e-5)
    # alpha = P^T W_c, over the number of positions; P is symmetric
    alpha = erased.sites[0].eraser(resnet.classifier[1].weight[2].detach())
    flat = as_map(hidden["out"].detach())
    written = class_map(flat, alpha[None, :, None] / flat.shape[2])
    assert torch.allclose(maps.erased.flatten(1), written, atol=1e-5)
    assert maps.original.amax() > 100 * 1e-5
    assert maps.erased.shape[1:] == hidden["out"].shape[2:]


def test_a_class_token_is_not_part_of_the_map(vit, processor, forget, pixels):
    erased = ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False)
    maps = class_maps(erased, {"pixel_values": pixels}, 2)
    assert not maps.closed_form
    assert maps.block == "vit.layers.0", "the last block's output is read at its class token only"
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


@pytest.mark.parametrize("model", ["resnet"], indirect=True)
def test_the_panel_is_drawn_for_forgotten_images_and_refused_without(erased, splits, processor, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr("hf_kd.audit.class_maps.add_title", lambda figure, text: titles.append(text))
    drawn = grad_cam(erased, splits[1], tmp_path / "deep" / "grad_cam.png", most=2)
    assert drawn.stat().st_size > 5000
    shown = [row["image"] for row in splits[1] if row["label"] == 2][:2]
    with torch.no_grad():
        answers = erased(**processor(shown, return_tensors="pt")).logits.argmax(dim=1).tolist()
    name = erased.class_names[2]
    assert titles == [f"{name}: {answers.count(2)} of 2 images shown are still answered so"]
    with pytest.raises(ValueError, match="No image in the data has the label 2"):
        grad_cam(erased, make_dataset([0, 1]), tmp_path / "none.png")


def test_surgery_on_the_head_empties_the_map_and_touches_no_other(resnet, processor, forget, pixels):
    head = resnet.classifier[1]
    head.weight.data[[2, 3]] = head.weight.data[[2, 3]].abs()  # so that neither map is empty
    erased = ErasedModel.from_model(resnet, processor).erase(forget, k=1, progress=False)
    before = [class_maps(erased, {"pixel_values": pixels}, label).original for label in (2, 3)]
    head.weight.data[2], head.bias.data[2] = 0.0, float("-inf")
    after = [class_maps(erased, {"pixel_values": pixels}, label).original for label in (2, 3)]
    assert before[0].max() > 0
    assert after[0].max() == 0
    assert torch.equal(before[1], after[1])


def test_tokens_without_a_place_in_the_image_have_no_map():
    assert grid_of(torch.zeros(1, 197, 8), (224, 224)) == (14, 14)
    assert grid_of(torch.zeros(1, 201, 8), (224, 224)) == (14, 14), "a class token and four registers"
    assert grid_of(torch.zeros(1, 141, 8), (160, 224)) == (10, 14)
    assert grid_of(torch.zeros(1, 512, 8), (224, 224)) is None


def test_a_model_without_a_head_has_no_map_of_a_class(resnet, processor, pixels):
    with pytest.raises(InvalidValueError, match="has no classification head"):
        class_maps(ErasedModel.from_model(resnet.resnet, processor), {"pixel_values": pixels}, 2)


def test_the_map_is_where_the_image_is(resnet, processor, forget):
    """Only the upper left of two images differs, so only there do their maps."""
    erased = ErasedModel.from_model(resnet, processor).erase(forget, k=1, progress=False)
    images = torch.randn(1, 3, 64, 64).repeat(2, 1, 1, 1)
    images[1, :, :4, :4] += 3
    resnet.classifier[1].weight.data[2].abs_()
    maps = class_maps(erased, {"pixel_values": images}, 2).original
    changed = (maps[0] - maps[1]).abs()
    assert changed[0, 0] > 0
    assert changed[-2:, -2:].max() == 0


@pytest.mark.parametrize("name", zoo.CASES)
def test_blocks_are_found_in_every_architecture(name):
    model = zoo.build(name)
    inputs = zoo.inputs(name) if zoo.CASES[name].heads else image_inputs(zoo.inputs(name))
    names = find_blocks(model, inputs, main_input(model))
    assert len(set(names)) == len(names) >= 1
    outside = {"mlp", "attention", "layernorm", "squeeze_excitation_module", "aggregation"}
    assert not any(outside & set(block.split(".")) for block in names), (
        "parts of a block, which the image can go around"
    )


@pytest.mark.parametrize("name", zoo.CLASSIFIERS)
def test_maps_of_every_architecture_that_has_any(name):
    model = ErasedModel.from_model(zoo.build(name))
    model.find_taps(zoo.inputs(name))
    inputs = zoo.inputs(name, batch=3)
    if main_input(model.inner) != "pixel_values" or inputs["pixel_values"].ndim != 4:
        pytest.skip("its images are no pixels [n, c, h, w]")
    if name.startswith("Perceiver"):
        pytest.skip("its 512 latents have no place in the image; the 8 of the tiny model look like a grid")
    for label in range(zoo.NUM_LABELS):
        maps = class_maps(model, inputs, label)
        assert maps.original.shape[0] == 3
        assert maps.original.shape[1] == maps.original.shape[2] > 1
        assert torch.equal(maps.original, maps.erased), "nothing was erased"
        if maps.original.max() > 0:
            return
    pytest.fail("no class has a map")
