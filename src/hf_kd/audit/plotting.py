"""The style that all figures share: those of a report, of class maps, and of the bench.

Colours are Okabe and Ito's, which readers with any colour vision tell apart, and every series also has its own marker,
hatch or line, so that the figures survive a black-and-white printer. Originals are blue, erased orange, references green.
"""

from __future__ import annotations

import textwrap
from typing import Any

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


def add_title(figure: Any, text: str) -> None:
    """The verdict in short over a figure, in as many lines as its width asks for."""
    lines = textwrap.wrap(figure_text(text), int(figure.get_figwidth() * 11.5))
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=9, fontweight="bold")


def caption(figure: Any, text: str) -> str:
    """What the numbers of a figure are, in lines of its width, for small print below it."""
    return "\n".join(textwrap.wrap(figure_text(text), int(figure.get_figwidth() * 17)))


def spread(places: list[tuple[float, float]], width: float, height: float) -> list[tuple[float, float]]:
    """Places of labels, moved up and down until none of them covers another; each is `width` by `height`."""
    order = sorted(range(len(places)), key=lambda i: places[i][1])
    moved = list(places)
    for _ in range(200):
        still = True
        for position, i in enumerate(order):
            for j in order[position + 1 :]:
                (x, y), (x_other, y_other) = moved[i], moved[j]
                overlap = height - abs(y_other - y)
                if abs(x - x_other) < width and overlap > 1e-3 * height:
                    push = overlap / 2 if y_other >= y else -overlap / 2
                    moved[i], moved[j] = (x, y - push), (x_other, y_other + push)
                    still = False
        if still:
            break
    return moved
