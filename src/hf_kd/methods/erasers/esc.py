"""ESC, Erasing Space Concept: remove the top-k principal directions of the forget features (paper, section 3.3).

The eraser stores U_k [d, k] and applies h - (h U_k) U_k^T in O(dk): an exact orthogonal projection for every number of
forget samples, also N_f < d, where the published form U_P U_P^T on a reduced SVD would keep the forget span instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError
from hf_kd.methods.choices import check_fields
from hf_kd.methods.measured import ESCMeasured

from .base import Eraser, ForgetData, Head, Method
from .moments import SecondMoment

ROUNDING = 1e-5
"""What is shorter than this, relative to the feature it came from, is what float32 directions leave of nothing."""


class Projection(Eraser):
    """P = I - Q Q^T with orthonormal Q [d, k]: removes k directions and touches nothing else.

    Args:
        dim: d.
        rank: k.
    """

    kind = "projection"
    is_projection = True

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__(dim)
        self.register_buffer("directions", torch.zeros(dim, rank))
        self.directions: Tensor
        """Q, orthonormal columns [d, k], float32."""

    @classmethod
    def onto_complement_of(cls, directions: Tensor, **measured: Any) -> Projection:
        """The projection that removes the span of some directions.

        Args:
            directions: Q, orthonormal columns [d, k].
            **measured: What was measured while fitting.
        """
        eraser = cls(directions.shape[0], directions.shape[1]).to(directions.device)
        eraser.directions.copy_(directions)
        eraser.measured.update(measured)
        return eraser

    def erase(self, features: Tensor) -> Tensor:
        directions = self.directions.to(features.device, features.dtype)
        return features - (features @ directions) @ directions.T

    @property
    def rank_removed(self) -> int:
        return self.directions.shape[1]

    @property
    def condition_number(self) -> float:
        return float("inf") if self.rank_removed else 1.0

    def spec(self) -> dict[str, Any]:
        return {"dim": self.dim, "rank": self.rank_removed}

    def check(self) -> None:
        directions = self.directions.cpu().double()
        error = float((directions.T @ directions - torch.eye(self.rank_removed, dtype=torch.float64)).abs().max())
        if not error < 1e-2:  # catches NaN too; a checkpoint stored in bfloat16 is off by 4e-3
            raise InvalidValueError(
                f"The directions of a projection have to be orthonormal, but Q^T Q differs from I by {error:.3g}: the "
                "eraser was not loaded or is damaged, and the model would answer as if nothing had been erased."
            )

    def then(self, later: Eraser) -> Eraser:
        """Two projections become one, on the orthonormal union of both sets of directions.

        Args:
            later: The eraser that comes second.

        Returns:
            A projection of the same class; a `Composition` where `later` is of another.
        """
        if type(later) is not type(self):
            return super().then(later)
        union = orthonormal_union([each.directions.cpu().double() for each in (self, later)])
        return type(self).onto_complement_of(union, **later.measured).to(self.directions.device)


class NormedProjection(Projection):
    """h -> ||h|| P h / ||P h||: the projection, with every feature as long as it was.

    A projection leaves the forgotten class short, and its length alone gives it away. Not linear, so it does not fold. A
    feature of which nothing is left but rounding stays as it is projected: short.
    """

    kind = "normed-projection"
    is_linear = False

    def erase(self, features: Tensor) -> Tensor:
        projected = super().erase(features)
        before, length = features.norm(dim=-1, keepdim=True), projected.norm(dim=-1, keepdim=True)
        scale = before / length.clamp(min=torch.finfo(features.dtype).tiny)
        return projected * scale.where(length > ROUNDING * before, 1.0)


def orthonormal_union(bases: Sequence[Tensor], tolerance: float = 1e-6) -> Tensor:
    """Orthonormal columns [d, m] that span all columns of some bases, in order, dependent ones dropped.

    Each block is orthogonalised twice against what came before: once is not enough when it is nearly contained.

    Args:
        bases: [d, k_i] each, one or more.
        tolerance: A column counts as dependent when less than this share of its length is new.
    """
    union = bases[0].new_zeros(bases[0].shape[0], 0)
    for basis in bases:
        for column in basis.split(1, dim=1):
            residual = column - union @ (union.T @ column)
            norm = float(residual.norm())
            if norm > tolerance * float(column.norm()):
                residual = residual / norm
                residual = residual - union @ (union.T @ residual)
                union = torch.cat([union, residual / residual.norm()], dim=1)
    return union


@dataclass(frozen=True)
class ESC(Method):
    """Remove the top principal directions of D_f (paper, section 3.3); closed form, no training.

    h_P = h - U_k U_k^T h, U the left singular vectors of Z_f.

    Attributes:
        p: Percentage of the d directions to remove, k = max(1, round(d p / 100)); 1.5 when neither is given, as in the
            published code (which rounds down, and so removes nothing at d = 64).
        k: Number of directions, instead of p.
        center: Subtract the forget mean before the SVD. The paper does not, and then u_1 is nearly the mean direction;
            centred it is another method.
        per_class: K directions for each forget class and their orthonormal union, instead of one SVD of all forget samples
            (the paper's), in which a larger class outweighs a smaller one.
        renorm: Give every feature back the length it had, which the projection takes from the forgotten ones; ours.
    """

    name: ClassVar[str] = "esc"
    source: ClassVar[str] = "ESC, section 3.3; p = 1.5 as in the published code"
    when: ClassVar[str] = "The default: closed form, needs the images to forget alone."
    measures: ClassVar[type] = ESCMeasured

    p: float | None = None
    k: int | None = None
    center: bool = False
    per_class: bool = False
    renorm: bool = False

    def __post_init__(self) -> None:
        if self.p is not None and self.k is not None:
            raise InvalidValueError(f"Give p or k, not both (got p={self.p}, k={self.k}).")
        check_fields(self)
        if self.k is not None and self.k < 1:
            raise InvalidValueError(
                f"k={self.k!r} is out of range: it has to be a whole number of directions, 1 or more."
            )
        if self.p is not None and not 0 < self.p < 100:
            raise InvalidValueError(
                f"p={self.p!r} is out of range: it is a percentage of the d directions, 0 < p < 100."
            )
        if self.p is None and self.k is None:
            object.__setattr__(self, "p", 1.5)

    @property
    def by_class(self) -> bool:
        return self.per_class

    def directions_removed(self, dim: int) -> int:
        """How many directions this method removes.

        Args:
            dim: d.

        Returns:
            `k`, or `p` percent of d, rounded, and at least 1.
        """
        return self.k if self.k is not None else max(1, round(dim * cast(float, self.p) / 100))

    def fit(self, forget: ForgetData, labels: Tensor | None = None, head: Head | None = None) -> Projection:
        """The projection that removes the principal directions.

        Args:
            forget: Moments of D_f, moments by class (with `per_class`), or features [n, d].
            labels: Classes of the features [n], with `per_class`.
            head: Not used.

        Returns:
            The projection; `measured` is an `ESCMeasured`.

        Raises:
            InvalidValueError: When k is not below both d and the rank of the forget features.
        """
        groups = self._groups(forget, labels)
        total = SecondMoment.union(groups)
        k = self.directions_removed(total.dim)
        bases, ranks = [], []
        for group in groups if self.per_class else [total]:
            directions, singular_values = group.principal_directions(center=self.center, columns=k)
            ranks.append(int((singular_values > 0).sum()))
            self._check_k(k, total.dim, ranks[-1], group.count)
            bases.append(directions)
        union = orthonormal_union(bases)
        if self.per_class:
            rank = int((total.principal_directions(center=self.center, columns=0)[1] > 0).sum())
            self._check_k(union.shape[1], total.dim, rank, total.count)
        measured = {
            "k": union.shape[1],
            "n_forget": total.count,
            "rank_of_forget_features": ranks[0] if not self.per_class else rank,
            "energy_removed": energy_share(total, union, self.center),
        }
        if self.p is not None and int(total.dim * self.p / 100) != k:
            measured["k_of_published_code"] = int(total.dim * self.p / 100)
        kind = NormedProjection if self.renorm else Projection
        return kind.onto_complement_of(union, **measured)

    def _groups(self, forget: ForgetData, labels: Tensor | None) -> list[SecondMoment]:
        if isinstance(forget, Mapping):
            return [forget[label] for label in sorted(forget)]
        if isinstance(forget, SecondMoment):
            if self.per_class:
                raise InvalidValueError("per_class=True needs the moments of each class: pass {label: SecondMoment}.")
            return [forget]
        if not self.per_class:
            return [SecondMoment.of(forget)]
        if labels is None:
            raise InvalidValueError("per_class=True needs the labels of the forget set; none were given.")
        return [SecondMoment.of(forget[labels == label]) for label in labels.unique()]

    def _check_k(self, k: int, dim: int, rank: int, count: int) -> None:
        limit = min(dim, rank)
        if k >= limit:
            wanted = f"k={self.k}" if self.k is not None else f"p={self.p} (k = {k} of d = {dim})"
            ways = [f"choose k of at most {limit - 1}"] if limit > 1 else []
            if k < dim or not ways:  # more samples span more directions, but no more than there are
                ways.append("add forget samples: more than k are needed")
            way_out = ", or ".join(ways)
            raise InvalidValueError(
                f"{wanted} removes {k} directions, but the {count:,} forget samples span only {rank} of d = {dim}: "
                f"k has to be below {limit}. {way_out[0].upper()}{way_out[1:]}."
            )


def energy_share(moment: SecondMoment, directions: Tensor, center: bool = False) -> float:
    """Share of sum_i ||h_i||^2 that lies in some directions, between 0 and 1.

    Args:
        moment: Of the features h_i.
        directions: Orthonormal columns [d, k].
        center: Take the share of the total variance instead.
    """
    gram = (moment.covariance if center else moment.outer_sum).cpu()
    return float(torch.einsum("ik,ij,jk->", directions, gram, directions) / gram.diagonal().sum())
