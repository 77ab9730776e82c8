"""The hidden state, or the logits, in what a vision model or a module of it returned, whatever that is wrapped in."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def hidden_state(output: Any, images: int) -> Tensor | None:
    """The hidden state in what a module returned: its first tensor, if that is [images, ...] with positions in it.

    Args:
        output: A tensor, or a tuple, list or mapping of which the first entry counts.
        images: How many went in.
    """
    output = first_of(output)
    if not isinstance(output, Tensor) or not output.is_floating_point():
        return None
    return output if output.ndim in (3, 4) and output.shape[0] == images else None


def logits_of(output: Any) -> Tensor:
    """The logits [n, C] of a classifier; PPLCNet calls them `last_hidden_state`."""
    logits = getattr(output, "logits", None)
    return output.last_hidden_state if logits is None else logits


def first_of(output: Any) -> Any:
    """What stands where a hidden state would: the output itself, or the first entry of a tuple, list or mapping."""
    if isinstance(output, Mapping):
        return next(iter(output.values()), None)
    return next(iter(output), None) if isinstance(output, tuple | list) else output


def with_hidden_state(output: Any, hidden: Tensor) -> Any:
    """What a module returned, with `hidden` in the place of its hidden state; the rest is passed on as it is."""
    if isinstance(output, Mapping):
        changed = copy.copy(output)
        changed[next(iter(output))] = hidden  # pyright: ignore[reportIndexIssue] - outputs of transformers can be written
        return changed
    if isinstance(output, tuple | list):
        return type(output)((hidden, *output[1:]))
    return hidden


def as_map(hidden: Tensor) -> Tensor:
    """A hidden state with its channels first and its positions flat: [n, channels, positions].

    Args:
        hidden: [n, tokens, d] as transformers have it; [n, channels, height, width]; or [n, height, width, channels] where
            only the first two of the three are equal.
    """
    if hidden.ndim == 3:
        return hidden.transpose(1, 2)
    _, a, b, c = hidden.shape
    return hidden.flatten(1, 2).transpose(1, 2) if a == b != c else hidden.flatten(2)


def pooled(hidden: Tensor) -> Tensor:
    """The mean of a hidden state over its positions: [n, channels].

    Args:
        hidden: As in `as_map`.
    """
    return as_map(hidden).float().mean(dim=2)
