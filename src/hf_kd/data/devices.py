"""The device that is computed on: the one asked for, if it is there, or CUDA, or the CPU; what is random on it; and weights
that lie on none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar, cast

import torch
from torch import nn

from hf_kd.errors import InvalidValueError

from .distributed import process_state

WITHOUT_GENERATOR = ("cpu", "meta")
"""Kinds of devices that have none beside that of the CPU."""

_Model = TypeVar("_Model", bound=nn.Module)


def chosen_device(name: str | None) -> torch.device:
    """The device of a name, by default CUDA if it is there; where there are several processes, that of this one.

    Args:
        name: As torch has it: "cpu", "cuda", "cuda:1", "mps". None takes no accelerator that is not called cuda.

    Raises:
        InvalidValueError: For a name that torch does not know, and for a device that is not there.
    """
    if name is not None:
        refuse_missing_device(name)
    state = process_state()
    if state.num_processes > 1:
        return cast(torch.device, state.device)
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def moved(model: _Model, device: torch.device, dtype: torch.dtype | None = None) -> _Model:
    """The model on a device, as `model.to` has it, which transformers wraps in a way that loses its type.

    Args:
        model: Moved itself, no copy.
        device: Where to.
        dtype: Of its floating-point weights; None leaves them as they are.
    """
    return model.to(device, dtype)


def refuse_missing_device(name: str) -> None:
    """Refuse a device that torch does not know, or that this machine does not have.

    Raises:
        InvalidValueError: Naming those that there are.
    """
    kind, count = "", 0
    if torch.accelerator.is_available() and (accelerator := torch.accelerator.current_accelerator()) is not None:
        kind, count = accelerator.type, torch.accelerator.device_count()
    try:
        device = torch.device(name)
        if device.type == "cpu" or (device.type == kind and (device.index or 0) < count):
            return
    except RuntimeError:  # no name of a device: said below with those that there are
        pass
    found = "cpu" if not count else f"cpu and {kind}:0" + (f" to {kind}:{count - 1}" if count > 1 else "")
    built = " It is built without CUDA." if name.startswith("cuda") and not torch.backends.cuda.is_built() else ""
    raise InvalidValueError(
        f"device={name!r} is not there: torch {torch.__version__} finds {found} here.{built} Name one of these, or leave it "
        "out: cuda is taken if it is there."
    )


@contextlib.contextmanager
def own_generators(device: torch.device, seed: int) -> Iterator[None]:
    """What is random inside (dropout, weights that initialise themselves) follows from `seed`; afterwards torch's global
    generators are as before.

    Args:
        device: That is computed on; for what draws where torch puts it, `torch.get_default_device()`.
        seed: As torch takes it.
    """
    own = device.type not in WITHOUT_GENERATOR
    with torch.random.fork_rng([device] if own else [], device_type=device.type if own else "cuda"):
        seed_generators(device, seed)
        yield


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed the global generators of the CPU and of a device, inside `own_generators` of it.

    `torch.manual_seed` would seed those of all other devices too, which nobody sets back, also before CUDA has begun.

    Args:
        device: That is computed on.
        seed: As torch takes it.
    """
    torch.default_generator.manual_seed(seed)
    if device.type not in WITHOUT_GENERATOR:
        state = torch.Generator(device).manual_seed(seed).get_state()
        torch.get_device_module(device).set_rng_state(state, device)


def refuse_unreachable_weights(model: Any, what: str) -> None:
    """Raise ValueError where weights are offloaded (what is written into one is lost without an error) or packed."""
    offloaded = next((name for name, weight in model.named_parameters() if weight.is_meta), None)
    if offloaded is not None or any(getattr(part, "hf_quantizer", None) is not None for part in model.modules()):
        why, cause = ("quantised", "quantization_config") if offloaded is None else ("offloaded", "device_map")
        raise InvalidValueError(
            f"{what} needs the weights in memory and in full precision, and this model is {why}"
            f"{'' if offloaded is None else f' ({offloaded})'}. Load it without {cause} and do it there; what is saved "
            f"then loads with {cause} again."
        )
