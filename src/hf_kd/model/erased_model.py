"""ErasedModel: what a user holds. Any vision model of transformers, with erasers where its pooled features pass.

It is a `PreTrainedModel` around the inner model; erasers are submodules of the
sites at the taps, so they move, save and load with it, and a checkpoint without them does not load.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_kd.data.labels import check_class_ids
from hf_kd.errors import InvalidTypeError, InvalidValueError
from hf_kd.features.reader import ReadOptions, probe_batch
from hf_kd.features.taps.find import TapSearch, find_taps
from hf_kd.features.taps.inputs import input_device
from hf_kd.features.taps.places import Tap
from hf_kd.features.taps.site import TapSite, drop_caches
from hf_kd.hub.files import save_processor
from hf_kd.hub.receipt import inner_digest
from hf_kd.methods.erasers.base import Method, build, describe
from hf_kd.methods.records import Erasure

from . import consistency, loading
from . import label_mask as masking
from .answering import Answering
from .configuration import ErasedConfig, label_names
from .erase import fit_erasers, forget_compiled_graphs
from .fold import fold_site, save_with_processor
from .load_erased import load
from .saving import atomic_directory, refuse_other_model
from .summary import Summarised
from .swap import Swap
from .text_tower import TextTower

if TYPE_CHECKING:
    from hf_kd.audit.options import AuditOptions, Reference
    from hf_kd.audit.report import RetentionReport
    from hf_kd.hub.publish import Pushed

logger = logging.getLogger(__name__)


class ErasedModel(Answering, TextTower, Summarised, PreTrainedModel):
    """A vision model that can be made to forget.

    Build one with `from_pretrained` or `from_model`, call `erase`, and use it like the model it wraps. What it returns is
    erased: logits, pooled outputs and embeddings come from features behind the erasers; fields of the inner model's
    output that bypass them (such as `last_hidden_state`) are withheld unless `output_hidden_states=True` asks for hidden
    states by name, and those are not erased.
    """

    config_class = ErasedConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ("sites", "text_sites")

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
        self.processor: Any | None = None
        """Image processor, or any callable from an RGB PIL image to a tensor or a dict of tensors."""
        self.whole_processor: Any | None = None
        """The processor that also reads texts, of a model that does."""
        self.sites, self.text_sites = nn.ModuleList(), nn.ModuleList()
        self.search: TapSearch | None = None
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
            for module in self.modules():
                module._is_hf_initialized = True
        self.post_init()

    # Building one

    @classmethod
    def from_model(cls, model: Any, processor: Callable[..., Any] | None = None, tap: str | None = None) -> ErasedModel:
        """Wrap a model that is already in memory. The model itself is used, not a copy.

        model: any `PreTrainedModel` that takes images, or a `PeftModel` of one (its adapters are merged).
        processor: its image processor, or any callable on one RGB PIL image that returns a tensor [C, H, W] or a dict.
        tap: where the pooled features pass, if the search should not decide; see `hf_kd.features.taps.find_taps`.

        Raises TypeError for anything else (an ErasedModel, a text model, a bare nn.Module), and ValueError for a model that
        stands inside another ErasedModel already or whose configuration names classes that its head does not have.
        """
        if isinstance(model, ErasedModel):
            raise InvalidTypeError(
                "This is an ErasedModel already. Call erase on it again: requests compose, and the union of what they "
                "remove is kept as one."
            )
        model = loading.merge_adapters(model)
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
        """Load a stock checkpoint, a PEFT adapter repository (merged) or an erased model, from the Hub or a folder.

        Keyword arguments (dtype, device_map, token, revision, subfolder, cache_dir, num_labels, ...) go on to
        transformers; `processor` and `tap` are as in `from_model`. Remote code is never run.

        Raises ValueError when an erased checkpoint lacks an eraser or any other tensor, or has one of another shape, and
        OSError when a weight file is damaged: it never loads as an un-erased model.
        """
        return load(cls, super().from_pretrained, os.fspath(pretrained_model_name_or_path), args, kwargs)

    # Taps

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

    def find_taps(self, inputs: Mapping[str, Any] | None = None, tap: str | None = None) -> tuple[Tap, ...]:
        """Find the taps by one probe forward, once; later calls return what was found.

        inputs: a batch of two or more samples to probe with, if the configuration does not say what the model takes.
        """
        if not self.sites or tap is not None:
            if self.is_erased:
                raise InvalidValueError(f"tap={tap!r}: this model was erased already and its taps are part of it.")
            self._stand_at(find_taps(self.inner, probe_batch(self, inputs), tap))
        return self.taps

    def _hook_into(self, taps: Sequence[Tap]) -> None:
        for site in self.sites:
            site.detach()
        self.sites = nn.ModuleList(TapSite(tap).attach(self.inner) for tap in taps)

    def _stand_at(self, search: TapSearch) -> None:
        self._hook_into(search.taps)
        self.search = search
        self.config.taps = [tap.to_dict() for tap in search.taps]
        self.config.leaking = list(search.leaking)
        self._describe_erasers()
        if search.note:
            logger.warning(f"Tap: {search.note}.")

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
        """Forget a set of images: one pass over them, then a fit on their pooled features. Returns self.

        forget: `datasets.Dataset` or `IterableDataset`, list of PIL images, or a `DataLoader` of dict batches with the
            model's own input names and optional `labels`.
        method: "esc" (of texts "oblique"), "esc-t", the name of a registered method, or a Method with its settings.
        reading: how images are read: columns, label mapping, batch size, precision of the forward pass, ...
        progress: False shows no bar, whatever `reading` says.
        whole_classes: False for samples of classes that stay; the record then names no classes.
        retain: images of the classes that stay, for methods that read them ("leace", "mean-difference", ...).
        mask_head: whether the forgotten classes are never answered again (probability 0); by default as the method says.
            erased_label: what they are called then; None drops them from the labels and the logits.
        allow_unrecognised: carry on where the head takes the images for other classes than their labels say.
        method_options: hyper-parameters of the method, such as p, k, threshold, lr. texts: forget a concept of a two-tower
            model by its names, with or without images; see `erase_texts`, to which everything else then goes.

        A second call sees features through the first eraser, and the union of what both remove is kept. On an error the
        model stays as it was. Raises ValueError for an empty or unreadable forget set, for features that are not finite,
        for labels the model does not know or contradicts (methods that need them), for a request to forget every class, and
        for one that changes nothing.
        """
        if forget is None or "texts" in method_options:
            reading = ReadOptions.given(reading, progress)
            return self.erase_texts(images=forget, method=method, retain=retain, reading=reading, **method_options)
        method, options = method or "esc", ReadOptions.given(reading, progress, method_options)
        seen = self._swap.changes
        fitted, erasure = fit_erasers(
            self, forget, method, options, method_options, whole_classes, retain, mask_head, allow_unrecognised
        )
        fitted = [eraser.to(input_device(self.inner)) for eraser in fitted]
        weights = self.config.weights_erased if self.config.erasures else inner_digest(self)
        with self._swap.change():
            if self._swap.changes != seen + 1:
                raise InvalidValueError(
                    "This model was erased or reset while this request was fitted, so it fits what is no longer there. "
                    "Nothing was changed: call erase again."
                )
            erasers = [e if s.eraser is None else s.eraser.then(e) for s, e in zip(self.sites, fitted, strict=True)]
            erasure = masking.apply_mask_request(self, erasure, mask_head, erased_label)  # the last that can fail
            erasure = replace(erasure, withheld=tuple(self.config.leaking))
            self.config.weights_erased = weights
            for site, eraser in zip(self.sites, erasers, strict=True):
                site.eraser = eraser
            self._describe_erasers()
            self.config.erasures = [*self.config.erasures, erasure.to_dict(names=True)]
            forget_compiled_graphs()
        return self

    def reset(self) -> ErasedModel:
        """Take all erasers away: the model answers as before the first erasure, as far as its weights are unchanged.

        Raises ValueError when there is no eraser to take away: nothing was erased yet, or the erasure was folded into the
        weights, from where it cannot be undone.
        """
        if not self.is_erased:
            folded = getattr(self.config.inner, "hf_kd_folded", None)
            reason = (
                "its erasure is folded into the weights, and a projection has no inverse. Load the original checkpoint."
                if folded
                else "nothing has been erased, so the model already answers as the original."
            )
            raise InvalidValueError(f"There is no eraser to take away: {reason}")
        with self._swap.change():
            for site in [*self.sites, *self.text_sites]:
                site.eraser = None
            masking.unmask(self)
            self.config.erasures, self.config.weights_erased = [], None
            self._describe_erasers()
            forget_compiled_graphs()
        return self

    def _describe_erasers(self) -> None:
        self.config.erasers = [describe(site.eraser) if site.eraser is not None else None for site in self.sites]
        self.config.eraser_sha256 = [consistency.eraser_digest(site.eraser) for site in self.sites]
        self._describe_text_tower()

    def audit(
        self,
        train: Any,
        test: Any,
        forget_labels: Any = None,
        *,
        retain: Any = None,
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
            forget_labels: Names or ids of labels; by default the classes in the records.
            retain: Names or ids of the labels that count as retained; by default all the rest in the data.
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
        asked = {"retain": retain, "original": original, "reference": reference, "options": options, "reading": reading}
        refuse_unknown("audit", unknown, ("forget_labels", *asked))
        return audit_model(self, train, test, forget_labels, **asked)

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any) -> None:
        consistency.refuse_other_state(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> ErasedModel:
        if mode and getattr(self, "sites", None) and self.is_erased:
            logger.warning_once(
                "This model is erased and is being put into training mode: further training, on the forgotten images or "
                "on related ones, can restore what was erased. Audit it again afterwards."
            )
        return super().train(mode)

    # Leaving

    def fold(self) -> PreTrainedModel:
        """A stock model of the original class with the erasers written into its head weights.

        Its logits equal the erased model's; its features are NOT erased (hf_kd's threat model calls this a head edit).
        The result is a copy. Raises ValueError when an eraser is not linear or there is no weight to take it.
        """
        if not self.is_erased:
            raise InvalidValueError("Nothing has been erased: there is no eraser to fold. Call erase first.")
        drop_caches(self.inner)
        clone = copy.deepcopy(self)
        for site in [*clone.sites, *clone.text_sites]:
            site.detach()
            fold_site(clone.inner, site)
        stock = clone.inner
        stock.config.hf_kd_folded = [erasure.to_dict() for erasure in self.erasures]
        save_with_processor(stock, self)
        return stock

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save weights, erasers, records and image processor; an interruption leaves what was there before.

        Raises ValueError for an inner class that could not be found again, and PermissionError or NotADirectoryError for
        a place that cannot be written to.
        """
        if push_to_hub:
            raise InvalidValueError("save_pretrained does not push; call model.push_to_hub(repo_id).")
        loading.refuse_unknown_class(self.inner)
        if not is_main_process:
            return
        consistency.refuse_contradictions(self.config)  # what does not load again is not written
        consistency.refuse_other_erasers(self)
        from hf_kd.hub.document import document  # reports and figures, which only a saved model needs

        with atomic_directory(save_directory) as folder:
            super().save_pretrained(folder, **kwargs)
            refuse_other_model(save_directory, folder)
            save_processor(self, folder)
            if self.is_erased:
                document(self, folder, beside=save_directory, add_card=False)

    def push_to_hub(self, repo_id: str, **options: Any) -> Pushed:
        """Publish the model in one commit, load it back and compare bit for bit; see `hf_kd.hub.publish.push`."""
        from hf_kd.hub.publish import push  # loads and compares what it published, so it knows this class

        return push(self, repo_id, **options)
