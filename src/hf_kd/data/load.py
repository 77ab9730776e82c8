"""Opening what a command line can name: a Hub data set, or one of several things on disk.

Only data is read. `datasets` refuses repositories that bring their own loading script, and so nothing here runs
foreign code.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from glob import escape, has_magic
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow
import pyarrow.parquet
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    get_dataset_config_names,
    get_dataset_split_names,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError, DatasetsError
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from hf_kd.errors import NO_WAITING, HfKdError, InvalidValueError, UnreachableError, shortened

from .folder import Tree, configurations, rowless
from .image_source import LABEL_KEYS, ImageSource, is_integer, is_string
from .paths import folder_meant, local_path, refuse_missing_data
from .read_files import choose_split, files_of_split, listed, log_read_files, with_files

logger = logging.getLogger(__name__)

_OF_TEXTS = "texts"
"""The `id` of a `ClassLabel` whose numbers are places in sorted texts."""


def load_source(
    spec: str | os.PathLike[str],
    split: str | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    streaming: bool = False,
    config_name: str | None = None,
    label_column: str | None = None,
) -> Dataset | IterableDataset:
    """One split of the data set that `spec` names.

    On disk: what `save_to_disk` wrote; a .parquet file, beside which other splits may lie; folders of images, CLASS/IMAGE
    or SPLIT/CLASS/IMAGE; and whatever `datasets.load_dataset` reads in a folder (parquet shards in any layout,
    configurations of a README.md, metadata.csv beside images, WebDataset). Folders of images are told by their depth,
    since `load_dataset` takes a class called "test tube" for a split; files in the way of a layout are named and left out.
    A path that exists is never looked for on the Hub, and nothing is fetched for it; everything else is a Hub id.

    Args:
        spec: A path, or the id of a data set on the Hub.
        split: May be left out where there is only one.
        token: For the Hub.
        revision: For the Hub.
        streaming: Whether to read row by row, without a copy on disk.
        config_name: Configuration of a data set that has several.
        label_column: Column of class names that are to be labels; by default one that is called label or labels.

    Raises:
        FileNotFoundError: For something that looks like a path and does not exist.
        ValueError: Listing the splits or configurations if one is not there or a choice is needed, and for a folder
            without data.
        ConnectionError: When the Hub cannot be reached.
    """
    with _readable(spec):
        found = _open(spec, split, token, revision, streaming, config_name)
        return found if streaming else with_class_labels(cast(Dataset, found), label_column)


@contextlib.contextmanager
def _readable(spec: str | os.PathLike[str]) -> Iterator[None]:
    """What libraries raise of files here that are damaged or hold no rows, as one sentence that names the place.

    What the system refuses (no rights, a full disk) stays as it is.
    """
    try:
        yield
    except HfKdError:
        raise
    except (DatasetsError, ValueError, LookupError, OSError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        if not local_path(spec).exists() or getattr(error, "errno", None) is not None:
            raise
        told = str(cause) if isinstance(cause, ValueError | OSError) else f"{type(cause).__name__}: {cause}"
        told = (
            "it has no rows" if "corresponds to no data" in told else rowless(local_path(spec)) or shortened(told, 300)
        )
        raise InvalidValueError(
            f"{os.fspath(spec)!r} cannot be read as a data set: {told}. Write a damaged file again, give the folder or file "
            "of one configuration, or load it yourself and pass the data set."
        ) from error


def with_class_labels(dataset: Dataset, column: str | None = None) -> Dataset:
    """The data set with class names in a string column as `ClassLabel`, sorted by name; images are not touched.

    Args:
        dataset: Any; returned as it is where there is no such column.
        column: The column; by default one that is called label or labels, where no column is of type ClassLabel.
    """
    features = dataset.features
    if column is None and not any(isinstance(feature, ClassLabel) for feature in features.values()):
        column = next((name for name in LABEL_KEYS if is_string(features.get(name))), None)
    if column is None or not is_string(features.get(column)):
        return dataset
    texts = dataset.with_format(None)[column][:]
    names = sorted({text for text in texts if text is not None})
    ids = {name: number for number, name in enumerate(names)}
    labels = [None if text is None else ids[text] for text in texts]
    return dataset.remove_columns(column).add_column(column, labels, feature=ClassLabel(names=names, id=_OF_TEXTS))


def numbers_texts(images: ImageSource) -> bool:
    """Whether labels were texts that `with_class_labels` numbered, so that no one else knows their ids."""
    features = images.source.features if images.kind == "dataset" else {}
    return getattr(features.get(images.label_column), "id", None) == _OF_TEXTS


def _open(
    spec: str | os.PathLike[str],
    split: str | None,
    token: str | bool | None,
    revision: str | None,
    streaming: bool,
    config_name: str | None,
) -> Dataset | IterableDataset:
    path = local_path(spec)
    if not path.exists():
        refuse_missing_data(spec)
        return _from_hub(os.fspath(spec), split, token, revision, streaming, config_name)
    if path.is_file():
        if path.suffix != ".parquet":
            beside = (
                f" A list lies beside its images as metadata{path.suffix}, with a column file_name: give the folder."
            )
            raise InvalidValueError(
                f"{os.fspath(spec)!r} is no .parquet file. Give one, a folder of them, or an image folder."
                f"{beside if path.suffix in ('.csv', '.jsonl') else ''}"
            )
        _no_configuration(config_name, spec)
        read = files_of_split(path, split)
        return with_files(_with_own_names(_alone("parquet", read, streaming), read), path.parent, read)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        _no_configuration(config_name, spec)
        return _from_saved(path, split, streaming)
    tree = Tree(path)
    if tree.is_image_folder(split):
        _no_configuration(config_name, spec)
        return _from_image_folder(tree, split, streaming)
    if not (tree.containers or tree.has_metadata or tree.tables):
        raise InvalidValueError(
            f"{os.fspath(path)!r} holds no data set: nothing that datasets.load_dataset reads, and no folders of images "
            f"(one a class, CLASS/IMAGE or SPLIT/CLASS/IMAGE).{tree.told_unread}"
        )
    return _by_library(tree, split, streaming, config_name)


def filter_by_labels(dataset: Dataset, label_column: str, ids: Iterable[int], unlabelled: bool = False) -> Dataset:
    """The rows of `dataset` whose label is one of `ids`, in their order. Reads the labels and nothing else.

    Args:
        dataset: Labelled rows.
        label_column: Of integer ids; None and -1 are no label.
        ids: Those to keep.
        unlabelled: Keep the rows without a label too.

    Raises:
        InvalidValueError: When the column does not exist or holds no integers.
    """
    if label_column not in dataset.column_names:
        raise InvalidValueError(
            f"The data set has no column {label_column!r}; it has {', '.join(map(repr, dataset.column_names))}."
        )
    feature = dataset.features[label_column]
    if not (isinstance(feature, ClassLabel) or is_integer(feature)):
        kind = getattr(feature, "dtype", feature)
        raise InvalidValueError(
            f"Column {label_column!r} holds {kind} values and not integer ids. For strings call "
            f"dataset.class_encode_column({label_column!r}) first."
        )
    column = dataset.with_format(None)[label_column][:]
    labels = np.asarray([-1 if label is None else label for label in column], dtype=np.int64)
    keep = np.isin(labels, [label for label in ids if label not in (None, -1)])
    return dataset.select(np.flatnonzero(keep | (labels == -1) if unlabelled else keep))


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
            split = choose_split(get_dataset_split_names(spec, config_name, **options), None, spec)
        return load_dataset(spec, config_name, split=split, streaming=streaming, **options)
    except (DatasetNotFoundError, HFValidationError) as error:
        raise InvalidValueError(
            f"{spec!r} is neither a file or folder here nor a data set on the Hub that can be read with these credentials."
            f"{folder_meant(spec)} {str(error).rstrip('. ')}. A private or gated one needs a token (`hf auth login`)."
        ) from error
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        raise InvalidValueError(f"{spec!r} can only be read by its own code, which is not run. {error}") from error
    except (ConnectionError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        raise UnreachableError(
            f"The data set {spec!r} could not be fetched, and is no file or folder here.{folder_meant(spec)} "
            f"{str(error).rstrip('. ')}. Without a network give a local folder, or one that is in the cache. {NO_WAITING}"
        ) from error


def _from_saved(path: Path, split: str | None, streaming: bool) -> Dataset | IterableDataset:
    saved = load_from_disk(os.fspath(path))
    if isinstance(saved, DatasetDict):
        saved = saved[choose_split([str(name) for name in saved], split, path)]
    elif saved.split is not None:
        choose_split([str(saved.split)], split, path)
    elif split not in (None, "train"):  # one that was made in memory
        logger.warning(
            f"{os.fspath(path)!r} was saved without the name of a split: all of it is read as {split!r}, and as any other "
            "split that is asked for."
        )
    saved = with_files(saved, path, [part["filename"] for part in saved.cache_files])
    return saved.to_iterable_dataset() if streaming else saved


def _by_library(tree: Tree, split: str | None, streaming: bool, config_name: str | None) -> Dataset | IterableDataset:
    """As `load_dataset` reads a folder; it infers the kind of files from how many there are of each."""
    spec = os.fspath(tree.root)
    if "://" in str(configurations(tree.root)):
        raise InvalidValueError(
            f"{spec!r} has a README.md whose configurations name files elsewhere; nothing is fetched for a local folder. "
            "Download the files and name them by their paths, or give the data set's id on the Hub."
        )
    if has_magic(spec):
        return _by_links(tree, split, streaming, config_name)
    # all by one builder, as each function of `datasets` that takes a name looks through the folder again
    names = get_dataset_config_names(spec) if (tree.root / "README.md").is_file() else []
    if config_name is None and len(names) > 1 and "default" not in names:
        raise InvalidValueError(
            f"{spec!r} has several configurations: {', '.join(map(repr, names))}. Choose one with config_name=..., or "
            "give its folder."
        )
    builder = load_dataset_builder(spec, config_name)
    if isinstance(builder, ImageFolder) and tree.containers and not tree.has_metadata:
        loose = next(iter(tree.images.values()))
        raise InvalidValueError(
            f"{spec!r} holds {listed(tree.containers)} and more pictures beside it ({listed(loose)}), so that these "
            "would be read instead. Move them away, or name the file."
        )
    split = choose_split(list(map(str, builder.config.data_files or {})), split, spec)
    files = log_read_files(tree.root, builder.config.data_files, split, tree.containers + tree.tables)
    if streaming:
        found = cast(IterableDataset, builder.as_streaming_dataset(split))
    else:
        builder.download_and_prepare()
        found = cast(Dataset, builder.as_dataset(split))
    return with_files(_with_own_names(found, files), tree.root, files)


def _by_links(tree: Tree, split: str | None, streaming: bool, config_name: str | None) -> Dataset | IterableDataset:
    """A folder whose path `datasets` would take for a pattern ("pets [v2]"): what it finds there under another name."""
    root = tree.root.resolve()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name).resolve()
        for file in (file for file in root.rglob("*") if file.is_file()):
            link = place / file.relative_to(root)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
        builder = load_dataset_builder(os.fspath(place), config_name)
        found = builder.config.data_files or {}
        split = choose_split(list(map(str, found)), split, tree.root)
        read = {name: [root / Path(file).relative_to(place) for file in found[name]] for name in found}
        own = log_read_files(tree.root, read, split, tree.containers + tree.tables)
    kind = type(builder).__module__.rpartition(".")[2]
    return with_files(_with_own_names(_alone(kind, read[split], streaming), own), tree.root, own)


def _alone(kind: str, files: Sequence[Path], streaming: bool) -> Dataset | IterableDataset:
    """Files as one split, which is "train" for `datasets`: it does not take every file name for a split."""
    escaped = [escape(os.fspath(file)) for file in files]
    return load_dataset(kind, data_files={"train": escaped}, split="train", streaming=streaming)


def _with_own_names(found: Dataset | IterableDataset, files: Sequence[Path]) -> Dataset | IterableDataset:
    """The data with the label names that its files hold; `datasets` gives all splits those of the first file of all.

    Raises:
        InvalidValueError: Where files of one split call their labels otherwise, so that a number is not one class.
    """
    first: dict[str, tuple[Path, list[str]]] = {}
    for file in (file for file in files if file.suffix in _SCHEMAS):
        try:
            features = Features.from_arrow_schema(_SCHEMAS[file.suffix](file))
        except pyarrow.ArrowInvalid:  # of which reading says more
            continue
        for column, names in ((key, kind.names) for key, kind in features.items() if isinstance(kind, ClassLabel)):
            other, known = first.setdefault(column, (file, names))
            if names != known:
                raise InvalidValueError(
                    f"{other.name} and {file.name} are read as one split, and call the labels of column {column!r} "
                    f"{shortened(known)} and {shortened(names)}: one number would be two classes. Write them anew with the "
                    "same names, or name one file."
                )
    given = {key: kind.names for key, kind in (found.features or {}).items() if isinstance(kind, ClassLabel)}
    if any(given.get(column, names) != names for column, (_, names) in first.items()):
        return _alone(files[0].suffix[1:], files, isinstance(found, IterableDataset))
    return found


def _arrow_schema(file: Path) -> pyarrow.Schema:
    """Of a file as `save_to_disk` writes it, or of the other layout of Arrow."""
    with pyarrow.memory_map(os.fspath(file)) as source:
        try:
            return pyarrow.ipc.open_stream(source).schema
        except pyarrow.ArrowInvalid:
            return pyarrow.ipc.open_file(source).schema


_SCHEMAS: dict[str, Callable[[Path], pyarrow.Schema]] = {
    ".parquet": pyarrow.parquet.read_schema,
    ".arrow": _arrow_schema,
}
"""Where files of a kind say what their columns are."""


def _from_image_folder(tree: Tree, split: str | None, streaming: bool) -> Dataset | IterableDataset:
    """CLASS/IMAGE, SPLIT/CLASS/IMAGE, or images without a class."""
    root, images = tree.root, tree.images
    splits, base = tree.splits(split), ()
    if splits:
        base = (choose_split(splits, split, root),)
    elif split is not None:
        choose_split(
            ["train"] if tree.class_folders or () in images else sorted({parts[0] for parts in images}), split, root
        )
    classes = {
        parts: files for parts, files in images.items() if len(parts) == len(base) + 1 and parts[: len(base)] == base
    }
    loose = images.get(base, [])
    deeper = {
        parts: files for parts, files in images.items() if len(parts) > len(base) + 1 and parts[: len(base)] == base
    }
    within = sum(map(len, classes.values()))
    if len(classes) == 1 and len(loose) > within:
        classes, strays = {}, [file for files in classes.values() for file in files]
    else:
        strays = loose if classes else []
    strays = [*strays, *(file for files in deeper.values() for file in files)]
    if not classes and not loose:
        first = next(iter(deeper.values()))[0].relative_to(root)
        raise InvalidValueError(
            f"{os.fspath(root)!r} holds images at {os.fspath(first)!r}, which is neither CLASS/IMAGE nor SPLIT/CLASS/IMAGE "
            f"with {first.parts[0]!r} for a split (name it with split=..., if it is one). Move the images of a "
            "class into one folder."
        )
    if strays:
        logger.warning(
            f"{os.fspath(root)!r} is read as {'class folders' if classes else 'images without classes'}; "
            f"{len(strays):,} images elsewhere are left out: {listed(strays)}."
        )
    if tree.unread:
        logger.warning(f"{os.fspath(root)!r}:{tree.told_unread}")
    files = [file for part in classes.values() for file in part] or loose
    return load_dataset(
        "imagefolder",
        data_files={"train": [escape(os.fspath(file)) for file in files]},
        split="train",
        streaming=streaming,
        drop_labels=not classes,  # said, because for a single class folder the default is to drop
    )


def _no_configuration(name: str | None, spec: str | os.PathLike[str]) -> None:
    if name is not None:
        raise InvalidValueError(f"config_name={name!r}: {os.fspath(spec)!r} has no configurations. Leave it out.")
