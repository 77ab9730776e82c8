"""Which files are read as which split: said where that is not plain from one file of that name, and kept for records."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hf_kd.errors import InvalidValueError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)

SPLIT_WORD = re.compile(
    r"(^|[\W_])(train|training|test|testing|val|valid|validation|dev|eval|evaluation|holdout)([\W_\d]|$)", re.I
)
"""What the name of a folder or file of a split has in it."""

_SAME_SPLITS = ({"train", "training"}, {"test", "testing"}, {"val", "valid", "validation"}, {"eval", "evaluation"})

_SHARD = re.compile(r"-(\d{5})-of-(\d{5}).*$")

MOST_NAMES = 3
"""Names that a record lists; of more files the first and the last."""

_Data = TypeVar("_Data", bound="Dataset | IterableDataset")


def listed(files: Sequence[Path]) -> str:
    """The first names of some files, and how many more there are."""
    names = [file.name for file in files[:3]]
    return ", ".join(names) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def choose_split(available: list[str], split: str | None, spec: str | os.PathLike[str]) -> str:
    """`split`, or the only one there is.

    Raises:
        InvalidValueError: For one that is not there, and for none where there are several.
    """
    listing = ", ".join(map(repr, available))
    if split is None:
        if len(available) == 1:
            return available[0]
        raise InvalidValueError(f"{os.fspath(spec)!r} has several splits: {listing}. Choose one: split=...")
    if split not in available:
        near = did_you_mean(split, available)
        if len(available) == 1:
            raise InvalidValueError(
                f"{os.fspath(spec)!r} has no split {split!r}.{near} There is only {listing}. Choose it: "
                f"split={available[0]!r}, or lay the other beside it: as folders SPLIT/CLASS/IMAGE, or as a file for each."
            )
        raise InvalidValueError(
            f"{os.fspath(spec)!r} has no split {split!r}.{near} There are: {listing}. Choose one: split=..."
        )
    return split


def files_of_split(file: Path, split: str | None) -> list[Path]:
    """The files of a split where one file is named: that file, or those of another split beside it.

    A file is the split that its name says, and train where it says none. Of a file for training the other splits are looked
    for beside it: of train.parquet, pets_train.parquet and pets.parquet the split test in test.parquet, pets_test.parquet.

    Args:
        file: A parquet file that is there.
        split: None for what the file itself is.

    Raises:
        InvalidValueError: Where the file is another split, and not just one is found beside it.
    """
    own = _SHARD.sub("", file.stem)
    said = SPLIT_WORD.search(own)
    word = said[2].lower() if said else "train"
    if split is None or split == own or _same_split(split, word):
        return [file]
    names = [f"{own[: said.start(2)]}{split}{own[said.end(2) :]}"] if said else [f"{own}_{split}", f"{own}-{split}"]
    names = list(dict.fromkeys([*names, split]))
    if not _same_split(word, "train"):
        raise InvalidValueError(
            f"{os.fspath(file)!r} is the split {word!r}, as its name says, and {split!r} was asked for."
            f"{did_you_mean(split, [word])} Name the file of {split!r}, or choose this one: split={word!r}."
        )
    found: dict[str, list[Path]] = {}
    for other in sorted(file.parent.glob("*.parquet")):
        if _SHARD.sub("", other.stem) in names:
            found.setdefault(_SHARD.sub("", other.stem), []).append(other)
    if len(found) != 1:
        looked = " or ".join(f"{name}.parquet" for name in names)
        there = (
            f"several could be: {listed([part[0] for part in found.values()])}" if found else f"there is no {looked}"
        )
        raise InvalidValueError(
            f"{os.fspath(file)!r} is one file, read as split {word!r}; of split {split!r} {there} beside it."
            f"{did_you_mean(split, [word])} Name a folder with a file for each split, called train.parquet and "
            f"{split}.parquet, or choose another: split=..."
        )
    files = next(iter(found.values()))
    logger.warning("Split %r is read from %s, beside %s.", split, listed(files), file.name)
    return files


def _same_split(one: str, other: str) -> bool:
    """train and training, val and validation; but not train and trainval."""
    pair = {one.lower(), other.lower()}
    return len(pair) == 1 or any(pair <= names for names in _SAME_SPLITS)


def _is_sharded(files: Sequence[Path]) -> bool:
    """Whether files differ in their numbers alone, and none is missing of as many as they say there are."""
    counts = {number[2] for file in files if (number := _SHARD.search(file.stem))}
    return len({re.sub(r"\d+", "", _SHARD.sub("", file.stem)) for file in files}) == 1 and all(
        int(count) == len(files) for count in counts
    )


def with_files(dataset: _Data, root: Path, files: Sequence[Path | str]) -> _Data:
    """The data set, which says from now on which files below `root` it was read from, as do subsets made of it."""
    names = [Path(os.path.relpath(file, root)).as_posix() for file in files]
    if names:  # of its `info`, the one place that is carried along; `datasets` leaves it empty for local files
        dataset.info.download_checksums = {name: {"num_bytes": None, "checksum": None} for name in names}
    return dataset


def files_of(data: Any) -> dict[str, Any] | None:
    """Which files `load_source` read data from: their "count" and "names", of many the first and the last.

    Names are relative to the folder that was named. None where it is not known, and for folders of images: their names
    are those of classes and pictures.
    """
    names = sorted(getattr(getattr(data, "info", None), "download_checksums", None) or {})
    if not names or any(os.path.isabs(name) or "://" in name for name in names):
        return None
    return {"count": len(names), "names": names if len(names) <= MOST_NAMES else [names[0], names[-1]]}


def log_read_files(
    root: Path, found: Mapping[Any, Sequence[Any]] | None, split: str, there: Sequence[Path]
) -> list[Path]:
    """Log what is read as a split, where that is several files that are not shards of one, and what is read as none.

    Args:
        root: The folder.
        found: Of every split the files that `datasets` reads.
        split: The one that is read.
        there: Files in the folder that hold rows.

    Returns:
        Those of them that are read.
    """
    by_split = {str(name): {os.path.realpath(str(file)) for file in files} for name, files in (found or {}).items()}
    read = [file for file in there if os.path.realpath(file) in by_split.get(split, set())]
    kinds = {file.suffix.lower() for file in read}
    any_split = set().union(*by_split.values())
    left = [file for file in there if file.suffix.lower() in kinds and os.path.realpath(file) not in any_split]
    if not left and (len(read) < 2 or _is_sharded(read)):
        return read
    told = f"{os.fspath(root)!r}: read as split {split!r}: {listed(read)}."
    if left:
        told += f" Not read, as no split: {listed(left)}. Name that file to read it."
    elif len(read) > 1:
        told += f" To read one alone, name it: {os.fspath(read[0])!r}."
    logger.warning("%s", told)
    return read
