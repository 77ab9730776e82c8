"""Hostile names at the functions through which text leaves."""

from __future__ import annotations

import io
import subprocess

import pytest
from rich.console import Console

from hf_kd.data import text
from tests.helpers.hostile import HOSTILE


@pytest.mark.parametrize("name", HOSTILE)
def test_no_exit_lets_a_name_be_more_than_a_name(name):
    for made in (
        text.escape_markdown(name),
        text.table_cell(name),
        text.code(name),
        text.sentence(name),
        text.figure_text(name),
        text.shell_word(name),
        text.one_line(name),
    ):
        assert made.isprintable()
    for made in (text.escape_markdown(name), text.table_cell(name), text.code(name), text.shell_word(name)):
        assert "<!--" not in made
    for made in (text.escape_markdown(name), text.table_cell(name)):
        assert "<" not in made
        assert "$" not in made.replace("\\$", "")
        assert "|" not in made.replace("\\|", "")
    assert not text.escape_markdown(name).startswith(("#", "```", "- ", "+ ", "=", "1. "))
    assert text.code(name).count("`") == 2
    assert len(text.escape_markdown(name)) < 500
    assert "$" not in text.figure_text(name).replace(r"\$", "")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_block_of_code_is_ended_by_nothing_in_it(name):
    block = text.code_block([name, "second"], "bash").split("\n")
    assert len(block) == 4
    assert block[0] == f"{block[-1]}bash"
    assert block[-1] not in block[1]
    assert "<!--" not in block[1]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_word_for_the_shell_is_the_name(name):
    done = subprocess.run(
        ["bash", "-c", f"printf %s {text.shell_word(name)}"], capture_output=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert done.stdout.decode("utf-8") == name


@pytest.mark.parametrize("name", HOSTILE)
def test_a_terminal_shows_the_name_and_obeys_it_in_nothing(name):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="truecolor", width=100_000, highlight=False)
    console.print(text.terminal({"names": [name]})["names"][0])
    shown = out.getvalue().rstrip("\n")
    assert shown == text.one_line(name)
    assert "\x1b" not in shown


def test_a_plain_name_stays_what_it_is():
    for name in ("golden retriever", "3 (cat)", "Café", "猫"):
        assert text.one_line(name) == name
        assert text.table_cell(name) == name
        assert text.figure_text(name) == name
        assert text.terminal(name) == name
