"""Load an `ErasedModel`: from a stock checkpoint or an adapter, which it wraps, or from one that was saved erased."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hf_kd.errors import InvalidValueError
from hf_kd.features.taps.inputs import keep_in_memory

from . import checkpoint_files as files
from . import consistency, loading
from .configuration import MODEL_TYPE, ErasedConfig
from .text_tower import refuse_other_text_tower


def load(cls: Any, from_pretrained: Callable[..., Any], name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What `ErasedModel.from_pretrained` does; `from_pretrained` is that of transformers, for the class `cls`."""
    processor, tap = kwargs.pop("processor", None), kwargs.pop("tap", None)
    kwargs.pop("trust_remote_code", None)
    config = kwargs.pop("config", None)
    hub = files.hub_arguments(kwargs)
    if isinstance(config, ErasedConfig):
        stored: Any = config.to_dict()
    else:
        files.refuse_missing_path(name)
        stored = loading.stored_config(name, hub)
        if stored is None or stored.get("model_type") != MODEL_TYPE:
            with files.checkpoint_errors(name), files.bounded(name, kwargs):
                inner = loading.load_inner(name, config, {k: v for k, v in kwargs.items() if not k.startswith("_")})
            processor = processor or loading.load_processor(name, kwargs, whole=loading.reads_text(inner))
            if isinstance(inner, cls):  # an adapter that was trained on an erased model
                if processor is not None:
                    loading.take_processor(inner, processor)
                return inner
            model = cls.from_model(inner, processor, tap)
            model.name_or_path = model.config.name_or_path = name
            return model
    if tap is not None:
        raise InvalidValueError(f"tap={tap!r}: this model was erased already and its taps are part of it.")
    return _load_erased(from_pretrained, name, config, stored, processor, args, kwargs)


def _load_erased(
    from_pretrained: Callable[..., Any], name: str, config: Any, stored: Any, processor: Any, args: tuple, kwargs: Any
) -> Any:
    wants_info, _ = kwargs.pop("output_loading_info", False), kwargs.pop("ignore_mismatched_sizes", None)
    files.refuse_pickles(name, stored, kwargs)
    kwargs["use_safetensors"] = True
    labels = {key: kwargs.pop(key) for key in loading.LABEL_ARGUMENTS if key in kwargs}
    with files.checkpoint_errors(name), files.bounded(name, kwargs):
        model, info = from_pretrained(name, *args, config=config, output_loading_info=True, **kwargs)
        files.refuse_incomplete(name, info)
        loading.refuse_other_labels(model.config, labels)
        loading.align_memory(model)
        keep_in_memory(model.sites)
        keep_in_memory(model.text_sites)
        consistency.check_loaded(model)
        refuse_other_text_tower(model)
    model._describe_erasers()
    whole = loading.reads_text(model.inner)
    loading.take_processor(model, processor or loading.load_processor(name, kwargs, whole=whole))
    return (model, info) if wants_info else model
