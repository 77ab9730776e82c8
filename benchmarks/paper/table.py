"""The paper's tables beside what was measured here, as Markdown: `python benchmarks/paper/table.py CONFIG.yaml RESULTS`.

RESULTS is the folder that `hf-kd bench CONFIG.yaml --output RESULTS` wrote to. Run it where the bench ran: models and data
of CONFIG are found again from there. Published numbers are those of the paper's Table 1, CIFAR-10 and All-CNN, as far as
they were at hand; they stand beside the experiment `table-1`. Random samples get those of its Table 5, of a ResNet-18.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from hf_kd.bench import Store, read_config
from hf_kd.bench.lines import Line, lines
from hf_kd.bench.tables import Column, cell_text
from hf_kd.data.text import table_cell

PUBLISHED: dict[str, tuple[str, str]] = {
    "original": ("3.1 / 24.3", "-"),
    "esc": ("93.4 / 87.4", "94.4 / 89.1"),
    "esc-t": ("98.6 / 92.5", "-"),
    "neggrad": ("93.8 / 85.4", "-"),
    "lau": ("96.2 / 90.3", "-"),
    "fisher": ("97.7 / 89.4", "-"),
    "salun": ("99.4 / 92.9", "-"),
    "retrain": ("98.4 / 92.5", "72.9 / 67.0"),
}
"""HM / HM_t of the model's own head, and of the paper's probe."""
PUBLISHED_GAPS = {
    "finetune": "4.38",
    "random-label": "12.33",
    "scrub": "4.09",
    "bad-teaching": "4.69",
    "salun": "3.88",
    "neggrad": "3.65",
    "esc": "1.45",
    "esc-t": "2.77",
    "retrain": "0.00",
}
"""Avg Gap of Table 5."""
MEASURED: dict[str, tuple[str, ...]] = {
    "head HM/HM_t": ("HM", "HM_t"),
    "paper's probe HM/HM_t": ("KR_paper HM", "KR_paper HM_t"),
    "converged D_ft/D_rt": ("KR D_ft", "KR D_rt"),
    "head D_ft/D_rt": ("D_ft", "D_rt"),
    "MIA": ("MIA",),
}
"""Columns: title -> keys of the scores."""


def main(config: str, results: str) -> None:
    store = Store(Path(results), writes=False)
    found = [(one, [line for line in lines(one, store) if line.records]) for one in read_config(config)]
    if not any(rows for _, rows in found):
        raise SystemExit(
            f"{store.path} has no result of {config}: give the folder that the bench of this file wrote to, and run this "
            "where the bench ran, since its models and data are found from there."
        )
    for experiment, rows in found:
        columns = RANDOM if experiment.protocol["kind"] == "random" else _columns(experiment.name == "table-1")
        print(f"\n### {experiment.name}\n\n| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
        for line in rows:
            print(f"| {table_cell(line.label)} | {' | '.join(cell(line) for cell in columns.values())} |")


def _columns(published: bool) -> dict[str, Callable[[Line], str]]:
    """Title -> what stands below it in a row."""
    found: dict[str, Callable[[Line], str]] = {}
    for place, (title, keys) in enumerate(MEASURED.items()):
        if published and place < 2:
            found[f"{title}, published"] = lambda line, place=place: PUBLISHED.get(line.label, ("-", "-"))[place]
        found[title] = lambda line, keys=keys: _cell(line, *keys)
    return found | {"seeds": _seeds}


def _cell(line: Line, *keys: str, digits: int = 1) -> str:
    """Means over seeds, each with its standard deviation where there are several and they differ."""
    return " / ".join(cell_text(line, Column("", "", key, digits)) for key in keys)


def _passes(line: Line) -> str:
    return "-" if (ratio := line.passes()) is None else f"{ratio:.2f}"


def _seeds(line: Line) -> str:
    return str(len(line.records))


RANDOM: dict[str, Callable[[Line], str]] = {
    "head D_f/D_r": lambda line: _cell(line, "D_f", "D_r"),
    "head D_t": lambda line: _cell(line, "D_t"),
    "MIA": lambda line: _cell(line, "MIA"),
    "Avg Gap, published": lambda line: PUBLISHED_GAPS.get(line.label, "-"),
    "Avg Gap": lambda line: _cell(line, "Avg Gap", digits=2),
    "bare passes": _passes,
    "seeds": _seeds,
}
"""Columns of Table 5. The last but one is the method's time over that of one forward pass of the original over D_f."""


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
