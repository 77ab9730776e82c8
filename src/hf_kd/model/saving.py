"""Write a folder so that an interruption leaves what was there before.

Part of the modelling room. Files are written beside the target and moved in one by one with atomic renames once all of
them are complete and on disk; other files in the folder stay.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from hf_kd.errors import NotAFolderError, OutputError
from hf_kd.hub.receipt import WEIGHT_PATTERNS


@contextlib.contextmanager
def atomic_directory(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `directory`; on leaving without an error its files move into `directory`.

    When weights are among them, weight files of the previous save that the new one does not have (other shards) are removed
    at the very end. Raises
    NotADirectoryError or PermissionError, with the path and the way out, before anything is written.
    """
    target = Path(directory).expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise NotAFolderError(f"{directory} is a file; a model is saved into a folder. Choose another path.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-saving-", dir=target.parent))
    except OSError as error:
        raise OutputError(
            f"Cannot write to {target.parent} ({error.strerror}): choose a folder you may write to."
        ) from error
    try:
        if target.exists() and not os.access(target, os.W_OK):
            raise OutputError(f"Cannot write to {target}: choose a folder you may write to.")
        yield temporary
        _move_in(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_in(temporary: Path, target: Path) -> None:
    files = sorted(path.relative_to(temporary) for path in temporary.rglob("*") if path.is_file())
    if not files:  # entered only to see whether the place can be written to
        return
    for file in files:
        with open(temporary / file, "rb") as handle:
            os.fsync(handle.fileno())
    target.mkdir(exist_ok=True)
    names = {str(file) for file in files}
    stale = {path.name for pattern in WEIGHT_PATTERNS for path in target.glob(pattern)} - names
    if not any(fnmatch(name, pattern) for name in names for pattern in WEIGHT_PATTERNS):
        stale = set()  # a report or a card beside a model, not another model
    # config.json last: until it is there, the folder still reads as what it was
    for file in sorted(files, key=lambda file: file.name == "config.json"):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary / file, target / file)
    for name in stale:
        (target / name).unlink(missing_ok=True)
