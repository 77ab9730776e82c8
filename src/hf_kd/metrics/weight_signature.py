"""The signature that forgetting leaves in weights: how much of each part moved, and in how many directions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PartSignature:
    """Of one block, or of what lies before, between or behind blocks."""

    part: str
    relative: float | None
    """||change||_F / ||original||_F over its weights of two or more dimensions; None where the original is 0."""
    effective_rank: float | None
    """exp of the entropy of sigma^2 / sum sigma^2 of each matrix's change, their mean weighted by size of change; None
    where nothing moved."""
    full_rank: float
    """The highest that it could be, the mean of min(rows, columns)."""


def weight_signature(
    original: Mapping[str, Tensor], changed: Mapping[str, Tensor], parts: Sequence[str]
) -> tuple[PartSignature, ...]:
    """Size and effective rank of the change of each part, in the order of `parts`, and of "rest" behind them.

    Args:
        original: State dict before.
        changed: State dict after; tensors of another shape, or missing, are left out.
        parts: Prefixes of names, such as blocks ("layer1.0") and heads; a tensor belongs to the first that it starts with.

    Example:
        >>> before = {"a.weight": torch.eye(2), "b.weight": torch.eye(2)}
        >>> found = weight_signature(before, before | {"a.weight": torch.eye(2) * 3}, ["a", "b"])
        >>> [(part.part, part.relative, part.effective_rank and round(part.effective_rank, 3)) for part in found]
        [('a', 2.0, 2.0), ('b', 0.0, None)]
    """
    groups: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, before in original.items():
        after = changed.get(name)
        if after is None or before.shape != after.shape or before.ndim < 2 or not before.is_floating_point():
            continue
        part = next((part for part in parts if name.startswith(f"{part}.")), "rest")
        a, b = (tensor.detach().float().flatten(1) for tensor in (before, after.to(before.device)))
        groups.setdefault(part, []).append((a, b - a))
    order = [part for part in (*parts, "rest") if part in groups]
    return tuple(_signature(part, groups[part]) for part in order)


def _signature(part: str, pairs: Sequence[tuple[Tensor, Tensor]]) -> PartSignature:
    sizes = [float(change.square().sum()) for _, change in pairs]
    whole = math.fsum(float(before.square().sum()) for before, _ in pairs)
    moved = math.fsum(sizes)
    ranks = [_effective_rank(change) for _, change in pairs]
    rank = math.fsum(size * rank for size, rank in zip(sizes, ranks, strict=True)) / moved if moved else None
    full = math.fsum(min(change.shape) for _, change in pairs) / len(pairs)
    return PartSignature(part, math.sqrt(moved / whole) if whole else None, rank, full)


def _effective_rank(matrix: Tensor) -> float:
    energy = torch.linalg.svdvals(matrix).double().square()
    if not float(energy.sum()) > 0:
        return 0.0
    share = energy / energy.sum()
    share = share[share > 0]
    return math.exp(float(-(share * share.log()).sum()))
