"""Features and answers of an erased model on a labelled data set, original and erased from the same pass.

Part of the modelling room: one pass reads the features before the erasers, and everything else follows from them, since
erasers and heads are functions of features alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_kd.data.image_source import inspect_images
from hf_kd.data.labels import match_labels
from hf_kd.data.loader import make_loader
from hf_kd.data.views import apply_view
from hf_kd.features.taps.inputs import main_input, run
from hf_kd.features.taps.site import head_function
from hf_kd.model.erase import ReadOptions, preprocessor_of

from .forward import FeatureStore, feature_pass, gather_rows, process_state

if TYPE_CHECKING:
    from hf_kd.model.erased_model import ErasedModel


@dataclass(frozen=True)
class ReadFeatures:
    """Pooled features of a data set before any eraser, on the CPU in float32, rows in the order of the data."""

    before: tuple[Tensor, ...]
    """[n, d] at each tap."""
    labels: Tensor
    """Class ids of the model [n] (of the data set where the model has no classes); -1 where there is none."""

    def erased(self, model: ErasedModel) -> tuple[Tensor, ...]:
        """The features behind the erasers of `model`, [n, d] at each tap."""
        return erased(model, self.before)


def erased(model: ErasedModel, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Features [n, d] at each tap behind the erasers that stand there."""
    with torch.no_grad():
        pairs = zip(model.sites, features, strict=True)
        return tuple(part if site.eraser is None else site.eraser(part) for site, part in pairs)


def read_features(
    model: ErasedModel,
    data: Any,
    settings: ReadOptions | None = None,
    *,
    own_labels: bool = False,
    view: str | None = None,
) -> ReadFeatures:
    """One pass over `data` (anything `erase` takes), reading features before the erasers.

    own_labels: keep the data set's class ids, for classes that the model does not know.
    view: a key of `VIEWS`: read another view of every image.

    Raises ValueError for an empty set and LabelMismatchError for labels the model does not know.
    """
    settings = settings or ReadOptions()
    loader, mapping = batches_of(model, data, settings, own_labels)
    model.find_taps()
    store = FeatureStore()
    feature_pass(
        model.inner,
        list(model.sites),
        loader if view is None else apply_view(loader, main_input(model.inner), view),
        store,
        stage="before",
        mixed_precision=settings.mixed_precision,
        progress=settings.progress,
        description="features",
    )
    features, labels = store.collect(len(model.sites))
    return ReadFeatures(tuple(features), labels if mapping is None else mapping(labels))


def batches_of(
    model: ErasedModel, data: Any, settings: ReadOptions, own_labels: bool = False
) -> tuple[Iterable[dict[str, Any]], Callable[[Tensor], Tensor] | None]:
    """Batches of this process, and the map from the data set's labels to the model's where there is one."""
    described = inspect_images(data, image_column=settings.image_column, label_column=settings.label_column)
    mapping: Callable[[Tensor], Tensor] | None = None
    if not own_labels and described.has_labels and model.config.inner.id2label and model_has_head(model):
        mapping = match_labels(described.label_names, model.class_names, settings.label_mapping)
    state = process_state()
    loader = make_loader(
        described,
        preprocessor_of(model, described),
        batch_size=settings.batch_size,
        num_workers=settings.num_workers,
        rank=state.process_index,
        world_size=state.num_processes,
    )
    return loader, mapping


def untrained_logits(model: ErasedModel, data: Any, settings: ReadOptions, labels: Sequence[int]) -> Tensor | None:
    """What the model's architecture answers before any training: logits [n, C] of the samples with `labels`, in order.

    The weights are those the class initialises itself with, by a fixed seed. None where its output has no `logits`.
    """
    loader, mapping = batches_of(model, data, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        untrained = type(model.inner)(copy.deepcopy(model.inner.config)).eval()
    device = next(model.inner.parameters()).device
    untrained.to(device)
    wanted = torch.tensor(list(labels))
    rows, answers = [torch.zeros(0, dtype=torch.long)], []
    with torch.no_grad():
        for batch in loader:
            own = batch["labels"] if mapping is None else mapping(batch["labels"])
            chosen = torch.isin(own, wanted)
            if chosen.any():
                output = run(untrained, {name: value[chosen] for name, value in batch["inputs"].items()})
                if getattr(output, "logits", None) is None:
                    return None
                rows.append(batch["rows"][chosen])
                answers.append(output.logits.float().cpu())
    numbers = gather_rows(torch.cat(rows), fill=-1)
    gathered = gather_rows(torch.cat(answers) if answers else torch.zeros(0, 1))
    present = numbers >= 0
    return gathered[present][torch.argsort(numbers[present], stable=True)].cpu()


def model_has_head(model: ErasedModel) -> bool:
    """Whether the model classifies, as far as its taps say; looks for them first."""
    return all(tap.heads for tap in model.find_taps())


def predictions(model: ErasedModel, features: Sequence[Tensor], masked: bool = True) -> Tensor:
    """Class ids [n] that the model's heads answer for features [n, d] at each tap."""
    return logits(model, features, masked).argmax(dim=1)


def logits(model: ErasedModel, features: Sequence[Tensor], masked: bool = True) -> Tensor:
    """What the model's heads answer for features [n, d] at each tap: float32 [n, C] on the CPU, C with dropped classes.

    masked: whether masked classes are never answered; False for what the original answers.
    Raises ValueError for a model without a classification head.
    """
    head = head_function(model.inner, model.taps, model.config.masked if masked else ())
    if head is None:
        raise ValueError(f"{type(model.inner).__name__} has no classification head: it gives no class to compare with.")
    device = next(model.inner.parameters()).device
    batches = zip(*(torch.split(f, 4096) for f in features), strict=True)
    with torch.no_grad():
        return torch.cat([head([f.to(device).float() for f in batch]).cpu() for batch in batches])
