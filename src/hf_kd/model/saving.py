"""Write into a folder so that at every step it holds what was there before or all that is new, and never a mixture.

All files are complete and on disk in a folder of their own first. Then every name they will have in the target becomes a
link through one pointer to what was there; the pointer is turned to the new files by one rename, which is the moment of
the save; and the links become plain files again, one by one. A save that was killed leaves links, which read like files,
and the next save makes plain files of them.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from hf_kd.data.paths import local_path, sync_file
from hf_kd.errors import InvalidValueError, NotAFolderError, OutputError
from hf_kd.hub.files import superseded, variant_of

try:
    import fcntl
except ImportError:  # Windows: nobody can tell there whether another save is still at work
    fcntl = None

logger = logging.getLogger(__name__)

MARK = "-saving-"
NEW, OLD, POINTER = "new", "old", "now"


@contextlib.contextmanager
def atomic_directory(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder; on leaving without an error its files become those of `directory`, all at once.

    What killed saves left there is put in order first. Other files of the folder stay, but for those that the new ones
    supersede (`hf_kd.hub.files.superseded`). Where the file system has no symbolic links, files are moved in one by one,
    config.json last.

    Raises:
        NotAFolderError: `directory` is a file.
        OutputError: It cannot be written to. Both come before anything is written; or no space is left there.
    """
    target = local_path(directory).resolve()
    if target.exists() and not target.is_dir():
        raise NotAFolderError(f"{directory} is a file; a model is saved into a folder. Choose another path.")
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists() and not os.access(target, os.W_OK):
                raise OutputError(f"Cannot write to {target}: choose a folder you may write to.")
            clean_up(target)
            work = stack.enter_context(_work_folder(target))
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(
                f"Cannot write to {target} ({error.strerror}): choose a folder you may write to."
            ) from error
        try:
            yield work / NEW
            _put_in_place(work, target)
        except (OSError, SafetensorError) as error:
            if not _is_full(error):
                raise
            raise OutputError(
                f"No space is left to write {target}: what was there is as it was. Free some, or choose another place."
            ) from error
        finally:
            if not any(_links_through(work, target)):  # of an interruption while links become files: for the next save
                shutil.rmtree(work, ignore_errors=True)


def _is_full(error: OSError | SafetensorError) -> bool:
    """Whether it says that the disk is full, or the share of it that a user has; safetensors says so in words alone."""
    said = re.search(r"\(os error (\d+)\)", str(error))
    code = error.errno if isinstance(error, OSError) else int(said[1]) if said else None
    return code in (errno.ENOSPC, errno.EDQUOT)


def clean_up(target: Path) -> None:
    """Put in order what killed saves left in `target` and beside it; saves that are still at work are left alone."""
    left = [*target.parent.glob(f".{glob.escape(target.name)}{MARK}*"), *target.glob(f".hf_kd{MARK}*")]
    for work in left:
        with _locked(work, wait=False) as mine:
            if mine and target.is_dir():
                with _locked(target):
                    _settle(work, target)
            if mine:
                shutil.rmtree(work, ignore_errors=True)


def refuse_other_model(directory: str | os.PathLike[str], folder: Path) -> None:
    """Raise InvalidValueError where a variant in `folder` is to lie beside the plain weights of another model.

    All variants share one config.json, whose records would then speak of weights that they do not describe.
    """
    there = Path(directory)
    plain = "" in map(variant_of, os.listdir(there)) if there.is_dir() else False
    if not plain or "" in map(variant_of, os.listdir(folder)):
        return
    described = ("model_type", "inner_class", "erasers", "erasures", "masked", "text_tower")
    try:
        configs = [json.loads((place / "config.json").read_text(encoding="utf-8")) for place in (there, folder)]
        same = all(configs[0].get(name) == configs[1].get(name) for name in described)
    except (OSError, ValueError, AttributeError, RecursionError):  # damaged, so it describes no weights
        same = False
    if not same:
        raise InvalidValueError(
            f"{directory} holds the weights of another model, and all variants in a folder share one config.json. Save "
            "into another folder, or save this model there without a variant first."
        )


@contextlib.contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """A new folder to work in, locked."""
    # inside a folder that is there, which may be a mount point or the only place that may be written to
    inside = target.is_dir()
    name = f".hf_kd{MARK}" if inside else f".{target.name}{MARK}"
    while True:
        work = (target if inside else target.parent) / f"{name}{secrets.token_hex(4)}"
        work.mkdir()
        with _locked(work):
            try:
                (work / NEW).mkdir()
            except FileNotFoundError:  # another save tidied it away before it was locked
                continue
            yield work
            return


def _put_in_place(work: Path, target: Path) -> None:
    files = sorted(path.relative_to(work / NEW) for path in (work / NEW).rglob("*") if path.is_file())
    if not files:  # entered only to see whether the place can be written to
        return
    for file in files:
        sync_file(work / NEW / file)
    if not target.exists():
        try:
            os.rename(work / NEW, target)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # unless somebody made it meanwhile
                raise
    with _locked(target):
        stale = superseded((path.name for path in target.iterdir()), map(str, files))
        names = [*files, *map(Path, sorted(stale))]
        (work / OLD).mkdir()
        for name in names:
            if os.path.lexists(target / name):
                _copy_or_link(target / name, work / OLD / name)
        try:
            os.symlink(OLD, work / POINTER)
        except OSError:
            logger.warning(
                f"{target} has no symbolic links, so files are moved in one by one: a save that is killed while they are "
                "leaves a folder that may not load."
            )
            _move_in(work, target, files, stale)
            return
        try:
            for name in names:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                _replace_by_link(work, target, name)
            os.symlink(NEW, work / "next")
            os.replace(work / "next", work / POINTER)
        finally:
            _settle(work, target)


def _replace_by_link(work: Path, target: Path, name: Path) -> None:
    """The name leads through the pointer: to what it was before, or nowhere where it was not there."""
    place = target / name
    os.symlink(os.path.relpath(work / POINTER / name, place.parent), work / "link")
    os.replace(work / "link", place)


def _settle(work: Path, target: Path) -> None:
    """Plain files for all links that lead through the pointer of `work`, as it stands."""
    for place, behind in _links_through(work, target):
        if os.path.lexists(behind):
            with contextlib.suppress(FileNotFoundError):  # of a save that was killed right here
                os.unlink(work / "file")
            _copy_or_link(behind, work / "file")
            os.replace(work / "file", place)
        else:
            os.unlink(place)


def _links_through(work: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """Each link that leads through the pointer, and where it leads."""
    sides = [work / OLD, work / NEW]
    for name in sorted({path.relative_to(side) for side in sides for path in side.rglob("*") if not path.is_dir()}):
        place, behind = target / name, work / POINTER / name
        if place.is_symlink() and os.path.normpath(place.parent / os.readlink(place)) == str(behind):
            yield place, behind


def _copy_or_link(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        os.symlink(os.path.join(os.path.realpath(source.parent), os.readlink(source)), place)
        return
    try:
        os.link(source, place)
    except OSError:  # a file system without hard links
        shutil.copy2(source, place)


def _move_in(work: Path, target: Path, files: list[Path], stale: Iterable[str]) -> None:
    # config.json last: until it is there, the folder reads as what it was or is refused by the digests of its erasers
    for file in sorted(files, key=lambda file: file.name == "config.json"):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(work / NEW / file, target / file)
    for name in stale:
        (target / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a folder, which goes with the process; yields whether it could be had."""
    if fcntl is None:
        yield True
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(handle)
