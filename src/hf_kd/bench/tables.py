"""Tables of a bench: the converged number first, then what the paper's Tables 1 and 5 print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hf_kd.audit.schema import PAPER_NOTE
from hf_kd.data.text import table_cell
from hf_kd.metrics.scores import mean_and_sd

from .config import Experiment
from .lines import Line, lines, reference_of
from .protocols import not_measured
from .store import Store


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
    Column("", "RTE, s", "RTE"),
]
ONE_CLASS, FALSE_ALARMS = "Strongest who names one class of one output", "Strongest of one output, false alarms allowed"
WORST_COLUMNS = [
    Column(title, name, f"{key}/{part}")
    for title, key in ((ONE_CLASS, "worst class"), (FALSE_ALARMS, "worst"))
    for name, part in (("recall", "recall"), ("false alarms", "false_alarms"), ("recall - f. a.", "advantage"))
]
MIA = {
    "class": "how often the loss tells D_f from D_ft rightly, 50 by guessing",
    "random": "the share of D_f that is taken for training images",
}
"""What membership inference is in the tables of a protocol."""
CHANGE_COLUMNS = [
    Column("What else changed", "another data set", "transfer"),
    Column("What else changed", "replaced, forgotten", "replaced D_ft"),
    Column("What else changed", "replaced, others", "replaced D_rt"),
    Column("What else changed", "CKA, retained", "CKA", 3),
    Column("What else changed", "cosine, retained", "cosine", 3),
    Column("What else changed", "weights, head", "weights head", 3),
    Column("What else changed", "weights, other", "weights other", 3),
]


def columns_of(experiment: Experiment, rows: Sequence[Line]) -> list[Column]:
    """The columns that at least one row has a value for."""
    wanted = RANDOM_COLUMNS if experiment.protocol["kind"] == "random" else CLASS_COLUMNS
    extra = [Column("", "siblings", "siblings")]
    attacks = [
        Column(f"{name}", title, f"attacks/{name}/{key}")
        for name in experiment.measures.attacks
        for title, key in (("recall", "recall"), ("retained", "retained"), ("AUC", "auc"))
    ]
    every = [*wanted, *extra, *WORST_COLUMNS, *attacks, *CHANGE_COLUMNS]
    return [c for c in every if any(line.values(c.key) for line in rows)]


def cell_text(line: Line, column: Column) -> str:
    """What stands in a cell: the mean over seeds and how far they differ, a dash, or that the row failed.

    Args:
        line: The row.
        column: What is printed of it.
    """
    if line.failed and not line.records:
        return "failed"
    return _with_sd(line.values(column.key), column.digits)


def _with_sd(values: Sequence[float], digits: int = 1) -> str:
    if not values:
        return "-"
    both = mean_and_sd(values)
    text = f"{both.mean:.{digits}f}"
    return text if both.sd is None or both.sd < 0.5 * 10**-digits else f"{text} ± {both.sd:.{digits}f}"


def markdown(experiment: Experiment, store: Store) -> str:
    """All tables of one experiment.

    Args:
        experiment: What was asked for.
        store: The results there are.

    Returns:
        Markdown; what was not run yet is named below the tables.
    """
    every = lines(experiment, store)
    rows = [line for line in every if line.was_run]
    columns = columns_of(experiment, rows)
    blocks = [f"## {table_cell(experiment.name)}", _about(experiment, every)]
    for group in dict.fromkeys(column.group for column in columns if column.group):
        part = [c for c in columns if c.group == group]
        blocks.append(f"**{group}**\n\n" + _markdown_table(rows, part, time=False))
        if any(column.key.startswith("KR_paper") for column in part):
            blocks.append(PAPER_NOTE)
    if rows:
        blocks.append("**Rest**\n\n" + _markdown_table(rows, [c for c in columns if not c.group], time=True))
    if experiment.protocol["kind"] == "incremental":
        blocks.append(_incremental(rows))
    failures = [(line, f"seed {record['seed']}", record["error"]) for line in rows for record in line.failed]
    stopped = [(line, f"seed {record['seed']}", why) for line in rows for record, why in line.stopped()]
    undrawn = [
        (line, name, said)
        for line in rows
        for record in line.records
        for name, said in {"report": record.get("report", ""), **(record.get("panels") or {})}.items()
        if said and said not in (f"{name}.png", f"{name}.json")
    ]
    blocks += _listed("Failed", failures) + _listed("Ended before it was done", stopped)
    blocks += [said for said in (_one_seed(rows, columns), _several_versions(rows)) if said]
    if left := not_measured(experiment):
        blocks.append("**Not measured**\n\n" + "\n".join(f"- {said}" for said in left))
    blocks += _listed("Not drawn", undrawn)
    for key, title in (("worst class", ONE_CLASS), ("worst", FALSE_ALARMS)):
        named = [f"{table_cell(line.label)}: {of_seeds}" for line in rows if (of_seeds := _strongest(line, key))]
        if named:
            blocks.append(f"{title}, by recall minus false alarms: {', '.join(named)}.")
    missing = [f"{table_cell(line.label)} ({line.missing})" for line in every if line.missing]
    if missing:
        blocks.append(f"Not run yet: {', '.join(missing)}.")
    other = [f"{table_cell(line.label)} (another {', '.join(line.other)})" for line in every if line.other]
    if other:
        blocks.append(
            f"Of these {store.path.name} has results with other settings, which do not belong here: {', '.join(other)}."
        )
    return "\n\n".join(blocks) + "\n"


def _listed(title: str, found: Sequence[tuple[Line, str, str]]) -> list[str]:
    """A list of what there is to say of a row: of which part of it, and what; nothing where there is nothing."""
    said = [
        f"- {table_cell(line.label)}, {part}: {table_cell(' '.join(text.split()), None)}" for line, part, text in found
    ]
    return [f"**{title}**\n\n" + "\n".join(said)] if said else []


def _strongest(line: Line, key: str) -> str:
    """The name of a row's strongest attacker; where it is another with other seeds, each with its share of them."""
    names = Counter(record["scores"][key]["name"] for record in line.records if key in record["scores"])
    if len(names) < 2:
        return "".join(names)
    return " and ".join(f"{name} ({count} of {names.total()} seeds)" for name, count in names.most_common())


def _one_seed(rows: Sequence[Line], columns: Sequence[Column]) -> str:
    """What ± does not say of rows of one seed that stand beside others; "" where nothing is drawn by the seed."""
    alone = [table_cell(line.label) for line in rows if line.records and len(line.row.seeds) == 1]
    drawn = any(column.key.startswith(("KR_paper", "MIA", "attacks", "worst")) for column in columns)
    if not (alone and drawn and any(len(line.records) > 1 for line in rows)):
        return ""
    return (
        f"Measured with one seed: {', '.join(alone)}. The ± of the other rows also holds what the paper's probe, membership "
        "inference and attacks differ by from seed to seed; of these rows it is not known."
    )


def _several_versions(rows: Sequence[Line]) -> str:
    """That results of several versions of the package stand beside each other; "" where they do not."""
    found: dict[str, dict[str, None]] = {}
    for line in rows:
        for record in line.records:
            if made := record.get("versions", {}).get("hf-kd"):
                found.setdefault(made, {})[table_cell(line.label)] = None
    if len(found) < 2:
        return ""
    named = "; ".join(f"{made} ({', '.join(found[made])})" for made in sorted(found))
    return (
        f"Made with several versions of hf-kd, between which a method may have changed: {named}. A new folder has one."
    )


def _about(experiment: Experiment, rows: Sequence[Line]) -> str:
    settings = {key: value for key, value in experiment.protocol.items() if key != "kind"}
    protocol = ", ".join(
        f"{key} {', '.join(map(table_cell, value)) if isinstance(value, list) else table_cell(value)}"
        for key, value in settings.items()
    )
    limits = "".join(
        f" At most {value} {what}." for value, what in ((experiment.limit, "images a split"),
                                                        (experiment.retain_limit, "retained images for methods")) if value
    )  # fmt: skip
    return (
        f"Protocol {experiment.protocol['kind']}{f' ({protocol})' if protocol else ''}.{limits} Accuracies in percent, mean "
        "± standard deviation over seeds where there are several and they differ; of times the mean, of their ratio to a "
        "bare pass the median, of memory the most. A converged probe says what is left; the head and the paper's probe do "
        "not. D_f and D_r are forgotten and retained training images, D_ft and D_rt (together D_t) test images; HM and "
        "HM_t are harmonic means of 100 - D_f and D_r, of 100 - D_ft and D_rt. MIA: "
        f"{MIA['random' if experiment.protocol['kind'] == 'random' else 'class']}.{_of_protocol(experiment, rows)}"
    )


def _of_protocol(experiment: Experiment, rows: Sequence[Line]) -> str:
    """What columns are that only one protocol has, and to which row the gap of Table 5 is."""
    if experiment.protocol["kind"] == "subclass":
        return " siblings: the other test images of the classes of the model that the forgotten are in, by the head."
    if experiment.protocol["kind"] != "random":
        return ""
    aim = reference_of(rows)
    told = " RTE: seconds of the method, reading and fit. Avg Gap: the mean distance of D_f, D_r, D_t and MIA"
    if aim is not None:
        return f"{told} to those of {table_cell(aim.label)}."
    return f"{told} to those of a retrained model: of retrain, or of a row with reference: true, when it has a result."


def _markdown_table(rows: Sequence[Line], columns: Sequence[Column], time: bool) -> str:
    heads = ["", *(c.title for c in columns)]
    passes = time and any(line.passes() is not None for line in rows)
    heads += ["needs", "seeds", "features s", "fit s", "peak MiB"] if time else []
    heads += ["x bare pass"] if passes else []
    body = []
    for line in rows:
        cells = [table_cell(line.label), *(cell_text(line, c) for c in columns)]
        if time:
            took = line.seconds()
            cells += [line.row.needs or "-", str(len(line.records))]
            cells += ["-", "-"] if took is None else [_seconds(value) for value in took]
            cells.append(_memory(line))
        if passes:
            ratio = line.passes()
            cells.append("-" if ratio is None else f"{ratio:.2f}")
        body.append(cells)
    return "\n".join(
        ["| " + " | ".join(heads) + " |", "|" + "|".join(["---", *["---:"] * (len(heads) - 1)]) + "|"]
        + ["| " + " | ".join(cells) + " |" for cells in body]
    )


def _seconds(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.3f}"


def _memory(line: Line) -> str:
    """The most that the method took above what was held before it, over seeds: on a GPU there, else in the process."""
    if not line.row.is_method:
        return "-"
    taken = [record.get("memory_mib", {}) for record in line.records]
    own = [value for each in taken if (value := each.get("gpu_method", each.get("method"))) is not None]
    return str(max(own)) if own else "-"


def _incremental(rows: Sequence[Line]) -> str:
    """After each request: all forgotten so far, all retained, what a converged probe reads, directions removed."""
    keys = ("KR D_ft", "KR D_rt", "D_ft", "D_rt", "rank removed")
    blocks = []
    for line in rows:
        parts = [[record["stages"][i] for record in line.records] for i in range(max(
            (len(record["stages"]) for record in line.records), default=0))]  # fmt: skip
        named = [(str(i + 1), part) for i, part in enumerate(parts)]
        named.append(("all at once", [record["joint"] for record in line.records if record.get("joint")]))
        body = [
            [
                name,
                *(
                    _with_sd([s[key] for s in part if s.get(key) is not None], 0 if key == "rank removed" else 1)
                    for key in keys
                ),
            ]
            for name, part in named
            if part
        ]
        if body:
            head = "| requests | converged D_ft | converged D_rt | head D_ft | head D_rt | directions removed |"
            rule = "|---|---:|---:|---:|---:|---:|"
            blocks.append("\n".join([f"**{table_cell(line.label)}**, request after request\n", head, rule]
                                    + ["| " + " | ".join(cells) + " |" for cells in body]))  # fmt: skip
    return "\n\n".join(blocks)
