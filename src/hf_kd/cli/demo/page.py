"""The page of the demo: one image, what the original answers beside what the erased model answers, and the verdict.

Runs in a Space and, by `hf-kd demo --ui`, on this machine. Needs the optional extra `ui`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image

from hf_kd.audit.figures import draw_figures
from hf_kd.audit.report import RetentionReport
from hf_kd.audit.verdict import NOT_AUDITED, verdict
from hf_kd.cli._published import beside
from hf_kd.data.images import to_rgb
from hf_kd.data.text import LONGEST, escape_markdown, one_line
from hf_kd.errors import HfKdError, InvalidValueError, has_package, require
from hf_kd.features.heads import class_scores
from hf_kd.features.reader import preprocessor_of
from hf_kd.features.taps.inputs import explaining, in_dtype_of, run
from hf_kd.hub.card import BEGIN
from hf_kd.hub.card_results import Card
from hf_kd.hub.document import REPORT
from hf_kd.hub.own_report import records_told, refuse_other_report, report_beside
from hf_kd.methods.records import all_records, forgotten_classes
from hf_kd.model.erased_model import ErasedModel

if TYPE_CHECKING:
    import gradio  # pyright: ignore[reportMissingImports] - an extra, hf-kd[ui]

TOP = 5

EXAMPLES = 3

FIGURE = "figures/label_efficiency.png"

LEGEND = """

*D_f: training images of what was forgotten. D_ft: test images of it, of which attacker or head still name so many. D_rt: the
other test images, answered rightly. Recall: the share of D_ft that is found. A converged probe is a classifier trained on
labelled features until it gets no better; the paper's is stopped long before. The head is what the model itself answers.*"""
"""What the symbols of the card's table are."""

ABOUT = """# What does it still answer?
The same image goes to the original model and to the erased one. Answers are the least of what a model knows: the verdict
says what attackers get out of its features.
"""


def page(
    source: str | Path,
    examples: str | Path | None = None,
    report: RetentionReport | None = None,
    show_class_names: bool = False,
    eraser: Sequence[str] = (),
) -> gradio.Blocks:
    """The page for an erased classifier, not yet launched.

    Args:
        source: Hub id or folder.
        examples: Folder of images to offer; three of them, those of forgotten classes (by their names) first.
        report: Of an audit; by default the one that lies with the model.
        show_class_names: Whether the forgotten classes are named.
        eraser: Erasers to put on the model, as for `ErasedModel.from_pretrained`.

    Raises:
        ImportError: Without gradio, with the command to install it.
        ValueError: For a model without an eraser or without a classification head, and for a report of another model.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    gr = require("gradio", "ui")
    model = ErasedModel.from_pretrained(source, eraser=eraser).eval()
    if not model.is_erased or not model.class_names:
        raise InvalidValueError(
            f"{source} is no erased classifier: there is no second answer to show beside the first. Name the folder "
            "that hf-kd erase wrote."
        )
    report = _report(source, report, model)

    def compare(image: Image.Image | None) -> tuple[dict[str, float], dict[str, float]]:
        if image is None:
            raise gr.Error("Choose an image first.")
        try:
            return answers(model, image)
        except HfKdError as error:
            raise gr.Error(str(error)) from error

    with gr.Blocks(title="Before and after erasing") as blocks:
        gr.Markdown(ABOUT)
        gr.Markdown(f"**Forgotten:** {forgotten(model, show_class_names)}\n\n**Verdict:** {judged(report)}")
        with gr.Row():
            image = gr.Image(type="pil", label="Image", height=280)
            before = _answer(gr, "Before", "Original")
            after = _answer(gr, "After", "Erased")
        button = gr.Button("Compare", variant="primary")
        chosen = [] if examples is None else offered(Path(examples), model)
        if chosen:
            gr.Examples([[str(path)] for path in chosen], [image], [before, after], compare, run_on_click=True)
        figure = None if report is None else label_efficiency(source, report)
        with gr.Row():
            if figure is not None:
                with gr.Column():
                    gr.Markdown("### How few labels an attacker needs")
                    gr.Image(str(figure), show_label=False, interactive=False, height=360, elem_id="figure")
            with gr.Column():
                gr.Markdown(numbers(source))
        button.click(compare, image, [before, after], api_name="compare")
        image.upload(compare, image, [before, after], api_name=False)
    return blocks


def _report(source: str | Path, report: RetentionReport | None, model: ErasedModel) -> RetentionReport | None:
    """The report that was given, which has to be of this model, or else the one that lies with the model."""
    if report is None and (stored := _beside(source, REPORT)) is not None:
        return report_beside(stored, records_told(model))
    refuse_other_report(report, model)
    return report


def _answer(gr: Any, title: str, label: str) -> gradio.Label:
    """A column for the answer of one of the two models."""
    with gr.Column():
        gr.Markdown(f"### {title}")
        return gr.Label(num_top_classes=TOP, label=label, elem_id=title.lower())


def forgotten(model: ErasedModel, named: bool) -> str:
    """What was forgotten, by which method, from how many images, as Markdown."""
    parts = []
    for record in all_records(model):
        text = record.summary
        names = [model.class_names[label] for label in record.classes or () if label in model.class_names]
        if named and names:
            text = f"{', '.join(names)}: {text}"
        parts.append(escape_markdown(one_line(text), 400))
    return "; ".join(parts)


def judged(report: RetentionReport | None) -> str:
    """The verdict of a report, or that there is none, as Markdown."""
    return escape_markdown(NOT_AUDITED if report is None else verdict(report).text, 2_000)


def offered(folder: Path, model: ErasedModel) -> list[Path]:
    """A few images of a folder to click on: those of forgotten classes, by the names in their file names, come first."""
    whole = {model.class_names.get(label, "") for label in forgotten_classes(model)}
    names = whole | {name.partition(",")[0] for name in whole}  # a label may have synonyms behind commas
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    return sorted(found, key=lambda path: path.stem.partition("-")[2] not in names)[:EXAMPLES]


def label_efficiency(source: str | Path, report: RetentionReport | None) -> Path | None:
    """The figure of label efficiency: drawn from the report, or the one that lies with the model; None without either."""
    if report is not None and has_package("matplotlib"):
        return next(iter(draw_figures(report, tempfile.mkdtemp(prefix="hf-kd-page-"), Path(FIGURE).stem)), None)
    return _beside(source, FIGURE)


def _beside(source: str | Path, name: str) -> Path | None:
    """A file that lies with the model, in a folder or on the Hub; None where none is found, or a Hub is not."""
    try:
        return beside(source, name)
    except LocalEntryNotFoundError:
        return None


def answers(model: Any, image: Image.Image) -> tuple[dict[str, float], dict[str, float]]:
    """Probabilities by label, of the original and of the erased model. The original is the model without its erasers."""
    inputs: dict[str, Any] = in_dtype_of(model.inner, preprocessor_of(model)([to_rgb(image, 0)]))
    kept = [(site.eraser, site.masked) for site in model.sites]
    with torch.no_grad():
        with explaining(model.inner, inputs):
            erased = model(**inputs).logits
        try:
            for site in model.sites:
                site.eraser, site.masked = None, ()
            original = run(model.inner, inputs).logits
        finally:
            for site, (eraser, masked) in zip(model.sites, kept, strict=True):
                site.eraser, site.masked = eraser, masked
    original, erased = class_scores(model, original)[0], class_scores(model, erased)[0]
    return _by_label(original, model.class_names), _by_label(erased, model.config.id2label)


def _by_label(scores: torch.Tensor, names: Mapping[int, str]) -> dict[str, float]:
    values, places = scores.topk(min(TOP, len(scores)))
    answers: dict[str, float] = {}
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        name = one_line(names.get(place, ""), LONGEST)
        answers[name if name and name not in answers else f"{name} ({place})".strip()] = value
    return answers


def _whole(value: Any) -> str:
    """Percent without digits behind the point, at which a narrow column would break them; what is no number as it is."""
    return f"{value:.0f}" if isinstance(value, int | float) else escape_markdown(str(value))


def numbers(source: str | Path) -> str:
    """The headline numbers of the model's card, as Markdown; nothing where it has none."""
    try:
        path = _beside(source, "README.md")
        card = Card("" if path is None else path.read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except OSError as error:
        return f"The model's card could not be read ({type(error).__name__}), so there are no numbers to show."
    results = card.data.eval_results or []
    if not results:
        return ""
    lines = ["| What attackers get, from the model's card | percent |", "|---|---:|"]
    lines += [
        f"| {escape_markdown(str(result.metric_name), 200)} | {_whole(result.metric_value)} |" for result in results
    ]
    return "\n".join(lines) + LEGEND + ("" if BEGIN in card.text else "\n\nThis card was not written by hf_kd.")
