"""What methods fitted from class means share: moments by class, their means, and the projection that removes some."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError
from hf_kd.methods.measured import ProjectionMeasured
from hf_kd.methods.registry import missing_retain

from .base import ForgetData, Method
from .esc import Projection, energy_share, orthonormal_union
from .moments import RetainMoments, SecondMoment


@dataclass(frozen=True)
class FittedByClass(Method):
    """Fitted from the moments of each forget class."""

    @property
    def by_class(self) -> bool:
        """Always."""
        return True


def moments_by_class(forget: ForgetData, labels: Tensor | None) -> dict[int, SecondMoment]:
    """The moments of each forget class; of all samples as one where their classes are unknown."""
    if isinstance(forget, Mapping):
        return {label: forget[label] for label in sorted(forget)}
    if isinstance(forget, SecondMoment):
        return {-1: forget}
    if labels is None:
        return {-1: SecondMoment.of(forget)}
    return {int(label): SecondMoment.of(forget[labels == label]) for label in labels.unique()}


def mean_of(moment: SecondMoment) -> Tensor:
    """The mean [d] of a class, float64 on the CPU. Raises InvalidValueError where it is empty."""
    if moment.count == 0:
        raise InvalidValueError("No features were added: a class of the forget set is empty.")
    return moment.mean.cpu()


def complement_of(columns: list[Tensor], groups: Mapping[int, SecondMoment], *kept: SecondMoment) -> Projection:
    """The projection that removes the span of `columns` [d] each, read off the means of groups and of `kept`."""
    total = SecondMoment.union(groups.values())
    rounding = SecondMoment.union([total, *kept]).rounding.cpu()
    least = torch.finfo(rounding.dtype).eps * rounding  # of the means, which are float64
    if any(bool((column.square() <= least).all()) for column in columns):
        raise InvalidValueError("A mean direction of the forget features is zero, so there is nothing to project on.")
    union = orthonormal_union([column[:, None] for column in columns])
    measured: ProjectionMeasured = {
        "k": union.shape[1],
        "n_forget": total.count,
        "energy_removed": energy_share(total, union),
    }
    return Projection.onto_complement_of(union, **measured)


def given_retain(method: Method, retain: RetainMoments | None) -> RetainMoments:
    """The moments of D_r. Raises InvalidValueError where there are none."""
    if retain is None or retain.moment.count == 0:
        raise missing_retain(method.name, "eraser")
    return retain
