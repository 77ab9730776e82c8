"""The main table of a bench as LaTeX, in the layout of the paper's."""

from __future__ import annotations

from collections.abc import Sequence

from hf_kd.audit.schema import PAPER_NOTE
from hf_kd.data.text import one_line

from .config import Experiment
from .lines import Line, lines
from .store import Store
from .tables import CHANGE_COLUMNS, WORST_COLUMNS, Column, cell_text, columns_of


def latex(experiment: Experiment, store: Store) -> str:
    """The main table in the layout of the paper's Table 1 or 5: groups over columns, booktabs.

    Attacks and what else changed stand in the Markdown alone.

    Args:
        experiment: What was asked for.
        store: The results there are.

    Returns:
        LaTeX.
    """
    rows = [line for line in lines(experiment, store) if line.was_run]
    apart = [*WORST_COLUMNS, *CHANGE_COLUMNS]
    columns = [c for c in columns_of(experiment, rows) if not c.key.startswith("attacks/") and c not in apart]
    groups: list[tuple[str, int]] = []
    for column in columns:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    over = " & ".join(["", *(rf"\multicolumn{{{count}}}{{c}}{{{_escape(name)}}}" for name, count in groups)])
    first, rules = 2, []
    for name, count in groups:
        rules += [rf"\cmidrule(lr){{{first}-{first + count - 1}}}"] if name else []
        first += count
    titles = " & ".join(["Method", *(_math(c.title) for c in columns)])
    body = [f"{_escape(line.label)} & {_latex_cells(line, columns)}" + r" \\" for line in rows]
    return "\n".join(
        [
            rf"% {experiment.name}; needs \usepackage{{booktabs}}",
            *([f"% {PAPER_NOTE}"] if any(column.key.startswith("KR_paper") for column in columns) else []),
            rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
            r"\toprule",
            over + r" \\",
            *([" ".join(rules)] if rules else []),
            titles + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _latex_cells(line: Line, columns: Sequence[Column]) -> str:
    if line.failed and not line.records:
        return rf"\multicolumn{{{len(columns)}}}{{l}}{{failed}}"
    return " & ".join(cell_text(line, c).replace("±", r"$\pm$") for c in columns)


def _math(title: str) -> str:
    name, underscore, index = title.partition("_")
    return rf"${name}_{{{index}}}$" if underscore and " " not in title else _escape(title)


_SIGNS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",  # behind the end of a line the beginning of a length, and a star is taken for a part of that end
    "*": "{*}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def _escape(text: str) -> str:
    """Text as LaTeX prints it, sign by sign, so that nothing is escaped twice."""
    return "".join(_SIGNS.get(sign, sign) for sign in one_line(text))
