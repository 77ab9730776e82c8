"""What a model takes, what its configuration says of it, and what is said where images are others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hf_kd.errors import InvalidValueError
from hf_kd.features.taps.inputs import declared_size, run


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
        ({"pixel_values": torch.zeros(2, 1, 16, 16)}, r"\[2, 1, 16, 16\].* 3 channels"),
        ({"pixel_values": torch.zeros(2, 16, 16)}, r"has to be \[n, channels, height, width\]"),
        ({"image": torch.zeros(2, 3, 16, 16)}, "no tensor pixel_values among image"),
    ],
)
def test_images_that_a_model_does_not_take_are_refused_with_what_it_takes(vit, inputs, said):
    with pytest.raises(InvalidValueError, match=said):
        run(vit, inputs)


def test_other_failures_of_a_model_stay_what_they_are(vit):
    def fail(*_):
        raise RuntimeError("out of memory")

    vit.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="^out of memory"):
        run(vit, {"pixel_values": torch.zeros(2, 3, 16, 16)})
