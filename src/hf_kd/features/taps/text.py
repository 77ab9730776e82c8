"""Where the text embeddings of a two-tower model pass, and what of its output goes around that place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_kd.data.modes import evaluating
from hf_kd.errors import InvalidTypeError, TapNotFoundError

from .find import producer
from .inputs import in_dtype_of, run
from .intervention import constant_features, depending_fields
from .places import Tap
from .site import place_value
from .trace import fields, is_constant, is_equal, is_pooled, leaves, record_calls

TEXT_ANSWERS = ("text_embeds", "logits_per_text", "logits_per_image")


@torch.no_grad()
def find_text_tap(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tap, tuple[str, ...]]:
    """The tap of the text tower, and the fields that go around it, of the whole output and of `get_text_features`.

    Args:
        model: A two-tower model.
        inputs: Two different images and two different texts.

    Raises:
        InvalidTypeError: For a model without a text tower.
        TapNotFoundError: Where no module gives the text embeddings, or answers do not pass there.
    """
    if not hasattr(model, "get_text_features") or not hasattr(model, "get_image_features"):
        raise InvalidTypeError(
            f"{type(model).__name__} has no text tower, so nothing can be forgotten by its name. Give images to forget; by "
            "name: CLIP, SigLIP, MetaCLIP, ALIGN and others with get_text_features."
        )
    with evaluating(model):
        calls, output = record_calls(model, inputs)
    embeds = fields(output).get("text_embeds")
    if not is_pooled(embeds) or is_constant(embeds):
        raise TapNotFoundError(
            f"{type(model).__name__} returns no text_embeds of one vector a text, so there is no joint space to forget in."
        )
    place = producer(calls, embeds, up_to_scale=True)
    if place is None:
        raise TapNotFoundError(f"No module of {type(model).__name__} gives its text embeddings up to their length.")
    tap = Tap(embeds[0].numel(), (place,))
    around = check_text_tap(model, inputs, tap)
    return tap, around


@torch.no_grad()
def check_text_tap(model: nn.Module, inputs: Mapping[str, Any], tap: Tap) -> tuple[str, ...]:
    """Fields that depend on the text although the embeddings at the tap are constant.

    Args:
        model: A two-tower model.
        inputs: Two different images and two different texts.
        tap: Found, or named by a checkpoint.

    Raises:
        TapNotFoundError: Where the text embeddings or the logits are among them, or what is put at the tap is not what
            comes out as text embeddings.
    """
    other = {**inputs, **{name: inputs[name].roll(1, 0) for name in ("input_ids", "attention_mask") if name in inputs}}
    texts = [
        {name: given[name] for name in ("input_ids", "attention_mask") if name in given} for given in (inputs, other)
    ]
    with evaluating(model), constant_features(model, (tap,)):
        calls, output = record_calls(model, inputs)
        around = depending_fields(output, run(model, other))
        around += depending_fields(*(text_features(model, in_dtype_of(model, given)) for given in texts))
    called = {call.name: call for call in calls if call.name in [place.module for place in tap.places]}
    put = [
        place_value(place, called[place.module].value, called[place.module].output) if place.module in called else None
        for place in tap.places
    ]
    if not all(is_equal(value, fields(output).get("text_embeds"), up_to_scale=True) for value in put):
        raise TapNotFoundError(f"What passes the {tap} is not what {type(model).__name__} returns as text_embeds.")
    finite = all(bool(value.isfinite().all()) for _, value in leaves(output) if isinstance(value, Tensor))
    answers = [name for name in around if name in TEXT_ANSWERS and finite]
    if answers:
        raise TapNotFoundError(
            f"With constant features at the {tap}, {', '.join(answers)} of {type(model).__name__} depends on the text, "
            "so its answer does not pass there."
        )
    return tuple(dict.fromkeys(name for name in around if name not in (*TEXT_ANSWERS, "pooler_output")))


def text_features(model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    """What the text tower gives, as the model returns it."""
    return cast(Any, model).get_text_features(**inputs)
