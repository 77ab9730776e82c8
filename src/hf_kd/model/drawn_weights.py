"""Weights that a checkpoint does not bring: transformers draws them, others each time, and the features must not depend on
them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_kd.data.modes import evaluating
from hf_kd.errors import InvalidValueError, TapNotFoundError
from hf_kd.features.reader import probe_batch
from hf_kd.features.taps.find import find_taps
from hf_kd.features.taps.inputs import run
from hf_kd.features.taps.site import record

logger = logging.getLogger(__name__)


def drawn_weights(model: nn.Module, info: dict[str, Any]) -> tuple[str, ...]:
    """Names of the parameters that a checkpoint did not bring, in the model's order.

    Args:
        model: As it was loaded.
        info: What transformers says of the loading, `output_loading_info`.
    """
    drawn = {*info["missing_keys"], *(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])}
    return tuple(name for name, _ in model.named_parameters() if name in drawn)


def refuse_drawn_features(model: Any, name: str, drawn: Sequence[str]) -> None:
    """Refuse a model whose pooled features depend on weights that its checkpoint did not bring.

    What is erased or measured there would be that of random layers, and of others in each process. A head may be drawn: what
    it answers is compared with the labels.

    Args:
        model: The erased model that was put around it.
        name: Of the checkpoint.
        drawn: As `drawn_weights` gives them.

    Raises:
        InvalidValueError: With a place that lies before them as the way out, where there is one.
    """
    inner = model.inner
    weights = {key: own for key, own in inner.named_parameters() if key in drawn and own.is_floating_point()}
    if not weights or any(own.is_meta for own in inner.parameters()):  # offloaded: nothing is computed yet
        return
    listed = ", ".join(drawn[:3]) + (f" and {len(drawn) - 3} more" if len(drawn) > 3 else "")
    try:
        taps = model.find_taps()
    except TapNotFoundError:  # which is said where the features are asked for
        return
    if not _depend_on(model, list(weights.values())):
        logger.warning(f"{name} does not bring {listed}: drawn at random, other values each time it is loaded.")
        return
    place = _place_before(model, drawn)
    way = "" if place is None else f" Or name a place that lies before them: tap={place!r}."
    raise InvalidValueError(
        f"{name} does not bring {listed}, which are drawn at random, other values each time it is loaded, and the features "
        f"at the {' and the '.join(map(str, taps))} come out of them. Give the whole checkpoint, or train these weights, "
        f"save the model and load that.{way}"
    )


def _depend_on(model: Any, weights: Sequence[nn.Parameter]) -> bool:
    """Whether the features at any tap have a gradient by any of these weights."""
    flags = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad(), evaluating(model.inner), record(list(model.sites), detach=False) as take:
            run(model.inner, probe_batch(model))
            features: list[Tensor] = take()
        total = torch.stack([part.float().sum() for part in features]).sum()
        if not total.requires_grad:
            return False
        return any(found is not None for found in torch.autograd.grad(total, list(weights), allow_unused=True))
    finally:
        for weight, flag in zip(weights, flags, strict=True):
            weight.requires_grad_(flag)


def _place_before(model: Any, drawn: Sequence[str]) -> str | None:
    """The module that has all such weights, where its input is a pooled feature; None where there is none."""
    module = drawn[0].rpartition(".")[0]
    if any(key.rpartition(".")[0] != module for key in drawn):
        return None
    try:
        find_taps(model.inner, probe_batch(model), module)
    except InvalidValueError:  # it takes something else, or the answer passes elsewhere too
        return None
    return module
