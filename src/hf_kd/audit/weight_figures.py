"""Figures of an audit with access to the weights: profile by block, relearning curves, F against R of references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .plotting import BLACK, GREEN, GREY, ORANGE, VERSIONS, block_names
from .report_data import ReportData, scores_in

LEAST_SPAN = 10.0
"""Points that an axis of the figure of references spans at least."""


def draw_weight_profile(report: ReportData, figure_class: Any) -> Any:
    """F and AUC of the converged probe at blocks of the bare networks; references beyond the first are thin."""
    profile = (report.context.get("weights") or {}).get("profile") or {}
    if not profile.get("erased"):
        return None
    figure = figure_class(figsize=(7.0, 3.2))
    blocks = list(profile["erased"])
    for axes, quantity, title in zip(
        figure.subplots(1, 2),
        ("F", "AUC"),
        ("forgotten test images read, %", "AUC, %"),
        strict=True,
    ):
        for version, points in profile.items():
            colour, marker, line, _ = VERSIONS.get(version, VERSIONS["reference"])
            more = version not in VERSIONS
            axes.plot(
                range(len(blocks)), [points.get(block, {}).get(quantity) for block in blocks], color=colour, marker=marker,
                linestyle=line, linewidth=0.7 if more else 1.4, markersize=2 if more else 4,
                label=None if more else _called(report, version),
            )  # fmt: skip
        axes.set_xticks(range(len(blocks)), block_names(blocks), rotation=60, ha="right", fontsize=7)
        axes.set_title("a converged probe, block by block")
        axes.set_ylabel(title)
        _whole_scale(axes, quantity)
    _add_legend(figure)
    return figure


def draw_relearning(report: ReportData, figure_class: Any) -> Any:
    """AUC and F over the steps of relearning, a panel for each number of labelled images."""
    curves = (report.context.get("weights") or {}).get("relearning") or {}
    own = curves.get("erased")
    if not own:
        return None
    figure = figure_class(figsize=(2.4 * len(own) + 0.6, 4.2))
    panels = figure.subplots(2, len(own), sharex=True, sharey="row", squeeze=False)
    for version, found in curves.items():
        colour, marker, line, _ = VERSIONS.get(version, VERSIONS["reference"])
        more = version not in VERSIONS
        for column, curve in enumerate(found[: len(own)]):
            for row, quantity in enumerate(("auc", "recall")):
                panels[row][column].plot(
                    range(len(curve["steps"])), curve[quantity], color=colour, marker=marker, linestyle=line,
                    linewidth=0.7 if more else 1.4, markersize=2 if more else 4,
                    label=None if more else _called(report, version),
                )  # fmt: skip
    for column, curve in enumerate(own):
        panels[0][column].set_title(f"{curve['shots']} images a class")
        panels[1][column].set_xticks(range(len(curve["steps"])), [str(step) for step in curve["steps"]])
        panels[1][column].set_xlabel("steps of relearning")
    panels[0][0].set_ylabel("AUC, %")
    panels[1][0].set_ylabel("forgotten answered, %")
    for row, quantity in zip(panels, ("AUC", "F"), strict=True):
        _whole_scale(row[0], quantity)
    _add_legend(figure)
    return figure


def draw_reference_level(report: ReportData, figure_class: Any) -> Any:
    """F against R of the references, and the audited model beside their level at its own R."""
    scores = scores_in(report, "reference_level")
    if not any(len(score.settings["references"]) > 1 for score in scores):
        return None
    figure = figure_class(figsize=(3.4 * len(scores), 3.0))
    for axes, score in zip(figure.subplots(1, len(scores), squeeze=False)[0], scores, strict=True):
        points = sorted(score.settings["references"])
        axes.plot(*zip(*points, strict=True), color=GREEN, marker="^", linestyle=":", label="references")
        own = score.settings["R"], score.value
        axes.plot(*own, color=ORANGE, marker="s", linestyle="", label="this model")
        if score.reference is not None:
            axes.errorbar(
                own[0], score.reference, yerr=score.settings["level_sd"], color=BLACK, marker="_", markersize=12, capsize=3,
                linestyle="", label="level at its R",
            )  # fmt: skip
            axes.plot([own[0]] * 2, [score.reference, own[1]], color=GREY, linewidth=0.8, zorder=0)
        axes.set_title(score.group.partition(",")[0])
        axes.set_xlabel("R: retained read, %")
        axes.set_ylabel("F: forgotten read, %")
        for side in ("x", "y"):  # a difference of a few images is not to fill the panel
            low, high = getattr(axes, f"get_{side}lim")()
            high = min(102.0, high + max(0.0, LEAST_SPAN - (high - low)) / 2)
            getattr(axes, f"set_{side}lim")(min(low, high - LEAST_SPAN), high)
    _add_legend(figure)
    return figure


def _add_legend(figure: Any) -> None:
    """What any of the panels shows, once."""
    drawn = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    shown = {label: handle for handle, label in drawn}
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=3, fontsize=8)


def _called(report: ReportData, version: str) -> str:
    return {"erased": report.treatment, "reference": "a network that never saw it"}.get(version, version)


def _whole_scale(axes: Any, quantity: str) -> None:
    """Percent from nothing, of an AUC from guessing, to all: small differences look small."""
    axes.set_ylim(min(axes.get_ylim()[0], 45.0 if quantity == "AUC" else -2.0), 102)


WEIGHT_FIGURES: dict[str, Callable[[ReportData, Any], Any]] = {
    "weight_profile": draw_weight_profile,
    "relearning": draw_relearning,
    "reference_level": draw_reference_level,
}
"""File name -> what draws it; None where the report lacks the numbers."""
