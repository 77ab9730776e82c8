"""How a report looks, the verdict first: one 80-column screen for the terminal, all of it as Markdown for a model card."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hf_kd.data.text import escape_markdown, one_line, sentence, table_cell
from hf_kd.methods.records import class_list

from .downloader import left_out_words
from .report_data import ReportData, scores_in
from .schema import PAPER_NOTE, Score, Section
from .summary import summary_lines
from .verdict import BY_NAME, verdict

WIDTH = 80
"""Columns of the screen."""

SCREEN_CURVE = 6
"""Points of the label-efficiency curve on the screen; Markdown has all."""

WIDE = {
    "agreement", "attacks", "identities", "inputs", "layer_profile", "norms", "recovery_ratio", "weight_access", "weights",
}  # fmt: skip
"""Sections that Markdown shows with a column for each score, as many groups have the same ones."""

STRONGEST = "Strongest, of each column by itself: the highest recall minus false alarms."

HIGHEST = "An attack with a higher recall takes more of the other images for the forgotten."

DIRECTION = "The column forgetting says which way a number moves where something is forgotten; an empty cell: neither."

NAMES = {
    "D_f": "D_f   forgotten, train",
    "D_r": "D_r   retained, train",
    "D_ft": "D_ft  forgotten, test",
    "D_rt": "D_rt  retained, test",
    "HM_t": "HM_t  harmonic mean, test",
    "HM": "HM    harmonic mean, train",
    "normalised_retention": "normalised retention (1 = all kept)",
    "gradient_norm": "gradient norm",
    "recall": "recall",
    "false_alarms": "false alarms",
    "advantage": "recall - false alarms",
    "recall_without_eraser": "recall without the eraser",
    "forget_bits": "code length of D_f labels, bits",
    "retain_bits": "code length of D_r labels, bits",
    "area": "area (1 = nothing forgotten)",
    "recovery_ratio": "probe / original head on D_ft",
    "accuracy": "accuracy",
    "accuracy_retain": "accuracy, retained",
    "auc": "AUC",
    "auc_two_sided": "AUC, two-sided",
    "tpr_at_1%_fpr": "TPR at 1 % FPR",
    "linear_cka": "linear CKA",
    "cosine": "cosine, uncentred",
    "changed": "inputs changed",
    "changed_vectors": "vectors among the changed",
    "repeated_vectors": "repeated vectors",
    "rows_sharing": "inputs sharing a vector",
    "largest_group": "largest group of equals",
    "mean_norm": "mean norm",
    "member_rate": "member rate",
    "average_gap": "average gap",
    "js": "JS, bits",
    "l1": "L1",
    "l2": "L2",
    "rms": "RMS",
    "same_answer": "same answer",
    "zrf": "ZRF",
    "relative": "relative",
    "mean_abs": "mean abs",
    "tar": "TAR",
    "tar_as_deployed": "TAR, threshold of the retained",
    "tar_retained": "TAR, retained",
    "rank1": "rank-1",
    "rank1_retained": "rank-1, retained",
    "map": "mAP",
    "identified": "identified",
    "relearning_area": "area",
    "steps_to_half": "steps to 50 %",
    "idi_probe": "IDI (probe)",
    "effective_rank": "effective rank",
    "identified_retained": "identified, retained",
    "F": "F     forgotten, test",
    "R": "R     retained, test",
}


def number(value: float | None, unit: str = "%", sd: float | None = None) -> str:
    """A number in as many digits as its unit deserves, with its deviation unless that is 0; a dash where there is none."""
    if value is None:
        return "-"
    if unit in ("%", "points"):
        return f"{value:.1f}" + (f" ± {sd:.1f}" if sd else "")
    if unit == "nats":
        return f"{value:.0e}"
    if unit == "relative":
        return f"{value:.2g}"
    if unit in ("vectors", "rows"):
        return f"{value:,.0f}"
    return f"{value:.2f}" + (f" ± {sd:.2f}" if sd else "")


def screen(report: ReportData) -> Group:
    """The console form: the verdict, the strongest attack and converged KR, the rest in brief; at most 80 columns wide."""
    beside = beside_column(report)
    columns = ["", report.treatment, *(title for title, _ in beside)]
    if report.reference != "none":
        columns.append(report.reference)
    title = Text(one_line(f"Retention audit: what is left of {_forgotten(report)}"))
    table = Table(title=title, title_justify="left", width=WIDTH - 2, box=None, pad_edge=False)
    for name in columns:
        table.add_column(
            name, justify="right" if name else "left", no_wrap=bool(name), ratio=None if name else 1, overflow="fold"
        )
    for title, rows, *notes in _screen_rows(report):
        if rows or any(notes):
            table.add_row(Text(title, style="bold"))
        for text, score in rows:
            sd = None if "sd_over" in score.settings else score.sd
            cells = [number(score.value, score.unit, sd), *(_value(score, attribute) for _, attribute in beside)]
            cells += [number(score.reference, score.unit)] * (report.reference != "none")
            table.add_row(f"  {text}", *cells)
        for note in filter(None, notes):
            table.add_row(Text(f"  {one_line(note)}", style="dim"))
    judged = verdict(report)
    above = [Text(judged.text, style="bold")]
    above += [Text(one_line(f"Warning: {warning}"), style="yellow") for warning in judged.warnings]
    below = [Text(note, style="dim") for note in _footnotes(report)]
    return Group(*above, Text(), table, *below)


def beside_column(report: ReportData) -> list[tuple[str, str]]:
    """Title and attribute of the column beside the audited numbers: the original, or else before the eraser, or none."""
    if report.original_known and any(score.original is not None for score in report):
        return [("original", "original")]
    if report.treatment == "erased" and any(score.before_projection is not None for score in report):
        return [("before the eraser", "before_projection")]
    return []


def _original(score: Score) -> str:
    """The original's number; that it is the same where it is, since two equal columns look like a measurement."""
    same = score.value is not None and score.value == score.original and score.unit in ("%", "points")
    return "same" if same else number(score.original, score.unit)


Rows = list[tuple[str, Score]]
"""Scores and what each is called."""


def _screen_rows(report: ReportData) -> Iterable[tuple[str, Rows] | tuple[str, Rows, str]]:
    """Titles, rows and maybe notes of the screen, what misleads least first."""

    def named(key: str, *names: str, group: str | None = None) -> Rows:
        return [
            (NAMES.get(score.name, score.name), score)
            for name in names
            for score in scores_in(report, key, name)
            if group in (None, score.group)
        ]

    strongest = report.worst_case.group
    recalls = [
        (f"highest recall of any attack ({attackers(s)})", s)
        for _, s in named("worst_case", "recall")
        if s.group != strongest
    ]
    white = [("recall of linear, eraser taken away", s) for _, s in named("worst_case", "recall_without_eraser")]
    yield (
        f"Strongest attack: {attackers(report.worst_case)}",
        named("worst_case", "recall", "false_alarms", group=strongest) + recalls + white,
    )
    yield "By its name, zero-shot", _screen_by_name(report)
    weights = report.context.get("weights") or {}
    name, skipped = (weights.get("best") or {}).get("name"), left_out_words(weights.get("left_out") or {})
    parts, groups = ("F", "R", "false_alarms"), ("strongest attack", "strongest probe")
    finds = [row for group in groups for row in named("weight_access", *parts, group=group)]
    # earlier reports have the strongest probe alone
    finds = [row for row in finds if row[1].group == finds[0][1].group]
    yield f"What a downloader finds{f': {name}' if name else ''}", finds, skipped
    state = "converged" if _converged(report) else "NOT CONVERGED: a lower bound"
    headline = ("D_ft", "D_rt", "D_f", "D_r", "HM_t", "normalised_retention")
    yield f"Linear probe, {state}", named("converged", *headline)
    yield "The same, references at equal accuracy", *_screen_level(report)
    points = [(score.group, score) for score in _some_points(report.section("label_efficiency"))]
    yield "Label efficiency: recall from n labels", points + named("label_efficiency", "area")
    yield "Linear probe, paper protocol (stopped early: see below)", named("paper", "D_ft", "D_rt")
    yield "The model's own head", named("head", "D_ft", "D_rt", "HM_t")
    yield "Layer profile: the converged probe on D_ft", _screen_layers(report)
    yield "Identities", _screen_identities(report)
    yield "Membership of D_f, by loss", named("membership", "auc_two_sided", group="loss")
    shared = [
        (f"{text}, {score.group}", score)
        for text, score in named("inputs", "changed", "changed_vectors", "repeated_vectors")
        if score.group == "D_ft" or score.value
    ]
    yield "Features of the test images", named("similarity", "linear_cka", "cosine") + shared


def _screen_level(report: ReportData) -> tuple[Rows, str]:
    """What is read beside the level of references at this model's own R; what is said where none is as accurate."""
    own = [section for section in report.sections if section.key == "reference_level"]
    pairs = [pair for section in own for pair in zip(section.scores, section.notes, strict=False)]
    told = " ".join(note for score, note in pairs if score.reference is None)
    return [(f"{score.name}, {score.group}", score) for score, _ in pairs], told


def _screen_by_name(report: ReportData) -> Rows:
    """Of a concept that was asked for by its name: what its name finds with either text tower, and what images do."""
    wanted = {
        ("", BY_NAME): "recall of its name, all templates",
        ("", "recall, worst wording"): "recall, worst wording",
        ("original texts", "recall, worst wording"): "worst wording, original's texts",
        ("", "accuracy of the others"): "accuracy of the others, by name",
        ("", "image to image R@1"): "image to image R@1",
        ("linear probe", "recall"): "linear probe, unit length: recall",
    }
    found = {(s.group, s.name): s for s in scores_in(report, "concepts")}
    return [(told, found[key]) for key, told in wanted.items() if key in found]


def attackers(score: Score) -> str:
    """The attack of a score on the erased features, and that on the original's where it is another."""
    original = score.settings.get("attackers", {}).get("original", score.group)
    return score.group if original == score.group else f"{score.group}; original: {original}"


def _screen_layers(report: ReportData) -> Rows:
    """Of the layer profile, if there is one: the first block, the one that reveals most, and the tap."""
    found = scores_in(report, "layer_profile", "D_ft")
    if not found:
        return []
    blocks = [score for score in found if score.group != "tap"]
    most = max(blocks, key=lambda score: score.value or 0.0, default=None)
    kept = [score for score in found if score is found[0] or score is most or score.group == "tap"]
    return [(f"{score.group}{' (most of all blocks)' if score is most else ''}", score) for score in kept]


def _screen_identities(report: ReportData) -> Rows:
    """Of the identities, if they were asked for: gallery search and verification, by both similarities."""
    found = scores_in(report, "identities")
    verified = next((score.group.rpartition(",")[0] for score in found if score.name == "tar"), None)
    rows = [s for s in found if s.name in ("rank1", "rank1_retained") or (
        s.name == "tar" and s.group.rpartition(",")[0] == verified)]  # fmt: skip
    return [
        (f"{NAMES[s.name]}, {s.group.removeprefix('verification, ').removeprefix('closed set, ')}", s) for s in rows
    ]


def in_one_line(report: ReportData) -> str:
    """What was forgotten and how, and the verdict in short, best attacker first."""
    done = [record["method"] for key in ("changes", "erasures") for record in report.context.get(key) or ()]
    by = f" by {', '.join(dict.fromkeys(done))}" if done else ""
    what = "" if report.treatment == "audited" else f" forgotten{by}"
    return one_line(f"{_forgotten(report)}{what}; {verdict(report).short.partition(': ')[2]}")


def _footnotes(report: ReportData) -> list[str]:
    counts = ", ".join(f"{name} {count:,}" for name, count in report.samples.items())
    seeds = f"; mean ± sd of {report.seeds} seeds" if report.seeds > 1 else ""
    notes = [f"Accuracies in %. {counts}; d = {report.dimension}{seeds}.", STRONGEST]
    best, found = report.worst_case.group, report.section("worst_case").scores
    if any(score.name == "recall" and score.group != best for score in found):
        notes.append(HIGHEST)
    if report.reference == "none":
        notes.append("No reference: give a retrained model or unseen classes to have one.")
    if report.original_known and any(score.value is not None and score.value == score.original for score in report):
        notes.append("same: equal to the original's, not merely close.")
    if scores_in(report, "paper"):
        notes.append(PAPER_NOTE)
    return notes


def _some_points(section: Section) -> list[Score]:
    """At most `SCREEN_CURVE` points of the curve, its last among them."""
    points = [score for score in section.scores if score.name == "recall"]
    wanted = {1, 5, 20, 100, 500} if len(points) > SCREEN_CURVE else {score.settings["n"] for score in points}
    return [*(score for score in points[:-1] if score.settings["n"] in wanted), *points[-1:]]


def _converged(report: ReportData) -> bool:
    settings = report.section("converged").settings
    return all(fit["converged"] for fit in settings.values())


def _forgotten(report: ReportData) -> str:
    return class_list([report.label(label) for label in report.forget_labels])


# Markdown


def markdown(report: ReportData, heading: int = 2) -> str:
    """The summary, then every section in reading order, a table each, with its notes; `heading`: level of its title."""
    lines = [f"{'#' * heading} Retention audit: what is left of {escape_markdown(_forgotten(report), 200)}", ""]
    first, *rest = map(prose, summary_lines(report))
    lines += [f"**{first}**", "", *(f"- {line}" for line in rest), "", f"{'#' * (heading + 1)} How it was measured", ""]
    lines += [f"- {sentence(note)}" for note in (*_footnotes(report), DIRECTION, *report.notes)]
    lines += [f"- Warning: {prose(warning)}" for warning in verdict(report).warnings[1:]]
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    lines += [sentence(f"- Measured in {report.seconds:.0f} s, loading and drawing not counted, with {versions}.")]
    for section in report.sections:
        lines += ["", sentence(f"{'#' * (heading + 1)} {section.title}"), ""]
        if section.key == "label_efficiency":
            curve = [score for score in section.scores if "n" in score.settings]
            rest = [score for score in section.scores if score not in curve]
            lines += _wide(report, replace(section, scores=tuple(curve))) + _long(
                report, replace(section, scores=tuple(rest))
            )
        elif section.key in WIDE:
            lines += _wide(report, section)
        elif section.scores:
            lines += _long(report, section)
        lines += [f"- {sentence(note)}" for note in section.notes]
    return "\n".join(lines) + "\n"


def prose(line: str) -> str:
    """A line with names in it; parentheses without brackets before them are no link."""
    return escape_markdown(line, 2_000).replace("\\(", "(").replace("\\)", ")")


def _long(report: ReportData, section: Section) -> list[str]:
    """A row for each score."""
    versions = _versions(report, section.scores)
    head = ["", *(title for title, _ in versions), "chance", "forgetting"]
    lines = [_row(head), _row(["---"] + ["---:"] * (len(versions) + 1) + ["---"])]
    for score in _shown(section):
        name = NAMES.get(score.name, score.name)
        label = score.settings.get("label")
        if label is not None:
            name = f"{'answered as' if score.name == 'answered' else 'class'} {report.label(label)}"
            name += ", forgotten" if score.settings.get("forgotten") else ""
        elif score.group and score.group not in ("code length", "area"):
            name = f"{name} ({attackers(score)})"
        cells = [_value(score, attribute) for _, attribute in versions]
        way = score.direction if score.direction != "none" else ""
        lines.append(_row([name, *cells, number(score.chance, score.unit) if score.chance is not None else "", way]))
    return [*lines, ""]


def _shown(section: Section, most: int = 30) -> list[Score]:
    """All scores but, of many classes, only the forgotten ones and those whose accuracy moved most."""
    classes = [score for score in section.scores if score.name == "accuracy" and "forgotten" in score.settings]
    if len(classes) <= most:
        return list(section.scores)
    moved = sorted(classes, key=lambda s: (not s.settings["forgotten"], -abs((s.value or 0.0) - (s.original or 0.0))))
    kept = {score.group for score in moved[:most]}
    return [score for score in section.scores if score not in classes or score.group in kept]


def _wide(report: ReportData, section: Section) -> list[str]:
    """A row for each group and a column for each score of it, erased / original / reference in one cell."""
    names = list(dict.fromkeys(score.name for score in section.scores))
    lines: list[str] = []
    if not names:
        return lines
    versions = _versions(report, section.scores)
    lines += [sentence(f"Cells: {' / '.join(title for title, _ in versions)}."), ""]
    lines += [_row(["", *(NAMES.get(name, name) for name in names)]), _row(["---"] + ["---:"] * len(names))]
    for group, scores in section.rows().items():
        own = {score.name: score for score in scores}
        cells = [
            " / ".join(_value(own[name], attribute) for _, attribute in versions) if name in own else ""
            for name in names
        ]
        lines.append(_row([group, *cells]))
    return [*lines, ""]


def _versions(report: ReportData, scores: Iterable[Score]) -> list[tuple[str, str]]:
    scores = list(scores)
    versions = [(report.treatment, "value"), *beside_column(report)]
    before = ("before the eraser", "before_projection")
    if report.treatment == "erased" and any(s.before_projection is not None for s in scores) and before not in versions:
        versions.append(before)
    if any(score.reference is not None for score in scores):
        versions.append((f"reference ({report.reference})", "reference"))
    return versions


def _value(score: Score, attribute: str) -> str:
    if attribute == "original":
        return _original(score)
    sd = score.sd if attribute == "value" else None
    return number(getattr(score, attribute), score.unit, sd)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(table_cell, cells)) + " |"
