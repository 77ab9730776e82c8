"""l1-sparse (Jia et al. 2023): fine-tune on D_r with an l1 penalty that fades, so that weights only D_f needed vanish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_kd.data.samples import Batch
from hf_kd.methods.measured import TrainedMeasured

from .task import Task, check_range
from .training import TrainedMethod


@dataclass(frozen=True, kw_only=True)
class L1Sparse(TrainedMethod):
    """Fine-tune on D_r with an l1 penalty that fades (Jia et al. 2023).

    min CE(D_r) + a_e ||theta||_1 over all parameters, a_e = alpha (1 - e / (E - E_0)) for e < E - E_0, else 0.

    Attributes:
        alpha: Strength in the first epoch; the norm is a sum, so it scales with the size of the model.
        free_epochs: E_0, how many epochs at the end have no penalty.
    """

    name: ClassVar[str] = "l1-sparse"
    when: ClassVar[str] = "Only retained images may be read, and weights may become sparse."
    needs: ClassVar[str] = "D_r"
    source: ClassVar[str] = (
        "Jia et al. 2023; alpha is within what the literature uses (the default of the published flag, 0.2, is not)"
    )

    weight_decay: float = 5e-4
    alpha: float = 5e-5
    free_epochs: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(
            self.name,
            [
                ("alpha", self.alpha, self.alpha >= 0, "0 or more"),
                ("free_epochs", self.free_epochs, 0 <= self.free_epochs < self.epochs, "at least 0 and below epochs"),
            ],
        )

    def strength(self, epoch: int) -> float:
        """a_e, the factor of the norm in an epoch.

        Args:
            epoch: e, counted from 0.
        """
        last = self.epochs - self.free_epochs
        return self.alpha * (1 - epoch / last) if epoch < last else 0.0

    def change(self, task: Task) -> TrainedMeasured:
        retain = task.needed_retain(self.name)
        parameters = [p for p in task.model.parameters() if p.requires_grad]
        strength = self.strength(0)

        def loss(batch: Batch) -> Tensor:
            norm = torch.stack([p.abs().sum() for p in parameters]).sum()
            return task.cross_entropy(batch) + strength * norm

        def fade(epoch: int) -> bool:
            nonlocal strength
            strength = self.strength(epoch)
            return False

        return {"n_retain": len(retain), **self.descend(task, retain, loss, after_epoch=fade)}
