"""COLA, collapse and align (arXiv 2405.17878, AAAI 2026), by its description: its loss could not be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_kd.data.samples import Batch
from hf_kd.methods.measured import TrainedMeasured

from .task import Task
from .training import TrainedMethod


@dataclass(frozen=True, kw_only=True)
class Cola(TrainedMethod):
    """Collapse the features of D_f into those of retained classes, then train on D_r (COLA, by its description).

    First min 1 - cos(z(x), m_k) over D_f, where m_k is the mean feature of the retained class that is nearest to x in the
    model as it was; then min CE(D_r). By its description; the loss of the paper could not be read.

    Attributes:
        epochs: Passes over D_r, to align.
        collapse_epochs: Passes over D_f before.
    """

    name: ClassVar[str] = "cola"
    when: ClassVar[str] = "A baseline that aims at the features and not at the answers."
    needs: ClassVar[str] = "D_f and D_r"
    needs_head: ClassVar[bool] = True
    source: ClassVar[str] = "arXiv 2405.17878, by its description, loss not readable; settings are ours"

    epochs: int = 4
    lr: float = 0.01
    batch_size: int = 128
    weight_decay: float = 5e-4
    schedule: Literal["steps", "cosine"] = "cosine"
    collapse_epochs: int = 2

    def change(self, task: Task) -> TrainedMeasured:
        retain = task.needed_retain(self.name)
        features = task.head_inputs(retain)[0]
        labels = retain.labels.to(task.device)
        means = torch.stack([features[labels == c].mean(dim=0) for c in labels.unique()])
        goals = F.normalize(means, dim=1)
        own = F.normalize(task.head_inputs(task.forget)[0], dim=1)
        likeness = own @ goals.T
        # where D_r holds classes of D_f too, none goes to its own
        likeness[task.forget.labels.to(task.device)[:, None] == labels.unique()] = -2
        towards = task.forget.relabelled(likeness.argmax(dim=1))

        def collapse(batch: Batch) -> Tensor:
            _, found = task.logits_and_features(batch.inputs)
            return (1 - F.cosine_similarity(found, goals[batch.labels], dim=1)).mean()

        first = self.in_phase(epochs=self.collapse_epochs).descend(task, towards, collapse)
        second = self.descend(task, retain, task.cross_entropy)
        return {
            "n_forget": len(task.forget),
            "n_retain": len(retain),
            "epochs_run": first["epochs_run"] + second["epochs_run"],
            "steps": first["steps"] + second["steps"],
            "last_loss": second["last_loss"],
        }
