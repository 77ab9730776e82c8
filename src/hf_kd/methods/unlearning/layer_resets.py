"""Resets of whole layers at random, and the old logits again (Ahn et al., NeurIPS 2023 competition on unlearning)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_kd.data.samples import Batch
from hf_kd.methods.measured import LastLayersMeasured

from .cut import take_over
from .task import Task, is_layer
from .training import TrainedMethod

SHORTCUTS = ("shortcut", "downsample")
"""In the name of a layer that is on a shortcut, which resetting did not help."""


@dataclass(frozen=True, kw_only=True)
class LayerResets(TrainedMethod):
    """Draw a few whole layers anew, learn the old logits on D_r again, and do so a few times (Ahn et al. 2023).

    min MSE(f(x), f_0(x)) on D_r in each cycle. Neither heads nor layers on shortcuts are drawn anew.

    Attributes:
        epochs: Of each cycle.
        layers: How many layers are drawn anew in each cycle.
        cycles: How often.
    """

    name: ClassVar[str] = "layer-resets"
    when: ClassVar[str] = "A baseline: layers at random are started anew, wherever the class is known."
    measures: ClassVar[type] = LastLayersMeasured
    needs: ClassVar[str] = "D_r"
    source: ClassVar[str] = (
        "Ahn et al., NeurIPS 2023 competition, from its description; learning rate and epochs are ours"
    )

    bn_mode: Literal["eval", "freeze", "train"] = "train"
    epochs: int = 1
    lr: float = 0.01
    batch_size: int = 128
    schedule: Literal["steps", "cosine"] = "cosine"
    layers: int = 6
    cycles: int = 3

    def change(self, task: Task) -> LastLayersMeasured:
        retain = task.needed_retain(self.name)
        teacher, fresh = task.frozen_copy(), self.fresh_model(task, beside_kept=True)
        names = [
            name
            for name, module in task.model.named_modules()
            if is_layer(module) and name not in task.heads and not any(word in name for word in SHORTCUTS)
        ]

        def loss(batch: Batch) -> Tensor:
            with torch.no_grad():
                wanted = task.logits(batch.inputs, teacher)
            return F.mse_loss(task.logits(batch.inputs), wanted)

        reset: dict[str, None] = {}
        steps, last_loss = 0, 0.0
        for _ in range(self.cycles):
            chosen = [names[i] for i in torch.randperm(len(names))[: self.layers].tolist()]
            reset |= dict.fromkeys(chosen)
            state = task.model.state_dict()
            take_over(task.model, fresh, [name for name in state if name.rpartition(".")[0] in set(chosen)])
            done = self.descend(task, retain, loss)
            steps, last_loss = steps + done["steps"], done["last_loss"]
        return {
            "n_retain": len(retain),
            "layers": [name for name in names if name in reset],
            "epochs_run": self.cycles * self.epochs,
            "steps": steps,
            "last_loss": last_loss,
        }
