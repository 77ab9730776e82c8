"""Load an `ErasedModel`: from a stock checkpoint or an adapter, which it wraps, or from one that was saved erased.

Erasers that are stored on their own are put on what was loaded, in their order.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from hf_kd.data.paths import ERASER_CONFIG, refuse_missing_model, with_revision
from hf_kd.data.text import shell_word
from hf_kd.errors import InvalidValueError
from hf_kd.features.taps.inputs import keep_in_memory

from . import checkpoint_files as files
from . import consistency, loading
from .configuration import MODEL_TYPE, ErasedConfig
from .drawn_weights import refuse_drawn_features
from .erase import weights_of
from .eraser_on_base import put_on
from .stored_eraser import StoredEraser, find_eraser, read_eraser

logger = logging.getLogger(__name__)


OTHER_THAN_BASE = (*loading.LABEL_ARGUMENTS, "subfolder", "variant")
"""Arguments with which a model is not what its repository gives by its name and commit alone."""


def load(cls: Any, from_pretrained: Callable[..., Any], name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What `ErasedModel.from_pretrained` does; `from_pretrained` is that of transformers, for the class `cls`."""
    name, kwargs = with_revision(name, kwargs)
    erasers = kwargs.pop("eraser", None)
    if erasers:
        erasers = [erasers] if isinstance(erasers, (str, os.PathLike)) else erasers
        found = [
            read_eraser(eraser, _of_the_hub(kwargs)) for eraser in erasers
        ]  # small: refused before anything is loaded
        return _load_with(cls, name, found, args, kwargs)
    processor, tap = kwargs.pop("processor", None), kwargs.pop("tap", None)
    kwargs.pop("trust_remote_code", None)
    config = kwargs.pop("config", None)
    hub = files.hub_arguments(kwargs)
    if isinstance(config, ErasedConfig):
        stored: Any = config.to_dict()
    else:
        refuse_missing_model(name)
        stored = loading.stored_config(name, hub)
        if stored is None and files.find_file(name, ERASER_CONFIG, hub) is not None:
            given = {"processor": processor, "tap": tap, "config": config}
            given = {key: value for key, value in given.items() if value is not None}
            return _load_on_its_base(cls, read_eraser(name, hub), args, kwargs | given)
        if stored is None or stored.get("model_type") != MODEL_TYPE:
            with files.checkpoint_errors(name), files.bounded(name, kwargs):
                own = {key: value for key, value in kwargs.items() if not key.startswith("_")}
                inner, drawn = loading.load_inner(name, config, own)
            processor = processor or loading.load_processor(name, kwargs, whole=loading.reads_text(inner))
            if isinstance(inner, cls):  # an adapter that was trained on an erased model
                if processor is not None:
                    loading.take_processor(inner, processor)
                return inner
            model = cls.from_model(inner, processor, tap)
            refuse_drawn_features(model, name, drawn)
            model.drawn = drawn
            if stored is None:  # adapters were merged into a base: no checkpoint has these weights
                return model
            model.name_or_path = model.config.name_or_path = name
            if config is None and not set(OTHER_THAN_BASE) & set(kwargs) and not os.path.exists(name):
                model.config.base_model = name
                model.as_loaded = weights_of(model)
                model.config.base_commit = getattr(inner.config, "_commit_hash", None) or files.commit_of(name, hub)
            return model
    if tap is not None:
        raise InvalidValueError(
            f"tap={tap!r}: this model was erased already and its taps are part of it. Leave it out."
        )
    return _load_erased(from_pretrained, name, config, stored, processor, args, kwargs)


def _of_the_hub(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Where files come from, but for what is said of one repository: `revision` and `subfolder`."""
    return {key: value for key, value in files.hub_arguments(kwargs).items() if key not in ("revision", "subfolder")}


def _load_on_its_base(cls: Any, stored: StoredEraser, args: tuple, kwargs: dict[str, Any]) -> Any:
    """The base that an eraser names, with the eraser on it."""
    base, commit = stored.base
    if base is None:
        raise InvalidValueError(
            f"{stored.name} is an eraser, and stands on {stored.base_in_words}. Say where that lies: use "
            f"ErasedModel.from_pretrained(BASE, eraser={str(stored.name)!r}), or hf-kd COMMAND BASE --eraser "
            f"{shell_word(str(stored.name))} on the command line."
        )
    kwargs = {key: value for key, value in kwargs.items() if key not in ("revision", "subfolder")}
    kwargs |= {} if commit is None else {"revision": commit}
    if find_eraser(base, files.hub_arguments(kwargs)):
        raise InvalidValueError(
            f"{stored.name} names {base} as its base, which is an eraser itself: it is damaged. Load what it really "
            "stands on with eraser=..."
        )
    logger.warning(f"{stored.name} is an eraser. Its base is loaded from the Hub: {stored.base_in_words}.")
    return _load_with(cls, base, [stored], args, kwargs)


def _load_with(cls: Any, name: str, erasers: Sequence[StoredEraser], args: tuple, kwargs: dict[str, Any]) -> Any:
    """A model with erasers on it: in the precision of the base they name, and after that in the one that was asked for."""
    asked = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
    quantized = kwargs.pop("quantization_config", None)
    own = {dtype for dtype in (eraser.base_dtype for eraser in erasers) if dtype is not None}
    processor = next((eraser.processor for eraser in erasers if eraser.processor is not None), None)

    def standing_on(same_weights: bool = False, **more: Any) -> Any:
        model = cls.from_pretrained(name, *args, **kwargs, **more)
        if processor is not None and kwargs.get("processor") is None:
            model.processor = processor
        for eraser in erasers:
            put_on(model, eraser, same_weights)
        return model

    model = standing_on(dtype=next(iter(own), "auto"))
    asked = getattr(torch, asked.removeprefix("torch."), asked) if isinstance(asked, str) else asked
    if quantized is not None or asked not in (None, "auto", *own):
        more = {} if quantized is None else {"quantization_config": quantized}
        model = standing_on(same_weights=True, dtype=asked or "auto", **more)
    return model


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
    whole = loading.reads_text(model.inner)
    loading.take_processor(model, processor or loading.load_processor(name, kwargs, whole=whole))
    with files.checkpoint_errors(name):
        consistency.check_loaded(model)
    model._describe_erasers()
    return (model, info) if wants_info else model
