"""The summary of a report: at most ten lines of plain text that can be handed on, the verdict first."""

from __future__ import annotations

from collections.abc import Iterator

from hf_kd.data.text import one_line
from hf_kd.methods.records import fitted_from

from .report_data import ReportData
from .shares import Share
from .verdict import BY_NAME, compares, share, subject, verdict

FEW_LABELS = (1, 5, 20)
"""Labelled images of each forgotten class for which the summary says what is read."""


def summary_lines(report: ReportData) -> list[str]:
    """At most ten lines: the verdict, what was done, each number with its interval, and what was not measured.

    Args:
        report: Also one that was loaded from JSON.

    Returns:
        Lines of plain text.
    """
    judged = verdict(report)
    lines = [judged.text, *(f"Warning: {warning}" for warning in judged.warnings[:1]), _done(report), *_numbers(report)]
    lines += [_few_labels(report), _reference(report), _white_box(report), _measured(report)]
    lines.append(
        "Not said here: what other attackers, more labels or the layers below would show; see the whole report."
    )
    return [one_line(line) for line in lines if line][:10]


def _done(report: ReportData) -> str:
    records = [record for key in ("changes", "erasures") for record in report.context.get(key) or ()]
    if not records:
        return f"Forgotten: {subject(report)}."
    told = ", then ".join(
        f"{record['method']} from {fitted_from(record['n_forget'], record.get('n_texts'))}" for record in records
    )
    model = report.context.get("architecture")
    return f"Forgotten: {subject(report)}, by {told}{f' ({model})' if model else ''}."


def _numbers(report: ReportData) -> Iterator[str]:
    compared = compares(report)
    attack, head = share(report, "worst_case", "recall", compared), share(report, "head", "D_ft", compared)
    asked = share(report, "concepts", BY_NAME, compared)
    if asked is not None:
        yield f"Labelled by its name, zero-shot: {_with_interval(asked)}{_other_wordings(report, compared)}."
    if attack is not None:
        attackers = report.worst_case.settings.get("attackers", {})
        names = {version: f"{attackers[version]}, " for version in ("erased", "original") if version in attackers}
        name = names.get("erased", f"{report.worst_case.group}, ")
        yield f"Best attacker, all labels: {_with_interval(attack, name, names.get('original', ''))}."
    if head is not None:
        yield f"The model's own head: {_with_interval(head)}."
    rest = share(report, "head", "D_rt", compared)
    if rest is not None:
        yield f"The other classes, own head: {rest.price()}; {rest.samples:,} test images."


def _other_wordings(report: ReportData, compared: bool) -> str:
    """What the wording that finds most gives, and what zero-shot labelling of the other classes lost."""
    told = ""
    for name, what in (
        ("recall, worst wording", "the wording that finds most"),
        ("accuracy of the others", "other classes"),
    ):
        found = [
            s for section in report.sections if section.key == "concepts" for s in section.scores if s.name == name
        ]
        score = next((score for score in found if score.value is not None), None)
        if score is not None:
            before = f" (before {score.original:.0f} %)" if compared and score.original is not None else ""
            told += f"; {what} {score.value:.0f} %{before}"
    return told


def _with_interval(found: Share, name: str = "", name_before: str = "") -> str:
    told = f"{found.counted()} ({name}95 % interval {found.wilson()})"
    if found.before is None:
        return told
    return f"{told}; before {found.bare(found.before)} ({name_before}{found.wilson(found.before)})"


def _few_labels(report: ReportData) -> str:
    compared = compares(report)
    points = [s for section in report.sections if section.key == "label_efficiency" for s in section.scores]
    found = []
    for score in points:
        if score.name == "recall" and score.value is not None and score.settings.get("n") in FEW_LABELS:
            before = f" (before {score.original:.0f} %)" if compared and score.original is not None else ""
            found.append(f"from {score.settings['n']}: {score.value:.0f} %{before}")
    return f"What an attacker reads who has few labelled images of it: {', '.join(found)}." if found else ""


def _reference(report: ReportData) -> str:
    if report.reference == "none":
        return (
            "Not compared with a model that never saw it: part of what an attacker reads may be what any features give."
        )
    attack = share(report, "worst_case", "recall", compares(report))
    value = None if attack is None else report.worst_case.reference
    what = "a model trained without it" if report.reference == "retrained" else "classes never trained on"
    if value is None:
        return f"Reference: {what}, compared at equal numbers of labels only."
    return f"Reference, {what}: its best attacker reads {value:.0f} %."


def _white_box(report: ReportData) -> str:
    score = next((s for section in report.sections for s in section.scores if s.name == "recall_without_eraser"), None)
    if score is None or score.value is None or report.treatment != "erased":
        return ""
    read = f"{score.value:.0f} % by a linear probe, as from the original"
    return f"Whoever holds the weights can take the eraser away and then reads {read}."


def _measured(report: ReportData) -> str:
    counts = ", ".join(f"{name} {count:,}" for name, count in report.samples.items())
    version = report.versions.get("hf-kd")
    seeds = f"; {report.seeds} seeds" if report.seeds > 1 else ""
    about = report.context
    on = f" on {about['date']}" if about.get("date") else ""
    data = f"{about['dataset']}, {sum(report.samples.values()):,} images" if about.get("dataset") else "images"
    return f"Measured{on}: {data} ({counts}), d = {report.dimension}{seeds}{f'; hf-kd {version}' if version else ''}."
