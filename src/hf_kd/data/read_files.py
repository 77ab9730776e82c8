"""Which files of a folder are read as which split, said where that is not plain from one file of that name."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def listed(files: Sequence[Path]) -> str:
    """The first names of some files, and how many more there are."""
    names = [file.name for file in files[:3]]
    return ", ".join(names) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def log_read_files(root: Path, found: Mapping[Any, Sequence[Any]] | None, split: str, there: Sequence[Path]) -> None:
    """Log what is read as a split, where that is several files, and what of the same kind is read as none.

    Args:
        root: The folder.
        found: Of every split the files that `datasets` reads.
        split: The one that is read.
        there: Files in the folder that hold rows.
    """
    by_split = {str(name): {os.path.realpath(str(file)) for file in files} for name, files in (found or {}).items()}
    read = [file for file in there if os.path.realpath(file) in by_split.get(split, set())]
    kinds = {file.suffix.lower() for file in read}
    any_split = set().union(*by_split.values())
    left = [file for file in there if file.suffix.lower() in kinds and os.path.realpath(file) not in any_split]
    if len(read) < 2 and not left:
        return
    told = f"{os.fspath(root)!r}: read as split {split!r}: {listed(read)}."
    if left:
        told += f" Not read, as no split: {listed(left)}. Name that file to read it."
    elif len(read) > 1:
        told += f" To read one alone, name it: {os.fspath(read[0])!r}."
    logger.warning("%s", told)
