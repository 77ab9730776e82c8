"""What a two-tower model still knows of a concept: by its name, and by images, which no name is needed for.

All embeddings are unit rows. Labels are columns of the prompts: classes 0 to C - 1, of which one is the concept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ._inputs import first_rows, generator
from .linear_probe import fit_linear_probe
from .nonlinear_probes import fit_mlp_probe
from .scores import area_under_roc

SHOTS = (1, 5, 16)
DRAWS = 20
MOST_TRAIN = 10_000
"""Training images that probes and the ridge map are fitted on."""
RIDGE = 1e-3
"""Of the map back, relative to the mean eigenvalue of the embeddings' covariance."""


@dataclass(frozen=True)
class ConceptEmbeddings:
    """One version of a model: its image embeddings and its prompts.

    Attributes:
        train: [n, d], with train_labels [n].
        test: [m, d], with test_labels [m].
        prompts: [T, C, d]: each class in each template.
        others: [A, d]: synonyms in templates and descriptions without the name, of the concept.
        concept: Its class.
        neighbours: Classes that are close to it.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    prompts: Tensor
    others: Tensor
    concept: int
    neighbours: tuple[int, ...] = ()

    @property
    def classifier(self) -> Tensor:
        """The mean prompt of each class [C, d]."""
        return normalize(self.prompts.mean(dim=0), dim=1)

    @property
    def is_concept(self) -> Tensor:
        """Test images of the concept, a mask [m]."""
        return self.test_labels == self.concept

    def with_texts(self, other: ConceptEmbeddings) -> ConceptEmbeddings:
        """These images with the prompts of another version."""
        return replace(self, prompts=other.prompts, others=other.others)


def concept_scores(data: ConceptEmbeddings, original: ConceptEmbeddings, seed: int = 0) -> dict[str, float]:
    """Everything that is asked of one version, in percent; the rank counts from 1. A class without images is left out.

    Args:
        data: The version.
        original: The same images and prompts of the model before; what is public.
        seed: Of the probes and draws.

    Example:
        >>> images, labels = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
        >>> data = ConceptEmbeddings(images, labels, images, labels, torch.eye(3)[None], torch.eye(3)[:1], concept=0)
        >>> scores = concept_scores(data, data)
        >>> scores["recall, all templates"], scores["original texts: recall, all templates"]
        (100.0, 100.0)
    """
    return {
        **by_name(data),
        **{f"original texts: {name}": value for name, value in by_name(data.with_texts(original)).items()},
        **by_images(data, seed),
        "ridge map back, original texts: recall": _recall(_mapped_back(data, original, seed)),
    }


def by_name(data: ConceptEmbeddings) -> dict[str, float]:
    """Zero-shot labelling and retrieval with the prompts of a version.

    Example:
        >>> images, labels = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
        >>> data = ConceptEmbeddings(images, labels, images, labels, torch.eye(3)[None], torch.eye(3)[:1], concept=0)
        >>> scores = by_name(data)
        >>> scores["recall, one template"], scores["rank"], scores["text to image R@1"]
        (100.0, 1.0, 100.0)
    """
    mine, labels = data.is_concept, data.test_labels
    answers = _answers(data.test, data.classifier)
    first = _answers(data.test, data.prompts[0])
    scores = data.test @ data.classifier.T
    rank = 1 + (scores[mine] > scores[mine][:, data.concept, None]).sum(dim=1).double()
    near = torch.isin(labels, torch.tensor(data.neighbours, dtype=labels.dtype))
    found = {
        "recall, one template": _share(first[mine] == data.concept),
        "recall, all templates": _share(answers[mine] == data.concept),
        "recall, worst wording": max(_recall_of(data, row) for row in _wordings(data)),
        "rank": float(rank.mean()),
        "accuracy of the others": _share(answers[~mine] == labels[~mine]),
        "cosine AUROC": _two_sided(area_under_roc(scores[:, data.concept], mine)),
    }
    if bool(near.any()):
        found["accuracy of neighbours"] = _share(answers[near] == labels[near])
    shown = [c for c in range(data.prompts.shape[1]) if bool((labels == c).any())]
    for way, recall in (("text to image", _text_to_image), ("image to text", _image_to_text)):
        for k in (1, 10):
            best = {c: recall(data, c, k) for c in shown}
            found[f"{way} R@{k}"] = best.pop(data.concept, 0.0)
            found[f"{way} R@{k}, others"] = sum(best.values()) / max(1, len(best))
    return found


def by_images(data: ConceptEmbeddings, seed: int = 0) -> dict[str, float]:
    """What images alone give away, whatever texts say: retrieval, probes, few shots.

    Example:
        >>> images, labels = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
        >>> data = ConceptEmbeddings(images, labels, images, labels, torch.eye(3)[None], torch.eye(3)[:1], concept=0)
        >>> scores = by_images(data)
        >>> scores["image to image R@1"], scores["linear probe: recall"], scores["1-shot recall"]
        (100.0, 100.0, 100.0)
    """
    labels, mine = data.test_labels, data.is_concept
    similar = data.test[mine] @ data.train.T
    order = similar.topk(min(10, similar.shape[1]), dim=1).indices
    hits = data.train_labels[order] == data.concept
    order = torch.randperm(len(data.train), generator=generator(seed))
    rows = order[first_rows(data.train_labels[order], MOST_TRAIN)]
    x, y = data.train[rows], data.train_labels[rows]
    found = {"image to image R@1": _share(hits[:, 0]), "image to image P@10": _share(hits)}
    network = fit_mlp_probe(x, y, seed=seed)
    read = {
        "linear probe": fit_linear_probe(x, y).predict(data.test),
        "MLP probe": network.classes[network.logits(data.test).argmax(dim=1)],
    }
    for name, answers in read.items():
        found[f"{name}: recall"] = _share(answers[mine] == data.concept)
        found[f"{name}: others"] = _share(answers[~mine] == labels[~mine])
    for shots in SHOTS:
        found[f"{shots}-shot recall"] = _few_shot(data, shots, seed)
    return found


def soft_prompt_scores(data: ConceptEmbeddings, prompt: Tensor) -> dict[str, float]:
    """Recall and false alarms where the concept's prompt is one that was optimised [d], in percent.

    Example:
        >>> images, labels = torch.eye(3).repeat(4, 1), torch.arange(3).repeat(4)
        >>> data = ConceptEmbeddings(images, labels, images, labels, torch.eye(3)[None], torch.eye(3)[:1], concept=0)
        >>> soft_prompt_scores(data, torch.tensor([1.0, 0.0, 0.0]))
        {'optimised prompt: recall': 100.0, 'optimised prompt: false alarms': 0.0}
    """
    prompts = data.classifier.clone()
    prompts[data.concept] = normalize(prompt, dim=0)
    answers, mine = _answers(data.test, prompts) == data.concept, data.is_concept
    return {
        "optimised prompt: recall": _share(answers[mine]),
        "optimised prompt: false alarms": _share(answers[~mine]),
    }


def _answers(images: Tensor, prompts: Tensor) -> Tensor:
    return (images @ prompts.T).argmax(dim=1)


def _two_sided(area: float) -> float:
    """An inverted similarity tells as much as one that is not."""
    return max(area, 100 - area)


def _share(right: Tensor) -> float:
    return 100 * float(right.double().mean()) if right.numel() else 0.0


def _recall(data: ConceptEmbeddings) -> float:
    return _share(_answers(data.test[data.is_concept], data.classifier) == data.concept)


def _wordings(data: ConceptEmbeddings) -> Tensor:
    """Every wording of the concept [*, d], its mean prompt first."""
    return torch.cat([data.classifier[data.concept][None], data.prompts[:, data.concept], data.others])


def _recall_of(data: ConceptEmbeddings, wording: Tensor) -> float:
    """Recall where the concept is asked for by this wording [d], and the others by their mean prompts."""
    prompts = data.classifier.clone()
    prompts[data.concept] = wording
    return _share(_answers(data.test[data.is_concept], prompts) == data.concept)


def _text_to_image(data: ConceptEmbeddings, label: int, k: int) -> float:
    """Of the templates that ask for a class, how many find an image of it among the first k."""
    best = (data.prompts[:, label] @ data.test.T).topk(min(k, len(data.test)), dim=1).indices
    return _share((data.test_labels[best] == label).any(dim=1))


def _image_to_text(data: ConceptEmbeddings, label: int, k: int) -> float:
    """Of the images of a class, how many have a prompt of it among the k nearest of all classes' in all templates."""
    captions = data.prompts.flatten(0, 1)
    best = (data.test[data.test_labels == label] @ captions.T).topk(min(k, len(captions)), dim=1).indices
    return _share((best % data.prompts.shape[1] == label).any(dim=1))


def _few_shot(data: ConceptEmbeddings, shots: int, seed: int) -> float:
    """Recall of the nearest of class prototypes from so many images of each class, mean over draws."""
    classes = data.train_labels.unique()
    rng, found = generator(seed), []
    for _ in range(DRAWS):
        rows = [(data.train_labels == c).nonzero().flatten() for c in classes]
        picked = [data.train[r[torch.randperm(len(r), generator=rng)[:shots]]].mean(dim=0) for r in rows]
        answers = classes[_answers(data.test[data.is_concept], normalize(torch.stack(picked), dim=1))]
        found.append(_share(answers == data.concept))
    return sum(found) / DRAWS


def _mapped_back(data: ConceptEmbeddings, original: ConceptEmbeddings, seed: int = 0) -> ConceptEmbeddings:
    """The version's test images mapped to the original space by a ridge regression on public images without the concept."""
    public = random_rows(data.train_labels != data.concept, MOST_TRAIN, seed)
    x, y = data.train[public].double(), original.train[public].double()
    gram = x.T @ x
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    back = torch.linalg.solve(gram + ridge, x.T @ y)
    mapped = normalize(data.test.double() @ back, dim=1).to(data.test.dtype)
    return replace(original, test=mapped, test_labels=data.test_labels)


def random_rows(chosen: Tensor, most: int, seed: int = 0) -> Tensor:
    """Numbers of at most `most` rows where a mask [n] holds, at random: data sets are often in the order of their classes.

    Example:
        >>> sorted(random_rows(torch.tensor([True, False, True]), most=5).tolist())
        [0, 2]
    """
    rows = chosen.nonzero().flatten()
    return rows[torch.randperm(len(rows), generator=generator(seed))[:most]]


def neighbours_of(prompts: Tensor, concept: int, count: int = 2) -> tuple[int, ...]:
    """The classes whose mean prompts, less the mean of all, are nearest to the concept's.

    Example:
        >>> neighbours_of(torch.tensor([[[1.0, 0.0], [0.8, 0.2], [0.0, 1.0]]]), concept=0, count=1)
        (1,)
    """
    means = prompts.mean(dim=0)
    rows = normalize(means - means.mean(dim=0), dim=1)
    order: Sequence[int] = (rows @ rows[concept]).argsort(descending=True).tolist()
    return tuple([c for c in order if c != concept][:count])
