"""Adapters of PEFT: what a folder of them says, how they come onto their base, and how they become part of its weights."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_kd.data.paths import ADAPTER_CONFIG
from hf_kd.errors import CheckpointError, InvalidValueError, require

from .checkpoint_files import ADAPTER_WEIGHTS, find_file
from .configuration import take_name

logger = logging.getLogger(__name__)


def refuse_adapters(model: nn.Module) -> None:
    """Raise ValueError for adapters inside a model: its weights have other names then, and do not load as the model."""
    adapted = next((name for name, part in model.named_modules() if type(part).__module__.startswith("peft.")), None)
    if adapted is not None:
        raise InvalidValueError(
            f"Adapters stand in this model ({adapted}), and what is saved with them does not load again. Put them around it "
            "and not into it: tuned = peft.get_peft_model(model, config) instead of add_adapter; then save "
            "tuned.merge_and_unload(), or, around a model that was loaded as it is saved, the adapters alone with "
            "tuned.save_pretrained."
        )


def merge_adapters(model: Any) -> PreTrainedModel:
    """The plain model with its PEFT adapters merged into the weights, for a `PeftModel` or loaded adapters.

    Raises ValueError for adapters that cannot be merged.
    """
    if hasattr(model, "merge_and_unload"):
        logger.warning("The adapters are merged into the weights: what is done is done to the merged model.")
        try:
            merged = model.merge_and_unload()
        except (NotImplementedError, AttributeError, ValueError, TypeError) as error:
            raise InvalidValueError(
                f"These adapters cannot be merged into the weights ({type(error).__name__}: {error}), and erasers are "
                "fitted on one plain model. Wrap the base model instead, and train the adapters behind its erasers."
            ) from error
        if isinstance(merged, PreTrainedModel):
            take_name(merged)
            if getattr(merged, "is_erased", None) is False:  # an ErasedModel whose weights are not its base's any more
                merged.config.base_model = merged.config.base_commit = None
        return merged
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InvalidValueError(
            "This model carries adapters loaded by load_adapter, which cannot be merged in place. Load it as a "
            "PeftModel (peft.PeftModel.from_pretrained(base, adapter)) and pass that."
        )
    return model


def adapter_config(name_or_path: str, hub: dict[str, Any]) -> dict[str, Any] | None:
    """adapter_config.json as a dict, or None where there is none."""
    found = find_file(name_or_path, ADAPTER_CONFIG, hub)
    if found is None:
        return None
    try:
        settings = json.loads(Path(found).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{ADAPTER_CONFIG} of {name_or_path} is damaged ({error}); save it again.") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{ADAPTER_CONFIG} of {name_or_path} is no object of settings; save the adapter again.")
    return settings


def with_adapter(model: PreTrainedModel, name_or_path: str, base: str, hub: dict[str, Any]) -> Any:
    """A `PeftModel` of a base and an adapter. Raises CheckpointError where a layer of it is not in the file.

    PEFT only warns then and leaves it fresh, and what is merged is the base, neither erased nor tuned.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        try:
            return require("peft", "peft").PeftModel.from_pretrained(model, name_or_path, **hub)
        except UserWarning as error:
            raise other_base(name_or_path, base, f"its weights are of other layers ({str(error)[:200]})") from error


def other_base(name: str, base: str, why: str) -> CheckpointError:
    """The error for an adapter that does not fit what it names as its base."""
    return CheckpointError(
        f"The adapter {name} was not trained on {base}, which it names as its base: {why}. Loaded so it would be {base} as "
        "it was before. If that model was erased in memory, save it with save_pretrained, load it, put the adapter on it "
        f"(peft.PeftModel.from_pretrained(model, {name!r})), and give that to ErasedModel.from_model."
    )


def labels_of_adapter(
    name_or_path: str,
    adapter: dict[str, Any],
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    hub: dict[str, Any],
) -> int | None:
    """Number of labels of the head that an adapter brings whole; None where it brings none, or one as wide as the base's.

    Whole are the modules of its `modules_to_save`; a head among them is wider or narrower than the base's in its classes.
    """
    saved = adapter.get("modules_to_save") or []
    with init_empty_weights():
        own = {key: tuple(parameter.shape) for key, parameter in cls(copy.deepcopy(config)).named_parameters()}
    widths = set()
    with safe_open(find_file(name_or_path, ADAPTER_WEIGHTS, hub), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  (safe_open is no mapping)
            name = key.removeprefix("base_model.model.").replace(".modules_to_save", "")
            shape, at_base = tuple(file.get_slice(key).get_shape()), own.get(name)
            if at_base is None or not any(f".{module}." in f".{name}" for module in saved):
                continue
            if shape != at_base and shape[1:] == at_base[1:] and at_base[0] == config.num_labels:
                widths.add(shape[0])
    return widths.pop() if len(widths) == 1 else None
