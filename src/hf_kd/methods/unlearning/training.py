"""What methods that train by epochs share: the optimizer, the schedule and the loop."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from hf_kd.data.modes import mean_statistics
from hf_kd.data.samples import Batch, Samples
from hf_kd.methods.measured import TrainedMeasured

from .base import UnlearningMethod
from .resume import KeptTraining
from .steps import GradientSteps
from .task import NORMS, Task, batch_count, check_range

SETTLE = 100
"""Batches that statistics of norms are taken over."""

USUAL_MOMENTUM = 0.1
"""Of running statistics, torch's own: the mean over the last twenty batches or so."""


@dataclass(frozen=True, kw_only=True)
class TrainedMethod(UnlearningMethod):
    """Epochs of gradient descent.

    A method that trains in several phases has the schedule in each of them, counted from the phase's own start.

    Attributes:
        epochs: Passes over the data.
        lr: Learning rate at its highest.
        batch_size: Images in each step, of all processes together.
        optimizer: "sgd" (with `momentum`), "adam" or "adamw".
        momentum: Of SGD.
        weight_decay: Of the optimizer.
        schedule: "steps" multiplies lr by `decay` at the start of each of `decay_epochs`; "cosine" takes it to 0 over all
            steps.
        decay_epochs: For "steps": epochs, counted from 1; those of a method that lie beyond `epochs` have no part.
        decay: For "steps": the factor.
        warmup: Epochs, also a fraction, in which lr rises from 0 to `lr`.
    """

    measures: ClassVar[type] = TrainedMeasured

    epochs: int = 10
    lr: float = 0.01
    batch_size: int = 256
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["steps", "cosine"] = "steps"
    decay_epochs: tuple[int, ...] = ()
    decay: float = 0.1
    warmup: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        given = (
            self.decay_epochs != type(self).decay_epochs
        )  # a method's own may lie beyond the epochs that were asked for
        check_range(
            self.name,
            [
                (
                    "decay_epochs",
                    self.decay_epochs,
                    not given or all(1 <= at <= self.epochs for at in self.decay_epochs),
                    f"within its {self.epochs} epochs",
                ),
                ("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more"),
                ("momentum", self.momentum, 0 <= self.momentum < 1, "at least 0 and below 1"),
                ("warmup", self.warmup, self.warmup >= 0, "0 epochs or more"),
            ],
        )

    def in_phase(self, **settings: Any) -> TrainedMethod:
        """The method with other settings for one of its phases.

        Args:
            **settings: Those that differ. They are not checked against each other: decays may lie beyond a shorter phase.
        """
        phase = copy.copy(self)
        for name, value in settings.items():
            object.__setattr__(phase, name, value)
        return phase

    def make_optimizer(self, parameters: Iterable[nn.Parameter] | list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimizer of the settings.

        Args:
            parameters: Those it steps, or groups of them as torch takes them.
        """
        given = cast("list[nn.Parameter]", list(parameters))  # or groups: torch takes either, not a union of them
        if self.optimizer == "sgd":
            return torch.optim.SGD(given, self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(given, self.lr, weight_decay=self.weight_decay)

    def lr_factor(self, epoch: float) -> float:
        """What lr is multiplied by.

        Args:
            epoch: How many epochs after the start, in fractions.
        """
        if epoch < self.warmup:
            return max(epoch, 1e-3) / self.warmup
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (epoch - self.warmup) / max(self.epochs - self.warmup, 1e-9)))
        return self.decay ** sum(epoch + 1 >= at for at in self.decay_epochs)

    def descend(
        self,
        task: Task,
        samples: Samples,
        loss: Callable[[Batch], Tensor],
        optimizer: torch.optim.Optimizer | None = None,
        *,
        clip_norm: float | None = None,
        change_gradients: Callable[[], None] | None = None,
        after_step: Callable[[], None] | None = None,
        after_epoch: Callable[[int], bool] | None = None,
        draws: Sequence[torch.Generator] = (),
    ) -> TrainedMeasured:
        """Epochs over `samples`, shuffled. With `Task.checkpoint` each is kept, and the same call goes on from the last.

        Args:
            task: The model and how its data is read.
            samples: What is trained on.
            loss: Of a batch, the mean over its samples.
            optimizer: By default that of the settings, over all parameters.
            clip_norm: Bound of the norm of the whole gradient.
            change_gradients: Called before each step, when gradients are those of all processes.
            after_step: Called after each step.
            after_epoch: Called with the number of the epoch, from 1; True ends the training.
            draws: Generators that `loss` draws from, whose states are kept too.

        Raises:
            DivergedError: When the loss is no longer finite, with the last good weights in place.
        """
        optimizer = self.make_optimizer(task.model.parameters()) if optimizer is None else optimizer
        per_epoch = batch_count(samples, self.batch_size)
        kept = KeptTraining(task, optimizer, self.settings(), samples, draws)
        done = kept.resume()
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        schedule = LambdaLR(
            optimizer,
            lambda step: self.lr_factor(step // per_epoch + step % per_epoch / per_epoch),
            last_epoch=done * per_epoch - 1,
        )
        steps = self.epochs * per_epoch
        descent = GradientSteps(
            task, optimizer, clip_norm=clip_norm, steps=steps, name=self.name, done=done * per_epoch
        )
        descent.steps, descent.last_loss = kept.steps, kept.last_loss
        for epoch in range(done, self.epochs):
            with task.mode(self.bn_mode):
                for batch in task.batches(samples, self.batch_size, shuffle=True):
                    descent.step(loss(batch), change_gradients)
                    schedule.step()
                    if after_step is not None:
                        after_step()
                settle_norms(task, samples, self.batch_size)
            while (
                schedule.last_epoch < (epoch + 1) * per_epoch
            ):  # a batch with fewer samples than processes was left out
                schedule.step()
            done = epoch + 1
            descent.agree()  # one network is kept, and every process goes on from it
            kept.keep(done, descent.steps, descent.last_loss)
            if after_epoch is not None and after_epoch(done):
                break
        return {"epochs_run": done, **descent.close()}


def settle_norms(task: Task, samples: Samples, batch_size: int) -> None:
    """Take the statistics of norms in train mode anew, as the mean over batches, where the last few alone made them.

    MobileNets and EfficientNets come with a momentum of .99 and more: their answers would be those to the last batch. With
    torch's own momentum statistics stay as the training left them.

    Args:
        task: Its model is in the mode in which it was trained.
        samples: Those it was trained on.
        batch_size: Of all processes together.
    """
    norms = [
        module
        for module in task.model.modules()
        if isinstance(module, NORMS) and module.training and (module.momentum or 0) > USUAL_MOMENTUM
    ]
    if norms:
        batches = itertools.islice(task.batches(samples, batch_size, shuffle=True), SETTLE)
        mean_statistics(task.model, norms, (task.logits(batch.inputs) for batch in batches))


def one_cycle(share: float, rise: float = 0.2, falls: bool = True) -> float:
    """What the highest learning rate is multiplied by after a `share` of all steps: up from 1/25, then down to almost 0.

    Along a cosine each way, as in `torch.optim.lr_scheduler.OneCycleLR`, whose state would have to be stored.
    """
    if share < rise:
        return 0.04 + 0.96 * 0.5 * (1 - math.cos(math.pi * share / rise))
    return 0.5 * (1 + math.cos(math.pi * (share - rise) / (1 - rise))) if falls else 1.0
