"""Mean projection: remove the mean direction of each forget class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hf_kd.methods.measured import ProjectionMeasured

from .base import ForgetData, Head
from .class_means import FittedByClass, complement_of, mean_of, moments_by_class
from .esc import Projection


@dataclass(frozen=True)
class MeanProjection(FittedByClass):
    """Remove the mean direction of each forget class: what ESC at k = 1 all but is, without an SVD.

    h - v v^T h with v = mu_f / ||mu_f||.
    """

    name: ClassVar[str] = "mean-projection"
    source: ClassVar[str] = "a control, no paper's"
    when: ClassVar[str] = "A control for ESC: one direction for each class and no SVD."
    measures: ClassVar[type] = ProjectionMeasured

    def fit(self, forget: ForgetData, labels: Tensor | None = None, head: Head | None = None) -> Projection:
        """The projection that removes the means.

        Args:
            forget: Moments of D_f, by class where classes are known, or features [n, d].
            labels: Classes of the features [n].
            head: Not used.

        Returns:
            The projection; `measured` is a `ProjectionMeasured`.

        Raises:
            InvalidValueError: For a mean of zero, and for an empty class.
        """
        groups = moments_by_class(forget, labels)
        return complement_of([mean_of(moment) for moment in groups.values()], groups)
