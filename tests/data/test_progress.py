"""Bars: on a terminal alone, with the name of what is at work, and cleared in the end."""

from __future__ import annotations

import io
import re
import sys
from time import monotonic, sleep

import pytest

from hf_kd.data import progress
from hf_kd.data.progress import Steps, at_work, counted, working
from tests.helpers.passing_time import PassingTime
from tests.helpers.processes import LONG


class Terminal(io.StringIO):
    """Standard error that somebody looks at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def of_a_library(monkeypatch):
    """As `import hf_kd` leaves it: a command that ran in this process asked for lines, which stays."""
    monkeypatch.setattr(progress, "_plain", False)


@pytest.fixture
def time(monkeypatch):
    return PassingTime(monkeypatch)


def shown(monkeypatch, time, stream, visible=True):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "DELAY", 0.05)
    with Steps(3, "attacks", visible) as bar:
        for name in ("linear", "mlp", "knn"):
            bar.begin(name)
            time.sleep(0.12)
    with working("saving", visible):
        time.sleep(0.12)
    with counted(range(3), "features", "batch", visible) as items:
        list(items)
    return stream.getvalue()


def test_the_name_of_each_step_is_shown_on_a_terminal_and_cleared(monkeypatch, time):
    text = shown(monkeypatch, time, Terminal())
    assert all(name in text for name in ("linear", "mlp", "knn", "2/3", "saving ..."))
    assert text.split("\r")[-1].strip() == ""


@pytest.mark.parametrize(("stream", "visible"), [(io.StringIO(), True), (Terminal(), False)])
def test_nothing_is_written_to_pipes_or_where_nobody_asked(monkeypatch, time, stream, visible):
    assert shown(monkeypatch, time, stream, visible) == ""


def test_the_first_of_few_long_items_is_not_silent(monkeypatch, time):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "DELAY", 0.05)
    with pytest.raises(ArithmeticError), counted(range(2), "features", "batch") as items:
        for _ in items:
            time.sleep(0.2)
            raise ArithmeticError
    told = sys.stderr.getvalue()
    assert "features" in told
    assert "0/2" in told
    time.sleep(0.2)
    assert sys.stderr.getvalue() == told, "and it ends where an error ends it"


def test_nor_is_it_in_a_pipe_that_asked_for_lines(monkeypatch, time):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for name, value in (("DELAY", 0.05), ("_plain", True), ("_line_at", float("-inf")), ("_line", "")):
        monkeypatch.setattr(progress, name, value)
    with counted(range(1), "features", "batch") as items:
        for _ in items:
            time.sleep(0.2)
    assert sys.stderr.getvalue() == "features, 0 of 1 ...\n"


def test_a_long_stage_in_a_pipe_says_how_far_it_is_now_and_then(monkeypatch, time):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    settings = {"DELAY": 0.05, "AGAIN": 0.3, "_plain": True, "_line_at": float("-inf"), "_line": ""}
    for name, value in settings.items():
        monkeypatch.setattr(progress, name, value)
    with counted(range(42), "features", "batch") as items:
        for _ in items:
            time.sleep(0.02)
    told = sys.stderr.getvalue().splitlines()
    assert 2 <= len(told) <= 4, "not with every item"
    assert all(re.fullmatch(r"features, \d+ of 42 \.\.\.", line) for line in told)


def test_the_clock_of_the_machine_goes_on_while_something_takes_long(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "DELAY", 0.01)
    end = monotonic() + LONG
    with working("saving"):
        while "saving ..." not in sys.stderr.getvalue():
            assert monotonic() < end
            sleep(0.01)


def test_what_ends_at_once_shows_nothing(monkeypatch, time):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with working("saving"):
        pass
    assert sys.stderr.getvalue().strip() == ""


def test_short_things_one_after_the_other_are_not_silent_for_long(monkeypatch, time):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "DELAY", 0.4)
    monkeypatch.setattr(progress, "SHORTEST", 0.05)
    monkeypatch.setattr(progress, "_ended", 0.0)
    for name in ("first", "second", "third"):
        with working(name):
            time.sleep(0.25)
    assert "first" not in sys.stderr.getvalue()
    assert "second ..." in sys.stderr.getvalue(), "0.4 seconds after the first began"
    monkeypatch.setattr(sys, "stderr", Terminal())
    with working("loading", at_once=True):
        assert "loading ..." in sys.stderr.getvalue()


@pytest.mark.parametrize(
    ("between", "visible", "said"),
    [
        (0.0, True, ["linear, 1 of 3 ...", "mlp, 2 of 3 ...", "knn, 3 of 3 ...", "saving ..."]),
        (60.0, True, ["linear, 1 of 3 ..."]),
        (0.0, False, []),
    ],
)
def test_a_program_says_stages_that_take_time_as_lines_where_nobody_looks_at_bars(
    monkeypatch, time, between, visible, said
):
    for name, value in (("_plain", True), ("_line_at", float("-inf")), ("_line", ""), ("BETWEEN", between)):
        monkeypatch.setattr(progress, name, value)
    monkeypatch.setattr(progress, "SHORTEST", 0.02)
    text = shown(monkeypatch, time, io.StringIO(), visible)
    assert text.splitlines() == said
    assert "\r" not in text


def test_a_stage_shows_its_seconds_whenever_nothing_inside_it_shows_a_bar(monkeypatch, time):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "DELAY", 0.1)

    def said(seconds):
        start = len(sys.stderr.getvalue())
        time.sleep(seconds)
        return sys.stderr.getvalue()[start:]

    with at_work("ssd"):
        assert "ssd ..." in said(0.3)
        with working("asking"):
            during = said(0.5)
            assert "asking ..." in during
            assert "ssd" not in during, "two at once would write over each other"
        with working("unseen", visible=False):
            assert "ssd ..." in said(0.4), "what shows nothing hides nothing"
        with pytest.raises(ArithmeticError), counted(range(2), "features", "batch") as items:
            assert "ssd" not in said(0.3)
            raise ArithmeticError(list(items))
        assert "ssd ..." in said(0.4)
    assert sys.stderr.getvalue().split("\r")[-1].strip() == ""
    assert said(0.3) == ""
    assert progress._bars_open == 0


def test_a_stage_that_nobody_looks_at_writes_nothing(monkeypatch, time):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress, "DELAY", 0.05)
    with at_work("ssd"):
        time.sleep(0.2)
    assert sys.stderr.getvalue() == ""
