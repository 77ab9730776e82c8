"""Classes that are never answered: one constant for logits, biases and targets, wherever a model or a method masks them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MASKED_LOGIT = -1e4
"""The logit of a class that is never answered: finite in every precision and in every loss, and its probability is 0."""

SILENT_BIAS = MASKED_LOGIT / 10
"""A bias below this is that of a class that is never answered, also where weights were rounded or moved since."""


def masked_logits(logits: Tensor, classes: Sequence[int] | Tensor) -> Tensor:
    """Logits with `MASKED_LOGIT` for some classes: [n, C], also [n, 1, C] (Perceiver) and [n, C, 1, 1]."""
    if not len(classes):
        return logits
    rows = logits.flatten(1).index_fill(1, torch.as_tensor(classes, device=logits.device), MASKED_LOGIT)
    return rows.reshape(logits.shape)


@torch.no_grad()
def silence_rows(linear: nn.Linear, classes: Sequence[int] | Tensor) -> None:
    """Head surgery: W_c = 0 and b_c = `MASKED_LOGIT` for some classes, in place.

    Args:
        linear: A layer with a bias that gives logits [n, C].
        classes: Ids of the classes.
    """
    rows = torch.as_tensor(classes, device=linear.weight.device)
    linear.weight[rows] = 0
    linear.bias[rows] = MASKED_LOGIT


@torch.no_grad()
def silent_rows(linear: nn.Linear) -> Tensor:
    """Ids of the classes that `silence_rows` took from a layer, also where its weights were rounded or moved since."""
    if linear.bias is None:
        return torch.zeros(0, dtype=torch.long)
    return torch.nonzero(linear.bias < SILENT_BIAS).flatten().cpu()
