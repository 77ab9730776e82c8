"""Names that are known in advance: the library's own, and refused before torch is imported."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest
import typer
from transformers import ViTConfig
from typer.testing import CliRunner

from hf_kd import ReadOptions
from hf_kd.audit.options import AuditOptions
from hf_kd.cli import app
from hf_kd.cli._choices import ATTACKS, CHOICES, SUITES, refuse_unknown, with_commas
from hf_kd.data.devices import chosen_device
from hf_kd.errors import InvalidValueError
from hf_kd.methods.choices import words_of
from hf_kd.methods.registry import built_in_infos, make_method, make_unlearning_method
from hf_kd.metrics import attacks
from hf_kd.model.onnx_export import TOLERANCE
from hf_kd.model.recipes import RECIPES
from tests.helpers.processes import LONG

COMMANDS = typer.main.get_command(app).commands
LISTED = {*CHOICES, "attacks", "device", "method"}

EVERY = """
import json, sys
from typer.testing import CliRunner
from hf_kd.cli import app
told = {}
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, words)
    told[" ".join(words)] = [done.exit_code, " ".join(done.stderr.split())]
    assert not {"torch", "transformers", "datasets"} & set(sys.modules), words
print(json.dumps(told))
"""


REFUSED = """
import json, sys
from typer.testing import CliRunner
from hf_kd.cli import app
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1, (words, done.output)
    assert not {"torch", "transformers", "datasets"} & set(sys.modules), words
"""


def mistyped() -> list[list[str]]:
    """Every command with each of its options that takes a known name, one letter wrong."""
    wrong = {"access": "weighs", "mixed_precision": "bf61", "labels": "datax", "dtype": "float61",
             "recipe": "vit-pretraned", "attacks": "linear,mlp-smal", "device": "cuda0", "method": "scurb"}  # fmt: skip
    needed = {"dataset": "data", "output": "out.onnx", "forget_labels": "cat", "recipe": "vit-pretrained"}
    lines = []
    for command, found in COMMANDS.items():
        options = {p.name: p.opts[0] for p in found.params if p.opts[0].startswith("-")}
        for name in LISTED & set(options):
            given = {key: value for key, value in needed.items() if key in options and key != name}
            rest = [word for key, value in given.items() for word in (options[key], value)]
            lines.append([command, "model", *rest, options[name],
                          "cvoer" if (command, name) == ("erase", "method") else wrong[name]])  # fmt: skip
    settings = [("unlearn", "--optimizer", "sdg"), ("erase", "--loss", "pec"), ("train-original", "--schedule", "step")]
    for command, flag, value in settings:
        more = {"erase": ["--method", "esc-t"], "train-original": ["--recipe", "vit-pretrained"]}.get(command, [])
        place = ["--dataset", "data", "--output", "out", "--forget-labels", "cat"]
        lines.append([command, "model", *(place[:4] if command == "train-original" else place), *more, flag, value])
    return [*lines, ["erase", "model", "--output", "out", "--text", "cat", "--method", "oblqiue"]]


def test_a_mistyped_name_is_refused_with_those_there_are_before_torch_is_imported(tmp_path):
    lines = mistyped()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    done = subprocess.run([sys.executable, "-c", EVERY, json.dumps(lines)], cwd=tmp_path, capture_output=True, text=True,
                          timeout=LONG, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told) == len(lines) > 20
    for words, (code, said) in told.items():
        assert code == 1, (words, said)
        assert "Did you mean" in said, (words, said)
        assert "expected" in said or "There are" in said or "Available" in said, (words, said)


def test_a_folder_that_a_command_cannot_take_is_refused_before_torch_is_imported(tmp_path):
    """Every argument that is a folder, and every option that may be one: one that is not there, or a plain model."""
    plain = tmp_path / "plain"
    plain.mkdir()
    ViTConfig().to_json_file(plain / "config.json")
    needed = {"dataset": ".", "output": "out.onnx", "forget_labels": "cat", "recipe": "vit-pretrained"}
    lines = []
    for command, found in COMMANDS.items():
        options = {p.name: p for p in found.params if p.opts[0].startswith("-")}
        arguments = [p.name for p in found.params if p.name not in options]
        folders = {"model", "folder", "source", "base", "eraser", "original", "retrained"}
        rest = [word for key, value in needed.items() if key in options for word in (options[key].opts[0], value)]
        for name in folders & {*arguments, *options}:
            typed = ["nosuch" if each == name else "user/name" if each == "repo_id" else "plain" for each in arguments]
            lines.append([command, *typed, *rest, *([options[name].opts[0], "./nosuch"] if name in options else [])])
        if {"folder", "source"} & set(arguments):
            lines.append([command, *("user/name" if each == "repo_id" else "plain" for each in arguments)])
    assert len(lines) > 15
    done = subprocess.run([sys.executable, "-c", REFUSED, json.dumps(lines)], cwd=tmp_path, capture_output=True, text=True,
                          timeout=LONG, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("value", ["", "~nosuchuser/x", "a" * 300], ids=["empty", "nobody", "long"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_cannot_be_one_is_a_usage_error_of_every_command(command, value, tmp_path, monkeypatch):
    """Of every argument and option that names a file, a folder, or what may also lie on the Hub."""
    monkeypatch.chdir(tmp_path)
    on_hub = {"model", "source", "original", "retrained", "reference_model", "membership_references", "base", "eraser",
              "dataset", "unseen", "retain", "processor"}  # fmt: skip
    hints = inspect.signature(COMMANDS[command].callback).parameters
    for parameter in COMMANDS[command].params:
        if parameter.name == "help" or not (
            "Path" in str(hints[parameter.name].annotation) or parameter.name in on_hub
        ):
            continue
        flag = parameter.opts[0]
        words = [flag, value] if flag.startswith("-") else [value]
        done = CliRunner().invoke(app, [command, *words], env={"COLUMNS": "200"})
        assert done.exit_code == 2, (words, done.output)
        assert "home folder" in done.output or "is too long" in done.output or "names no folder" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [["unlearn", "--forget-labels", "cat"], ["train-original", "--recipe", "vit-pretrained"]]
)
def test_float16_is_refused_by_commands_that_change_weights(tmp_path, words):
    given = [
        *words,
        "user/name",
        "--dataset",
        "user/data",
        "--output",
        str(tmp_path / "out"),
        "--mixed-precision",
        "fp16",
    ]
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 1, done.output
    assert "cannot be taken where weights are changed" in " ".join(done.stderr.split())


def test_the_names_are_those_of_the_library():
    assert (tuple(attacks.ATTACKS), attacks.SUITES) == (ATTACKS, SUITES)
    for name in SUITES:
        assert set(attacks.attack_names(name, views=2)) <= set(ATTACKS)
    assert CHOICES["dtype"] == tuple(TOLERANCE)
    assert CHOICES["recipe"] == tuple(RECIPES)
    for name, of in (("access", AuditOptions), ("mixed_precision", ReadOptions), ("labels", ReadOptions)):
        for value in CHOICES[name]:
            assert getattr(of(**{name: value}), name) == value
        with pytest.raises(ValueError, match=name):
            of(**{name: "other"})
    assert chosen_device("cpu").type == "cpu"


@pytest.mark.parametrize(("kind", "make"), [("eraser", make_method), ("weights", make_unlearning_method)])
def test_every_word_of_a_setting_is_one_that_its_method_takes(kind, make):
    for info in built_in_infos(kind):
        for option in info.options:
            fixed = (info.name, option.name) == ("lau", "schedule")  # its lr is constant, which it says itself
            for word in () if fixed else words_of(option.type):
                needed = {"crops": 0} if "crops" in {o.name for o in info.options} else {}
                assert getattr(make(info.name, **{option.name: word}, **needed), option.name) == word


@pytest.mark.parametrize("names", ["telepathy", "lniear,norm", "standard,norm", ""])
def test_unknown_attacks_are_refused_in_one_wording_at_once_and_by_the_library(names):
    with pytest.raises(InvalidValueError) as early:
        refuse_unknown({"attacks": names}, {})
    with pytest.raises(InvalidValueError) as late:
        AuditOptions(attacks=names.split(","))
    assert str(early.value) == str(late.value)
    refuse_unknown({"attacks": names, "imports": ["mine.py"]}, {})  # files of a user's own may bring some


def test_known_attacks_are_not_refused():
    refuse_unknown({"attacks": "linear,norm", "device": "cuda:1", "access": None}, {})
    refuse_unknown({"attacks": "full"}, {})
    refuse_unknown({"attacks": "linear, norm"}, {})
    assert with_commas(" linear, norm") == ["linear", "norm"]


@pytest.mark.parametrize(
    ("typed", "meant"), [("gpu", "cuda"), ("GPU:1", "cuda"), ("metal", "mps"), ("tpu", "xla"), ("cdua", "cuda")]
)
def test_a_device_by_another_name_is_the_one_that_torch_has(typed, meant):
    with pytest.raises(InvalidValueError, match=f"Did you mean '{meant}'\\?"):
        refuse_unknown({"device": typed}, {})
