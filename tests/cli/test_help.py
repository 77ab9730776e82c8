"""The help of a command can be read: in groups, the common options first, without scrolling for pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

import hf_kd.cli as hf_kd_cli
from hf_kd.cli import app
from hf_kd.cli._options import METHOD, PANEL_OF, PANELS
from hf_kd.methods.choices import words_of
from hf_kd.methods.registry import built_in_infos, method_info, unlearning_methods
from tests.cli.runner import hf_kd

COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_fits_on_a_page_and_leaves_no_option_out(command, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = hf_kd(command, "--help").stdout.splitlines()
    assert len(lines) <= 110
    assert max(map(len, lines)) <= columns
    words = " ".join(lines).split()
    for option in COMMANDS[command].params:
        assert (option.opts[0] if option.opts[0].startswith("-") else option.name.upper()) in words


@pytest.mark.parametrize("command", ["erase", "audit", "unlearn", "train-original"])
def test_what_is_given_most_stands_first_and_settings_of_methods_last(command):
    lines = [line.strip() for line in hf_kd(command, "--help").stdout.splitlines()]
    titles = [line for line in lines if line in PANELS]
    assert titles == [panel for panel in PANELS if panel in titles]
    assert titles[0] == "Data and labels"
    assert lines[lines.index("Data and labels") + 1].startswith("--dataset")
    assert (titles[-1] == METHOD) == (command != "audit")


def test_checkpoint_names_the_methods_that_go_on_from_one():
    (said,) = (option.help for option in COMMANDS["unlearn"].params if option.name == "checkpoint")
    methods = unlearning_methods()
    assert set(methods) & set(re.findall(r"[\w-]+", said)) == {name for name in methods if methods[name].resumes}


def test_the_line_of_usage_names_the_command_once():
    assert hf_kd("erase", "--nope", code=2).stderr.count("hf-kd erase") == 2, "usage, and where the help is"
    assert hf_kd("erase", "--help").stdout.splitlines()[0].endswith("erase MODEL --output PATH [OPTIONS]")


def test_an_option_says_what_is_required_its_default_and_its_kind_of_value():
    text = " ".join(hf_kd("erase", "--help").stdout.split())
    for said in ("erase MODEL --output PATH [OPTIONS]", "[required]",
                 "--split TEXT", "[default: train]", "--limit N", "--mask-head / --no-mask-head",
                 "hf-kd methods NAME explains"):  # fmt: skip
        assert said in text


def test_the_group_of_an_option_is_told_in_one_place_for_all_commands():
    options = {p.name: p for found in COMMANDS.values() for p in found.params}
    assert set(PANEL_OF) <= set(options), "of options that there are"
    assert set(PANEL_OF.values()) <= set(PANELS)
    sources = [path for path in Path(hf_kd_cli.__file__).parent.glob("*.py") if "rich_help_panel=" in path.read_text()]
    assert not sources, "at no option"


@pytest.mark.parametrize("command", ["unlearn", "train-original"])
def test_words_that_an_option_takes_as_a_setting_are_told_and_completed(command):
    """An option that is not listed among the settings, since another has its name, says what it takes as one."""
    infos = {"unlearn": built_in_infos("weights"), "train-original": [method_info("retrain")]}[command]
    known = {option.name: option for option in COMMANDS[command].params}
    for info in infos:
        for setting in info.options:
            option, words = known[setting.name], words_of(setting.type)
            if option.rich_help_panel == METHOD or not words:
                continue
            assert f"{' or '.join(words)} ({info.name})" in option.help
            context = typer.Context(COMMANDS[command])
            assert set(words) <= {found.value for found in option.shell_complete(context, "")}
