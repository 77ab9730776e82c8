"""Forget sets as batches for a model: {"inputs": {...}, "labels": int64 [b], "rows": int64 [b]}.

Every process gets its share, and the shares together hold each sample exactly once: nothing is padded or repeated, so
processes may see different numbers of batches, also none. Decoding and preprocessing happen in DataLoader workers.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from hf_kd.errors import HfKdError, InvalidTypeError, InvalidValueError, UnreadableImageError, shortened

from .draw import stored_labels
from .image_source import LABEL_KEYS, ImageSource
from .images import LargeImage, small_to_rgb
from .labels import NamedIds
from .preprocess import ImagePreprocessor, with_float_pixels

DEFAULT_BATCH_SIZE = 64

NO_LABEL = -1
"""The label of a sample whose class is not known."""

Row = tuple[int, Any, int]
"""Row number, RGB PIL image, a large one undecoded (or the model's inputs by name), label or NO_LABEL."""


class RowDataset(Dataset):
    """The rows of a "dataset" or "rows" forget set that process `rank` of `world_size` reads: a contiguous part."""

    def __init__(self, forget_set: ImageSource, rank: int = 0, world_size: int = 1) -> None:
        _check_rank(rank, world_size)
        self.reader = _RowReader(forget_set)
        self.described, self.source = forget_set, forget_set.source
        self.is_columnar = forget_set.kind == "dataset"
        total = len(self.source)
        self.start, self.stop = total * rank // world_size, total * (rank + 1) // world_size

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self):
            raise IndexError(f"Row {index} of {len(self)}.")
        row = self.start + index
        return self.reader(self._number(row), self.source[row])

    def _number(self, row: int) -> int:
        """The row's number in the data, of which these rows may be drawn."""
        return row if self.described.rows is None else self.described.rows[row]

    def labels(self) -> Tensor:
        """Labels [n] of the rows that this process reads, without their images."""
        stored = stored_labels(self.described)[self.start : self.stop]
        return torch.tensor([self.reader.label(self._number(self.start + n), own) for n, own in enumerate(stored)])

    def __getitems__(self, indices: Sequence[int]) -> list[Row | HfKdError]:
        """A whole batch in one look-up: DataLoader calls this where it exists. For a row that cannot be read, its error."""
        if not self.is_columnar:
            return [
                self.reader.or_error(self._number(row), self.source[row]) for row in map(self.start.__add__, indices)
            ]
        rows = [self.start + index for index in indices]
        columns = self.source[rows]
        values = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        return [self.reader.or_error(self._number(row), value) for row, value in zip(rows, values, strict=True)]


class StreamDataset(IterableDataset):
    """The rows of a "stream" forget set that process `rank` of `world_size` reads.

    Shards are shared out among processes where their number allows, single rows otherwise (`split_dataset_by_node`),
    and shards among DataLoader workers. Row numbers are positions in the stream where one process and one worker read
    it all; with several they are unique, and tell position p in part i of n as p * n + i.
    """

    def __init__(self, forget_set: ImageSource, rank: int = 0, world_size: int = 1) -> None:
        super().__init__()
        _check_rank(rank, world_size)
        self.reader = _RowReader(forget_set)
        self.rank, self.world_size = rank, world_size
        whole = forget_set.source
        self.source = whole if world_size == 1 else split_dataset_by_node(whole, rank=rank, world_size=world_size)
        by_shards = whole.num_shards % world_size == 0
        self.most_workers = whole.num_shards // world_size if by_shards else 1
        """More would have nothing to do; and where rows are shared out, processes have to agree on it."""

    def __iter__(self) -> Iterator[Row | HfKdError]:
        worker = get_worker_info()
        workers, part = (1, 0) if worker is None else (worker.num_workers, worker.id)
        parts, part = self.world_size * workers, self.rank * workers + part
        for position, row in enumerate(self.source):
            yield self.reader.or_error(position * parts + part, row)


class LoaderShare:
    """The batches of a user's DataLoader that process `rank` of `world_size` takes: every `world_size`-th.

    All processes walk over all batches, so the loader has to give them in the same order everywhere: no shuffling, or
    with the same seed.
    """

    def __init__(self, forget_set: ImageSource, rank: int = 0, world_size: int = 1) -> None:
        _check_rank(rank, world_size)
        self.loader: DataLoader = forget_set.source
        self.label_column = forget_set.label_column
        self.ids = _LabelIds(forget_set)
        self.length = forget_set.length
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        if self.length is None:
            raise InvalidTypeError("The number of batches of this DataLoader is not known beforehand.")
        return len(range(self.rank, self.length, self.world_size))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        row = 0
        for number, batch in enumerate(self.loader):
            inputs = {key: value for key, value in batch.items() if key != self.label_column and key not in LABEL_KEYS}
            size = _batch_size(inputs)
            if number % self.world_size == self.rank:
                labels = _batch_labels(batch.get(self.label_column) if self.label_column else None, size, self.ids)
                yield {"inputs": with_float_pixels(inputs), "labels": labels, "rows": torch.arange(row, row + size)}
            row += size


def make_loader(
    forget_set: ImageSource,
    preprocessor: ImagePreprocessor | None = None,
    batch_size: int | None = None,
    num_workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader | LoaderShare:
    """Batches {"inputs": tensors by the model's names, "labels": int64 [b], "rows": int64 [b]} for one process.

    Labels are those of the data set, -1 where there are none.

    Args:
        forget_set: What `inspect_images` says of it.
        preprocessor: Needed unless the forget set brings the model's inputs.
        batch_size: 64 by default; without effect on a forget set that is a DataLoader.
        num_workers: 0 by default, or min(8, number of CPUs) where there is a GPU to be kept busy; without effect on a
            DataLoader.
        rank: Number of this process, from 0.
        world_size: How many processes there are.

    Raises:
        InvalidValueError: For a batch size, number of workers or rank out of range and for a missing preprocessor.
        UnreadableImageError: While iterating, naming the row.
    """
    if forget_set.kind == "loader":
        return LoaderShare(forget_set, rank, world_size)
    batch_size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
    num_workers = default_num_workers() if num_workers is None else num_workers
    if batch_size < 1:
        raise InvalidValueError(f"batch_size has to be at least 1, got {batch_size}.")
    if num_workers < 0:
        raise InvalidValueError(f"num_workers has to be at least 0, got {num_workers}.")
    if preprocessor is None and not forget_set.is_prepared:
        raise InvalidValueError(
            "This set holds images, so an ImagePreprocessor is needed to make model inputs of them."
        )
    if forget_set.kind == "stream":
        rows = StreamDataset(forget_set, rank, world_size)
        num_workers = min(num_workers, rows.most_workers)
    else:
        rows = RowDataset(forget_set, rank, world_size)
    return BatchLoader(
        rows,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=Collate(None if forget_set.is_prepared else preprocessor),
        pin_memory=torch.cuda.is_available(),
    )


def default_num_workers() -> int:
    """0 without a GPU, where workers would only take cores from the model; else up to 8, one a CPU."""
    return min(8, os.cpu_count() or 1) if torch.cuda.is_available() else 0


class BatchLoader(DataLoader):
    """A DataLoader that raises the error of a row or batch here; a worker would send its traceback as text."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in super().__iter__():
            if isinstance(batch, HfKdError):
                raise batch
            yield batch


class Collate:
    """Rows (row number, image or inputs, label) -> one batch; `preprocessor` None: the rows hold inputs.

    The error of a row or of the batch, where there is one, instead of it. Large images are decoded and preprocessed one by
    one, unless what a processor makes of one depends on the others of its batch (as where it pads them to one size).
    """

    def __init__(self, preprocessor: ImagePreprocessor | None) -> None:
        self.preprocessor = preprocessor
        self._one_by_one = True

    def __call__(self, rows: Sequence[Row | HfKdError]) -> dict[str, Any] | HfKdError:
        error = next((row for row in rows if isinstance(row, HfKdError)), None)
        if error is not None:
            return error
        numbers, values, labels = zip(*rows, strict=True)
        try:
            inputs = with_float_pixels(self._inputs(values, numbers))
        except HfKdError as error:
            return error
        return {
            "inputs": inputs,
            "labels": torch.tensor(labels, dtype=torch.int64),
            "rows": torch.tensor(numbers, dtype=torch.int64),
        }

    def _inputs(self, values: Sequence[Any], numbers: Sequence[int]) -> dict[str, Any]:
        if self.preprocessor is None:
            return default_collate(list(values))
        places = range(len(values))
        large = [place for place in places if isinstance(values[place], LargeImage)]
        if len(large) > 1 and self._one_by_one:
            groups = [[place] for place in large]
            groups += [small] if (small := sorted({*places}.difference(large))) else []
            parts = [_preprocessed(self.preprocessor, values, numbers, group) for group in groups]
            if (batch := _joined(parts, groups)) is not None:
                return batch
            self._one_by_one = False
        return _preprocessed(self.preprocessor, values, numbers, places)


def _preprocessed(
    preprocessor: ImagePreprocessor, values: Sequence[Any], numbers: Sequence[int], places: Sequence[int]
) -> dict[str, Any]:
    """The values at some places as one batch."""
    images = [values[place] for place in places]
    images = [image.decoded() if isinstance(image, LargeImage) else image for image in images]
    try:
        return preprocessor(images)
    except UnreadableImageError as error:  # which knows the place among them
        row = numbers[places[error.row]]
        raise UnreadableImageError(f"Row {row}: {error}", row) from error


def _joined(parts: Sequence[dict[str, Any]], groups: Sequence[Sequence[int]]) -> dict[str, Any] | None:
    """Batches of some places each as one, in the order of the places; None where they are of different shapes."""
    kinds = [{name: (value.dtype, value.shape[1:]) for name, value in part.items()} for part in parts]
    if any(kind != kinds[0] for kind in kinds):
        return None
    order = torch.tensor([place for group in groups for place in group]).argsort()
    return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}


class _RowReader:
    """One row of the source -> (row number, RGB image or inputs, label)."""

    def __init__(self, forget_set: ImageSource) -> None:
        self.image_column = forget_set.image_column
        self.label_column = forget_set.label_column
        self.is_prepared = forget_set.is_prepared
        self.grey_mode = forget_set.grey_mode
        self.ids = _LabelIds(forget_set)

    def __call__(self, number: int, row: Any) -> Row:
        label = NO_LABEL if self.label_column is None else self.label(number, row[self.label_column])
        if not self.is_prepared:
            image = row if self.image_column is None else row[self.image_column]
            return number, small_to_rgb(image, number, self.grey_mode), label
        if isinstance(row, Mapping):
            tensors = {key: value for key, value in row.items() if isinstance(value, Tensor)}
            return number, {k: v for k, v in tensors.items() if k != self.label_column and k not in LABEL_KEYS}, label
        return number, {"pixel_values": row if self.image_column is None else row[self.image_column]}, label

    def or_error(self, number: int, row: Any) -> Row | HfKdError:
        try:
            return self(number, row)
        except HfKdError as error:
            return error

    def label(self, number: int, value: Any) -> int:
        """The id that a stored label stands for."""
        if value is None:
            return NO_LABEL
        if isinstance(value, str):
            return self.ids(value, f"The label of row {number}")
        if isinstance(value, (np.ndarray, Tensor)):
            value = value.item() if value.ndim == 0 else value
        if not isinstance(value, (int, np.integer)):
            raise InvalidValueError(f"The label of row {number} has to be one integer, got {shortened(value)}.")
        return int(value)


def _batch_size(inputs: Mapping[str, Any]) -> int:
    pixels = inputs.get("pixel_values")
    tensors = (
        [pixels] if isinstance(pixels, Tensor) else [v for v in inputs.values() if isinstance(v, Tensor) and v.ndim]
    )
    if not tensors:
        raise InvalidValueError(
            f"A batch of the forget DataLoader holds no tensor, only {', '.join(map(repr, inputs)) or 'nothing'}. Let the "
            "collate_fn give the model's inputs, such as pixel_values."
        )
    return tensors[0].shape[0]


class _LabelIds:
    """The id that a text stands for: of a label name that is one class alone."""

    def __init__(self, forget_set: ImageSource) -> None:
        names = forget_set.label_names or ()
        counts = Counter(names)
        self.ids = {name: number for number, name in enumerate(names) if counts[name] == 1}
        self.called = None if forget_set.labels_needed else NamedIds(names)

    def __call__(self, text: str, what: str) -> int:
        if text in self.ids:
            return self.ids[text]
        # a class to forget has to be known by its synonyms too, where no label is refused
        called = None if self.called is None else self.called([text, *text.split(",")])
        if called is None or len(called) > 1:
            raise InvalidValueError(
                f"{what} is {shortened(text)}, and the labels are {shortened(list(self.ids), 200)}: name all in order, "
                "labels=['cat', ...]."
            )
        return called[0] if called else NO_LABEL


def _batch_labels(labels: Any, size: int, ids: _LabelIds) -> Tensor:
    if labels is None:
        return torch.full((size,), NO_LABEL, dtype=torch.int64)
    if isinstance(labels, (list, tuple, np.ndarray)) and any(isinstance(label, str) for label in labels):
        labels = [ids(label, "A label of a batch") if isinstance(label, str) else label for label in labels]
    try:
        labels = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidValueError(
            f"The labels of a batch have to be {size} integers, one a sample, got {shortened(labels)} ({error})."
        ) from error
    if labels.shape != (size,) or labels.is_floating_point() or labels.is_complex():
        raise InvalidValueError(
            f"The labels of a batch have to be {size} integers, one a sample, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
    return labels.to(torch.int64)


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise InvalidValueError(f"rank has to lie in [0, world_size), got rank {rank} of {world_size}.")
