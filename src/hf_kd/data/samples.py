"""Labelled model inputs that can be read in any order, again and again: what training reads, where erasing reads once.

Inputs are kept in memory where they fit. Where they do not, images are decoded for each batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from hf_kd.errors import InvalidValueError, LabelMismatchError

from .distributed import memory_room, process_state
from .image_source import ImageSource
from .loader import BatchLoader, Collate, RowDataset, default_num_workers, make_loader
from .preprocess import ImagePreprocessor
from .progress import counted

CACHE_BYTES = 4 << 30
"""How large the inputs of one set may be at most to be kept in memory."""

CACHE_SHARE = 0.25
"""Share of the free memory that they may be at most: while batches are put together, they take twice as much."""

Fetch = Callable[[Sequence[list[int]]], Iterator[dict[str, Tensor]]]
"""Lists of rows -> for each list the inputs of its rows."""


@dataclass(frozen=True)
class Batch:
    """Inputs by the model's names and class ids of the model [b]."""

    inputs: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Batch:
        """On another device."""
        inputs = {name: value.to(device, non_blocking=True) for name, value in self.inputs.items()}
        return Batch(inputs, self.labels.to(device))


class Samples:
    """n labelled samples with random access. `labels` [n] are class ids of the model, on the CPU."""

    def __init__(
        self,
        labels: Tensor,
        cached: dict[str, Tensor] | None = None,
        fetch: Fetch | None = None,
    ) -> None:
        self.labels = labels
        self._cached, self._fetch = cached, fetch
        self._rows = torch.arange(len(labels))

    @classmethod
    def read(
        cls,
        described: ImageSource,
        preprocessor: ImagePreprocessor | None,
        mapping: Callable[[Tensor], Tensor] | None = None,
        *,
        batch_size: int = 64,
        num_workers: int | None = None,
        cache_bytes: int | None = None,
        progress: bool = False,
        known: Mapping[int, int] | None = None,
    ) -> Samples:
        """Read a set that `inspect_images` has looked at; `mapping` puts its labels into the model's ids.

        Raises LabelMismatchError for a set without labels and with a sample without one, and ValueError for a stream or
        DataLoader that is larger than `cache_bytes` (by default `CACHE_BYTES`, or `CACHE_SHARE` of the free memory where
        that is less): those cannot be read in another order. With `known` no labels are needed: class ids by those labels of
        the set that are known, -1 for all others.
        """
        if cache_bytes is None:
            cache_bytes = min(CACHE_BYTES, memory_room(CACHE_SHARE, process_state().num_processes))
        if known is None and not described.has_labels:
            raise LabelMismatchError(
                "This method needs the labels of its images, and there are none. Name their column with label_column=..."
            )
        described = replace(described, labels_needed=known is None)
        parts: dict[str, list[Tensor]] = {}
        labels: list[Tensor] = []
        size = 0
        loader = make_loader(described, preprocessor, batch_size=batch_size, num_workers=num_workers)
        with counted(loader, "reading images", "batch", progress) as batches:
            for batch in batches:
                for name, value in batch["inputs"].items():
                    if isinstance(value, Tensor):
                        parts.setdefault(name, []).append(value)
                        size += value.nbytes
                labels.append(batch["labels"])
                if size > cache_bytes:
                    break
        found = torch.cat(labels)
        if size <= cache_bytes:
            cached = {name: one_batch(values) for name, values in parts.items()}
            return cls(_class_ids(found, mapping, known), cached)
        if described.kind not in ("dataset", "rows"):
            raise InvalidValueError(
                f"This {described.kind} holds more than {cache_bytes >> 20} MiB of inputs, as many as are kept in memory "
                "here, and training has to read them in random order. Pass a datasets.Dataset or a list, which can be read "
                "row by row."
            )
        rows, collate = RowDataset(described), Collate(None if described.is_prepared else preprocessor)
        return cls(
            _class_ids(rows.labels(), mapping, known), fetch=lambda order: _fetched(rows, order, collate, num_workers)
        )

    def __len__(self) -> int:
        return len(self._rows)

    def subset(self, rows: Tensor) -> Samples:
        """The samples at positions `rows` [m] (or where a mask [n] holds); shares the memory."""
        part = Samples.__new__(Samples)
        part.labels, part._cached, part._fetch = self.labels[rows], self._cached, self._fetch
        part._rows = self._rows[rows]
        return part

    def relabelled(self, labels: Tensor) -> Samples:
        """The same samples with class ids [n] from elsewhere; shares the memory."""
        other = self.subset(torch.arange(len(self)))
        other.labels = labels.cpu()
        return other

    def shuffled(self) -> Tensor:
        """A random order of all positions [n], from torch's global generator (the same in every process)."""
        return torch.randperm(len(self))

    def batches(
        self, batch_size: int, order: Tensor | None = None, *, part: int = 0, parts: int = 1
    ) -> Iterator[Batch]:
        """Batches of the samples at positions `order` (by default all, as they stand).

        part, parts: of each batch only every `parts`-th sample from `part` on, as one of several processes; a batch with
        fewer samples than processes is left out by all of them.
        """
        order = torch.arange(len(self)) if order is None else order
        chunks = consecutive(order, batch_size, parts)
        return self.gathered([chunk[part::parts] for chunk in chunks if len(chunk) >= parts])

    def gathered(self, chunks: Sequence[Tensor]) -> Iterator[Batch]:
        """For each of `chunks` the batch of the samples at its positions [b]."""
        if self._cached is not None:
            for chunk in chunks:
                rows = self._rows[chunk]
                yield Batch({name: value[rows] for name, value in self._cached.items()}, self.labels[chunk])
            return
        fetch = cast(Fetch, self._fetch)  # what is not kept in memory is fetched
        fetched = fetch([self._rows[chunk].tolist() for chunk in chunks])
        for chunk, inputs in zip(chunks, fetched, strict=True):
            yield Batch(inputs, self.labels[chunk])


def one_batch(parts: Sequence[Tensor]) -> Tensor:
    """Batches [b, ...] of one input as one.

    Raises:
        InvalidValueError: For images of different sizes.
    """
    shapes = sorted({tuple(part.shape[1:]) for part in parts})
    if len(shapes) > 1:
        raise InvalidValueError(
            f"The images have different sizes as the model takes them, {shapes[0]} and {shapes[-1]}, and here they have to "
            "go into batches: let the image processor resize or crop to one size, or give inputs of one size."
        )
    return torch.cat(list(parts))


def of_rows(inputs: Mapping[str, Any], rows: Any) -> dict[str, Any]:
    """Inputs of some samples of a batch; what is said of all samples at once stays."""
    return {name: value[rows] if isinstance(value, Tensor) and value.ndim else value for name, value in inputs.items()}


def in_dtype(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs whose floats have the dtype of the model's weights; as they are where those are no floats."""
    dtype = next((parameter.dtype for parameter in model.parameters()), None)
    if dtype is None or not dtype.is_floating_point:
        return dict(inputs)
    floats = {n for n, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point()}
    return {name: value.to(dtype) if name in floats else value for name, value in inputs.items()}


def consecutive(order: Tensor, batch_size: int, parts: int = 1) -> list[Tensor]:
    """Positions [n] in batches, as they stand.

    Where the last would leave one of `parts` processes a single sample or none, it joins the one before: BatchNorm cannot
    train on a single value.
    """
    chunks = list(order.split(batch_size))
    if len(chunks) > 1 and len(chunks[-1]) < min(2 * parts, batch_size):
        chunks[-2:] = [torch.cat(chunks[-2:])]
    return chunks


def _fetched(
    rows: RowDataset, order: Sequence[list[int]], collate: Collate, num_workers: int | None
) -> Iterator[dict[str, Tensor]]:
    # a generator of its own: reading from disk draws nothing from the one that decides about orders; of another seed for
    # another order, so that what augments in workers is new in each epoch
    workers = default_num_workers() if num_workers is None else num_workers
    generator = torch.Generator().manual_seed(zlib.crc32(repr(order).encode()))
    loader = BatchLoader(rows, batch_sampler=order, collate_fn=collate, num_workers=workers, generator=generator)
    for batch in loader:
        yield {name: value for name, value in batch["inputs"].items() if isinstance(value, Tensor)}


def _class_ids(labels: Tensor, mapping: Callable[[Tensor], Tensor] | None, known: Mapping[int, int] | None) -> Tensor:
    if known is not None:
        found = torch.full_like(labels, -1)
        for own, class_id in known.items():
            found[labels == own] = class_id
        return found
    missing = int((labels < 0).sum())
    if missing:
        raise LabelMismatchError(
            f"{missing:,} of {len(labels):,} samples have no label; training needs one for every image. Name the label "
            "column with label_column=..., or filter these samples out."
        )
    return labels if mapping is None else mapping(labels)
