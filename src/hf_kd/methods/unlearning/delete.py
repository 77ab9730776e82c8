"""DELETE (CVPR 2025): distil the model into itself with the forgotten logits masked out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_kd.data.samples import Batch
from hf_kd.methods.measured import TrainedMeasured

from .task import Task, other_answers, soft_divergence
from .training import TrainedMethod


@dataclass(frozen=True, kw_only=True)
class Delete(TrainedMethod):
    """Distil the model into itself on D_f, with the forgotten logits masked out of the target (DELETE, CVPR 2025).

    min KL(softmax(t with the forgotten logits at -inf) || softmax(s)) over D_f, t the original model.
    """

    name: ClassVar[str] = "delete"
    when: ClassVar[str] = "D_f is all there is; distils the model into itself, without the forgotten classes' logits."
    needs: ClassVar[str] = "D_f"
    source: ClassVar[str] = "DELETE (CVPR 2025), CIFAR-10 ResNet-18"

    epochs: int = 20
    lr: float = 1e-4
    batch_size: int = 128

    def change(self, task: Task) -> TrainedMeasured:
        teacher, kept = task.frozen_copy(), task.kept_classes

        def loss(batch: Batch) -> Tensor:
            with torch.no_grad():
                wanted = other_answers(task.logits(batch.inputs, teacher), kept, batch.labels)
            return soft_divergence(wanted, task.logits(batch.inputs))

        return {"n_forget": len(task.forget), **self.descend(task, task.forget, loss)}
