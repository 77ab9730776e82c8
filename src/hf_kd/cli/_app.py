"""What all commands share: the application, common options, exit_on_error. Exit codes: 0 done, 1 refused, 2 wrong usage."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from hf_kd.errors import InvalidValueError, MissingFileError

app = typer.Typer(
    name="hf-kd",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Make a trained Hugging Face vision model forget, and see what it still answers.\n\n"
    "An erased model answers from features with the forgotten directions removed. Its weights are unchanged: whoever "
    "holds them can take the eraser away, and a probe trained long enough on enough labels reads most of what was erased.",
)

console = Console()
errors = Console(stderr=True)

ModelArgument = Annotated[
    str, typer.Argument(help="Hub id or folder of a checkpoint, a PEFT adapter or an erased model.")
]
TapOption = Annotated[str | None, typer.Option(help="Where pooled features pass, path.to.module; found by itself.")]
ImageColumnOption = Annotated[str | None, typer.Option(help="Column of images, if there are several.")]
LabelColumnOption = Annotated[str | None, typer.Option(help="Column of labels, if there are several.")]
LabelMapOption = Annotated[
    list[str] | None,
    typer.Option(help="DATASET_LABEL=MODEL_LABEL (names or ids) where names do not match; may be repeated."),
]
BatchSizeOption = Annotated[int, typer.Option(min=1)]
WorkersOption = Annotated[int | None, typer.Option(min=0, help="Processes that decode images.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; the GPU if there is one.")]
RevisionOption = Annotated[str | None, typer.Option(help="Revision of the model on the Hub.")]
ImportOption = Annotated[
    list[Path] | None,
    typer.Option("--import", help="Python file of yours to run first: it registers model classes of your own."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """What the library refuses ends as one message and exit code 1; everything else is a bug and keeps its traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        hint = "On the command line: --label-map THEIR_NAME=MODEL_NAME." if "with a mapping" in str(error) else ""
        if "does not recognize this architecture" in str(error):
            hint = "If the class of this model is your own, name the file that registers it: --import FILE."
        errors.print(f"[bold red]{type(error).__name__}:[/] ", end="")
        errors.print(f"{error} {hint}".strip(), markup=False, highlight=False)
        raise typer.Exit(1) from error


def given(**values: Any) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name, value in values.items() if value is not None}


def name_and_value(text: str, flag: str) -> tuple[str, Any]:
    """NAME=VALUE as a pair; the value is read as JSON where it is JSON. Raises ValueError for anything else."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidValueError(f"{flag} {text!r}: write it as NAME=VALUE.")
    with contextlib.suppress(json.JSONDecodeError):
        value = json.loads(value)
    return name, value


def name_and_option(text: str) -> tuple[str, Any]:
    """As `name_and_value`, of --option; numbers with commas or semicolons between them are a list: cover_classes=5,2."""
    name, value = name_and_value(text, "--option")
    if isinstance(value, str) and re.search("[,;]", value):
        with contextlib.suppress(json.JSONDecodeError):
            value = [json.loads(part) for part in re.split("[,;]", value) if part.strip()]
    return name, value


def import_files(paths: Sequence[Path] | None) -> None:
    """Run Python files that the user names on the command line. Raises FileNotFoundError for one that is not there."""
    for path in paths or ():
        if not path.is_file():
            raise MissingFileError(f"--import {path}: there is no such file.")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
