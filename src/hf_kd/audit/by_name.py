"""Read the prompts of an audit by name through both text towers, and an optimised prompt; measure every version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from hf_kd.data.modes import evaluating
from hf_kd.data.vocabulary import checked_names, templates
from hf_kd.errors import InvalidValueError
from hf_kd.features.taps.site import record
from hf_kd.features.taps.text import text_features
from hf_kd.features.text_reader import TextReader
from hf_kd.methods.records import all_records, classes_in
from hf_kd.metrics.concepts import ConceptEmbeddings, concept_scores, neighbours_of, random_rows, soft_prompt_scores

from .schema import Section
from .sections.concepts import concepts_section

EVERY = 10
"""Every so many of the package's templates is used: eight of them."""
SOFT_IMAGES, SOFT_STEPS = 16, 60

Rows = tuple[Tensor, Tensor]
"""Train and test."""


@dataclass(frozen=True)
class TextAudit:
    """What a concept is asked for by.

    Attributes:
        texts: Its names and synonyms, and descriptions without the name.
        templates: Wordings with {}; eight of the package's unless given. Texts of more than four words stand alone.
    """

    texts: Sequence[str]
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", checked_names(self.texts, "texts"))
        object.__setattr__(self, "templates", tuple(self.templates) or templates()[::EVERY])

    def wordings(self) -> list[str]:
        """All prompts of the texts."""
        return [
            template.replace("{}", text)
            for text in self.texts
            for template in (self.templates if len(text.split()) <= 4 else ("{}",))
        ]


def measure_by_name(
    model: Any,
    texts: Sequence[str] | TextAudit,
    features: Mapping[str, Rows],
    labels: Rows,
    forget: Sequence[int],
    names: Mapping[int, str],
    progress: bool = True,
) -> Section:
    """The section about a concept.

    Args:
        model: A two-tower model with a tokenizer.
        texts: By which it is asked for.
        features: Image embeddings of the version `erased`, and of the one before it: `original`, or `before_projection`, or
            none, where no eraser stands in the model.
        labels: Their labels.
        forget: The label that is the concept.
        names: What each label is called in prompts.
        progress: Whether a bar is shown.

    Raises:
        InvalidValueError: For several forgotten labels, and labels without a name.
    """
    asked = texts if isinstance(texts, TextAudit) else TextAudit(tuple(texts) if not isinstance(texts, str) else texts)
    classes = sorted({*labels[0].tolist(), *labels[1].tolist()})
    nameless = [c for c in classes if c not in names]
    if len(forget) != 1 or nameless:
        raise InvalidValueError(
            f"An audit by name asks for one forgotten label and names of all; {len(forget)} are forgotten, and "
            f"{len(nameless)} labels have no name. Audit one label at a time, of data whose labels have names."
        )
    model.find_text_tap()
    reader = TextReader(model, progress)
    prompts = [[t.replace("{}", names[c].replace("_", " ")) for c in classes] for t in asked.templates]
    before = reader.read([text for row in prompts for text in row] + asked.wordings())
    column = {c: n for n, c in enumerate(classes)}
    train, test = (torch.tensor([column[label] for label in part.tolist()]) for part in labels)
    count, concept = len(asked.templates) * len(classes), column[forget[0]]
    first = next(version for version in ("original", "before_projection", "erased") if version in features)
    rows = {first: before} | {"erased": reader.erased(before)}
    near = neighbours_of(_shaped(before, len(asked.templates), count), concept)
    versions = {
        version: ConceptEmbeddings(
            *(normalize(features[version][0].float(), dim=1), train),
            *(normalize(features[version][1].float(), dim=1), test),
            _shaped(rows[version], len(asked.templates), count),
            normalize(rows[version][count:], dim=1),
            concept,
            near,
        )
        for version in rows
    }
    scores = {version: concept_scores(data, versions[first]) for version, data in versions.items()}
    for version, data in versions.items():
        scores[version] |= _optimised(model, reader, asked.texts[0], data.with_texts(versions[first]))
    forgotten = classes_in(all_records(model))  # by another request
    near_names = [f"class {c}" if c in forgotten else names[c] for c in (classes[n] for n in near)]
    return concepts_section(scores, len(classes), _notes(asked, len(classes), near_names))


def _optimised(model: Any, reader: TextReader, text: str, data: ConceptEmbeddings) -> dict[str, float]:
    prompt = soft_prompt(model, reader, f"a photo of a {text}", data)
    return {} if prompt is None else soft_prompt_scores(data, prompt)


def _notes(asked: TextAudit, candidates: int, neighbours: Sequence[str]) -> list[str]:
    return [
        f"{candidates} candidates in {len(asked.templates)} templates, {len(asked.wordings())} wordings of the concept; "
        f"neighbours: {', '.join(neighbours)}. The original text tower is public, so its rows are as free to ask as the "
        "others.",
        "The map back is fitted on images of the other classes alone.",
    ]


def soft_prompt(model: Any, reader: TextReader, prompt: str, data: ConceptEmbeddings) -> Tensor | None:
    """The embedding [d] of a prompt whose words were optimised on few images of the concept, by the original text tower.

    None where the tower has no table of word embeddings to step into.
    """
    table = next((m for name, m in model.inner.named_modules() if name.endswith("token_embedding")), None)
    mine, others = (
        data.train[random_rows(rows, SOFT_IMAGES)]
        for rows in (data.train_labels == data.concept, data.train_labels != data.concept)
    )
    if table is None or len(mine) == 0:
        return None
    images, wanted = torch.cat([mine, others]), torch.tensor([1.0] * len(mine) + [0.0] * len(others))
    tokens = reader.tokens([prompt])
    start: list[Tensor] = []
    with torch.no_grad():
        start.append(table(tokens["input_ids"]).float())
    words = nn.Parameter(torch.zeros_like(start[0]))
    inside = torch.ones(start[0].shape[1], 1, device=words.device)
    inside[0] = 0
    end = int((tokens["attention_mask"][0] if "attention_mask" in tokens else tokens["input_ids"][0] >= 0).sum()) - 1
    inside[end:] = 0
    handle = table.register_forward_hook(lambda module, args, output: output + (words * inside).to(output.dtype))
    optimizer = torch.optim.Adam([words], lr=0.02)
    classifier = data.classifier
    with handle, evaluating(model.inner), torch.enable_grad():
        for _ in range(SOFT_STEPS):
            row = _embedded(model, tokens)
            prompts = torch.cat([classifier[: data.concept], row[None], classifier[data.concept + 1 :]])
            logits = 20 * images @ prompts.T
            mine_loss = cross_entropy(logits[: len(mine)], torch.full((len(mine),), data.concept))
            rest = (logits[:, data.concept] - logits.logsumexp(dim=1)).exp()
            loss = mine_loss - (1 - wanted).dot((1 - rest).clamp(min=1e-6).log()) / max(1, len(others))
            optimizer.zero_grad()
            words.grad = torch.autograd.grad(loss, words)[0]
            optimizer.step()
        with torch.no_grad():
            return _embedded(model, tokens)


def _embedded(model: Any, tokens: Mapping[str, Tensor]) -> Tensor:
    """The original tower's unit embedding [d] of one text, with its graph, on the CPU."""
    sites = list(model.text_sites)
    with record(sites, "before", detach=False) as take:
        for site in sites:
            site.follow(model.inner)
        text_features(model.inner, tokens)
        return normalize(take()[0].float(), dim=1)[0].cpu()


def _shaped(rows: Tensor, templates: int, count: int) -> Tensor:
    return normalize(rows[:count], dim=1).reshape(templates, -1, rows.shape[1])
