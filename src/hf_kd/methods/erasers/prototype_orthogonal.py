"""Prototype-orthogonal (after MoRE, 2026): coordinates of forgotten class means go, those of retained ones stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError
from hf_kd.methods.measured import PrototypeMeasured

from .base import ForgetData, Head
from .class_means import FittedByClass, given_retain, mean_of, moments_by_class
from .moments import RetainMoments, SecondMoment
from .oblique import ObliqueProjection


@dataclass(frozen=True)
class PrototypeOrthogonal(FittedByClass):
    """Remove the coordinates of the forgotten class means, in the basis of all class means (after MoRE, 2026).

    h - P_f (P^+ h)_f, P [d, C] the means of all classes. Retained prototypes and everything outside the span of P stay.

    Attributes:
        remap: Write the coordinate onto the nearest retained prototype instead of nothing.
    """

    name: ClassVar[str] = "prototype-orthogonal"
    source: ClassVar[str] = "after MoRE (2026)"
    when: ClassVar[str] = "Means of all classes are known and fewer than d: retained ones stay exactly where they are."
    measures: ClassVar[type] = PrototypeMeasured
    needs_retain: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = True

    remap: bool = False

    def fit(
        self,
        forget: ForgetData,
        labels: Tensor | None = None,
        head: Head | None = None,
        retain: RetainMoments | None = None,
    ) -> ObliqueProjection:
        """The oblique projection.

        Args:
            forget: Moments of D_f, by class where classes are known, or features [n, d].
            labels: Classes of the features [n].
            head: Not used.
            retain: Class means of D_r.

        Returns:
            The map; `measured` is a `PrototypeMeasured`.

        Raises:
            InvalidValueError: Without retained features or classes, where no retained class stays whole, and where the
                prototypes are not linearly independent (at most d classes).
        """
        groups = moments_by_class(forget, labels)
        # of a class that is forgotten in part, what stays of it has a mean of its own
        retained = {label: mean.cpu() for label, mean in given_retain(self, retain).means().items()}
        if -1 in groups or -1 in retained or not retained:
            raise InvalidValueError(
                "prototype-orthogonal needs the classes of all forgotten and retained images; some are unknown."
            )
        if groups.keys() >= retained.keys():
            raise InvalidValueError(
                "prototype-orthogonal tells forgotten from retained images by the means of their classes, and every class "
                "of the retained ones is forgotten in part. Use method='esc', and audit what it leaves."
            )
        own = [mean_of(moment) for moment in groups.values()]
        prototypes = torch.stack([*own, *retained.values()], dim=1)
        values = torch.linalg.svdvals(prototypes)
        if prototypes.shape[1] > prototypes.shape[0] or float(values[-1]) <= 1e-6 * float(values[0]):
            raise InvalidValueError(
                f"The {prototypes.shape[1]} class means are not linearly independent in d = {prototypes.shape[0]}: their "
                "coordinates are not unique. Use method='leace' or 'mean-difference' here."
            )
        read = torch.linalg.pinv(prototypes).T[:, : len(own)]
        write = torch.stack(own, dim=1)
        measured: dict[str, Any] = {"k": len(own), "n_forget": SecondMoment.union(groups.values()).count}
        if self.remap:
            names, rest = list(retained), torch.stack(list(retained.values()), dim=1)
            nearest = (
                torch.nn.functional.normalize(rest, dim=0).T @ torch.nn.functional.normalize(write, dim=0)
            ).argmax(0)
            write = write - rest[:, nearest]
            measured["remapped_to"] = [names[i] for i in nearest.tolist()]
        return ObliqueProjection.of(read, write, **measured)
