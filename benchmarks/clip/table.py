"""Forget a class of the small CLIP by its name, by images, by both, and ask what is left: before, after, never seen.

    python benchmarks/clip/table.py CIFAR10.npz --original clip --never clip-without-cat [--concept cat] [--train 5000]

The .npz and the folders are those of benchmarks/clip/train.py. Prints Markdown.
"""

from __future__ import annotations

import argparse
import copy
import logging
import time
from collections.abc import Callable
from pathlib import Path

import captions as words
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from hf_kd import ErasedModel
from hf_kd.audit.by_name import TextAudit, soft_prompt
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.features.text_reader import TextReader
from hf_kd.metrics.concepts import ConceptEmbeddings, concept_scores, neighbours_of, soft_prompt_scores

FORGET, RETAIN = 500, 1500
"""Images that are given for forgetting by images: of the concept, and of everything else."""
SHOWN = (
    "recall, one template", "recall, all templates", "recall, worst wording", "rank", "accuracy of the others",
    "accuracy of neighbours", "cosine AUROC", "text to image R@1", "text to image R@10", "text to image R@10, others",
    "original texts: recall, all templates", "original texts: recall, worst wording", "original texts: cosine AUROC",
    "optimised prompt: recall", "optimised prompt: false alarms",
    "image to image R@1", "image to image P@10", "linear probe: recall", "linear probe: others",
    "MLP probe: recall", "1-shot recall", "5-shot recall", "16-shot recall", "ridge map back, original texts: recall",
)  # fmt: skip

logging.getLogger("hf_kd").setLevel(logging.ERROR)


class Measured:
    """One folder: images and prompts read once, before any eraser."""

    def __init__(self, folder: Path, train: tuple, test: tuple, concept: str) -> None:
        self.model = ErasedModel.from_pretrained(folder).float()
        self.names = words.content()["classes"]
        self.concept = self.names.index(concept)
        stored = words.content()
        self.texts = stored["names"][concept]
        self.asked = TextAudit((*self.texts, *stored["descriptions"][concept]))
        read = ReadOptions(progress=False, batch_size=250)
        self.images = [ImageReader(self.model, part[0], read).read().before[0] for part in (train, test)]
        self.labels = [torch.tensor(part[1]) for part in (train, test)]
        self.model.find_text_tap()
        self.reader = TextReader(self.model)
        prompts = [t.replace("{}", stored["names"][c][0]) for t in self.asked.templates for c in self.names]
        self.rows = self.reader.read(prompts + self.asked.wordings())

    def embeddings(self, model: ErasedModel | None = None, images: bool = True) -> ConceptEmbeddings:
        """Behind the erasers of a model; `images` says whether those of its images count."""
        eraser = None if model is None or not images else model.sites[0].eraser
        train, test = (normalize(x if eraser is None else eraser(x), dim=1) for x in self.images)
        text = None if model is None or not model.text_sites else model.text_sites[0].eraser
        rows = normalize(self.rows if text is None else text(self.rows), dim=1)
        count = len(self.asked.templates) * len(self.names)
        prompts = rows[:count].reshape(len(self.asked.templates), len(self.names), -1)
        plain = normalize(self.rows[:count], dim=1).reshape(prompts.shape)
        near = neighbours_of(plain, self.concept)
        return ConceptEmbeddings(train, self.labels[0], test, self.labels[1], prompts, rows[count:], self.concept, near)

    def scores(self, data: ConceptEmbeddings) -> dict[str, float]:
        original = self.embeddings()
        asked = data.with_texts(original)
        prompt = soft_prompt(self.model, self.reader, f"a photo of a {self.texts[0]}", asked)
        found = concept_scores(data, original)
        return found | ({} if prompt is None else soft_prompt_scores(asked, prompt))


def as_images(arrays: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(array) for array in arrays]


def marked(images: list[Image.Image], label: int) -> list[tuple[Image.Image, int]]:
    """With one label for all, for a method that reads labels."""
    return [(image, label) for image in images]


def markdown(columns: dict[str, dict[str, float]]) -> str:
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for key in SHOWN:
        cells = [f"{found[key]:.1f}" if key in found else "" for found in columns.values()]
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--original", type=Path, required=True)
    parser.add_argument("--never", type=Path)
    parser.add_argument("--concept", default="cat")
    parser.add_argument("--train", type=int, default=5000, help="training images for attackers")
    parser.add_argument("--test", type=int, default=10000)
    options = parser.parse_args()
    with np.load(options.data) as stored:
        data = {name: stored[name] for name in stored.files}
    order = np.random.default_rng(0).permutation(len(data["train_images"]))
    train_rows, rest = order[: options.train], order[options.train :]
    train = as_images(data["train_images"][train_rows]), data["train_labels"][train_rows].astype(int)
    test = as_images(data["test_images"][: options.test]), data["test_labels"][: options.test].astype(int)
    started = time.perf_counter()
    own = Measured(options.original, train, test, options.concept)
    labels = data["train_labels"][rest]
    of_concept, others = rest[labels == own.concept][:FORGET], rest[labels != own.concept][:RETAIN]
    forget, retain = (as_images(data["train_images"][rows]) for rows in (of_concept, others))
    stay = [c.words for c in words.concepts(options.concept) if c.kind == "names"]
    by_name = {"texts": own.texts, "retain_texts": stay, "progress": False}
    requests: dict[str, Callable[[ErasedModel], ErasedModel]] = {
        "name: oblique": lambda m: m.erase(**by_name),
        "name: oblique, push 0": lambda m: m.erase(**by_name, push=0.0),
        "name: ESC": lambda m: m.erase(method="esc", **by_name),
        "images: ESC": lambda m: m.erase(forget, progress=False),
        "images: LEACE": lambda m: m.erase(marked(forget, 0), "leace", retain=marked(retain, 1), progress=False),
        "both: oblique, unlabelled": lambda m: m.erase(forget + retain, **by_name),
        "both: oblique": lambda m: m.erase(forget, retain=retain, **by_name),
        "both: ESC": lambda m: m.erase(forget, method="esc", retain=retain, **by_name),
    }
    columns = {"before": own.scores(own.embeddings())}
    for name, request in requests.items():
        model = request(copy.deepcopy(own.model))
        columns[name] = own.scores(own.embeddings(model))
        if name == "name: oblique":
            columns["text tower only"] = own.scores(own.embeddings(model, images=False))
            told = model.erasures[-1].measured[0]
    if options.never is not None:
        never = Measured(options.never, train, test, options.concept)
        columns["never seen"] = never.scores(never.embeddings())
    print(
        f"\n{len(train[0]):,} training and {len(test[0]):,} test images; by images: {len(forget)} and {len(retain)} others."
    )
    print(
        f"By name: {len(own.texts)} texts, {len(stay)} retained names; {told}. {time.perf_counter() - started:.0f} s.\n"
    )
    print(markdown(columns))


if __name__ == "__main__":
    main()
