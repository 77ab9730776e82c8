"""`hf-kd demo`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hf_kd.cli.demo import run as demo_module
from hf_kd.cli.demo.command import EXAMPLE
from hf_kd.metrics.scores import ForgetRetainScores
from tests.cli.runner import hf_kd


@pytest.fixture
def result(tmp_path):
    """What a demo might have measured."""

    def row(method, head, probe, converged=True):
        scores = [ForgetRetainScores(value, 90.0, value, 90.0) for value in (head, probe)]
        return SimpleNamespace(
            method=method,
            head=scores[0],
            probe=SimpleNamespace(scores=scores[1], convergence=SimpleNamespace(converged=converged)),
        )

    def made(head, probe, equal=True, converged=True):
        rows = row("original", 99.0, 99.0), row("ESC", head, probe, converged)
        return SimpleNamespace(rows=rows, folder=tmp_path / "demo", reloaded_equal=equal)

    return made


@pytest.mark.parametrize(("equal", "code"), [(True, 0), (False, 1)])
@pytest.mark.parametrize("how", [[], ["--json"]])
def test_another_answer_after_loading_is_no_success(result, tmp_path, monkeypatch, how, equal, code):
    monkeypatch.setattr(demo_module, "run_demo", lambda *given, **named: result(2.0, 88.0, equal))
    hf_kd("demo", "--output", tmp_path / "demo", *how, code=code)


@pytest.mark.parametrize(("head", "probe", "converged"), [(2.0, 88.0, True), (91.0, 88.0, True), (2.0, 88.0, False)])
def test_the_sentence_is_of_what_was_measured(result, tmp_path, monkeypatch, head, probe, converged):
    monkeypatch.setattr(demo_module, "run_demo", lambda *given, **named: result(head, probe, True, converged))
    shown = " ".join(hf_kd("demo", "--output", tmp_path / "demo").stdout.split())
    assert f"reads up to {probe:.0f} %" in shown
    assert f"for up to {head:.0f} % of them" in shown
    assert ("the head does not show" in shown) == (probe > head)
    assert ("trained to convergence" in shown) == converged


def test_a_folder_of_another_model_is_not_written_over(result, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module, "run_demo", lambda *given, **named: result(2.0, 88.0))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    refused = hf_kd("demo", "--output", tmp_path / "mine", code=1).stderr
    assert "--overwrite" in refused
    hf_kd("demo", "--output", tmp_path / "mine", "--overwrite")
    (tmp_path / "mine" / "examples").mkdir()
    (tmp_path / "mine" / EXAMPLE).touch()
    hf_kd("demo", "--output", tmp_path / "mine")  # the demo's own


@pytest.mark.parametrize(
    "arguments",
    [
        ["--json", "--ui"],
        ["--port", "80"],
        ["--ui", "--model", "m/m", "--digit", "3"],
        ["--ui", "--model", "m/m", "--output", "x"],
    ],
)
def test_options_that_nothing_would_read_are_refused(arguments, monkeypatch):
    monkeypatch.setattr("hf_kd.cli._inputs.load_libraries", lambda shared: pytest.fail("imported"))
    assert "leave " in hf_kd("demo", *arguments, code=1).stderr


def test_the_demo_leaves_the_number_of_threads_as_it_was():
    """A second thread gains nothing there, and waits for the first on a busy machine."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyError), demo_module.one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
