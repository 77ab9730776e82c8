"""What is found of a concept by its name and by images, on embeddings of which it is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from hf_kd.metrics import concepts
from hf_kd.metrics.concepts import ConceptEmbeddings, by_name, concept_scores, neighbours_of, soft_prompt_scores

CLASSES, DIM = 5, 16


@pytest.fixture(scope="module")
def known() -> ConceptEmbeddings:
    """Images lie around their class's prompt."""
    rng = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(CLASSES, DIM, generator=rng), dim=1)

    def around(labels: torch.Tensor, spread: float) -> torch.Tensor:
        return normalize(centres[labels] + spread * torch.randn(len(labels), DIM, generator=rng), dim=1)

    labels = torch.arange(300) % CLASSES
    prompts = torch.stack([around(torch.arange(CLASSES), 0.05) for _ in range(3)])
    return ConceptEmbeddings(around(labels, 0.2), labels, around(labels, 0.2), labels, prompts, prompts[:2, 2], 2, (1,))


def test_a_known_concept_is_found_by_everything(known):
    found = concept_scores(known, known)
    retrieval = ("text to image R@1", "image to text R@1", "image to text R@10", "image to text R@1, others")
    for name in ("recall, one template", "recall, worst wording", "linear probe: recall", *retrieval):
        assert found[name] > 90, name
    assert found["rank"] == pytest.approx(1.0, abs=0.1)
    assert found["ridge map back, original texts: recall"] > 90
    assert {name for name in found if name.startswith("original texts: ")}


def test_prompts_that_mean_nothing_find_nothing_and_images_are_still_alike(known):
    rng = torch.Generator().manual_seed(1)
    prompts = known.prompts.clone()
    prompts[:, known.concept] = normalize(-known.classifier.mean(dim=0), dim=0)
    erased = replace(known, prompts=prompts, others=-known.others)
    found = concept_scores(erased, known)
    assert found["recall, worst wording"] == found["image to text R@1"] == 0
    assert found["image to text R@1, others"] > 90
    assert found["original texts: recall, all templates"] > 95, "the images are what they were"
    assert found["linear probe: recall"] > 90
    right, wrong = known.classifier[known.concept], torch.randn(DIM, generator=rng)
    told, drawn = (soft_prompt_scores(erased, prompt) for prompt in (right, wrong))
    assert told["optimised prompt: recall"] > 90
    assert told["optimised prompt: false alarms"] < 10
    assert drawn["optimised prompt: recall"] < 50


def test_the_map_back_is_the_same_whatever_the_order_of_the_public_images(monkeypatch):
    """Folders of images come class by class: a map of the first classes undoes little of what was turned."""
    monkeypatch.setattr(concepts, "MOST_TRAIN", 400)
    rng = torch.Generator().manual_seed(0)
    means = normalize(torch.randn(20, 64, generator=rng), dim=1)
    labels = torch.arange(2_000) // 100
    public = normalize(means[labels] + 0.001 * torch.randn(2_000, 64, generator=rng), dim=1)
    turn = torch.linalg.qr(torch.randn(64, 64, generator=rng)).Q
    found = []
    for order in (torch.arange(2_000), torch.randperm(2_000, generator=rng)):
        before = ConceptEmbeddings(public[order], labels[order], public, labels, means[None], means[:1], 19)
        after = replace(before, train=public[order] @ turn, test=public @ turn)
        mapped = concepts._mapped_back(after, before)
        found.append(float((mapped.test * public).sum(dim=1)[labels != 19].mean()))
    assert min(found) > 0.95
    assert abs(found[0] - found[1]) < 0.02


def test_the_worst_wording_counts(known):
    odd = replace(known, prompts=known.prompts.flip(2), others=known.others)
    found = by_name(odd)
    assert found["recall, worst wording"] >= found["recall, all templates"]


def test_an_inverted_similarity_is_a_leak(known):
    prompts = known.prompts.clone()
    prompts[:, known.concept] *= -1
    told, inverted = by_name(known)["cosine AUROC"], by_name(replace(known, prompts=prompts))["cosine AUROC"]
    assert told > 90
    assert inverted == pytest.approx(told)


def test_neighbours_are_the_nearest_prompts():
    prompts = normalize(torch.tensor([[1.0, 0, 0], [0.9, 0.3, 0], [0, 0, 1.0], [0, 1.0, 0]]), dim=1)[None]
    assert neighbours_of(prompts, 0, 1) == (1,)
