"""Head surgery: the forgotten classes' rows of the last layer are zero and their bias so low that they are never answered.

Costs nothing, forgets nothing: a control that every table needs, because it scores perfectly on the head's answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from hf_kd.errors import InvalidValueError

from .base import UnlearningMethod
from .task import Task, check_range

MASKED_LOGIT = -1e4
"""The bias of a class that is never answered: finite in every precision, and its probability is 0."""


@dataclass(frozen=True, kw_only=True)
class HeadSurgery(UnlearningMethod):
    """W_c = 0, b_c = `MASKED_LOGIT` for the classes of D_f."""

    name: ClassVar[str] = "head-surgery"
    when: ClassVar[str] = "A control that costs nothing: the head answers other classes, features keep all they knew."
    needs: ClassVar[str] = "D_f"
    needs_head: ClassVar[bool] = True
    source: ClassVar[str] = "a control, no paper's"

    def change(self, task: Task) -> dict[str, Any]:
        classes = task.forget_classes
        check_range(
            self.name,
            [
                (
                    "forget classes",
                    len(classes),
                    len(classes) < task.num_labels,
                    "fewer than all; it removes whole classes",
                )
            ],
        )
        with torch.no_grad():
            for head in task.linear_heads():
                if head.bias is None:
                    raise InvalidValueError(
                        "head-surgery needs a last layer with a bias, and this one has none; lau trains the layer instead."
                    )
                head.weight[classes.to(head.weight.device)] = 0
                head.bias[classes.to(head.weight.device)] = MASKED_LOGIT
        return {"n_forget": len(task.forget), "classes_removed": len(classes)}
