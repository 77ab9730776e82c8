"""The text tower of an erased two-tower model: where its embeddings pass, the eraser there, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hf_kd.errors import InvalidTypeError, InvalidValueError
from hf_kd.features.reader import probe_batch
from hf_kd.features.taps.places import Tap, hidden_state_fields, without_fields
from hf_kd.features.taps.site import Sites, TapSite, check_passed, follow
from hf_kd.features.taps.text import find_text_tap
from hf_kd.methods.erasers.base import build, describe
from hf_kd.methods.records import config_errors

from .consistency import eraser_digest
from .label_mask import ERASED
from .tapped import Tapped

OF_HEADS = {"whole_classes": True, "mask_head": None, "erased_label": ERASED, "allow_unrecognised": False}
"""Arguments of `ErasedModel.erase` that no request by name reads, and what they are where nobody gives them."""


class TextTower(Tapped):
    """What an `ErasedModel` has of its text tower; nothing where it has none or was only erased by images."""

    def find_text_tap(self) -> Tap:
        """Where text embeddings pass, found once by a probe forward.

        Raises:
            InvalidTypeError: For a model without a text tower.
        """
        if not self.text_sites:
            self.find_taps()
            tap, withheld = find_text_tap(self.inner, probe_batch(self))
            self._hook_into_text(tap)
            self._text_leaks = withheld
        return self.text_sites[0].tap

    def near_texts(self, texts: Sequence[str], **options: Any) -> Any:
        """Retained names that mean something close to `texts`, nearest first: is one of them to be forgotten too?

        Args:
            texts: Names of the concept.
            **options: `retain_texts` and `templates`, as for `erase_texts`.

        Returns:
            A list of `hf_kd.model.concept.Near`, each with its cosine.
        """
        from .concept import ReadConcept

        return ReadConcept.of(self, texts, **options).near()

    def erase_texts(
        self,
        texts: Sequence[str] = (),
        images: Any = None,
        method: Any = None,
        *,
        retain: Any = None,
        retain_texts: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        publish_texts: bool = False,
        reading: Any = None,
        **options: Any,
    ) -> Any:
        """Forget a concept by its names, on both towers. Returns self. The same as `erase(images, texts=texts, ...)`.

        Args:
            texts: Its names and synonyms: ["tabby cat", "tabby"].
            images: Images as for `erase`, for what the concept's name does not have. Without `retain` they may show
                anything: of the concept are those whose label is called like one of `texts`, or, where no label is, those
                that the model itself takes for it among all names.
            method: "oblique" unless given, "esc", or a `hf_kd.methods.concepts.ConceptMethod`.
            retain: Images of other things; `images` are then all of the concept.
            retain_texts: Names that stay; common objects unless given.
            templates: Wordings with {} for a name; those of `hf_kd.data.vocabulary.templates` unless given.
            publish_texts: Whether the words stand in the record, and with it in config.json, receipt and card. Otherwise
                their number does, and a salted digest.
            reading: How images are read.
            **options: Settings of the method: variance, k, ridge, push.

        Raises:
            InvalidTypeError: For a model without a text tower.
            InvalidValueError: For texts or settings that cannot be, and a request that changes nothing.
        """
        from .concept import erase_texts

        if not texts and images is None:
            raise InvalidTypeError("Nothing to forget was given: images, or texts=[...] of a two-tower model.")
        wanted = {"retain_texts": retain_texts, "templates": templates}
        return erase_texts(self, texts, images, method or "oblique", retain, wanted, publish_texts, reading, options)

    def get_text_features(self, *args: Any, **kwargs: Any) -> Any:
        """Text embeddings of a two-tower model, behind the eraser of its text tower if a concept was forgotten by name."""
        return self._swap.unchanged_while(lambda: self._text_answer(args, dict(kwargs)))

    def _text_answer(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        if not self.config.text_tower:
            return self.inner.get_text_features(*args, **kwargs)
        as_dict = kwargs.pop("return_dict", None)
        follow(self.inner, self.text_sites)
        output = self.inner.get_text_features(*args, **kwargs, return_dict=True)
        check_passed(self.text_sites)
        output = without_fields(output, [*self.text_withheld, *hidden_state_fields(output)])
        return output.to_tuple() if as_dict is False and hasattr(output, "to_tuple") else output

    def _hook_into_text(self, *taps: Tap) -> None:
        for site in self.text_sites:
            site.detach()
        self.text_sites = Sites(TapSite(tap).attach(self.inner) for tap in taps)

    def _stand_in_text_tower(self) -> None:
        """Put an empty eraser where the configuration says that there is one."""
        stored = self.config.text_tower
        if not stored:
            return
        with config_errors("the text tower", stored):
            self._hook_into_text(Tap.from_dict(stored["tap"]))
            self.text_sites[0].eraser = build(stored["eraser"])

    def _describe_erasers(self) -> None:
        super()._describe_erasers()
        eraser = self.text_sites[0].eraser if self.text_sites else None
        if eraser is None:
            self.config.text_tower = None
            return
        withheld = list(self.text_withheld or self._text_leaks)
        self.config.text_tower = {
            "tap": self.text_sites[0].tap.to_dict(),
            "eraser": describe(eraser),
            "sha256": eraser_digest(eraser),
            "withheld": withheld,
        }

    _text_leaks: tuple[str, ...] = ()


def refuse_settings_of_heads(*given: Any) -> None:
    """Raise InvalidValueError for arguments, in the order of `OF_HEADS`, that a request by name would leave unread."""
    told = [f"{name}={value!r}" for (name, usual), value in zip(OF_HEADS.items(), given, strict=True) if value != usual]
    if told:
        raise InvalidValueError(
            f"{', '.join(told)}: with texts nothing is asked of a head and its classes, so nothing would come of it. Leave "
            "it out, or give images without texts."
        )
