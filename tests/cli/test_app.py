"""What commands share: one place for each option, flags made of methods, errors in the words of the command line."""

from __future__ import annotations

import ast
import functools
import inspect
import io
import logging
import os
import re
import subprocess
import sys
from dataclasses import fields
from itertools import chain
from pathlib import Path

import pytest
import torch
import typer
from rich.console import Console

import hf_kd
from hf_kd import ErasedModel, ReadOptions, unlearn
from hf_kd.audit.audit_model import audit_model
from hf_kd.audit.options import AuditOptions
from hf_kd.cli import app
from hf_kd.cli._app import RUNNING, exit_on_error, in_options, logs_in_options
from hf_kd.cli._inputs import as_setting
from hf_kd.cli._verdict import show_verdict
from hf_kd.data.labels import match_labels
from hf_kd.errors import LabelMismatchError
from hf_kd.hub.publish import UploadOptions, push
from hf_kd.methods.registry import built_in_infos
from hf_kd.methods.unlearning.regrow import SOFT
from hf_kd.methods.unlearning.resume import FILE
from hf_kd.model.verify import verify
from tests.cli.runner import hf_kd as run
from tests.helpers.processes import LONG

SOURCE = Path(hf_kd.__file__).parent
COMMANDS = typer.main.get_command(app).commands


def options(command: str) -> dict[str, set[str]]:
    return {p.name: {*p.opts, *p.secondary_opts} for p in COMMANDS[command].params}


@pytest.mark.parametrize(("command", "kind"), [("erase", "eraser"), ("unlearn", "weights")])
def test_every_setting_of_a_method_is_a_flag(command, kind):
    flags = options(command)
    for info in built_in_infos(kind):
        for option in info.options:
            flag = "--" + option.name.replace("_", "-")
            assert flag in flags[option.name]
            if option.type == "bool":
                assert f"--no{flag[1:]}" in flags[option.name]


@pytest.mark.parametrize(
    ("command", "function", "own"),
    [
        (
            "erase",
            ErasedModel.erase,
            {
                "forget_labels",
                "split",
                "test_split",
                "retain_limit",
                "drop_label",
                "fold",
                "eraser_only",
                "text",
                "retain_text",
                "language",
                "publish_texts",
                "ask",
            },
        ),
        ("unlearn", unlearn, {"forget_labels", "split", "test_split", "retain_limit"}),
        (
            "audit",
            audit_model,
            {
                "split",
                "test_split",
                "grad_cam",
                "output",
                "retrained",
                "unseen",
                "summary",
                *(f.name for f in fields(AuditOptions)),
            },
        ),
        ("push", push, {"folder", "base", *(f.name for f in fields(UploadOptions))}),
        ("verify", verify, {"forget_labels", "split", "retain_limit"}),
    ],
)
def test_an_option_has_the_name_of_the_argument_it_fills(command, function, own):
    arguments = {*inspect.signature(function).parameters, *(f.name for f in fields(ReadOptions))}
    settings = {
        option.name for kind in ("eraser", "weights") for info in built_in_infos(kind) for option in info.options
    }
    anywhere = {"model", "processor", "dataset", "config_name", "output", "option", "tap", "device", "revision"}
    anywhere |= {"eraser"}
    anywhere |= {"imports", "as_json", "method", "quiet", "overwrite"}
    for name, flags in options(command).items():
        assert name in arguments | settings | anywhere | own, name
        named = "--" + name.replace("_", "-")
        assert named in flags or name in ("model", "folder", "repo_id", "source", "imports", "as_json"), name


@pytest.mark.parametrize(
    ("python", "typed"),
    [
        ("Name it with label_column=...", "Name it with --label-column ..."),
        ("use method='esc', which", "use --method esc, which"),
        ("p=120 is out of range", "--p 120 is out of range"),
        ("allow_unrecognised=True carries on.", "--allow-unrecognised carries on."),
        ("say so: center=False.", "say so: --no-center."),
        ("which: reading=ReadOptions(label_mapping={'ape': 3, 'a cat': 'b'}).",
         "which: --label-mapping ape=3 --label-mapping 'a cat=b'."),
        ("Say: forget_labels=[...].", "Say: --forget-labels ..."),
        ("forget_labels=['a cat', 3] is", "--forget-labels 'a cat' --forget-labels 3 is"),
        ("Give more as retain_texts.", "Give more as --retain-text."),
        ("say which: reading=ReadOptions(label_mapping=...).", "say which: --label-mapping ..."),
        ("say: reading=ReadOptions(label_mapping={'a cat': 'LABEL', ...}).", "say: --label-mapping 'a cat=LABEL' ..."),
        ("Give them: retain=... (--forget-labels LABEL on the command line, which reads the rest).",
         "Give them: --forget-labels LABEL, which reads the rest."),
        ("Give it: retain=... (--other on the command line).",
         "Give it: retain=... (--other on the command line). (retain=... is Python: hf-kd COMMAND has no option for it.)"),
        ("say so: whole_classes=False.",
         "say so: whole_classes=False. (whole_classes=False is Python: hf-kd COMMAND has no option for it.)"),
        ("Pass one: ErasedModel.from_model(model, processor=...).", "Pass one: --processor ...."[:-1]),
        ("Erase with method='esc', or fold(reset()).",
         "Erase with hf-kd erase --method esc, or fold(reset()). (fold(), reset() are Python: hf-kd COMMAND has no option "
         "for them.)"),
        ("Say so in Python: whole_classes=False.", "Say so in Python: whole_classes=False."),
        ("Name all: names=['a cat', ...].",
         "Name all: names=['a cat', ...]. (names=['a cat', ...] is Python: hf-kd COMMAND has no option for it.)"),
        ("There is none in /my data(1), nor in /a-photo(2).png.", "There is none in /my data(1), nor in /a-photo(2).png."),
        ("There is no 'a=b' in /data/lr=3, of 2 class(es).", "There is no 'a=b' in /data/lr=3, of 2 class(es)."),
        ("dtype='int7' is no number type", "dtype='int7' is no number type"),
    ],
)  # fmt: skip
def test_errors_name_options_and_not_arguments_of_python(python, typed):
    flags = {
        parameter.name: (parameter.opts[0], parameter.secondary_opts[0] if parameter.secondary_opts else None)
        for parameter in COMMANDS["erase"].params
    }
    assert in_options(python, flags) == typed


def test_a_warning_of_the_library_names_the_option_that_was_given():
    flags = {"soft": ("--soft", "--no-soft")}
    assert in_options(SOFT, flags).endswith("Where the class has to go, do without --soft.")


def test_labels_that_do_not_match_are_said_in_the_words_of_the_command_alone():
    flags = {"label_mapping": ("--label-mapping", None)}
    with pytest.raises(LabelMismatchError) as error:
        match_labels(["wolf", "dog"], {0: "dog"})
    told = in_options(str(error.value), flags)
    assert told.endswith("--label-mapping wolf=MODEL_LABEL ...")
    assert told.count("mapping") == 1
    assert "{" not in told


@pytest.mark.parametrize("command", sorted(name for name in COMMANDS if "device" in options(name)))
@pytest.mark.parametrize("device", ["mps", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_before_model_and_data_are_opened(command, device, place, monkeypatch):
    for opened in ("load_model", "load_data"):
        monkeypatch.setattr(f"hf_kd.cli._inputs.{opened}", lambda *given: pytest.fail("opened"))
    monkeypatch.setattr("hf_kd.bench.read_config", lambda *given: pytest.fail("read"))
    needed = {
        "--dataset": place / "data",
        "--output": place / "out",
        "--forget-labels": "cat",
        "--recipe": "vit-pretrained",
    }
    taken = {*chain(*options(command).values())} & set(needed)
    given = [part for flag in taken for part in (flag, needed[flag])]
    done = run(command, place / "model", *given, "--device", device, code=1)
    told = " ".join(done.stderr.split())
    assert f"--device {device} is not there" in told
    assert "finds cpu" in told


@functools.cache
def texts_of_the_library():
    """[(file, text)] of every sentence in the code, values that are put in as VALUE; without docstrings."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documented = [node for node in ast.walk(tree) if isinstance(node, ast.Expr)]
        skipped = {
            id(part) for node in documented for part in ast.walk(node.value) if isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                skipped |= {id(part) for part in ast.walk(node)} - {id(node)}
                parts = [part.value if isinstance(part, ast.Constant) else "VALUE" for part in node.values]
                text = "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
                text = node.value
            else:
                continue
            if text[:1].isalpha() and text.count(" ") > 2:
                found.append((path.relative_to(SOURCE).as_posix(), text))
    return found


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_no_text_of_the_library_shows_an_argument_of_python_where_there_is_an_option(command):
    flags = {p.name: (p.opts[0], None) for p in COMMANDS[command].params if p.opts[0].startswith("-")}
    names = "|".join({*flags, *(f"{name}s" for name in flags)})
    several = "|".join(name for name in names.split("|") if "_" in name)
    argument = re.compile(
        rf"(?<![\w.\-'\"])(?:(?:{names})=(?=[\w\[{{'\".])|(?:{several or '(?!)'})(?![\w'\"`=(]|\.\w))"
    )
    left = [(file, text) for file, text in texts_of_the_library() if argument.search(in_options(text, flags))]
    assert not left


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_what_only_python_has_is_said_to_be_python(command):
    """Or has a word of the command beside it: arguments, calls and attributes cannot be typed there."""
    flags = {p.name: (p.opts[0], None) for p in COMMANDS[command].params if p.opts[0].startswith("-")}
    python = re.compile(r"(?<=[ (])(?:[a-z_]+=(?=[\w\['{]|\.\.)|[A-Za-z_.]+\((?!e?s\)))|model\.config|ReadOptions")
    typed = re.compile(r"--[a-z-]+ (?:'[^']*'|\S+)|`hf-kd [^`]*`")
    shown = [
        (file, told)
        for file, text in texts_of_the_library()
        if not file.startswith(("cli/", "testing/"))  # which write for themselves
        if python.search(typed.sub("", told := in_options(text, flags)), len(text.split(" ", 1)[0]))
    ]
    assert shown
    assert not [pair for pair in shown if "Python" not in pair[1]]


def test_no_text_of_the_library_names_a_page_that_an_installed_package_does_not_have():
    assert not [(file, text) for file, text in texts_of_the_library() if "docs/" in text]


def test_no_text_ends_in_four_dots():
    about = [p.help or "" for found in COMMANDS.values() for p in found.params if hasattr(p, "help")]
    assert not [text for text in [*about, *(text for _, text in texts_of_the_library())] if "...." in text]


@pytest.mark.parametrize(
    ("value", "shown"), [("0.0", "0"), ("-1.0", "-1"), ("1.5", "1.5"), ("1e-05", "1e-05"), ("'1.0'", "1.0")]
)
def test_a_number_is_said_as_it_was_typed(value, shown):
    assert in_options(f"budget={value} minutes: leave it out.", {"budget": ("--budget", None)}).startswith(
        f"--budget {shown} m"
    )


def test_a_call_of_python_is_the_command_that_does_it():
    python = "use hf_kd.unlearn(model, images, 'regrow', ...), or hf-kd unlearn --method regrow on the command line."
    assert in_options(python, {}) == "use hf-kd unlearn --method regrow."


def test_a_warning_of_a_record_is_said_once_beside_a_result_or_on_the_way_to_it(capsys):
    console = Console()
    with logs_in_options({}):
        logging.getLogger("hf_kd.model").warning("The head lost much.")
        show_verdict(console, "cat: forgotten.", ["The head lost much.", "Of an earlier request."])
    shown = capsys.readouterr().out
    assert "The head lost much." not in shown
    assert "Warning: Of an earlier request." in shown


def test_a_file_that_is_imported_may_take_the_last_handler_away(monkeypatch):
    monkeypatch.setattr(logging, "lastResort", None)
    with logs_in_options({}):
        logging.getLogger("hf_kd.model").warning("The head lost much.")


def test_what_is_logged_names_options_as_well(caplog):
    with logs_in_options({"label_column": ("--label-column", None)}):
        logging.getLogger("hf_kd.data").warning("No labels: name %s", "label_column='breed'.")
        logging.getLogger("elsewhere").warning("label_column=...")
    logging.getLogger("hf_kd.data").warning("label_column=...")
    assert caplog.messages == ["No labels: name --label-column breed.", "label_column=...", "label_column=..."]


@pytest.mark.parametrize(
    ("text", "value"),
    [("5,2", [5, 2]), ("4;1", [4, 1]), ("0.02", 0.02), ("auto", "auto"), ('{"0": 5}', {"0": 5}), ("a,b", "a,b")],
)
def test_values_of_settings(text, value):
    assert as_setting(text) == value


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"methods"}))
def test_what_loads_torch_says_so_before_it_does(command):
    """Which takes seconds, and on a terminal nothing is silent for more than two."""
    module = sys.modules[COMMANDS[command].callback.__module__]
    assert "_inputs.load_libraries(shared)" in inspect.getsource(module)


def test_an_interruption_is_said_and_how_the_command_goes_on(tmp_path, place, monkeypatch):
    def interrupt(*arguments, **given):
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_kd.cli._inputs.load_libraries", interrupt)
    arguments = [place / "model", "--dataset", place / "data", "--forget-labels", "cat", "--output", tmp_path / "out"]
    assert run("erase", *arguments, code=130).stderr.strip() == "Interrupted."
    state = tmp_path / "state"
    regrow = ["unlearn", *arguments, "--method", "regrow", "--checkpoint", state]
    assert run(*regrow, code=130).stderr.strip() == "Interrupted.", "before the end of the first epoch"
    (state / "grown").mkdir(parents=True)
    (state / "grown" / f"{FILE}.7.unfinished").touch()
    assert run(*regrow, code=130).stderr.strip() == "Interrupted.", "while that was written"
    (state / "grown" / FILE).touch()
    assert "goes on from what --checkpoint kept" in " ".join(run(*regrow, code=130).stderr.split())
    training = ["train-original", *arguments[:3], "--output", tmp_path / "out", "--recipe", "resnet18-cifar10"]
    assert run(*training, code=130).stderr.strip() == "Interrupted.", "before anything was kept, --resume is refused"
    (tmp_path / "out.training").mkdir()
    (tmp_path / "out.training" / FILE).touch()
    assert "with --resume goes on" in " ".join(run(*training, "--resume", code=130).stderr.split())


def test_completion_is_installed_and_needs_no_torch(tmp_path):
    plain = {"HOME": str(tmp_path), "SHELL": "/bin/bash"}
    plain |= {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    script = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); sys.argv[0] = 'hf-kd'; "
    script += "from hf_kd.cli import main; main()"

    def typed(*arguments, **given):
        # from a shell, which is asked for among the parents of the process
        command = ["bash", "-c", '"$@"; exit $?', "bash", sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, env=plain | given, capture_output=True, text=True, timeout=LONG, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert "bash" in typed("--install-completion")
    assert "_HF_KD_COMPLETE=complete_bash" in (tmp_path / ".bash_completions" / "hf-kd.sh").read_text()
    cases = [
        ("hf-kd era", "1", "erase"),
        ("hf-kd erase --labe", "2", "--label-mapping"),
        ("hf-kd unlearn m --method reg", "4", "regrow"),
        ("hf-kd methods obl", "2", "oblique"),
        ("hf-kd audit m --access w", "4", "weights"),
    ]
    for words, number, expected in cases:
        shown = typed(COMP_WORDS=words, COMP_CWORD=number, _HF_KD_COMPLETE="complete_bash")
        assert expected in shown
        assert shown[-1] == "False", "torch was imported"


def test_no_command_runs_behind_one_that_ended():
    run("methods", "no-such-method", code=1)
    assert RUNNING.get() is None


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nprobably"), MemoryError()]
)
def test_what_runs_out_of_memory_is_told_in_one_line(error, monkeypatch):
    printed = Console(record=True, width=200, file=io.StringIO())
    monkeypatch.setattr("hf_kd.cli._app.errors", printed)
    with pytest.raises(typer.Exit), exit_on_error({"batch_size": ("--batch-size", None), "output": ("--output", None)}):
        raise error
    said = printed.export_text().strip()
    assert said.startswith("Out of memory: ")
    assert "--batch-size." in said
    assert "\n" not in said
    assert "--output" not in said
    with pytest.raises(RuntimeError, match="a bug"), exit_on_error({}):
        raise RuntimeError("a bug")
