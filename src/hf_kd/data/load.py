"""Opening what a command line can name: a Hub data set, or one of several things on disk.

Only data is read. `datasets` refuses repositories that bring their own loading script, and so nothing here runs
foreign code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    get_dataset_split_names,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from PIL import Image

from hf_kd.errors import InvalidValueError, MissingFileError, UnreachableError

_IMAGE_SUFFIXES = frozenset(Image.registered_extensions())
_SHARD = re.compile(r"^(?P<split>.+?)-\d{5}-of-\d{5}$")


def load_source(
    spec: str | os.PathLike[str],
    split: str | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    streaming: bool = False,
    config_name: str | None = None,
) -> Dataset | IterableDataset:
    """One split of the data set that `spec` names.

    On disk: what `save_to_disk` wrote; a .parquet file; a folder of them, also in a `data` subfolder, where the split
    is the file's name before any "-00000-of-00002"; an image folder with one subfolder a class, with or without split
    folders above them. A path that exists is never looked for on the Hub; everything else is a Hub id.

    `split` may be left out where there is only one. `token`, `revision` and `config_name` are for the Hub.

    Raises FileNotFoundError for something that looks like a path and does not exist, ValueError listing the splits if
    `split` is not among them or a choice is needed, ValueError for a folder without data and ConnectionError when the
    Hub cannot be reached.
    """
    path = Path(spec).expanduser()
    if not path.exists():
        if _looks_like_path(os.fspath(spec)):
            raise MissingFileError(
                f"There is no file or folder {os.fspath(spec)!r}. (A Hub data set is named USER/NAME.)"
            )
        return _from_hub(os.fspath(spec), split, token, revision, streaming, config_name)
    if path.is_file():
        if path.suffix != ".parquet":
            raise InvalidValueError(
                f"{os.fspath(spec)!r} is no .parquet file. Give one, a folder of them, or an image folder."
            )
        name = _split_of(path)
        return _one_of({name: [path]}, split or name, spec, streaming)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _from_saved(path, split, streaming)
    files = _parquet_files(path)
    if files:
        return _one_of(files, split, spec, streaming)
    return _from_image_folder(path, split, streaming)


def filter_by_labels(dataset: Dataset, label_column: str, ids: Iterable[int]) -> Dataset:
    """The rows of `dataset` whose label is one of `ids`, in their order. Reads the labels and nothing else.

    Raises ValueError when the column does not exist or holds no integers.
    """
    if label_column not in dataset.column_names:
        raise InvalidValueError(
            f"The data set has no column {label_column!r}; it has {', '.join(map(repr, dataset.column_names))}."
        )
    labels = np.asarray(dataset.select_columns([label_column]).with_format("numpy")[label_column][:])
    if labels.dtype.kind not in "iub":
        raise InvalidValueError(
            f"Column {label_column!r} holds {labels.dtype} values and not integer ids. For strings call "
            f"dataset.class_encode_column({label_column!r}) first."
        )
    return dataset.select(np.flatnonzero(np.isin(labels, list(ids))))


def _from_hub(
    spec: str,
    split: str | None,
    token: str | bool | None,
    revision: str | None,
    streaming: bool,
    config_name: str | None,
) -> Dataset | IterableDataset:
    options: dict[str, Any] = {"token": token, "revision": revision}
    try:
        if split is None:
            split = _choose(get_dataset_split_names(spec, config_name, **options), None, spec)
        return load_dataset(spec, config_name, split=split, streaming=streaming, **options)
    except (DatasetNotFoundError, HFValidationError) as error:
        raise InvalidValueError(
            f"{spec!r} is neither a file or folder here nor a data set on the Hub that can be read with these "
            f"credentials: "
            f"{error} Check the spelling; a private or gated one needs a token (`hf auth login`)."
        ) from error
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise InvalidValueError(
            f"{spec!r} can only be read by running its own code, which is not done. {error}"
        ) from error
    except (ConnectionError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        raise UnreachableError(
            f"The data set {spec!r} could not be fetched: {error} Without a network give a local folder, or one that "
            f"is "
            "in the cache."
        ) from error


def _from_saved(path: Path, split: str | None, streaming: bool) -> Dataset | IterableDataset:
    saved = load_from_disk(os.fspath(path))
    if isinstance(saved, DatasetDict):
        saved = saved[_choose(list(saved), split, path)]
    elif split is not None and saved.split is not None and str(saved.split) != split:
        raise InvalidValueError(f"{os.fspath(path)!r} holds the split {str(saved.split)!r} only, not {split!r}.")
    return saved.to_iterable_dataset() if streaming else saved


def _parquet_files(path: Path) -> dict[str, list[Path]]:
    """Files by split, from the folder or else its `data` subfolder."""
    for folder in (path, path / "data"):
        files: dict[str, list[Path]] = {}
        for file in sorted(folder.glob("*.parquet")):
            files.setdefault(_split_of(file), []).append(file)
        if files:
            return files
    return {}


def _split_of(file: Path) -> str:
    shard = _SHARD.match(file.stem)
    return shard["split"] if shard else file.stem


def _one_of(
    files: Mapping[str, list[Path]], split: str | None, spec: str | os.PathLike[str], streaming: bool
) -> Dataset | IterableDataset:
    split = _choose(list(files), split, spec)
    # Named "train" for `datasets`, which does not take every file name for a split
    names = {"train": [escape(os.fspath(file)) for file in files[split]]}
    return load_dataset("parquet", data_files=names, split="train", streaming=streaming)


def _from_image_folder(path: Path, split: str | None, streaming: bool) -> Dataset | IterableDataset:
    """An image folder, its splits told by depth: `datasets` guesses them from words like "test" in any name on the
    way."""
    if any(any(path.glob(f"{depth}metadata.{kind}")) for depth in ("", "*/") for kind in ("csv", "jsonl", "parquet")):
        # Labels and file names are in there, and `datasets` knows how
        folders = load_dataset("imagefolder", data_dir=os.fspath(path), streaming=streaming)
        return folders[_choose(list(folders), split, path)]
    root, with_labels = path, True
    if _has_images(path):
        with_labels = False
    elif not _class_folders(path):
        splits = {folder.name: folder for folder in _subfolders(path) if _has_images(folder) or _class_folders(folder)}
        if not splits:
            raise InvalidValueError(
                f"{os.fspath(path)!r} holds no data set: neither .parquet files, nor what save_to_disk writes, nor "
                f"folders of "
                "images (one a class, CLASS/IMAGE or SPLIT/CLASS/IMAGE)."
            )
        root = splits[_choose(list(splits), split, path)]
        with_labels = not _has_images(root)
    elif split is not None:
        _choose(["train"], split, path)
    pattern = os.path.join(escape(os.fspath(root)), "*" if not with_labels else os.path.join("*", "*"))
    return load_dataset(
        "imagefolder",
        data_files={"train": [pattern]},
        split="train",
        streaming=streaming,
        drop_labels=not with_labels,  # said, because for a single class folder the default is to drop
    )


def _subfolders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _has_images(path: Path) -> bool:
    return any(entry.is_file() and entry.suffix.lower() in _IMAGE_SUFFIXES for entry in path.iterdir())


def _class_folders(path: Path) -> list[Path]:
    return [folder for folder in _subfolders(path) if _has_images(folder)]


def _choose(available: list[str], split: str | None, spec: str | os.PathLike[str]) -> str:
    """`split`, or the only one there is."""
    listing = ", ".join(map(repr, available))
    if split is None:
        if len(available) == 1:
            return available[0]
        raise InvalidValueError(
            f"{os.fspath(spec)!r} has several splits: {listing}. Choose one with split=... (--split)."
        )
    if split not in available:
        raise InvalidValueError(f"{os.fspath(spec)!r} has no split {split!r}. There are: {listing}.")
    return split


def _looks_like_path(spec: str) -> bool:
    return (
        spec.startswith((".", "/", "~", "\\")) or spec.count("/") > 1 or "\\" in spec or Path(spec).suffix == ".parquet"
    )
