"""Boundary Shrink and Boundary Expand (BS, BE; Chen et al., CVPR 2023): move the decision boundary across D_f."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_kd.data.samples import Batch
from hf_kd.methods.measured import TrainedMeasured

from .retrain import image_name
from .task import Task, check_range, other_answers
from .training import TrainedMethod


def nearest_labels(task: Task, bound: float, batch_size: int) -> Tensor:
    """For each sample of D_f the class its adversarial neighbour is taken for; never its own, never a forgotten one.

    One step of FGSM on the model as it is: x' = x + bound sign(grad_x CE(f(x), y)) in pixels of [0, 1], clipped to them.
    Where that does not leave the forgotten classes, it is the best class that is left.
    """
    found, kept = [], task.kept_classes
    with task.mode("eval"):
        for batch in task.forget.batches(batch_size):
            batch = batch.to(task.device)
            inputs, labels = batch.inputs, batch.labels
            name = image_name(inputs)
            pixels = inputs[name].detach().requires_grad_()
            loss = F.cross_entropy(task.logits({**inputs, name: pixels}), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, pixels)
            with torch.no_grad():
                scale, lowest, highest = pixel_range(task, pixels)
                moved = pixels + bound * scale * gradient.sign()
                moved = torch.minimum(torch.maximum(moved, lowest), highest)
                logits = task.logits({**inputs, name: moved})
                found.append(other_answers(logits, kept, labels).argmax(dim=1).cpu())
    return torch.cat(found)


def pixel_range(task: Task, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How long a step of 1 in [0, 1] pixels is after normalisation, and what 0 and 1 become: [1, channels, 1, 1] each.

    Where the normalisation is unknown, that of the values at hand: their range stands for [0, 1].
    """
    if task.pixel_mean is None or task.pixel_std is None:
        lowest, highest = pixels.amin(), pixels.amax()
        return highest - lowest, lowest, highest
    mean, std = (value.to(pixels)[None, :, None, None] for value in (task.pixel_mean, task.pixel_std))
    return 1 / std, -mean / std, (1 - mean) / std


@dataclass(frozen=True, kw_only=True)
class BoundaryShrink(TrainedMethod):
    """Teach each image of D_f the class on the other side of its nearest boundary (Chen et al. 2023).

    min CE(f(x), y') over D_f, y' what x' = x + bound sign(grad_x CE) is taken for.

    Attributes:
        bound: Length of the FGSM step, in pixels of [0, 1].
    """

    name: ClassVar[str] = "boundary-shrink"
    when: ClassVar[str] = "D_f is all there is; each image is to be answered as its nearest other class."
    needs: ClassVar[str] = "D_f"
    source: ClassVar[str] = "Chen et al. 2023"

    lr: float = 1e-5
    batch_size: int = 64
    bound: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self.name, [("bound", self.bound, 0 < self.bound <= 1, "above 0 and at most 1")])

    def change(self, task: Task) -> TrainedMeasured:
        nearest = task.forget.relabelled(nearest_labels(task, self.bound, self.batch_size))

        return {"n_forget": len(task.forget), **self.descend(task, nearest, task.cross_entropy)}


@dataclass(frozen=True, kw_only=True)
class BoundaryExpand(TrainedMethod):
    """Teach D_f a shadow class with a row of its own, which is dropped afterwards (Chen et al. 2023).

    min CE(f(x), C) over D_f, with logits [b, C + 1] meanwhile.
    """

    name: ClassVar[str] = "boundary-expand"
    when: ClassVar[str] = "D_f is all there is; images are pushed towards a class that is dropped afterwards."
    needs: ClassVar[str] = "D_f"
    needs_head: ClassVar[bool] = True
    source: ClassVar[str] = "Chen et al. 2023"

    lr: float = 1e-5
    batch_size: int = 64

    def change(self, task: Task) -> TrainedMeasured:
        narrow = task.linear_heads()
        wide = [_widened(head) for head in narrow]
        for name, head in zip(task.heads, wide, strict=True):
            task.model.set_submodule(name, head)
        try:

            def loss(batch: Batch) -> Tensor:
                return F.cross_entropy(task.logits(batch.inputs), torch.full_like(batch.labels, task.num_labels))

            measured = self.descend(task, task.forget, loss)
        finally:
            for name, head in zip(task.heads, narrow, strict=True):
                task.model.set_submodule(name, head)
            with torch.no_grad():
                for head, wider in zip(narrow, wide, strict=True):
                    head.weight.copy_(wider.weight[:-1])
                    if head.bias is not None:
                        head.bias.copy_(wider.bias[:-1])
        return {"n_forget": len(task.forget), **measured}


def _widened(head: nn.Linear) -> nn.Linear:
    wide = nn.Linear(head.in_features, head.out_features + 1, bias=head.bias is not None).to(head.weight)
    with torch.no_grad():
        nn.init.xavier_normal_(wide.weight)
        wide.weight[:-1] = head.weight
        if head.bias is not None:
            wide.bias[:-1] = head.bias
            wide.bias[-1] = 0
    return wide
