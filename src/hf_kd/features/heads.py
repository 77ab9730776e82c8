"""Erasers and heads as functions of features alone: one pass reads the features, and everything else follows from them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from hf_kd.errors import InvalidValueError
from hf_kd.features.protocol import TappedModel
from hf_kd.features.taps.inputs import input_device
from hf_kd.features.taps.site import HeadFunction, head_function


def apply_erasers(model: TappedModel, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Features [n, d] at each tap behind the erasers that stand there."""
    with torch.no_grad():
        pairs = zip(model.sites, features, strict=True)
        return tuple(part if site.eraser is None else site.eraser(part) for site, part in pairs)


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Features at all taps as one matrix: float32 [n, sum of d] on the CPU."""
    parts = [part.detach().cpu().float() for part in parts]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


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


def problem_type(model: TappedModel) -> str | None:
    """What the head is made for, in the words of transformers; None where neither wrapper nor model says it."""
    own = getattr(model.config, "problem_type", None)
    return own or getattr(model.inner.config, "problem_type", None)


def several_labels(model: TappedModel) -> bool:
    """Whether the head may give an image several labels, each where its own probability is above 1/2."""
    return problem_type(model) == "multi_label_classification"


def no_choice(model: TappedModel) -> str:
    """What the head answers where that is no choice among classes, in words; empty where it is one, and without a head."""
    values = len(model.class_names)
    if not has_head(model) or (values > 1 and problem_type(model) != "regression"):
        return ""
    return "one logit, a score" if values == 1 else f"{values} numbers (problem_type 'regression')"


def predictions(
    model: TappedModel, features: Sequence[Tensor], masked: bool = True, labels: Tensor | None = None
) -> Tensor:
    """Class ids [n] that the model's heads answer for features [n, d] at each tap; `labels` [n]: as in `answered`."""
    return answered(head_logits(model, features, masked), labels if several_labels(model) else None)


def answered(logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """Class ids [n] that logits [n, C] answer: the largest.

    Of a head that may give several labels, pass the `labels` [n] of the images: each is answered where its own probability
    is above 1/2, whatever else is; the largest other logit stands where it is not.
    """
    if labels is None:
        return logits.argmax(dim=1)
    own = labels.to(logits.device).clamp_min(0)[:, None]  # -1: no label, answered rightly by nothing
    others = logits.scatter(1, own, -torch.inf).argmax(dim=1)
    return torch.where(logits.gather(1, own)[:, 0] > 0, own[:, 0], others)


def own_head(model: TappedModel, masked: Collection[int] = ()) -> HeadFunction:
    """The model's heads as a function of features; `masked`: classes that they never answer.

    Raises ValueError for a model without a classification head.
    """
    head = head_function(model.inner, model.taps, masked)
    if head is None:
        raise InvalidValueError(
            f"{type(model.inner).__name__} has no classification head: it gives no class to compare with."
        )
    return head


def head_logits(model: TappedModel, features: Sequence[Tensor], masked: bool = True) -> Tensor:
    """What the model's heads answer for features [n, d] at each tap: float32 [n, C] on the CPU, C with dropped classes.

    masked: whether masked classes are never answered; False for what the original answers.
    Raises ValueError for a model without a classification head.
    """
    head = own_head(model, model.config.masked if masked else ())
    device = input_device(model.inner)
    batches = zip(*(torch.split(f, 4096) for f in features), strict=True)
    with torch.no_grad():
        return torch.cat([head([f.to(device).float() for f in batch]).cpu() for batch in batches])


def class_scores(model: TappedModel, logits: Tensor) -> Tensor:
    """Probabilities [n, C] of logits [n, C]: of each class on its own for one logit, and where an image may have several."""
    return logits.float().sigmoid() if several_labels(model) or logits.shape[1] == 1 else logits.float().softmax(dim=1)
