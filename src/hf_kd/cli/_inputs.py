"""From what a command line says to what the library takes: names and values, settings, data sets, models."""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import logging
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_kd.data.paths import local_path, refuse_missing_data, refuse_missing_model, refuse_no_model, with_revision
from hf_kd.data.progress import working
from hf_kd.errors import InvalidValueError, MissingFileError

from ._options import DATA_SETS, LIMITS, MODELS, Shared

if TYPE_CHECKING:
    import torch

    from hf_kd.features.reader import ImageReader, ReadOptions
    from hf_kd.model.erased_model import ErasedModel

logger = logging.getLogger(__name__)


def name_and_value(text: str, flag: str) -> tuple[str, Any]:
    """NAME=VALUE as a pair; the value is read as JSON where it is JSON.

    Raises:
        InvalidValueError: For anything else.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidValueError(f"{flag} {text!r}: write it as NAME=VALUE.")
    with contextlib.suppress(json.JSONDecodeError):
        value = json.loads(value)
    return name, value


def as_setting(value: Any) -> Any:
    """The value of a setting: words are read as JSON where they are JSON, numbers with commas between them as a list."""
    if isinstance(value, str):
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(value)
        if re.search("[,;]", value):
            with contextlib.suppress(json.JSONDecodeError):
                return [json.loads(part) for part in re.split("[,;]", value) if part.strip()]
    return value


def settings(flags: Mapping[str, Any], options: Sequence[str] | None) -> dict[str, Any]:
    """What flags and `--option` say about a method; of both, `--option`."""
    given = {name: as_setting(value) for name, value in flags.items() if value is not None}
    pairs = (name_and_value(text, "--option") for text in options or ())
    return given | {name: as_setting(value) for name, value in pairs}


def refuse_missing(given: Mapping[str, Any]) -> None:
    """Refuse models and data sets among the arguments of a command that are not there, before seconds go into imports.

    Raises:
        MissingFileError: For what can only be meant as a path and is none.
        CheckpointError: For a folder without a model.
    """
    for model in _named(given, MODELS):
        name, _ = with_revision(model, {})
        refuse_missing_model(name)
        refuse_no_model(name)
    for dataset in _named(given, DATA_SETS):
        refuse_missing_data(dataset)


def _named(given: Mapping[str, Any], arguments: Sequence[str]) -> list[str]:
    values = [given.get(argument) or () for argument in arguments]
    return [name for value in values for name in ([value] if isinstance(value, str) else value)]


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """Look for no garbage while much is imported: little is made, and looking takes a quarter of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def import_files(paths: Sequence[Path] | None, quiet: bool = False) -> None:
    """Run Python files that the user names on the command line, which mostly import torch and transformers.

    Raises:
        MissingFileError: For one that is not there.
        InvalidValueError: For one whose name is none of a Python file.
    """
    for path in paths or ():
        if not path.is_file():
            raise MissingFileError(f"--import {path}: there is no such file.")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise InvalidValueError(f"--import {path}: Python imports no file of this name; give one that ends in .py.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        new = "torch" not in sys.modules
        with working(f"importing {path.name}, torch and transformers", not quiet, at_once=new), _importing():
            spec.loader.exec_module(module)


def load_libraries(shared: Shared) -> None:
    """Import what takes seconds, and say so: torch, transformers, and what shows results.

    Raises:
        InvalidValueError: For a device that is not there, before model and data are opened.
    """
    new = "torch" not in sys.modules  # else a file of --import loaded them, which was said
    with working("loading torch and transformers", new and not shared.quiet, at_once=new), _importing():
        for name in ("hf_kd.model.erased_model", "hf_kd.model.unlearn", "hf_kd.audit.verdict"):
            importlib.import_module(name)
        importlib.import_module("transformers.utils.logging").disable_progress_bar()  # written into pipes too
    if shared.device is not None:
        importlib.import_module("hf_kd.data.devices").refuse_missing_device(shared.device)


def read_options(shared: Shared) -> ReadOptions:
    """How images are read, as the options say.

    Raises:
        InvalidValueError: For a label mapping that says two things of a label.
    """
    from hf_kd.features.reader import ReadOptions

    names = ("image_column", "label_column", "labels", "batch_size", "num_workers", "mixed_precision", *LIMITS)
    mapping: dict[str, Any] = {}
    for theirs, ours in (name_and_value(text, "--label-mapping") for text in shared.label_mapping or ()):
        if mapping.setdefault(theirs, ours) != ours:
            raise InvalidValueError(
                f"--label-mapping says {theirs}={mapping[theirs]} and {theirs}={ours}: leave one of both."
            )
    return ReadOptions(**shared.chosen(*names), label_mapping=mapping or None, progress=not shared.quiet)


def mapping_words(shared: Shared, reading: ReadOptions) -> list[str] | None:
    """What `--label-mapping` was given, as far as it is the mapping of these options."""
    words = shared.label_mapping or ()
    return [
        text for text in words if name_and_value(text, "--label-mapping")[0] in (reading.label_mapping or {})
    ] or None


def load_model(name: str, shared: Shared) -> ErasedModel:
    """The model, with the image processor that was asked for."""
    place = "" if Path(with_revision(name, {})[0]).exists() else " from the Hub"
    with working(f"loading the model{place}", not shared.quiet):
        from hf_kd.model.erased_model import ErasedModel

        given = shared.chosen("tap", "revision", "eraser")
        if shared.processor is not None:
            given["processor"] = load_processor(shared.processor)
        return ErasedModel.from_pretrained(name, **given)


def load_processor(name: str) -> Any:
    """The image processor that `--processor` names.

    Raises:
        InvalidValueError: Where there is none.
    """
    from hf_kd.model.loading import load_processor

    found = load_processor(name, {})
    if found is None:
        raise InvalidValueError(
            f"--processor {name}: there is no image processor. Give the Hub id or the folder of a checkpoint that has a "
            "preprocessor_config.json."
        )
    return found


def device_of(shared: Shared) -> torch.device:
    """The device asked for, or CUDA if it is there; that of the process where there are several."""
    from hf_kd.data.devices import chosen_device

    return chosen_device(shared.device)


def load_data(source: str, split: str, shared: Shared, argument: str = "split", streaming: bool = False) -> Any:
    """One split of a data set, named by `argument`; labels that are words in it become ids with names, but streamed."""
    place = "" if local_path(source).exists() else " on the Hub"
    with working(f"opening {source}{place}, {split}", not shared.quiet):
        from hf_kd.data.load import load_source

        try:
            given = shared.chosen("config_name", "label_column")
            return load_source(source, split=split, streaming=streaming, **given)
        except InvalidValueError as error:
            raise InvalidValueError(str(error).replace("split=", f"{argument}=")) from error


@dataclass(frozen=True)
class Parts:
    """A split told apart by its labels: the rows to forget, those that stay, and the ids of the forgotten labels in it."""

    data: Any
    forget: Any
    retain: Any
    ids: tuple[int, ...]

    def in_model(self, model: ErasedModel, reading: ReadOptions) -> list[int]:
        """The forgotten labels as ids of the model, or of the data set: `ImageReader.mapping_where_known`."""
        import torch

        mapping = self.reader(model, reading).mapping_where_known if self.ids else None
        return list(self.ids) if mapping is None else mapping(torch.tensor(self.ids)).tolist()

    def classes(self, model: ErasedModel, reading: ReadOptions) -> set[int] | None:
        """The classes of the model that the whole split has an image of; None where it has no labels, or the model none."""
        reader = self.reader(model, reading)
        if reader.mapping is None:
            return None
        found = reader.images.source.unique(reader.images.label_column)
        return {reader.mapping.to_model[label] for label in found if label in reader.mapping.to_model}

    def reader(self, model: ErasedModel, reading: ReadOptions, **beside: Any) -> ImageReader:
        """Of the whole split, whatever the limit; `beside`: data sets that the same label mapping is for."""
        from hf_kd.features.readers import open_readers

        return open_readers(model, replace(reading, limit=None), own=self.data, **beside)["own"]


def without_classes(
    data: Any, classes: Collection[int], parts: Parts, model: ErasedModel, reading: ReadOptions
) -> tuple[Any, int]:
    """The rows of a data set that are of none of some classes of the model, as far as it says so, and how many are left out.

    None where that leaves no row.
    """
    from hf_kd.data.load import filter_by_labels
    from hf_kd.features.readers import labels_of

    if data is None or not classes:
        return data, 0
    reader = replace(parts, data=data).reader(model, reading, split=parts.data)
    labels = labels_of(classes, reader, parts.reader(model, reading, retained=data))
    if not labels:
        return data, 0
    column = reader.images.label_column
    kept = filter_by_labels(data, column, set(data.unique(column)) - set(labels), unlabelled=True)
    return kept if len(kept) else None, len(data) - len(kept)


def at_most(data: Any, limit: int | None) -> Any:
    """The data, of which at most so many rows are read, whatever other limit there is; as it is without a limit."""
    from hf_kd.data.draw import Limited

    return data if limit is None or data is None else Limited(data, limit)


def by_labels(
    data: Any, labels: Sequence[str] | None, reading: ReadOptions, reads_retain: bool = False, limit: int | None = None
) -> Parts:
    """The rows of `data` with these labels, and of all others, at most `limit` drawn by a fixed seed, if they are read.

    A `limit` overrules that of `reading`. Without labels all rows are to be forgotten.

    Raises:
        InvalidValueError: Where there are no labels to go by, none of that name, or no image that has one of them.
    """
    from hf_kd.data.image_source import inspect_images
    from hf_kd.data.labels import resolve_forget_labels
    from hf_kd.data.load import filter_by_labels

    if not labels:
        return Parts(data, data, None, ())
    images = inspect_images(data, image_column=reading.image_column, label_column=reading.label_column)
    column = images.label_column
    if column is None:
        among = f" (candidates: {', '.join(images.label_candidates)})" if images.label_candidates else ""
        raise InvalidValueError(
            f"The label {labels[0]!r} cannot be looked up: the data set has no single label column{among}. Name it with "
            "--label-column."
        )
    ids = resolve_forget_labels(tuple(labels), images.label_names)
    found, retain = set(data.unique(column)), None
    if missing := [label for label in ids if label not in found]:
        names = dict(enumerate(images.label_names or ()))
        told = ", ".join(repr(names[label]) if label in names else str(label) for label in missing)
        raise InvalidValueError(
            f"No image of the split has the label {told}. Choose another label, or another --split."
        )
    if reads_retain:
        retain = filter_by_labels(data, column, found - set(ids))
        if found & {None, -1}:
            logger.warning("Images without a label are left out: nobody knows whether they are to be forgotten.")
        retain = at_most(retain, limit) if len(retain) else None
    return Parts(data, filter_by_labels(data, column, ids), retain, tuple(ids))


def save_stock(model: Any, processor: Any, output: Path) -> None:
    """Save a model of a class of transformers, with its image processor."""
    from hf_kd.model.saving import atomic_directory

    with atomic_directory(output) as folder:
        write_stock(model, processor, folder)


def write_stock(model: Any, processor: Any, folder: Path) -> None:
    """What `save_stock` puts into a folder."""
    model.save_pretrained(folder)
    if hasattr(processor, "save_pretrained"):
        processor.save_pretrained(folder)


def save_once(write: Callable[[], None], show: bool = True) -> bool:
    """Save on the main process, while the others wait; returns whether this is it."""
    from hf_kd.data.distributed import process_state

    state = process_state()
    if state.is_main_process:
        with working("saving", show):
            write()
    state.wait_for_everyone()
    return state.is_main_process


def check_output(output: Path | None, overwrite: bool, *read: str | None) -> None:
    """A folder that cannot be written, or that has something in it, is refused before the work, not after it.

    Args:
        output: None where nothing is written.
        overwrite: Whether it may have something in it.
        *read: Models and erasers that the command reads: one that lies in this folder would be lost.

    Raises:
        InvalidValueError: For a folder that is not empty, unless it may be written into, and for one of `read`.
        OSError: For one that cannot be written.
    """
    if output is None:
        return
    if output.is_dir() and any(one is not None and Path(one).is_dir() and output.samefile(one) for one in read):
        raise InvalidValueError(
            f"--output {output} is the folder of a model or an eraser that this command reads, which would be lost, and "
            "with it what the result is compared with. Name another folder."
        )
    from hf_kd.model.saving import atomic_directory

    with atomic_directory(output):
        pass
    if overwrite or not output.is_dir():
        return
    found = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise InvalidValueError(
            f"--output {output} has something in it already ({', '.join(found[:3])}{more}), which would be mixed with what "
            "is written now. Name another folder, or write into this one with --overwrite."
        )
