"""Spotter (arXiv 2506.01318, ICML 2026): forget D_f and what lies close to it, from D_f alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_kd.data.samples import Batch
from hf_kd.methods.measured import TrainedMeasured

from .boundary import pixel_range
from .retrain import image_name
from .task import Task, check_range, other_answers, soft_divergence
from .training import TrainedMethod


@dataclass(frozen=True, kw_only=True)
class Spotter(TrainedMethod):
    """Answer D_f and its adversarial neighbours as the masked original does, and spread D_f's features (Spotter).

    min (1 - w) KL(t(x) || f(x)) + w KL(t(x') || f(x')) + d mean cos(z_i, z_j), i != j, on D_f; t is the original with the
    classes of D_f masked, x' a neighbour that PGD finds on the original, z the features before the head.

    Attributes:
        neighbours: w, the share of the neighbours in the loss.
        dispersion: d, the weight of the features' mean cosine.
        bound: How far PGD may move a pixel of [0, 1].
        step: Length of a step of PGD.
        steps: Steps of PGD to each neighbour.
    """

    name: ClassVar[str] = "spotter"
    when: ClassVar[str] = "A baseline that reads the forget set alone and also thinks of images close to it."
    needs: ClassVar[str] = "D_f"
    needs_head: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv 2506.01318, settings of its authors; the weight of the dispersion is ours"

    epochs: int = 10
    lr: float = 1e-4
    batch_size: int = 128
    weight_decay: float = 5e-4
    neighbours: float = 0.3
    dispersion: float = 1.0
    bound: float = 0.03
    step: float = 0.01
    steps: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(
            self.name,
            [
                ("neighbours", self.neighbours, 0 <= self.neighbours <= 1, "between 0 and 1"),
                ("dispersion", self.dispersion, self.dispersion >= 0, "0 or more"),
                ("bound", self.bound, self.bound > 0, "positive"),
                ("step", self.step, self.step > 0, "positive"),
            ],
        )

    def change(self, task: Task) -> TrainedMeasured:
        teacher, kept = task.frozen_copy(), task.kept_classes

        def loss(batch: Batch) -> Tensor:
            near = self._moved(task, teacher, batch)
            with torch.no_grad():
                wanted, wanted_near = (
                    other_answers(task.logits(x, teacher), kept, batch.labels) for x in (batch.inputs, near)
                )
            logits, features = task.logits_and_features(batch.inputs)
            close = soft_divergence(wanted_near, task.logits(near))
            answers = (1 - self.neighbours) * soft_divergence(wanted, logits) + self.neighbours * close
            return answers + self.dispersion * mean_cosine(features)

        return {"n_forget": len(task.forget), **self.descend(task, task.forget, loss)}

    def _moved(self, task: Task, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The images where PGD on the cross entropy of a model leads."""
        name = image_name(batch.inputs)
        start = batch.inputs[name]
        scale, lowest, highest = pixel_range(task, start)
        moved = start
        for _ in range(self.steps):
            pixels = moved.detach().requires_grad_()
            loss = F.cross_entropy(task.logits({**batch.inputs, name: pixels}, model), batch.labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, pixels)
            moved = pixels.detach() + self.step * scale * gradient.sign()
            moved = start + (moved - start).clamp(-self.bound * scale, self.bound * scale)
            moved = torch.minimum(torch.maximum(moved, lowest), highest)
        return {**batch.inputs, name: moved.detach()}


def mean_cosine(features: Tensor) -> Tensor:
    """Mean cosine of all pairs of different rows of features [n, d]; 0 for a single row."""
    n = len(features)
    if n < 2:
        return features.sum() * 0
    unit = F.normalize(features, dim=1)
    return (unit.sum(dim=0).square().sum() - n) / (n * (n - 1))
