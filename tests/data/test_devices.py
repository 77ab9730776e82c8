"""The device that is computed on: only one that is there, and what there is stands in the message."""

from __future__ import annotations

import pytest
import torch

from hf_kd.data.devices import chosen_device, own_generators, refuse_missing_device, seed_generators
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


def test_what_is_drawn_inside_follows_from_the_seed_and_nothing_outside_does():
    before = torch.get_rng_state()
    with own_generators(torch.device("cpu"), 7):
        drawn = torch.rand(3)
        seed_generators(torch.device("cpu"), 7)
        assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)  # as torch.manual_seed does with the CPU's
        assert torch.equal(torch.rand(3), drawn)


def test_generators_of_other_devices_are_not_seeded(monkeypatch):
    """torch.manual_seed seeds every CUDA device, also before CUDA has begun: what a user draws there follows from it."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(torch.initial_seed())
    assert seeded  # or this test would see nothing
    seeded.clear()
    with own_generators(torch.device("cpu"), 7):
        seed_generators(torch.device("cpu"), 8)
    assert not seeded


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_generator_of_a_gpu_is_seeded_as_torch_does_and_set_back():
    device = torch.device("cuda")
    before = torch.cuda.get_rng_state()
    with own_generators(device, 7):
        drawn = torch.rand(3, device=device)
    assert torch.equal(torch.cuda.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        assert torch.equal(torch.rand(3, device=device), drawn)
