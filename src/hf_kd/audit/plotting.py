"""The style that all figures share: those of a report, of class maps, and of the bench.

Colours are Okabe and Ito's, which readers with any colour vision tell apart, and every series also has its own marker,
hatch or line, so that the figures survive a black-and-white printer. Originals are blue, erased orange, references green.
"""

from __future__ import annotations

from hf_kd.data.text import figure_text

BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#8C8C8C", "#000000"
VERSIONS = {
    "original": (BLUE, "o", "-", ""),
    "erased": (ORANGE, "s", "--", "//"),
    "reference": (GREEN, "^", ":", ".."),
}
"""Colour, marker, line style and hatch of each version."""

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "legend.frameon": False,
}


def short(name: str, most: int = 14) -> str:
    """The first of several names, cut to `most` characters, as text of a figure."""
    return figure_text(name.partition(",")[0], most)
