"""What all commands share: the application, options that many have, one way to end.

Exit codes: 0 done, 1 refused, or not what a receipt says, 2 wrong usage, 3 done in part: rows of a bench failed, or what was
given is too little to tell whether a receipt is right.

A command is a function of its own options and, last, of `shared`: the options of `Shared` that it names in its decorator,
and the hyper-parameters of methods. Nothing here imports torch.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import logging
import re
import shlex
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.text import Text

from hf_kd.data.text import shell_word
from hf_kd.errors import HfKdError, InvalidValueError, out_of_memory
from hf_kd.methods.choices import words_of
from hf_kd.methods.registry import MethodInfo

from . import _choices, _inputs
from ._help import ReadableCommand
from ._options import METHOD, OF_DATA, Shared, also_setting, grouped, method_flags

app = typer.Typer(
    name="hf-kd",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Make a trained Hugging Face vision model forget, and see what it still answers.\n\n"
    "An erased model answers from features with the forgotten directions removed. Its weights are unchanged: whoever "
    "holds them can take the eraser away, and a probe trained long enough on enough labels reads most of what was erased.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(version("hf-kd"))
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """Options of `hf-kd` itself; its help is that of the application."""


RUNNING: ContextVar[typer.Context | None] = ContextVar("RUNNING", default=None)
"""Of the command that is running."""

BEGAN: ContextVar[float] = ContextVar("BEGAN", default=0.0)
"""When that command began, by `time.monotonic`."""

LOGGED: set[str] = set()
"""What this command has logged: not said again beside its result."""

IN_PART = 3
"""Exit code where not everything could be done."""

console = Console()
errors = Console(stderr=True)


def command(
    *takes: str, methods: Sequence[MethodInfo] | None = None, name: str | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: make a function a command, with these options of `Shared` and the settings of these methods as flags.

    The function gets them as `shared`. Every command takes `--import`. What the library refuses inside ends it with one
    message and exit code 1.
    """
    takes = (*(["option"] if methods is not None else []), *takes, "imports")

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = {key: p for key, p in inspect.signature(function, eval_str=True).parameters.items() if key != "shared"}
        hints = get_type_hints(Shared, include_extras=True)
        defaults = {f.name: f.default for f in fields(Shared)}
        extra = {key: inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=defaults[key],
                                        annotation=hints[key]) for key in takes}  # fmt: skip
        extra = {key: also_setting(parameter, methods or ()) for key, parameter in extra.items()}
        flags = {key: p for key, p in method_flags(methods or ()).items() if key not in own and key not in extra}
        own = {key: p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for key, p in own.items()}
        parameters = grouped({**own, **extra}, flags)

        @functools.wraps(function)
        def run(**given: Any) -> None:
            flags_of_command = _flags_of(context := given.pop("context"))
            with _running(context), logs_in_options(flags_of_command), exit_on_error(flags_of_command):
                values = {key: given.pop(key) for key in extra}
                settings = {key: given.pop(key) for key in flags}
                if methods is not None:
                    settings = _inputs.settings(settings, values["option"])
                _choices.refuse_unknown(given | values, words)
                _inputs.refuse_missing(given | values)
                _inputs.import_files(values["imports"], quiet=bool(values.get("quiet")))
                function(**given, shared=Shared(**values, settings=settings))

        words = {option.name: words_of(option.type) for method in methods or () for option in method.options}
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        parameters = {"context": context, **parameters}
        made: Any = run
        made.__signature__ = inspect.Signature(list(parameters.values()))
        made.__annotations__ = {key: p.annotation for key, p in parameters.items()}
        del made.__wrapped__
        app.command(name, cls=ReadableCommand)(made)
        return function

    return register


@contextlib.contextmanager
def _running(context: typer.Context) -> Iterator[None]:
    """For the time of one command; whoever calls several in one process finds none behind them."""
    token = RUNNING.set(context)
    BEGAN.set(time.monotonic())
    try:
        yield
    finally:
        RUNNING.reset(token)


@contextlib.contextmanager
def exit_on_error(flags: Mapping[str, tuple[str, str | None]]) -> Iterator[None]:
    """What the library refuses ends as one message and exit code 1; everything else is a bug and keeps its traceback.

    Libraries refuse what a user gave them with OSError, ImportError and ValueError. `flags`: of the command.
    """
    try:
        yield
    except KeyboardInterrupt:  # which typer ends with exit code 130, and without a word
        errors.print(f"\nInterrupted.{_goes_on()}", highlight=False)
        raise
    except (HfKdError, OSError, ImportError, ValueError) as error:
        told = str(error) if getattr(error, "of_file", False) else in_options(str(error), flags)
        errors.print(Text.assemble((f"{type(error).__name__}:", "bold red"), " ", told))
        raise typer.Exit(1) from error
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        said = str(error).partition("\n")[0] or "the system gives no more"
        ways = [flags[name][0] for name in ("batch_size", "limit", "device") if name in flags]
        way = f" Smaller batches, fewer images or another device may help: {', '.join(ways)}." if ways else ""
        errors.print(Text.assemble(("Out of memory:", "bold red"), f" {said.rstrip('.')}.{way}"))
        raise typer.Exit(1) from error


def kept_training(output: Path) -> Path:
    """Folder of the state of a training whose result is to stand in `output`."""
    return output.parent / f"{output.name}.training"


def _holds_state(folder: Path) -> bool:
    """Whether something was kept in a folder as a whole: what a run that was killed was writing is nothing."""
    return any(file.is_file() and file.suffix != ".unfinished" for file in folder.rglob("*"))


def _goes_on() -> str:
    """How the running command goes on after an interruption, where it keeps its state."""
    context = RUNNING.get()
    given = {} if context is None else context.params
    if given.get("checkpoint") is not None and _holds_state(given["checkpoint"]):
        return " The same command goes on from what --checkpoint kept."
    if "retry_failed" in given:
        return " The same command goes on behind the cells that are done."
    if "resume" in given and _holds_state(kept_training(given["output"])):
        return " The same command with --resume goes on from the last epoch that was kept."
    return ""


@contextlib.contextmanager
def logs_in_options(flags: Mapping[str, tuple[str, str | None]]) -> Iterator[None]:
    """What hf_kd logs names options of the command, not arguments of Python."""

    def translate(record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] == "hf_kd":
            record.msg, record.args = in_options(record.getMessage(), flags), ()
            LOGGED.add(record.msg)
        return True

    def wrap(record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] == "hf_kd":
            record.msg = textwrap.fill(record.msg, errors.width, break_long_words=False, break_on_hyphens=False)
        return True

    LOGGED.clear()
    last = logging.lastResort or logging.NullHandler()
    handlers = [*logging.getLogger("hf_kd").handlers, *logging.getLogger().handlers, last]
    for handler in handlers:
        handler.addFilter(translate)
    last.addFilter(wrap)  # behind the translation; the only handler that writes on the terminal for us
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(translate)
        last.removeFilter(wrap)


def _flags_of(context: typer.Context) -> dict[str, tuple[str, str | None]]:
    """Of the running command: by the name of the argument the option, and the one that says no where it is a switch."""
    options = [p for p in context.command.params if p.opts and p.opts[0].startswith("-")]
    return {o.name: (o.opts[0], o.secondary_opts[0] if o.secondary_opts else None) for o in options}


def elapsed() -> float:
    """Seconds since the running command began: with the loading of libraries, model and data."""
    return time.monotonic() - BEGAN.get()


def refuse_unused(names: Iterable[str], why: str) -> None:
    """Refuse options of the running command that were typed and that nothing would read.

    Args:
        names: Of their arguments; those that the command does not have are none.
        why: What a sentence about the option says of it.

    Raises:
        InvalidValueError: Naming the first that was typed.
    """
    if (context := RUNNING.get()) is None:
        return
    flags = _flags_of(context)
    for name in names:
        if name in flags and getattr(context.get_parameter_source(name), "name", None) == "COMMANDLINE":
            value, (yes, no) = context.params[name], flags[name]
            value = value[0] if isinstance(value, list | tuple) else value
            shown = (yes if value else no) if isinstance(value, bool) else f"{yes} {shell_word(str(value))}"
            raise InvalidValueError(f"{shown} {why}")


def refuse_without_data(dataset: str | None, *more: str) -> None:
    """Refuse options that say something of a data set where none is given; `more` of them beside `OF_DATA`."""
    if dataset is None:
        refuse_unused(
            (*OF_DATA, *more), "says something of --dataset, and no data set is given: add one, or leave it out."
        )


def refuse_without_test(test_split: str | None) -> None:
    """Refuse a limit of test images where none are read."""
    if test_split is None:
        refuse_unused(["limit_test"], "says how many images of --test-split are read: name one, or leave it out.")


def setting_flags(name: str) -> set[str]:
    """The settings of methods that are options of a command, under their own name."""
    context: Any = RUNNING.get()
    command = context.find_root().command.commands[name]
    return {option.name for option in command.params if getattr(option, "rich_help_panel", None) == METHOD}


def in_words(text: str) -> str:
    """A text of the library in the words of the command that is running."""
    context = RUNNING.get()
    return in_options(text, {} if context is None else _flags_of(context))


ARGUMENT = re.compile(r"""(?<![\w./?&'"-])([a-z]\w*)=('[^']*'|"[^"]*"|\[[^]]*\]|\.\.\.|[-+\w/.]*\w)""")

BARE = re.compile(r"""(?<![\w.'"`/=-])([a-z]+(?:_[a-z]+)+)(?![\w'"`/=(-]|\.\w)""")
"""The name of an argument alone: those of several words, since one word is English too."""

OPTIONS = re.compile(r"(?<=\bhas no option )[\w, ]+\w|(?<=\bIt takes )[a-z_]\w*(?:, [a-z_]\w*)+(?=\.)")
"""The names of settings in a list of them, of one word too."""

CALL = re.compile(r"\buse [\w.]+\(.*?\), or (hf-kd .*?) on the command line")

BOTH = re.compile(r"\b[a-z_]+=\S+ \(((--[a-z-]+)[^()]*?) on the command line([^()]*)\)")
"""An argument of Python, and behind it in brackets the option that does the same."""

WRAPPED = re.compile(r"(?<![\w.])(?:\w+=)?[A-Za-z_][\w.]*\((?:[\w.]+, )*((\w+)=[^()]*)\)")
"""An argument in a call that alone takes it, or behind names: ReadOptions(limit=5), from_model(model, processor=...)."""

ERASE_WITH = re.compile(r"\b([Ee])rase with method='([\w-]+)'")
"""A method of one command, which the option of the same name of another does not take."""

TYPED = re.compile(r"""--[a-z][\w-]* (?:'[^']*'|"[^"]*"|\S+)|(?<![\w=])(?:'[^']*'|"[^"]*")""")
"""An option with its value, and words in quotes."""

CODE = re.compile(rf"{ARGUMENT.pattern}|(?<![\w./])[A-Za-z_][\w.]*\((?!e?s\)|\d+\))")
"""What only Python has: arguments and calls; no plurals, "class(es)", and no copies of files, "photo(1).png"."""

WHOLE = re.compile(r"^(-?\d+)\.0$")
"""A whole number that an option took as one with digits behind the point: --budget 0 is 0.0 to Python."""

FOUR_DOTS = re.compile(r"(?<!\.)\.{4}(?!\.)")
"""Of "[...]." and the like, where the end of the sentence has come to stand behind the three."""

MAPPING = re.compile(r"(?:reading=ReadOptions\()?label_mapping=(\{[^}]*\})\)?")


def in_options(message: str, flags: Mapping[str, tuple[str, str | None]]) -> str:
    """The message of an error, with options of the command line where it names arguments of Python."""

    def named(argument: str) -> tuple[str, str | None] | None:
        """Of an argument that takes several values the option that is repeated: texts, --text."""
        return flags.get(argument) or flags.get(argument.removesuffix("s"))

    def option(match: re.Match[str]) -> str:
        name, value = match.groups()
        if (names := named(name)) is None:
            return match[0]
        yes, no = names
        value = WHOLE.sub(r"\1", value)
        if value[0] == "[":
            with contextlib.suppress(ValueError, SyntaxError):
                each = [shlex.quote(str(part)) for part in ast.literal_eval(value) if part is not ...]
                return " ".join(f"{yes} {part}" for part in each or ["..."])
            return f"{yes} ..."
        if value == "True":
            return yes
        if value == "False" and no:
            return no
        return f"{yes} {shlex.quote(value[1:-1]) if value[0] in chr(34) + chr(39) else value}"

    def pairs(match: re.Match[str]) -> str:
        whole = match[1].replace(", ...}", "}")
        with contextlib.suppress(ValueError, SyntaxError):
            each = [f"--label-mapping {shlex.quote(f'{a}={b}')}" for a, b in ast.literal_eval(whole).items()]
            return " ".join([*each, *(["..."] if whole != match[1] else [])])
        return "--label-mapping THEIR_NAME=MODEL_NAME"

    message = MAPPING.sub(
        pairs if "label_mapping" in flags else r"label_mapping: \1", message
    )  # as bench files have it
    running = RUNNING.get()
    command = "COMMAND" if running is None else running.info_name or ""
    message = CALL.sub(lambda m: f"use {m[1].replace('COMMAND', command)}", message)
    known = {option for names in flags.values() for option in names}
    if command != "erase":
        message = ERASE_WITH.sub(r"\1rase with hf-kd erase --method \2", message)
    message = BOTH.sub(lambda m: f"{m[1]}{m[3]}" if m[2] in known else m[0], message)
    message = WRAPPED.sub(lambda m: m[1] if named(m[2]) else m[0], message)
    message = ARGUMENT.sub(option, message)
    message = OPTIONS.sub(lambda m: ", ".join((named(name) or (name,))[0] for name in m[0].split(", ")), message)
    message = BARE.sub(lambda m: (named(m[1]) or m)[0], message)
    return _python_named(FOUR_DOTS.sub("...", message).strip(), command)


def _python_named(message: str, command: str) -> str:
    """The message, which says of arguments and calls of Python that they are, since nobody can type them here.

    What a message begins with is the value that is refused, and no way out.
    """
    if "Python" in message:
        return message
    typed = TYPED.sub(lambda m: "-" * len(m[0]), message)
    shown = (message[slice(*m.span())] for m in CODE.finditer(typed) if m.start())
    found = dict.fromkeys(f"{code})" if code[-1] == "(" else code for code in shown)
    if not found:
        return message
    is_, it = ("is", "it") if len(found) == 1 else ("are", "them")
    file = " or keys of the file" if command == "bench" else ""
    return f"{message} ({', '.join(found)} {is_} Python{file}: hf-kd {command} has no option for {it}.)"
