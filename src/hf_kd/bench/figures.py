"""Figures over all rows of an experiment: what each method leaves, what it costs, how far it moves the weights.

The numbers are those of the tables. Figures of single rows (class means, t-SNE, Grad-CAM) are drawn in `panels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_kd.audit.plotting import STYLE, add_title, caption, spread
from hf_kd.audit.schema import PAPER_NOTE
from hf_kd.data.text import figure_text
from hf_kd.errors import require

from .config import PLAIN_ROWS, Experiment
from .lines import Line, lines
from .store import Store

FORGET, RETAIN, GREY = "#D55E00", "#0072B2", "#8C8C8C"
BETTER = "#009E73"
LINE_TO = {"arrowstyle": "-", "color": "#888888", "linewidth": 0.5, "shrinkA": 1, "shrinkB": 0}
MOST_BESIDE = 12
"""Rows whose names stand beside their points."""
COLOURED = (1e-4, 1.0)
"""Relative changes between which the colours of `layers` differ; one that moved further would wash out the rest."""


def draw(experiment: Experiment, store: Store, folder: Path) -> list[Path]:
    """Draw what there are numbers for; the title of each figure is what they say in short.

    The figures: `recovery.png` (after Fig. 1: accuracies, not their ratio to the original's head), `weights.png` and
    `weights_by_layer.png` (Fig. 2), `time.png` (Fig. 5), `pareto.png` and `attackers.png`.

    Args:
        experiment: Whose rows are drawn.
        store: Their results.
        folder: Where the figures go; made where it is missing.

    Returns:
        The files that were written.

    Raises:
        MissingPackageError: With the command to install it, without matplotlib.
    """
    rc_context, Figure = require("matplotlib", "figures").rc_context, require("matplotlib.figure", "figures").Figure
    rows = [line for line in lines(experiment, store) if line.records]
    original = next((line for line in rows if line.row.kind == "original"), None)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with rc_context(STYLE):
        for name, drawer in FIGURES.items():
            figure = drawer(rows, original, Figure)
            if figure is not None:
                add_title(figure, in_short(rows, original))
                figure.savefig(folder / f"{name}.png")
                written.append(folder / f"{name}.png")
            else:  # one of other rows would be taken for one of these
                (folder / f"{name}.png").unlink(missing_ok=True)
    return written


def in_short(rows: Sequence[Line], original: Line | None) -> str:
    """The title of every figure: after which row least is read, beside the original and what was never trained on it."""
    for key, who in (("worst/recall", "The best attacker"), ("KR D_ft", "A converged probe")):
        made = [
            line for line in rows if line.values(key) and line.row.kind not in PLAIN_ROWS and not line.row.reference
        ]
        beside = {
            "original": [] if original is None else [original],
            "a model without it": [line for line in rows if line.row.reference],
            "unseen": [line for line in rows if line.row.kind == "unseen"],
        }
        read = {name: [_mean(line, key) for line in found if line.values(key)] for name, found in beside.items()}
        known = ", ".join(f"{name} {_from_to(values)} %" for name, values in read.items() if values)
        if not (made or known):
            continue
        if not made:
            return f"{who} reads of the forgotten: {known}"
        least = min(made, key=lambda line: _mean(line, key))
        value, alike = _mean(least, key), [line for line in made if round(_mean(line, key)) == round(_mean(least, key))]
        after = least.label + (f" and {len(alike) - 1} more" if len(alike) > 1 else "")
        told = f"{who} reads least of the forgotten after {after}: {value:.0f} %"
        if original is not None and original.values(key) and round(value) >= round(_mean(original, key)):
            told = f"{who} reads no less of the forgotten after any method: {value:.0f} % or more"
        told += f" ({known})" if known else ""
        if least.values("replaced D_ft"):  # a reader who is fooled is not one who finds nothing
            own, others = _mean(least, "replaced D_ft"), _mean(least, "replaced D_rt")
            told += f"; it gives {own:.0f} % of them and {others:.0f} % of the others features of other images"
        return told
    return "What each row costs; nothing was read of the forgotten"


def _from_to(values: Sequence[float]) -> str:
    """Numbers as text: one, or the least and the most of several."""
    ends = dict.fromkeys(f"{value:.0f}" for value in (min(values), max(values)))
    return " to ".join(ends)


def shown_name(label: str) -> str:
    """A row's label as a figure prints it."""
    return figure_text(label, 36)


def _bars(shown: Sequence[Line], figure_class: Any) -> tuple[Any, Any]:
    """A figure with one place on the y axis for each row, the first on top."""
    figure = figure_class(figsize=(6.4, max(0.26 * len(shown) + 1.2, 2.4)))
    axes = figure.subplots()
    axes.set_yticks(range(len(shown)), [shown_name(line.label) for line in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    return figure, axes


def recovery(rows: Sequence[Line], original: Line | None, figure_class: Any) -> Any:
    """After Fig. 1, which shows ratios to the original's head: the share of D_ft that the best attacker, a converged probe
    and the paper's read.

    The dashed line is what the best of them reads from the original.
    """
    shown = [line for line in rows if line.values("KR D_ft") and line is not original]
    if not shown:
        return None
    figure, axes = _bars(shown, figure_class)
    readers = [
        ("worst/recall", FORGET, "best attacker"),
        ("KR D_ft", RETAIN, "converged probe"),
        ("KR_paper D_ft", GREY, "the paper's probe"),
    ]
    readers = [reader for reader in readers if any(line.values(reader[0]) for line in shown)]
    height = 0.8 / len(readers)
    for number, (key, colour, label) in enumerate(readers):
        places = [i + (number - (len(readers) - 1) / 2) * height for i, line in enumerate(shown) if line.values(key)]
        axes.barh(
            places, [_mean(line, key) for line in shown if line.values(key)], 0.95 * height, color=colour, label=label
        )
    if original is not None and original.values(readers[0][0]):
        axes.axvline(
            _mean(original, readers[0][0]),
            color="black",
            linewidth=0.9,
            linestyle="--",
            label=f"original, {readers[0][2]}",
        )
    axes.set_xlim(0, 101)
    axes.set_xlabel("knowledge retention: forgotten test images read (D_ft), %")
    paper = any(key == "KR_paper D_ft" for key, *_ in readers)
    figure.legend(
        loc="outside lower center",
        ncols=2,
        title=caption(figure, PAPER_NOTE) if paper else None,
        title_fontsize=7,
    )
    return figure


def weights(rows: Sequence[Line], original: Line | None, figure_class: Any) -> Any:
    """Fig. 2: relative change of the head's weights and of all others."""
    shown = [line for line in rows if line.values("weights other") and line is not original]
    if not any(_mean(line, "weights other") or _mean(line, "weights head") for line in shown):
        return None
    figure, axes = _bars(shown, figure_class)
    for offset, key, colour, label in ((-0.2, "weights head", FORGET, "head"), (0.2, "weights other", RETAIN, "other")):
        axes.barh(
            [i + offset for i in range(len(shown))],
            [_mean(line, key) for line in shown],
            0.38,
            color=colour,
            label=label,
        )
    axes.set_xscale("symlog", linthresh=1e-3)
    axes.set_xlabel("||change||_F / ||original||_F (0: no weight changed)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def times(rows: Sequence[Line], original: Line | None, figure_class: Any) -> Any:
    """Fig. 5: seconds of each method, feature pass or reading and fit apart."""
    shown = [line for line in rows if line.seconds() is not None]
    if not shown:
        return None
    figure, axes = _bars(shown, figure_class)
    reading, fit = zip(*(line.seconds() for line in shown), strict=True)
    places = range(len(shown))
    axes.barh(places, reading, 0.6, color=GREY, label="reading, features")
    axes.barh(places, fit, 0.6, reading, color=FORGET, label="fit")
    for place, total in zip(places, np.add(reading, fit), strict=True):
        axes.annotate(f" {float(f'{total:.3g}'):,g}", (total, place), va="center", fontsize=7)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(0, 1.6 * max(map(sum, zip(reading, fit, strict=True))) + 0.05)
    axes.set_xlabel("seconds (logarithmic above 1)")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def layers(rows: Sequence[Line], original: Line | None, figure_class: Any) -> Any:
    """Fig. 2, layer by layer: relative change of each layer's weights, for rows that changed any."""
    moved = [(line, _by_layer(line)) for line in rows]
    moved = [(line, found) for line, found in moved if any(found.values())]
    if not moved:
        return None
    names = list(dict.fromkeys(name for _, found in moved for name in found))
    values = np.array([[found.get(name, 0.0) for name in names] for _, found in moved])
    figure = figure_class(
        figsize=(max(4.5, 0.2 * len(names) + 2.2), 0.26 * len(moved) + 0.06 * max(map(len, names)) + 0.8)
    )
    axes = figure.subplots()
    from matplotlib.colors import LogNorm

    scale = LogNorm(*COLOURED, clip=True)
    image = axes.imshow(np.ma.masked_equal(values, 0.0), cmap="cividis", norm=scale, aspect="auto")
    axes.set_facecolor("white")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axes.set_yticks(range(len(moved)), [shown_name(line.label) for line, _ in moved])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="||change|| / ||original||\n(white: unchanged)", extend="both")
    return figure


def _by_layer(line: Line) -> dict[str, float]:
    """Means over seeds; empty where nothing was compared."""
    found = [record["scores"].get("weights by layer") or {} for record in line.records]
    return {
        name: sum(each.get(name, 0.0) for each in found) / len(found)
        for name in dict.fromkeys(n for f in found for n in f)
    }


def pareto(rows: Sequence[Line], original: Line | None, figure_class: Any) -> Any:
    """What a converged probe reads of D_ft against what the head keeps of D_rt; down and right is better."""
    shown = [line for line in rows if line.values("KR D_ft") and line.values("D_rt")]
    if len(shown) < 2:
        return None
    points = [(_mean(line, "D_rt"), _mean(line, "KR D_ft")) for line in shown]
    figure = figure_class(figsize=(7.0, max(4.4, 0.17 * len(shown) + 1.2)))
    axes = figure.subplots()
    for line, point in zip(shown, points, strict=True):
        if line is original or line.row.reference:  # hollow and larger, to be seen where other points lie on them
            marker, colour = ("s", "black") if line is original else ("^", RETAIN)
            axes.scatter(*point, s=70, marker=marker, facecolors="none", edgecolors=colour, zorder=4)
        else:
            axes.scatter(*point, s=24, color=FORGET, zorder=3, edgecolors="white", linewidths=0.4)
    for side, values in (("x", [x for x, _ in points]), ("y", [y for _, y in points])):
        room = 0.08 * (max(values) - min(values)) or 1.0
        getattr(axes, f"set_{side}lim")(min(values) - room, max(values) + room)
    (_name_beside if len(shown) <= MOST_BESIDE else _name_in_column)(axes, [line.label for line in shown], points)
    axes.annotate(
        "better", xy=(0.99, 0.015), xytext=(0.88, 0.1), xycoords="axes fraction", fontsize=8, color=BETTER,
        ha="right", va="bottom", arrowprops={"arrowstyle": "-|>", "color": BETTER, "linewidth": 1.4},
    )  # fmt: skip
    axes.set_xlabel("retained classes, the model's head (D_rt), %")
    axes.set_ylabel("forgotten class, converged probe (D_ft), %")
    return figure


def _name_beside(axes: Any, names: Sequence[str], points: Sequence[tuple[float, float]], high: float = 0.045) -> None:
    """Names that touch their points, moved up or down, with a line to the point, where two would cover each other.

    high: of a line of text, as a share of the axes.
    """
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    shares = [((x - left) / (right - left), (y - bottom) / (top - bottom)) for x, y in points]
    sides = [1 if x < 0.55 else -1 for x, _ in shares]
    widths = [0.0125 * len(shown_name(name)) for name in names]
    middles = [(x + (0.015 + width / 2) * side, y) for (x, y), width, side in zip(shares, widths, sides, strict=True)]
    moved = spread(middles, widths, high, shares)
    for name, point, (x, y), (_, height), side in zip(names, points, shares, moved, sides, strict=True):
        away = abs(height - y) > 0.01
        axes.annotate(
            shown_name(name), point, xytext=(x + 0.015 * side * (1 + away), height), textcoords="axes fraction",
            fontsize=7, ha="left" if side > 0 else "right", va="center",
            arrowprops={**LINE_TO, "relpos": (0 if side > 0 else 1, 0.5)} if away else None,
        )  # fmt: skip


def _name_in_column(axes: Any, names: Sequence[str], points: Sequence[tuple[float, float]]) -> None:
    """Many names in a column in the order of the points' heights, each with a line that ends in its point."""
    order = sorted(range(len(points)), key=lambda i: points[i][::-1], reverse=True)
    for place, i in enumerate(order):
        axes.annotate(
            shown_name(names[i]), points[i], xytext=(1.1, 1 - (place + 0.5) / len(order)), textcoords="axes fraction",
            fontsize=7, va="center", annotation_clip=False, arrowprops={**LINE_TO, "relpos": (0, 0.5)},
        )  # fmt: skip


def attackers(rows: Sequence[Line], original: Line | None, figure_class: Any) -> Any:
    """The strongest attackers who see one output (recall minus false alarms; above those who name a class, below all)
    against what features are still good for: CKA with the original on retained images, a probe on another data set.

    Down and right is better; the dashed line is what an unseen class gives.
    """
    keys = [key for key in ("CKA", "transfer") if sum(bool(line.values(key)) for line in rows) > 1]
    shown = [line for line in rows if line.values("worst/advantage") and line.row.kind != "unseen"]
    if len(shown) < 2 or not keys:
        return None
    shown.sort(key=lambda line: -_mean(line, "worst class/advantage"))
    figure = figure_class(figsize=(3.6 * len(keys) + 2.4, max(6.4, 0.3 * len(shown) + 1.2)))
    panels = figure.subplots(2, len(keys), sharex="col", sharey="row", squeeze=False)
    named: list[tuple[Any, dict[str, tuple[float, float]]]] = []
    reference = next((line for line in rows if line.row.kind == "unseen" and line.values("worst/advantage")), None)
    for across, (who, title) in zip(
        panels, (("worst class", "names one class"), ("worst", "false alarms allowed")), strict=True
    ):
        for axes, key in zip(across, keys, strict=True):
            points = {
                str(number): (_mean(line, key), _mean(line, f"{who}/advantage"))
                for number, line in enumerate(shown, 1)
                if line.values(key) and line.values(f"{who}/advantage")
            }
            named.append((axes, points))
            for number, point in points.items():
                own = shown[int(number) - 1] is original
                axes.scatter(*point, s=18, color="black" if own else FORGET, zorder=3)
            if reference is not None and reference.values(f"{who}/advantage"):
                axes.axhline(_mean(reference, f"{who}/advantage"), color=RETAIN, linewidth=0.9, linestyle="--")
            axes.margins(0.1)
        across[0].set_ylabel(f"strongest of one output, {title}:\nrecall - false alarms, %")
    labels = {"CKA": "CKA with the original, retained images", "transfer": "probe on another data set, %"}
    for axes, key in zip(panels[-1], keys, strict=True):
        axes.set_xlabel(labels[key])
    for axes, points in named:  # last, when all limits are known
        _name_beside(axes, list(points), list(points.values()), 0.3 / figure.get_figheight())
    names = [f"{number} {shown_name(line.label)}" for number, line in enumerate(shown, 1)]
    names += ["- - unseen classes"] * (reference is not None)
    panels[0, -1].annotate(
        "\n".join(names), (1.05, 1), xycoords="axes fraction", va="top", fontsize=7, annotation_clip=False
    )
    return figure


def _mean(line: Line, key: str) -> float:
    value = line.mean(key)
    return 0.0 if value is None else value


FIGURES = {
    "recovery": recovery,
    "weights": weights,
    "weights_by_layer": layers,
    "time": times,
    "pareto": pareto,
    "attackers": attackers,
}
"""File name -> what draws it; None where there are no numbers."""
