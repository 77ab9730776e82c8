"""The errors of hf_kd: each says the value, the rule and the way out, and is an `HfKdError` beside its builtin.

`except HfKdError` catches whatever the library refuses; `except ValueError` and the like go on working.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


class HfKdError(Exception):
    """Base of all errors that hf_kd raises itself."""


class InvalidValueError(HfKdError, ValueError):
    """A value that cannot be worked with: an argument, a setting, an image, a checkpoint, a record."""


class InvalidTypeError(HfKdError, TypeError):
    """An argument of the wrong kind, or one that does not exist."""


class MissingFileError(HfKdError, FileNotFoundError):
    """A file or folder that is named and not there."""


class OutputError(HfKdError, PermissionError):
    """A place that cannot be written to."""


class NotAFolderError(HfKdError, NotADirectoryError):
    """A file where a folder has to be."""


class CheckpointError(HfKdError, OSError):
    """A checkpoint that cannot be read: damaged, incomplete, or of another kind than its configuration says."""


class LabelMismatchError(InvalidValueError):
    """Labels of a data set could not be told in the terms of the model, or a requested label is not known."""


class OtherBaseError(InvalidValueError):
    """An eraser on its own is put on another model than the one it was fitted on."""


class UnknownModelTypeError(InvalidValueError):
    """A configuration names a kind of model that transformers does not know: a class of one's own, or of a later version."""


class UnreadableImageError(InvalidValueError):
    """An image of the data set cannot be read.

    Args:
        message: What is wrong with it, and what to do.
        row: Its number, counted from 0.
    """

    def __init__(self, message: str, row: int) -> None:
        super().__init__(message, row)  # both among args, so that it can be pickled on its way out of a worker
        self.row = row

    def __str__(self) -> str:
        return self.args[0]


class TapNotFoundError(InvalidValueError):
    """No place was found where pooled features pass; the message lists what was seen."""


class NotErasedError(HfKdError, RuntimeError):
    """An answer that did not pass an eraser where one stands."""


class DivergedError(HfKdError, ArithmeticError):
    """A loss that is not finite; the weights are back at the last step whose loss was."""


class PushError(HfKdError, OSError):
    """An upload that did not happen. The message says why, and what to do."""


class NotVerifiedError(HfKdError, OSError):
    """The upload happened, and what loads from there is not, or is not known to be, the model here."""


class UnreachableError(HfKdError, ConnectionError):
    """A Hub that does not answer."""


class UnknownNameError(HfKdError, KeyError):
    """A section or score that a report does not have; the message lists those it has."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would quote it


class MissingPackageError(HfKdError, ImportError):
    """An optional package that is not installed; the message says how to install it."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, and nothing of what was tried: no reason to try it otherwise."""
    words = ("out of memory", "can't allocate memory", "not enough memory")  # torch raises RuntimeError on a processor
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def shortened(value: object, most: int = 80) -> str:
    """The `repr` of a value for a message: at most `most` characters, however long a text, a list or an array is."""
    text = repr(value[: most + 1] if isinstance(value, str | bytes | list | tuple) else value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


GIVE_RETAIN = "retain=... (--forget-labels LABEL on the command line, which reads those of all other labels)"
"""How images that stay are given; the command line shows its own way alone."""

GIVE_RETAIN_DATA = "retain=... (--retain DATASET on the command line)"
"""The same where weights are changed: there the other labels of the data set are read anyhow, and there were none."""


NO_WAITING = "HF_HUB_OFFLINE=1 asks no Hub, and waits for none."
"""What the errors of a Hub that does not answer say of the half minute that huggingface_hub tries it."""


def did_you_mean(value: object, known: Iterable[object], most: int = 3, called: Mapping[str, str] | None = None) -> str:
    """What a message about a word that is not among those known goes on with; nothing where none is like it.

    Args:
        value: The word.
        known: Those that there are.
        most: At most so many are named.
        called: How the known ones are named, where that is another word.

    Example:
        >>> did_you_mean("escc", ["esc", "scrub"])
        " Did you mean 'esc'?"
    """
    names = {str(name).casefold(): (called or {}).get(str(name), str(name)) for name in known}
    near = dict.fromkeys(names[name] for name in get_close_matches(str(value).casefold(), names, n=most))
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a setting that is none of the words it may be.

    Raises:
        InvalidValueError: With the words, and the one that was probably meant.
    """
    if value not in choices:
        expected = f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
        raise InvalidValueError(f"{name}={shortened(value)}: expected {expected}.{did_you_mean(value, choices)}")


def check_names(what: str, names: Sequence[str], known: Iterable[str], suites: Sequence[str] = ()) -> None:
    """Refuse names of which one is unknown, none at all, and a suite among others.

    Args:
        what: What they name, several of it.
        names: Those given.
        known: All that there are.
        suites: Words for several of them, which stand alone.

    Raises:
        InvalidValueError: With the names there are, and the one that was probably meant.
    """
    known = list(known)
    unknown = [name for name in names if name not in known and name not in suites]
    if unknown or not names:
        near = did_you_mean(unknown[0], [*suites, *known]) if unknown else ""
        words = f"{', '.join(map(repr, suites))}, or names among " if suites else ""
        raise InvalidValueError(
            f"Unknown {what}: {', '.join(map(repr, unknown)) or 'none given'}.{near} There are {words}{', '.join(known)}."
        )
    if len(names) > 1 and set(suites) & set(names):
        raise InvalidValueError(
            f"{', '.join(map(repr, names))}: {' and '.join(map(repr, suites))} stand alone. Leave the names of {what} out, "
            "or those."
        )


def has_package(package: str) -> bool:
    """Whether an optional package is installed, without importing it."""
    return find_spec(package.partition(".")[0]) is not None


def require(package: str, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        package: Its import name, such as "matplotlib.pyplot".
        extra: The extra of hf_kd that installs it.

    Raises:
        MissingPackageError: Where it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise MissingPackageError(
            f"{package.partition('.')[0]} is not installed or cannot be imported ({error}). Install it: "
            f"pip install 'hf-kd[{extra}]'."
        ) from error
