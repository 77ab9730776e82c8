"""SCRUB (Kurmanji et al. 2023): a student that disobeys its teacher on D_f and obeys it on D_r; SCRUB+R rewinds it.

The teacher is the model as it was. Maximising steps come first in each epoch, so training ends on a minimising one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from hf_kd.data.samples import Batch
from hf_kd.methods.measured import ScrubMeasured

from .steps import GradientSteps
from .task import Task, batch_count, check_range, soft_divergence
from .training import TrainedMethod, settle_norms


@dataclass(frozen=True, kw_only=True)
class Scrub(TrainedMethod):
    """A student that disobeys its teacher on D_f and obeys it on D_r (Kurmanji et al. 2023).

    Epoch e <= max_epochs: max KL_T(teacher || student) on D_f; then min gamma CE + alpha KL_T on D_r. The teacher is the
    model as it was.

    Attributes:
        max_epochs: Epochs with a maximising pass; 2 unless given, or `epochs` where that is less.
        gamma: Weight of the cross entropy on D_r.
        alpha: Weight of the divergence on D_r.
        temperature: T.
        forget_batch_size: Images in each maximising step.
        cap: A batch whose divergence has passed it gives no gradient, since the divergence has no bound.
        rewind: SCRUB+R: go back to the first epoch whose error on D_f is at least that on the part of D_f that was held
            back, as it is at the end. The paper's reference are images that no model has seen; these are held back here.
        rewind_share: Share of D_f that is held back for `rewind`.
    """

    name: ClassVar[str] = "scrub"
    when: ClassVar[str] = "The default of `hf_kd.unlearn`: a strong baseline that reads both sets."
    measures: ClassVar[type] = ScrubMeasured
    needs: ClassVar[str] = "D_f and D_r"
    source: ClassVar[str] = (
        "Kurmanji et al. 2023, CIFAR-10 class forgetting (large scale), whose decays come after these 3 epochs; cap and "
        "rewind_share are ours"
    )

    epochs: int = 3
    lr: float = 5e-4
    weight_decay: float = 5e-4
    decay_epochs: tuple[int, ...] = (4, 6, 10)
    max_epochs: int | None = None
    gamma: float = 0.99
    alpha: float = 0.001
    temperature: float = 4.0
    forget_batch_size: int = 512
    cap: float = 100.0
    rewind: bool = False
    rewind_share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        forget_epochs = min(2, self.epochs) if self.max_epochs is None else self.max_epochs
        object.__setattr__(self, "max_epochs", forget_epochs)
        check_range(
            self.name,
            [
                ("max_epochs", forget_epochs, 0 <= forget_epochs <= self.epochs, "at least 0 and at most epochs"),
                ("rewind_share", self.rewind_share, 0 < self.rewind_share < 1, "between 0 and 1"),
            ],
        )

    def change(self, task: Task) -> ScrubMeasured:
        retain, forget, held = task.needed_retain(self.name), task.forget, None
        if self.rewind:
            check_range(self.name, [("forget samples", len(forget), len(forget) > 1, "2 or more to hold one back")])
            order = forget.shuffled()
            count = min(max(1, round(self.rewind_share * len(forget))), len(forget) - 1)
            held, forget = forget.subset(order[:count]), forget.subset(order[count:])
        forget_epochs = cast(int, self.max_epochs)  # __post_init__ put a number there
        teacher = task.frozen_copy()
        optimizer = self.make_optimizer(task.model.parameters())
        forgetting, retaining = (forget, self.forget_batch_size, self._away), (retain, self.batch_size, self._back)
        passes = [[forgetting, retaining] if epoch < forget_epochs else [retaining] for epoch in range(self.epochs)]
        steps = [sum(batch_count(samples, size) for samples, size, _ in each) for each in passes]
        descent = GradientSteps(task, optimizer, steps=sum(steps), name=self.name)
        checkpoints = []
        for epoch, each in enumerate(passes):
            done = 0
            with task.mode(self.bn_mode):
                for samples, size, loss in each:
                    for batch in task.batches(samples, size, shuffle=True):
                        for group in optimizer.param_groups:
                            group["lr"] = self.lr * self.lr_factor(epoch + done / steps[epoch])
                        descent.step(loss(task, teacher, batch))
                        done += 1
                settle_norms(task, retain, self.batch_size)
            if self.rewind:
                state = {name: tensor.detach().cpu().clone() for name, tensor in task.model.state_dict().items()}
                checkpoints.append((state, 100.0 - task.accuracy(forget)))
        measured: ScrubMeasured = {
            "n_forget": len(task.forget),
            "n_retain": len(retain),
            "epochs_run": self.epochs,
            **descent.close(),
        }
        if held is not None:
            reference = 100.0 - task.accuracy(held)
            chosen = next((i for i, (_, error) in enumerate(checkpoints) if error >= reference), len(checkpoints) - 1)
            task.model.load_state_dict(checkpoints[chosen][0])
            measured["rewound_to_epoch"] = chosen + 1
            measured["held_out_error"] = reference
        return measured

    def _away(self, task: Task, teacher: nn.Module, batch: Batch) -> Tensor:
        return -self._divergence(task, teacher, batch).clamp(max=self.cap)

    def _back(self, task: Task, teacher: nn.Module, batch: Batch) -> Tensor:
        kept = task.cross_entropy(batch)
        return self.gamma * kept + self.alpha * self._divergence(task, teacher, batch)

    def _divergence(self, task: Task, teacher: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            wanted = task.logits(batch.inputs, teacher)
        return soft_divergence(wanted, task.logits(batch.inputs), self.temperature)
