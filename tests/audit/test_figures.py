"""Figures: each is drawn from what the report has, none is made up, and matplotlib is asked for only then."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hf_kd.audit.figures import FIGURES, draw_class_means, draw_recovery
from hf_kd.audit.plotting import block_names, spread
from hf_kd.audit.render import attackers
from hf_kd.audit.report import RetentionReport
from hf_kd.audit.sections.reference_level import ReadLevel, reference_level_section
from tests.helpers.audited import audited
from tests.metrics.planted import planted

pytest.importorskip("matplotlib")

import itertools

from matplotlib.figure import Figure


@pytest.fixture(scope="module")
def report() -> RetentionReport:
    return audited(planted(n=60), seeds=2)


def test_all_figures_are_written_and_show_something(report, tmp_path):
    files = report.figures(tmp_path / "new" / "folder")
    assert [file.stem for file in files] == ["recovery", "label_efficiency", "class_means", "norms", "tsne"]
    for file in files:
        pixels = np.asarray(Image.open(file).convert("RGB"))
        assert pixels.shape[1] >= 600
        assert 0.02 < (pixels < 200).any(axis=2).mean() < 0.9


def test_every_figure_is_named_where_they_are_asked_for():
    assert set(re.findall(r"`(\w+)\.png`", RetentionReport.figures.__doc__)) == set(FIGURES)


def test_a_loaded_report_draws_all_but_the_points_it_no_longer_has(report):
    loaded = RetentionReport.from_json(report.to_json())
    drawn = [name for name, drawer in FIGURES.items() if drawer(loaded, Figure) is not None]
    assert drawn == ["recovery", "label_efficiency", "class_means", "norms"]


def test_embeddings_have_a_recovery_figure_without_a_head(tmp_path, monkeypatch):
    report = audited(planted(n=60), logits=None)
    monkeypatch.setattr("hf_kd.audit.figures.FIGURES", {"recovery": draw_recovery})
    assert [file.stem for file in report.figures(tmp_path)] == ["recovery"]
    drawn = draw_recovery(report, Figure)
    labels = [tick.get_text().replace("\n", " ") for tick in drawn.axes[0].get_xticklabels()]
    assert labels[0].startswith("best attacker")
    assert not any("head" in label for label in labels)


def test_recovery_shows_accuracies_and_its_note_on_the_papers_probe(report):
    drawn = draw_recovery(report, Figure)
    best = drawn.axes[0].get_xticklabels()[0].get_text().replace("\n", " ")
    assert best == f"best attacker ({attackers(report.worst_case)})"
    assert drawn.axes[0].get_ylim()[1] < 110
    assert "stopped long before it converges" in " ".join(drawn.legends[0].get_title().get_text().split())


def test_labels_that_cover_each_other_are_moved_apart():
    places = [(0.0, 0.0), (0.1, 0.01), (0.05, 0.02), (3.0, 0.0)]
    moved = spread(places, [1.0] * 4, 0.1)
    assert moved[3] == places[3], "nothing is near it"
    heights = sorted(y for _, y in moved[:3])
    assert all(b - a >= 0.099 for a, b in itertools.pairwise(heights))


STAGES = [f"resnet.encoder.stages.{stage}.layers.{layer}" for stage in range(3) for layer in range(2)]


@pytest.mark.parametrize(
    ("blocks", "shown"),
    [
        (STAGES, [block.removeprefix("resnet.encoder.") for block in STAGES]),
        (["none", *STAGES[::2]], ["none", "stages.0.layers.0", "stages.1.layers.0", "stages.2.layers.0"]),
        (["vit.encoder.layer.0", "vit.encoder.layer.1", "tap"], ["layer.0", "layer.1", "tap"]),
        (["layer1.0", "layer1.1", "layer2.0"], ["layer1.0", "layer1.1", "layer2.0"]),
        (["stem", "blocks.0", "blocks.1"], ["stem", "blocks.0", "blocks.1"]),
        (["a.b.c.d"], ["a.b.c.d"]),
    ],
)
def test_no_two_blocks_are_shown_alike(report, blocks, shown):
    assert block_names(blocks) == shown
    profile = {"erased": {block: {"F": 50.0, "AUC": 60.0} for block in blocks}}
    drawn = FIGURES["weight_profile"](replace(report, context={"weights": {"profile": profile}}), Figure)
    assert [tick.get_text() for tick in drawn.axes[0].get_xticklabels()] == shown


def test_a_legend_names_what_only_one_of_the_panels_shows(report):
    references = ((60.0, 30.0), (70.0, 40.0))
    levels = [ReadLevel("features", (90.0, 50.0), references), ReadLevel("bare network", (65.0, 50.0), references)]
    section = reference_level_section(levels, 100)
    assert [score.reference is None for score in section.scores] == [True, False]
    drawn = FIGURES["reference_level"](replace(report, sections=(section,)), Figure)
    assert "level at its R" in [text.get_text() for text in drawn.legends[0].get_texts()]


def test_without_matplotlib_the_error_says_how_to_get_it(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-kd\[figures\]'"):
        report.figures(tmp_path)


def test_the_numbers_behind_the_heat_map_are_cosines(report):
    cosines = report.plots["cosines"]
    assert np.allclose(np.diag(cosines["before"]), 1)
    assert np.abs(cosines["after"]).max() <= 1 + 1e-9
    assert np.sum(report.plots["norms"]["erased"]["forget"]) == pytest.approx(1)


def test_class_means_of_changed_weights_are_shown_against_themselves_too(report):
    """Drawn anew, layers have directions of their own: cosines to the original's say nothing of what is known."""
    changed = replace(report, context={**report.context, "changes": [{"method": "regrow"}], "erasures": []})
    assert (report.treatment, changed.treatment) == ("erased", "changed")
    titles = [[axes.get_title() for axes in draw_class_means(one, Figure).axes] for one in (report, changed)]
    assert "changed against changed" in titles[1]
    assert len(titles[1]) == len(titles[0]) + 1
    loaded = RetentionReport.from_json(changed.to_json())
    assert len(draw_class_means(loaded, Figure).axes) == len(titles[1])


def test_no_legend_stands_in_the_axes_where_curves_may_be(report):
    for drawer in FIGURES.values():
        drawn = drawer(report, Figure)
        assert drawn is None or not any(axes.get_legend() for axes in drawn.axes)
