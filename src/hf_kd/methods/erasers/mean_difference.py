"""Mean difference: remove the direction from the mean of D_r to that of each forget class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hf_kd.methods.measured import ProjectionMeasured

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
        """The projection that removes the differences of means.

        Args:
            forget: Moments of D_f, by class where classes are known, or features [n, d].
            labels: Classes of the features [n].
            head: Not used.
            retain: Moments of D_r.

        Returns:
            The projection; `measured` is a `ProjectionMeasured`.

        Raises:
            InvalidValueError: Without retained features, for equal means, and for an empty class.
        """
        groups, kept = moments_by_class(forget, labels), given_retain(self, retain).moment
        varies = SecondMoment.union([*groups.values(), kept]).covariance.diagonal().cpu() > 0
        return complement_of([(mean_of(moment) - mean_of(kept)) * varies for moment in groups.values()], groups, kept)
