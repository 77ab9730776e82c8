"""The model card: what was erased, what is still known - converged Knowledge Retention and the strongest attack first.

A card is a template filled from `CardValues`. Our text stands between two markers, so that a person's own text in the same
README survives every refresh.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment

from hf_kd.audit.render import attackers, number, prose
from hf_kd.audit.report import RetentionReport
from hf_kd.audit.schema import PAPER_NOTE
from hf_kd.audit.verdict import verdict
from hf_kd.data.text import code, code_block, escape_markdown, table_cell

from .text import is_repo_id
from .wording import HEADLINES, Request, classes_of, cover_limits, methods_text, request_line

TEMPLATE = "model_card_template.md"
BEGIN, END = "<!-- hf-kd: begin -->", "<!-- hf-kd: end -->"
STRAY = "<!-- hf-kd -->"
"""What a marker without its partner becomes: its text was somebody's and stays."""


@dataclass(frozen=True)
class CardValues:
    """Everything a card says."""

    requests: tuple[Request, ...]
    architecture: str
    taps: tuple[str, ...]
    """Where pooled features pass, in words."""
    dimension: int
    withheld: tuple[str, ...] = ()
    """Output fields of the base model that are withheld because they bypass the eraser."""
    repo_id: str | None = None
    base_model: str | None = None
    folded: bool = False
    since: str = "unknown"
    """What became of the weights since the first request: one of `receipt.SINCE`."""
    classifies: bool = True
    datasets: tuple[str, ...] = ()
    license: str | None = None
    report: RetentionReport | None = None
    figures: tuple[str, ...] = ()
    """Paths beside the card."""
    commands: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def changed(self) -> tuple[str, ...]:
        """Methods that changed weights."""
        return tuple(dict.fromkeys(request.method for request in self.requests if request.source is not None))

    @property
    def erased(self) -> bool:
        """Whether an eraser stands in the model, or is folded into its head."""
        return any(request.source is None for request in self.requests)


OUR_SPLITS = ("test[forget]", "test[retain]")

PAPER_METRIC = "Knowledge Retention, paper protocol (D_ft): stopped early, mostly measures how large features are"

ALT = {
    "recovery": "Forgotten test images that the best attacker, probes and the head read, original and erased",
    "label_efficiency": "Recall of the forgotten classes against the number of labelled images an attacker has",
    "class_means": "Cosines between class means before and after erasing",
    "norms": "Histograms of feature norms of forgotten and retained images, before and after erasing",
    "layer_profile": "What a converged probe reads at every layer",
    "tsne": "t-SNE of test features before and after erasing",
}


def render(values: CardValues, existing: str | None = None) -> str:
    """The README: a new one, or `existing` with its metadata and our section refreshed and everything else kept.

    Raises ValueError for an existing README whose metadata is not YAML.
    """
    card = ModelCard(existing, ignore_metadata_errors=True) if existing and _has_metadata(existing) else None
    data = metadata(values, card.data if card else ModelCardData())
    text = (
        Environment(keep_trailing_newline=True, autoescape=False)  # noqa: S701 - Markdown, not HTML
        .from_string(template())
        .render(
            front_matter=data.to_yaml(line_break="\n"),
            begin=BEGIN,
            end=END,
            hf_kd_version=values.versions.get("hf-kd"),
            **_texts(values),
        )
    )
    if not existing:
        return text
    head, ours = text.split(BEGIN, 1)
    end = "\r\n" if "\r\n" in existing else "\n"
    head, section = head.rstrip("\n").replace("\n", end), (BEGIN + ours.rstrip("\n")).replace("\n", end)
    body = card.text if card else existing
    first, last = body.find(BEGIN), body.find(END)
    if body.count(BEGIN) == 1 and body.count(END) == 1 and first < last:
        body = body[:first] + section + body[last + len(END) :]
    else:
        body = body.replace(BEGIN, STRAY).replace(END, STRAY)
        body = body.rstrip("\r\n") + (2 * end if body.strip() else "") + section + end
    return head + 2 * end + body.lstrip("\r\n")


def template() -> str:
    """The text of `model_card_template.md`, which lies beside this file."""
    return Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8")


# Metadata


def metadata(values: CardValues, existing: ModelCardData) -> ModelCardData:
    """The card's YAML: ours, and of an existing card whatever we do not own, results on other splits among it."""
    own = {
        "library_name": "transformers" if values.folded or not values.erased else "hf-kd",
        "pipeline_tag": _task(values),
        "base_model": values.base_model if is_repo_id(values.base_model) else None,
        "base_model_relation": "finetune" if is_repo_id(values.base_model) else None,
    }
    kept = existing.to_dict()
    theirs = {key: value for key, value in kept.items() if key not in (*own, "model-index", "eval_results")}
    tags = _as_list(theirs.pop("tags", None))
    datasets = _as_list(theirs.pop("datasets", None))
    licence = theirs.pop("license", None) or values.license
    wanted = [*tags, "hf-kd", "machine-unlearning", *(["concept-erasure"] if values.erased else [])]
    named = [*datasets, *(name for name in values.datasets if is_repo_id(name))]
    others = [result for result in existing.eval_results or [] if result.dataset_split not in OUR_SPLITS]
    results = [*others, *eval_results(values)]
    return ModelCardData(
        **{key: value for key, value in own.items() if value},
        tags=list(dict.fromkeys(wanted)),
        datasets=list(dict.fromkeys(named)) or None,
        license=licence,
        model_name=_name(values) if results else None,
        eval_results=results or None,
        **{str(key): value for key, value in theirs.items() if key != "model_name"},
    )


def eval_results(values: CardValues) -> list[EvalResult]:
    """Forget and retain results under a split each: the Hub merges results that share one."""
    if values.report is None:
        return []
    dataset = next((name for name in values.datasets if is_repo_id(name)), None)
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
        value = _value(values.report, section, name)
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


def _as_list(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)] if value else []


def _has_metadata(text: str) -> bool:
    return re.match(r"\s*---[\r\n]", text) is not None


# Text


def _texts(values: CardValues) -> dict[str, Any]:
    report = values.report
    return {
        "title": escape_markdown(_name(values)),
        "summary": f"{HEADLINES[_held(values)]}\n\n{_summary(values)}" + SINCE_NOTES.get(values.since, ""),
        "verdict": None if report is None else _verdict(report),
        "results": None if report is None else results_table(report),
        "results_notes": None if report is None else _results_notes(report),
        "figures": [{"path": path, "alt": ALT.get(Path(path).stem, "Figure")} for path in values.figures],
        "full_report": None if report is None else report.to_markdown(3),
        "requests": "\n".join(request_line(request, values.folded) for request in values.requests),
        "method": _method(values),
        "usage": _usage(values),
        "reproduce": _reproduce(values),
        "without_eraser": not values.erased,
        "cover": cover_limits(values.requests),
        "removal": (
            "**The eraser is folded into both projections.** Below them nothing is erased, for whoever reads there."
            if values.folded and _by_name(values)
            else "**The eraser is folded into the head.** Logits are erased; the features are NOT: whoever reads them, or "
            "trains another head, has what the original knew."
            if values.folded
            else "**Whoever holds the weights can take the eraser away** and has the model as its weights were changed."
            if values.changed
            else "**Whoever holds the weights can take the eraser away** and has the model as it was trained since."
            if values.since == "trained"
            else "**Whoever holds the weights can take the eraser away** and has the original model again."
        ),
    }


SINCE_NOTES = {
    "trained": "\n\n**Trained since.** The weights are not those that the requests left: training can restore what was, and "
    "an audit from before says nothing of this model.",
    "converted": "\n\nThe weights are stored in another precision than the requests left them in.",
}


def _name(values: CardValues) -> str:
    if values.repo_id:
        return values.repo_id.partition("/")[2] or values.repo_id
    return f"{values.base_model or values.architecture}, {'erased' if values.erased else 'made to forget'}"


def _held(values: CardValues) -> str:
    """What whoever downloads this model holds, as `HEADLINES` has it."""
    if not values.changed:
        return "changed" if values.since == "trained" else "original"
    return {"regrow": "regrown", "retrain": "retrained"}.get(values.changed[-1], "changed")


def _summary(values: CardValues) -> str:
    base = (
        f"[{values.base_model}](https://huggingface.co/{values.base_model})" if is_repo_id(values.base_model) else None
    )
    images = sum(request.images for request in values.requests)
    amount = " and ".join(request.amount for request in values.requests if request.texts) or f"{images:,} images"
    what = f"{base or escape_markdown(values.architecture)} that was made to forget {classes_of(values.requests)}"
    methods = ", ".join(map(code, values.changed))
    if not values.erased:
        return (
            f"{what}, with {images:,} images of it, by changing its weights ({methods}). No eraser stands in it: it is a "
            "stock checkpoint, and its features are what these weights make of an image."
        )
    if values.changed:
        where = "folded into its head" if values.folded else "where its pooled features pass"
        return f"{what}, from {images:,} images: its weights were changed ({methods}), then an eraser was put {where}."
    how = (
        "The erasure is folded into both projections: a stock checkpoint whose embeddings are erased; below them nothing is."
        if values.folded and _by_name(values)
        else "The erasure is folded into its head: a stock checkpoint whose logits are erased and whose features are not."
        if values.folded
        else "An eraser stands where its pooled features pass; the weights of the base model are unchanged."
        if values.since == "unchanged"
        else "An eraser stands where its pooled features pass."
    )
    return f"{what}, from {amount} and without training the backbone. {how}"


def _method(values: CardValues) -> str:
    taps = "; ".join(map(code, values.taps))
    if not values.erased:
        return f"Pooled features pass at: {taps}; d = {values.dimension}. What is said above of features is measured there."
    text = f"The eraser stands at: {taps}; d = {values.dimension}."
    if values.withheld and not values.folded:
        fields = ", ".join(map(code, values.withheld))
        text += f" These fields of the output bypass it and are withheld unless hidden states are asked for: {fields}."
    return f"{text} {methods_text(values.requests)}"


def results_table(report: RetentionReport) -> str:
    """The headline numbers: converged and strongest attack first, the paper's protocol after the label efficiency."""
    columns = ["", report.treatment, "original"] + (
        [f"reference ({report.reference})"] if report.reference != "none" else []
    )
    lines = [_row(columns), _row(["---", *["---:"] * (len(columns) - 1)])]

    def add(text: str, section: str, name: str, group: str | None = None) -> None:
        for score in report.section(section).scores:
            if score.name == name and group in (None, score.group) and score.value is not None:
                cells = [number(score.value, score.unit, score.sd), number(score.original, score.unit)]
                cells += [number(score.reference, score.unit)] * (len(columns) > 3)
                lines.append(_row([text, *cells]))
                return

    strongest = report.worst_case.group
    add(f"**Strongest attack ({table_cell(attackers(report.worst_case))}), recall**", "worst_case", "recall", strongest)
    add("Its false alarms", "worst_case", "false_alarms", strongest)
    add("**Converged linear probe, forgotten (D_ft)**", "converged", "D_ft")
    add("Converged linear probe, retained (D_rt)", "converged", "D_rt")
    if report.treatment == "erased":
        add("Whoever removes the eraser, recall", "worst_case", "recall_without_eraser")
    if any(score.name == "changed_vectors" for score in report.section("inputs").scores):
        for group, which in (("D_ft", "forgotten (D_ft)"), ("D_rt", "retained (D_rt)")):
            add(f"Inputs that the eraser changes, {which}", "inputs", "changed", group)
            add(f"Different vectors among these, {which}", "inputs", "changed_vectors", group)
    for score in report.section("label_efficiency").scores:
        if score.name == "recall" and score.settings.get("n") in (1, 5, 20):
            add(f"Recall from {int(score.settings['n'])} labelled images", "label_efficiency", "recall", score.group)
    add("Area between erased and reference (1 = nothing forgotten)", "label_efficiency", "area")
    add("Paper's probe, forgotten (D_ft)", "paper", "D_ft")
    add("Paper's probe, retained (D_rt)", "paper", "D_rt")
    add("The model's own head, forgotten (D_ft)", "head", "D_ft")
    add("The model's own head, retained (D_rt)", "head", "D_rt")
    add("Membership of the forgotten images, AUC two-sided (50 = no leak)", "membership", "auc_two_sided", "loss")
    return "\n".join(lines)


def _verdict(report: RetentionReport) -> str:
    """The verdict, and the warnings of the records beside it."""
    judged = verdict(report)
    lines = [f"**{prose(judged.text)}**", *(f"**Warning:** {prose(warning)}" for warning in judged.warnings)]
    return "\n\n".join(lines)


def _results_notes(report: RetentionReport) -> str:
    counts = ", ".join(f"{escape_markdown(name)} {count:,}" for name, count in report.samples.items())
    notes = [f"Percent, test images; {counts}. Every column has its own best attacker. {PAPER_NOTE}"]
    if report.reference == "none":
        notes.append("There is no reference without this knowledge, so what any features would give is not told apart.")
    return "\n\n".join(notes)


def _task(values: CardValues) -> str:
    """The pipeline that takes the model."""
    if values.classifies:
        return "image-classification"
    return "zero-shot-image-classification" if _by_name(values) else "image-feature-extraction"


def _by_name(values: CardValues) -> bool:
    return any(request.texts for request in values.requests)


FOLDED = {
    False: "Its logits are erased, its **features are not**.",
    True: "Its embeddings are erased, what lies **below the projections is not**.",
}
"""Of a stock checkpoint with the eraser in its weights, by whether it was erased by name."""


def _usage(values: CardValues) -> str:
    repo = values.repo_id if is_repo_id(values.repo_id) else "PATH_OR_REPO_ID"
    labels = ', candidate_labels=["dog", "ship"]' if _task(values).startswith("zero-shot") else ""
    pipe = f'pipeline("{_task(values)}", model="{repo}")("photo.jpg"{labels})'
    if not values.erased:
        return f"A stock checkpoint: it loads without hf_kd.\n\n```python\nfrom transformers import pipeline\n\n{pipe}\n```"
    if values.folded:
        return (
            f"A stock checkpoint: it loads without hf_kd. {FOLDED[_by_name(values)]}\n\n"
            f"```python\nfrom transformers import pipeline\n\n{pipe}\n```"
        )
    return (
        "    pip install hf-kd\n\n"
        "```python\nimport hf_kd  # the one line that is missing if transformers does not know `hf_kd_erased`\n"
        f"from transformers import pipeline\n\n{pipe}\n```\n\n"
        f'`hf_kd.ErasedModel.from_pretrained("{repo}")` gives the model with its records. No code from this repository '
        "is run."
    )


def _reproduce(values: CardValues) -> str:
    lines = values.commands or ("hf-kd erase BASE_MODEL --dataset DATASET --forget-labels LABEL --output erased",)
    versions = ", ".join(f"{name} {version}" for name, version in values.versions.items())
    repo = values.repo_id if is_repo_id(values.repo_id) else "FOLDER"
    again = (
        "checks them, and carries the erasure out again when given the images."
        if values.erased
        else "checks them. It does not train again: the command above does, with the images of all labels."
    )
    return (
        f"{code_block(lines, 'bash')}\n\nDATASET, LABEL and the like stand for what is not published here. Made with "
        f"{versions or 'hf_kd'}. The receipt `erasures.json` holds records and hashes; `hf-kd verify {repo}` {again}"
    )


def _row(cells: Sequence[str]) -> str:
    """A row of a table whose first cell is Markdown of our own."""
    return f"| {' | '.join([cells[0], *map(table_cell, cells[1:])])} |"
