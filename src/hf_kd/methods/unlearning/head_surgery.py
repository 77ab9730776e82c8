"""Head surgery: the forgotten classes' rows of the last layer are zero and their bias so low that they are never answered.

Costs nothing, forgets nothing: a control that every table needs, because it scores perfectly on the head's answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_kd.data.masked_classes import silence_rows
from hf_kd.errors import InvalidValueError
from hf_kd.methods.measured import HeadSurgeryMeasured

from .base import UnlearningMethod
from .task import Task, check_range


@dataclass(frozen=True, kw_only=True)
class HeadSurgery(UnlearningMethod):
    """Write into the last layer that the classes of D_f are never answered.

    W_c = 0, b_c = -1e4. Costs nothing, forgets nothing: features keep all they knew.
    """

    name: ClassVar[str] = "head-surgery"
    when: ClassVar[str] = "A control that costs nothing: the head answers other classes, features keep all they knew."
    measures: ClassVar[type] = HeadSurgeryMeasured
    needs: ClassVar[str] = "D_f"
    needs_head: ClassVar[bool] = True
    source: ClassVar[str] = "a control, no paper's"

    def change(self, task: Task) -> HeadSurgeryMeasured:
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
        for head in task.linear_heads():
            if head.bias is None:
                raise InvalidValueError(
                    "head-surgery needs a last layer with a bias, and this one has none; lau trains the layer instead."
                )
            silence_rows(head, classes)
        return {"n_forget": len(task.forget), "classes_removed": len(classes)}
