"""What passed where in one forward, and how recorded values are compared. The tools of the tap search.

Values are recorded as they were when they passed: a module may change its input in place (an in-place activation), and
a model may write over a field of a tower's output after the tower has returned (CLIP's `get_image_features`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from hf_kd.data.modes import hooked
from hf_kd.errors import out_of_memory

from .inputs import run
from .site import plain_copy


@dataclass
class Call:
    """One module's part in a forward."""

    name: str
    module: nn.Module
    value: Tensor | None
    """The single tensor input, if there was exactly one."""
    output: Any
    structured: bool = False
    """Whether the output was a ModelOutput; it is kept as a dict then."""

    @property
    def taken(self) -> Tensor:
        """`value` of a call that is known to have had one."""
        return cast(Tensor, self.value)


def record_calls(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[list[Call], Any]:
    """Run `model` once: what every module took and gave (in its last call if there were several), and the output."""
    calls: dict[str, Call] = {}
    taken: dict[str, Tensor | None] = {}
    names = {module: name for name, module in model.named_modules()}
    thread = threading.get_ident()  # others may ask the model meanwhile

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != thread:
            return
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        taken[names[module]] = snapshot(tensors[0]) if len(tensors) == 1 else None

    def after(module: nn.Module, args: tuple, output: Any) -> None:
        if threading.get_ident() != thread:
            return
        structured = isinstance(output, ModelOutput)
        kept = {k: snapshot(v) for k, v in output.items()} if structured else snapshot(output)
        calls[names[module]] = Call(names[module], module, taken.get(names[module]), kept, structured)

    handles = [module.register_forward_pre_hook(before, with_kwargs=True) for module in names]
    handles += [module.register_forward_hook(after) for module in names]
    with hooked(handles):
        output = run(model, inputs)
    if "" not in calls:  # the image side of a two-tower model was called without its top module
        calls[""] = Call("", model, None, output)
    return list(calls.values()), output


def snapshot(value: Any) -> Any:
    """A copy of a pooled vector; anything else as it is, because only pooled vectors are ever compared."""
    return value.detach().clone() if is_pooled(value) else value


def fields(output: Any) -> dict[str, Any]:
    """What a model returned, by name, or by position where there are no names."""
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, Tensor):
        return {"logits": output}
    if isinstance(output, (tuple, list)):
        return {str(i): v for i, v in enumerate(output)}
    return {}


def leaves(output: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of all tensors in an output, and of objects that cannot be looked into (a cache)."""
    for name, value in fields(output).items():
        if isinstance(value, (Mapping, tuple, list)):
            yield from leaves(value, f"{prefix}{name}.")
        elif value is not None and not isinstance(value, (bool, int, float, str)):
            yield prefix + name, value


def is_pooled(value: Any) -> TypeGuard[Tensor]:
    """One vector per sample: [B, d], [B, 1, d] or [B, d, 1, 1]."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim >= 2
        and value.shape[0] >= 1
        and sum(size > 1 for size in value.shape[1:]) <= 1
    )


def is_constant(value: Tensor) -> bool:
    """Whether all samples have the same value, which proves nothing about where it came from."""
    return value.shape[0] > 1 and bool((value == value[:1]).all())


def is_equal(value: Any, target: Any, up_to_scale: bool = False) -> bool:
    """Whether two tensors hold the same vector for each sample, whatever their shapes."""
    if not (isinstance(value, Tensor) and isinstance(target, Tensor)) or value.numel() != target.numel():
        return False
    if value.ndim == 0 or value.shape[0] != target.shape[0]:
        return False
    a, b = value.reshape(value.shape[0], -1), target.reshape(target.shape[0], -1).to(value.device)
    if up_to_scale:
        a, b = nn.functional.normalize(a.float(), dim=1), nn.functional.normalize(b.float(), dim=1)
    return is_close(a, b, _precision(value, target))


def is_close(a: Tensor, b: Tensor, precision: float | None = None) -> bool:
    """Equal up to the rounding of their dtype, relative to the largest entry."""
    if not a.numel():
        return True
    precision = _precision(a, b) if precision is None else precision
    a, b = a.float(), b.float()
    return bool((a - b).abs().max() <= precision * b.abs().max())


def _precision(a: Tensor, b: Tensor) -> float:
    return 1e-2 if {a.dtype, b.dtype} & {torch.float16, torch.bfloat16} else 1e-5


def is_affine(call: Call) -> bool:
    """Whether f(a) + f(b) - f(0) = f(a + b), for a the recorded input and b from its entries; no if f needs more."""
    if not any(True for _ in call.module.parameters()):
        return False
    a = call.taken
    a = (a.cpu() if a.device.type == "mps" else a).double()  # mps has no float64
    # entries in reversed order: another vector of the same size, so that no ReLU stays in its linear part by chance
    b = -a.reshape(a.shape[0], -1).flip(1).reshape(a.shape)
    try:
        module = plain_copy(call.module, "", torch.float64, a.device)
        fa, fb, f0, fab = (module(x.clone()) for x in (a, b, torch.zeros_like(a), a + b))
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        if out_of_memory(error):
            raise
        return False  # it needs more than one tensor, or its surroundings
    if not all(isinstance(x, Tensor) for x in (fa, fb, f0, fab)):
        return False
    error = (fa + fb - f0 - fab).abs().max()
    return bool(error <= 1e-6 * max(float(fa.abs().max()), float(fb.abs().max()), 1e-30))
