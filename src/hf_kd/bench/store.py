"""Results as JSON lines: one line a finished cell, written at once, found again by the settings it was made with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def key_of(settings: Mapping[str, Any]) -> str:
    """A name for settings: equal for equal ones, in whatever order."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(model: str) -> str:
    """What a model is, as far as its name does not say: the digest of a folder's weights, else the name."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest() if hasattr(hashlib, "file_digest") else
                              hashlib.sha256(file.read()).digest())  # fmt: skip
    return digest.hexdigest()[:16]


class Store:
    """`results.jsonl` in a folder. A line that an interruption cut short is dropped when the file is opened again."""

    def __init__(self, folder: Path):
        self.path = folder / "results.jsonl"
        self.records: dict[str, dict[str, Any]] = {}
        if not self.path.is_file():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                if number < len(lines):
                    raise ValueError(
                        f"Line {number} of {self.path} is not JSON ({error.msg}): the file was changed by something else. "
                        "Mend or remove that line; every other result is kept."
                    ) from error
                self._rewrite(lines[:-1])
                break
            self.records[record["key"]] = record

    def done(self, key: str, retry_failed: bool = False) -> bool:
        """Whether this cell has a result, or a failure that is not to be tried again."""
        record = self.records.get(key)
        return record is not None and (record["status"] == "ok" or not retry_failed)

    def add(self, record: dict[str, Any]) -> None:
        """Append one record and see it on disk before going on."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.records[record["key"]] = record

    def _rewrite(self, lines: list[str]) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        temporary.replace(self.path)
