"""The one way in which images reach a model: described, labels matched, preprocessed, batched, and read at the taps.

`ImageReader(model, data, options)` is what erasing, auditing, changing weights, training, the bench and the command line
read through. `ReadOptions` are its settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_base import ImageProcessingMixin

from hf_kd.data.again import ReadBefore
from hf_kd.data.distributed import process_state
from hf_kd.data.draw import SEED, Limited, drawn
from hf_kd.data.image_source import inspect_images
from hf_kd.data.labels import LabelMapping, has_no_names, match_labels
from hf_kd.data.load import numbers_texts
from hf_kd.data.loader import DEFAULT_BATCH_SIZE, make_loader
from hf_kd.data.preprocess import ImagePreprocessor
from hf_kd.data.samples import Samples, of_rows
from hf_kd.data.views import apply_view
from hf_kd.errors import InvalidTypeError, InvalidValueError, LabelMismatchError, check_choice, shortened
from hf_kd.features.forward import Consumer, FeatureStore, feature_pass
from hf_kd.features.heads import apply_erasers, has_head
from hf_kd.features.protocol import TappedModel
from hf_kd.features.taps.inputs import channels_of, main_input, probe_inputs, probe_size


@dataclass(frozen=True)
class ReadOptions:
    """How images are read and run through a model.

    Attributes:
        image_column: Column of the images, where there are several.
        label_column: Column of the labels, where there are several.
        label_mapping: From the data set's labels (names or ids) to the model's, where names do not match.
        batch_size: Images a forward pass; 64 by default. Without effect on a `DataLoader`.
        mixed_precision: "no", "bf16" or, except in training, "fp16"; by default what `accelerate launch` was told.
        num_workers: Processes that decode images.
        progress: Whether a bar is shown.
        labels: Whose ids the labels are where the data does not name them (pairs, a `DataLoader`, integer columns): "model"
            (taken so by default), "dataset" (`label_mapping` then says which is which), or a list of their names, from id
            0 on. Overrules names that the data has; labels that are texts get their ids by these names.
        limit: At most so many images of each data set, every class in its share, drawn by a fixed seed: for a first look.
            Records and reports say so. Not for streams and a `DataLoader`.
        limit_test: The same for test images.
    """

    image_column: str | None = None
    label_column: str | None = None
    label_mapping: Mapping[Any, Any] | None = None
    batch_size: int | None = None
    mixed_precision: str | None = None
    num_workers: int | None = None
    progress: bool = True
    labels: str | Sequence[str] | None = None
    limit: int | None = None
    limit_test: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("limit", 1), ("limit_test", 1), ("batch_size", 1), ("num_workers", 0)):
            given, of = getattr(self, name), "processes" if name == "num_workers" else "images"
            if given is not None and (type(given) is not int or given < least):
                rule = f"a whole number of {of} above {least - 1}"
                raise InvalidValueError(f"{name}={shortened(given)} has to be {rule}, or None.")
        if self.mixed_precision is not None:
            check_choice("mixed_precision", self.mixed_precision, ("no", "fp16", "bf16"))
        names = self.labels
        if isinstance(names, str):
            check_choice("labels", names, ("model", "dataset"))
        if names is None or names in ("model", "dataset"):
            return
        if isinstance(names, str) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            raise InvalidValueError(
                f"labels={shortened(names)} has to be 'model', 'dataset' or a list of different names, from id 0 on."
            )

    @classmethod
    def given(
        cls,
        reading: ReadOptions | None,
        progress: bool = True,
        keywords: Mapping[str, Any] | None = None,
        own: Sequence[str] = (),
    ) -> ReadOptions:
        """The options that a function was given as `reading` and `progress`.

        Args:
            reading: As the user gave them; None for the defaults.
            progress: False shows no bar, whatever `reading` says.
            keywords: The function's further keywords, among which none may be one of these options.
            own: Those of them that are the function's own.

        Raises:
            TypeError: For an option of reading among `keywords`.
        """
        keywords = keywords or {}
        stray = [field.name for field in fields(cls) if field.name in keywords and field.name not in own]
        if stray:
            shown = ", ".join(f"{name}={shortened(keywords[name], 40)}" for name in stray)
            raise InvalidTypeError(
                f"How images are read is said in one place: reading=ReadOptions({shown}), not {', '.join(stray)} on its own."
            )
        reading = reading or cls()
        return reading if progress else replace(reading, progress=False)

    def of_test(self) -> ReadOptions:
        """The options by which test images are read: `limit_test` is their limit."""
        return replace(self, limit=self.limit_test)


@dataclass(frozen=True)
class ReadFeatures:
    """Pooled features of a data set before any eraser, on the CPU in float32, rows in the order of the data."""

    before: tuple[Tensor, ...]
    """[n, d] at each tap."""
    labels: Tensor
    """Class ids of the model [n], or of the data set (`ImageReader.mapping_where_known`); -1 where there is none."""
    rows: Tensor
    """Row numbers [n] in the data, ascending; of a stream no places in it (`StreamDataset`)."""

    def erased(self, model: TappedModel) -> tuple[Tensor, ...]:
        """The features behind the erasers of `model`, [n, d] at each tap."""
        return apply_erasers(model, self.before)


class ImageReader:
    """One data set on its way into one model.

    Args:
        model: The model; its processor makes inputs of images, and its class names say which labels there are.
        data: `datasets.Dataset` or `IterableDataset`, list of images or of (image, label) pairs, or a `DataLoader` of dict
            batches with the model's own input names and optional `labels`; or one of them that was drawn from more, or read
            before.
        options: How it is read.

    Raises:
        ValueError: For an empty set, one without images, or columns that are not there.
    """

    def __init__(self, model: TappedModel, data: Any, options: ReadOptions | None = None) -> None:
        self.model = model
        self.data = data.data if isinstance(data, (Limited, ReadBefore)) else data
        self._before = data if isinstance(data, ReadBefore) else None
        self.options = own = options or ReadOptions()
        name, known = main_input(model.inner), self._known_names
        self.whole = inspect_images(self.data, own.image_column, own.label_column, name, *known)
        self.draw = data.drawn if isinstance(data, Limited) else partial(drawn, limit=own.limit)
        self.images = self.draw(self.whole)

    @property
    def sampled(self) -> dict[str, int] | None:
        """How many samples were drawn, of how many and, where classes had shares, by which seed; None where all are read."""
        if self.images.drawn_of is None:
            return None
        found = {"drawn": len(self.images.source), "of": self.images.drawn_of}
        return found | ({"seed": SEED} if isinstance(self.draw, partial) else {})

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Name of each label id of the data set, where it knows them or the options say so."""
        told = self.options.labels
        if told is None or told == "dataset" or numbers_texts(self.images):
            return self.images.label_names
        return None if told == "model" else tuple(told)

    @property
    def _known_names(self) -> tuple[list[str], bool]:
        """Texts that may be labels where the data does not list them, and whether the options say that these are all."""
        told, counts = self.options.labels, Counter(self.model.class_names.values())
        if told is not None and not isinstance(told, str):
            return list(told), True
        if len(counts) < 2:
            return [], False
        if told == "model":
            return list(self.model.class_names.values()), True
        mapped = [text for text in self.options.label_mapping or () if isinstance(text, str) and text not in counts]
        return [*(name for name, count in counts.items() if count == 1), *mapped], False

    @cached_property
    def preprocessor(self) -> ImagePreprocessor | None:
        """What turns images into the model's inputs; None for data that brings inputs.

        Raises:
            ValueError: Where one is needed and the model has none.
        """
        if self.images.is_prepared:
            return None
        if self.model.processor is None:
            raise InvalidValueError(
                f"This {type(self.model.inner).__name__} has no image processor, so images cannot be turned into its "
                "inputs. Pass one: ErasedModel.from_model(model, processor=...), or give a DataLoader of the model's own "
                "inputs."
            )
        return preprocessor_of(self.model)

    @cached_property
    def mapping(self) -> LabelMapping | None:
        """From the data set's labels to the model's; None where the data has no labels or the model no classes.

        Raises:
            LabelMismatchError: For labels that the model does not know.
        """
        if not self.images.has_labels or len(self.model.class_names) < 2:  # of one: a regression
            return None
        return match_labels(
            self.label_names,
            self.model.class_names,
            self.options.label_mapping,
            own_ids=self.options.labels == "dataset",
        )

    @cached_property
    def mapping_where_known(self) -> LabelMapping | None:
        """As `mapping`; None too where a model without a head does not know the names of the data's classes.

        Its own may be made up, or those of what its backbone was trained on: the ids of the data set count then.

        Raises:
            LabelMismatchError: For labels that a model with a head does not know, and for a `label_mapping` that is wrong.
        """
        self.find_taps()
        if has_head(self.model) or self.options.label_mapping:
            return self.mapping
        if self.label_names is None or has_no_names(self.model.class_names):
            return None
        try:
            return self.mapping
        except LabelMismatchError:  # no fault of a model that answers no classes
            return None

    @cached_property
    def _loader(self) -> Any:
        state, own = process_state(), self.options
        share = state.process_index, state.num_processes
        loader = make_loader(self.images, self.preprocessor, own.batch_size, own.num_workers, *share)
        return loader if self._before is None else self._before.checked(loader, self.images.label_names)

    def batches(self, view: str | None = None) -> Iterable[dict[str, Any]]:
        """This process's batches {"inputs", "labels" (of the data set), "rows"}; `view`: a key of `VIEWS`."""
        return self._loader if view is None else apply_view(self._loader, main_input(self.model.inner), view)

    def first_batch(self) -> dict[str, Any]:
        """The first samples, two of images; the same in every process, also in one that gets none of its own."""
        images = replace(self.images, labels_needed=False)  # who asks looks at the inputs
        return next(iter(make_loader(images, self.preprocessor, batch_size=2, num_workers=0)))

    @property
    def reads_the_same_again(self) -> bool:
        """Whether a second pass sees the same images; a user's own loader may shuffle, and a torch Dataset augment."""
        return self.images.kind in ("dataset", "stream") or isinstance(self.data, (list, tuple))

    def samples(self, known: Mapping[int, int] | None = None) -> Samples:
        """All samples with labels of the model (of the data's labels in `known` alone), in any order; see `Samples.read`."""
        return Samples.read(
            self.images,
            self.preprocessor,
            self.mapping if known is None else None,
            batch_size=self.options.batch_size or DEFAULT_BATCH_SIZE,
            num_workers=self.options.num_workers,
            progress=self.options.progress and process_state().is_main_process,
            known=known,
        )

    def find_taps(self) -> None:
        """Find the model's taps, probing with the data where nothing else shows what its inputs look like."""
        if self.model.sites:
            return
        if isinstance(self.model.processor, ImageProcessingMixin) and self.images.kind != "loader":
            self.model.find_taps()
            return
        self.model.find_taps(_probe_from_batch(self.first_batch()))

    def run(
        self,
        consumer: Consumer,
        *,
        stage: Literal["before", "after"] = "after",
        view: str | None = None,
        description: str = "features",
    ) -> int:
        """One pass: the features at each tap to `consumer`, batch by batch; returns the number of images of all processes.

        Args:
            consumer: Takes features [b, d] at each tap, labels [b] of the data set and row numbers [b].
            stage: "before" or "after" the erasers.
            view: A key of `VIEWS`: another view of every image.
            description: What the progress bar says.

        Raises:
            ValueError: Naming the row of a feature that is not finite.
        """
        self.find_taps()
        return feature_pass(
            self.model.inner,
            list(self.model.sites),
            self.batches(view),
            consumer,
            stage=stage,
            mixed_precision=self.options.mixed_precision,
            progress=self.options.progress,
            description=description,
        )

    def read(self, view: str | None = None, own_labels: bool = False) -> ReadFeatures:
        """One pass that keeps the features before the erasers.

        Args:
            view: A key of `VIEWS`: another view of every image.
            own_labels: Keep the data set's class ids, for classes that the model does not know.

        Raises:
            ValueError: For an empty set, and naming the row of a feature that is not finite.
            LabelMismatchError: For labels that the model does not know.
        """
        self.find_taps()
        mapping = None if own_labels else self.mapping_where_known
        store = FeatureStore()
        self.run(store, stage="before", view=view)
        features, labels = store.collect(len(self.model.sites))
        return ReadFeatures(tuple(features), labels if mapping is None else mapping(labels), store.rows)

    def inputs_with_labels(self, labels: Sequence[int]) -> Iterable[tuple[dict[str, Tensor], Tensor]]:
        """Model inputs and row numbers of the samples of this process with one of the model's `labels`, batch by batch."""
        for batch in self.batches():
            own = batch["labels"] if self.mapping is None else self.mapping(batch["labels"])
            chosen = torch.isin(own, torch.tensor(list(labels)))
            if chosen.any():
                yield of_rows(batch["inputs"], chosen), batch["rows"][chosen]


def probe_batch(model: TappedModel, inputs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Inputs for the tap search: those given, two random images through the model's processor, or what its config says.

    A two-tower model also gets text, or fields that only its whole forward returns would go unseen.
    """
    inner = model.inner
    if inputs is None and model.processor is not None:
        inputs = noise_inputs(model, 2)
    if inputs is None:
        return probe_inputs(inner)
    if hasattr(inner, "get_image_features") and "input_ids" not in inputs:
        made = probe_inputs(inner)
        inputs = {**inputs, **{name: made[name] for name in ("input_ids", "attention_mask") if name in made}}
    return dict(inputs)


def preprocessor_of(model: TappedModel, exact_shortcuts: bool = True) -> ImagePreprocessor:
    """What makes inputs of RGB images for a model that has a processor."""
    return ImagePreprocessor(model.processor, exact_shortcuts, channels_of(model.inner))


def noise_inputs(model: TappedModel, count: int, seed: int = 0) -> dict[str, Tensor]:
    """Images of noise through the model's processor; of the size that the model states where that leaves it to the image."""
    size = None if makes_one_size(model) else probe_size(model.inner.config)
    return preprocessor_of(model)(_noise(count, *(size or (96, 96)), seed))


def makes_one_size(model: TappedModel) -> bool:
    """Whether the model's processor makes inputs of one size of images of two: settings do not say it of every processor."""
    prepare = preprocessor_of(model, exact_shortcuts=False)
    square, wide = (prepare(_noise(1, 96, width)) for width in (96, 132))
    return all(value.shape == wide[name].shape for name, value in square.items())


def _noise(count: int, height: int, width: int, seed: int = 0) -> list[Image.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


def _probe_from_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Two different samples for the tap search, made from the first batch of a loader.

    Where all are alike, or there is one, the second is the first with mirrored pixels; masks and shapes stay.

    Raises:
        InvalidValueError: For values that are not finite.
    """
    inputs = {name: value for name, value in batch["inputs"].items() if isinstance(value, Tensor) and value.ndim}
    for name, value in inputs.items():
        if not bool(value.isfinite().all()):
            raise InvalidValueError(f"{name} of the first batch holds values that are not finite: correct the data.")
    size = max((value.shape[0] for value in inputs.values()), default=0)
    for row in range(1, size):
        if any(not torch.equal(value[0], value[row]) for value in inputs.values()):
            return of_rows(batch["inputs"], [0, row])
    firsts = {name: value[:1] for name, value in inputs.items()}
    pairs = {n: torch.cat([v, v.flip(-1) if v.is_floating_point() else v]) for n, v in firsts.items()}
    return {**batch["inputs"], **pairs}
