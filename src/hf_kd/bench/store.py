"""Results as JSON lines: one line a finished cell, written at once, found again by the settings it was made with."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hf_kd.data.folder import IMAGE_SUFFIXES, files_below
from hf_kd.data.paths import local_path, replace_file
from hf_kd.data.read_files import files_of_split
from hf_kd.errors import InvalidValueError, OutputError
from hf_kd.hub.files import checkpoint_files
from hf_kd.hub.receipt import file_digest

from .config import Experiment, Row
from .protocols import LEAST


def key_of(settings: Mapping[str, Any]) -> str:
    """A name for settings: equal for equal ones, in whatever order."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cell_settings(experiment: Experiment, row: Row, seed: int) -> dict[str, Any]:
    """Everything that decides about a cell's result, and nothing else (the label of its row does not)."""
    about = {
        "model": fingerprint(experiment.model),
        "revision": experiment.revision,
        # a folder may move, and keeps its results; USER/NAME of the Hub is a name as a whole
        "dataset": dict(experiment.dataset) | _data(experiment.dataset),
        "protocol": dict(experiment.protocol),
        "kind": row.kind,
        "method": row.name,
        "options": dict(row.settings(seed)),
        "seed": seed,
        "limit": experiment.limit,
        "retain_limit": experiment.retain_limit if row.kind != "original" else None,
        "mixed_precision": experiment.mixed_precision,
        "measures": {
            "knowledge_retention": experiment.measures.knowledge_retention,
            "membership": experiment.measures.membership,
            "attacks": list(experiment.measures.attacks),
        },
    }
    # settings that a cell does not use leave no trace in its key
    for name in ("transfer", "unseen"):
        other = getattr(experiment.measures, name)
        if other and (name == "transfer") == (row.kind != "unseen"):
            about["measures"][name] = dict(other) | _data(other) | _least(other.get("limit"))
    about |= _least(experiment.limit)
    if row.forget_limit is not None:
        about["forget_limit"] = row.forget_limit
    about |= row.published.settings
    if row.published.changes_weights:
        about["batch_size"] = experiment.batch_size
    if row.kind == "weights" and experiment.train_precision not in (None, experiment.mixed_precision):
        about["train_precision"] = experiment.train_precision
    for name in ("path", "init"):  # of a checkpoint, and where a retraining starts from
        if isinstance(where := about["options"].get(name), str):
            about["options"][name] = fingerprint(where)
    return about


def _least(limit: int | None) -> dict[str, int]:
    """What the rows depend on that a limit draws, beside the limit; results of another draw are of other images."""
    return {} if limit is None else {"least of a class": LEAST}


def _data(dataset: Mapping[str, Any]) -> dict[str, str]:
    """What a data set is: of a folder or file its own name and a digest of what it holds, of the Hub its name as a whole.

    Pictures are told apart by name and size, everything else by its content: data sets, labels, names of classes.
    """
    place = local_path(str(dataset["name"]))
    if not place.exists():
        return {"name": str(dataset["name"])}
    folder = place if place.is_dir() else place.parent
    found = files_below(place) if place.is_dir() else _splits(place, dataset)
    files = sorted(path for path in found if path.is_file())
    names = [(path.relative_to(folder), path.stat().st_size) for path in files]
    listing = hashlib.sha256(json.dumps([(str(name), size) for name, size in names]).encode()).hexdigest()[:16]
    read = [folder / name for name, _ in names if name.suffix.lower() not in IMAGE_SUFFIXES]
    return {"name": place.name, "files": listing, "tables": _digest(read)}


def _splits(file: Path, dataset: Mapping[str, Any]) -> list[Path]:
    """The files that are read of a data set which is named by one of them: beside it its other splits lie."""
    found = {file}
    for split in ("train", "test"):
        with contextlib.suppress(InvalidValueError):  # one that is not there is refused where it is read
            found |= set(files_of_split(file, dataset.get(split, split)))
    return sorted(found)


def fingerprint(model: str) -> str:
    """What a model is: of a folder the digest of every file that changes an answer, else the name."""
    folder = local_path(model)
    return _digest(checkpoint_files(folder).values()) if folder.is_dir() else model


def _digest(files: Iterable[Path]) -> str:
    """Of the contents of files, in their order."""
    return _read_once(tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@functools.lru_cache(maxsize=256)
def _read_once(files: tuple[tuple[str, int, int], ...]) -> str:
    """The digest of (path, size, time of change), which is asked for with every cell."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        digest.update(bytes.fromhex(file_digest(Path(path))))
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def only_bench_in(folder: Path) -> Iterator[None]:
    """Keep other benches out of `folder`. Raises InvalidValueError where one is writing to it already, and OutputError where
    nothing can be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / ".bench.lock", timeout=0).acquire()
    except Timeout as error:
        raise InvalidValueError(
            f"Another bench is writing to {folder}: two would run the same cells twice. Wait for it, or choose another "
            "folder."
        ) from error
    except OSError as error:
        raise OutputError(
            f"Results cannot be written to {folder} ({error.strerror}): name a folder that is yours, or a new one."
        ) from error
    with held:
        yield


class Store:
    """`results.jsonl` in a folder. A line that an interruption cut short is dropped when the file is opened again.

    Args:
        folder: Where it is.
        writes: False for a process that only follows what another one writes.

    Raises:
        InvalidValueError: For lines that are no results.
    """

    def __init__(self, folder: Path, writes: bool = True):
        self.path, self.writes = folder / "results.jsonl", writes
        self.records: dict[str, dict[str, Any]] = {}
        if not self.path.is_file():
            return
        lines = self.path.read_bytes().split(b"\n")
        total = len(lines)
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                if number < total:  # with its end: no interruption has cut it short
                    raise InvalidValueError(
                        f"Line {number} of {self.path} is not JSON ({error}): the file was changed by something else. "
                        "Mend or remove that line; every other result is kept."
                    ) from error
                lines.pop()
                break
            if not _is_result(record):
                raise InvalidValueError(
                    f"Line {number} of {self.path} is no result of a bench: write to another folder."
                )
            self.records[record["key"]] = record
        if self.writes and (not lines or lines[-1] or len(lines) < total):
            self._rewrite([line for line in lines if line])  # its last line was cut short, or before its end

    def done(self, key: str, retry_failed: bool = False) -> bool:
        """Whether a cell has a result, or a failure that is not to be tried again.

        Args:
            key: Of the cell.
            retry_failed: Try every failure again.
        """
        record = self.records.get(key)
        return record is not None and (record["status"] == "ok" or not retry_failed)

    def other_settings(self, experiment: str, row: str, seed: int, settings: Mapping[str, Any]) -> list[str]:
        """Names of the settings in which the latest result of a cell with other settings differs; none without one.

        Args:
            experiment: Its name.
            row: The row's label.
            seed: Of the cell.
            settings: As `cell_settings` has them now.
        """
        wanted = json.loads(json.dumps(settings, default=str))
        for record in reversed(self.records.values()):
            own, cell = record.get("settings"), tuple(record.get(name) for name in ("experiment", "row", "seed"))
            if own and own != wanted and record["status"] == "ok" and cell == (experiment, row, seed):
                return sorted(name for name in {**own, **wanted} if own.get(name) != wanted.get(name))
        return []

    def add(self, record: dict[str, Any]) -> None:
        """Append one record and see it on disk before going on.

        Args:
            record: With its `key` and `status`. Numbers that are not finite become null.

        Raises:
            OutputError: It cannot be written.
        """
        record = _finite(record)
        if self.writes:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record, allow_nan=False, default=str) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise OutputError(
                    f"A result cannot be written to {self.path} ({error.strerror}). Those before it are there: the same "
                    "bench goes on behind them."
                ) from error
        self.records[record["key"]] = record

    def _rewrite(self, lines: list[bytes]) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_bytes(b"".join(line + b"\n" for line in lines))
        replace_file(temporary, self.path)


def _is_result(record: Any) -> bool:
    """Whether a line has what every table reads of it."""
    kinds = {"key": str, "seconds": dict, "status": str}
    if not isinstance(record, dict) or not all(isinstance(record.get(name), kind) for name, kind in kinds.items()):
        return False
    return isinstance(record.get("scores"), dict) if record["status"] == "ok" else isinstance(record.get("error"), str)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
