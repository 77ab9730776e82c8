"""The test by intervention: with constant features at every tap, no answer may depend on the image any more.

It is asked of taps that were found, and once more of those that a checkpoint names, before anybody relies on them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hf_kd.data.masked_classes import masked_logits
from hf_kd.data.modes import evaluating
from hf_kd.errors import TapNotFoundError

from .inputs import image_inputs, run
from .places import Tap
from .site import TapSite
from .trace import Call, fields, is_close, is_equal, leaves, record_calls

EMBEDDING_FIELDS = ("image_embeds", "pooler_output")
ANSWERS = ("logits", "logits_per_image", *EMBEDDING_FIELDS)


class Constant(nn.Module):
    """Puts the same vector in the place of every sample's features [n, d]: not zero, of which a norm would make NaN.

    Only in the thread that searches; what the model answers in others stays what it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def forward(self, features: Tensor) -> Tensor:
        if threading.get_ident() != self._thread:
            return features
        vector = torch.linspace(0.5, -1.0, features.shape[-1], dtype=features.dtype, device=features.device)
        return vector.expand_as(features)


@contextmanager
def constant_features(model: nn.Module, taps: Sequence[Tap]) -> Iterator[None]:
    """Constant features at all taps, in this thread."""
    sites = [TapSite(tap).attach(model) for tap in taps]
    for site in sites:
        site.eraser = Constant()
    try:
        yield
    finally:
        for site in sites:
            site.detach()


@torch.no_grad()
def leaking_fields(model: nn.Module, inputs: Mapping[str, Any], taps: Sequence[Tap]) -> list[str]:
    """Dotted names of returned fields that depend on the image even with constant features at every tap."""
    leaking: dict[str, None] = {}
    with evaluating(model), constant_features(model, taps):
        for variant in _variants(inputs):
            leaking |= dict.fromkeys(depending_fields(run(model, variant), run(model, _other_images(variant))))
    return list(leaking)


@torch.no_grad()
def check_taps(
    model: nn.Module, inputs: Mapping[str, Any], taps: Sequence[Tap], masked: Sequence[int] = ()
) -> list[str]:
    """What leaks at taps that somebody else has named, as `leaking_fields`, once the answers are seen to pass there.

    Args:
        model: With its sites in place.
        inputs: Two or more different samples.
        taps: Where its erasers stand.
        masked: Classes that its heads never answer.

    Raises:
        TapNotFoundError: An answer does not pass the taps, the heads that they name do not give the logits, or a masked
            class has another logit than masked classes have.
    """
    leaking: dict[str, None] = {}
    answers: list[str] = []
    with evaluating(model), constant_features(model, taps):
        for number, variant in enumerate(_variants(inputs)):
            first, second = _single_images(variant)
            calls, output = record_calls(model, first)
            if not all(bool(value.isfinite().all()) for _, value in leaves(output) if isinstance(value, Tensor)):
                return list(leaking)  # of weights that are not finite nothing can be told
            if number == 0:
                answers = _answers_of_heads(calls, fields(output), taps, masked)
            leaking |= dict.fromkeys(depending_fields(output, run(model, second)))
    around = [name for name in leaking if name in {*ANSWERS, *answers}]
    if around:
        raise TapNotFoundError(
            f"With constant features at the {' and the '.join(map(str, taps))}, {', '.join(around)} of "
            f"{type(model).__name__} still depends on the image: its answer does not pass there."
        )
    return list(leaking)


def _answers_of_heads(
    calls: Sequence[Call], output: Mapping[str, Any], taps: Sequence[Tap], masked: Sequence[int]
) -> list[str]:
    """Fields of the output that are the mean of what the heads give, as the logits of every model with heads are."""
    heads = [(name, tap) for tap in taps for name in tap.heads]
    if not heads:
        return []
    found = {call.name: call for call in calls}
    for name, tap in heads:
        taken = None if name not in found else found[name].value
        if taken is None or taken[0].numel() != tap.dim or math.prod(tap.head_input_shape) != tap.dim:
            raise TapNotFoundError(f"The head {name!r} takes no features of the {tap}.")
    given = [found[name].output for name, _ in heads]
    if all(isinstance(part, Tensor) and part.shape == given[0].shape for part in given):
        mean = torch.stack(given).mean(dim=0) if len(given) > 1 else given[0]
        names = [name for name, value in output.items() if is_equal(_others(value, masked), _others(mean, masked))]
        if names and all(torch.equal(output[name], masked_logits(output[name], masked)) for name in names):
            return names
    raise TapNotFoundError(
        f"What the {'heads' if len(heads) > 1 else 'head'} {', '.join(name for name, _ in heads)} gives is not what is "
        "answered" + (", or masked classes are" if masked else "") + "."
    )


def _others(logits: Any, masked: Sequence[int]) -> Any:
    """The columns of classes that are not masked, whose logits are far smaller than those of masked ones."""
    if not isinstance(logits, Tensor) or logits.ndim < 2 or not masked:
        return logits
    flat = logits.flatten(1)
    return flat[:, [c for c in range(flat.shape[1]) if c not in masked]]


def _variants(inputs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The inputs, and their image side alone where there are texts beside it."""
    return [inputs, image_inputs(inputs)] if {"input_ids", "pixel_values"} <= set(inputs) else [inputs]


def depending_fields(output: Any, other: Any) -> list[str]:
    """Dotted names of what is not the same in two outputs."""
    second = dict(leaves(other))
    return [name for name, value in leaves(output) if not _is_independent(value, second.get(name))]


def _is_independent(value: Any, other: Any) -> bool:
    """Whether a returned value does not depend on the image; what cannot be looked into counts as depending."""
    if not (isinstance(value, Tensor) and isinstance(other, Tensor)):
        return False
    return not value.is_floating_point() or (value.shape == other.shape and is_close(value, other))


def _other_images(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same inputs with other pixels: rolled along the batch and mirrored, so that no sample stays in its row."""
    return {**inputs, **{name: inputs[name].roll(1, 0).flip(-1) for name in _image_names(inputs)}}


def _single_images(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first sample, and the same with the pixels of the second."""
    first = {name: value[:1] if isinstance(value, Tensor) else value for name, value in inputs.items()}
    return first, {**first, **{name: inputs[name][1:2] for name in _image_names(inputs)}}


def _image_names(inputs: Mapping[str, Any]) -> list[str]:
    """Where the images are: in the first of these that there is."""
    return [name for name in ("pixel_values", "inputs", "input_ids") if name in inputs][:1]
