"""One tower of an erased model as a graph: tensors in, answers and erased features out, for any number of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from hf_kd.data.hidden_state import logits_of
from hf_kd.data.modes import drop_caches, evaluating
from hf_kd.data.samples import in_dtype, one_batch
from hf_kd.errors import HfKdError, InvalidTypeError, InvalidValueError, out_of_memory
from hf_kd.features.reader import ImageReader, ReadOptions, makes_one_size, noise_inputs, probe_batch
from hf_kd.features.taps.inputs import declared_size, image_inputs, probe_inputs
from hf_kd.features.taps.site import record
from hf_kd.features.taps.text import text_features

Tower = Literal["image", "text"]
SAMPLES = 8
TEXT_INPUTS = ("input_ids", "attention_mask")


def towers(model: Any) -> tuple[Tower, ...]:
    """What a model has: a text tower beside the image tower, or the image tower alone."""
    inner = model.inner
    return (
        ("image", "text")
        if hasattr(inner, "get_text_features") and hasattr(inner, "get_image_features")
        else ("image",)
    )


class TowerGraph(nn.Module):
    """A tower with the erasers inside, as `torch.export`, AOTInductor and ONNX want it: tensors for inputs and outputs.

    Of a classifier the outputs are "logits" [n, C] and "features" [n, d] (one for each tap, "features_0", ... where there
    are several), of a two-tower model "image_embeds" or "text_embeds" [n, d], not normalised. Inputs and outputs are
    float32, whatever the model computes in.

    Args:
        model: An `ErasedModel`.
        tower: Which of a two-tower model; "image" of all others.
        images: Samples of what the graph will be given, anything that `erase` takes; noise without them. A graph takes
            images of their size, as the processor leaves it. Of a text tower they say nothing.
        reading: How they are read.

    Raises:
        InvalidTypeError: For the text tower of a model that has none.
        InvalidValueError: For no images or inputs that the model does not take, and without images where neither processor
            nor configuration says which size they have.
    """

    def __init__(
        self, model: Any, tower: Tower = "image", images: Any = None, reading: ReadOptions | None = None
    ) -> None:
        super().__init__()
        if tower not in towers(model):
            raise InvalidTypeError(f"tower={tower!r}: {type(model.inner).__name__} has {', '.join(towers(model))}.")
        self.tower: Tower = tower
        self.two_towers = len(towers(model)) > 1
        model.find_taps()
        if tower == "text":
            model.find_text_tap()
        self.model = model
        self.sites = tuple(model.text_sites if tower == "text" else model.sites)
        """As they are: of modules that are asked for while it captures, torch.export may hand out proxies."""
        self.samples = samples(model, tower, images, reading)
        """Inputs by name, `SAMPLES` rows of each."""
        self.example = {name: rows[:2] for name, rows in self.samples.items()}
        """Two samples by the names of the inputs, in their order."""

    @property
    def has_logits(self) -> bool:
        return not self.two_towers and all(site.tap.heads for site in self.sites)

    @property
    def output_names(self) -> tuple[str, ...]:
        if self.two_towers:
            return (f"{self.tower}_embeds",)
        several = len(self.sites) > 1
        features = [f"features_{n}" if several else "features" for n in range(len(self.sites))]
        return ("logits", *features) if self.has_logits else tuple(features)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in the order of `output_names`, for inputs in the order of `example`."""
        named = dict(zip(self.example, inputs, strict=True))
        with record(self.sites) as take:
            output = self._answer(named)
            features = take()
        if self.has_logits:
            features = [logits_of(output), *features]
        return tuple(value.float() for value in features)

    @torch.no_grad()
    def unerased(self, named: Mapping[str, Tensor]) -> list[Tensor]:
        """Features [n, d] at each tap before the erasers."""
        with evaluating(self.model), record(self.sites, "before") as take:
            self._answer(dict(named))
            return [rows.float() for rows in take()]

    @torch.no_grad()
    def answers(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by name, in eval mode."""
        with evaluating(self.model):
            return dict(zip(self.output_names, self(*named.values()), strict=True))

    def _answer(self, named: dict[str, Tensor]) -> Any:
        cast = in_dtype(self.model.inner, named)
        if self.tower == "text":
            return text_features(self.model, cast)
        return self.model.get_image_features(**cast) if self.two_towers else self.model(**cast)

    def program(self) -> ExportedProgram:
        """This graph, captured by `torch.export` for any number of rows (and, of texts, tokens).

        Raises:
            InvalidValueError: Where the architecture cannot be captured so.
        """
        shapes = [{0: Dim("batch")} | ({1: Dim.AUTO} if self.tower == "text" else {}) for _ in self.example]
        drop_caches(self.model.inner)
        try:
            with torch.no_grad(), evaluating(self):
                return torch.export.export(
                    self, tuple(self.example.values()), dynamic_shapes=(tuple(shapes),), strict=False
                )
        except HfKdError:
            raise
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            if out_of_memory(error):
                raise
            raise InvalidValueError(
                f"The {self.tower} tower of {type(self.model.inner).__name__} cannot be captured as a graph for any number "
                f"of rows: torch.export says {first_line(error)!r}. Serve the saved folder instead."
            ) from error


def samples(model: Any, tower: Tower, images: Any = None, reading: ReadOptions | None = None) -> dict[str, Tensor]:
    """`SAMPLES` rows of the inputs of a tower: the images given, noise through the processor, or of the right shape."""
    probe = probe_batch(model)
    names = [name for name in probe if name in TEXT_INPUTS] if tower == "text" else list(image_inputs(probe))
    if tower == "image" and images is not None:
        found = _of_images(model, images, reading)
    elif tower == "image" and model.processor is not None:
        _refuse_any_size(model)
        found = noise_inputs(model, SAMPLES, seed=1)
    else:
        drawn = [probe_inputs(model.inner, seed) for seed in range(SAMPLES // 2)]
        found = {name: torch.cat([each[name] for each in drawn]) for name in names}
    missing = sorted(set(names) - set(found))
    if missing:
        raise InvalidValueError(
            f"images= gives no {', '.join(missing)}, which {type(model.inner).__name__} takes: give batches that do."
        )
    return {name: torch.cat([found[name]] * SAMPLES)[:SAMPLES] for name in names}


def _of_images(model: Any, images: Any, reading: ReadOptions | None) -> dict[str, Tensor]:
    taken: list[Mapping[str, Tensor]] = []
    for batch in ImageReader(model, images, reading).batches():
        taken.append({name: rows for name, rows in batch["inputs"].items() if isinstance(rows, Tensor)})
        if sum(len(next(iter(inputs.values()))) for inputs in taken) >= SAMPLES:
            break
    if not taken:
        raise InvalidValueError("images= holds no image, so there is nothing to compare on. Give at least one.")
    return {name: one_batch([inputs[name] for inputs in taken]) for name in taken[0]}


def _refuse_any_size(model: Any) -> None:
    """Raise InvalidValueError where neither the processor nor the configuration says of which size images are."""
    if declared_size(model.inner.config) is None and not makes_one_size(model):
        raise InvalidValueError(
            f"A graph takes images of one size, and neither the image processor, which leaves it to the image, nor the "
            f"configuration of this {type(model.inner).__name__} says which: give some with images=... "
            "(--dataset DATASET on the command line)."
        )


def first_line(error: Exception) -> str:
    """The beginning of an error's message, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
