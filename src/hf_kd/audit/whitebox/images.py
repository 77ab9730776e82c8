"""The images of an audit as the battery needs them: a random part in memory, on the device where it fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from hf_kd.audit.hidden_states import sampled_rows
from hf_kd.data.distributed import gather_rows
from hf_kd.data.samples import one_batch
from hf_kd.features.protocol import TappedModel
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.features.taps.inputs import input_device

from .network import Images, WhiteBoxData

MOST_IMAGES = {"train": 10_000, "test": 4_000}
"""Images of each split that the battery reads at most."""

FORGOTTEN_SHARE = {"train": 0.0, "test": 0.25}
"""Share that forgotten classes get where they would have less, as for the layer profile."""

MOST_CLASSES = 50
"""Retained classes that the forgotten ones are told apart from, at most: probes cost images times classes."""

MOST_BYTES = 2 << 30
"""Of the inputs of one split; larger images are fewer."""


def rows_of_fewer_classes(
    labels: Mapping[str, Tensor], kept: Mapping[str, Tensor], forget: Sequence[int], most: int = MOST_CLASSES
) -> dict[str, Tensor]:
    """Which samples of each split count where there are more retained classes than `most`: those of as many, at random.

    Args:
        labels: Class id of each sample of the splits "train" and "test".
        kept: Which samples count so far.
        forget: The forgotten class ids.
        most: Retained classes.
    """
    forgotten = torch.tensor(list(forget))
    classes = labels["train"][kept["train"]].unique()
    classes = classes[torch.isin(classes, labels["test"][kept["test"]]) & ~torch.isin(classes, forgotten)]
    drawn = classes[torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))[:most]]
    chosen = torch.cat([drawn, forgotten])
    return {split: kept[split] & torch.isin(own, chosen) for split, own in labels.items()}


def most_images(
    models: Iterable[TappedModel],
    images: Mapping[str, Any],
    reading: ReadOptions,
    most: Mapping[str, int] = MOST_IMAGES,
) -> dict[str, int]:
    """Of how many images of each split there is room, so that all of some models are read on the same ones.

    Args:
        models: As many as the largest inputs of one of them allow.
        images: The splits, as in `white_box_images`.
        reading: How images are read.
        most: Images of each split at most.
    """
    found = dict(most)
    for model in models:
        for split in found:
            size = sum(value.nbytes for value in _one_image(model, images[split], reading).values())
            found[split] = min(found[split], max(2, MOST_BYTES // max(1, size)))
    return found


def _one_image(model: TappedModel, data: Any, reading: ReadOptions) -> dict[str, Tensor]:
    """The tensors among the model's inputs for the first image."""
    first = ImageReader(model, data, reading).first_batch()["inputs"]
    return {name: value[:1] for name, value in first.items() if isinstance(value, Tensor)}


def white_box_images(
    model: TappedModel,
    images: Mapping[str, Any],
    labels: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    forget: Sequence[int],
    reading: ReadOptions,
    most: Mapping[str, int] = MOST_IMAGES,
    numbers: Mapping[str, Tensor] | None = None,
) -> WhiteBoxData:
    """A random part of train and test, in random order, preprocessed as `model` wants it, on its device where it fits.

    Args:
        model: Whose processor and device it is for.
        images: The splits "train" and "test", anything `erase` takes that gives the same samples each time.
        labels: Class id of each sample of a split.
        kept: Which samples of a split count.
        forget: The forgotten class ids.
        reading: How images are read.
        most: Images of each split at most; fewer where `most_images` of this model are.
        numbers: Row number of each sample of a split, by which batches name it; by default its place.
    """
    numbers = numbers or {split: torch.arange(len(own)) for split, own in labels.items()}
    most = most_images([model], images, reading, most)
    parts = {
        split: _part(
            model, images[split], labels[split], numbers[split], kept[split], forget, reading, split, most[split]
        )
        for split in ("train", "test")
    }
    device = input_device(model.inner)
    if device.type == "cuda":
        size = sum(value.nbytes for part in parts.values() for value in part.inputs.values())
        if 4 * size < torch.cuda.mem_get_info(device)[0]:
            parts = {split: part.to(device) for split, part in parts.items()}
    return WhiteBoxData(parts["train"], parts["test"], tuple(sorted(forget)))


def _part(
    model: TappedModel,
    data: Any,
    labels: Tensor,
    numbers: Tensor,
    kept: Tensor,
    forget: Sequence[int],
    reading: ReadOptions,
    split: str,
    most: int,
) -> Images:
    rows = sampled_rows(labels, kept, forget, most, FORGOTTEN_SHARE[split])
    chosen = _selected(data, rows)
    wanted = torch.arange(len(rows)) if chosen is not data else numbers[rows]
    first = _one_image(model, data, reading)
    found = {name: [value[:0]] for name, value in first.items()}  # a process may get none of the rows
    seen = [wanted[:0]]
    for batch in ImageReader(model, chosen, reading).batches():
        own = torch.isin(batch["rows"], wanted)
        if own.any():
            seen.append(batch["rows"][own])
            for name in found:
                found[name].append(batch["inputs"][name][own])
    everywhere = gather_rows(torch.cat(seen), fill=-1).cpu()
    present = everywhere >= 0
    mixing = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    order = torch.argsort(everywhere[present], stable=True)[mixing]
    inputs = {name: gather_rows(one_batch(values)).cpu()[present][order] for name, values in found.items()}
    return Images(inputs, labels[rows][mixing])


def _selected(data: Any, rows: Tensor) -> Any:
    """Only what is read needs to be decoded; the data itself where rows cannot be chosen."""
    if isinstance(data, Dataset):
        return data.select(rows.tolist())
    if isinstance(data, list | tuple):
        return [data[row] for row in rows.tolist()]
    return data
