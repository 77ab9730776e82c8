"""What can only be meant as a path: refused where nothing is there, before anything heavy is imported or a Hub is asked."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from hf_kd.errors import CheckpointError, InvalidValueError, MissingFileError, did_you_mean, shortened

CONFIG_NAME, ADAPTER_CONFIG, ERASER_CONFIG = "config.json", "adapter_config.json", "eraser_config.json"
"""What a folder with a model, with a PEFT adapter, and with an eraser on its own is told by."""


def local_path(name: str | os.PathLike[str]) -> Path:
    """The file or folder that a user names, there or not, with the home folder for `~`.

    Raises:
        InvalidValueError: For an empty name, one that is too long for the system, and the home folder of nobody.
    """
    text = os.fspath(name)
    if not text:
        raise InvalidValueError("'' names no folder or file: name one, '.' for the current folder, or leave it out.")
    place = os.path.expanduser(text)
    if place.startswith("~"):
        user = text.partition("/")[0]
        raise InvalidValueError(
            f"{shortened(text)}: {user} is nobody's home folder; ./{user} is a folder of that name."
        )
    if any(map(_is_no_name, (place, *Path(place).parts))):
        raise InvalidValueError(f"{shortened(text)} is too long for a path, or has a zero byte: name another place.")
    path = Path(place)  # which leaves out ./, so that ./~x would mean a home folder when it is read once more
    return path.absolute() if str(path).startswith("~") else path


def _is_no_name(path: str) -> bool:
    """Whether no file can be called like this; where the folder that it is in is not there, only its parts show that."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    except ValueError:
        return True
    return False


def sync_file(file: str | os.PathLike[str]) -> None:
    """Wait until what was written to a file is on disk: after a power cut, one that was renamed before may be empty."""
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


def replace_file(written: str | os.PathLike[str], place: str | os.PathLike[str]) -> None:
    """Put a complete file in the place of another: whenever the power goes, one of both is there, whole."""
    sync_file(written)
    os.replace(written, place)


def refuse_missing_model(name: str) -> None:
    """Refuse what can only be meant as a folder and is none; a Hub would be asked in vain.

    A name without a slash is one, unless the cache knows it as one of the Hub's oldest models, which have no user.

    Raises:
        MissingFileError: For such a name; the message has the folder beside it that was probably meant.
        InvalidValueError: As `local_path`.
    """
    local_path(name)  # refused where it is none
    if os.path.exists(name):
        return
    beside = os.path.isdir(Path(name).parent) if "/" in name else not _is_cached(name)
    if looks_like_path(name) or beside:
        raise MissingFileError(
            f"There is no folder {name!r}.{folder_meant(name)} (A model on the Hub is named USER/NAME.)"
        )


def with_revision(name: str, hub: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a repository, and where its files come from: USER/NAME@REVISION names both. A folder is only a name.

    Args:
        name: As the user gave it.
        hub: Keywords of `from_pretrained`, with `revision` or without.

    Raises:
        InvalidValueError: For two revisions.
    """
    repo, at, revision = name.partition("@")
    if not at or os.path.exists(name) or looks_like_path(repo):
        return name, dict(hub)
    if hub.get("revision") not in (None, revision):
        raise InvalidValueError(f"{name} names a revision, and revision={hub['revision']!r} another: give one of them.")
    return repo, {**hub, "revision": revision}


def refuse_no_model(name: str) -> None:
    """Refuse a folder that is there and holds no model, no adapter and no eraser.

    Raises:
        CheckpointError: For such a folder.
    """
    folder = Path(name)
    if os.path.isdir(name) and not any(
        (folder / file).is_file() for file in (CONFIG_NAME, ADAPTER_CONFIG, ERASER_CONFIG)
    ):
        raise no_model(name)


def no_model(name: str) -> CheckpointError:
    """The error for a place that holds no model."""
    weights = next((file.name for file in sorted(Path(name).glob("*.safetensors"))), None)
    alone = f" Weights alone ({weights}) do not say of which network: load them into its class, and save that."
    return CheckpointError(
        f"{name} has neither {CONFIG_NAME} nor {ADAPTER_CONFIG}: it is not a model to load. Name the "
        f"folder that save_pretrained wrote, or USER/NAME on the Hub.{alone if weights else ''}"
    )


def refuse_missing_data(spec: str | os.PathLike[str]) -> None:
    """Refuse what can only be meant as a file or folder and is none.

    Raises:
        MissingFileError: For such a name.
    """
    name = os.fspath(spec)
    if not local_path(name).exists() and (looks_like_path(name) or Path(name).suffix == ".parquet"):
        raise MissingFileError(f"There is no file or folder {name!r}.{folder_meant(name)} (On the Hub: USER/NAME.)")


def folder_meant(name: str) -> str:
    """What a message about a name that is nowhere goes on with: the folder beside it that was probably meant."""
    return did_you_mean(name, [str(Path(name).with_name(folder)) for folder in _folders_beside(name)], most=1)


def refuse_other_suffix(output: str | os.PathLike[str], suffix: str) -> None:
    """Refuse a file to write whose name ends otherwise.

    Raises:
        InvalidValueError: For such a name.
    """
    if Path(output).suffix != suffix:
        raise InvalidValueError(f"output={os.fspath(output)!r} has to end in {suffix}.")


def looks_like_path(name: str) -> bool:
    """Whether a name cannot be one of the Hub, USER/NAME."""
    return name.startswith((".", "/", "~", os.sep)) or name.count("/") > 1 or "\\" in name


def _is_cached(name: str) -> bool:
    try:
        return isinstance(try_to_load_from_cache(name, CONFIG_NAME), str)
    except HFValidationError:  # no name that the Hub could have
        return False


def _folders_beside(name: str) -> list[str]:
    try:
        return [path.name for path in Path(os.path.expanduser(name)).parent.iterdir() if path.is_dir()]
    except OSError:
        return []
