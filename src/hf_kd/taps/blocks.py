"""Find the blocks of a backbone by data flow: the repeated modules that hand a hidden state of every image to the next.

For whoever wants to look below the tap: the layer profile of an audit, Grad-CAM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from .site import evaluating
from .trace import record_calls

AT_LEAST = 6
"""Blocks that a nesting level should have before a finer one is looked at: four stages hide what sixteen blocks show."""

AT_MOST = 16


def find_blocks(
    model: nn.Module, inputs: Mapping[str, Any], main_input: str = "pixel_values", every: bool = False
) -> tuple[str, ...]:
    """Names of the blocks in the order in which an image leaves them; none where no module repeats.

    A block is an element of a `ModuleList` or `Sequential` with parameters of its own whose output is a hidden state.
    Of nested ones the outermost are taken, or those of the first level further in that has `AT_LEAST` where the
    outermost are fewer; of more than `AT_MOST` an even choice that keeps the last.

    inputs: a probe batch of two or more images. every: all blocks of all levels.
    """
    count = inputs[main_input].shape[0]
    with evaluating(model):
        calls, _ = record_calls(model, inputs)
    repeated = [
        call.name
        for call in calls
        if isinstance(_parent(model, call.name), nn.ModuleList | nn.Sequential)
        and next(call.module.parameters(), None) is not None
        and hidden_state(call.output, count) is not None
    ]
    if every:
        return tuple(repeated)
    depth = {name: sum(name.startswith(f"{other}.") for other in repeated) for name in repeated}
    levels = [_level(depth, level) for level in range(max(depth.values(), default=-1) + 1)]
    chosen = next((names for names in levels if len(names) >= AT_LEAST), levels[0] if levels else [])
    if len(chosen) > AT_MOST:
        last = len(chosen) - 1
        chosen = [chosen[round(i * last / (AT_MOST - 1))] for i in range(AT_MOST)]
    return tuple(chosen)


def hidden_state(output: Any, images: int) -> Tensor | None:
    """The hidden state in what a module returned: its first tensor, if that is [images, ...] with positions in it."""
    if isinstance(output, Mapping):
        output = next(iter(output.values()), None)
    elif isinstance(output, tuple | list):
        output = next(iter(output), None)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    return output if output.ndim in (3, 4) and output.shape[0] == images else None


def as_map(hidden: Tensor) -> Tensor:
    """A hidden state with its channels first and its positions flat: [n, channels, positions].

    [n, tokens, d] as transformers have it; [n, channels, height, width]; [n, height, width, channels] where only the
    first two of the three are equal.
    """
    if hidden.ndim == 3:
        return hidden.transpose(1, 2)
    _, a, b, c = hidden.shape
    return hidden.flatten(1, 2).transpose(1, 2) if a == b != c else hidden.flatten(2)


def pooled(hidden: Tensor) -> Tensor:
    """The mean of a hidden state over its positions: [n, channels]."""
    return as_map(hidden).float().mean(dim=2)


def _parent(model: nn.Module, name: str) -> nn.Module | None:
    return model.get_submodule(name.rpartition(".")[0]) if name else None


def _level(depth: Mapping[str, int], level: int) -> list[str]:
    """The blocks `level` deep, and those further out that hold none of them."""
    inner = [name for name, own in depth.items() if own == level]
    outer = [
        name for name, own in depth.items() if own < level and not any(other.startswith(f"{name}.") for other in depth)
    ]
    return [name for name in depth if name in inner or name in outer]
