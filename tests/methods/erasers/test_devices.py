"""Devices without float64, as those of Apple: what needs it is computed on the CPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hf_kd import ErasedModel
from hf_kd.features.taps.site import plain_copy
from hf_kd.methods.erasers.base import Composition, Eraser
from hf_kd.methods.erasers.moments import SecondMoment
from hf_kd.methods.unlearning.kodge import wide
from hf_kd.testing.unlearning import loader, planted_images, trained_model
from tests.methods.erasers import test_built_in

BUILT_IN = [each for name, each in vars(test_built_in).items() if name.startswith("Test")]


class OnApple(torch.Tensor):
    """A tensor on a device that has no float64, until it is moved to the CPU."""

    def __deepcopy__(self, memo: Any) -> OnApple:
        copied = self.detach().clone()
        return nn.Parameter(copied) if isinstance(self, nn.Parameter) else copied

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        moved = func is torch.Tensor.cpu or (func is torch.Tensor.to and torch.device("cpu") in args[1:2])
        found = super().__torch_function__(func, types, args, kwargs or {})
        if not isinstance(found, torch.Tensor):
            return found
        with torch._C.DisableTorchFunctionSubclass():
            if found.dtype == torch.float64 and not (moved and args[0].dtype == torch.float64):
                raise TypeError(
                    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
                )
            return found.as_subclass(torch.Tensor) if moved else found


def on_apple(module: Any) -> Any:
    for each in module.modules():
        for tensors in (each._buffers, each._parameters):
            for name, tensor in tensors.items():
                if tensor is not None:
                    moved = tensor.detach().as_subclass(OnApple)
                    tensors[name] = nn.Parameter(moved) if tensors is each._parameters else moved
    return module


@pytest.fixture(autouse=True)
def moved_parameters_are_new(monkeypatch):
    """As between devices; `Module.to` would keep the class of the tensor."""
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)


@pytest.mark.parametrize("tester", BUILT_IN, ids=lambda tester: tester.__name__)
def test_erasers_are_checked_composed_and_told_without_float64(tester):
    fitted = tester().fit(tester().planted())
    eraser: Eraser = on_apple(copy.deepcopy(fitted))
    eraser.check()
    assert (eraser.rank_removed, eraser.condition_number) == (fitted.rank_removed, fitted.condition_number)
    both = eraser.then(on_apple(copy.deepcopy(fitted)))
    both.check()
    assert both.dim == fitted.dim
    if fitted.is_linear:
        assert torch.equal(eraser.matrix(), fitted.matrix())
        assert torch.equal(eraser.offset(), fitted.offset())
        assert Composition([eraser, eraser]).rank_removed == Composition([fitted, fitted]).rank_removed


def test_heads_layers_and_moments_are_widened_on_the_cpu():
    torch.manual_seed(0)
    head = nn.Linear(8, 3)
    assert (
        plain_copy(on_apple(copy.deepcopy(head)), "", torch.float64, torch.device("cpu")).weight.dtype == torch.float64
    )
    rows = torch.randn(5, 8)
    assert torch.equal(SecondMoment.of(rows.as_subclass(OnApple)).scatter, SecondMoment.of(rows).scatter)
    assert wide(rows.as_subclass(OnApple).cpu()).dtype == torch.float64


def test_an_erased_model_is_erased_again_and_folded_without_float64():
    model = ErasedModel.from_model(copy.deepcopy(trained_model("transformer")))
    model.erase(loader(*planted_images([2])), k=1, progress=False)
    plain = model.fold()
    site, head = model.sites[0], model.inner.classifier
    on_apple(site.eraser), on_apple(head)
    folded = model.fold()
    assert torch.equal(folded.classifier.weight.as_subclass(torch.Tensor), plain.classifier.weight)
    for parameter in (head.weight, head.bias):
        parameter.data = parameter.data.as_subclass(torch.Tensor)
    model.erase(loader(*planted_images([1])), k=1, progress=False)
    assert site.eraser.rank_removed == 2
