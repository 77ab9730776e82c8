"""Closed-form comparators that act on features: mean projection, mean difference, LEACE, prototype-orthogonal.

All but the first read retained data too. Each is fitted from moments that stream: means of classes and one covariance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from ..measured import LEACEMeasured, ProjectionMeasured, PrototypeMeasured
from ..registry import missing_retain
from .base import Eraser, ForgetData, Head, Method
from .esc import Projection, energy_share, orthonormal_union
from .moments import RetainMoments, SecondMoment


class ObliqueProjection(Eraser):
    """h -> h - W R^T (h - c) with R^T W = I: removes r directions W as R reads them, along the null space of R^T."""

    kind = "oblique-projection"
    is_projection = True

    def __init__(self, dim: int, rank: int):
        super().__init__(dim)
        self.register_buffer("read", torch.zeros(dim, rank))
        self.register_buffer("write", torch.zeros(dim, rank))
        self.register_buffer("center", torch.zeros(dim))
        self.read: Tensor
        """R [d, r]: how much of each direction a feature has."""
        self.write: Tensor
        """W [d, r]: what is subtracted for it."""
        self.center: Tensor
        """c [d]: where nothing is subtracted."""

    @classmethod
    def of(cls, read: Tensor, write: Tensor, center: Tensor | None = None, **measured: Any) -> ObliqueProjection:
        """From R and W [d, r] and c [d]."""
        eraser = cls(*read.shape).to(read.device)
        eraser.read.copy_(read)
        eraser.write.copy_(write)
        if center is not None:
            eraser.center.copy_(center)
        eraser.measured.update(measured)
        return eraser

    def erase(self, features: Tensor) -> Tensor:
        read, write, center = (b.to(features.device, features.dtype) for b in (self.read, self.write, self.center))
        return features - ((features - center) @ read) @ write.T

    @property
    def rank_removed(self) -> int:
        return self.read.shape[1]

    @property
    def condition_number(self) -> float:
        return float("inf") if self.rank_removed else 1.0

    def spec(self) -> dict[str, Any]:
        return {"dim": self.dim, "rank": self.rank_removed}

    def check(self) -> None:
        gram = self.read.double().T @ self.write.double()
        error = float((gram - torch.eye(self.rank_removed, dtype=gram.dtype, device=gram.device)).abs().max())
        if not (error < 5e-2 and bool(torch.isfinite(self.center).all())):  # catches NaN too
            raise InvalidValueError(
                f"R^T W of an oblique projection has to be I, but differs from it by {error:.3g}: the eraser was not loaded "
                "or is damaged."
            )


def _by_class(forget: ForgetData, labels: Tensor | None) -> dict[int, SecondMoment]:
    """The moments of each forget class; of all samples as one where their classes are unknown."""
    if isinstance(forget, Mapping):
        return {label: forget[label] for label in sorted(forget)}
    if isinstance(forget, SecondMoment):
        return {-1: forget}
    if labels is None:
        return {-1: SecondMoment.of(forget)}
    return {int(label): SecondMoment.of(forget[labels == label]) for label in labels.unique()}


def _mean(moment: SecondMoment) -> Tensor:
    if moment.count == 0:
        raise InvalidValueError("No features were added: a class of the forget set is empty.")
    return moment.mean.cpu()


def _complement(columns: list[Tensor], groups: Mapping[int, SecondMoment], *others: SecondMoment) -> Projection:
    """The projection that removes the span of `columns` [d] each, read off the means of groups and others."""
    total = SecondMoment.union(groups.values())
    rounding = SecondMoment.union([total, *others]).rounding.cpu()
    least = torch.finfo(rounding.dtype).eps * rounding  # of the means, which are float64
    if any(bool((column.square() <= least).all()) for column in columns):
        raise InvalidValueError("A mean direction of the forget features is zero, so there is nothing to project on.")
    union = orthonormal_union([column[:, None] for column in columns])
    measured = {"k": union.shape[1], "n_forget": total.count, "energy_removed": energy_share(total, union)}
    return Projection.onto_complement_of(union, **measured)


@dataclass(frozen=True)
class _ByClass(Method):
    """Fitted from the moments of each forget class."""

    @property
    def by_class(self) -> bool:
        return True


@dataclass(frozen=True)
class MeanProjection(_ByClass):
    """h - v v^T h with v = mu_f / ||mu_f|| for each forget class: what ESC at k = 1 all but is, without an SVD."""

    name: ClassVar[str] = "mean-projection"
    source: ClassVar[str] = "a control, no paper's"
    when: ClassVar[str] = "A control for ESC: one direction for each class and no SVD."
    measures: ClassVar[type] = ProjectionMeasured

    def fit(self, forget: ForgetData, labels: Tensor | None = None, head: Head | None = None) -> Projection:
        """The projection for moments (by class) or features [n, d]. Raises ValueError for a zero mean."""
        groups = _by_class(forget, labels)
        return _complement([_mean(moment) for moment in groups.values()], groups)


@dataclass(frozen=True)
class MeanDifference(_ByClass):
    """h - v v^T h with v = (mu_f - mu_r) / ||mu_f - mu_r|| for each forget class; mu_r is the mean of D_r."""

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
        groups, kept = _by_class(forget, labels), _given(self, retain).moment
        varies = SecondMoment.union([*groups.values(), kept]).covariance.diagonal().cpu() > 0
        return _complement([(_mean(moment) - _mean(kept)) * varies for moment in groups.values()], groups, kept)


@dataclass(frozen=True)
class LEACE(_ByClass):
    """Least-squares concept erasure (Belrose et al. 2023): the smallest affine change after which no linear predictor of
    "is it forget class c" beats a constant.

    h' = h - W^+ u u^T W (h - mu), W = Cov(h)^(-1/2), u an orthonormal basis of the columns of W Cov(h, z), z one-hot. The
    guarantee is for one class against the rest; a multi-class probe may still choose c where all others score low.

    Attributes:
        tolerance: Correlation under which a column is taken for noise.
    """

    name: ClassVar[str] = "leace"
    source: ClassVar[str] = "Belrose et al. 2023; tolerance is ours"
    when: ClassVar[str] = "Linear predictors of the forgotten classes are to fail, and retained images may be read."
    measures: ClassVar[type] = LEACEMeasured
    needs_retain: ClassVar[bool] = True

    tolerance: float = 0.01

    def __post_init__(self):
        if not 0 <= self.tolerance < 1:
            raise InvalidValueError(
                f"tolerance={self.tolerance!r} is out of range: it is a correlation, 0 <= tolerance < 1."
            )

    def fit(
        self,
        forget: ForgetData,
        labels: Tensor | None = None,
        head: Head | None = None,
        retain: RetainMoments | None = None,
    ) -> ObliqueProjection:
        """The affine map for moments (by class) or features [n, d] of D_f and the moments of D_r.

        `measured` of the result: k, n_forget, n_retain, the largest correlation removed. Raises ValueError without
        retained features, and where nothing is correlated with being forgotten.
        """
        groups = _by_class(forget, labels)
        kept = _given(self, retain).moment
        total = SecondMoment.union([*groups.values(), kept])
        count, mean = total.count, _mean(total)
        columns = []
        for moment in groups.values():
            share = moment.count / count
            columns.append((_mean(moment) - mean) * share / (share * (1 - share)) ** 0.5)  # Cov(h, z_c / sd(z_c))
        whiten, unwhiten = _square_roots(total.covariance.cpu(), total.rounding.cpu())
        left, values, _ = torch.linalg.svd(whiten @ torch.stack(columns, dim=1), full_matrices=False)
        left = left[:, values > self.tolerance]
        if not left.shape[1]:
            raise InvalidValueError(
                f"No direction is correlated with being forgotten by more than {self.tolerance}: forgotten and retained "
                "features have the same mean, and there is nothing for LEACE to erase."
            )
        return ObliqueProjection.of(
            whiten @ left,
            unwhiten @ left,
            mean,
            k=left.shape[1],
            n_forget=count - kept.count,
            n_retain=kept.count,
            largest_correlation=float(values[0]),
        )


def _square_roots(covariance: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor]:
    """Cov^(-1/2) (pseudo-inverse) and its pseudo-inverse Cov^(1/2) [d, d], 0 along what may be `rounding` [d]."""
    values, directions = torch.linalg.eigh((covariance + covariance.T) / 2)
    floor = directions.square().T @ rounding
    roots = torch.where(values > floor, values.clamp(min=floor).sqrt(), 0.0)
    inverse = torch.where(roots > 0, 1 / roots.clamp(min=1e-300), 0.0)
    return (directions * inverse) @ directions.T, (directions * roots) @ directions.T


@dataclass(frozen=True)
class PrototypeOrthogonal(_ByClass):
    """h - P_f (P^+ h)_f, P [d, C] the means of all classes: the coordinates of the forget classes go, those of the retained
    prototypes and everything outside their span stay (after MoRE, 2026).

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
        """The oblique projection for moments (by class) or features [n, d] of D_f and the class means of D_r.

        Raises ValueError without retained features or classes, and where the prototypes are not linearly independent (at
        most d classes).
        """
        groups = _by_class(forget, labels)
        others = {label: mean.cpu() for label, mean in _given(self, retain).means().items() if label not in groups}
        if -1 in groups or -1 in others or not others:
            raise InvalidValueError(
                "prototype-orthogonal needs the classes of all forgotten and retained images; some are unknown."
            )
        own = [_mean(moment) for moment in groups.values()]
        prototypes = torch.stack([*own, *others.values()], dim=1)
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
            names, rest = list(others), torch.stack(list(others.values()), dim=1)
            nearest = (
                torch.nn.functional.normalize(rest, dim=0).T @ torch.nn.functional.normalize(write, dim=0)
            ).argmax(0)
            write = write - rest[:, nearest]
            measured["remapped_to"] = [names[i] for i in nearest.tolist()]
        return ObliqueProjection.of(read, write, **measured)


def _given(method: Method, retain: RetainMoments | None) -> RetainMoments:
    if retain is None or retain.moment.count == 0:
        raise missing_retain(method.name, "eraser")
    return retain
