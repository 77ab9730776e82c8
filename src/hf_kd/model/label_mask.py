"""Classes that are never answered: the logits of forgotten classes, and what their labels are called from then on.

The heads' rows are masked by the sites (`TapSite.masked`), below the loss, so that `Trainer`
and `pipeline` go on working; here the configuration follows. The model inside keeps its weights and its names, by which
data sets are matched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

from hf_kd.errors import InvalidValueError
from hf_kd.features.protocol import TappedModel
from hf_kd.methods.records import Erasure

ERASED = "(erased)"


def apply_mask_request(model: TappedModel, erasure: Erasure, asked: bool | None, label: str | None) -> Erasure:
    """The record, after masking its classes where the user asked for it or, unless the user did say, the method does."""
    if not (erasure.masked is not None if asked is None else asked):
        return erasure
    mask_classes(model, erasure.classes, label)
    return replace(erasure, masked=True, erased_label=label)


def mask_classes(model: TappedModel, classes: Sequence[int] | None, label: str | None) -> None:
    """Never answer `classes` (ids of the model inside) again; their label becomes `label`, None drops them altogether.

    Dropped classes leave no column in the logits, and the others are numbered anew from 0.

    Raises ValueError where classes are unknown, nothing would be left, or some were masked in the other way before. Nothing
    has changed then.
    """
    config = model.config
    if not classes or not all(tap.heads for tap in model.taps):
        raise InvalidValueError(
            "Only known classes of a model with a classification head can be masked: give the images their labels, or pass "
            "mask_head=False."
        )
    if config.masked and config.dropped != (label is None):
        raise InvalidValueError(
            f"Classes {config.masked} were masked {'and dropped' if config.dropped else 'under a label'} before; one model "
            "does one of both. Pass erased_label="
            + ("None (--drop-label on the command line)." if config.dropped else f"{ERASED!r}.")
        )
    masked = sorted({*config.masked, *classes})
    names = model.class_names
    if len(masked) >= len(names):
        raise InvalidValueError(
            f"All {len(names)} classes would be masked; nothing would be left to answer. Forget fewer."
        )
    if label is None:
        if len(masked) == len(names) - 1:
            raise InvalidValueError(
                "One class would be left, and transformers takes a model of one class for a regression. Keep the column: "
                f"pass erased_label={ERASED!r}."
            )
        shown = dict(enumerate(name for c, name in names.items() if c not in masked))
    else:
        shown = _renamed({c: config.id2label.get(c, name) for c, name in names.items()}, classes, label)
    config.masked, config.dropped, config.id2label = masked, label is None, shown
    config.label2id = {name: c for c, name in config.id2label.items()}
    sync_masks(model)


def unmask(model: TappedModel) -> None:
    """Answer all classes again, under their names."""
    config = model.config
    if config.masked:
        config.masked, config.dropped = [], False
        config.id2label = dict(model.class_names)
        config.label2id = {name: c for c, name in config.id2label.items()}
    sync_masks(model)


def sync_masks(model: TappedModel) -> None:
    """Let the sites mask what the configuration says. Raises ValueError for classes that the model inside does not have."""
    strange = [c for c in model.config.masked if c not in model.class_names]
    if strange:
        raise InvalidValueError(
            f"config.json masks classes {strange}, and the model has {len(model.class_names)}: it is damaged. Save the "
            "model again."
        )
    for site in model.sites:
        site.masked = tuple(model.config.masked)


def _renamed(names: dict[int, str], classes: Sequence[int], label: str) -> dict[int, str]:
    """`names` with `label` for some classes, numbered from the second on; the names of all others stay as they are."""
    found = {c: name for c, name in names.items() if c not in classes}
    number = 1
    for c in sorted(classes):
        while (name := label if number == 1 else f"{label} {number}") in found.values():
            number += 1
        found[c] = name
    return dict(sorted(found.items()))


def to_inner_ids(model: TappedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with `labels` in the ids of the model inside, where dropped classes have changed them.

    Ids [n] (negative ones, which losses ignore, stay), or one column a class [n, C] of a multi-label model, whose loss goes
    on being the mean over all columns of the model inside.
    """
    labels = inputs.get("labels")
    if not model.config.dropped or labels is None:
        return inputs
    kept = torch.tensor(_kept(model), device=labels.device)
    if labels.is_floating_point():
        wide = labels.new_zeros(*labels.shape[:-1], len(model.class_names))
        return inputs | {"labels": wide.index_copy(-1, kept, labels)}
    return inputs | {"labels": torch.where(labels < 0, labels, kept[labels.clamp(min=0)])}


def drop_masked_columns(model: TappedModel, output: Any) -> Any:
    """The output without the columns of dropped classes, in every field of logits [n, C]."""
    if not model.config.dropped or not isinstance(output, ModelOutput):
        return output
    named = [name for name in output if "logits" in name] or ["last_hidden_state"]  # PPLCNet calls its logits so
    for name in named:
        value = output.get(name)
        if isinstance(value, Tensor) and value.shape[1:] == (len(model.class_names),):
            output[name] = value[:, torch.tensor(_kept(model), device=value.device)]
    return output


def _kept(model: TappedModel) -> list[int]:
    """Ids of the model inside in the order of the logits' columns."""
    masked = set(model.config.masked)
    return [c for c in model.class_names if c not in masked]
