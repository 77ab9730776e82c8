"""CF-k and EU-k (Goel et al. 2022): forget in the last k layers, by going on training them or by starting them anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from .base import register
from .task import Task, parameters_from
from .training import TrainedMethod


@dataclass(frozen=True, kw_only=True)
class _LastLayers(TrainedMethod):
    """min CE(D_r) over the last k convolutions and Linears, in order of registration, and the norms between them."""

    needs: ClassVar[str] = "D_r"

    batch_size: int = 64
    k: int = 3

    def _train(self, task: Task, start_anew: bool) -> dict[str, Any]:
        retain = task.needed_retain(self.name)
        layers, names = parameters_from(task.model, self.k)
        if start_anew:
            fresh = dict(task.fresh(self.seed, None).named_parameters())
            with torch.no_grad():
                for name in names:
                    task.model.get_parameter(name).copy_(fresh[name])
        chosen = set(names)
        for name, parameter in task.model.named_parameters():
            parameter.requires_grad_(name in chosen)

        def loss(batch):
            return F.cross_entropy(task.logits(batch.inputs), batch.labels)

        optimizer = self.make_optimizer([task.model.get_parameter(name) for name in names])
        return {"n_retain": len(retain), "layers": layers, **self.descend(task, retain, loss, optimizer)}


@register
@dataclass(frozen=True, kw_only=True)
class CatastrophicForgetting(_LastLayers):
    """CF-k: fine-tune the last k layers on D_r."""

    name: ClassVar[str] = "cf-k"
    source: ClassVar[str] = "Goel et al. 2022; settings of SCRUB's comparison"

    def change(self, task: Task) -> dict[str, Any]:
        return self._train(task, start_anew=False)


@register
@dataclass(frozen=True, kw_only=True)
class ExactUnlearning(_LastLayers):
    """EU-k: give the last k layers fresh weights and train them on D_r as from scratch."""

    name: ClassVar[str] = "eu-k"
    source: ClassVar[str] = "Goel et al. 2022; settings of SCRUB's comparison"

    epochs: int = 30
    decay_epochs: tuple[int, ...] = (11, 16, 21)

    def change(self, task: Task) -> dict[str, Any]:
        return self._train(task, start_anew=True)
