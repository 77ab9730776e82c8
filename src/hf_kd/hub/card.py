"""The model card: what was erased, what is still known - converged Knowledge Retention and the strongest attack first.

A card is a template filled from `CardValues`. Our text stands between two markers, so that a person's own text in the same
README survives every refresh.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, Template
from yaml import YAMLError

from hf_kd.audit.report import RetentionReport
from hf_kd.data.text import code, code_block, escape_markdown
from hf_kd.errors import InvalidValueError

from .card_results import OUR_SPLITS, Card, eval_results, results_notes, results_table, verdict_text
from .text import is_repo_id
from .wording import FOLDED, Request, classes_of, cover_limits, folded_into, headline, methods_text, request_line

TEMPLATE = "model_card_template.md"
TAGS = ("hf-kd", "machine-unlearning", "concept-erasure")
"""The last one where something is erased, and not only changed."""
BEGIN, END = "<!-- hf-kd: begin -->", "<!-- hf-kd: end -->"
STRAY = "<!-- hf-kd -->"
"""What a marker without its partner becomes: its text was somebody's and stays."""


@dataclass(frozen=True)
class CardValues:
    """Everything a card says."""

    requests: tuple[Request, ...]
    architecture: str
    """The name of its class."""
    taps: tuple[str, ...]
    """Where pooled features pass, in words."""
    dimension: int
    withheld: tuple[str, ...] = ()
    """Output fields of the base model that are withheld because they bypass the eraser."""
    repo_id: str | None = None
    base_model: str | None = None
    base_commit: str | None = None
    folded: bool = False
    eraser_only: bool = False
    """Whether the base is not in here."""
    since: str = "unknown"
    """What became of the weights since the first request: one of `receipt.SINCE`."""
    own_class: bool = False
    """Whether its class is none of transformers, so that whoever loads it has to register it first."""
    classifies: bool = True
    datasets: tuple[str, ...] = ()
    license: str | None = None
    report: RetentionReport | None = None
    figures: tuple[str, ...] = ()
    """Paths beside the card."""
    commands: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def changes(self) -> tuple[Request, ...]:
        """Requests that changed weights."""
        return tuple(request for request in self.requests if request.source is not None)

    @property
    def changed(self) -> tuple[str, ...]:
        """Their methods."""
        return tuple(dict.fromkeys(request.method for request in self.changes))

    @property
    def folded_before(self) -> bool:
        """Whether an eraser was folded into the weights before the last request."""
        return any(request.folded for request in self.requests)

    @property
    def erased(self) -> bool:
        """Whether an eraser stands in the model, or the last was folded into its head."""
        return any(request.source is None and not request.folded for request in self.requests)


ALT = {
    "recovery": "Forgotten test images that the best attacker, probes and the head read, before and after forgetting",
    "label_efficiency": "Recall of the forgotten classes against the number of labelled images an attacker has",
    "class_means": "Cosines between class means before and after forgetting",
    "norms": "Histograms of feature norms of forgotten and retained images, before and after forgetting",
    "layer_profile": "What a converged probe reads at every layer",
    "tsne": "t-SNE of test features before and after forgetting",
    "weight_profile": "F and AUC of a converged probe, block by block, of this network, the original and references",
    "relearning": "AUC and recall of the forgotten classes while networks are trained on few of their images",
    "cut_scan": "What a probe read of the forgotten classes, by the last block that was kept, when the cut was chosen",
    "reference_level": "Recall of references that never saw the forgotten classes, against their accuracy on the others",
}
"""What is to be seen in figures, by their names: `hf_kd.audit.figures.FIGURES` and that of a scan for a cut."""


def render(values: CardValues, existing: str | None = None) -> str:
    """The README: a new one, or `existing` with its metadata and our section refreshed and everything else kept.

    Raises InvalidValueError for an existing README whose metadata is no mapping in YAML.
    """
    try:
        card = Card(existing, ignore_metadata_errors=True) if existing and has_metadata(existing) else None
    except (ValueError, YAMLError) as error:
        raise InvalidValueError(
            f"The metadata of the README, between its first two lines of ---, is no mapping in YAML ({error}): mend it, or "
            "take it out."
        ) from error
    data = metadata(values, card.data if card else ModelCardData())
    text = _compiled().render(
        front_matter=data.to_yaml(line_break="\n"),
        begin=BEGIN,
        end=END,
        hf_kd_version=values.versions.get("hf-kd"),
        **_texts(values),
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


@cache
def _compiled() -> Template:
    return Environment(keep_trailing_newline=True, autoescape=False).from_string(template())  # noqa: S701 - no HTML


# Metadata


def metadata(values: CardValues, existing: ModelCardData) -> ModelCardData:
    """The card's YAML: ours, and of an existing card whatever we do not own, results on other splits among it."""
    own = {
        "library_name": "transformers" if values.folded or not values.erased else "hf-kd",
        "pipeline_tag": _task(values),
        "base_model": values.base_model if is_repo_id(values.base_model) else None,
        "base_model_relation": ("adapter" if values.eraser_only else "finetune")
        if is_repo_id(values.base_model)
        else None,
    }
    kept = existing.to_dict()
    theirs = {key: value for key, value in kept.items() if key not in (*own, "model-index", "eval_results")}
    tags = as_list(theirs.pop("tags", None))
    datasets = as_list(theirs.pop("datasets", None))
    licence = theirs.pop("license", None) or values.license
    wanted = [*tags, *(TAGS if values.erased else TAGS[:-1])]
    named = [*datasets, *(name for name in values.datasets if is_repo_id(name))]
    others = [result for result in existing.eval_results or [] if result.dataset_split not in OUR_SPLITS]
    results = [*others, *eval_results(values.report, values.datasets)]
    return ModelCardData(
        **{key: value for key, value in own.items() if value},
        tags=list(dict.fromkeys(wanted)),
        datasets=list(dict.fromkeys(named)) or None,
        license=licence,
        model_name=_name(values) if results else None,
        eval_results=results or None,
        **{str(key): value for key, value in theirs.items() if key != "model_name"},
    )


def as_list(value: Any) -> list[str]:
    """What the metadata of a card have as a list or as its only entry."""
    return [str(item) for item in value] if isinstance(value, list) else [str(value)] if value else []


def has_metadata(text: str) -> bool:
    """Whether a README begins with metadata."""
    return re.match(r"\s*---[\r\n]", text) is not None


# Text


def _texts(values: CardValues) -> dict[str, Any]:
    report = values.report
    return {
        "title": escape_markdown(_name(values)),
        "summary": f"{headline(_held(values), values.changes, _folded(values)[0])}\n\n{_summary(values)}"
        + SINCE_NOTES.get(values.since, ""),
        "verdict": None if report is None else verdict_text(report),
        "results": None if report is None else results_table(report),
        "results_notes": None if report is None else results_notes(report),
        "figures": [{"path": path, "alt": ALT.get(Path(path).stem, "Figure")} for path in values.figures],
        "full_report": None if report is None else report.to_markdown(3),
        "requests": "\n".join(request_line(request, values.folded) for request in values.requests),
        "method": _method(values),
        "usage": _usage(values),
        "reproduce": _reproduce(values),
        "fitted_on": _fitted_on(values),
        "without_eraser": not values.erased,
        "cover": cover_limits(values.requests),
        "removal": (
            f"**The eraser is folded into {_folded(values)[0]}.** Below, nothing is erased, for whoever reads there."
            if values.folded and not _folds_into_head(values)
            else "**The eraser is folded into the head.** Logits are erased; the features are NOT: whoever reads them, or "
            "trains another head, has what the original knew."
            if values.folded
            else "**Nothing is removed from the base model.** Whoever has it leaves the eraser out, and a service that "
            "loads it without the eraser answers as the original."
            if values.eraser_only
            else "**Whoever holds the weights can take the eraser away** and has the model as its weights were changed."
            if values.changed or values.folded_before
            else "**Whoever holds the weights can take the eraser away** and has the model as it was trained since."
            if values.since == "trained"
            else "**Whoever holds the weights can take the eraser away** and has the original model again."
        ),
    }


def _fitted_on(values: CardValues) -> str | None:
    """What the eraser gives away, where no image was used."""
    if not _by_name(values) or any(request.images for request in values.requests):
        return None
    return "**The eraser itself tells something about the forgotten concept:** it is fitted on its names."


SINCE_NOTES = {
    "trained": "\n\n**Trained since.** The weights are not those that the requests left: training can restore what was, and "
    "an audit from before says nothing of this model.",
    "converted": "\n\nThe weights are stored in another precision than the requests left them in.",
}


def _name(values: CardValues) -> str:
    if values.repo_id:
        return values.repo_id.partition("/")[2] or values.repo_id
    base = values.base_model or values.architecture
    return f"Eraser for {base}" if values.eraser_only else f"{base}, {'erased' if values.erased else 'made to forget'}"


def _held(values: CardValues) -> str:
    """What whoever downloads this model holds, as `HEADLINES` has it."""
    if values.eraser_only:
        return "eraser" if is_repo_id(values.base_model) else "eraser of a base elsewhere"
    before = bool(values.changed) or values.folded_before
    if values.erased:
        if values.folded:
            return "changed, then folded" if before or values.since == "trained" else "folded"
        return "changed, then erased" if before else "changed" if values.since == "trained" else "original"
    if values.folded_before or values.since == "trained":
        return "changed"
    last = values.changes[-1]
    if last.method == "retrain" and last.settings.get("init") is not None:
        return "retrained from another"
    return {"regrow": "regrown", "retrain": "retrained"}.get(last.method, "changed")


def _summary(values: CardValues) -> str:
    base = (
        f"[{values.base_model}](https://huggingface.co/{values.base_model})" if is_repo_id(values.base_model) else None
    )
    fitted = [request for request in values.requests if request.source is None]
    images, retained = sum(request.images for request in fitted), sum(request.retained or 0 for request in fitted)
    amount = " and ".join(request.amount for request in fitted if request.texts) or f"{images:,} images"
    amount += f" and {retained:,} retained ones" if retained else ""
    what = f"{base or escape_markdown(values.architecture)} that was made to forget {classes_of(values.requests)}"
    methods, read = ", ".join(map(code, values.changed)), "; then ".join(request.reads for request in values.changes)
    if values.eraser_only:
        return (
            f"An eraser for {base or escape_markdown(values.architecture)}, to forget {classes_of(values.requests)}, from "
            f"{amount} and without training. It stands where pooled features pass; the weights of the base are not in "
            "here, and only a base with the same weights takes it."
        )
    place = _folded(values)[0]
    if not values.erased:
        also = f"folding an eraser into {place} and " if values.folded_before else ""
        return (
            f"{what}, by {also}changing its weights ({methods}), with {read}. No eraser stands in it: it is a stock "
            "checkpoint, and its features are what these weights make of an image."
        )
    if values.changed or values.folded_before:
        where = f"folded into {place}" if values.folded else "where its pooled features pass"
        done = {True: f"an eraser was folded into {place}, ", False: f"its weights were changed ({methods}), "}
        told = dict.fromkeys(done[one.folded] for one in values.requests if one.folded or one.source is not None)
        return f"{what}: {''.join(told)}then an eraser was put {where}, from {amount}."
    how = (
        f"The erasure is folded into {place}: a stock checkpoint; {_folded(values)[1]}."
        if values.folded and not _folds_into_head(values)
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


def _task(values: CardValues) -> str:
    """The pipeline that takes the model."""
    if values.classifies:
        return "image-classification"
    return "zero-shot-image-classification" if _by_name(values) else "image-feature-extraction"


def _by_name(values: CardValues) -> bool:
    return any(request.texts for request in values.requests)


def _folded(values: CardValues) -> tuple[str, str]:
    """Where the eraser was folded in, and what is erased then."""
    return FOLDED[folded_into(values.classifies, _by_name(values))]


def _folds_into_head(values: CardValues) -> bool:
    return folded_into(values.classifies, _by_name(values)) == "head"


def _usage(values: CardValues) -> str:
    repo = values.repo_id if is_repo_id(values.repo_id) else "PATH_OR_REPO_ID"
    labels = ', candidate_labels=["dog", "ship"]' if _task(values).startswith("zero-shot") else ""
    pipe = f'pipeline("{_task(values)}", model="{repo}")("photo.jpg"{labels})'
    first = _registered(values)
    if values.eraser_only:
        return _usage_of_eraser(values, repo)
    if not values.erased or values.folded:
        still = f" **Its {_folded(values)[1]}.**" if values.erased else ""
        known = f", where `{values.architecture}` is registered: it is no class of transformers" if first else ""
        return (
            f"A stock checkpoint: it loads without hf_kd{known}.{still}\n\n"
            f"```python\n{first}from transformers import pipeline\n\n{pipe}\n```"
        )
    return (
        "    pip install hf-kd\n\n"
        f"```python\n{first}import hf_kd  # the one line that is missing if transformers does not know `hf_kd_erased`\n"
        f"from transformers import pipeline\n\n{pipe}\n```\n\n"
        f'`hf_kd.ErasedModel.from_pretrained("{repo}")` gives the model with its records. No code from this repository '
        "is run."
    )


def _registered(values: CardValues) -> str:
    """The line of Python that has to stand first for a class of the user's own; empty for one of transformers."""
    return f"import MODULE  # your file or package that registers {values.architecture}\n" if values.own_class else ""


def _usage_of_eraser(values: CardValues, repo: str) -> str:
    known = is_repo_id(values.base_model)
    base = f'"{values.base_model}"' if known else '"BASE_MODEL"'
    base += f', revision="{values.base_commit}"' if known and str(values.base_commit).isalnum() else ""
    alone = f' `ErasedModel.from_pretrained("{repo}")` finds that base itself.' if known else ""
    return (
        "    pip install hf-kd\n\n"
        f"```python\n{_registered(values)}from hf_kd import ErasedModel\n\n"
        f'model = ErasedModel.from_pretrained({base}, eraser="{repo}")\n```\n\n'
        f'`model.load_eraser("{repo}")` puts it on a model that is loaded already, behind other erasers too.{alone} No code '
        "from this repository is run."
    )


def _reproduce(values: CardValues) -> str:
    lines = values.commands or ("hf-kd erase BASE_MODEL --dataset DATASET --forget-labels LABEL --output erased",)
    own = f" FILE is the Python file that registers {code(values.architecture)}, which is no class of transformers."
    versions = ", ".join(f"{name} {version}" for name, version in values.versions.items())
    repo = values.repo_id if is_repo_id(values.repo_id) else "FOLDER"
    again = (
        "checks them, and with `--texts TEXT` whether words are those that were forgotten. It does not carry a request by "
        "name out again: no file holds its retained names."
        if _by_name(values)
        else "checks them, and carries the erasure out again when given the images."
        if values.erased
        else "checks them. It does not train again: the command above does, with the images of all labels."
    )
    repo += " --base BASE_MODEL" if values.eraser_only and not is_repo_id(values.base_model) else ""
    repo += " --import FILE" if values.own_class else ""
    return (
        f"{code_block(lines, 'bash')}\n\nDATASET, LABEL and the like stand for what is not published here."
        f"{own if values.own_class else ''} Settings that are not named are the defaults. Made with "
        f"{versions or 'hf_kd'}. The receipt `erasures.json` holds records and hashes; `hf-kd verify {repo}` {again}"
    )
