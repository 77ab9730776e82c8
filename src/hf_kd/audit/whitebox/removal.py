"""Attack 5: disturb, compress or fine-tune the weights, and see whether the class comes back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from hf_kd.data.devices import own_generators
from hf_kd.data.samples import consecutive
from hf_kd.metrics._inputs import first_rows
from hf_kd.metrics.attack_data import AttackResult, AuditData

from .answers import head_answers
from .network import RECALIBRATION, Network, WhiteBoxData, recalibrated, train_step, with_rows
from .probes import few_labels_attack

SHOTS = 5
"""Labelled images of every class behind a new head, and behind a new row of one."""

FINE_TUNED_ON = 2_000
"""Retained images, at most."""


def _matrices(model: nn.Module) -> Iterator[Tensor]:
    """Weights of two or more dimensions, as rows of outputs."""
    return (parameter for parameter in model.parameters() if parameter.ndim >= 2)


@torch.no_grad()
def with_noise(network: Network, share: float = 0.2, seed: int = 0) -> Network:
    """A copy with Gaussian noise of `share` of each weight tensor's standard deviation."""
    made, rng = network.copied(), torch.Generator().manual_seed(seed)
    for weight in _matrices(made.model):
        noise = torch.randn(weight.shape, generator=rng).to(weight)
        weight += share * weight.std(correction=0) * noise  # of a single entry too
    return made


@torch.no_grad()
def quantised(network: Network, bits: int) -> Network:
    """A copy with weights rounded to `bits` bits, symmetric, a scale for every output."""
    made, top = network.copied(), 2 ** (bits - 1) - 1
    for weight in _matrices(made.model):
        scale = (weight.abs().flatten(1).amax(dim=1) / top).clamp_min(1e-12).view(-1, *[1] * (weight.ndim - 1))
        weight.copy_((weight / scale).round().clamp(-top - 1, top) * scale)
    return made


@torch.no_grad()
def pruned(network: Network, share: float) -> Network:
    """A copy without the smallest `share` of the entries of each weight tensor."""
    made = network.copied()
    for weight in _matrices(made.model):
        count = int(share * weight.numel())
        smallest = weight.abs().flatten().topk(count, largest=False, sorted=False).indices
        gone = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device).index_fill(0, smallest, True)
        weight[gone.view(weight.shape)] = 0  # not all that are as small as the largest of them
    return made


def fine_tuned(
    network: Network, data: WhiteBoxData, *, epochs: int = 5, learning_rate: float = 0.01, seed: int = 0
) -> Network:
    """A copy trained for a few epochs on retained images alone, as who adapts a model to a task of their own."""
    made, rng = network.copied(), torch.Generator().manual_seed(seed)
    kept = data.train.rows(torch.nonzero(~data.train_forget).flatten()[:FINE_TUNED_ON])
    labels = kept.labels.unique()
    found = made.columns_of(labels)
    present = [i for i, column in enumerate(found) if column is not None]
    columns = torch.tensor([found[i] for i in present], device=made.device)
    kept = kept.rows(torch.isin(kept.labels, labels[present]))
    labels = labels[present]
    model = made.model.requires_grad_(True).train()
    optimiser = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9)
    with own_generators(made.device, seed):
        for _ in range(epochs):
            order = torch.randperm(len(kept), generator=rng).to(kept.labels.device)
            for rows in consecutive(order, 64):
                part = kept.rows(rows)
                train_step(model, optimiser, part.inputs, torch.searchsorted(labels, part.labels), columns)
    model.eval()
    return made


def removal_attacks(network: Network, data: WhiteBoxData, seed: int = 0) -> Iterator[AttackResult]:
    """The head's answers after each change of the weights, and a new head from 5 labelled images of every class.

    What stood beside the weights (erasers, masks) is off already, and a row that answers nothing is made of 5 images as in
    `class_row_attack`: it would answer nothing after any change. BatchNorm is recalibrated after each change.
    """
    network, row = with_rows(network, data, data.shots(SHOTS, seed))
    unlabelled = data.train.rows(slice(RECALIBRATION))
    some = data.train.rows(first_rows(data.train.labels, FINE_TUNED_ON, SHOTS))
    read = AuditData.of(
        network.head_inputs(some), some.labels, network.head_inputs(data.test), data.test.labels, data.forget
    )
    shots = min(SHOTS, data.class_sizes[1])
    yield replace(few_labels_attack(read, seed, labels=shots), name=f"new head from {shots} images a class")
    changes = {
        "weight noise, .2 sd": lambda: with_noise(network, 0.2, seed),
        "8 bits": lambda: quantised(network, 8),
        "4 bits": lambda: quantised(network, 4),
        "30 % pruned": lambda: pruned(network, 0.3),
        "60 % pruned": lambda: pruned(network, 0.6),
        "5 epochs on retained images": lambda: fine_tuned(network, data, seed=seed),
    }
    for name, change in changes.items():
        result = head_answers(recalibrated(change(), unlabelled), data, name)
        yield replace(result, settings={"row": row})
