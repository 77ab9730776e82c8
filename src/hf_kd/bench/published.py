"""What the published code does otherwise than the paper says: options of a row of the bench, never defaults.

They are there to see which gap to the printed numbers they explain.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hf_kd.data.devices import own_generators
from hf_kd.data.distributed import reduce_tensor
from hf_kd.errors import InvalidValueError
from hf_kd.methods.registry import make_method
from hf_kd.model.erased_model import ErasedModel

CHOICES = {"collect_in": ("eval", "train"), "collect_views": ("plain", "mirrored"), "k_rounding": ("nearest", "down")}
"""The settings of a row, each with what is done by default first."""


@dataclass(frozen=True)
class Published:
    """Defects of the published code that a row has."""

    collect_in: str = "eval"
    """Mode of the model while an eraser's features are read. "train" normalises with each batch's statistics and overwrites
    BatchNorm's own with those of the forget set; the model that is measured keeps them. ESC-T trains its mask on what
    this one pass reads; the published code reads anew in every epoch, after the first in eval mode."""
    collect_views: str = "plain"
    """"mirrored": each image of the forget set is mirrored or not, as the training's augmentation draws it; once, for ESC-T
    too."""
    k_rounding: str = "nearest"
    """"down": k = int(d p / 100), where the project takes the nearest and at least 1."""

    @classmethod
    def taken_from(cls, values: dict[str, Any], kind: str, name: str) -> Published:
        """Takes its settings out of those of a row; InvalidValueError for a choice that there is not."""
        given = {key: values.pop(key) for key in CHOICES if key in values}
        for key, value in given.items():
            if value not in CHOICES[key] or kind != "eraser" or (key == "k_rounding" and "p" not in _settings(name)):
                whom = "erasers with a p take" if key == "k_rounding" else "erasers take"
                raise InvalidValueError(
                    f"{key}={value!r}: {whom} {' or '.join(CHOICES[key])}; methods that change weights have bn_mode instead."
                )
        return cls(**given)

    @property
    def settings(self) -> dict[str, str]:
        """Those that are not the default."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value != CHOICES[key][0]}

    @property
    def changes_weights(self) -> bool:
        """Whether the model that is measured is not the original's any more: its statistics."""
        return self.collect_in == "train"

    @property
    def draws(self) -> bool:
        """Whether another seed gives another result."""
        return self.collect_in == "train" or self.collect_views == "mirrored"

    def options(self, name: str, options: Mapping[str, Any], model: ErasedModel) -> dict[str, Any]:
        """Settings of the eraser, with k where it is rounded down.

        Raises:
            InvalidValueError: k is 0: the published code then removes nothing and says nothing.
        """
        if self.k_rounding == "nearest" or options.get("k") is not None:
            return dict(options)
        model.find_taps()
        dims = {tap.dim for tap in model.taps}
        share = float(make_method(name, **options).settings()["p"])
        counts = {int(dim * share / 100) for dim in dims}
        if len(counts) > 1 or 0 in counts:
            raise InvalidValueError(
                f"p={share:g} rounded down at d = {', '.join(map(str, sorted(dims)))} is k = {', '.join(map(str, counts))}: "
                "the published code removes nothing there. Leave k_rounding out, or give a larger p."
            )
        return {key: value for key, value in options.items() if key != "p"} | {"k": counts.pop()}

    @contextlib.contextmanager
    def reading(self, model: ErasedModel, seed: int) -> Iterator[None]:
        """Feature passes inside run as the published code runs them.

        In "train" BatchNorm ends with the statistics of what was read; with several processes it gets the mean of theirs.
        """
        if not self.draws:
            yield
            return
        inner = model.inner
        model.find_taps()  # in eval mode: the search compares forwards
        handle = inner.register_forward_pre_hook(self._before_a_batch, with_kwargs=True)
        try:
            with own_generators(next(inner.parameters()).device, seed):
                yield
        finally:
            handle.remove()
            inner.eval()
        if self.changes_weights:
            for buffer in inner.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(reduce_tensor(buffer, "mean"))

    def _before_a_batch(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Every feature pass sets eval mode; this is asked later, with each batch."""
        if self.collect_in == "train":
            module.train()
        images = kwargs.get("pixel_values")
        if self.collect_views == "mirrored" and images is not None:
            mirrored = torch.rand(len(images), device=images.device) < 0.5
            kwargs = kwargs | {"pixel_values": torch.where(mirrored[:, None, None, None], images.flip(-1), images)}
        return args, kwargs


def _settings(name: str) -> dict[str, Any]:
    return make_method(name).settings()
