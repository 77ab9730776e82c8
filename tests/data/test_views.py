"""Views are of pictures: there are none of patches."""

from __future__ import annotations

import pytest
import torch

from hf_kd.data.views import VIEWS, apply_view
from hf_kd.errors import InvalidValueError


@pytest.mark.parametrize("view", VIEWS)
def test_there_are_views_of_pictures_alone(view):
    pictures = {"inputs": {"pixel_values": torch.rand(2, 3, 16, 16)}}
    (batch,) = apply_view([pictures], "pixel_values", view)
    assert batch["inputs"]["pixel_values"].shape == (2, 3, 16, 16)
    with pytest.raises(InvalidValueError, match=rf"no {view} view of images .*\[2, 16, 192\]"):
        list(apply_view([{"inputs": {"pixel_values": torch.rand(2, 16, 192)}}], "pixel_values", view))
