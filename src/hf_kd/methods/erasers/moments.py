"""The streaming second moment of the forget features: all that ESC ever needs to know about D_f.

State is one d x d float64 matrix, one mean and one count, whatever the number of samples, so the features themselves are
never kept. Moments of disjoint parts merge, across batches and across processes. Sums are kept about the mean: as a
difference of raw moments a variance would drown in the rounding of the mean's square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError


class SecondMoment:
    """The mean, S = sum_i (h_i - mean)(h_i - mean)^T and so G = sum_i h_i h_i^T of features h_i in R^d, in float64.

    With Z_f = [h_1 ... h_N] (d x N, as in the paper, section 3.2) G = Z_f Z_f^T, so the eigenvectors of G are the left
    singular vectors of Z_f and the square roots of its eigenvalues are the singular values. Working on G is exact,
    independent of order and batch size, and never yields the thin U that a reduced SVD gives for N < d.

    Args:
        dim: d.
        device: Where the sums are kept; the CPU in its place where it has no float64.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.dim = dim
        self.count = 0
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=float64_device(device))
        """S, [d, d]."""
        self.mean = torch.zeros(dim, dtype=torch.float64, device=self.scatter.device)
        """[d]; zero while nothing was added."""

    @classmethod
    def of(cls, features: Tensor) -> SecondMoment:
        """The moment of features that are at hand at once.

        Args:
            features: [n, d], of any floating dtype.

        Raises:
            InvalidValueError: For another shape, and for NaN or infinite features (naming the row).
        """
        if features.ndim != 2:
            raise InvalidValueError(f"Features have to be [n, d], got shape {tuple(features.shape)}.")
        return cls(features.shape[1], features.device).update(features)

    @property
    def outer_sum(self) -> Tensor:
        """G = S + n mean mean^T, [d, d]."""
        return self.scatter.addr(self.mean, self.mean, alpha=self.count)

    @property
    def feature_sum(self) -> Tensor:
        """sum_i h_i, [d]."""
        return self.mean * self.count

    @property
    def covariance(self) -> Tensor:
        """S / n, [d, d], 0 for units that vary by rounding only."""
        covariance = self.scatter / max(1, self.count)
        varies = covariance.diagonal() > self.rounding
        return covariance * varies * varies[:, None]

    @property
    def rounding(self) -> Tensor:
        """The variance [d] of each unit that may be rounding of float32 features; along a unit vector v, sum_j v_j^2 of it.

        (8 eps)^2 of float32, as an audit takes it, times the whole spread, of which all that was computed from whole
        features has a share, plus the square of the unit's own mean, which, however large, says nothing of other units.
        """
        spread = self.scatter.diagonal().sum() / max(1, self.count)
        return (8 * torch.finfo(torch.float32).eps) ** 2 * (spread + max(1.0, self.dim / 64) * self.mean.square())

    def update(self, batch: Tensor) -> SecondMoment:
        """Add features.

        Args:
            batch: [n, d], of any floating dtype.

        Returns:
            Itself.

        Raises:
            InvalidValueError: On a wrong shape and on NaN or infinite features (naming the row of the batch); nothing is
                added in that case.
        """
        if batch.ndim != 2 or batch.shape[1] != self.dim:
            raise InvalidValueError(f"Expected features of shape [n, {self.dim}], got {tuple(batch.shape)}.")
        wide = batch.detach().to(self.mean.device).double()
        if not torch.isfinite(wide.square().sum(dim=0)).all():
            finite = torch.isfinite(wide).all(dim=1)
            rows = torch.nonzero(~finite).flatten().tolist()
            detail = f"features of row {rows[0]} of the batch are" if rows else "squares of the features are"
            raise InvalidValueError(f"The {detail} not finite; a second moment needs finite features.")
        if not len(wide):
            return self
        mean = wide.mean(dim=0)
        moved, weight = self._move_mean(mean, len(wide))
        rows = torch.cat([wide - mean, moved[None] * weight**0.5])
        self.scatter.addmm_(rows.T, rows)
        return self

    def _move_mean(self, mean: Tensor, count: int) -> tuple[Tensor, float]:
        """Count in `count` samples of this mean [d]: how far theirs was from ours, and what its square adds to S (Chan)."""
        total = self.count + count
        moved = mean - self.mean
        weight = self.count * count / total
        self.mean = self.mean + moved * (count / total)
        self.count = total
        return moved, weight

    def merge(self, other: SecondMoment) -> SecondMoment:
        """Add the moment of other samples.

        Args:
            other: The moment, of samples that are not in this one.

        Returns:
            Itself.

        Raises:
            InvalidValueError: For another d.
        """
        if other.dim != self.dim:
            raise InvalidValueError(f"Cannot merge moments of d = {other.dim} into moments of d = {self.dim}.")
        if other.count:
            moved, weight = self._move_mean(other.mean.to(self.mean.device), other.count)
            self.scatter += other.scatter.to(self.mean.device)
            self.scatter.addr_(moved, moved, alpha=weight)
        return self

    @classmethod
    def union(cls, parts: Iterable[SecondMoment]) -> SecondMoment:
        """The moment of all parts together.

        Args:
            parts: Moments of disjoint samples, one or more.

        Raises:
            InvalidValueError: For no part, and for parts of different d.
        """
        parts = list(parts)
        if not parts:
            raise InvalidValueError("The union of no moments has no dimension; pass at least one.")
        total = cls(parts[0].dim, parts[0].mean.device)
        for part in parts:
            total.merge(part)
        return total

    def all_reduce(self, sum_over_processes: Callable[[Tensor], Tensor]) -> SecondMoment:
        """Make every process hold the moment of all processes' samples.

        Args:
            sum_over_processes: Takes a float64 tensor and returns its sum over the processes. Two calls, for the mean of all
                and for S about it, move d^2 + d + 1 numbers, whatever the number of samples.

        Returns:
            Itself.
        """
        total = sum_over_processes(torch.cat([self.feature_sum, self.mean.new_tensor([float(self.count)])]))
        count = round(float(total[-1]))
        mean = total[:-1] / max(1, count)
        moved = self.mean - mean
        self.scatter = sum_over_processes(self.scatter.addr(moved, moved, alpha=self.count))
        self.mean, self.count = mean, count
        return self

    def principal_directions(self, center: bool = False, columns: int | None = None) -> tuple[Tensor, Tensor]:
        """The principal directions of the features: U and the singular values of Z_f.

        The sign of each column is fixed by its largest entry being positive. Columns beyond the numerical rank span the null
        space; there the eigenvectors would be whatever rounding made of them, so the basis nearest to fixed pseudo-random
        directions is used, which varies continuously with the null space. The same holds where singular values are equal.

        Args:
            center: Subtract the mean first.
            columns: Only so many columns of U; all d by default.

        Returns:
            U [d, columns] (columns u_1, u_2, ...) and the singular values [d], largest first, both float64 on the CPU.

        Raises:
            InvalidValueError: When nothing was added or all features are zero (or, centred, all equal).
        """
        if self.count == 0:
            raise InvalidValueError("No features were added: the forget set is empty.")
        # LAPACK on the CPU, so that a result does not depend on the accelerator at hand.
        gram = (self.covariance * self.count if center else self.outer_sum).cpu()
        values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
        values, vectors = values.flip(0), vectors.flip(1)
        if center:
            noise = self.count * (vectors.square().T @ self.rounding.cpu())
        else:
            noise = float(gram.diagonal().sum()) * max(self.dim, 64) * torch.finfo(torch.float64).eps
        values, vectors = values[values > noise], vectors[:, values > noise]
        rank = len(values)
        if rank == 0:
            raise InvalidValueError(
                "All forget features are zero" + (" after centring" if center else "") + ": they have no direction."
            )
        columns = self.dim if columns is None else min(columns, self.dim)
        parts = []
        for start, stop in _runs_of_equals(values):
            if start < columns:
                part = vectors[:, start:stop]
                parts.append(part if stop - start == 1 else _fixed_basis(part, columns - start))
        if rank < columns:
            parts.append(_null_space_basis(vectors, columns - rank))
        singular_values = torch.cat([values.sqrt(), values.new_zeros(self.dim - rank)])
        return fix_signs(torch.cat([vectors[:, :0], *parts], dim=1)), singular_values

    def __repr__(self) -> str:
        return f"SecondMoment(dim={self.dim}, count={self.count})"


class RetainMoments:
    """What methods that may read retained data keep of it: the second moment of D_r and the mean of each of its classes.

    State is O(d^2 + C d), whatever the number of samples.

    Args:
        dim: d.
        device: As for `SecondMoment`.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self.moment = SecondMoment(dim, device)
        self.sums: dict[int, Tensor] = {}
        """Sum of the features of each class [d], float64."""
        self.counts: dict[int, int] = {}

    @classmethod
    def of(cls, features: Tensor, labels: Tensor) -> RetainMoments:
        """The moments of labelled features that are at hand at once.

        Args:
            features: [n, d], of any floating dtype.
            labels: [n].

        Raises:
            InvalidValueError: As `update`.
        """
        return cls(features.shape[1], features.device).update(features, labels)

    def update(self, batch: Tensor, labels: Tensor) -> RetainMoments:
        """Add labelled features.

        Args:
            batch: [n, d], of any floating dtype.
            labels: [n].

        Returns:
            Itself.

        Raises:
            InvalidValueError: As `SecondMoment.update`.
        """
        self.moment.update(batch)
        for label in labels.unique().tolist():
            part = batch[(labels == label).to(batch.device)].detach().to(self.moment.mean.device).double()
            self.sums[label] = self.sums.get(label, 0) + part.sum(dim=0)
            self.counts[label] = self.counts.get(label, 0) + len(part)
        return self

    def means(self) -> dict[int, Tensor]:
        """The mean of each class [d], by ascending label."""
        return {label: self.sums[label] / self.counts[label] for label in sorted(self.sums)}

    def all_reduce(self, sum_over_processes: Callable[[Tensor], Tensor], labels: Iterable[int]) -> RetainMoments:
        """Make every process hold the moments of all processes' samples.

        Args:
            sum_over_processes: Takes a float64 tensor and returns its sum over the processes.
            labels: Those of all processes, the same on each.

        Returns:
            Itself.
        """
        self.moment.all_reduce(sum_over_processes)
        for label in sorted(labels):
            own = self.sums.get(label, torch.zeros_like(self.moment.mean))
            total = sum_over_processes(torch.cat([own, own.new_tensor([float(self.counts.get(label, 0))])]))
            self.sums[label], self.counts[label] = total[:-1], round(float(total[-1]))
        return self


def wide(rows: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return rows.to(float64_device(rows.device)).double()


def float64_device(device: torch.device | str) -> torch.device:
    """The device, or the CPU in its place where it has no float64."""
    device = torch.device(device)
    return torch.device("cpu") if device.type in ("mps", "xla") else device


def _runs_of_equals(values: Tensor) -> list[tuple[int, int]]:
    """Start and end of each run of descending eigenvalues [r] that are equal up to rounding."""
    tolerance = 16 * float(values[0]) * torch.finfo(torch.float64).eps
    ends = torch.nonzero(values[:-1] - values[1:] > tolerance).flatten() + 1
    bounds = [0, *ends.tolist(), len(values)]
    return list(pairwise(bounds))


def _fixed_directions(dim: int, count: int) -> Tensor:
    return torch.randn(dim, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _fixed_basis(basis: Tensor, columns: int) -> Tensor:
    """The first `columns` of an orthonormal basis [d, m] of the span of `basis` [d, m] that is a function of its span."""
    fixed = basis @ (basis.T @ _fixed_directions(*basis.shape)[:, :columns])
    return torch.linalg.qr(fixed).Q


def _null_space_basis(range_basis: Tensor, columns: int) -> Tensor:
    """The first `columns` of an orthonormal basis [d, d - r] of the complement of `range_basis` [d, r], a continuous
    function of its span.
    """
    dim, rank = range_basis.shape
    fixed = _fixed_directions(dim, dim - rank)[:, :columns]
    for _ in range(2):  # the second pass removes what rounding left of the range in the first
        fixed = fixed - range_basis @ (range_basis.T @ fixed)
        fixed = torch.linalg.qr(fixed).Q
    return fixed


def fix_signs(vectors: Tensor) -> Tensor:
    """Each column [d, k] with its largest entry positive; of entries that are equal up to rounding the first."""
    size = vectors.abs()
    largest = (size >= (1 - 1e-6) * size.amax(dim=0)).int().argmax(dim=0, keepdim=True)  # the first of equals
    return vectors * torch.where(vectors.gather(0, largest) < 0, -1.0, 1.0)
