"""The style that all figures share: those of a report, of class maps, and of the bench.

Colours are Okabe and Ito's, which readers with any colour vision tell apart, and every series also has its own marker,
hatch or line, so that the figures survive a black-and-white printer. Originals are blue, erased orange, references green.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from hf_kd.data.text import figure_text

BLUE, ORANGE, GREEN, GREY, BLACK = "#0072B2", "#D55E00", "#009E73", "#8C8C8C", "#000000"
VERSIONS = {
    "original": (BLUE, "o", "-", ""),
    "erased": (ORANGE, "s", "--", "//"),
    "reference": (GREEN, "^", ":", ".."),
}
"""Colour, marker, line style and hatch of each version."""

STYLE: dict[Any, Any] = {
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


def block_names(names: Sequence[str]) -> list[str]:
    """Paths of modules without the parts that all begin with, so that no two are shown alike; a word without dots stays.

    Two parts stay, and what a number counts.
    """
    paths = [name.split(".") for name in names if "." in name]
    same = 0
    while len(paths) > 1 and all(len(path) > same + 2 and path[same] == paths[0][same] for path in paths):
        same += 1
    same -= bool(same) and all(path[same].isdigit() for path in paths)
    return [figure_text(".".join(name.split(".")[same:]) if "." in name else name) for name in names]


def add_title(figure: Any, text: str) -> None:
    """The verdict in short over a figure, in as many lines as its width asks for."""
    lines = textwrap.wrap(figure_text(text).replace(" %", "\N{NO-BREAK SPACE}%"), int(figure.get_figwidth() * 11.5))
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=9, fontweight="bold")


def caption(figure: Any, text: str) -> str:
    """What the numbers of a figure are, in lines of its width, for small print below it."""
    return "\n".join(textwrap.wrap(figure_text(text), int(figure.get_figwidth() * 17)))


Place = tuple[float, float]


def spread(
    places: Sequence[Place], widths: Sequence[float], height: float, points: Sequence[Place] = ()
) -> list[Place]:
    """Places of labels, moved up and down until none of them covers another.

    Args:
        places: The middle of each label, in any unit.
        widths: Of each label, in that unit.
        height: Of all of them.
        points: What stays where it is and should not be covered either.
    """
    order = sorted(range(len(places)), key=lambda i: places[i][1])
    heights = [y for _, y in places]
    for _ in range(300):
        still = True
        for position, i in enumerate(order):
            x = places[i][0]
            for j in order[position + 1 :]:
                overlap = height - abs(heights[j] - heights[i])
                if abs(x - places[j][0]) < (widths[i] + widths[j]) / 2 and overlap > 1e-3 * height:
                    push = overlap / 2 if heights[j] >= heights[i] else -overlap / 2
                    heights[i], heights[j], still = heights[i] - push, heights[j] + push, False
            for x_point, y_point in points:
                overlap = 0.7 * height - abs(heights[i] - y_point)
                if abs(x - x_point) < 0.5 * widths[i] and overlap > 1e-3 * height:
                    heights[i] += overlap if heights[i] >= y_point else -overlap
                    still = False
        if still:
            break
    return [(x, y) for (x, _), y in zip(places, heights, strict=True)]
