"""ErasedModel: what a user holds. Any vision model of transformers, with erasers where its pooled features pass.

It is a `PreTrainedModel` around the inner model; erasers are submodules of the
sites at the taps, so they move, save and load with it, and a checkpoint without them does not load.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.logging import warning_once

from hf_kd.data.digest import inner_digest
from hf_kd.data.labels import check_class_ids
from hf_kd.errors import InvalidTypeError, InvalidValueError
from hf_kd.features.reader import ReadOptions
from hf_kd.features.taps.inputs import input_device
from hf_kd.features.taps.site import Sites
from hf_kd.methods.erasers.base import Method, build
from hf_kd.methods.registry import make_method

from . import consistency, loading
from . import label_mask as masking
from .adapters import merge_adapters
from .answering import Answering
from .configuration import ErasedConfig, label_names
from .erase import fit_erasers, leave_checkpoint, weights_found
from .eraser_on_base import put_on
from .export import Export
from .load_erased import load
from .stored_eraser import read_eraser
from .summary import Summarised
from .swap import Swap
from .text_tower import TextTower, refuse_settings_of_heads

if TYPE_CHECKING:
    from hf_kd.audit.options import AuditOptions, Reference
    from hf_kd.audit.report import RetentionReport

logger = logging.getLogger(__name__)


class ErasedModel(Answering, TextTower, Summarised, Export):
    """A vision model that can be made to forget.

    Build one with `from_pretrained` or `from_model`, call `erase`, and use it like the model it wraps. What it returns is
    erased: logits, pooled outputs and embeddings come from features behind the erasers; fields of the inner model's
    output that bypass them (such as `last_hidden_state`) are withheld unless `output_hidden_states=True` asks for hidden
    states by name, and those are not erased.

    Args:
        config: That of the wrapper.
        inner: The model inside; by default one with fresh weights, as `config.inner` describes it.

    Raises:
        ValueError: Where neither says which model is inside.
    """

    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["sites", "text_sites"]  # noqa: RUF012  (as transformers declares it)

    def __init__(self, config: ErasedConfig, inner: PreTrainedModel | None = None):
        if inner is None and config.inner is None:
            raise InvalidValueError(
                "An ErasedModel wraps a model: use ErasedModel.from_pretrained or ErasedModel.from_model."
            )
        attention = getattr(config.inner, "_attn_implementation", None)
        super().__init__(config)
        given = inner is not None
        if not given:
            inner = loading.class_named(config.inner_class, config.inner)._from_config(config.inner)
        elif attention is not None:
            config.inner._attn_implementation = attention
        self.inner = inner
        self.main_input_name = getattr(inner, "main_input_name", "pixel_values")
        self.processor = None
        self.whole_processor: Any | None = None
        """The processor that also reads texts, of a model that does."""
        self.sites, self.text_sites = Sites(), Sites()
        self.search = None
        self._swap = Swap()
        if config.taps:
            erasers = [
                build(description) if description else None
                for description in config.erasers or [None] * len(config.taps)
            ]
            self._hook_into(config.tap_list)
            for site, eraser in zip(self.sites, erasers, strict=True):
                site.eraser = eraser
            masking.sync_masks(self)
            self._stand_in_text_tower()
        consistency.refuse_contradictions(config)
        if given:  # its values stay; one built here is initialised by its own class, buffers outside checkpoints too
            module: Any
            for module in self.modules():
                module._is_hf_initialized = True
        self.post_init()

    # Building one

    @classmethod
    def from_model(cls, model: Any, processor: Callable[..., Any] | None = None, tap: str | None = None) -> ErasedModel:
        """Wrap a model in memory, itself and not a copy. It may have been trained, so records and cards name no base.

        Args:
            model: Any `PreTrainedModel` that takes images, or a `PeftModel` of one (its adapters are merged).
            processor: Its image processor, or any callable on one RGB PIL image that gives a tensor [C, H, W] or a dict. Of
                a model of one channel an image processor is given grey images.
            tap: Where the pooled features pass, if the search should not decide; see `hf_kd.features.taps.find_taps`.

        Returns:
            The wrapper, which answers as the model.

        Raises:
            TypeError: For anything else (an ErasedModel, a text model, a bare nn.Module).
            ValueError: It is inside another ErasedModel already, or its configuration names classes that its head has not.
        """
        if isinstance(model, ErasedModel):
            raise InvalidTypeError(
                "This is an ErasedModel already. Call erase on it again: requests compose, and the union of what they "
                "remove is kept as one."
            )
        model = merge_adapters(model)
        if isinstance(model, ErasedModel):
            return model
        loading.refuse_to_wrap(model)
        check_class_ids(label_names(model.config))
        loading.align_memory(model)
        erased = cls(ErasedConfig.around(model), inner=model)
        erased.training = model.training  # not train(), which would overrule the modes of the modules inside
        erased.name_or_path = erased.config.name_or_path = model.config.name_or_path
        loading.take_processor(erased, processor)
        if tap is not None:
            erased.find_taps(tap=tap)
        return erased

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any):
        """Load a stock checkpoint, a PEFT adapter (merged) or an erased model, from Hub or folder. Remote code is never run.

        Args:
            pretrained_model_name_or_path: Hub id, USER/NAME or USER/NAME@REVISION, or folder.
            *args: As in transformers.
            **kwargs: dtype, device_map, token, revision, subfolder, cache_dir, num_labels, ... go on to transformers;
                `processor` and `tap` are as in `from_model`. `eraser`: what `load_eraser` takes, or several in a list, to be
                put on the model in this order. An eraser in the place of the model finds its base on the Hub itself.

        Raises:
            ValueError: An erased checkpoint lacks an eraser or another tensor, or has one of another shape.
            OSError: A weight file is damaged: it never loads as an un-erased model.
        """
        return load(cls, super().from_pretrained, os.path.expanduser(pretrained_model_name_or_path), args, kwargs)

    def load_eraser(self, eraser: str | os.PathLike[str], **hub: Any) -> ErasedModel:
        """Put an eraser on this model that `save_eraser` saved, behind those that are there.

        Args:
            eraser: A folder, or a repository on the Hub: USER/NAME, or USER/NAME@REVISION.
            **hub: token, revision, subfolder, cache_dir, ... as in transformers.

        Returns:
            This model. On an error it stays as it was.

        Raises:
            InvalidValueError: The model inside is not the base it was fitted on (class, settings or weights are others), it
                contradicts its records, or does not compose with what was erased here.
            OSError: A file of it is missing or damaged.
        """
        put_on(self, read_eraser(eraser, hub))
        return self

    # Forgetting

    def erase(
        self,
        forget: Any = None,
        method: str | Method | None = None,
        *,
        reading: ReadOptions | None = None,
        progress: bool = True,
        whole_classes: bool = True,
        retain: Any = None,
        mask_head: bool | None = None,
        erased_label: str | None = masking.ERASED,
        allow_unrecognised: bool = False,
        **method_options: Any,
    ) -> ErasedModel:
        """Forget a set of images: one pass over them, then a fit on their pooled features.

        A second call sees features through the first eraser, and the union of what both remove is kept. On an error the
        model stays as it was.

        Args:
            forget: `datasets.Dataset` or `IterableDataset`, list of PIL images, or a `DataLoader` of dict batches with the
                model's own input names and optional `labels`.
            method: "esc" (of texts "oblique"), "esc-t", the name of a registered method, or a Method with its settings.
            reading: How images are read: columns, label mapping, batch size, precision of the forward pass, ...
            progress: False shows no bar, whatever `reading` says.
            whole_classes: False for samples of classes that stay; the record then names no classes.
            retain: Images of the classes that stay, for methods that read them ("leace", "mean-difference", ...).
            mask_head: Whether the forgotten classes are never answered again (probability 0); by default as the method says.
            erased_label: What they are called then; None drops them from the labels and the logits.
            allow_unrecognised: Carry on where the head takes the images for other classes than their labels say.
            **method_options: Hyper-parameters of the method, such as p, k, threshold, lr. `texts`: forget a concept of a
                two-tower model by its names, with or without images; see `erase_texts`, to which everything else then goes
                but what is asked of a head, which is refused.

        Returns:
            This model.

        Raises:
            ValueError: The forget set is empty or unreadable, features are not finite, labels are unknown to the model or
                contradicted by it (methods that need them), or the request forgets every class or changes nothing.
        """
        if forget is None or "texts" in method_options:
            reading = ReadOptions.given(reading, progress)
            if "texts" in method_options:
                refuse_settings_of_heads(whole_classes, mask_head, erased_label, allow_unrecognised)
            return self.erase_texts(images=forget, method=method, retain=retain, reading=reading, **method_options)
        options = ReadOptions.given(reading, progress, method_options)
        chosen = make_method(method or "esc", **method_options)
        seen = self._swap.changes
        fitted, erasure = fit_erasers(
            self, forget, chosen, options, whole_classes, retain, mask_head, allow_unrecognised
        )
        fitted = [eraser.to(input_device(self.inner)) for eraser in fitted]
        weights = weights_found(self)
        with self._swap.change():
            if self._swap.changes != seen + 1:
                raise InvalidValueError(
                    "This model was erased or reset while this request was fitted. Nothing was changed: call erase again."
                )
            erasers = [e if s.eraser is None else s.eraser.then(e) for s, e in zip(self.sites, fitted, strict=True)]
            erasure = masking.apply_mask_request(self, erasure, mask_head, erased_label)  # the last that can fail
            erasure = replace(erasure, withheld=tuple(self.config.leaking))
            self.config.weights_erased = weights
            for site, eraser in zip(self.sites, erasers, strict=True):
                site.eraser = eraser
            self._describe_erasers()
            self.config.erasures = [*self.config.erasures, erasure.to_dict(names=True)]
            leave_checkpoint(self)
        return self

    def reset(self) -> ErasedModel:
        """Take all erasers away: the model answers as before the first erasure, as far as its weights are unchanged.

        Returns:
            The model itself.

        Raises:
            ValueError: Nothing was erased yet, or the erasure was folded into the weights, where nothing undoes it.
        """
        if not self.is_erased:
            reason = (
                "its erasure is folded into the weights, and a projection has no inverse. Load the original checkpoint."
                if getattr(self.config.inner, "hf_kd_folded", None)
                else "nothing has been erased, so the model already answers as the original."
            )
            raise InvalidValueError(f"There is no eraser to take away: {reason}")
        with self._swap.change():
            for site in [*self.sites, *self.text_sites]:
                site.eraser = None
            self._hook_into_text()  # nowhere: what goes around a place is looked for again with it
            masking.unmask(self)
            if inner_digest(self) != self.config.weights_erased:  # trained since, so not its base any more
                self.config.base_model = self.config.base_commit = None
            self.config.erasures, self.config.weights_erased = [], None
            self._describe_erasers()
            leave_checkpoint(self)
        return self

    def audit(
        self,
        train: Any,
        test: Any,
        forget_labels: Any = None,
        *,
        retain_labels: Any = None,
        original: Any = None,
        reference: Reference = None,
        options: AuditOptions | None = None,
        reading: ReadOptions | None = None,
        progress: bool = True,
        **unknown: Any,
    ) -> RetentionReport:
        """Measure what the features behind the erasers still reveal of the forgotten classes: one pass over each split.

        Args:
            train: Labelled images, anything `erase` takes, on which attackers train.
            test: Labelled images on which they are scored.
            forget_labels: Names or ids of the model's labels; by default the classes in the records.
            retain_labels: Likewise, the labels that count as retained; by default all the rest in the data.
            original: The model before unlearning, where that changed weights.
            reference: `hf_kd.Retrained(model)`, `hf_kd.Unseen(images)` or None.
            options: `hf_kd.AuditOptions`: attacks, seeds and what else is measured.
            reading: How images are read, as in `erase`.
            progress: False shows no bar, whatever `reading` says.
            **unknown: Refused, with a message that says where each belongs.

        Returns:
            The report; see `hf_kd.audit.audit_model` for errors and details.

        Raises:
            TypeError: For an argument that there is not; the message says where it belongs.
        """
        from hf_kd.audit.audit_model import audit_model  # scikit-learn takes a second to import, only audits need it
        from hf_kd.audit.options import refuse_unknown

        reading = ReadOptions.given(reading, progress, unknown)
        asked = {"retain_labels": retain_labels, "original": original, "reference": reference}
        asked |= {"options": options, "reading": reading}
        refuse_unknown("audit", unknown, ("forget_labels", *asked))
        return audit_model(self, train, test, forget_labels, **asked)

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        consistency.refuse_other_state(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> ErasedModel:
        if mode and hasattr(self, "sites") and not self.is_erased:  # what is trained is not its base any more
            self.config.base_model = self.config.base_commit = None
        elif mode and hasattr(self, "sites"):
            warning_once(
                logger,
                "This model is erased and is being put into training mode: further training, on the forgotten images or "
                "on related ones, can restore what was erased. Audit it again afterwards.",
            )
        return super().train(mode)
