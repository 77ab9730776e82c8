"""NegGrad+ (Kurmanji et al. 2023): down the loss of D_r and up that of D_f in the same step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_kd.data.samples import Batch
from hf_kd.methods.measured import TrainedMeasured

from .task import Task, check_range, endless
from .training import TrainedMethod


@dataclass(frozen=True, kw_only=True)
class NegGradPlus(TrainedMethod):
    """Go down the loss of D_r and up that of D_f in the same step (Kurmanji et al. 2023).

    min alpha CE(D_r) - (1 - alpha) CE(D_f) + l2_to_init / 2 ||theta - theta_0||^2; D_f is repeated as often as needed.

    Attributes:
        alpha: Weight of D_r.
        l2_to_init: Strength of the pull to the original weights.
    """

    name: ClassVar[str] = "neggrad+"
    when: ClassVar[str] = "As neggrad, where retained images may hold the model together."
    needs: ClassVar[str] = "D_f and D_r"
    source: ClassVar[str] = "Kurmanji et al. 2023, small scale"

    batch_size: int = 128
    alpha: float = 0.95
    l2_to_init: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(
            self.name,
            [
                ("alpha", self.alpha, 0 < self.alpha <= 1, "above 0 and at most 1"),
                ("l2_to_init", self.l2_to_init, self.l2_to_init >= 0, "0 or more"),
            ],
        )

    def change(self, task: Task) -> TrainedMeasured:
        retain = task.needed_retain(self.name)
        forget = endless(lambda: task.batches(task.forget, self.batch_size, shuffle=True))
        parameters = [p for p in task.model.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in parameters] if self.l2_to_init else []

        def loss(batch: Batch) -> Tensor:
            other = next(forget)
            kept = task.cross_entropy(batch)
            lost = task.cross_entropy(other)
            total = self.alpha * kept - (1 - self.alpha) * lost
            if start:
                moved = torch.stack([((p - q) ** 2).sum() for p, q in zip(parameters, start, strict=True)]).sum()
                total = total + self.l2_to_init / 2 * moved
            return total

        return {"n_forget": len(task.forget), "n_retain": len(retain), **self.descend(task, retain, loss)}
