"""The page of the demo: one image, what the original answers, what the erased model answers, and the card's numbers.

Runs in a Space and, by `hf-kd demo --ui`, on this machine. Needs the optional extra `ui`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import EvalResult, ModelCard
from PIL import Image

from hf_kd.data.preprocess import ImagePreprocessor
from hf_kd.data.text import LONGEST, escape_markdown, one_line
from hf_kd.errors import InvalidValueError, require
from hf_kd.features.taps.inputs import run
from hf_kd.hub.card import BEGIN
from hf_kd.model.erased_model import ErasedModel

if TYPE_CHECKING:
    import gradio

TOP = 5

ABOUT = """# What does it still answer?
The same image goes to the original model and to the erased one. Answers are the least of what a model knows: read the
numbers below, which say what attackers get out of its features.
"""


def page(source: str | Path, examples: str | Path | None = None) -> gradio.Blocks:
    """The page for an erased classifier (Hub id or folder), not yet launched. examples: a folder of images to offer.

    Raises ImportError, with the command to install it, without gradio, and ValueError for a model without an eraser or
    without a classification head.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    gr = require("gradio", "ui")
    model = ErasedModel.from_pretrained(source).eval()
    if not model.is_erased or not model.class_names:
        raise InvalidValueError(
            f"{source} is no erased classifier: there is no second answer to show beside the first."
        )

    def compare(image: Image.Image | None) -> tuple[dict[str, float], dict[str, float]]:
        if image is None:
            raise gr.Error("Choose an image first.")
        return answers(model, image)

    with gr.Blocks(title="Before and after erasing") as blocks:
        gr.Markdown(ABOUT)
        with gr.Row():
            image = gr.Image(type="pil", label="Image")
            before = gr.Label(num_top_classes=TOP, label="Original")
            after = gr.Label(num_top_classes=TOP, label="Erased")
        button = gr.Button("Compare", variant="primary")
        if examples is not None:
            gr.Examples(sorted(str(path) for path in Path(examples).glob("*.png")), image)
        gr.Markdown(numbers(source))
        button.click(compare, image, [before, after], api_name="compare")
    return blocks


def answers(model: ErasedModel, image: Image.Image) -> tuple[dict[str, float], dict[str, float]]:
    """Probabilities by label, of the original and of the erased model. The original is the model without its erasers."""
    inputs: dict[str, Any] = ImagePreprocessor(model.processor)([image.convert("RGB")])
    kept = [(site.eraser, site.masked) for site in model.sites]
    with torch.no_grad():
        erased = model(**inputs).logits
        try:
            for site in model.sites:
                site.eraser, site.masked = None, ()
            original = run(model.inner, inputs).logits
        finally:
            for site, (eraser, masked) in zip(model.sites, kept, strict=True):
                site.eraser, site.masked = eraser, masked
    return _by_label(original, model.class_names), _by_label(erased, model.config.id2label)


def _by_label(logits: torch.Tensor, names: Mapping[int, str]) -> dict[str, float]:
    values, places = logits.float().softmax(dim=1)[0].topk(min(TOP, logits.shape[1]))
    answers: dict[str, float] = {}
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        name = one_line(names[place], LONGEST)
        answers[name if name and name not in answers else f"{name} ({place})".strip()] = value
    return answers


def numbers(source: str | Path) -> str:
    """The headline numbers of the model's card, as Markdown."""
    path = Path(source) / "README.md"
    try:
        card = ModelCard.load(path if path.is_file() else str(source), ignore_metadata_errors=True)
    except OSError as error:
        return f"The model's card could not be read ({type(error).__name__}), so there are no numbers to show."
    results: list[EvalResult] = card.data.eval_results or []
    if not results:
        return "**Not audited:** nobody measured what the features of this model still reveal. `hf-kd audit` does."
    lines = ["| What attackers get, from the model's card | % |", "|---|---:|"]
    lines += [
        f"| {escape_markdown(str(result.metric_name))} | {escape_markdown(str(result.metric_value))} |"
        for result in results
    ]
    return "\n".join(lines) + ("" if BEGIN in card.text else "\n\nThis card was not written by hf_kd.")
