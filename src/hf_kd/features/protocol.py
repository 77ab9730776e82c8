"""What everything below `model/` may know of an erased model: the model inside, its taps, and what was done to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from hf_kd.features.taps.places import Tap
from hf_kd.features.taps.site import Sites


@runtime_checkable
class TappedModel(Protocol):
    """A vision model with sites where its pooled features pass; `hf_kd.ErasedModel` is one."""

    config: Any
    """Configuration, with `inner`, `erasures`, `masked` and `dropped`."""
    inner: Any
    """The model of transformers inside."""
    sites: Sites
    """A `TapSite` at each tap, in order; empty until `find_taps` has looked."""
    processor: Any
    """Image processor, or any callable on an RGB image; None where there is none."""

    @property
    def taps(self) -> tuple[Tap, ...]: ...

    @property
    def erasures(self) -> tuple[Any, ...]: ...

    @property
    def class_names(self) -> dict[int, str]: ...

    @property
    def is_erased(self) -> bool: ...

    def find_taps(self, inputs: Mapping[str, Any] | None = None, tap: str | None = None) -> tuple[Tap, ...]: ...
