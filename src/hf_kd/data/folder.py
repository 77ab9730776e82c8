"""What lies in a local folder that is named as a data set, and whether that is folders of images."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from huggingface_hub import metadata_load

from hf_kd.errors import InvalidValueError, shortened

from .read_files import SPLIT_WORD, listed

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(ImageFolder.EXTENSIONS) - {".ps", ".eps", ".mpg", ".mpeg", ".bufr", ".grib"}
"""Files that are one picture each."""

_UNREAD = frozenset({".avif", ".avifs", ".qoi", ".pfm", ".heic", ".heif", ".jxl"})
"""Pictures that `datasets` takes for none."""

_CONTAINERS = frozenset({".parquet", ".arrow", ".tar"})
"""Files that hold whole data sets."""

_SPLIT = re.compile(r"(train|training|test|testing|val|valid|validation|dev|eval|evaluation|holdout)[\W_\d]*", re.I)
"""Names of splits and nothing else."""


def files_below(root: Path) -> Iterator[Path]:
    """The files in a folder that are read as data: behind links too, and none that is hidden; by their names.

    Args:
        root: The folder.
    """
    above = {os.fspath(root): {os.path.realpath(root)}}
    for place, folders, names in os.walk(root, followlinks=True):
        below = {name: os.path.realpath(Path(place, name)) for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [name for name, real in below.items() if real not in above[place]]  # no link to one above
        above |= {os.path.join(place, name): above[place] | {below[name]} for name in folders}
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


class Tree:
    """What lies in a folder: images by their folder, files that hold data sets, and the rest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: dict[tuple[str, ...], list[Path]] = {}
        self.containers: list[Path] = []
        self.tables: list[Path] = []
        self.unread: list[Path] = []
        self.has_metadata = False
        for path in files_below(root):
            suffix, inside = path.suffix.lower(), path.parent.relative_to(root).parts
            if suffix in IMAGE_SUFFIXES:
                self.images.setdefault(inside, []).append(path)
            elif suffix in _UNREAD:
                self.unread.append(path)
            elif path.stem == "metadata" and suffix in (".csv", ".jsonl", ".parquet"):
                self.has_metadata = True
            elif suffix in _CONTAINERS:
                self.containers.append(path)
            elif suffix in (".csv", ".json", ".jsonl"):
                self.tables.append(path)

    @property
    def told_unread(self) -> str:
        """Which pictures are in formats that are not read; nothing where there are none."""
        number, names = len(self.unread), listed(self.unread)
        return f" {number} pictures are in formats that are not read ({names}): convert them." if number else ""

    @property
    def class_folders(self) -> list[str]:
        """Folders right below with images in them."""
        return [parts[0] for parts in self.images if len(parts) == 1]

    def splits(self, wanted: str | None) -> list[str]:
        """Folders right below that are splits: by their names, or because one of them is `wanted`.

        Beside other folders only those are called just as splits are, one for training among them: "test" may be a class.
        """
        above = list(dict.fromkeys(parts[0] for parts in self.images if len(parts) >= 2))
        if wanted in above:
            return above
        named = [name for name in above if SPLIT_WORD.search(name)]
        if len(named) < len(above):
            named = [name for name in above if _SPLIT.fullmatch(name)]
            named = named if any(name.lower().startswith("train") for name in named) else []
        if named:
            return named
        loose = self.class_folders
        return (
            loose if loose and all(SPLIT_WORD.search(name) for name in loose) and len(loose) == len(self.images) else []
        )

    def is_image_folder(self, split: str | None) -> bool:
        """Whether images in folders are the data set: several folders of them outweigh a file that could be one too."""
        if self.has_metadata or not self.images:
            return False
        folders = len([parts for parts in self.images if parts])
        if self.containers and (folders < 2 or len(self.containers) > 1):
            return False
        try:
            return not configurations(self.root)
        except InvalidValueError as error:
            logger.warning("It is taken to name no configurations: %s", error)
            return True


def configurations(root: Path) -> Any:
    """What a README.md says of configurations; None where it says nothing.

    Raises:
        InvalidValueError: Where its head cannot be read.
    """
    readme = root / "README.md"
    try:
        return (metadata_load(readme) or {}).get("configs") if readme.is_file() else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidValueError(
            f"{os.fspath(readme)!r} has a head that is no YAML of keys and values: {shortened(str(error), 300)} Correct "
            "what stands between its first two lines of ---, or remove the file."
        ) from error


def rowless(saved: Path) -> str | None:
    """What is wrong with a folder that `save_to_disk` wrote without a row, in it or in a split; None for all others."""
    for state in (saved / "state.json", *sorted(saved.glob("*/state.json"))):
        with contextlib.suppress(OSError, ValueError, RecursionError, AttributeError):  # it is damaged, or another file
            if json.loads(state.read_text(encoding="utf-8")).get("_data_files") == []:
                own = f"its split {state.parent.name!r} has no rows (name the folder of another one)"
                return "it has no rows" if state.parent == saved else own
    return None
