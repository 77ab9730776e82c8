"""Figures: each is drawn from what the report has, none is made up, and matplotlib is asked for only then."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from hf_kd.audit.report import RetentionReport
from tests.helpers.audited import audited
from tests.metrics.planted import planted

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def report() -> RetentionReport:
    return audited(planted(n=200), seeds=2)


def test_all_figures_are_written_and_show_something(report, tmp_path):
    files = report.figures(tmp_path / "new" / "folder")
    assert [file.stem for file in files] == ["recovery", "label_efficiency", "class_means", "norms", "tsne"]
    for file in files:
        pixels = np.asarray(Image.open(file).convert("RGB"))
        assert pixels.shape[1] >= 600
        assert 0.02 < (pixels < 200).any(axis=2).mean() < 0.9


def test_a_loaded_report_draws_all_but_the_points_it_no_longer_has(report, tmp_path):
    loaded = RetentionReport.from_json(report.to_json())
    assert [file.stem for file in loaded.figures(tmp_path)] == ["recovery", "label_efficiency", "class_means", "norms"]


def test_embeddings_have_no_recovery_figure(tmp_path):
    files = audited(planted(n=200), logits=None).figures(tmp_path)
    assert "recovery" not in [file.stem for file in files]


def test_without_matplotlib_the_error_says_how_to_get_it(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-kd\[figures\]'"):
        report.figures(tmp_path)


def test_the_numbers_behind_the_heat_map_are_cosines(report):
    cosines = report.plots["cosines"]
    assert np.allclose(np.diag(cosines["before"]), 1)
    assert np.abs(cosines["after"]).max() <= 1 + 1e-9
    assert np.sum(report.plots["norms"]["erased"]["forget"]) == pytest.approx(1)
