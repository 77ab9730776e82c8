"""A model of the same class that has seen nothing, also where parts of it were put there by hand."""

from __future__ import annotations

import copy
import math
import os
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_kd.data.devices import own_generators
from hf_kd.data.paths import refuse_missing_model, with_revision
from hf_kd.errors import InvalidValueError


def seed_apart(seed: int, changes: int = 0) -> int:
    """Another seed for each seed, for what is drawn anew above a part that is kept.

    By the seed that a training began with, its first weights would be drawn again: those that the kept part learnt together
    with. Classes that a network so made was never shown were answered all the same. So is it with what an earlier change
    drew. Of a seed torch takes the last 32 bits, of which this step goes through all before it comes back (Hull and Dobell,
    1962).

    Args:
        seed: Of the method, as it may have been of the training and of the earlier changes.
        changes: How many there were before.
    """
    for _ in range(changes + 1):
        seed = (seed * 0x9E3779B1 + 0x7F4A7C15) % 2**32
    return seed


def fresh_model(model: PreTrainedModel, seed: int, init: str | None = None) -> nn.Module:
    """A model of the same class with weights as it initialises itself, or those of the checkpoint `init`.

    A head of `init` with another number of labels is initialised anew. Modules that the class makes otherwise (a head
    that was replaced, adapters inside) are those of `model`, as they initialise themselves. An adapter's Linear layers, and
    the one that it adapts, are drawn as torch does, with larger weights than those of most classes (a standard deviation of
    0.07 and not 0.02 in a ViT with d = 64), and LoRA's B is not 0: such a model has seen nothing and starts elsewhere. Merge
    adapters first for the start that the class gives.

    Raises:
        InvalidValueError: Where such a module has no way to.
        MissingFileError: Where `init` can only be a folder and is none.
    """
    hub: dict[str, Any] = {}
    if init is not None:
        init, hub = with_revision(os.path.expanduser(init), {})
        refuse_missing_model(init)
    with own_generators(torch.get_default_device(), seed):
        config = copy.deepcopy(model.config)
        if init is None:
            other = type(model)(config)
        else:
            other = type(model).from_pretrained(init, config=config, ignore_mismatched_sizes=True, **hub)
        take_replaced(other, model)
    first = next(model.parameters())
    return cast(nn.Module, other).to(device=first.device, dtype=first.dtype)


def take_replaced(fresh: nn.Module, model: nn.Module, path: str = "") -> None:
    """Put the modules of a model that its class makes otherwise into one that has seen nothing, initialised anew.

    What the model has no more (layers that were cut off) goes.

    Args:
        fresh: Changed in place.
        model: Of the same class.
        path: Where both are, followed by a dot, for messages.

    Raises:
        InvalidValueError: Where `initialised` says so, or something is left that cannot be replaced.
    """
    for name in {name for name, _ in fresh.named_children()} - {name for name, _ in model.named_children()}:
        delattr(fresh, name)
        if hasattr(model, name):  # as None
            setattr(fresh, name, None)
    for name, child in model.named_children():
        own = getattr(fresh, name, None)
        if own is not None and _shapes(own) == _shapes(child):
            continue
        if own is not None and type(own) is type(child) and any(True for _ in child.children()):
            take_replaced(own, child, f"{path}{name}.")
        else:
            setattr(fresh, name, initialised(child, f"{path}{name}"))
    if _shapes(fresh) != _shapes(model):
        raise InvalidValueError(
            f"This {type(model).__name__}{path and f' ({path[:-1]})'} has other tensors than its class makes from its "
            "configuration, beside modules that were replaced, so it cannot be made anew. Make it as its class does, or "
            "choose a method that starts from the weights as they are."
        )


def _shapes(module: nn.Module) -> dict[str, Any]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def initialised(module: nn.Module, path: str) -> nn.Module:
    """A copy on the CPU whose parts have initialised themselves.

    Args:
        module: Stays as it is.
        path: Where it is, for messages.

    Raises:
        InvalidValueError: Where a part has tensors that no `reset_parameters` of it sets.
    """
    made = copy.deepcopy(module).cpu()
    for name, part in made.named_modules():
        if not (tensors := _own_tensors(part)):
            continue
        with torch.no_grad():
            for tensor in tensors:
                tensor.fill_(math.nan)  # so that it is seen if it stays as it was
        getattr(part, "reset_parameters", lambda: None)()
        if any(bool(tensor.isnan().any()) for tensor in _own_tensors(part)):
            raise InvalidValueError(
                f"{'.'.join(filter(None, (path, name)))} ({type(part).__name__}) is not as the model's class makes it, and "
                "has no reset_parameters() by which all of it could be drawn anew. Give it one, or choose a method that "
                "starts from the weights as they are."
            )
    return made


def _own_tensors(part: nn.Module) -> list[Tensor]:
    """Those with numbers that a part has beside its parts."""
    every = (*part.parameters(recurse=False), *part.buffers(recurse=False))
    return [tensor for tensor in every if tensor.is_floating_point()]
