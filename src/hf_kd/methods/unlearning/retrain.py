"""Retrain: the same recipe on D_r alone, from scratch. What every other method is measured against.

The defaults are the recipe that fits the paper's ResNet-18 on CIFAR-10 (Table 5). Where the original was fine-tuned from a
pre-trained checkpoint, so is this (`init`), and then the network has seen more than D_r.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_kd.data.samples import Batch
from hf_kd.errors import InvalidValueError
from hf_kd.methods.measured import TrainedMeasured

from .task import Task
from .training import TrainedMethod


@dataclass(frozen=True, kw_only=True)
class Retrain(TrainedMethod):
    """Train from fresh weights on D_r alone: what every other method is measured against.

    min CE(f(x), y) over D_r.

    Attributes:
        init: A checkpoint (folder or Hub id) to start from instead of fresh weights.
        augment: "none", "flip" (half of the images mirrored) or "flip-crop" (and shifted by up to an eighth of their size).
        head_lr: lr of the last layer; None: the same as of the others.
    """

    name: ClassVar[str] = "retrain"
    when: ClassVar[str] = "The reference: what a model that has never seen D_f knows. Costs a whole training."
    needs: ClassVar[str] = "D_r"
    resumes: ClassVar[bool] = True
    source: ClassVar[str] = "ESC, section 4; recipe of SalUn (Fan et al. 2024) for originals, ResNet-18 on CIFAR-10"

    epochs: int = 182
    lr: float = 0.1
    weight_decay: float = 5e-4
    decay_epochs: tuple[int, ...] = (92, 137)
    bn_mode: Literal["eval", "freeze", "train"] = "train"
    init: str | None = None
    augment: Literal["none", "flip", "flip-crop"] = "flip-crop"
    head_lr: float | None = None

    def change(self, task: Task) -> TrainedMeasured:
        retain = task.needed_retain(self.name)
        task.model.load_state_dict(self.fresh_model(task, self.init).state_dict())
        draws = own_draws(task)

        def loss(batch: Batch) -> Tensor:
            return F.cross_entropy(task.logits(augmented(batch.inputs, self.augment, draws)), batch.labels)

        return {"n_retain": len(retain), **self.descend(task, retain, loss, self._optimizer(task), draws=[draws])}

    def _optimizer(self, task: Task) -> torch.optim.Optimizer:
        if self.head_lr is None:
            return self.make_optimizer(task.model.parameters())
        head = {id(p) for module in task.linear_heads() for p in module.parameters()}
        parameters = list(task.model.parameters())
        return self.make_optimizer(
            [
                {"params": [p for p in parameters if id(p) not in head]},
                {"params": [p for p in parameters if id(p) in head], "lr": self.head_lr},
            ]
        )


def own_draws(task: Task) -> torch.Generator:
    """What each process draws its changes of images from.

    All share the generator that decides about orders, and their batches may differ in size: none may draw from that one for
    a batch of its own.
    """
    return torch.Generator().manual_seed(int(torch.randint(2**62, ())) + task.state.process_index)


def augmented(inputs: dict[str, Tensor], how: str, draws: torch.Generator) -> dict[str, Tensor]:
    """Images of a batch [b, channels, height, width] mirrored with probability 1/2, and shifted with edges repeated."""
    if how == "none":
        return inputs
    name = image_name(inputs)
    pixels = inputs[name]
    mirrored = torch.rand(len(pixels), generator=draws) < 0.5
    pixels = torch.where(mirrored.to(pixels.device)[:, None, None, None], pixels.flip(-1), pixels)
    if how == "flip-crop":
        height, width = pixels.shape[-2:]
        reach = max(1, height // 8), max(1, width // 8)
        padded = F.pad(pixels, (reach[1], reach[1], reach[0], reach[0]), mode="replicate")
        top, left = (
            torch.randint(0, 2 * side + 1, (len(pixels),), generator=draws).to(pixels.device) for side in reach
        )  # fmt: skip
        rows = top[:, None] + torch.arange(height, device=pixels.device)
        columns = left[:, None] + torch.arange(width, device=pixels.device)
        samples = torch.arange(len(pixels), device=pixels.device)[:, None, None]
        pixels = padded[samples, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return {**inputs, name: pixels}


def image_name(inputs: dict[str, Tensor]) -> str:
    """Under which name the images [b, channels, height, width] are.

    Raises:
        InvalidValueError: Where there are none.
    """
    for name, value in inputs.items():
        if value.ndim == 4 and value.is_floating_point():
            return name
    raise InvalidValueError(
        f"This method changes pixels, and the inputs {', '.join(inputs)} hold no images [b, channels, height, width]. "
        "Choose another method, or augment='none'."
    )
