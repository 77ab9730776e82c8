"""Figures over all rows of an experiment: what each method leaves, what it costs, how far it moves the weights.

The numbers are those of the tables. Figures of single models (class means, t-SNE, Grad-CAM) are the audit's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..audit.figures import STYLE
from .config import Experiment
from .store import Store
from .tables import Line, lines

FORGET, RETAIN, GREY = "#D55E00", "#0072B2", "#8C8C8C"


def draw(experiment: Experiment, store: Store, folder: Path) -> list[Path]:
    """Draw `recovery.png` (Fig. 1), `weights.png` (Fig. 2), `time.png` (Fig. 5) and `pareto.png` where there are numbers.

    Raises ImportError, with the command to install it, without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Figures need matplotlib, which is not installed. Install it: pip install 'hf-kd[figures]'."
        ) from error
    rows = [line for line in lines(experiment, store) if line.records]
    original = next((line for line in rows if line.label == "original"), None)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with rc_context(STYLE):
        for name, drawer in (("recovery", recovery), ("weights", weights), ("time", times), ("pareto", pareto)):
            figure = drawer(rows, original, Figure)
            if figure is not None:
                figure.savefig(folder / f"{name}.png")
                written.append(folder / f"{name}.png")
    return written


def recovery(rows: Sequence[Line], original: Line | None, figure_class: Any) -> Any:
    """Fig. 1: probe accuracy on D_ft over the original head's: converged, and the paper's."""
    base = _mean(original, "D_ft") if original else None
    shown = [line for line in rows if line.values("KR D_ft") and line is not original]
    if not base or not shown:
        return None
    figure = figure_class(figsize=(6.4, 0.28 * len(shown) + 1.3))
    axes = figure.subplots()
    for offset, key, colour, label in (
        (-0.2, "KR D_ft", FORGET, "converged probe"),
        (0.2, "KR_paper D_ft", GREY, "the paper's probe"),
    ):
        places = [i + offset for i, line in enumerate(shown) if line.values(key)]
        axes.barh(
            places,
            [100 * _mean(line, key) / base for line in shown if line.values(key)],
            0.38,
            color=colour,
            label=label,
        )
    axes.set_yticks(range(len(shown)), [line.label for line in shown])
    axes.invert_yaxis()
    axes.axvline(100, color="black", linewidth=0.8)
    axes.set_xlabel("recovery rate: probe on D_ft over the original head, %")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def weights(rows: Sequence[Line], original: Line | None, figure_class: Any) -> Any:
    """Fig. 2: relative change of the head's weights and of all others."""
    shown = [line for line in rows if line.values("weights other") and line is not original]
    if not shown or not any(_mean(line, "weights other") or _mean(line, "weights head") for line in shown):
        return None
    figure = figure_class(figsize=(6.4, 0.28 * len(shown) + 1.3))
    axes = figure.subplots()
    for offset, key, colour, label in ((-0.2, "weights head", FORGET, "head"), (0.2, "weights other", RETAIN, "other")):
        axes.barh(
            [i + offset for i in range(len(shown))],
            [_mean(line, key) for line in shown],
            0.38,
            color=colour,
            label=label,
        )
    axes.set_yticks(range(len(shown)), [line.label for line in shown])
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=1e-3)
    axes.set_xlabel("||change||_F / ||original||_F (0: no weight changed)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def times(rows: Sequence[Line], original: Line | None, figure_class: Any) -> Any:
    """Fig. 5: seconds of each method, feature pass or reading and fit apart."""
    shown = [(line, line.seconds()) for line in rows if line.seconds()]
    if not shown:
        return None
    figure = figure_class(figsize=(6.4, 0.28 * len(shown) + 1.3))
    axes = figure.subplots()
    places = range(len(shown))
    axes.barh(places, [took[0] for _, took in shown], 0.6, color=GREY, label="reading, features")
    axes.barh(places, [took[1] for _, took in shown], 0.6, [took[0] for _, took in shown], color=FORGET, label="fit")
    axes.set_yticks(places, [line.label for line, _ in shown])
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlabel("seconds (logarithmic above 1)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def pareto(rows: Sequence[Line], original: Line | None, figure_class: Any) -> Any:
    """What a converged probe reads of D_ft against what the head keeps of D_rt; down and right is better."""
    shown = [line for line in rows if line.values("KR D_ft") and line.values("D_rt")]
    if len(shown) < 2:
        return None
    figure = figure_class(figsize=(5.6, 4.2))
    axes = figure.subplots()
    for line in shown:
        x, y = _mean(line, "D_rt"), _mean(line, "KR D_ft")
        axes.scatter([x], [y], s=22, color="black" if line is original else FORGET, zorder=3)
        axes.annotate(line.label, (x, y), xytext=(3, 3), textcoords="offset points", fontsize=6)
    axes.set_xlabel("retained classes, the model's head (D_rt), %")
    axes.set_ylabel("forgotten class, converged probe (D_ft), %")
    return figure


def _mean(line: Line, key: str) -> float:
    values = line.values(key)
    return sum(values) / len(values) if values else 0.0
