"""SSD, Selective Synaptic Dampening (Foster et al., AAAI 2024): shrink the weights that matter more for D_f than for D.

No training. Importances are squared gradients of a batch's mean loss, so they depend on the batch size: it is the same for
both sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_kd.data.distributed import reduce_tensor
from hf_kd.data.samples import Samples
from hf_kd.methods.measured import SSDMeasured

from .base import UnlearningMethod
from .random_label import union
from .task import Task


def importances(task: Task, samples: Samples, batch_size: int, label_free: bool) -> list[Tensor]:
    """Mean over batches of (d loss / d theta_i)^2, eval mode; the loss is CE, or ||f(x)||^2 where labels are not used."""
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    count = 0
    with task.mode("eval"):
        for batch in task.batches(samples, batch_size, shuffle=True):
            logits = task.logits(batch.inputs)
            loss = logits.square().sum(dim=1).mean() if label_free else F.cross_entropy(logits, batch.labels)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for sum_, gradient in zip(total, gradients, strict=True):
                if gradient is None:
                    continue
                gradient = reduce_tensor(gradient, "mean")
                sum_ += gradient.abs() if label_free else gradient**2
            count += 1
    return [sum_ / max(count, 1) for sum_ in total]


def dampening(forget: Tensor, every: Tensor, selection: float, strength: float) -> Tensor:
    """What each weight is multiplied by: min(lambda I_D / I_f, 1) where I_f > alpha I_D, else 1."""
    chosen = forget > selection * every
    return torch.where(chosen, (strength * every / forget.clamp(min=torch.finfo(forget.dtype).tiny)).clamp(max=1), 1.0)


@dataclass(frozen=True, kw_only=True)
class SSD(UnlearningMethod):
    """Shrink the weights that matter more for D_f than for all data (Foster et al. 2024).

    theta_i *= min(lambda I_D,i / I_f,i, 1) where I_f,i > alpha I_D,i. No training.

    Attributes:
        selection: alpha, how much more a weight has to matter for D_f.
        strength: lambda.
        batch_size: Of the importances, which are squared gradients of a batch's mean loss and depend on it.
        label_free: LFSSD: importances from |grad ||f(x)||^2| without labels.
    """

    name: ClassVar[str] = "ssd"
    when: ClassVar[str] = "No training: two passes over the data, then some weights shrink."
    measures: ClassVar[type] = SSDMeasured
    needs: ClassVar[str] = "D_f and D_r"
    source: ClassVar[str] = "Foster et al. 2024, ResNet"

    selection: float = 10.0
    strength: float = 1.0
    batch_size: int = 64
    label_free: bool = False

    def change(self, task: Task) -> SSDMeasured:
        retain = task.needed_retain(self.name)
        every = importances(task, union(task.forget, retain), self.batch_size, self.label_free)
        forget = importances(task, task.forget, self.batch_size, self.label_free)
        changed = total = 0
        with torch.no_grad():
            parameters = [p for p in task.model.parameters() if p.requires_grad]
            for parameter, own, whole in zip(parameters, forget, every, strict=True):
                factor = dampening(own, whole, self.selection, self.strength)
                parameter *= factor
                changed, total = changed + int((factor < 1).sum()), total + factor.numel()
        return {"n_forget": len(task.forget), "n_retain": len(retain), "share_dampened": changed / total}
