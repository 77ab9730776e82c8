"""The device that is computed on: only one that is there, and what there is stands in the message."""

from __future__ import annotations

import pytest
import torch

from hf_kd.data.devices import chosen_device, refuse_missing_device
from hf_kd.errors import InvalidValueError


@pytest.fixture(params=[0, 1, 4])
def gpus(request, monkeypatch):
    """A machine with so many GPUs, as torch tells it."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: request.param)
    return request.param


def test_a_device_is_accepted_where_it_is_there_and_refused_where_it_is_not(gpus):
    there = ["cpu", "cpu:0", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))]
    for name in there:
        refuse_missing_device(name)
    last = f"cuda:{gpus - 1}" if gpus > 1 else "cuda:0" if gpus else "cpu"
    for name in ("gpu", f"cuda:{gpus}", "cuda:x", "", "mps", "meta", *([] if gpus else ["cuda"])):
        with pytest.raises(InvalidValueError, match=f"device='{name}' is not there.* finds .*{last} here"):
            refuse_missing_device(name)


def test_the_device_asked_for_is_chosen():
    assert chosen_device("cpu") == torch.device("cpu")
    with pytest.raises(InvalidValueError, match="is not there"):
        chosen_device("gpu")
