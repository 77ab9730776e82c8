"""UNSIR (Tarun et al. 2023): impair with noise that the model is most wrong about, repair with retained images.

Needs no image of D_f, only its classes. All images of the noise are used, each under its own class (the public code takes
three of each batch, all under class 0).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_kd.data.samples import Samples
from hf_kd.methods.measured import UnsirMeasured

from .random_label import union
from .retrain import image_name
from .task import Task, check_range
from .training import TrainedMethod


@dataclass(frozen=True, kw_only=True)
class Unsir(TrainedMethod):
    """Impair with noise that the model is most wrong about, repair with retained images (Tarun et al. 2023).

    Noise: min -CE(f(N), c) + 0.1 mean ||N||^2. Impair: CE on noise labelled c and D_r. Repair: CE on D_r.

    Attributes:
        epochs: Passes of impairing.
        lr: Learning rate of impairing.
        repair_epochs: Passes of repairing.
        repair_lr: Learning rate of repairing.
        noise_images: Noise images trained for each class of D_f.
        noise_steps: Steps each is trained for.
        noise_lr: Learning rate of the noise.
        noise_repeats: How often each is shown in an epoch.
        per_class: Retained images of each class that are used.
    """

    name: ClassVar[str] = "unsir"
    when: ClassVar[str] = "No image of D_f may be read any more, only its classes are known."
    measures: ClassVar[type] = UnsirMeasured
    needs: ClassVar[str] = "D_r"
    source: ClassVar[str] = (
        "Tarun et al. 2023; lr of pre-trained networks; batch_size and noise_images are ours (256 there)"
    )

    epochs: int = 1
    lr: float = 1e-4
    batch_size: int = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    repair_epochs: int = 1
    repair_lr: float = 1e-4
    noise_images: int = 128
    noise_steps: int = 40
    noise_lr: float = 0.1
    noise_repeats: int = 20
    per_class: int = 1000

    def change(self, task: Task) -> UnsirMeasured:
        retain = task.needed_retain(self.name)
        count = len(task.forget_classes)
        rule = "fewer than all: UNSIR forgets whole classes. Choose a method that reads D_f, such as scrub or ssd"
        check_range(self.name, [("forget classes", count, count < task.num_labels, rule)])
        chosen = [rows[torch.randperm(len(rows))[: self.per_class]] for rows in _by_class(retain.labels)]
        retain = retain.subset(torch.cat(chosen))
        noise = self._noise(task, retain)
        shown = noise.subset(torch.arange(len(noise)).repeat(self.noise_repeats))

        impaired = self.descend(task, union(shown, retain), task.cross_entropy)
        repair = self.in_phase(epochs=self.repair_epochs, lr=self.repair_lr)
        repaired = repair.descend(task, retain, task.cross_entropy)
        return {
            "n_retain": len(retain),
            "noise_images": len(noise),
            "epochs_run": impaired["epochs_run"] + repaired["epochs_run"],
            "steps": impaired["steps"] + repaired["steps"],
            "last_loss": repaired["last_loss"],
        }

    def _noise(self, task: Task, retain: Samples) -> Samples:
        """Images that the model is as wrong as can be about, `noise_images` labelled with each class of D_f."""
        inputs = next(retain.batches(1)).inputs
        name = image_name(inputs)
        found = []
        with task.mode("eval"):
            for label in task.forget_classes.tolist():
                noise = torch.randn(self.noise_images, *inputs[name].shape[1:]).to(task.device).requires_grad_()
                labels = torch.full((self.noise_images,), label, device=task.device)
                optimizer = torch.optim.Adam([noise], lr=self.noise_lr)
                for _ in range(self.noise_steps):
                    wrong = F.cross_entropy(task.logits({name: noise}), labels)
                    optimizer.zero_grad()
                    (0.1 * noise.flatten(1).square().sum(dim=1).mean() - wrong).backward(inputs=[noise])
                    optimizer.step()
                found.append(noise.detach().cpu())
        labels = task.forget_classes.repeat_interleave(self.noise_images)
        return Samples(labels, {name: torch.cat(found)})


def _by_class(labels: Tensor) -> list[Tensor]:
    return [torch.nonzero(labels == label).flatten() for label in labels.unique()]
