"""Attack 1: probes at the output of every block, with few labels and with all, before and after BatchNorm recalibration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from hf_kd.metrics._inputs import few_of_each
from hf_kd.metrics.attack_data import AttackResult, AuditData, result_from_logits, result_from_shares
from hf_kd.metrics.information import class_information
from hf_kd.metrics.linear_probe import fit_linear_probe
from hf_kd.metrics.neighbours import Metric, knn_predictions
from hf_kd.metrics.nonlinear_probes import fit_mlp_probe

from .network import Network, WhiteBoxData, recalibrated
from .reading import read_blocks

TOLERANCE = 1e-5
"""Gradient norm of the probes: F and R no longer move by .1 below it."""

DRAWS = 3
"""Choices of the labelled images of an attacker with few labels; scores are means over them."""

BATCHNORM_IMAGES = (10, 2_000)
"""Unlabelled images from which BatchNorm statistics are taken anew, as far as there are so many."""

FEW_LABELS = (10, 50)
"""Labelled images of every class that an attacker with few of them has, as far as any class has more."""

MAP_ROWS = (4_000, 4_000)
"""Images of train and test whose maps are read, two of every class among them: 1,024 columns are too many for all."""


def linear_attack(data: AuditData, seed: int = 0) -> AttackResult:
    """The converged multi-class probe with all labels."""
    probe = fit_linear_probe(data.train, data.train_labels, scales=data.scales, tolerance=TOLERANCE, seed=seed)
    return result_from_logits(data, "linear", probe.logits(data.test))


def map_attack(data: AuditData, seed: int = 0) -> AttackResult:
    """The same on 4x4 maps, on the principal axes with their spread, as whitening needs ten samples a direction."""
    probe = fit_linear_probe(
        data.train, data.train_labels, geometry="principal", tolerance=10 * TOLERANCE, max_iterations=300, seed=seed
    )
    return result_from_logits(data, "linear on maps", probe.logits(data.test))


def mlp_attack(data: AuditData, seed: int = 0) -> AttackResult:
    """One hidden layer of 256, whitened features, all labels."""
    size = 1024 if len(data.train) > 4096 else 128
    probe = fit_mlp_probe(data.train, data.train_labels, batch_size=size, seed=seed)
    return result_from_logits(data, "mlp", probe.logits(data.test))


def knn_attack(data: AuditData, seed: int = 0, *, metric: Metric = "cosine", k: int = 20) -> AttackResult:
    """The vote of the nearest training samples; its score is the share of forgotten ones among them."""
    shares = knn_predictions(data.train, data.train_labels, data.test, k, metric, 1, seed)
    score = shares[:, data.forget_columns].sum(dim=1)
    return result_from_shares(data, "k-nn", shares, score, metric=metric)


def few_labels_attack(data: AuditData, seed: int = 0, *, labels: int, kind: str = "linear") -> AttackResult:
    """A linear probe, a perceptron or the 5 nearest neighbours from so many labelled images of every class.

    The linear probe takes the scale from all features, for which no labels are needed. Mean over `DRAWS` choices.
    """
    found = []
    for draw in range(DRAWS if kind == "linear" else 1):
        rows = few_of_each(data.train_labels, labels, seed + draw)
        # small problems: a processor is faster than a launch of kernels for each step
        few, few_labels = data.train[rows].cpu(), data.train_labels[rows].cpu()
        if kind == "k-nn":
            shares = knn_predictions(few, few_labels, data.test.cpu(), 5, "cosine", 1, seed).to(data.test.device)
            found.append(result_from_shares(data, kind, shares, shares[:, data.forget_columns].sum(dim=1)))
            continue
        if kind == "mlp":
            logits = fit_mlp_probe(few, few_labels, batch_size=64, seed=seed).logits(data.test.cpu())
        else:
            probe = fit_linear_probe(few, few_labels, scales=data.scales, geometry="principal", tolerance=1e-4)
            logits = probe.logits(data.test.cpu())
        found.append(result_from_logits(data, kind, logits.to(data.test.device)))
    return _mean(found)


def probe_attacks(network: Network, data: WhiteBoxData, seed: int = 0) -> Iterator[tuple[AttackResult, Tensor | None]]:
    """Every probe at every block of a network, as it is and with BatchNorm recalibrated.

    Where there is BatchNorm, the converged linear probe also runs before recalibration and after that on 10 images; the
    rest runs after that on 2,000, or on all where there are fewer. Numbers of labels that no class exceeds are left out.

    Args:
        network: What is attacked.
        data: Its images, in random order.
        seed: Of all that is random.

    Yields:
        A result, whose settings name `block`, `batchnorm` ("as it is", "10 images", ...), `labels` and, where some classes
        have fewer, `of_each_class` ("7 to 50"); beside the linear
        one with all labels in the last state of BatchNorm the terms of `class_information` [n_test].
    """
    states: dict[str, Network] = {"as it is": network}
    if network.norms:
        states |= {
            f"{n:,} images": recalibrated(network, data.train.rows(slice(n)))
            for n in amounts(BATCHNORM_IMAGES, len(data.train))
        }
    last = list(states)[-1]
    for state, own in states.items():
        train, test = read_blocks(own, data, MAP_ROWS if state == last else (0, 0))
        for block, features in train.pooled.items():
            read = AuditData.of(features, data.train.labels, test.pooled[block], data.test.labels, data.forget)
            about = {"block": block, "batchnorm": state, "labels": "all"}
            information = class_information(read, TOLERANCE) if state == last else None
            yield _told(linear_attack(read, seed), about), information
            if state != last:
                continue
            yield _told(mlp_attack(read, seed), about), None
            yield _told(knn_attack(read, seed), about), None
            smallest, largest = data.class_sizes
            for labels in (n for n in FEW_LABELS if n < largest):
                told = {"labels": str(labels), "of_each_class": f"{min(smallest, labels)} to {labels}"}
                for kind in ("linear", "mlp", "k-nn"):
                    result = few_labels_attack(read, seed, labels=labels, kind=kind)
                    yield _told(result, about | (told if smallest < labels else {"labels": str(labels)})), None
        for block, maps in train.maps.items():
            labels, test_labels = data.train.labels[train.map_rows], data.test.labels[test.map_rows]
            read = AuditData.of(maps.float(), labels, test.maps[block].float(), test_labels, data.forget)
            yield _told(map_attack(read, seed), {"block": block, "batchnorm": state, "labels": "all"}), None


def amounts(wanted: Sequence[int], most: int) -> list[int]:
    """Each of some numbers of images, or as many as there are, ascending and without repetition.

    Example:
        >>> amounts((10, 2_000), 300), amounts((5, 50, 500), 5)
        ([10, 300], [5])
    """
    return sorted({min(number, most) for number in wanted})


def _told(result: AttackResult, about: Mapping[str, Any]) -> AttackResult:
    return replace(result, settings={**result.settings, **about})


def _mean(results: list[AttackResult]) -> AttackResult:
    count = len(results)
    means = {
        name: sum(getattr(result, name) for result in results) / count
        for name in ("recall_forget", "accuracy_retain", "false_alarms", "auc")
    }
    return replace(results[0], hits=None, **means)
