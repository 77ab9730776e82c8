"""Figures of a report: what the numbers look like, for a card or a paper. Needs the optional extra `figures`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hf_kd.data.paths import local_path
from hf_kd.data.text import figure_text
from hf_kd.errors import require

from .plotting import BLACK, BLUE, GREY, ORANGE, STYLE, VERSIONS, add_title, block_names, caption, short, spread
from .render import attackers
from .report_data import ReportData
from .schema import PAPER_NOTE
from .verdict import verdict
from .weight_figures import WEIGHT_FIGURES

MOST_MARKED = 6
"""Classes beside the forgotten ones that t-SNE names."""


def draw_figures(report: ReportData, directory: str | Path, only: str | None = None) -> tuple[Path, ...]:
    """Draw every figure whose numbers the report has into `directory`, as PNG, and return the files.

    They are those of `FIGURES`, or `only` the one of that name; `RetentionReport.figures` says what each needs.

    Raises ImportError, with the command to install it, without matplotlib.
    """
    rc_context, Figure = require("matplotlib", "figures").rc_context, require("matplotlib.figure", "figures").Figure
    folder = local_path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with rc_context(STYLE):
        for name in FIGURES if only is None else (only,):
            figure = FIGURES[name](report, Figure)
            if figure is not None:
                add_title(figure, verdict(report).short)
                figure.savefig(folder / f"{name}.png")
                written.append(folder / f"{name}.png")
    return tuple(written)


def draw_recovery(report: ReportData, figure_class: Any) -> Any:
    """Knowledge retention: the forgotten test images that each reads, the best attacker first, beside the original."""
    worst = report.worst_case
    bars = {f"best attacker\n({attackers(worst)})".replace("; ", ";\n"): _values(worst)}
    if worst.group != "linear":
        bars["linear probe,\nconverged"] = _values(report.score("converged", "D_ft"))
    if report.section("head").scores:
        bars["the model's\nown head"] = _values(report.score("head", "D_ft"))
    bars["paper's probe\n(stopped early)"] = _values(report.score("paper", "D_ft"))
    versions = [v for i, v in enumerate(VERSIONS) if any(values[i] is not None for values in bars.values())]
    figure = figure_class(figsize=(6.2, 3.5))
    axes = figure.add_subplot()
    width = 0.8 / len(versions)
    for column, version in enumerate(versions):
        colour, _, _, hatch = VERSIONS[version]
        index = list(VERSIONS).index(version)
        heights = [values[index] for values in bars.values()]
        at = np.arange(len(bars)) + (column - (len(versions) - 1) / 2) * width
        drawn = [0.0 if height is None else height for height in heights]
        axes.bar(at, drawn, width * 0.92, color=colour, hatch=hatch, edgecolor="white", label=_name(report, version))
        for x, height in zip(at, heights, strict=True):
            axes.annotate(
                "-" if height is None else f"{height:.0f}", (x, height or 0), ha="center", va="bottom", fontsize=8
            )
    axes.set_xticks(np.arange(len(bars)), list(bars))
    axes.set_ylabel("knowledge retention: forgotten\ntest images read (D_ft), %")
    _draw_chance(axes, report.score("converged", "D_ft").chance)
    axes.set_ylim(0, 106)
    axes.set_yticks(range(0, 101, 20))
    note = caption(figure, PAPER_NOTE)
    figure.legend(loc="outside lower center", ncols=len(versions), title=note, title_fontsize=7)
    return figure


def _draw_chance(axes: Any, chance: float | None) -> None:
    """A dotted line where guessing lies."""
    if chance is not None:
        axes.axhline(chance, color=BLACK, linewidth=0.8, linestyle=":")
        axes.annotate("chance", (1, chance), xycoords=("axes fraction", "data"), xytext=(2, 0),
                      textcoords="offset points", va="center", fontsize=7)  # fmt: skip


def draw_label_efficiency(report: ReportData, figure_class: Any) -> Any:
    """Recall minus false alarms of the best attacker against the labelled images of the forgotten class it has."""
    points = [score for score in report.section("label_efficiency").scores if score.name == "advantage"]
    if len(points) < 2:
        return None
    figure = figure_class(figsize=(5.0, 3.0))
    axes = figure.add_subplot()
    for version, attribute in (("original", "original"), ("erased", "value"), ("reference", "reference")):
        colour, marker, line, _ = VERSIONS[version]
        known = [(score.settings["n"], score) for score in points if getattr(score, attribute) is not None]
        if not known:
            continue
        heights = [getattr(score, attribute) for _, score in known]
        bars = [score.sd or 0.0 for _, score in known] if version == "erased" and report.seeds > 1 else None
        axes.errorbar(
            [n for n, _ in known],
            heights,
            bars,
            color=colour,
            marker=marker,
            linestyle=line,
            markersize=5,
            capsize=2,
            label=_name(report, version),
        )
    axes.set_xscale("log")
    last = points[-1].settings["n"]
    shown = [n for n in (score.settings["n"] for score in points) if n == last or n < last / 1.5]
    axes.set_xticks(shown, [f"{n:,}" for n in shown], rotation=45 if len(shown) > 8 else 0)
    axes.minorticks_off()
    axes.set_xlabel("labelled images of each forgotten class")
    axes.set_ylabel("recall - false alarms (points)")
    axes.set_ylim(min(0, axes.get_ylim()[0]), 102)  # markers at 100 are whole
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    figure.legend(loc="outside lower center", ncols=3)  # in the axes it would cover low curves
    return figure


def draw_class_means(report: ReportData, figure_class: Any) -> Any:
    """Fig. 3: cosines between class means, original against original and against erased, with the means' lengths.

    The paper's right panel erases every class with an eraser of its own: the third, where the method allows it. Where
    weights were changed the third is the changed model against itself: its features have directions of their own, most where
    layers were drawn anew, and what these have in common with the original's says little.
    """
    numbers = report.plots.get("cosines")
    if not numbers:
        return None
    before, after = np.asarray(numbers["before"]), np.asarray(numbers["after"])
    classes = numbers["classes"]
    names = [short(report.class_names.get(label, str(label))) for label in classes]
    size = max(2.6, 0.3 * len(classes))
    shown = [
        (before, numbers["norms_before"], "original against original", "original"),
        (after, numbers["norms_after"], f"original against {report.treatment}", "erased"),
    ]
    if "after_each" in numbers:
        own = np.asarray(numbers["after_each"])
        shown.append((own, numbers["norms_after_each"], "each class behind an eraser of its own", "erased"))
    elif report.treatment != "erased" and "after_own" in numbers:
        own = np.asarray(numbers["after_own"])
        title = f"{report.treatment} against {report.treatment}"
        shown.append((own, numbers["norms_after"], title, "erased"))
    figure = figure_class(figsize=(len(shown) * size + 1.6, size + 2.3), layout="compressed")
    panels = figure.subplots(1, len(shown), sharey=True)
    low = min(0.0, *(float(matrix.min()) for matrix, *_ in shown))
    for axes, (matrix, lengths, title, columns) in zip(panels, shown, strict=True):
        axes.imshow(matrix, cmap="cividis", vmin=low, vmax=1)
        axes.set_title(title)
        axes.set_xticks(
            range(len(classes)),
            [f"{name} ({length:.1f})" for name, length in zip(names, lengths, strict=True)],
            rotation=90,
        )
        axes.set_xlabel(f"mean of the {report.treatment if columns == 'erased' else columns} features (its length)")
        axes.set_yticks(range(len(classes)), names)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        if len(classes) <= 12:
            for row, column in np.ndindex(*matrix.shape):
                value = matrix[row, column]
                bright = (value - low) / (1 - low) > 0.55
                text = f"{value:.2f}".replace("0.", ".", 1).replace("-.00", ".00")
                axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=BLACK if bright else "white")
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):  # the right panel has none of its own on y
            for label, tick in zip(classes, ticks, strict=False):
                if label in report.forget_labels:
                    tick.set(fontweight="bold", color=ORANGE)
    panels[0].set_ylabel("mean of the original features")
    figure.colorbar(panels[0].images[0], ax=panels, label="cosine (not centred)", shrink=0.8)
    text = (
        "Each cell: the cosine between the mean test feature of the row's class in the original and that of the column's "
        "class; 1 is the same direction, 0 none in common. Where a class is gone its column is near 0 and its mean short; "
        "where others lost something too, their diagonal is below 1. A probe may read what means do not show."
        if report.treatment == "erased"
        else "Each cell: the cosine between the mean test features of two classes; 1 is the same direction, 0 none in "
        "common. Where weights were changed, and most where they were drawn anew, features have directions of their own, "
        "whose cosines to the original's say little: compare how alike classes are in the original, and on the right in the "
        f"{report.treatment} model. A probe may read what means do not show."
    )
    figure.supxlabel(caption(figure, text), x=0.01, ha="left", fontsize=7, color="#555555")
    return figure


def draw_norms(report: ReportData, figure_class: Any) -> Any:
    """Histograms of the feature norms of forgotten and retained test samples, original and erased."""
    numbers = report.plots.get("norms")
    if not numbers:
        return None
    shown = [version for version in ("original", "erased") if version in numbers]
    figure = figure_class(figsize=(6.2, 2.6))
    panels = figure.subplots(1, len(shown), sharex=True, sharey=True, squeeze=False)[0]
    for axes, version in zip(panels, shown, strict=True):
        counts = numbers[version]
        edges = np.asarray(numbers["edges"])
        axes.stairs(100 * np.asarray(counts["retain"]), edges, fill=True, color="#C9C9C9", label="retained (D_rt)")
        axes.stairs(100 * np.asarray(counts["forget"]), edges, color=ORANGE, linewidth=1.6, label="forgotten (D_ft)")
        axes.set_title(_name(report, version))
        axes.set_xlabel("feature norm")
    panels[0].set_ylabel("% of the samples")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def draw_layer_profile(report: ReportData, figure_class: Any) -> Any:
    """The converged probe at every block and at the tap, where alone an eraser acts: open markers.

    Where blocks of a given original read otherwise, theirs are thin lines without markers.
    """
    section = next((section for section in report.sections if section.key == "layer_profile"), None)
    if section is None or not section.scores:
        return None
    rows = section.rows()
    names = list(rows)
    erased = names[-1] == "tap" and report.treatment != "changed"
    beside = any(s.original is not None and s.original != s.value for s in section.scores if s.group != "tap")
    figure = figure_class(figsize=(max(4.5, 0.34 * len(names) + 1.5), 3.2))
    axes = figure.subplots()
    for name, colour, marker, style, label in (
        ("D_ft", ORANGE, "^", "-", "forgotten: recall (D_ft)"),
        ("advantage", BLUE, "s", "-.", "forgotten: recall - false alarms"),
        ("D_rt", GREY, "o", "--", "retained (D_rt)"),
    ):
        scores = [next(score for score in rows[layer] if score.name == name) for layer in names]
        read = [score.value for score in scores]
        if erased:  # the line goes on to what is read before the eraser
            before = scores[-1].original if scores[-1].before_projection is None else scores[-1].before_projection
            read[-1] = read[-1] if before is None else before
        axes.plot(read, color=colour, marker=marker, markersize=4.5, linestyle=style, label=label)
        if beside:
            axes.plot([score.original for score in scores], color=colour, linewidth=0.7, linestyle=style)
        if erased:
            axes.plot(len(names) - 1, scores[-1].value, color=colour, marker=marker, markersize=9, markerfacecolor="none",
                      markeredgewidth=1.4, linestyle="none")  # fmt: skip
    if beside:
        axes.plot([], [], color=BLACK, linewidth=0.7, label="thin: the original")
    if erased:
        axes.plot([], [], color=BLACK, marker="o", markersize=9, markerfacecolor="none", linestyle="none",
                  label="open: behind the eraser")  # fmt: skip
        axes.axvline(len(names) - 1, color=GREY, linewidth=0.6, zorder=0)
    _draw_chance(axes, report.score("converged", "D_ft").chance)
    lowest = min(v for score in section.scores for v in (score.value, score.original) if v is not None)
    axes.set_ylim(min(0, 1.1 * lowest), 104)
    axes.set_xticks(range(len(names)), block_names(names), rotation=60, ha="right", rotation_mode="anchor", fontsize=7)
    axes.set_ylabel("converged probe, test, %")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def draw_tsne(report: ReportData, figure_class: Any) -> Any:
    """t-SNE of a few hundred test samples, original and erased fitted together so that places can be compared."""
    samples = report.plot_samples
    if samples is None or len(samples.labels) < 30:
        return None
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    shown = {name: own for name in ("original", "erased") if (own := getattr(samples, name)) is not None}
    both = np.concatenate(list(shown.values())).astype(np.float64)
    if both.shape[1] > 50:
        both = PCA(50, random_state=0).fit_transform(both)
    perplexity = min(30, len(both) // 4)
    places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(both)
    parts = dict(zip(shown, np.split(places, len(shown)), strict=True))
    forgotten = np.isin(samples.labels, report.forget_labels)
    figure = figure_class(figsize=(7.6, 4.2))
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, (version, points) in zip(panels, parts.items(), strict=True):
        axes.scatter(*points[~forgotten].T, s=7, color="#B5B5B5", linewidths=0, label="retained (D_rt)")
        axes.scatter(
            *points[forgotten].T, s=18, color=ORANGE, marker="^", edgecolors="white", linewidths=0.3,
            label="forgotten (D_ft)",
        )  # fmt: skip
        _fill(axes, points)
        _name_clusters(axes, report, samples.labels, points)
        axes.set_title(_name(report, version))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(True)
    handles, labels = panels[0].get_legend_handles_labels()
    text = "t-SNE, panels fitted together and each drawn at its own scale; distances between clusters mean little."
    figure.legend(handles, labels, loc="outside lower center", ncols=2, title=caption(figure, text), title_fontsize=7)
    return figure


def _fill(axes: Any, points: np.ndarray) -> None:
    """Limits that the bulk of the points fills: single ones far out are left at the edge or outside."""
    for side, values in zip("xy", points.T, strict=True):
        low, high = np.quantile(values, [0.01, 0.99])
        room = 0.1 * (high - low) or 1.0
        getattr(axes, f"set_{side}lim")(low - room, high + room)


def _name_clusters(axes: Any, report: ReportData, labels: np.ndarray, points: np.ndarray) -> None:
    """Names at the middle of every class, where they are not too many, moved so that all can be read."""
    classes = np.unique(labels)
    if len(classes) > 2 * MOST_MARKED:
        classes = np.array([label for label in classes if int(label) in report.forget_labels])
    if not len(classes):
        return
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    centres = [tuple(np.median(points[labels == label], axis=0)) for label in classes]
    edge = 0.13 * (right - left)  # half a name
    centres = [(min(max(x, left + edge), right - edge), y) for x, y in centres]
    names = [short(report.class_names.get(int(label), str(label))) for label in classes]
    widths = [0.022 * len(name) * (right - left) for name in names]
    apart = spread(centres, widths, 0.055 * (top - bottom))
    for label, name, centre in zip(classes, names, apart, strict=True):
        bold = int(label) in report.forget_labels
        axes.annotate(
            name, centre, ha="center", va="center", fontsize=7, fontweight="bold" if bold else "normal",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
        )  # fmt: skip


FIGURES: dict[str, Callable[[ReportData, Any], Any]] = {
    "recovery": draw_recovery,
    "label_efficiency": draw_label_efficiency,
    "class_means": draw_class_means,
    "norms": draw_norms,
    "layer_profile": draw_layer_profile,
    "tsne": draw_tsne,
    **WEIGHT_FIGURES,
}
"""File name -> what draws it; None where the report lacks the numbers."""


def _values(score: Any) -> tuple[float | None, float | None, float | None]:
    return score.original, score.value, score.reference


def _name(report: ReportData, version: str) -> str:
    if version == "erased":
        return report.treatment
    return figure_text(f"reference ({report.reference})") if version == "reference" else version
