"""From an id or a folder to the model inside: which class a checkpoint needs, adapters, image processors.

No remote code is ever run: a checkpoint that needs it is refused with the way out.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import transformers
from accelerate import init_empty_weights
from huggingface_hub.errors import LocalEntryNotFoundError
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
from transformers.image_processing_base import ImageProcessingMixin
from transformers.initialization import no_init_weights

from hf_kd.data.paths import (
    ADAPTER_CONFIG,
    CONFIG_NAME,
    ERASER_CONFIG,
    folder_meant,
    no_model,
    refuse_missing_model,
    with_revision,
)
from hf_kd.errors import NO_WAITING, InvalidTypeError, InvalidValueError, UnreachableError, require
from hf_kd.features.taps.site import sites_on
from hf_kd.hub.files import PROCESSORS

from .adapters import adapter_config, labels_of_adapter, merge_adapters, other_base, with_adapter
from .checkpoint_files import (
    bounded,
    checkpoint_errors,
    find_file,
    hub_arguments,
    refuse_other_files,
    refuse_pickled_adapter,
    refuse_strange_weights,
)
from .configuration import ARCHITECTURE, MODEL_TYPE, ErasedConfig, refuse_strange_settings
from .drawn_weights import drawn_weights

logger = logging.getLogger(__name__)

KEEP_HEAD = (
    "put back that of which the records speak and save, and keep the new one in a file of its own "
    "(safetensors.torch.save_file(head.state_dict(), FILE)), to be put behind the eraser again after loading"
)
FRESH_HEAD = (
    "For other classes load it as it is and put a fresh head behind the eraser, by the name that model.taps gives, such as "
    f"model.inner.classifier = torch.nn.Linear(d, classes). To save it: {KEEP_HEAD}."
)
"""What can be done for other classes, whose ids are not those of the records."""

LABEL_ARGUMENTS = ("num_labels", "id2label", "label2id")


def stored_config(name_or_path: str, hub: dict[str, Any]) -> dict[str, Any] | None:
    """config.json as a dict, or None where there is none (an adapter, or an eraser on its own)."""
    path = Path(name_or_path)
    if path.is_dir() and not (path / hub.get("subfolder", "") / "config.json").exists():
        return None
    try:
        found = PreTrainedConfig.get_config_dict(name_or_path, **hub)[0]
    except OSError as error:
        silent = isinstance(
            error.__cause__, LocalEntryNotFoundError
        )  # a Hub that is asked again for half a minute a file
        there = hub | ({"local_files_only": True} if silent else {})
        if any(find_file(name_or_path, file, there) is not None for file in (ADAPTER_CONFIG, ERASER_CONFIG)):
            return None
        if not silent:
            raise
        raise UnreachableError(
            f"The model {name_or_path!r} could not be fetched, and is no folder here.{folder_meant(name_or_path)} "
            f"{str(error).partition(chr(10))[0].rstrip('. ')}. Without a network give a local folder, or a model that is in "
            f"the cache. {NO_WAITING}"
        ) from error
    except (RecursionError, TypeError, AttributeError) as error:
        raise InvalidValueError(
            f"config.json of {name_or_path} is no object of settings, or nested too deep ({error}): it is damaged. Download "
            "or save the model again."
        ) from error
    if not found and find_file(name_or_path, CONFIG_NAME, hub) is None:  # the Hub has none, which reads as an empty one
        return None
    if not isinstance(found, dict):
        raise InvalidValueError(
            f"config.json of {name_or_path} holds a {type(found).__name__}, not an object: it is damaged. Download or "
            "save the model again."
        )
    refuse_strange_settings(found)
    return found


def load_inner(
    name_or_path: str, config: PreTrainedConfig | None, kwargs: dict[str, Any]
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """A stock checkpoint or a PEFT adapter repository (adapters merged) as a model of transformers; its `drawn_weights`."""
    hub = hub_arguments(kwargs)
    stored = stored_config(name_or_path, hub)
    if stored is None:
        return _load_adapter(name_or_path, kwargs)
    if config is None:
        config = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False, **hub)
    refuse_other_files(name_or_path, stored, kwargs)
    return _load_class(class_for(config, name_or_path), name_or_path, config, kwargs)


def load_classifier(name: str, hub: dict[str, Any], fresh: bool) -> PreTrainedModel:
    """A classifier to be trained; of a checkpoint without a head with a new one.

    Args:
        name: A folder or a repository, without a revision.
        hub: Where files come from, as `hub_arguments` gives it.
        fresh: By its configuration alone, with new weights.

    Raises:
        InvalidValueError: For an erased model, an eraser, a class that has no classifier and a damaged configuration.
        CheckpointError: Where there is no model, and for weights that are not read.
    """
    refuse_missing_model(name)
    stored = stored_config(name, hub)
    with checkpoint_errors(name):
        alone = stored is None and find_file(name, ERASER_CONFIG, hub) is not None
        if alone or (stored or {}).get("model_type") == MODEL_TYPE:
            raise InvalidValueError(
                f"{name} is an {'eraser' if alone else 'erased model'}: a training would change the weights below the "
                "eraser. Train from the model that was erased."
            )
        if stored is None:
            return load_inner(name, None, hub)[0]
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)
        if type(config) not in AutoModelForImageClassification._model_mapping:
            raise InvalidValueError(
                f"{name} is a {config.model_type}, of which transformers has no image classifier. Name a model that has "
                "one, or register your class with AutoModelForImageClassification (--import FILE on the command line)."
            )
        if fresh:
            return AutoModelForImageClassification.from_config(config, trust_remote_code=False)
        refuse_other_files(name, stored, hub)
        with bounded(name, hub):
            return _load_class(AutoModelForImageClassification, name, config, hub | {"trust_remote_code": False})[0]


def _load_class(cls: Any, name: str, config: PreTrainedConfig, kwargs: dict[str, Any]) -> tuple[Any, tuple[str, ...]]:
    # with label arguments the class has to build the configuration itself, or it would ignore them
    given = {} if set(LABEL_ARGUMENTS) & set(kwargs) else {"config": config}
    model, info = cls.from_pretrained(name, **given, **(kwargs | {"output_loading_info": True}))
    refuse_strange_weights(name, model, info)
    return model, drawn_weights(model, info)


def class_for(config: PreTrainedConfig, name: str = "this model") -> type[PreTrainedModel]:
    """The model class a configuration asks for: its `architectures`, else what the Auto classes know."""
    wanted = (getattr(config, "architectures", None) or [None])[0]
    registered = [
        auto._model_mapping[type(config)]
        for auto in (AutoModelForImageClassification, AutoModel)
        if type(config) in auto._model_mapping
    ]
    flat: list[Any] = [cls for entry in registered for cls in (entry if isinstance(entry, (list, tuple)) else [entry])]
    for cls in [getattr(transformers, wanted, None) if wanted else None, *flat]:
        if isinstance(cls, type) and issubclass(cls, PreTrainedModel) and (wanted is None or cls.__name__ == wanted):
            return cls
    if flat and wanted is None:
        return flat[0]
    raise InvalidValueError(
        f"{name} names the architecture {wanted!r}, which neither transformers nor the Auto classes know. Remote code is "
        "never run: import the file or package that registers the class with AutoConfig and AutoModelForImageClassification "
        "(--import FILE on the command line), or build the model yourself and pass it to ErasedModel.from_model."
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


def refuse_unknown_class(model: PreTrainedModel) -> None:
    """Raise ValueError for a model that could not be loaded again once it is saved."""
    if can_be_found_again(model):
        return
    name, config = type(model).__name__, type(model.config).__name__
    raise InvalidValueError(
        f"{name} is neither a class of transformers nor registered, so the saved model could not be loaded "
        f"again. Register it first: AutoConfig.register({config}.model_type, {config}) and "
        f"AutoModelForImageClassification.register({config}, {name})."
    )


def refuse_other_heads(model: PreTrainedModel, heads: Iterable[str]) -> None:
    """Raise ValueError for a head of other shapes than the configuration makes: what is saved so does not load again."""
    parts = tuple(f"{head}." for head in heads)
    if not parts or getattr(model.config, "quantization_config", None) is not None:  # whose weights are packed
        return
    with init_empty_weights(), no_init_weights():  # shapes alone: drawing values takes most of the time, on meta too
        made = type(model)(copy.deepcopy(model.config)).state_dict()
    for key, value in model.state_dict().items():
        if key.startswith(parts) and key in made and value.numel() and value.shape != made[key].shape:
            raise InvalidValueError(
                f"{key} of this {type(model).__name__} is {list(value.shape)}, and its configuration makes "
                f"{list(made[key].shape)}: the saved model could not be loaded again. If it had this head before it was "
                "wrapped, name its classes there: config.id2label = dict(enumerate(names)), and label2id likewise. If the "
                f"head is new: {KEEP_HEAD}."
            )


def take_processor(model: Any, processor: Any) -> None:
    """Give an erased model its image processor, and what is around it that also reads texts."""
    model.processor = getattr(processor, "image_processor", processor)
    model.whole_processor = processor if model.processor is not processor else None


def reads_text(model: Any) -> bool:
    """Whether the model has a text tower beside its image tower."""
    return hasattr(model, "get_text_features")


def load_processor(name_or_path: str, kwargs: dict[str, Any], whole: bool = False) -> Any | None:
    """The image processor stored with a checkpoint, or None; said in the log when there is none.

    whole: the processor around it that also reads texts, where there is one.
    """
    name_or_path, hub = with_revision(name_or_path, hub_arguments(kwargs))
    for auto in (AutoProcessor, AutoImageProcessor) if whole else (AutoImageProcessor, AutoProcessor):
        try:
            processor = auto.from_pretrained(name_or_path, trust_remote_code=False, **hub)
        except (
            OSError,
            ValueError,
            LookupError,
            ArithmeticError,
            ImportError,
            AttributeError,
            TypeError,
            RecursionError,
        ) as error:  # a damaged one as well
            reason = error
            continue
        images = getattr(processor, "image_processor", processor)
        if isinstance(images, ImageProcessingMixin):  # the file may name any class of transformers
            return processor if whole else images
        reason = f"{type(processor).__name__} is none"
    if (adapter := adapter_config(name_or_path, hub)) is not None and adapter.get("base_model_name_or_path"):
        base = {name: value for name, value in hub.items() if name not in ("revision", "subfolder")}
        return load_processor(adapter["base_model_name_or_path"], base, whole)  # an adapter as peft saves it has none
    is_there = any(find_file(name_or_path, name, hub) is not None for name in PROCESSORS)
    what = f"No image processor was found with {name_or_path}{' that can be read' if is_there else ''}: {reason}"
    logger.log(logging.WARNING if is_there else logging.INFO, what)
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


def refuse_other_labels(config: PreTrainedConfig, asked: dict[str, Any]) -> None:
    """Raise ValueError for label arguments that are not those of an erased model: its records speak of its own classes."""
    told = {"num_labels": config.num_labels, "id2label": config.id2label, "label2id": config.label2id}
    for name, value in asked.items():
        value = {int(label): title for label, title in value.items()} if name == "id2label" else value
        if value is not None and value != told[name]:
            raise InvalidValueError(
                f"{name}={str(value)[:100]}: an erased model keeps its labels, because its records and masks speak of them. "
                + FRESH_HEAD
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


def _load_adapter(name_or_path: str, kwargs: dict[str, Any]) -> tuple[PreTrainedModel, tuple[str, ...]]:
    hub = hub_arguments(kwargs)
    adapter = adapter_config(name_or_path, hub)
    if adapter is None:
        raise no_model(name_or_path)
    require("peft", "peft")
    refuse_pickled_adapter(name_or_path, hub)
    base = adapter.get("base_model_name_or_path")
    if not base:
        raise InvalidValueError(
            f"{ADAPTER_CONFIG} of {name_or_path} names no base model; load base and adapter yourself with peft and pass "
            "the PeftModel to ErasedModel.from_model."
        )
    options = {name: value for name, value in kwargs.items() if name not in ("revision", "subfolder")}
    stored = PreTrainedConfig.get_config_dict(base, **hub_arguments(options))[0]
    config = AutoConfig.from_pretrained(base, trust_remote_code=False, **hub_arguments(options))
    wanted = (adapter.get("auto_mapping") or {}).get("base_model_class")
    erased = isinstance(config, ErasedConfig)  # by its class: of SigLIP it has a model_type of its own
    if wanted == ARCHITECTURE and not erased:
        raise other_base(name_or_path, base, f"{wanted} is the class of the model that it stood on")
    if wanted and not erased:
        config.architectures = [wanted]
    cls, drawn = class_for(config, base), ()
    if erased:  # trained behind the erasers of a model that keeps them
        model = cls.from_pretrained(base, **options)
    else:
        refuse_other_files(base, stored, options)
        if not set(LABEL_ARGUMENTS) & set(options):
            labels = labels_of_adapter(name_or_path, adapter, cls, config, hub)
            options |= {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}
        model, drawn = _load_class(cls, base, config, options)
    saved = [f".{module}." for module in adapter.get("modules_to_save") or ()]  # which the adapter brings whole
    drawn = tuple(key for key in drawn if not any(module in f".{key}" for module in saved))
    return merge_adapters(with_adapter(model, name_or_path, base, hub)), drawn
