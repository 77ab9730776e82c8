"""UNSIR (Tarun et al. 2023): impair with noise that the model is most wrong about, repair with retained images.

Needs no image of D_f, only its classes. The noise is trained in whole batches (the public code uses three images of each).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.samples import Batch
from .base import register
from .retrain import image_name
from .task import Descent, Task, batch_count, check_range
from .training import TrainedMethod


@register
@dataclass(frozen=True, kw_only=True)
class Unsir(TrainedMethod):
    """Noise: min -CE(f(N), c) + 0.1 mean ||N||^2. Impair: CE on noise labelled c and D_r. Repair: CE on D_r.

    epochs: of impairing. lr, repair_lr: of Adam while impairing and repairing. noise_images: trained for each class.
    noise_share: of the images of an impairing batch. per_class: how many retained images of each class are used.
    """

    name: ClassVar[str] = "unsir"
    needs: ClassVar[str] = "D_r"
    source: ClassVar[str] = "Tarun et al. 2023; lr of pre-trained networks"

    epochs: int = 1
    lr: float = 1e-4
    batch_size: int = 128
    optimizer: str = "adam"
    repair_epochs: int = 1
    repair_lr: float = 1e-4
    noise_images: int = 128
    noise_steps: int = 40
    noise_lr: float = 0.1
    noise_share: float = 0.2
    per_class: int = 1000

    def __post_init__(self):
        super().__post_init__()
        check_range(self.name, [("noise_share", self.noise_share, 0 < self.noise_share < 1, "between 0 and 1")])

    def change(self, task: Task) -> dict[str, Any]:
        retain = task.needed_retain(self.name)
        chosen = [rows[torch.randperm(len(rows))[: self.per_class]] for rows in _by_class(retain.labels)]
        retain = retain.subset(torch.cat(chosen))
        noise, classes = self._noise(task, retain)
        optimizer = self.make_optimizer(task.model.parameters())
        descent = Descent(
            task,
            optimizer,
            steps=(self.epochs + self.repair_epochs) * batch_count(retain, self.batch_size),
            name=self.name,
        )
        for epoch in range(self.epochs + self.repair_epochs):
            impair = epoch < self.epochs
            for group in optimizer.param_groups:
                group["lr"] = self.lr if impair else self.repair_lr
            with task.mode(self.bn_mode):
                for batch in task.batches(retain, self.batch_size, shuffle=True):
                    batch = self._with_noise(batch, noise, classes) if impair else batch
                    descent.step(F.cross_entropy(task.logits(batch.inputs), batch.labels))
        return {"n_retain": len(retain), "noise_images": len(noise), **descent.close()}

    def _noise(self, task: Task, retain) -> tuple[Tensor, Tensor]:
        """Images [m, channels, height, width] that the model is as wrong as can be about, and the class of each."""
        shape = next(retain.batches(1)).inputs
        name = image_name(shape)
        found = []
        for label in task.forget_classes.tolist():
            noise = torch.randn(self.noise_images, *shape[name].shape[1:]).to(task.device).requires_grad_()
            labels = torch.full((self.noise_images,), label, device=task.device)
            optimizer = torch.optim.Adam([noise], lr=self.noise_lr)
            with task.mode("eval"):
                for _ in range(self.noise_steps):
                    loss = -F.cross_entropy(task.logits({name: noise}), labels)
                    loss = loss + 0.1 * noise.flatten(1).square().sum(dim=1).mean()
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            found.append((noise.detach(), labels))
        for parameter in task.model.parameters():
            parameter.grad = None
        return torch.cat([n for n, _ in found]), torch.cat([c for _, c in found])

    def _with_noise(self, batch: Batch, noise: Tensor, classes: Tensor) -> Batch:
        name = image_name(batch.inputs)
        count = max(1, round(self.noise_share / (1 - self.noise_share) * len(batch)))
        rows = torch.randint(len(noise), (count,)).to(noise.device)
        return Batch(
            {name: torch.cat([batch.inputs[name], noise[rows]])}, torch.cat([batch.labels, classes[rows]])
        )  # fmt: skip


def _by_class(labels: Tensor) -> list[Tensor]:
    return [torch.nonzero(labels == label).flatten() for label in labels.unique()]
