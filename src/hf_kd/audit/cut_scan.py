"""The figure of a scan for a cut: what a probe reads of the class from networks grown above each block."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_kd.data.paths import local_path
from hf_kd.errors import InvalidValueError, require
from hf_kd.methods.measured import CutTried
from hf_kd.methods.records import weight_changes
from hf_kd.methods.unlearning.cut_scan import ALIKE

from .plotting import BLUE, GREEN, GREY, ORANGE, STYLE, block_names


def scan_of(model: Any) -> Sequence[CutTried]:
    """What `regrow` tried with `keep="auto"` in the last change of a model's weights; empty where it made no scan."""
    last = weight_changes(model.config)[-1:]
    return next((part["scan"] for change in last for part in change.measured if "scan" in part), ())


def draw_cut_scan(model: Any, path: str | Path) -> Path:
    """Draw the scan that `regrow` made with `keep="auto"`, by block; the one that was taken comes last of those tried.

    Args:
        model: What `hf_kd.unlearn` gave.
        path: Of the picture; its ending says which format.

    Returns:
        The path.

    Raises:
        InvalidValueError: Where the model's last change of weights made no scan.
    """
    scan = scan_of(model)
    if not scan:
        raise InvalidValueError("This model has no scan: hf_kd.unlearn(..., 'regrow', keep='auto') makes one.")
    rc_context, Figure = require("matplotlib", "figures").rc_context, require("matplotlib.figure", "figures").Figure
    rows = sorted(scan, key=lambda one: one["blocks_kept"])
    places = range(len(rows))
    with rc_context(STYLE):
        figure = Figure(figsize=(6.0, 3.2))
        axes = figure.add_subplot()
        noise = [one["noise"] for one in rows]
        name = "original" if "reference" in rows[0] else "forgotten, read by a probe"
        axes.errorbar(places, [one["reading"] for one in rows], noise, color=ORANGE, marker="s", label=name)
        for key, colour, marker in (("reference", GREEN, "^"), ("retained", BLUE, "o")):
            if key in rows[0]:
                axes.plot(places, [one[key] for one in rows], color=colour, marker=marker, label=key)
        more = {place: one["excess"] for place, one in enumerate(rows) if "excess" in one}
        if more:
            label = f"points above nothing kept, where most; up to {ALIKE} are taken"
            axes.plot(list(more), list(more.values()), color=GREY, marker="v", label=label)
            axes.axhline(ALIKE, color=GREY, linestyle=":")
        axes.set_xticks(list(places), block_names([one["block"] for one in rows]), rotation=20, ha="right")
        axes.set_xlabel("last block kept")
        axes.set_ylabel("percent")
        axes.legend()
        figure.savefig(local_path(path))
    return local_path(path)
