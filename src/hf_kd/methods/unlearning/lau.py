"""LAU, Layer Attack Unlearning (Kim, Lee, Woo, AAAI 2024): teach the last layer, and it alone, to answer what an attacked
feature would be taken for.

The backbone is not touched, so a probe reads from its features what it read before: with head surgery this is the control
of every measure of retained knowledge.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_kd.methods.measured import TrainedMeasured

from .steps import GradientSteps
from .task import Task, check_range, other_answers, soft_divergence
from .training import TrainedMethod


def attacked(head: nn.Module, features: Tensor, labels: Tensor, bound: float, step: float, steps: int) -> Tensor:
    """Partial PGD: features [n, d] moved up CE(head(z), y) within +-`bound` in every coordinate.

    Non-negative features (behind a ReLU) stay so; others are not clamped.
    """
    floor = 0.0 if bool((features >= 0).all()) else -float("inf")
    moved = features.clone()
    for _ in range(steps):
        moved.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(head(moved), labels, reduction="sum"), moved)
        with torch.no_grad():
            moved = moved + step * gradient.sign()
            moved = torch.minimum(torch.maximum(moved, features - bound), features + bound).clamp(min=floor)
    return moved.detach()


@dataclass(frozen=True, kw_only=True)
class LAU(TrainedMethod):
    """Teach the last layer, and it alone, what attacked features of D_f would be taken for (Kim et al. 2024).

    min (1 - a) CE(s, y_hat) + a T^2 KL(softmax(t / T) || softmax(s / T)) on cached features. Where the student still answers
    y, y_hat and t are what the teacher (the student at the start of the epoch) makes of the attacked feature, without the
    forgotten classes; elsewhere its own answer. The learning rate is constant.

    Attributes:
        distillation: a, the share of the divergence in the loss.
        temperature: T.
        bound: How far an attack may move a feature in each coordinate, in standard deviations of the features.
        step: Length of a step of the attack, in the same unit.
        steps: Steps of the attack.
    """

    name: ClassVar[str] = "lau"
    when: ClassVar[str] = "A control: the last layer alone changes, features keep all they knew."
    needs: ClassVar[str] = "D_f"
    needs_head: ClassVar[bool] = True
    source: ClassVar[str] = (
        "Kim et al. 2024 as far as the paper says, distillation and temperature with it; bound, step, steps, lr, epochs and "
        "batch size are ours"
    )

    epochs: int = 30
    lr: float = 0.01
    batch_size: int = 128
    distillation: float = 0.5
    temperature: float = 4.0
    bound: float = 0.5
    step: float = 0.1
    steps: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(
            self.name,
            [
                ("distillation", self.distillation, 0 <= self.distillation <= 1, "between 0 and 1"),
                *(
                    (
                        name,
                        getattr(self, name),
                        getattr(self, name) == getattr(type(self), name),
                        "not set: lr is constant",
                    )
                    for name in ("schedule", "decay_epochs", "decay", "warmup")
                ),
            ],
        )

    def change(self, task: Task) -> TrainedMeasured:
        labels = task.forget.labels.to(task.device)
        heads = zip(task.linear_heads(), task.head_inputs(task.forget), strict=True)
        *_, last = [self._teach(task, head, features.to(head.weight), labels) for head, features in heads]
        return {"n_forget": len(task.forget), **last}

    def _teach(self, task: Task, head: nn.Linear, features: Tensor, labels: Tensor) -> TrainedMeasured:
        optimizer = self.make_optimizer(head.parameters())
        descent = GradientSteps(task, optimizer, name=self.name)
        scale = float(features.std())
        kept = task.kept_classes
        epochs, left = 0, True
        while left and epochs < self.epochs:
            teacher = copy.deepcopy(head).requires_grad_(False)
            moved = attacked(teacher, features, labels, self.bound * scale, self.step * scale, self.steps)
            with torch.no_grad():
                wanted = other_answers(teacher(moved), kept, labels)
            for rows in torch.randperm(len(labels)).to(task.device).split(self.batch_size):
                answer = head(features[rows])
                known = answer.argmax(dim=1) == labels[rows]
                target = torch.where(known[:, None], wanted[rows], answer.detach())
                hard = F.cross_entropy(answer, target.argmax(dim=1))
                soft = soft_divergence(target, answer, self.temperature)
                descent.step((1 - self.distillation) * hard + self.distillation * soft)
            epochs += 1
            with torch.no_grad():
                left = bool((head(features).argmax(dim=1) == labels).any())
        return {"epochs_run": epochs, **descent.close()}
