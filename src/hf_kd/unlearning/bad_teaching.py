"""Bad Teaching (BadT; Chundawat et al. 2023): learn D_r from the model as it was and D_f from one that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from .base import register
from .random_label import Union
from .task import Descent, Task, batch_count, check_range
from .training import TrainedMethod


@register
@dataclass(frozen=True, kw_only=True)
class BadTeaching(TrainedMethod):
    """min KL(T_d(x) || S(x)) on D_f and KL(T_s(x) || S(x)) on a share of D_r.

    T_s is the original, T_d a network with fresh weights. The divergence is summed over classes (a mean over them, as in the
    public code, makes lr C times smaller). retain_share: share of D_r that is used.
    """

    name: ClassVar[str] = "bad-teaching"
    needs: ClassVar[str] = "D_f and D_r"
    source: ClassVar[str] = "Chundawat et al. 2023"

    epochs: int = 1
    lr: float = 1e-4
    optimizer: str = "adam"
    temperature: float = 1.0
    retain_share: float = 0.3

    def __post_init__(self):
        super().__post_init__()
        check_range(
            self.name, [("retain_share", self.retain_share, 0 < self.retain_share <= 1, "above 0 and at most 1")]
        )

    def change(self, task: Task) -> dict[str, Any]:
        retain = task.needed_retain(self.name)
        retain = retain.subset(retain.shuffled()[: max(1, round(self.retain_share * len(retain)))])
        union = Union(task.forget, retain)
        good = task.frozen_copy()
        bad = task.fresh(self.seed, None).to(task.device).eval().requires_grad_(False)
        descent = Descent(
            task,
            self.make_optimizer(task.model.parameters()),
            steps=self.epochs * batch_count(union, self.batch_size),
            name=self.name,
        )
        part, parts = task.state.process_index, task.state.num_processes
        for _ in range(self.epochs):
            order = union.shuffled()
            with task.mode(self.bn_mode):
                flags = (c[part::parts] < len(task.forget) for c in order.split(self.batch_size) if len(c) >= parts)
                for batch, is_forget in zip(
                    union.batches(self.batch_size, order, part=part, parts=parts), flags, strict=True
                ):
                    # a batch of the union holds its forget samples first
                    is_forget = is_forget.sort(descending=True).values.to(task.device)[:, None]
                    inputs = {name: value.to(task.device) for name, value in batch.inputs.items()}
                    with torch.no_grad():
                        wanted = torch.where(is_forget, task.logits(inputs, bad), task.logits(inputs, good))
                    scale = self.temperature
                    divergence = F.kl_div(
                        torch.log_softmax(task.logits(inputs) / scale, dim=1),
                        torch.log_softmax(wanted / scale, dim=1),
                        reduction="batchmean",
                        log_target=True,
                    )
                    descent.step(divergence)
        return {"n_forget": len(task.forget), "n_retain": len(retain), "epochs_run": self.epochs, **descent.close()}
