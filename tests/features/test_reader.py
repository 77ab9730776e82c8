"""Images on their way into a model: what the options allow, and with what the tap search is tried where data shows it."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from hf_kd import ErasedModel
from hf_kd.errors import InvalidValueError
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.features.taps.find import find_taps
from hf_kd.features.taps.inputs import probe_inputs


@pytest.mark.parametrize(
    "option", [{"batch_size": 0}, {"batch_size": "8"}, {"batch_size": 2.5}, {"num_workers": -1}, {"limit": 0}], ids=str
)
def test_numbers_of_images_and_processes_are_whole(option):
    with pytest.raises(InvalidValueError, match="has to be a whole number"):
        ReadOptions(**option)
    assert ReadOptions(num_workers=0, batch_size=1).batch_size == 1


@pytest.mark.parametrize("equal", [1, 2, 3])
def test_images_that_are_alike_at_the_beginning_hide_no_tap(vit, equal):
    generator = torch.Generator().manual_seed(0)
    first, other = torch.randn(2, 3, 16, 16, generator=generator)
    rows = [{"pixel_values": image} for image in [first] * equal + [other]]
    model = ErasedModel.from_model(vit)
    ImageReader(model, DataLoader(rows, batch_size=3)).find_taps()
    assert model.taps == find_taps(vit, probe_inputs(vit)).taps


def test_values_that_are_not_finite_are_named_before_the_search(vit):
    rows = [{"pixel_values": torch.full((3, 16, 16), float("nan"))}] * 3
    with pytest.raises(InvalidValueError, match="pixel_values of the first batch .* not finite"):
        ImageReader(ErasedModel.from_model(vit), DataLoader(rows, batch_size=2)).find_taps()
