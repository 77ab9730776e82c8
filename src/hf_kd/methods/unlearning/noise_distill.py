"""Relative noise, then distillation (UNDO; Lee et al., NeurIPS 2025), for networks with normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hf_kd.data.masked_classes import masked_logits
from hf_kd.data.samples import Batch
from hf_kd.methods.measured import TrainedMeasured

from .fresh import seed_apart
from .task import Task, check_range, soft_divergence
from .training import TrainedMethod


@dataclass(frozen=True, kw_only=True)
class NoiseDistill(TrainedMethod):
    """Corrupt all weights with noise of their own size, then distil the masked original into them on D_r (UNDO).

    W <- sqrt(1 - r^2) W + r N(0, sd(W)) for every kernel and matrix, then min T^2 KL(teacher || f) on D_r; the teacher is
    the original with those classes of D_f masked that D_r does not hold, and those of earlier requests. UNDO shrinks weights
    and adds noise; behind a normalisation shrinking does nothing, so the noise is relative here.

    Attributes:
        noise: r, the share of noise.
        temperature: T.
    """

    name: ClassVar[str] = "noise-distill"
    when: ClassVar[str] = "A baseline: meant to resist relearning, the more the stronger the noise."
    needs: ClassVar[str] = "D_r"
    source: ClassVar[str] = "UNDO (arXiv 2506.06278), made for language models; relative noise and settings are ours"

    bn_mode: Literal["eval", "freeze", "train"] = "train"
    epochs: int = 4
    lr: float = 0.05
    batch_size: int = 128
    weight_decay: float = 5e-4
    schedule: Literal["steps", "cosine"] = "cosine"
    warmup: float = 0.5
    noise: float = 0.6
    temperature: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, [("noise", self.noise, 0 < self.noise <= 1, "above 0 and at most 1")])

    def change(self, task: Task) -> TrainedMeasured:
        retain = task.needed_retain(self.name)
        teacher, gone = task.frozen_copy(), torch.cat([task.gone_classes, task.earlier_classes])
        # not what the first weights were drawn from
        noise = torch.Generator().manual_seed(seed_apart(self.seed, task.changed_before))
        with torch.no_grad():
            for weight in (p for p in task.model.parameters() if p.ndim > 1):
                drawn = torch.randn(weight.shape, generator=noise).to(weight) * weight.std(correction=0)
                weight.mul_((1 - self.noise**2) ** 0.5).add_(self.noise * drawn)

        def loss(batch: Batch) -> Tensor:
            with torch.no_grad():
                wanted = masked_logits(task.logits(batch.inputs, teacher), gone)
            return soft_divergence(wanted, task.logits(batch.inputs), self.temperature)

        return {"n_retain": len(retain), **self.descend(task, retain, loss)}
