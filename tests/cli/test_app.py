"""What commands share: one place for each option, flags made of methods, errors in the words of the command line."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
from dataclasses import fields

import pytest
import typer

from hf_kd import ErasedModel, ReadOptions, unlearn
from hf_kd.audit.audit_model import audit_model
from hf_kd.audit.options import AuditOptions
from hf_kd.cli import app
from hf_kd.cli._app import in_options, logs_in_options
from hf_kd.cli._inputs import as_setting
from hf_kd.hub.publish import UploadOptions, push
from hf_kd.methods.registry import built_in_infos
from hf_kd.model.verify import verify

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
        ("dtype='int7' is no number type", "dtype='int7' is no number type"),
    ],
)  # fmt: skip
def test_errors_name_options_and_not_arguments_of_python(python, typed):
    flags = {
        parameter.name: (parameter.opts[0], parameter.secondary_opts[0] if parameter.secondary_opts else None)
        for parameter in COMMANDS["erase"].params
    }
    assert in_options(python, flags) == typed


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


def test_completion_is_installed_and_needs_no_torch(tmp_path):
    plain = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SHELL": "/bin/bash"}
    script = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); sys.argv[0] = 'hf-kd'; "
    script += "from hf_kd.cli import main; main()"

    def hf_kd(*arguments, **given):
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, env=plain | given, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert "bash" in hf_kd("--install-completion")
    assert "_HF_KD_COMPLETE=complete_bash" in (tmp_path / ".bash_completions" / "hf-kd.sh").read_text()
    for words, number, expected in (("hf-kd era", "1", "erase"), ("hf-kd erase --labe", "2", "--label-mapping")):
        shown = hf_kd(COMP_WORDS=words, COMP_CWORD=number, _HF_KD_COMPLETE="complete_bash")
        assert expected in shown
        assert shown[-1] == "False", "torch was imported"
