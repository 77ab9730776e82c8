"""SalUn (Fan et al. 2024): random labels, but only the weights that matter for D_f may move.

Weights outside the mask are put back after every step: momentum and weight decay would move them otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_kd.data.distributed import reduce_tensor
from hf_kd.methods.measured import SalUnMeasured

from .random_label import random_labels, union
from .task import Task, check_range
from .training import TrainedMethod


def saliency_mask(task: Task, ratio: float, batch_size: int) -> list[Tensor]:
    """For each parameter where |sum over batches of grad CE(D_f)| is among the top `ratio` of all parameters.

    Eval mode; the sum comes before the absolute value, and the sign of the loss makes no difference.
    """
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    with task.mode("eval"):
        for batch in task.batches(task.forget, batch_size):
            loss = task.cross_entropy(batch)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for sum_, gradient in zip(total, gradients, strict=True):
                if gradient is not None:
                    sum_ += gradient
    total = [reduce_tensor(part, "sum") for part in total]
    every = torch.cat([part.abs().flatten() for part in total])
    keep = max(1, round(ratio * every.numel()))
    threshold = every.kthvalue(every.numel() - keep + 1).values
    return [(part.abs() >= threshold) & (part != 0) for part in total]


@dataclass(frozen=True, kw_only=True)
class SalUn(TrainedMethod):
    """Train on random labels for D_f and true ones for D_r, where only salient weights may move (Fan et al. 2024).

    The saliency mask holds the `ratio` of weights with the largest |grad CE(D_f)|; all others stay exactly as they are.

    Attributes:
        ratio: Share of all parameters that may move.
    """

    name: ClassVar[str] = "salun"
    when: ClassVar[str] = "As amnesiac, with half of the weights left alone."
    measures: ClassVar[type] = SalUnMeasured
    needs: ClassVar[str] = "D_f and D_r"
    source: ClassVar[str] = "Fan et al. 2024, 10 % of CIFAR-10"

    lr: float = 0.013
    weight_decay: float = 5e-4
    ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, [("ratio", self.ratio, 0 < self.ratio <= 1, "above 0 and at most 1")])

    def change(self, task: Task) -> SalUnMeasured:
        retain = task.needed_retain(self.name)
        masks = saliency_mask(task, self.ratio, self.batch_size)
        parameters = [p for p in task.model.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in parameters]
        optimizer = self.make_optimizer(parameters)
        both = union(task.forget.relabelled(random_labels(task.forget.labels, task.kept_classes)), retain)

        def mask_gradients() -> None:
            for parameter, mask in zip(parameters, masks, strict=True):
                if parameter.grad is not None:
                    parameter.grad *= mask

        @torch.no_grad()
        def put_back() -> None:
            for parameter, mask, first in zip(parameters, masks, start, strict=True):
                parameter.copy_(torch.where(mask, parameter, first))
                momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
                if momentum is not None:
                    momentum *= mask

        measured = self.descend(
            task, both, task.cross_entropy, optimizer, change_gradients=mask_gradients, after_step=put_back
        )
        share = float(sum(int(m.sum()) for m in masks) / sum(m.numel() for m in masks))
        return {"n_forget": len(task.forget), "n_retain": len(retain), "share_that_may_move": share, **measured}
