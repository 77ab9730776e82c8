"""Mean difference: remove the direction from the mean of D_r to that of each forget class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..measured import ProjectionMeasured
from .base import ForgetData, Head
from .class_means import FittedByClass, complement_of, given_retain, mean_of, moments_by_class
from .esc import Projection
from .moments import RetainMoments, SecondMoment


@dataclass(frozen=True)
class MeanDifference(FittedByClass):
    """Remove the direction from the mean of retained features to that of each forget class.

    h - v v^T h with v = (mu_f - mu_r) / ||mu_f - mu_r||.
    """

    name: ClassVar[str] = "mean-difference"
    source: ClassVar[str] = "a control: the difference of means, as in linear guarding"
    when: ClassVar[str] = "A control that reads retained images: one direction for each class."
    measures: ClassVar[type] = ProjectionMeasured
    needs_retain: ClassVar[bool] = True

    def fit(
        self,
        forget: ForgetData,
        labels: Tensor | None = None,
        head: Head | None = None,
        retain: RetainMoments | None = None,
    ) -> Projection:
        """The projection for moments (by class) or features [n, d]. Raises ValueError without retained features."""
        groups, kept = moments_by_class(forget, labels), given_retain(self, retain).moment
        varies = SecondMoment.union([*groups.values(), kept]).covariance.diagonal().cpu() > 0
        return complement_of([(mean_of(moment) - mean_of(kept)) * varies for moment in groups.values()], groups, kept)
