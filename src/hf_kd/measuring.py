"""Features and answers of an erased model on a labelled data set, original and erased from the same pass.

Part of the modelling room: one pass reads the features before the erasers, and everything else follows from them, since
erasers and heads are functions of features alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .data import FeatureStore, describe_forget_set, feature_pass, make_loader, match_labels, process_state
from .erasing import PassSettings, preprocessor_of
from .taps import head_function, main_input

if TYPE_CHECKING:
    from .modeling import ErasedModel


@dataclass(frozen=True)
class ReadFeatures:
    """Pooled features of a data set before any eraser, on the CPU in float32, rows in the order of the data."""

    before: tuple[Tensor, ...]
    """[n, d] at each tap."""
    labels: Tensor
    """Class ids of the model [n] (of the data set where the model has no classes); -1 where there is none."""

    def erased(self, model: ErasedModel) -> tuple[Tensor, ...]:
        """The features behind the erasers of `model`, [n, d] at each tap."""
        with torch.no_grad():
            pairs = zip(model.sites, self.before, strict=True)
            return tuple(features if site.eraser is None else site.eraser(features) for site, features in pairs)


def read_features(
    model: ErasedModel,
    data: Any,
    settings: PassSettings | None = None,
    *,
    own_labels: bool = False,
    mirrored: bool = False,
) -> ReadFeatures:
    """One pass over `data` (anything `erase` takes), reading features before the erasers.

    own_labels: keep the data set's class ids, for classes that the model does not know.
    mirrored: read every image mirrored left to right.

    Raises ValueError for an empty set and LabelMismatchError for labels the model does not know.
    """
    settings = settings or PassSettings()
    described = describe_forget_set(data, image_column=settings.image_column, label_column=settings.label_column)
    mapping: Callable[[Tensor], Tensor] | None = None
    if not own_labels and described.has_labels and model.config.inner.id2label and model_has_head(model):
        mapping = match_labels(described.label_names, model.config.id2label, settings.label_mapping)
    state = process_state()
    loader = make_loader(
        described,
        preprocessor_of(model, described),
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        rank=state.process_index,
        world_size=state.num_processes,
    )
    model.find_taps()
    store = FeatureStore()
    feature_pass(
        model.inner,
        list(model.sites),
        _mirrored(loader, main_input(model.inner)) if mirrored else loader,
        store,
        stage="before",
        mixed_precision=settings.mixed_precision,
        progress=settings.progress,
        description="features",
    )
    features, labels = store.collect(len(model.sites))
    return ReadFeatures(tuple(features), labels if mapping is None else mapping(labels))


def model_has_head(model: ErasedModel) -> bool:
    """Whether the model classifies, as far as its taps say; looks for them first."""
    return all(tap.heads for tap in model.find_taps())


def _mirrored(loader: Iterable[Mapping[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    for batch in loader:
        yield {**batch, "inputs": {**batch["inputs"], name: batch["inputs"][name].flip(-1)}}


def predictions(model: ErasedModel, features: Sequence[Tensor]) -> Tensor:
    """Class ids [n] that the model's heads answer for features [n, d] at each tap."""
    return logits(model, features).argmax(dim=1)


def logits(model: ErasedModel, features: Sequence[Tensor]) -> Tensor:
    """What the model's heads answer for features [n, d] at each tap: float32 [n, C] on the CPU.

    Raises ValueError for a model without a classification head.
    """
    head = head_function(model.inner, model.taps)
    if head is None:
        raise ValueError(f"{type(model.inner).__name__} has no classification head: it gives no class to compare with.")
    device = next(model.inner.parameters()).device
    batches = zip(*(torch.split(f, 4096) for f in features), strict=True)
    with torch.no_grad():
        return torch.cat([head([f.to(device).float() for f in batch]).cpu() for batch in batches])
