"""How a request reads its images: settings, labels, loaders, and the passes beside that over the forget set.

Part of the modelling room, below `erasing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils import logging

from hf_kd.data.image_source import ImageSource, inspect_images
from hf_kd.data.labels import LabelMapping, LabelMismatchError, match_labels
from hf_kd.data.loader import LoaderShare, make_loader
from hf_kd.data.preprocess import ImagePreprocessor
from hf_kd.data.views import VIEWS, apply_view
from hf_kd.features.taps.inputs import main_input
from hf_kd.methods.erasers.moments import RetainMoments

from .forward import FeatureStore, feature_pass, gather_rows, process_state, sum_over_processes

if TYPE_CHECKING:
    from hf_kd.model.erased_model import ErasedModel

logger = logging.get_logger(__name__)

ABSENT = -2  # stands for 'no row here' where processes exchange labels; -1 means 'a row without a label'


@dataclass(frozen=True)
class ReadOptions:
    """How a forget set is read and run; see `ErasedModel.erase`."""

    image_column: str | None = None
    label_column: str | None = None
    label_mapping: Mapping[Any, Any] | None = None
    batch_size: int | None = None
    mixed_precision: str | None = None
    num_workers: int | None = None
    progress: bool = True


def preprocessor_of(model: ErasedModel, forget_set: ImageSource) -> ImagePreprocessor | None:
    """What turns images into the model's inputs; not needed for a forget set that brings inputs."""
    if forget_set.is_prepared:
        return None
    if model.processor is None:
        raise ValueError(
            f"This {type(model.inner).__name__} has no image processor, so images cannot be turned into its inputs. Pass "
            "one: ErasedModel.from_model(model, processor=...), or give a DataLoader of the model's own inputs."
        )
    return ImagePreprocessor(model.processor)


def label_mapping(
    model: ErasedModel, forget_set: ImageSource, given: Mapping[Any, Any] | None, required: bool
) -> LabelMapping | None:
    id2label = model.class_names or None
    if id2label is None or not forget_set.has_labels:
        if required and not forget_set.has_labels:
            raise ValueError(
                "This method needs the labels of the forget set and it has none. Name the column with label_column=..., "
                "give (image, id) pairs instead of images, "
                "or use method='esc', which needs the images alone."
            )
        return None
    try:
        return match_labels(forget_set.label_names, id2label, given)
    except LabelMismatchError as error:
        if required:
            raise
        logger.info(f"The classes of the forget set stay unknown in the record: {error}")
        return None


def loader_of(model: ErasedModel, described: ImageSource, settings: ReadOptions) -> Any:
    """Batches of this process's part of a set."""
    state = process_state()
    return make_loader(
        described,
        preprocessor_of(model, described),
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        rank=state.process_index,
        world_size=state.num_processes,
    )


def forget_views(
    model: ErasedModel, loader: Any, wanted: int, settings: ReadOptions, features: Sequence[Tensor]
) -> list[tuple[Tensor, ...]]:
    """For each tap the features [n, d] of further views of the forget images, in the order of the images.

    features: [n, d] at each tap, of the images as they are. Empty where inputs are no pictures [b, channels, height, width],
    and where the data cannot be read twice in one order.
    """
    name = main_input(model.inner)
    first = next(iter(loader), None)
    pictures = first is None or first["inputs"][name].ndim == 4
    nothing = [() for _ in model.sites]
    if not bool(sum_over_processes(torch.tensor([0.0 if pictures else 1.0], dtype=torch.float64))[0] == 0):
        return nothing
    found = []
    as_they_are = [None] if isinstance(loader, LoaderShare) else []  # a user's own loader may shuffle or augment
    for view in [*as_they_are, *list(VIEWS)[:wanted]]:
        store = FeatureStore()
        feature_pass(
            model.inner,
            list(model.sites),
            loader if view is None else apply_view(loader, name, view),
            store,
            mixed_precision=settings.mixed_precision,
            progress=settings.progress,
            description=f"forget set, {view or 'again'}",
        )
        seen = store.collect(len(model.sites))[0]
        if seen[0].shape != features[0].shape or (view is None and not _all_close(seen, features)):
            logger.warning(
                "The forget set gave other images, or in another order, when it was read again: views of them cannot be "
                "compared. Give a data set, or a DataLoader without shuffling and random augmentation."
            )
            return nothing
        if view is not None:
            found.append(seen)
    return [tuple(features[i] for features in found) for i in range(len(model.sites))]


def _all_close(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-2, atol=1e-2 * float(b.std())) for a, b in zip(some, others, strict=True))


def retained_moments(
    model: ErasedModel, retain: Any, settings: ReadOptions, needs_labels: bool, forgotten: tuple[int, ...] | None
) -> list[RetainMoments]:
    """The moments of retained images at each tap, of all processes: one pass, as over the forget set.

    Raises ValueError for an empty set, for images of the forgotten classes in it, and for missing labels where they count.
    """
    described = inspect_images(
        retain, settings.image_column, settings.label_column, main_input=main_input(model.inner)
    )
    mapping = label_mapping(model, described, settings.label_mapping, needs_labels)
    loader = loader_of(model, described, settings)
    found: list[RetainMoments] = []

    def keep(features: Sequence[Tensor], labels: Tensor, rows: Tensor) -> None:
        own = torch.full_like(labels, -1) if mapping is None else mapping(labels)
        if forgotten and bool(torch.isin(own, torch.tensor(forgotten)).any()):
            raise ValueError(
                f"retain holds images of the forgotten classes {list(forgotten)}: it has to be D_r, what stays. "
                "Filter them out."
            )
        if not found:
            found.extend(RetainMoments(f.shape[1], f.device) for f in features)
        for moments, part in zip(found, features, strict=True):
            moments.update(part, own)

    count = feature_pass(
        model.inner,
        list(model.sites),
        loader,
        keep,
        mixed_precision=settings.mixed_precision,
        progress=settings.progress,
        description="retained",
    )
    if count == 0:
        raise ValueError("The retained set is empty. Check the filter that selected it.")
    if process_state().num_processes > 1:
        found = found or [RetainMoments(tap.dim) for tap in model.taps]
        own = torch.tensor(sorted(found[0].sums), dtype=torch.long)
        labels = sorted(set(gather_rows(own, fill=ABSENT).tolist()) - {ABSENT})
        found = [moments.all_reduce(sum_over_processes, labels) for moments in found]
    return found
