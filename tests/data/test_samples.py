"""Samples in any order: their inputs are batches of one size."""

from __future__ import annotations

import pytest
import torch

from hf_kd.data.image_source import inspect_images
from hf_kd.data.samples import Samples, one_batch
from hf_kd.errors import InvalidValueError


def test_inputs_of_different_sizes_are_refused_in_words():
    rows = [(torch.zeros(3, 8, side), 0) for side in (8, 9)]
    with pytest.raises(InvalidValueError, match=r"\(3, 8, 8\) and \(3, 8, 9\)"):
        Samples.read(inspect_images(rows), None, batch_size=1)
    assert one_batch([torch.zeros(2, 3), torch.zeros(1, 3)]).shape == (3, 3)
