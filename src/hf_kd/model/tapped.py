"""The model inside and where its pooled features pass: what every part of an `ErasedModel` may know of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from hf_kd.errors import InvalidValueError
from hf_kd.features.reader import probe_batch
from hf_kd.features.taps.find import TapSearch, find_taps
from hf_kd.features.taps.places import Tap
from hf_kd.features.taps.site import Sites, TapSite
from hf_kd.methods.erasers.base import describe
from hf_kd.methods.records import Erasure

from .configuration import ErasedConfig, label_names
from .consistency import eraser_digest
from .swap import Swap

logger = logging.getLogger(__name__)


class Tapped(PreTrainedModel):
    """A model around another, with sites at the taps of that one."""

    config_class = ErasedConfig
    config: Any
    inner: Any
    sites: Sites
    text_sites: Sites
    processor: Any
    """Image processor, or any callable from an RGB PIL image to a tensor or a dict of tensors; None where there is none."""
    search: TapSearch | None
    drawn: tuple[str, ...] = ()
    """Weights that the checkpoint did not bring: no other process has the same."""
    _swap: Swap

    @property
    def taps(self) -> tuple[Tap, ...]:
        """Where pooled features pass; empty until `find_taps` or `erase` has looked."""
        return tuple(site.tap for site in self.sites)

    @property
    def erasures(self) -> tuple[Erasure, ...]:
        """One record for each request carried out, oldest first."""
        return self.config.records

    @property
    def class_names(self) -> dict[int, str]:
        """The classes of the model inside, masked ones included: data sets and records speak of these ids."""
        return label_names(self.config.inner)

    @property
    def is_erased(self) -> bool:
        return any(site.eraser is not None for site in self.sites)

    @property
    def text_withheld(self) -> tuple[str, ...]:
        """Fields of the output that go around the eraser of the text tower."""
        return tuple((self.config.text_tower or {}).get("withheld", ()))

    def find_taps(self, inputs: Mapping[str, Any] | None = None, tap: str | None = None) -> tuple[Tap, ...]:
        """Find the taps by one probe forward, once; later calls return what was found.

        Args:
            inputs: A batch of two or more samples to probe with, if the configuration does not say what the model takes.
            tap: As in `from_model`.

        Returns:
            The taps; most models have one.

        Raises:
            ValueError: No tap is found, or another is asked for after erasing.
        """
        if not self.sites or tap is not None:
            if self.is_erased:
                raise InvalidValueError(
                    f"tap={tap!r}: this model was erased already and its taps are part of it. Leave it out."
                )
            self._stand_at(find_taps(self.inner, probe_batch(self, inputs), tap))
        return self.taps

    def _hook_into(self, taps: Sequence[Tap]) -> None:
        for site in self.sites:
            site.detach()
        self.sites = Sites(TapSite(tap).attach(self.inner) for tap in taps)

    def _stand_at(self, search: TapSearch) -> None:
        self._hook_into(search.taps)
        self.search = search
        self.config.taps = [tap.to_dict() for tap in search.taps]
        self.config.leaking = list(search.leaking)
        self._describe_erasers()
        if search.note:
            logger.warning(f"Tap: {search.note}.")

    def _describe_erasers(self) -> None:
        self.config.erasers = [describe(site.eraser) if site.eraser is not None else None for site in self.sites]
        self.config.eraser_sha256 = [eraser_digest(site.eraser) for site in self.sites]
