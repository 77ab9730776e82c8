"""Bad Teaching (BadT; Chundawat et al. 2023): learn D_r from the model as it was and D_f from one that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hf_kd.data.masked_classes import masked_logits
from hf_kd.data.samples import Batch
from hf_kd.methods.measured import TrainedMeasured

from .random_label import union
from .task import Task, check_range, soft_divergence
from .training import TrainedMethod


@dataclass(frozen=True, kw_only=True)
class BadTeaching(TrainedMethod):
    """Learn D_r from the model as it was and D_f from a model that knows nothing (Chundawat et al. 2023).

    min KL(T_d(x) || S(x)) over D_f and KL(T_s(x) || S(x)) over a share of D_r; T_s is the original, T_d a network with fresh
    weights. The divergence is summed over classes (a mean over them, as in the public code, makes lr C times smaller).

    Attributes:
        temperature: Both sets of logits are divided by it; no factor T^2.
        retain_share: Share of D_r that is used, drawn once.
    """

    name: ClassVar[str] = "bad-teaching"
    when: ClassVar[str] = "One epoch on both sets is all that may be spent."
    needs: ClassVar[str] = "D_f and D_r"
    source: ClassVar[str] = "Chundawat et al. 2023"

    epochs: int = 1
    lr: float = 1e-4
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    temperature: float = 1.0
    retain_share: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(
            self.name, [("retain_share", self.retain_share, 0 < self.retain_share <= 1, "above 0 and at most 1")]
        )

    def change(self, task: Task) -> TrainedMeasured:
        retain = task.needed_retain(self.name)
        retain = retain.subset(retain.shuffled()[: max(1, round(self.retain_share * len(retain)))])
        # the label says which teacher a sample learns from; the divergence needs no other
        both = union(
            task.forget.relabelled(torch.ones_like(task.forget.labels)),
            retain.relabelled(torch.zeros_like(retain.labels)),
        )
        good, bad = task.frozen_copy(), self.fresh_model(task).requires_grad_(False)
        earlier = task.earlier_classes  # which fresh weights would answer, and the student is not to

        def loss(batch: Batch) -> Tensor:
            with torch.no_grad():
                unknowing = masked_logits(task.logits(batch.inputs, bad), earlier)
                wanted = torch.where(batch.labels[:, None] == 1, unknowing, task.logits(batch.inputs, good))
            return soft_divergence(wanted / self.temperature, task.logits(batch.inputs) / self.temperature)

        return {"n_forget": len(task.forget), "n_retain": len(retain), **self.descend(task, both, loss)}
