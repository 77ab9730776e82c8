"""NegGrad (NG; gradient ascent, Thudi et al. 2022): climb the loss of D_f.

The loss has no bound, so a sample counts only until its loss reaches a cap, gradients are clipped, and training ends once
D_f is forgotten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from hf_kd.data.samples import Batch
from hf_kd.methods.measured import TrainedMeasured

from .task import Task, check_range
from .training import TrainedMethod


@dataclass(frozen=True, kw_only=True)
class NegGrad(TrainedMethod):
    """Climb the loss of D_f (gradient ascent; Thudi et al. 2022).

    max CE(f(x), y) over D_f, each sample's capped at `cap` log C.

    Attributes:
        cap: A sample whose loss has passed cap log C gives no gradient, since the loss has no bound.
        clip_norm: Bound of the norm of the whole gradient.
        target: Training ends after an epoch that leaves at most so many percent of D_f answered as labelled.
    """

    name: ClassVar[str] = "neggrad"
    when: ClassVar[str] = "D_f is all there is, and the answers on it are to be wrong."
    needs: ClassVar[str] = "D_f"
    source: ClassVar[str] = (
        "Thudi et al. 2022; lr and epochs of the grid in DELETE (2025); cap, clip_norm and target are ours"
    )

    epochs: int = 20
    lr: float = 1e-4
    cap: float = 2.0
    clip_norm: float = 1.0
    target: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(
            self.name,
            [("target", self.target, 0 <= self.target < 100, "a percentage below 100")],
        )

    def change(self, task: Task) -> TrainedMeasured:
        cap = self.cap * math.log(max(task.num_labels, 2))

        def loss(batch: Batch) -> Tensor:
            each = F.cross_entropy(task.logits(batch.inputs), batch.labels, reduction="none")
            return -each.clamp(max=cap).mean()

        def enough(epoch: int) -> bool:
            return task.accuracy(task.forget) <= self.target

        return {
            "n_forget": len(task.forget),
            **self.descend(task, task.forget, loss, clip_norm=self.clip_norm, after_epoch=enough),
        }
