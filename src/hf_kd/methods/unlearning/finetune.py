"""Finetune (FT, Warnecke et al. 2021): go on training on D_r and let D_f fade by competition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_kd.methods.measured import TrainedMeasured

from .task import Task
from .training import TrainedMethod


@dataclass(frozen=True, kw_only=True)
class Finetune(TrainedMethod):
    """Go on training on D_r and let D_f fade by competition (Warnecke et al. 2021).

    min CE(f(x), y) over D_r.
    """

    name: ClassVar[str] = "finetune"
    when: ClassVar[str] = "A baseline: what going on with the training does anyway."
    needs: ClassVar[str] = "D_r"
    source: ClassVar[str] = "Warnecke et al. 2021; settings of Unlearn-Sparse (Jia et al. 2023)"

    weight_decay: float = 5e-4

    def change(self, task: Task) -> TrainedMeasured:
        retain = task.needed_retain(self.name)

        return {"n_retain": len(retain), **self.descend(task, retain, task.cross_entropy)}
