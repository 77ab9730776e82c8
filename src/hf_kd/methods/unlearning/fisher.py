"""Fisher forgetting (Golatkar et al. 2020): noise where D_r does not need a weight to be exact.

The Fisher information is the true one: the expectation over the model's own answer, one sample at a time. A squared
gradient of a batch mean, as in some public code, is far smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_kd.data.distributed import reduce_tensor
from hf_kd.data.samples import Samples
from hf_kd.methods.measured import UnlearningMeasured

from .base import UnlearningMethod
from .task import Task, check_range


def fisher_information(task: Task, samples: Samples) -> list[Tensor]:
    """F_i = mean over x of sum_y p(y|x) (d log p(y|x) / d theta_i)^2, eval mode, for each parameter that is trained."""
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    count = 0
    part, parts = task.state.process_index, task.state.num_processes
    with task.mode("eval"):
        for batch in samples.batches(parts, part=part, parts=parts):  # one sample for each process
            log_p = torch.log_softmax(task.logits(batch.to(task.device).inputs), dim=1)[0]
            p = log_p.detach().exp()
            for answer in range(len(p)):
                last = answer == len(p) - 1
                gradients = torch.autograd.grad(log_p[answer], parameters, retain_graph=not last, allow_unused=True)
                for sum_, gradient in zip(total, gradients, strict=True):
                    if gradient is not None:
                        sum_ += p[answer] * gradient**2
            count += 1
    return [reduce_tensor(sum_, "mean") / max(count, 1) for sum_ in total]


@dataclass(frozen=True, kw_only=True)
class Fisher(UnlearningMethod):
    """Add noise to weights that D_r does not need to be exact (Golatkar et al. 2020).

    theta + sqrt(var) N(0, 1), var = alpha min(1 / (F + 1e-8), 1e3), F the Fisher information of D_r. In the last layer var
    is at most 1e2 alpha; weights get the mean over their input dimension; the last layer and all 1-d parameters ten times as
    much. Rows of the last layer whose class is in D_f and not in D_r become N(0, 1e-3).

    Attributes:
        alpha: Strength of the noise.
        samples: Images of D_r that the information is measured on, with C backward passes each.
    """

    name: ClassVar[str] = "fisher"
    when: ClassVar[str] = "Only retained images may be read, and no training is wanted; slow for many classes."
    needs: ClassVar[str] = "D_r"
    needs_head: ClassVar[bool] = True
    source: ClassVar[str] = (
        "Golatkar et al. 2020, alpha of its notebooks; measured on a sample of D_r, all of it in the paper"
    )

    alpha: float = 1e-6
    samples: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, [("alpha", self.alpha, self.alpha >= 0, "0 or more")])

    def change(self, task: Task) -> UnlearningMeasured:
        retain = task.needed_retain(self.name)
        chosen = retain.subset(retain.shuffled()[: self.samples])
        information = fisher_information(task, chosen)
        last = {id(p) for head in task.linear_heads() for p in head.parameters()}
        gone = task.gone_classes.to(task.device)
        with torch.no_grad():
            parameters = [p for p in task.model.parameters() if p.requires_grad]
            for parameter, fisher in zip(parameters, information, strict=True):
                variance = self.variance(fisher, is_last=id(parameter) in last)
                mean = parameter.detach().clone()
                if id(parameter) in last:
                    mean[gone], variance[gone] = 0, 1e-3
                parameter.copy_(mean + variance.sqrt() * torch.randn(parameter.shape).to(parameter))
        return {"n_retain": len(chosen)}

    def variance(self, fisher: Tensor, is_last: bool) -> Tensor:
        """The variance of the noise of one parameter, in its shape.

        Args:
            fisher: Its Fisher information, of any shape.
            is_last: Whether it is one of the head's.
        """
        variance = (1 / (fisher + 1e-8)).clamp(max=1e2 if is_last else 1e3)
        if variance.ndim > 1:
            variance = variance.mean(dim=1, keepdim=True).expand_as(variance).clone()
        variance = self.alpha * variance
        return variance * 10 if is_last or variance.ndim == 1 else variance
