"""The data-flow search for taps.

One forward on two random samples records what every module takes and gives. A head is the outermost module that takes
one [B, d] tensor, is affine in eval mode, and whose output *is* the logits; names and `num_labels` are never consulted,
so PEFT wrappers, tuple outputs and num_labels == hidden size do not confuse it. The find is then tested by
intervention: with the features at the tap replaced by constants, no answer may depend on the image any more. What still
does is listed as leaking, and an erased model does not return it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_kd.data.modes import evaluating
from hf_kd.errors import InvalidValueError, TapNotFoundError, did_you_mean

from .intervention import ANSWERS, EMBEDDING_FIELDS, Constant, constant_features, leaking_fields
from .places import Place, Tap
from .site import place_value
from .trace import Call, fields, is_affine, is_constant, is_equal, is_pooled, record_calls


@dataclass(frozen=True)
class TapSearch:
    """What `find_taps` found."""

    taps: tuple[Tap, ...]
    leaking: tuple[str, ...]
    """Dotted names of returned fields that depend on the image even with constant features at every tap."""
    note: str = ""
    """What a user should know about the choice, e.g. that only the last layer of an MLP head follows the tap."""


def find_taps(model: nn.Module, inputs: Mapping[str, Any], tap: str | None = None) -> TapSearch:
    """Find the taps of a model by one probe forward.

    The model is put into eval mode for the search and back; its buffers do not change.

    Args:
        model: A vision model with a head, or one that returns embeddings.
        inputs: Two or more different samples.
        tap: Overrules the search: `path.to.module` for its input, `path.to.module:output` for its output, or
            `path.to.module:output.field` for a field of it.

    Returns:
        The taps, the fields of the output that bypass them, and what to tell about the search.

    Raises:
        TapNotFoundError: With the candidates and their shapes, when there is no tap, or the answer passes elsewhere too.
        InvalidValueError: For an override that does not exist or carries no pooled features.
    """
    with evaluating(model), torch.no_grad():
        calls, output = record_calls(model, inputs)
        answer = answer_field(model, calls, fields(output))
        note = ""
        if tap is not None:
            taps = (_explicit_tap(model, calls, fields(output).get(answer), tap),)
        elif answer in EMBEDDING_FIELDS:
            taps = (_embedding_tap(calls, fields(output)[answer], answer),)
        else:
            taps, note = _head_taps(model, calls, fields(output)[answer], inputs)
        leaking = leaking_fields(model, inputs, taps)
    answers = [name for name in leaking if name in {*ANSWERS, answer}]
    if answers:
        raise TapNotFoundError(
            f"With constant features at the {' and the '.join(map(str, taps))}, {', '.join(answers)} of "
            f"{type(model).__name__} still depends on the image: the answer does not pass there, or not only there. "
            + _candidates(calls)
        )
    return TapSearch(taps, tuple(leaking), note)


def answer_field(model: nn.Module, calls: list[Call], output: dict[str, Any]) -> str:
    """The field that carries what the model is asked for: logits, else a pooled embedding, else any [B, C]."""
    named = [name for name in ("logits", *EMBEDDING_FIELDS) if output.get(name) is not None]
    if "logits" not in named:
        named = [name for name in named if is_pooled(output[name])]
    name = next(iter(named), None) or next((k for k, v in output.items() if is_pooled(v) and v.ndim == 2), None)
    if name is None or not is_pooled(output[name]):
        raise TapNotFoundError(
            f"{type(model).__name__} returns neither logits [B, C] nor a pooled embedding "
            f"({', '.join(EMBEDDING_FIELDS)}); it returned {_describe_fields(output)}. " + _candidates(calls)
        )
    dtype = str(output[name].dtype).removeprefix("torch.")
    if not bool(output[name].isfinite().any()):
        raise TapNotFoundError(
            f"{name} of {type(model).__name__} has no finite value, in {dtype}, for any probe image: its weights are "
            "damaged, or what it computes is beyond the range of that precision; then load it in float32."
        )
    if is_constant(output[name]):
        raise TapNotFoundError(
            f"{name} of {type(model).__name__} is the same for every probe image, so nothing can be traced back from "
            "it: either the images given are all the same (pass two different ones), or the model does not depend on "
            f"them, at least by more than {dtype} tells apart."
        )
    return name


def _head_taps(
    model: nn.Module, calls: list[Call], logits: Tensor, inputs: Mapping[str, Any]
) -> tuple[tuple[Tap, ...], str]:
    blocked = [*(v for v in inputs.values() if isinstance(v, Tensor)), logits]
    heads, note = _single_head(calls, logits, blocked)
    if not heads:
        heads = _averaged_heads(calls, logits, blocked)
    if not heads:
        raise TapNotFoundError(
            f"No module of {type(model).__name__} maps one pooled feature vector to its logits of shape "
            f"{tuple(logits.shape)} by an affine map. " + _candidates(calls)
        )
    return _taps_of_heads(model, calls, heads, inputs), note


def _single_head(calls: list[Call], logits: Tensor, blocked: list[Tensor]) -> tuple[list[Call], str]:
    matching = [c for c in calls if c.name and _takes_features(c, blocked) and is_equal(c.output, logits)]
    affine = [c for c in matching if is_affine(c)]
    if not affine:
        return [], ""
    flat = [c for c in affine if c.taken.ndim == 2] or affine
    head = min(flat, key=lambda c: c.name.count("."))
    outer = [c for c in matching if head.name.startswith(c.name + ".") and c not in affine]
    note = ""
    if outer:
        note = (
            f"the head {outer[0].name} is not affine: the tap is at its last affine part, {head.name}, behind "
            "the non-linear layers of the head"
        )
    return [head], note


def _averaged_heads(calls: list[Call], logits: Tensor, blocked: list[Tensor]) -> list[Call]:
    wide = [c for c in calls if c.name and _takes_features(c, blocked) and isinstance(c.output, Tensor)]
    wide = [c for c in wide if c.output.shape == logits.shape and not is_constant(c.output) and is_affine(c)]
    outermost = [c for c in wide if not any(c.name.startswith(o.name + ".") for o in wide)]
    for size in (2, 3, 4):
        for group in itertools.combinations(outermost, size):
            if is_equal(torch.stack([c.output for c in group]).mean(dim=0), logits):
                return list(group)
    return []


def _taps_of_heads(
    model: nn.Module, calls: list[Call], heads: list[Call], inputs: Mapping[str, Any]
) -> tuple[Tap, ...]:
    """One tap for each different feature vector; at its producer where a structured output carries it to the heads.

    There, everything behind is a function of erased features, and whoever reads the tower's pooled output gets them
    erased too. Between the two lies at most a dropout or a reshape. A tower may also return what its heads compute for
    themselves once more; then both are places of the tap, the heads' inputs first.
    """
    groups: list[list[Call]] = []
    for head in heads:
        same = next((g for g in groups if is_equal(g[0].value, head.value)), None)
        groups.append([head]) if same is None else same.append(head)
    taps = []
    for group in groups:
        places = tuple(Place(head.name, "input") for head in group)
        made_by = producer(calls, group[0].taken, structured_only=True)
        if made_by and _carries(model, inputs, made_by, group):
            places = (made_by,)
        elif made_by:
            places = (*places, made_by)
        shape = tuple(group[0].taken.shape[1:])
        taps.append(Tap(group[0].taken[0].numel(), places, tuple(head.name for head in group), shape))
    return tuple(taps)


def _carries(model: nn.Module, inputs: Mapping[str, Any], place: Place, heads: list[Call]) -> bool:
    """Whether what is put at `place` is what arrives at every head."""
    dim = heads[0].taken[0].numel()
    with constant_features(model, (Tap(dim, (place,)),)):
        calls, _ = record_calls(model, inputs)
    arrived = {call.name: call.value for call in calls}
    expected = Constant()(heads[0].taken.reshape(-1, dim))
    return all(is_equal(arrived.get(head.name), expected) for head in heads)


def _embedding_tap(calls: list[Call], value: Tensor, field: str) -> Tap:
    place = producer(calls, value) or (field == "image_embeds" and producer(calls, value, up_to_scale=True))
    return Tap(value[0].numel(), (place or Place("", "output", field),))


def producer(
    calls: list[Call], value: Tensor, structured_only: bool = False, up_to_scale: bool = False
) -> Place | None:
    """The outermost module (not the model itself) that gives these values, whole or in a field of its output."""
    found = []
    for call in calls:
        if not call.name:
            continue
        if call.structured:
            options = {k: v for k, v in call.output.items() if k in EMBEDDING_FIELDS}
        elif isinstance(call.output, Tensor) and not structured_only:
            options = {None: call.output}
        else:
            continue
        for field, candidate in options.items():
            if is_pooled(candidate) and is_equal(candidate, value, up_to_scale):
                found.append(Place(call.name, "output", field))
    return min(found, key=lambda place: place.module.count(".")) if found else None


def _explicit_tap(model: nn.Module, calls: list[Call], answer: Any, spec: str) -> Tap:
    name, _, side = spec.partition(":")
    side, _, field = side.partition(".")
    if side not in ("", "input", "output") or (field and side != "output"):
        raise InvalidValueError(
            f"tap={spec!r} is not a place; write 'path.to.module' (its input), 'path.to.module:output' or "
            "'path.to.module:output.field'."
        )
    place = Place(name, "output" if side == "output" else "input", field or None)
    call = next((c for c in calls if c.name == name), None)
    if call is None:
        known = [c.name for c in calls if c.name and c.value is not None and is_pooled(c.value)]
        raise InvalidValueError(
            f"tap={spec!r}: {type(model).__name__} ran no module of that name.{did_you_mean(name, known)} Modules that take "
            f"pooled features: {', '.join(known) or 'none'}."
        )
    value = None
    if place.field is None or (call.structured and place.field in call.output):
        value = place_value(place, call.value, call.output)
    if not is_pooled(value):
        seen = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "no single tensor"
        raise InvalidValueError(
            f"tap={spec!r}: the {place} carries {seen}; pooled features are one vector [B, d] per image."
        )
    is_head = place.side == "input" and is_equal(call.output, answer) and is_affine(call)
    return Tap(value[0].numel(), (place,), (name,) if is_head else (), tuple(value.shape[1:]))


def _takes_features(call: Call, blocked: list[Tensor]) -> bool:
    return (
        call.value is not None
        and is_pooled(call.value)
        and not is_constant(call.value)
        and not any(is_equal(call.value, other) for other in blocked)
    )


# Words for errors.


def _describe_fields(output: Mapping[str, Any]) -> str:
    parts = [
        f"{k} {list(v.shape)}" if isinstance(v, Tensor) else f"{k} ({type(v).__name__})" for k, v in output.items()
    ]
    return ", ".join(parts) or "nothing"


def _candidates(calls: list[Call]) -> str:
    """The last places where one vector per image was seen, as the way out."""
    seen = []
    for call in calls:
        if call.name and call.value is not None and is_pooled(call.value) and not is_constant(call.value):
            seen.append(f"{call.name} (input {list(call.value.shape)})")
        if call.name and is_pooled(call.output) and not is_constant(call.output):
            seen.append(f"{call.name}:output ({list(call.output.shape)})")
    listing = (
        "; ".join(seen[-12:]) if seen else "none, no module handled one vector per image that differs between images"
    )
    return f"Name the place with tap='path.to.module'. Candidates: {listing}."
