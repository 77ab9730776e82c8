"""Random Label (RL; Golatkar et al., Graves et al.): teach D_f labels that are wrong, and that are not forgotten either.

"random-label" trains on D_f alone; "amnesiac" on D_f with wrong and D_r with true labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.samples import Samples
from .base import register
from .task import Task
from .training import TrainedMethod


def random_labels(labels: Tensor, allowed: Tensor) -> Tensor:
    """For each of labels [n] one of the class ids `allowed` [m], uniform, and never the label itself.

    Raises ValueError where a label is the only one allowed.
    """
    if len(allowed) < 2 and bool(torch.isin(labels, allowed).any()):
        raise ValueError("There is no wrong label to give: the model would need one more class.")
    drawn = allowed[torch.randint(len(allowed), (len(labels),))]
    while bool((clash := drawn == labels).any()):
        drawn[clash] = allowed[torch.randint(len(allowed), (int(clash.sum()),))]
    return drawn


def relabelled(samples: Samples, labels: Tensor) -> Samples:
    """The same samples under other labels."""
    other = samples.subset(torch.arange(len(samples)))
    other.labels = labels
    return other


@register
@dataclass(frozen=True, kw_only=True)
class RandomLabel(TrainedMethod):
    """min CE(f(x), y~) on D_f, y~ drawn once from the classes that are not forgotten (random samples: from all others)."""

    name: ClassVar[str] = "random-label"
    needs: ClassVar[str] = "D_f"
    source: ClassVar[str] = "Golatkar et al. 2020; lr and epochs of the grid in DELETE (2025)"

    epochs: int = 20
    lr: float = 1e-4
    batch_size: int = 128

    def change(self, task: Task) -> dict[str, Any]:
        wrong = relabelled(task.forget, random_labels(task.forget.labels, task.kept_classes))

        def loss(batch):
            return F.cross_entropy(task.logits(batch.inputs), batch.labels)

        return {"n_forget": len(task.forget), **self.descend(task, wrong, loss)}


@register
@dataclass(frozen=True, kw_only=True)
class Amnesiac(TrainedMethod):
    """min CE on D_f with random wrong labels and D_r with its own, in one shuffled union."""

    name: ClassVar[str] = "amnesiac"
    needs: ClassVar[str] = "D_f and D_r"
    source: ClassVar[str] = "Graves et al. 2021; settings of SSD's comparison (Foster et al. 2024)"

    epochs: int = 3
    lr: float = 1e-4
    batch_size: int = 128
    optimizer: str = "adam"

    def change(self, task: Task) -> dict[str, Any]:
        retain = task.needed_retain(self.name)
        union = Union(relabelled(task.forget, random_labels(task.forget.labels, task.kept_classes)), retain)

        def loss(batch):
            return F.cross_entropy(task.logits(batch.inputs), batch.labels)

        return {"n_forget": len(task.forget), "n_retain": len(retain), **self.descend(task, union, loss)}


class Union(Samples):
    """D_f and D_r as one set; `is_forget` [n] says which is which."""

    def __init__(self, forget: Samples, retain: Samples):
        super().__init__(torch.cat([forget.labels, retain.labels]))
        self._parts = (forget, retain)
        self.is_forget = torch.arange(len(self)) < len(forget)

    def batches(self, batch_size: int, order: Tensor | None = None, *, part: int = 0, parts: int = 1):
        forget, retain = self._parts
        order = torch.arange(len(self)) if order is None else order
        for chunk in order.split(batch_size):
            if len(chunk) < parts:
                continue
            own = chunk[part::parts]
            pieces = []
            for samples, rows in ((forget, own[own < len(forget)]), (retain, own[own >= len(forget)] - len(forget))):
                if len(rows):
                    pieces.append(next(samples.batches(len(rows), rows)))
            inputs = {name: torch.cat([piece.inputs[name] for piece in pieces]) for name in pieces[0].inputs}
            batch = type(pieces[0])(inputs, torch.cat([piece.labels for piece in pieces]))
            yield batch
