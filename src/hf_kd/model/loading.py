"""From an id or a folder to the model inside: which class a checkpoint needs, adapters, image processors.

Part of the modelling room. No remote code is ever run: a checkpoint that needs it is refused with the way out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_processing_utils import ImageProcessingMixin
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from hf_kd.errors import CheckpointError, InvalidTypeError, InvalidValueError, MissingFileError, require
from hf_kd.features.taps.site import sites_on

logger = logging.getLogger(__name__)

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
LABEL_ARGUMENTS = ("num_labels", "id2label", "label2id")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The part of `from_pretrained`'s keyword arguments that says where files come from."""
    return {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}


def stored_config(name_or_path: str, hub: dict[str, Any]) -> dict[str, Any] | None:
    """config.json as a dict, or None where there is none (an adapter repository)."""
    path = Path(name_or_path)
    if path.is_dir() and not (path / hub.get("subfolder", "") / "config.json").exists():
        return None
    try:
        found = PreTrainedConfig.get_config_dict(name_or_path, **hub)[0]
    except OSError:
        if _find(name_or_path, ADAPTER_CONFIG, hub) is None:
            raise
        return None
    except RecursionError as error:
        raise InvalidValueError(
            f"config.json of {name_or_path} is nested too deep for a configuration: it is damaged."
        ) from error
    if not found and _find(name_or_path, CONFIG_NAME, hub) is None:  # the Hub has none, which reads as an empty one
        return None
    if not isinstance(found, dict):
        raise InvalidValueError(
            f"config.json of {name_or_path} holds a {type(found).__name__}, not an object: it is damaged."
        )
    return found


def load_inner(name_or_path: str, config: PreTrainedConfig | None, kwargs: dict[str, Any]) -> PreTrainedModel:
    """A stock checkpoint or a PEFT adapter repository (adapters merged) as a plain transformers model."""
    hub = hub_arguments(kwargs)
    stored = stored_config(name_or_path, hub)
    if stored is None:
        return _load_adapter(name_or_path, kwargs)
    if config is None:
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False, **hub)
    cls = class_for(config, name_or_path)
    return (
        cls.from_pretrained(name_or_path, config=config, **kwargs)
        if _is_given(config, kwargs)
        else (cls.from_pretrained(name_or_path, **kwargs))
    )


def _is_given(config: PreTrainedConfig, kwargs: dict[str, Any]) -> bool:
    # with label arguments the class has to build the configuration itself, or it would ignore them
    return not {"num_labels", "id2label", "label2id"} & set(kwargs)


def class_for(config: PreTrainedConfig, name: str = "this model") -> type[PreTrainedModel]:
    """The model class a configuration asks for: its `architectures`, else what the Auto classes know."""
    wanted = (getattr(config, "architectures", None) or [None])[0]
    registered = [
        auto._model_mapping[type(config)]
        for auto in (AutoModelForImageClassification, AutoModel)
        if type(config) in auto._model_mapping
    ]
    flat = [cls for entry in registered for cls in (entry if isinstance(entry, (list, tuple)) else [entry])]
    for cls in [getattr(transformers, wanted, None) if wanted else None, *flat]:
        if isinstance(cls, type) and issubclass(cls, PreTrainedModel) and (wanted is None or cls.__name__ == wanted):
            return cls
    if flat and wanted is None:
        return flat[0]
    raise InvalidValueError(
        f"{name} names the architecture {wanted!r}, which neither transformers nor the Auto classes know. Remote code is "
        "never run: import the package that defines the class (it registers itself with AutoConfig and "
        "AutoModelForImageClassification), or build the model yourself and pass it to ErasedModel.from_model."
    )


def class_named(name: str | None, config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of the inner model of a saved erased model."""
    cls = getattr(transformers, name or "", None)
    if isinstance(cls, type) and issubclass(cls, PreTrainedModel):
        if cls.config_class is not None and not isinstance(config, cls.config_class):
            raise InvalidValueError(
                f"{name} is built from a {cls.config_class.__name__}, and config.json brings a {type(config).__name__}: it "
                "is damaged. Save the model again with save_pretrained."
            )
        return cls
    probe = type(config).from_dict(config.to_dict() | {"architectures": [name]})
    return class_for(probe, "The erased model")


def can_be_found_again(model: PreTrainedModel) -> bool:
    """Whether a saved model of this class can be rebuilt by name: in transformers, or registered with Auto classes."""
    try:
        return class_named(type(model).__name__, model.config) is type(model)
    except (ValueError, KeyError):
        return False


def load_processor(name_or_path: str, kwargs: dict[str, Any]) -> Any | None:
    """The image processor stored with a checkpoint, or None; said in the log when there is none."""
    hub = hub_arguments(kwargs)
    for auto in (AutoImageProcessor, AutoProcessor):
        try:
            processor = auto.from_pretrained(name_or_path, trust_remote_code=False, **hub)
        except (
            OSError,
            ValueError,
            KeyError,
            ImportError,
            AttributeError,
            TypeError,
        ) as error:  # a damaged one as well
            reason = error
            continue
        processor = getattr(processor, "image_processor", processor)
        if isinstance(processor, ImageProcessingMixin):  # the file may name any class of transformers
            return processor
        reason = f"{type(processor).__name__} is none"
    logger.info(f"No image processor was found with {name_or_path}: {reason}")
    return None


def refuse_to_wrap(model: Any) -> None:
    """Raise TypeError for what is no transformers model of images, ValueError for one with working erasers in it.

    Sites of an earlier wrapper that never erased anything are taken off.
    """
    if not isinstance(model, PreTrainedModel):
        raise InvalidTypeError(
            f"ErasedModel wraps a transformers PreTrainedModel, got {type(model).__name__}. Derive your network from "
            "PreTrainedModel with a PreTrainedConfig (20 lines), or use hf_kd.methods.erasers on its features."
        )
    modalities = getattr(model, "input_modalities", None) or ()
    modalities = (modalities,) if isinstance(modalities, str) else modalities
    if "image" not in modalities and getattr(model, "main_input_name", "") != "pixel_values":
        raise InvalidTypeError(
            f"{type(model).__name__} takes {', '.join(modalities) or 'no images'}: hf_kd erases features of images. "
            "Load a vision model."
        )
    for site in sites_on(model):
        if site.eraser is not None:
            raise InvalidValueError(
                "This model stands inside an ErasedModel that has erased something, whose erasers would act here too. "
                "Use that ErasedModel, reset() it, or wrap a copy of the original: copy.deepcopy(model) before erasing."
            )
        site.detach()


def refuse_missing_path(name: str) -> None:
    """Raise FileNotFoundError for what can only be meant as a folder and is none; a Hub would be asked in vain."""
    looks_like_path = name.startswith((".", "/", "~", os.sep)) or name.count("/") > 1 or "\\" in name
    if looks_like_path and not Path(name).exists():
        raise MissingFileError(f"There is no folder {name!r}. (A model on the Hub is named USER/NAME.)")


def refuse_pickles(name: str, kwargs: dict[str, Any]) -> None:
    """Raise OSError for an erased checkpoint whose weights are a pickle: hf_kd never writes one, and reads none.

    An index of shards may name any file, so those it names have to be safetensors files beside it.
    """
    hub, variant = hub_arguments(kwargs), kwargs.get("variant")
    named = lambda file: f".{variant}.".join(file.rsplit(".", 1)) if variant else file  # noqa: E731
    if _find(name, named(SAFE_WEIGHTS_NAME), hub) is not None:
        return
    index = _find(name, named(SAFE_WEIGHTS_INDEX_NAME), hub)
    if index is not None:
        _refuse_other_shards(name, index)
        return
    for file in map(named, (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if _find(name, file, hub) is not None:
            raise CheckpointError(
                f"The weights of {name} are {file}, a pickle, which hf_kd does not read. Erased models are saved as "
                f"{SAFE_WEIGHTS_NAME}: save it again with save_pretrained."
            )


def _refuse_other_shards(name: str, index: str) -> None:
    try:
        shards = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
        strange = sorted(file for file in shards if Path(file).name != file or not file.endswith(".safetensors"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{SAFE_WEIGHTS_INDEX_NAME} of {name} is damaged ({type(error).__name__}: {error}); download or save it again."
        ) from error
    if strange:
        raise CheckpointError(
            f"{SAFE_WEIGHTS_INDEX_NAME} of {name} names {strange[0]!r}, which is no safetensors file beside it. hf_kd reads "
            "no other: save the model again with save_pretrained."
        )


@contextlib.contextmanager
def checkpoint_errors(name: str) -> Iterator[None]:
    """Damaged weight files raise OSError, weights of other shapes than the configuration's ValueError."""
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(f"The weights of {name} are damaged ({error}); download or save them again.") from error
    except RuntimeError as error:
        raise InvalidValueError(f"The weights of {name} do not fit its configuration: {error}") from error


def refuse_incomplete(name: str, info: dict[str, Any]) -> None:
    """Raise ValueError when a checkpoint did not bring every tensor of an erased model, its erasers above all."""
    missing, mismatched = sorted(info["missing_keys"]), sorted(map(str, info["mismatched_keys"]))
    strangers = [key for key in info["unexpected_keys"] if key.startswith("sites.")]
    erasers = [key for key in missing if key.startswith("sites.")]
    if erasers:
        what = f"lacks the eraser ({', '.join(erasers)})"
    elif missing or mismatched:
        what = f"lacks {', '.join((missing + mismatched)[:5])}"
    elif strangers:
        what = f"brings {strangers[0]}, but its configuration does not describe the erasers"
    else:
        return
    raise InvalidValueError(
        f"The checkpoint {name} {what}. Loading it would give a model that has not forgotten, or is random in part; it is "
        "refused. Save the erased model again with save_pretrained."
    )


def refuse_other_labels(config: PreTrainedConfig, asked: dict[str, Any]) -> None:
    """Raise ValueError for label arguments that are not those of an erased model: its records speak of its own classes."""
    told = {"num_labels": config.num_labels, "id2label": config.id2label, "label2id": config.label2id}
    for name, value in asked.items():
        value = {int(label): title for label, title in value.items()} if name == "id2label" else value
        if value is not None and value != told[name]:
            raise InvalidValueError(
                f"{name}={str(value)[:100]}: an erased model keeps its labels, because its records and masks speak of them. "
                "For other classes load it without and put a fresh head behind the eraser: model.inner.classifier = "
                "torch.nn.Linear(d, classes), by the name that model.taps gives."
            )


def align_memory(model: nn.Module) -> None:
    """Move tensors on the CPU to 64-byte boundaries, where fresh tensors lie.

    Weights read from a safetensors file lie wherever the file has them, and matrix kernels choose their code by alignment:
    the same values then give logits that differ in the last bit from those of the model that was saved.
    """
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.device.type == "cpu" and parameter.data_ptr() % 64:
                parameter.data = parameter.data.clone()
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type == "cpu" and buffer.data_ptr() % 64:
                module._buffers[name] = buffer.clone()


def merge_adapters(model: Any) -> PreTrainedModel:
    """The plain model with its PEFT adapters merged into the weights, for a `PeftModel` or loaded adapters."""
    if hasattr(model, "merge_and_unload"):
        logger.warning("The adapters are merged into the weights before erasing: erasers act on the merged model.")
        return model.merge_and_unload()
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InvalidValueError(
            "This model carries adapters loaded by load_adapter, which cannot be merged in place. Load it as a "
            "PeftModel (peft.PeftModel.from_pretrained(base, adapter)) and pass that."
        )
    return model


def _load_adapter(name_or_path: str, kwargs: dict[str, Any]) -> PreTrainedModel:
    hub = hub_arguments(kwargs)
    found = _find(name_or_path, ADAPTER_CONFIG, hub)
    if found is None:
        raise CheckpointError(
            f"{name_or_path} has neither config.json nor {ADAPTER_CONFIG}: it is not a model to load."
        )
    PeftModel = require("peft", "peft").PeftModel
    adapter = json.loads(Path(found).read_text(encoding="utf-8"))
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise InvalidValueError(
            f"{ADAPTER_CONFIG} of {name_or_path} names no base model; load base and adapter yourself with peft and pass "
            "the PeftModel to ErasedModel.from_model."
        )
    options = {name: value for name, value in kwargs.items() if name not in ("revision", "subfolder")}
    if not {"num_labels", "id2label", "label2id"} & set(options):
        labels = _labels_of_adapter(name_or_path, hub)
        options |= {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}
    wanted = (adapter.get("auto_mapping") or {}).get("base_model_class")
    config = AutoConfig.from_pretrained(base, trust_remote_code=False, **hub_arguments(options))
    if wanted:
        config.architectures = [wanted]
    model = class_for(config, base).from_pretrained(base, **options)
    return merge_adapters(PeftModel.from_pretrained(model, name_or_path, **hub))


def _labels_of_adapter(name_or_path: str, hub: dict[str, Any]) -> int | None:
    """Width of the one classification head saved beside the adapters; None when there is none or several."""
    weights = _find(name_or_path, ADAPTER_WEIGHTS, hub)
    if weights is None:
        return None
    with safe_open(weights, framework="pt") as file:
        widths = {
            file.get_slice(key).get_shape()[0]
            for key in file.keys()  # noqa: SIM118  (safe_open is no mapping)
            if "lora_" not in key and len(file.get_slice(key).get_shape()) == 2
        }
    return widths.pop() if len(widths) == 1 else None


def _find(name_or_path: str, filename: str, hub: dict[str, Any]) -> str | None:
    return cached_file(
        name_or_path,
        filename,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )
