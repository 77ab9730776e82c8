"""Tables of a bench, as Markdown and as LaTeX: the converged number first, then what the paper's Tables 1 and 5 print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..audit import average_gap, mean_and_sd
from .config import Experiment
from .run import cell_settings
from .store import Store, key_of

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One column: where its value is in a record's scores, and how it is printed."""

    group: str
    title: str
    key: str
    digits: int = 1


def _accuracies(group: str, prefix: str) -> list[Column]:
    names = (("D_f", "D_f"), ("D_r", "D_r"), ("HM", "HM"), ("D_ft", "D_ft"), ("D_rt", "D_rt"), ("HM_t", "HM_t"))
    return [Column(group, title, f"{prefix}{key}") for title, key in names]


CLASS_COLUMNS = [
    *_accuracies("Knowledge Retention, converged probe", "KR "),
    *_accuracies("The model's own head", ""),
    *_accuracies("Knowledge Retention, the paper's probe", "KR_paper "),
    Column("", "MIA", "MIA"),
]
RANDOM_COLUMNS = [
    *(Column("The model's own head", name, name) for name in ("D_f", "D_r", "D_t")),
    Column("", "MIA", "MIA"),
    Column("", "Avg Gap", "Avg Gap", 2),
]
CHANGE_COLUMNS = [
    Column("What else changed", "CKA, retained", "CKA", 3),
    Column("What else changed", "cosine, retained", "cosine", 3),
    Column("What else changed", "weights, head", "weights head", 3),
    Column("What else changed", "weights, other", "weights other", 3),
]


@dataclass(frozen=True)
class Line:
    """One row of a table: the records of its seeds."""

    label: str
    records: tuple[Record, ...]
    failed: tuple[Record, ...]
    missing: int

    def values(self, key: str) -> list[float]:
        return [r["scores"][key] for r in self.records if r["scores"].get(key) is not None]

    def seconds(self) -> tuple[float, float] | None:
        """Feature pass or reading, and fit: means over seeds; None for what was not made here."""
        if not self.records or not any("seconds" in r and r["seconds"].get("fit") for r in self.records):
            return None
        return tuple(sum(r["seconds"][name] for r in self.records) / len(self.records) for name in ("features", "fit"))


def lines(experiment: Experiment, store: Store) -> list[Line]:
    """The rows of an experiment with what the store has of them; Avg Gap is worked out here."""
    found = []
    for row in experiment.rows:
        keys = [key_of(cell_settings(experiment, row, seed)) for seed in row.seeds]
        records = [store.records[key] for key in keys if key in store.records]
        good = tuple(r for r in records if r["status"] == "ok")
        bad = tuple(r for r in records if r["status"] != "ok")
        found.append((row, Line(row.label, good, bad, len(keys) - len(records))))
    reference = next((line for row, line in found if row.reference and line.records), None)
    return [_with_gap(line, reference) for _, line in found]


def _with_gap(line: Line, reference: Line | None) -> Line:
    keys = ("D_f", "D_r", "D_t", "MIA")
    if reference is None or not all(reference.values(key) for key in keys):
        return line
    aim = [sum(reference.values(key)) / len(reference.values(key)) for key in keys]
    records = []
    for record in line.records:
        scores = dict(record["scores"])
        if all(scores.get(key) is not None for key in keys):
            scores["Avg Gap"] = average_gap([scores[key] for key in keys], aim)
        records.append({**record, "scores": scores})
    return Line(line.label, tuple(records), line.failed, line.missing)


def columns_of(experiment: Experiment, rows: Sequence[Line]) -> list[Column]:
    """The columns that at least one row has a value for."""
    wanted = RANDOM_COLUMNS if experiment.protocol["kind"] == "random" else CLASS_COLUMNS
    extra = [Column("", "siblings", "siblings")]
    attacks = [
        Column(f"{name}", title, f"attacks/{name}/{key}")
        for name in experiment.measures.attacks
        for title, key in (("recall", "recall"), ("others", "retained"), ("AUC", "auc"))
    ]
    every = [*wanted, *extra, *attacks, *CHANGE_COLUMNS]
    return [c for c in every if any(_values(line, c) for line in rows)]


def _values(line: Line, column: Column) -> list[float]:
    parts = column.key.split("/")
    if parts[0] != "attacks":
        return line.values(column.key)
    found = [r["scores"].get("attacks", {}).get(parts[1], {}).get(parts[2]) for r in line.records]
    return [value for value in found if value is not None]


def _cell(line: Line, column: Column) -> str:
    values = _values(line, column)
    if not values:
        return "-"
    both = mean_and_sd(values)
    text = f"{both.mean:.{column.digits}f}"
    return text if both.sd is None or both.sd < 0.5 * 10**-column.digits else f"{text} ± {both.sd:.{column.digits}f}"


def markdown(experiment: Experiment, store: Store) -> str:
    """All tables of one experiment."""
    rows = lines(experiment, store)
    columns = columns_of(experiment, rows)
    blocks = [f"## {experiment.name}\n", _about(experiment)]
    for group in dict.fromkeys(column.group for column in columns if column.group):
        part = [c for c in columns if c.group == group]
        blocks.append(f"**{group}**\n\n" + _markdown_table(rows, part, time=False))
    blocks.append("**Rest**\n\n" + _markdown_table(rows, [c for c in columns if not c.group], time=True))
    if experiment.protocol["kind"] == "incremental":
        blocks.append(_incremental(rows))
    failures = [f"- {line.label}: {record['error']}" for line in rows for record in line.failed]
    if failures:
        blocks.append("**Failed**\n\n" + "\n".join(dict.fromkeys(failures)))
    missing = [f"{line.label} ({line.missing})" for line in rows if line.missing]
    if missing:
        blocks.append(f"Not run yet: {', '.join(missing)}.")
    return "\n\n".join(blocks) + "\n"


def _about(experiment: Experiment) -> str:
    protocol = ", ".join(f"{key} {value}" for key, value in experiment.protocol.items() if key != "kind")
    limits = "".join(
        f" At most {value} {what}." for value, what in ((experiment.limit, "images a split"),
                                                        (experiment.retain_limit, "retained images for methods")) if value
    )  # fmt: skip
    return (
        f"Protocol {experiment.protocol['kind']}{f' ({protocol})' if protocol else ''}.{limits} Accuracies in percent, mean "
        "± standard deviation over seeds where there are several and they differ. A converged probe says what is left; the "
        "head and the paper's probe do not."
    )


def _markdown_table(rows: Sequence[Line], columns: Sequence[Column], time: bool) -> str:
    heads = ["", *(c.title for c in columns)] + (["seeds", "features s", "fit s", "peak MiB"] if time else [])
    body = []
    for line in rows:
        cells = [line.label, *(_cell(line, c) for c in columns)]
        if time:
            took = line.seconds()
            cells += [str(len(line.records)), *(f"{value:.1f}" for value in took or ())] + ([] if took else ["-", "-"])
            cells.append(str(_memory(line)))
        body.append(cells)
    return "\n".join(
        ["| " + " | ".join(heads) + " |", "|" + "|".join(["---", *["---:"] * (len(heads) - 1)]) + "|"]
        + ["| " + " | ".join(cells) + " |" for cells in body]
    )


def _memory(line: Line) -> str:
    peaks = [
        r["memory_mib"].get("gpu_peak", r["memory_mib"]["process_peak"]) for r in line.records if "memory_mib" in r
    ]
    return str(max(peaks)) if peaks else "-"


def _incremental(rows: Sequence[Line]) -> str:
    """After each request: all forgotten so far, all retained, what a converged probe reads, directions removed."""
    blocks = []
    for line in rows:
        for record in line.records[:1]:
            stages = record.get("stages") or []
            body = [
                [str(s["stage"] + 1), *(_plain(s.get(k)) for k in ("KR D_ft", "KR D_rt", "D_ft", "D_rt")),
                 str(s.get("rank removed", 0))]
                for s in stages
            ]  # fmt: skip
            joint = record.get("joint")
            if joint:
                cells = [_plain(joint.get(k)) for k in ("KR D_ft", "KR D_rt", "D_ft", "D_rt")]
                body.append(["all at once", *cells, str(joint.get("rank removed", 0))])
            head = "| request | converged D_ft | converged D_rt | head D_ft | head D_rt | directions removed |"
            rule = "|---|---:|---:|---:|---:|---:|"
            blocks.append("\n".join([f"**{line.label}**, request after request\n", head, rule]
                                    + ["| " + " | ".join(cells) + " |" for cells in body]))  # fmt: skip
    return "\n\n".join(blocks)


def _plain(value: Any) -> str:
    return "-" if value is None else f"{value:.1f}"


def latex(experiment: Experiment, store: Store) -> str:
    """The main table in the layout of the paper's Table 1 or 5: groups over columns, booktabs."""
    rows = lines(experiment, store)
    columns = [c for c in columns_of(experiment, rows) if not c.key.startswith("attacks/")]
    groups: list[tuple[str, int]] = []
    for column in columns:
        if groups and groups[-1][0] == column.group:
            groups[-1] = (column.group, groups[-1][1] + 1)
        else:
            groups.append((column.group, 1))
    over = " & ".join(["", *(rf"\multicolumn{{{count}}}{{c}}{{{_escape(name)}}}" for name, count in groups)])
    titles = " & ".join(["Method", *(_math(c.title) for c in columns)])
    body = [
        " & ".join([_escape(line.label), *(_cell(line, c).replace("±", r"$\pm$") for c in columns)]) + r" \\"
        for line in rows
    ]
    return "\n".join(
        [
            rf"% {experiment.name}; needs \usepackage{{booktabs}}",
            rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
            r"\toprule",
            over + r" \\",
            titles + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _math(title: str) -> str:
    name, underscore, index = title.partition("_")
    return rf"${name}_{{{index}}}$" if underscore and " " not in title else _escape(title)


def _escape(text: str) -> str:
    for sign in ("&", "%", "#", "_"):
        text = text.replace(sign, f"\\{sign}")
    return text
