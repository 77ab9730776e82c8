"""What is measured of one model in a bench: the head's four accuracies, Knowledge Retention, membership, attacks, change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_kd.data.views import VIEWS
from hf_kd.features.heads import answered, apply_erasers, head_logits, several_labels, side_by_side
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.metrics.attacks import run_attacks, views_needed
from hf_kd.metrics.linear_probe import fit_linear_probe, fit_paper_probe
from hf_kd.metrics.membership import loss_attack
from hf_kd.metrics.membership_share import member_rate
from hf_kd.metrics.scores import harmonic_mean
from hf_kd.metrics.similarity import linear_cka, uncentred_cosine
from hf_kd.metrics.weights import weight_distance
from hf_kd.model.erased_model import ErasedModel

from .config import Measures
from .protocols import Problem

FEWEST_FOR_MIA = 10


@dataclass
class Features:
    """Features of both splits before any eraser, of the images and of further views."""

    train: tuple[Tensor, ...]
    test: tuple[Tensor, ...]
    train_views: tuple[tuple[Tensor, ...], ...] = ()
    test_views: tuple[tuple[Tensor, ...], ...] = ()


def read_both(model: ErasedModel, problem: Problem, settings: ReadOptions, attacks: Sequence[str]) -> Features:
    """One pass over both splits, and one more for each view that an attack needs."""
    views = list(VIEWS)[: max((views_needed(name) for name in attacks), default=0)]

    def read(data: Any, view: str | None = None) -> tuple[Tensor, ...]:
        return ImageReader(model, data, settings).read(view, own_labels=True).before

    return Features(
        read(problem.train),
        read(problem.test),
        tuple(read(problem.train, view) for view in views),
        tuple(read(problem.test, view) for view in views),
    )


def measure(
    model: ErasedModel,
    features: Features,
    problem: Problem,
    stage: int,
    measures: Measures,
    original: tuple[ErasedModel, Features] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of `model`, whose features before its erasers are given, after the requests up to `stage`: plain values.

    Accuracies in percent. original: the model before anything was forgotten, and its features, for what changed.
    """
    behind = {split: apply_erasers(model, getattr(features, split)) for split in ("train", "test")}
    answers = {split: head_logits(model, parts) for split, parts in behind.items()}
    forget_train, forget_test = problem.forget_train(stage), problem.forget_test(stage)
    labels = {"train": problem.train_labels, "test": problem.test_labels}
    several = several_labels(model)
    hits = {split: answered(answers[split], own if several else None) == own for split, own in labels.items()}
    scores = _head_scores(hits, problem, forget_train, forget_test)
    matrices = {split: side_by_side(parts) for split, parts in behind.items()}
    views = [
        [side_by_side(apply_erasers(model, view)) for view in given]
        for given in (features.train_views, features.test_views)
    ]
    if forget_test is not None:
        scores |= read_quantities(
            [matrices["train"], matrices["test"]],
            [problem.probe_train, problem.probe_test],
            problem.forget_classes(stage),
            measures,
            measures.attacks,
            seed,
            views,
        )
    if measures.membership:
        scores |= _membership(answers, problem, forget_train, forget_test, seed)
    if original is not None:
        scores |= _change(model, matrices["test"], original, problem, forget_test)
    return scores


def _head_scores(hits: Mapping[str, Tensor], problem: Problem, forget_train: Tensor, forget_test: Tensor | None):
    scores = {"D_f": _percent(hits["train"][forget_train]), "D_r": _percent(hits["train"][~forget_train])}
    if forget_test is None:
        scores["D_t"] = _percent(hits["test"])
    else:
        scores |= {"D_ft": _percent(hits["test"][forget_test]), "D_rt": _percent(hits["test"][~forget_test])}
        scores["HM"] = harmonic_mean(scores["D_f"], scores["D_r"])
        scores["HM_t"] = harmonic_mean(scores["D_ft"], scores["D_rt"])
    return scores | {name: _percent(hits["test"][mask]) for name, mask in problem.groups.items()}


def read_quantities(
    matrices: Sequence[Tensor],
    labels: Sequence[Tensor],
    forget: Sequence[int],
    measures: Measures,
    attacks: Sequence[str],
    seed: int,
    views: Sequence[Sequence[Tensor]] = ((), ()),
) -> dict[str, Any]:
    """What probes and attackers read of the classes `forget` from features [n, d] with labels [n], train and test each."""
    scores: dict[str, Any] = {}
    if measures.knowledge_retention:
        scores |= _knowledge_retention(matrices, labels, torch.tensor(list(forget)), seed)
    if attacks:
        results = run_attacks(
            matrices[0], labels[0], matrices[1], labels[1], forget, attacks, seed=seed,
            train_views=views[0], test_views=views[1],
        )  # fmt: skip
        scores["attacks"] = {result.name: _attack(result) for result in results}
    return scores


def _attack(result: Any) -> dict[str, Any]:
    return {
        "recall": result.recall_forget,
        "retained": result.accuracy_retain,
        "false_alarms": result.false_alarms,
        "advantage": result.advantage,
        "auc": result.auc,
    }


def _knowledge_retention(
    matrices: Sequence[Tensor], labels: Sequence[Tensor], forget: Tensor, seed: int
) -> dict[str, Any]:
    """KR of both probes on both splits: the converged one first."""
    found: dict[str, Any] = {}
    for name, probe in (
        ("KR", fit_linear_probe(matrices[0], labels[0])),
        ("KR_paper", fit_paper_probe(matrices[0], labels[0], seed=seed)),
    ):
        for features, own, short in zip(matrices, labels, ("", "t"), strict=True):
            hits = probe.predict(features).cpu() == own
            mask = torch.isin(own, forget)
            found[f"{name} D_f{short}"], found[f"{name} D_r{short}"] = _percent(hits[mask]), _percent(hits[~mask])
        found[f"{name} HM"] = harmonic_mean(found[f"{name} D_f"], found[f"{name} D_r"])
        found[f"{name} HM_t"] = harmonic_mean(found[f"{name} D_ft"], found[f"{name} D_rt"])
    return found


def _membership(answers, problem: Problem, forget_train: Tensor, forget_test: Tensor | None, seed: int):
    """D_f against D_ft by the loss (Table 1), or the share of D_f taken for members (Table 5)."""
    if forget_test is None:
        share = member_rate(answers["train"][~forget_train], answers["test"], answers["train"][forget_train], seed=seed)
        return {"MIA": share.member_rate, "MIA level": share.false_alarm_rate}
    if min(int(forget_train.sum()), int(forget_test.sum())) < FEWEST_FOR_MIA:
        return {}
    attack = loss_attack(
        answers["train"][forget_train],
        problem.train_labels[forget_train],
        answers["test"][forget_test],
        problem.test_labels[forget_test],
        seed=seed,
    )
    return {"MIA": attack.accuracy, "MIA auc": attack.auc}


def _change(model, test: Tensor, original, problem: Problem, forget_test: Tensor | None) -> dict[str, Any]:
    """Weights moved, and how much the features of retained test images are still the original's."""
    first, features = original
    kept = torch.ones(len(test), dtype=torch.bool) if forget_test is None else ~forget_test
    before = side_by_side(features.test)
    scores: dict[str, Any] = {"weights head": 0.0, "weights other": 0.0}
    if before.shape == test.shape:
        scores |= {
            "CKA": linear_cka(before[kept], test[kept]),
            "cosine": float(uncentred_cosine(before[kept], test[kept]).mean),
        }
        touched = (before != test).any(dim=1)
        if forget_test is not None and not bool(touched.all()) and bool(touched.any()):
            scores |= {
                "replaced D_ft": _percent(touched[forget_test]),
                "replaced D_rt": _percent(touched[~forget_test]),
            }
    if model.inner is first.inner:
        return scores
    states = first.inner.state_dict(), model.inner.state_dict()
    if [(n, t.shape) for n, t in states[0].items()] == [(n, t.shape) for n, t in states[1].items()]:
        scores |= _weights(*states, [head for tap in first.taps for head in tap.heads])
    return scores


def _weights(before: Mapping[str, Tensor], after: Mapping[str, Tensor], heads: Sequence[str]) -> dict[str, Any]:
    """||change||_F / ||original||_F of the heads, of everything else, and of each layer in the order of the state."""
    moved = weight_distance(before, after, head=heads)
    squares: dict[str, list[float]] = {}
    for tensor in moved.tensors:
        layer = squares.setdefault(layer_of(tensor.name), [0.0, 0.0])
        layer[0] += tensor.frobenius**2
        layer[1] += tensor.original**2
    return {
        "weights head": moved.head.relative or 0.0,
        "weights other": moved.other.relative or 0.0,
        "weights by layer": {name: (change / size) ** 0.5 for name, (change, size) in squares.items() if size},
    }


def layer_of(tensor: str) -> str:
    """The layer of a tensor's name: its module, up to the last number in it (`layer.3` of `layer.3.attention.q.weight`)."""
    module = tensor.split(".")[:-1]
    numbers = [i for i, part in enumerate(module) if part.isdigit()]
    return ".".join(module[: numbers[-1] + 1] if numbers else module) or tensor


def _percent(hits: Tensor) -> float:
    return 100.0 * float(hits.double().mean()) if hits.numel() else float("nan")
