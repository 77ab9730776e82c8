"""The demo: a small classifier of handwritten digits forgets one digit, by ESC and by ESC-T. Needs no network.

The images are scikit-learn's digits, real handwriting inside a dependency; the classifier is a small ResNet of
transformers, trained on the spot. Beside the head's accuracies stands what a converged linear probe still reads from the
erased features, so that nobody takes the first for the second.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from transformers import PreTrainedModel, ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

from hf_kd.audit.options import AuditOptions
from hf_kd.data.load import filter_by_labels
from hf_kd.data.progress import working
from hf_kd.features.heads import predictions
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.hub.document import document
from hf_kd.methods.unlearning.retrain import Retrain
from hf_kd.metrics.knowledge_retention import KnowledgeRetentionResult, knowledge_retention
from hf_kd.metrics.scores import ForgetRetainScores
from hf_kd.model.erased_model import ErasedModel
from hf_kd.model.saving import atomic_directory
from hf_kd.model.train import train_original

SIDE = 16
RECIPE = Retrain(
    epochs=12,
    lr=1e-2,
    optimizer="adamw",
    weight_decay=1e-2,
    batch_size=64,
    schedule="cosine",
    warmup=3.0,
    decay_epochs=(),
    augment="none",
)
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class DemoRow:
    """One line of the table: a method, what the head answers, and what a probe reads."""

    method: str
    head: ForgetRetainScores
    probe: KnowledgeRetentionResult
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured and where its files are."""

    rows: tuple[DemoRow, ...]
    folder: Path
    reloaded_equal: bool
    """Whether the saved model, loaded again, gives the same logits bit for bit."""
    digit: int
    examples: Path
    """Folder with an image of each digit."""


def digits() -> tuple[Dataset, Dataset]:
    """Train and test split of the 1,797 digits as `datasets` with an image and a label column."""
    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    rows = [PILImage.fromarray(image).resize((SIDE, SIDE), PILImage.Resampling.BICUBIC) for image in pixels]
    train, test = train_test_split(np.arange(len(rows)), test_size=0.25, stratify=labels, random_state=0)
    features = Features({"image": Image(), "label": ClassLabel(names=list(NAMES))})
    train, test = (
        Dataset.from_dict({"image": [rows[i] for i in part], "label": labels[part].tolist()}, features=features)
        for part in (train, test)
    )
    return train, test


def train_classifier(train: Dataset) -> tuple[PreTrainedModel, ViTImageProcessorPil]:
    """A small ResNet (d = 64) trained on the digits; its image processor goes with it."""
    processor = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[32, 64],
        depths=[1, 1],
        layer_type="basic",
        id2label=dict(enumerate(NAMES)),
        label2id={name: i for i, name in enumerate(NAMES)},
    )
    model = ResNetForImageClassification(config)
    trained = train_original(model, train, RECIPE, processor=processor, from_scratch=True, progress=False)
    return trained.eval(), processor


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes in one thread inside: a network this small gains nothing by a second one, and beside other work threads
    that wait for one another cost many times as much.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@one_thread()
def run_demo(output: Path, digit: int = 3, log: Callable[[str], None] = print) -> DemoResult:
    """Train, erase `digit` by ESC and by ESC-T, measure, save the ESC model to `output` and load it again."""
    train, test = digits()
    log(f"Training a small ResNet on {len(train)} handwritten digits ...")
    with working("training"):
        model, processor = train_classifier(train)
    forget = filter_by_labels(train, "label", [digit])
    original = ErasedModel.from_model(model, processor)
    seen = [ImageReader(original, part, ReadOptions(progress=False)).read() for part in (train, test)]
    labels = [part.labels for part in seen]

    def row(name: str, features: list, seconds: float) -> DemoRow:
        answers = [predictions(original, part, labels=own) for part, own in zip(features, labels, strict=True)]
        head = ForgetRetainScores.from_predictions(answers[0], labels[0], answers[1], labels[1], digit)
        return DemoRow(
            name, head, knowledge_retention(features[0][0], labels[0], features[1][0], labels[1], digit), seconds
        )

    rows = [row("original", [part.before for part in seen], 0.0)]
    saved: ErasedModel | None = None
    for method in ("esc", "esc-t"):
        log(f"Forgetting digit {digit} ({len(forget)} images) by {method.upper()} ...")
        erased = ErasedModel.from_model(copy.deepcopy(model), processor).erase(forget, method, progress=False)
        record = erased.erasures[0]
        rows.append(
            row(method.upper(), [part.erased(erased) for part in seen], record.feature_seconds + record.fit_seconds)
        )
        saved = saved or erased
    saved.save_pretrained(output)
    again = ErasedModel.from_pretrained(output).eval()
    inputs = processor([image.convert("RGB") for image in test["image"][:64]], return_tensors="pt")
    with torch.no_grad():
        equal = torch.equal(again(**inputs).logits, saved(**inputs).logits)
    return DemoResult(tuple(rows), output, equal, digit, _examples(test, output))


@one_thread()
def audit_demo(result: DemoResult) -> None:
    """Audit the saved demo and put report, card and figures beside it, as `hf-kd audit` and `hf-kd card` do."""
    train, test = digits()
    model = ErasedModel.from_pretrained(result.folder)
    report = model.audit(train, test, options=AuditOptions(draws=3))
    with atomic_directory(result.folder) as folder:
        document(model, folder, report=report, beside=result.folder, show_class_names=True)


def _examples(test: Dataset, output: Path) -> Path:
    """An image of each digit as PNG, for the page."""
    folder = output / "examples"
    folder.mkdir(exist_ok=True)
    for label, name in enumerate(NAMES):
        test[test["label"].index(label)]["image"].resize((128, 128)).save(folder / f"{label}-{name}.png")
    return folder
