"""Whether two erasers are the same map, whatever basis they are stored in and whatever machine fitted them."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_kd.methods.erasers.base import Composition, Eraser

SAME = 1e-4
"""Relative difference of two erasers up to which they count as the same erasure on other hardware or versions."""


def comparable(published: Eraser, again: Eraser) -> list[tuple[Tensor, Tensor]]:
    """Tensors in which two erasers are equal where they are the same map.

    Of a linear one its matrix and its offset, whatever the basis it is stored in; of any other its buffers.
    """
    if published.is_linear and again.is_linear:
        return [(published.matrix(), again.matrix()), (published.offset(), again.offset())]
    stages = [part.stages if isinstance(part, Composition) else [part] for part in (published, again)]
    if max(map(len, stages)) > 1 and len(stages[0]) == len(stages[1]):
        return [pair for a, b in zip(*stages, strict=True) for pair in comparable(a, b)]
    old, new = published.state_dict(), again.state_dict()
    if old.keys() != new.keys():
        return [(torch.zeros(len(old)), torch.zeros(len(old) + 1))]
    return [(old[name], new[name]) for name in old]


def difference(published: Tensor, again: Tensor) -> float:
    """Norm of the difference, over that of the second; infinite entries have to be equal."""
    a, b = published.cpu().double(), again.cpu().double()
    if torch.equal(a, b):
        return 0.0
    if not torch.equal(a.where(a.isinf(), 0.0), b.where(b.isinf(), 0.0)):
        return float("inf")
    a, b = a.where(a.isfinite(), 0.0), b.where(b.isfinite(), 0.0)
    return float((a - b).norm() / b.norm().clamp(min=1e-30))
