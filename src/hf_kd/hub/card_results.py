"""What the audit of a model puts into its card: results in the metadata, the table, the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_kd.audit.render import attackers, beside_column, number, prose
from hf_kd.audit.report import RetentionReport
from hf_kd.audit.schema import PAPER_NOTE
from hf_kd.audit.verdict import verdict
from hf_kd.data.text import escape_markdown, table_cell

from .text import is_repo_id

OUR_SPLITS = ("test[forget]", "test[retain]")

PAPER_METRIC = "Knowledge Retention, paper protocol (D_ft): stopped early, mostly measures how large features are"


class Card(ModelCard):
    """A README, whose metadata are a model's: `ModelCard` alone says so to no type checker."""

    data: ModelCardData


def eval_results(report: RetentionReport | None, datasets: Sequence[str]) -> list[EvalResult]:
    """Forget and retain results under a split each: the Hub merges results that share one."""
    if report is None:
        return []
    dataset = next((name for name in datasets if is_repo_id(name)), None)
    rows = (
        ("test[forget]", "worst_case", "recall", "recall", "Strongest attack, recall (D_ft)"),
        ("test[forget]", "converged", "D_ft", "knowledge_retention", "Knowledge Retention, converged probe (D_ft)"),
        ("test[forget]", "paper", "D_ft", "knowledge_retention_paper", PAPER_METRIC),
        ("test[forget]", "head", "D_ft", "accuracy", "Accuracy of the head (D_ft)"),
        ("test[retain]", "converged", "D_rt", "knowledge_retention", "Converged probe (D_rt)"),
        ("test[retain]", "head", "D_rt", "accuracy", "Accuracy of the head (D_rt)"),
    )
    found = []
    for split, section, name, kind, title in rows:
        value = _value(report, section, name)
        if value is not None:
            found.append(
                EvalResult(
                    task_type="image-classification",
                    dataset_type=dataset or "unknown",
                    dataset_name=dataset or "not named",
                    dataset_split=split,
                    metric_type=kind,
                    metric_name=title,
                    metric_value=round(float(value), 2),
                )
            )
    return found


def _value(report: RetentionReport, section: str, name: str) -> float | None:
    found = next((score for score in report.section(section).scores if score.name == name), None)
    return None if found is None else found.value


def results_table(report: RetentionReport) -> str:
    """The headline numbers: converged and strongest attack first, the paper's protocol after the label efficiency."""
    beside = beside_column(report)
    columns = ["", report.treatment, *(title for title, _ in beside)]
    columns += [f"reference ({report.reference})"] if report.reference != "none" else []
    lines = [_row(columns), _row(["---", *["---:"] * (len(columns) - 1)])]

    def add(text: str, section: str, name: str, group: str | None = None) -> None:
        for score in report.section(section).scores:
            if score.name == name and group in (None, score.group) and score.value is not None:
                cells = [number(score.value, score.unit, score.sd)]
                cells += [number(getattr(score, attribute), score.unit) for _, attribute in beside]
                cells += [number(score.reference, score.unit)] * (report.reference != "none")
                lines.append(_row([text, *cells]))
                return

    strongest = report.worst_case.group
    add(f"**Strongest attack ({table_cell(attackers(report.worst_case))}), recall**", "worst_case", "recall", strongest)
    add("Its false alarms", "worst_case", "false_alarms", strongest)
    if any(section.key == "weight_access" for section in report.sections):
        attack = ((report.context.get("weights") or {}).get("best") or {}).get("name")
        named = f" ({table_cell(attack)})" if attack else ""
        add(f"**What a downloader finds{named}, recall**", "weight_access", "F", "strongest attack")
        add("Its false alarms, on the bare network", "weight_access", "false_alarms", "strongest attack")
    add("**Converged linear probe, forgotten (D_ft)**", "converged", "D_ft")
    add("Converged linear probe, retained (D_rt)", "converged", "D_rt")
    if report.treatment == "erased":
        add("Whoever removes the eraser, recall", "worst_case", "recall_without_eraser")
    if any(score.name == "changed_vectors" for score in report.section("inputs").scores):
        for group, which in (("D_ft", "forgotten (D_ft)"), ("D_rt", "retained (D_rt)")):
            add(f"Inputs that the eraser changes, {which}", "inputs", "changed", group)
            add(f"Different vectors among these, {which}", "inputs", "changed_vectors", group)
    for score in report.section("label_efficiency").scores:
        if score.name == "recall" and (n := score.settings.get("n")) in (1, 5, 20):
            add(f"Recall from {n} labelled image{'s' * (n > 1)}", "label_efficiency", "recall", score.group)
    add(f"Area between {report.treatment} and reference (1 = nothing forgotten)", "label_efficiency", "area")
    add("Paper's probe, forgotten (D_ft)", "paper", "D_ft")
    add("Paper's probe, retained (D_rt)", "paper", "D_rt")
    add("The model's own head, forgotten (D_ft)", "head", "D_ft")
    add("The model's own head, retained (D_rt)", "head", "D_rt")
    add("Membership of the forgotten images, AUC two-sided (50 = no leak)", "membership", "auc_two_sided", "loss")
    return "\n".join(lines)


def verdict_text(report: RetentionReport) -> str:
    """The verdict, and the warnings of the records beside it."""
    judged = verdict(report)
    lines = [f"**{prose(judged.text)}**", *(f"**Warning:** {prose(warning)}" for warning in judged.warnings)]
    return "\n\n".join(lines)


def results_notes(report: RetentionReport) -> str:
    """How many images the numbers are of, and what they are to be compared with."""
    counts = ", ".join(f"{escape_markdown(name)} {count:,}" for name, count in report.samples.items())
    notes = [f"Percent, test images; {counts}. Every column has its own best attacker. {PAPER_NOTE}"]
    if report.reference == "none":
        notes.append("There is no reference without this knowledge, so what any features would give is not told apart.")
    return "\n\n".join(notes)


def _row(cells: Sequence[str]) -> str:
    """A row of a table whose first cell is Markdown of our own."""
    return f"| {' | '.join([cells[0], *map(table_cell, cells[1:])])} |"
