"""The captions that the small CLIP is trained on, and a tokenizer made of their words.

A concept is a name, a description without the name, or a hypernym, with the classes it is true of. Names and hypernyms
stand in every template of the package, descriptions in few.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
TEMPLATES = HERE.parents[1] / "src" / "hf_kd" / "data" / "words" / "templates.txt"
START, PAD, UNKNOWN, END = "<s>", "<pad>", "<unk>", "</s>"
LONGEST = 32


@dataclass(frozen=True)
class Concept:
    """Words, and the classes they are true of."""

    words: str
    classes: frozenset[str]
    kind: str


@cache
def content() -> dict:
    return json.loads((HERE / "captions.json").read_text(encoding="utf-8"))


@cache
def templates() -> list[str]:
    return TEMPLATES.read_text(encoding="utf-8").splitlines()


def concepts(without: str | None = None) -> list[Concept]:
    """All concepts; without those that are true of one class alone, if that is left out."""
    stored = content()
    found = [
        Concept(words, frozenset([name]), kind)
        for kind in ("names", "descriptions")
        for name, listed in stored[kind].items()
        for words in listed
    ]
    found += [Concept(words, frozenset(names), "hypernyms") for words, names in stored["hypernyms"].items()]
    left = [Concept(c.words, c.classes - {without}, c.kind) for c in found]
    return [concept for concept in left if concept.classes]


def captions(chosen: list[Concept]) -> tuple[list[str], list[list[int]]]:
    """Each concept in each template that suits it, and the classes that a caption is true of."""
    number = {name: i for i, name in enumerate(content()["classes"])}
    texts, classes = [], []
    for concept in chosen:
        wordings = ["{}", "a photo of {}.", "this is {}."] * 8 if concept.kind == "descriptions" else templates()
        texts += [wording.replace("{}", concept.words) for wording in wordings]
        classes += [[number[name] for name in sorted(concept.classes)]] * len(wordings)
    return texts, classes


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; all words of all captions, whatever a model is trained without."""
    normalizer, splitter = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    texts = captions(concepts())[0]
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))})
    ids = {word: i for i, word in enumerate([START, PAD, UNKNOWN, END, *words])}
    inner = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    inner.normalizer, inner.pre_tokenizer = normalizer, splitter
    inner.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, ids[START]), (END, ids[END])]
    )
    special = {"bos_token": START, "pad_token": PAD, "unk_token": UNKNOWN, "eos_token": END}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=LONGEST, **special)
