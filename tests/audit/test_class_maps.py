"""Class maps: the definition, and what normalising by the original's maximum is for."""

import torch

from hf_kd.audit.class_maps import class_map, scaled


def test_a_map_is_the_weighted_sum_of_channels_without_its_negative_part():
    maps = torch.tensor([[[1.0, 2.0], [3.0, -1.0]]])
    assert torch.equal(class_map(maps, torch.tensor([[[1.0], [-1.0]]])), torch.tensor([[0.0, 3.0]]))


def test_noise_is_large_on_its_own_scale_and_small_on_the_originals():
    original, left = torch.rand(3, 4, 4) + 1, 1e-3 * torch.rand(3, 4, 4)
    assert torch.allclose(scaled(left).flatten(1).amax(1), torch.ones(3))
    assert scaled(left, original).max() < 1e-2
    assert torch.equal(scaled(torch.zeros(1, 2, 2)), torch.zeros(1, 2, 2))
