"""Fewer classes for the attackers, where there are very many: their cost grows with samples times classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_kd.metrics._inputs import generator
from hf_kd.metrics.attack_data import AuditData

SEED = 0


def of_fewer_classes(
    versions: Mapping[str, AuditData], most: int | None
) -> tuple[dict[str, AuditData], dict[str, dict[str, int]]]:
    """All forgotten classes and at most `most` retained ones, the same in every version.

    Args:
        versions: Features of the same samples; versions that are one object stay one.
        most: Of the retained classes; None keeps all.

    Returns:
        The versions, and what was drawn, for the report: nothing where there are no more.
    """
    first = next(iter(versions.values()))
    retained = first.classes[~first.forget_columns]
    if most is None or len(retained) <= most:
        return dict(versions), {}
    order = torch.randperm(len(retained), generator=generator(SEED)).to(retained.device)
    tested = torch.isin(retained[order], first.test_labels)  # classes that are scored come first
    drawn = retained[torch.cat([order[tested], order[~tested]])[:most]]
    train, test = (_rows(labels, drawn, first.forget) for labels in (first.train_labels, first.test_labels))
    made: dict[int, AuditData] = {}
    for data in versions.values():
        if id(data) not in made:
            made[id(data)] = data.of_rows(train, test)
    fewer = {name: made[id(data)] for name, data in versions.items()}
    return fewer, {"retained classes": {"drawn": most, "of": len(retained), "seed": SEED}}


def _rows(labels: Tensor, drawn: Tensor, forget: tuple[int, ...]) -> Tensor:
    kept = torch.isin(labels, torch.cat([drawn, torch.tensor(forget, device=drawn.device)]))
    return torch.nonzero(kept).flatten()


def sampled_notes(sampled: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What was drawn, in words; nothing where everything was measured.

    Example:
        >>> sampled_notes({"train": {"drawn": 500, "of": 5000, "seed": 0}})
        ['A sample, not everything: train 500 of 5,000, drawn by a fixed seed. Numbers are those of the sample.']
    """
    if not sampled:
        return []
    parts = ", ".join(f"{what} {each['drawn']:,} of {each['of']:,}" for what, each in sampled.items())
    return [f"A sample, not everything: {parts}, drawn by a fixed seed. Numbers are those of the sample."]
