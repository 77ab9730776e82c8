"""The picture of the README and of the first page of the site, from the measured table of benchmarks/RESULTS_audit.md.

python docs/make_picture.py        # writes docs/figures/three_readings.svg
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt

from hf_kd.audit.plotting import STYLE, VERSIONS

DOCS = Path(__file__).resolve().parent
SECTION = "## CIFAR-10 ResNet-20, d = 64, cat"
ROWS = {"original": "original", "erased": "ESC, k = 1"}
READINGS = {
    "head D_ft": "What the head answers\n(where most reports stop)",
    "paper D_ft": "A probe trained briefly\n(the paper's protocol)",
    "converged D_ft": "A probe trained\nto convergence",
}


def table(text: str, section: str) -> dict[str, dict[str, str]]:
    """The first table of a section: its rows by name, of cells by column."""
    lines = text.partition(section)[2].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    lines = list(takewhile(lambda line: line.startswith("|"), lines[first:]))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    columns = rows[0][1:]
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows[2:]}


def draw(measured: dict[str, dict[str, str]], output: Path) -> None:
    """Three readings of the forgotten class, before and after, as bars with their numbers."""
    plt.rcParams |= {**STYLE, "svg.fonttype": "path", "svg.hashsalt": "hf_kd"}
    figure, axes = plt.subplots(figsize=(7.2, 2.9))
    for side, (version, row), name in zip((-0.19, 0.19), ROWS.items(), ("before", "after"), strict=True):
        values = [float(measured[row][column]) for column in READINGS]
        colour, _, _, hatch = VERSIONS[version]
        bars = axes.bar([place + side for place in range(len(values))], values, width=0.36, color=colour, hatch=hatch,
                        edgecolor="white", label=name)  # fmt: skip
        axes.bar_label(bars, [f"{value:.0f} %" for value in values], padding=2)
    axes.set(xticks=range(len(READINGS)), xticklabels=READINGS.values(), yticks=[0, 50, 100], ylim=(0, 100))
    axes.set_ylabel("cats recognised (%)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    axes.set_title("A CIFAR-10 ResNet-20 forgets “cat” by ESC: three ways to ask what is left", loc="left", pad=10)
    figure.savefig(output, metadata={"Date": None})


if __name__ == "__main__":
    text = (DOCS.parent / "benchmarks" / "RESULTS_audit.md").read_text(encoding="utf-8")
    draw(table(text, SECTION), DOCS / "figures" / "three_readings.svg")
