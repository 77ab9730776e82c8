"""The summary of a report: at most ten lines of plain text that can be handed on, the verdict first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from hf_kd.data.text import one_line
from hf_kd.methods.records import fitted_from

from .report_data import ReportData, scores_in
from .shares import Share
from .verdict import BY_NAME, BY_NAMES, WORST_WORDING, compares, features_read, share, subject, verdict

MOST_LINES = 10

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
    numbers, few = list(_numbers(report)), _few_labels(report)
    lines = [judged.text, _warning(judged.warnings), _done(report), *numbers, few, _reference(report)]
    lines += [_with_weights(report) or _white_box(report), _measured(report), _not_said(report)]
    lines = [line for line in lines if line]
    spare = [few, *reversed(numbers)]  # the verdict has these numbers too
    while len(lines) > MOST_LINES:
        lines = [line for line in lines if line != spare[0]]
        del spare[0]
    return [one_line(line) for line in lines]


def _warning(warnings: Sequence[str]) -> str:
    """The first warning, and how many more there are."""
    more = len(warnings) - 1
    rest = f" (and {more} more warning{'s' * (more > 1)}: see the whole report)" if more > 0 else ""
    return f"Warning: {warnings[0]}{rest}" if warnings else ""


def _done(report: ReportData) -> str:
    records = [record for key in ("changes", "erasures") for record in report.context.get(key) or ()]
    if not records:
        nothing = "" if report.treatment == "erased" else " (no record says that the model was made to forget it)"
        return f"Audited: {subject(report)}{nothing}."
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
        (WORST_WORDING, "the wording that finds most"),
        (BY_NAMES, "other classes"),
    ):
        score = next((score for score in scores_in(report, "concepts", name) if score.value is not None), None)
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
    found = []
    for score in scores_in(report, "label_efficiency", "recall"):
        if score.value is not None and score.settings.get("n") in FEW_LABELS:
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
    return f"Reference, {what}: its best attacker reads {value:.0f} %.{_at_equal_accuracy(report)}"


def _at_equal_accuracy(report: ReportData) -> str:
    """What a probe reads of several references at this model's own accuracy."""
    levels = scores_in(report, "reference_level")
    score = next((score for score in levels if len(score.settings["references"]) > 1), None)
    if score is None or score.value is None:
        return ""
    many = f"{len(score.settings['references'])} such models"
    if score.reference is None:
        return f" Of {many} none is as accurate as this one."
    own = f"at this model's accuracy, of this one {score.value:.0f} %"
    return f" Of {many} a linear probe reads {score.reference:.0f} % {own}."


def _with_weights(report: ReportData) -> str:
    """What the strongest attack on each bare network reads, where the audit had the weights."""
    found = (report.context.get("weights") or {}).get("strongest") or {}
    told = []
    for version, what in (
        ("erased", "of this model"),
        ("original", "of the original"),
        ("reference", "never seen"),
    ):
        own = found.get(version) or {}
        if own.get("F") is not None:
            alarms = "" if own.get("false_alarms") is None else f"; {own['false_alarms']:.0f} % false alarms"
            told.append(f"{what} {own['F']:.0f} % ({own.get('called') or own.get('attack', '')}{alarms})")
    outside = features_read(report, share(report, "worst_case", "recall", compares(report)))
    own = (found.get("erased") or {}).get("F")
    least = "" if outside is None or own is None or round(outside) <= round(own) else (
        f"at least the {outside:.0f} % that are read from the features; "
    )  # fmt: skip
    return f"With the weights, {least}the strongest attack on the network reads {', '.join(told)}." if told else ""


def _white_box(report: ReportData) -> str:
    """What is read once the eraser is taken away: by the best attacker that was asked there, not by a linear probe alone."""
    score = next((s for s in report if s.name == "recall_without_eraser"), None)
    if score is None or score.value is None or report.treatment != "erased":
        return ""
    best, attackers = report.worst_case, report.worst_case.settings.get("attackers", {})
    before = "original" if best.before_projection is None else "before_projection"
    if before == "original" and not compares(report):
        return ""
    same = "; as from the original" if before == "original" else ""
    found = [(score.value, "linear")]
    for version, value in (("erased", best.value), (before, getattr(best, before))):
        name = attackers.get(version, best.group)
        if value is not None and not name.startswith("groups-"):
            found.append((value, name))
    most, name = max(found, key=lambda pair: pair[0])
    return f"Whoever holds the weights can take the eraser away and then reads at least {math.floor(most)} % ({name}{same})."


def _not_said(report: ReportData) -> str:
    """What the report leaves open; layers below the features where none was read."""
    read = any(section.key == "layer_profile" for section in report.sections) or _with_weights(report)
    open_to = "what other attackers or more labels" if read else "what other attackers, more labels or the layers below"
    return f"Not said here: {open_to} would show; see the whole report."


def _measured(report: ReportData) -> str:
    counts = ", ".join(f"{name} {count:,}" for name, count in report.samples.items())
    version = report.versions.get("hf-kd")
    seeds = f"; {report.seeds} seeds" if report.seeds > 1 else ""
    about = report.context
    on = f" on {about['date']}" if about.get("date") else ""
    data = f"{about['dataset']}, " if about.get("dataset") else ""
    told = f"Measured{on}: {data}{sum(report.samples.values()):,} images ({counts}), d = {report.dimension}{seeds}"
    return f"{told}{f'; hf-kd {version}' if version else ''}."
