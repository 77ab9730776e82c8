"""Other data sets beside the one at hand: what features are still good for elsewhere, and classes the model never saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from hf_kd.data.image_source import inspect_images
from hf_kd.data.images import to_rgb
from hf_kd.data.labels import resolve_forget_labels
from hf_kd.errors import InvalidValueError
from hf_kd.features.heads import apply_erasers, side_by_side
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.metrics.linear_probe import fit_linear_probe
from hf_kd.model.erased_model import ErasedModel

from .config import Measures
from .measure import Features, read_quantities
from .protocols import Problem, limited, open_split

SplitFeatures = tuple[tuple[Tensor, ...], Tensor]
"""Features [n, d] at each tap before any eraser, and the data set's own class ids [n]."""


@dataclass(frozen=True)
class OtherData:
    """Features of both splits of another data set, as one model makes them."""

    train: SplitFeatures
    test: SplitFeatures


def open_other(where: Mapping[str, Any]) -> dict[str, Dataset]:
    """Both splits that `where` names, of its `classes` alone, at most `limit` images each, scaled to `resize` pixels.

    Raises ValueError for a data set without labels and for classes it does not have.
    """
    found = {}
    for split in ("train", "test"):
        data = open_split(where, split)
        described = inspect_images(data, where.get("image_column"), where.get("label_column"))
        if described.label_column is None:
            raise InvalidValueError(f"{where['name']} has no single label column; name it: label_column: ...")
        image, label = described.image_column, described.label_column
        if where.get("classes"):
            wanted = set(resolve_forget_labels(where["classes"], described.label_names))
            data = data.filter(lambda own, wanted=wanted: own in wanted, input_columns=label)
        data = limited(data, label, where.get("limit"))
        if where.get("resize"):
            size = int(where["resize"])
            data = data.map(
                lambda row, number, image=image, size=size: {image: to_rgb(row[image], number).resize((size, size))},
                with_indices=True,
                load_from_cache_file=False,
            )
        found[split] = data
    return found


def read_other(model: ErasedModel, data: Mapping[str, Dataset], where: Mapping[str, Any], settings: ReadOptions):
    """The features of both splits before the erasers of `model`."""
    own = ReadOptions(
        where.get("image_column"),
        where.get("label_column"),
        None,
        settings.batch_size,
        settings.mixed_precision,
        settings.num_workers,
        settings.progress,
    )
    read = {split: ImageReader(model, part, own).read(own_labels=True) for split, part in data.items()}
    return OtherData(*((read[split].before, read[split].labels) for split in ("train", "test")))


def transfer(model: ErasedModel, other: OtherData) -> float:
    """Accuracy in percent of a converged linear probe on another data set, behind the erasers of `model`."""
    train, test = (side_by_side(apply_erasers(model, features)) for features, _ in (other.train, other.test))
    probe = fit_linear_probe(train, other.train[1], tolerance=1e-5)
    return 100.0 * float((probe.predict(test).cpu() == other.test[1]).double().mean())


def unseen_classes(
    features: Features, problem: Problem, stage: int, measures: Measures, unseen: OtherData, seed: int
) -> dict[str, Any]:
    """What probes and attacks read of a class the model was never trained on, in the place of the forgotten ones.

    Each class of `unseen` in turn stands where D_f stood; the rest is as for any row, on the original's features. The
    mean over these classes. Attacks that need further views are left out: these were read once.
    """
    forget = problem.forget_classes(stage)
    kept = [~torch.isin(labels, torch.tensor(forget)) for labels in (problem.probe_train, problem.probe_test)]
    own = [side_by_side(part)[rows] for part, rows in zip((features.train, features.test), kept, strict=True)]
    labels = [part[rows] for part, rows in zip((problem.probe_train, problem.probe_test), kept, strict=True)]
    single = tuple(name for name in measures.attacks if not name.startswith("views-"))
    found = []
    for label in unseen.train[1].unique().tolist():
        matrices, targets = [], []
        for part, target, (other, classes) in zip(own, labels, (unseen.train, unseen.test), strict=True):
            rows = side_by_side(other)[classes == label]
            matrices.append(torch.cat([part, rows]))
            targets.append(torch.cat([target, torch.full((len(rows),), forget[0])]))
        found.append(read_quantities(matrices, targets, forget[:1], measures, single, seed))
    return _mean_of(found) | {"unseen classes": len(found)}


def _mean_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of each number, at any depth; None where none has one."""
    result: dict[str, Any] = {}
    for key, first in found[0].items():
        values = [each[key] for each in found if each.get(key) is not None]
        if isinstance(first, dict):
            result[key] = _mean_of(values)
        else:
            result[key] = sum(values) / len(values) if values else None
    return result
