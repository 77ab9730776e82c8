"""Erasers and heads as functions of features alone: one pass reads the features, and everything else follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from hf_kd.errors import InvalidValueError
from hf_kd.features.protocol import TappedModel
from hf_kd.features.taps.inputs import input_device
from hf_kd.features.taps.site import TapSite, head_function


def apply_erasers(model: TappedModel, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Features [n, d] at each tap behind the erasers that stand there."""
    with torch.no_grad():
        pairs = zip(cast("list[TapSite]", model.sites), features, strict=True)
        return tuple(part if site.eraser is None else site.eraser(part) for site, part in pairs)


def has_head(model: TappedModel) -> bool:
    """Whether the model classifies, as far as its taps say; looks for them first."""
    return all(tap.heads for tap in model.find_taps())


def linear_heads(model: nn.Module, heads: Sequence[str]) -> list[str]:
    """Paths of the Linear layers that give the logits: the last inside each of `heads`, behind a BatchNorm or a Dropout too.

    Empty where a head has none, or another with as many outputs.
    """
    found = []
    for name in heads:
        inside = model.get_submodule(name).named_modules(prefix=name)
        linear = [(path, module.out_features) for path, module in inside if isinstance(module, nn.Linear)]
        if [outputs for _, outputs in linear].count(linear[-1][1] if linear else 0) != 1:
            return []
        found.append(linear[-1][0])
    return found


def predictions(model: TappedModel, features: Sequence[Tensor], masked: bool = True) -> Tensor:
    """Class ids [n] that the model's heads answer for features [n, d] at each tap."""
    return head_logits(model, features, masked).argmax(dim=1)


def head_logits(model: TappedModel, features: Sequence[Tensor], masked: bool = True) -> Tensor:
    """What the model's heads answer for features [n, d] at each tap: float32 [n, C] on the CPU, C with dropped classes.

    masked: whether masked classes are never answered; False for what the original answers.
    Raises ValueError for a model without a classification head.
    """
    head = head_function(model.inner, model.taps, model.config.masked if masked else ())
    if head is None:
        raise InvalidValueError(
            f"{type(model.inner).__name__} has no classification head: it gives no class to compare with."
        )
    device = input_device(model.inner)
    batches = zip(*(torch.split(f, 4096) for f in features), strict=True)
    with torch.no_grad():
        return torch.cat([head([f.to(device).float() for f in batch]).cpu() for batch in batches])


def class_scores(model: TappedModel, logits: Tensor) -> Tensor:
    """Probabilities [n, C] of logits [n, C]: of each class on its own for one logit, and where an image may have several."""
    several = getattr(model.config, "problem_type", None) == "multi_label_classification" or logits.shape[1] == 1
    return logits.float().sigmoid() if several else logits.float().softmax(dim=1)
