"""What a model takes, what its configuration says of it, and what is said where images are others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_kd.errors import InvalidValueError
from hf_kd.features.taps.inputs import channels_of, declared_size, run, takes_pictures
from tests.helpers import zoo


@pytest.mark.parametrize(
    ("size", "found"),
    [
        (32, (32, 32)),
        ([32], (32, 32)),
        ((24, 32), (24, 32)),
        ([3, 24, 32], (24, 32)),
        ({"height": 24, "width": 32}, (24, 32)),
        ("224", None),
        ([], None),
        (0, None),
        (float("inf"), None),
        ({"shortest_edge": 32}, None),
    ],
)
def test_a_configuration_may_state_a_size_in_any_form(size, found):
    assert declared_size(SimpleNamespace(image_size=size)) == found
    assert declared_size(SimpleNamespace(vision_config=SimpleNamespace(image_size=size))) == found


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"pixel_values": torch.zeros(2, 3, 24, 24)}, r"\[2, 3, 24, 24\].* 16 x 16 pixels \("),
        ({"pixel_values": torch.zeros(2, 1, 16, 16)}, r"\[2, 1, 16, 16\].* takes 3 channels"),
        ({"pixel_values": torch.zeros(2, 16, 16)}, r"has to be \[n, channels, height, width\]"),
        ({"pixel_values": torch.zeros(0, 3, 16, 16)}, "holds none"),
        ({}, "no tensor pixel_values among no inputs"),
    ],
)
def test_images_that_a_model_does_not_take_are_refused_with_what_it_takes(vit, inputs, said):
    with pytest.raises(InvalidValueError, match=said):
        run(vit, inputs)


class Strict(PreTrainedModel):
    """Takes pixels and nothing else."""

    config_class = PreTrainedConfig

    def forward(self, pixel_values):
        return pixel_values


def test_inputs_that_a_forward_does_not_take_are_named():
    pixels = {"pixel_values": torch.zeros(1, 3, 4, 4)}
    model = Strict(PreTrainedConfig())
    assert run(model, pixels).shape == (1, 3, 4, 4)
    with pytest.raises(InvalidValueError, match="its forward takes no mask"):
        run(model, pixels | {"mask": torch.zeros(1)})


@pytest.mark.parametrize(
    ("layers", "channels"), [((1, 8), 1), ((3, 8), 3), ((8, 3), 3), ((1, 3), 3), ((8,), None), ((), None)]
)
def test_channels_show_in_the_convolutions_where_a_configuration_does_not_state_them(layers, channels):
    model = Strict(PreTrainedConfig())
    model.layers = torch.nn.ModuleList(torch.nn.Conv2d(taken, 4, 1) for taken in layers)
    assert channels_of(model) == channels
    model.config.num_channels = 2
    assert channels_of(model) == 2


def test_patches_and_sequences_of_colours_are_no_pictures(vit):
    assert takes_pictures(vit)
    assert not takes_pictures(zoo.build("ImageGPTForImageClassification"))
    assert not takes_pictures(zoo.build("Siglip2ForImageClassification"))


def test_other_failures_of_a_model_stay_what_they_are(vit):
    vit.register_forward_pre_hook(lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        run(vit, {"pixel_values": torch.zeros(2, 3, 16, 16)})


@pytest.mark.parametrize("side", [16, 17])
def test_memory_that_runs_out_is_no_fault_of_the_images(vit, side):
    vit.register_forward_pre_hook(lambda *_: torch.empty(2**48))
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        run(vit, {"pixel_values": torch.zeros(2, 3, side, side)})
