"""Fewer images of a data set, drawn by a fixed seed with every class in its share: for a first look, not for a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.utils.data import Subset

from hf_kd.errors import InvalidValueError

from .image_source import ImageSource

SEED = 0


@dataclass(frozen=True)
class Limited:
    """A set of which at most `limit` samples are read, whatever other limit there is, drawn without regard to classes."""

    data: Any
    limit: int

    def drawn(self, images: ImageSource) -> ImageSource:
        """What is drawn of its data, which may have been reduced before."""
        total = len(images.source)
        rows = np.random.default_rng(SEED).permutation(total)[: self.limit]
        return images if self.limit >= total else replace(with_rows(images, rows), drawn_of=total)


def drawn(images: ImageSource, limit: int | None) -> ImageSource:
    """The data with at most `limit` of its samples, in their order; every class in its share where labels are known.

    Args:
        images: As `inspect_images` describes it.
        limit: None, or as many as there are, takes all.

    Returns:
        The description of what was drawn; its `drawn_of` says how many there were.

    Raises:
        InvalidValueError: For a stream or a loader, whose rows cannot be chosen, and a limit below the number of classes.

    Example:
        >>> from hf_kd.data.image_source import inspect_images
        >>> pairs = [(np.zeros((4, 4, 3), np.uint8), label) for label in (0, 0, 0, 0, 1, 1)]
        >>> part = drawn(inspect_images(pairs), 3)
        >>> [label for _, label in part.source], part.drawn_of
        ([0, 0, 1], 6)
    """
    if limit is None:
        return images
    if images.kind not in ("dataset", "rows"):
        raise InvalidValueError(
            f"limit={limit} draws from the rows of the data, and a {images.kind} has none to choose from. Take fewer "
            "samples of it yourself (IterableDataset.take), or pass a datasets.Dataset or a list."
        )
    total = len(images.source)
    if limit >= total:
        return images
    return replace(with_rows(images, stratified_rows(stored_labels(images), limit)), drawn_of=total)


def with_rows(images: ImageSource, rows: np.ndarray) -> ImageSource:
    """The data with some of its rows alone; whatever their number is in the whole is still known."""
    source = images.source.select(rows) if images.kind == "dataset" else Subset(images.source, rows.tolist())
    numbers = rows if images.rows is None else np.asarray(images.rows)[rows]
    return replace(images, source=source, length=len(rows), rows=tuple(numbers.tolist()))


def stratified_rows(labels: Sequence[Any], limit: int, seed: int = SEED, least: int = 1) -> np.ndarray:
    """Numbers of `limit` rows, ascending: of every class its share, rounded, and at least `least`, where it has as many.

    Args:
        labels: Of all rows.
        limit: How many; below the number of rows.
        seed: Of the draw.
        least: Of each class.

    Raises:
        InvalidValueError: For fewer than `least` of each class.

    Example:
        >>> rows = stratified_rows([0] * 90 + [1] * 10, 10)
        >>> len(rows), int((rows >= 90).sum())
        (10, 1)
    """
    classes, members = np.unique([str(label) for label in labels], return_inverse=True)
    sizes = np.bincount(members)
    fewest = np.minimum(sizes, least)
    if limit < fewest.sum():
        each = "one image" if least == 1 else f"{least} images"
        raise InvalidValueError(
            f"limit={limit} is less than {each} of each of the {len(classes)} classes; give at least {fewest.sum()}."
        )
    counts = np.maximum(fewest, np.floor(sizes * (limit / len(members)))).astype(int)
    while counts.sum() != limit:  # by the largest remainder; classes that have the fewest already give none
        gap = sizes * (limit / len(members)) - counts
        if counts.sum() < limit:
            counts[np.argmax(np.where(counts < sizes, gap, -np.inf))] += 1
        else:
            counts[np.argmin(np.where(counts > fewest, gap, np.inf))] -= 1
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(members == c))[:count] for c, count in enumerate(counts)]
    return np.sort(np.concatenate(chosen))


def stored_labels(images: ImageSource) -> Sequence[Any]:
    """The label of every row, as the data has it, without its image; the same everywhere where there are none."""
    if images.label_column is None:
        return [0] * len(images.source)
    if images.kind == "dataset":
        return images.source.with_format(None)[images.label_column][:]  # at once: a lazy column is read row by row
    return [images.source[row][images.label_column] for row in range(len(images.source))]
