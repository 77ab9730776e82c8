"""Inputs for the probe forward that finds taps, and one way to call every vision model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate.hooks import remove_hook_from_module
from accelerate.utils import align_module_device
from torch import Tensor, nn

from hf_kd.data.samples import in_dtype
from hf_kd.errors import HfKdError, InvalidValueError, out_of_memory

PROBE_BATCH = 2
"""Two samples: enough to tell what depends on the image from what does not."""

MOST_PIXELS = 2048
"""Longest side of a probe: convolutions take images of any size, also of one that only a damaged file asks for."""

FEW_PATCHES = 4
"""Patches along each side of a reduced probe."""


def probe_inputs(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs of the shapes the model's configuration declares, two samples.

    Args:
        model: A vision model, or one of two towers.
        seed: Of the values.

    Raises:
        InvalidValueError: When the configuration does not say what the model takes; the way out is to pass a batch.
    """
    config = cast(Any, model.config)
    vision = getattr(config, "vision_config", None) or config
    name = main_input(model)
    generator = torch.Generator().manual_seed(seed)
    parameters = set(inspect.signature(model.forward).parameters)
    inputs: dict[str, Tensor] = {}
    if name == "input_ids" and hasattr(vision, "n_positions"):  # models that read images as sequences of colours
        length, colours = vision.n_positions, vision.vocab_size - 1
        return {"input_ids": torch.randint(colours, (PROBE_BATCH, length), generator=generator)}
    if name not in ("pixel_values", "inputs"):
        raise InvalidValueError(
            f"{type(model).__name__} takes {name!r} as its main input: this does not look like a vision model. hf_kd "
            "erases features of images; load a vision model, or pass a batch of its inputs if it is one."
        )
    if {"pixel_attention_mask", "spatial_shapes"} <= parameters:  # images as sequences of flattened patches
        side = int(vision.num_patches**0.5)
        values = torch.randn(PROBE_BATCH, side * side, vision.num_channels * vision.patch_size**2, generator=generator)
        inputs["pixel_attention_mask"] = torch.ones(PROBE_BATCH, side * side, dtype=torch.long)
        inputs["spatial_shapes"] = torch.full((PROBE_BATCH, 2), side)
    else:
        shape = (channels_of(model) or 3, *(probe_size(vision) or (224, 224)))
        values = torch.randn(PROBE_BATCH, *shape, generator=generator)
    inputs[name] = values
    if "input_ids" in parameters and hasattr(config, "text_config"):
        text = config.text_config
        length = min(8, int(getattr(text, "max_position_embeddings", 8)))
        tokens = torch.randint(3, max(4, text.vocab_size - 1), (PROBE_BATCH, length), generator=generator)
        end = getattr(text, "eos_token_id", None)
        if isinstance(end, int) and 0 <= end < text.vocab_size:
            tokens[:, -1] = end
        inputs |= {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    return inputs


def reduced(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs with images of a few patches, for a model that fits its position embeddings to any size if asked.

    What depends on the image does so at every size, and a forward of 16 patches takes a tenth of the time of 196. Not for
    models of stages: some (Swin) keep a smaller window ever after when a map was smaller than theirs.
    """
    config = cast(Any, model.config)
    vision = getattr(config, "vision_config", None) or config
    patch, values = getattr(vision, "patch_size", None), inputs.get("pixel_values")
    fits = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    staged = hasattr(vision, "depths") or hasattr(vision, "window_size")
    if staged or not (fits and isinstance(patch, int) and isinstance(values, Tensor) and values.ndim == 4):
        return dict(inputs)
    side = FEW_PATCHES * patch
    if not 0 < side < min(values.shape[-2:]):
        return dict(inputs)
    return {**inputs, "pixel_values": values[..., :side, :side].contiguous(), "interpolate_pos_encoding": True}


def main_input(model: nn.Module) -> str:
    """The name under which a model takes images; also where a class declares another of its inputs as its main one.

    Args:
        model: A vision model, or one of two towers.
    """
    if "pixel_values" in inspect.signature(model.forward).parameters:
        return "pixel_values"
    return getattr(model, "main_input_name", "pixel_values")


def takes_pictures(model: nn.Module) -> bool:
    """Whether images go in as pixels [n, channels, height, width], not as flattened patches or as sequences of colours."""
    return main_input(model) == "pixel_values" and "spatial_shapes" not in inspect.signature(model.forward).parameters


def declared_size(config: Any) -> tuple[int, int] | None:
    """Height and width of images that a configuration states, of a vision tower or around one; None where it states none."""
    config = getattr(config, "vision_config", None) or config
    size = getattr(config, "image_size", None)
    if size is None:
        size = getattr(config, "input_size", None)
    if isinstance(size, Mapping):
        size = cast(Any, (size.get("height"), size.get("width")))
    sides: list[Any] = list(size)[-2:] if isinstance(size, Iterable) and not isinstance(size, str) else [size]
    if not sides or not all(isinstance(side, int | float) and 1 <= side < math.inf for side in sides):
        return None
    return int(sides[0]), int(sides[-1])


def probe_size(config: Any) -> tuple[int, int] | None:
    """Height and width of a probe: what a configuration states, within `MOST_PIXELS`."""
    size = declared_size(config)
    return None if size is None else (min(size[0], MOST_PIXELS), min(size[1], MOST_PIXELS))


def channels_of(model: nn.Module) -> int | None:
    """How many channels images have: as the configuration states, else as convolutions show; None where nothing does."""
    config = cast(Any, model.config)
    config = getattr(config, "vision_config", None) or config
    stated = getattr(config, "num_channels", None) or getattr(config, "in_channels", None)
    if isinstance(stated, int):
        return stated
    taken = [module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    return 3 if 3 in taken else 1 if taken[:1] == [1] else None


def image_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs without text: what `get_image_features` takes.

    Args:
        inputs: A batch, by the model's names.
    """
    text = ("input_ids", "attention_mask", "position_ids", "token_type_ids")
    return {name: value for name, value in inputs.items() if name not in text}


def run(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """One forward of the image side: the whole model, or `get_image_features` when a two-tower model has no text.

    Args:
        model: A vision model, or one of two towers.
        inputs: A batch, by the model's names; cast to the model's dtype.

    Returns:
        What the model returns.
    """
    inputs = in_dtype_of(model, inputs)
    with explaining(model, inputs):
        if "input_ids" not in inputs and hasattr(model, "get_image_features"):
            return cast(Any, model).get_image_features(**inputs)
        return model(**inputs)


@contextmanager
def explaining(model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Say of a forward that fails inside what its images are and what the model takes, where these differ.

    Raises:
        InvalidValueError: For a failure on images of another size, number of channels or form than the model states.
    """
    try:
        yield
    except HfKdError:
        raise
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        if out_of_memory(error):
            raise
        unlike = _unlike(model, inputs)
        if unlike is None:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise InvalidValueError(
            f"{type(model).__name__} does not take these images: {unlike} ({reason}). Give the image processor that belongs "
            "to the model, or inputs as it makes them."
        ) from error


def _unlike(model: nn.Module, inputs: Mapping[str, Any]) -> str | None:
    """How images differ from what the configuration states; None where nothing does."""
    name, config = main_input(model), model.config
    images, taken = inputs.get(name), inspect.signature(model.forward).parameters.values()
    further = [key for key in inputs if key not in {each.name for each in taken}]
    if further and not any(each.kind is each.VAR_KEYWORD for each in taken):
        return f"its forward takes no {', '.join(further)}"
    if not isinstance(images, Tensor):
        return f"there is no tensor {name} among {', '.join(inputs) or 'no inputs'}"
    if not images.shape[:1].numel():
        return f"{name} is {list(images.shape)} and holds none"
    if not takes_pictures(model):
        return None
    shape, channels, size = list(images.shape), channels_of(model), declared_size(config)
    if len(shape) < 4:
        return f"{name} is {shape} and has to be [n, channels, height, width]"
    if channels is not None and channels != shape[-3]:
        return f"{name} is {shape}, and it takes {channels} channels"
    if size is not None and list(size) != shape[-2:]:
        return f"{name} is {shape}, and its configuration states {size[0]} x {size[1]} pixels"
    return None


def input_device(model: nn.Module) -> torch.device:
    """Where the inputs of a model go: with parts of it offloaded, where accelerate runs it."""
    hooks = (vars(module).get("_hf_hook") for module in model.modules())  # getattr words an error for each without one
    parameters = (p.device for p in model.parameters() if p.device.type != "meta")
    offloaded = (getattr(hook, "execution_device", None) for hook in hooks)
    device = next((d for d in offloaded if d is not None), None) or next(parameters, "cpu")
    return torch.device(device)


def keep_in_memory(modules: nn.Module) -> None:
    """Take modules out of accelerate's hands, their buffers in memory where it would run them."""
    for module in modules.modules():
        hook = getattr(module, "_hf_hook", None)
        if hook is None:
            continue
        with align_module_device(module):
            values = {name: buffer.clone() for name, buffer in module._buffers.items() if buffer is not None}
        remove_hook_from_module(module)
        device = getattr(hook, "execution_device", None)
        module._buffers.update({name: value.to(device) for name, value in values.items()})


def in_dtype_of(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs where the model takes them, floating ones in its dtype."""
    if next(model.parameters(), None) is None:
        return dict(inputs)
    device, cast = input_device(model), in_dtype(model, inputs)
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in cast.items()}
