"""The streaming second moment of the forget features: all that ESC ever needs to know about D_f.

State is one d x d float64 matrix, one sum and one count, whatever the number of samples, so the features themselves are
never kept. Moments of disjoint parts add up, across batches and across processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError


class SecondMoment:
    """G = sum_i h_i h_i^T and sum_i h_i over features h_i in R^d, in float64.

    With Z_f = [h_1 ... h_N] (d x N, as in the paper, section 3.2) G = Z_f Z_f^T, so the eigenvectors of G are the left
    singular vectors of Z_f and the square roots of its eigenvalues are the singular values. Working on G is exact,
    independent of order and batch size, and never yields the thin U that a reduced SVD gives for N < d.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu"):
        self.dim = dim
        self.count = 0
        self.outer_sum = torch.zeros(dim, dim, dtype=torch.float64, device=_float64_device(device))
        """G, [d, d]."""
        self.feature_sum = torch.zeros(dim, dtype=torch.float64, device=self.outer_sum.device)
        """sum_i h_i, [d]."""

    @classmethod
    def of(cls, features: Tensor) -> SecondMoment:
        """The moment of features [n, d] that are at hand at once."""
        if features.ndim != 2:
            raise InvalidValueError(f"Features have to be [n, d], got shape {tuple(features.shape)}.")
        return cls(features.shape[1], features.device).update(features)

    def update(self, batch: Tensor) -> SecondMoment:
        """Add features [n, d] of any floating dtype; returns self.

        Raises ValueError on a wrong shape and on NaN or infinite features (naming the row of the batch); nothing is
        added in that case.
        """
        if batch.ndim != 2 or batch.shape[1] != self.dim:
            raise InvalidValueError(f"Expected features of shape [n, {self.dim}], got {tuple(batch.shape)}.")
        wide = batch.detach().to(self.outer_sum.device, torch.float64)
        outer = wide.T @ wide
        if not torch.isfinite(outer.diagonal()).all():
            finite = torch.isfinite(wide).all(dim=1)
            rows = torch.nonzero(~finite).flatten().tolist()
            detail = f"features of row {rows[0]} of the batch are" if rows else "squares of the features are"
            raise InvalidValueError(f"The {detail} not finite; a second moment needs finite features.")
        self.outer_sum += outer
        self.feature_sum += wide.sum(dim=0)
        self.count += batch.shape[0]
        return self

    def merge(self, other: SecondMoment) -> SecondMoment:
        """Add the moment of other, disjoint samples; returns self."""
        if other.dim != self.dim:
            raise InvalidValueError(f"Cannot merge moments of d = {other.dim} into moments of d = {self.dim}.")
        self.outer_sum += other.outer_sum.to(self.outer_sum.device)
        self.feature_sum += other.feature_sum.to(self.feature_sum.device)
        self.count += other.count
        return self

    @classmethod
    def union(cls, parts: Iterable[SecondMoment]) -> SecondMoment:
        """The moment of all parts together."""
        parts = list(parts)
        if not parts:
            raise InvalidValueError("The union of no moments has no dimension; pass at least one.")
        total = cls(parts[0].dim, parts[0].outer_sum.device)
        for part in parts:
            total.merge(part)
        return total

    def all_reduce(self, sum_over_processes: Callable[[Tensor], Tensor]) -> SecondMoment:
        """Make every process hold the moment of all processes' samples; returns self.

        `sum_over_processes` takes a float64 tensor and returns its sum over the processes. One call moves
        d^2 + d + 1 numbers, whatever the number of samples.
        """
        count = torch.tensor([float(self.count)], dtype=torch.float64, device=self.outer_sum.device)
        total = sum_over_processes(torch.cat([self.outer_sum.flatten(), self.feature_sum, count]))
        self.outer_sum = total[: self.dim**2].reshape(self.dim, self.dim)
        self.feature_sum = total[self.dim**2 : -1]
        self.count = round(float(total[-1]))
        return self

    def principal_directions(self, center: bool = False) -> tuple[Tensor, Tensor]:
        """U [d, d] (columns u_1 ... u_d) and the singular values [d] of Z_f, largest first, float64 on the CPU.

        `center` subtracts the mean first. The sign of each column is fixed by its largest entry being positive. Columns
        beyond the numerical rank span the null space; there the eigenvectors would be whatever rounding made of them,
        so the basis nearest to fixed pseudo-random directions is used, which varies continuously with the null space.
        Raises ValueError when nothing was added or all features are zero (or, centred, all equal).
        """
        if self.count == 0:
            raise InvalidValueError("No features were added: the forget set is empty.")
        # LAPACK on the CPU, so that a result does not depend on the accelerator at hand.
        gram = self.outer_sum.cpu()
        if center:
            total = self.feature_sum.cpu()
            gram = gram - torch.outer(total, total) / self.count
        values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
        values, vectors = values.flip(0), vectors.flip(1)
        # Rounding in G is relative to its trace, also after centring, which may leave far smaller eigenvalues.
        noise = float(self.outer_sum.diagonal().sum()) * max(self.dim, 64) * torch.finfo(torch.float64).eps
        rank = int((values > noise).sum())
        if rank == 0:
            raise InvalidValueError(
                "All forget features are zero" + (" after centring" if center else "") + ": they have no direction."
            )
        if rank < self.dim:
            vectors = torch.cat([vectors[:, :rank], _null_space_basis(vectors[:, :rank])], dim=1)
        values = torch.cat([values[:rank], values.new_zeros(self.dim - rank)])
        return _fix_signs(vectors), values.sqrt()

    def __repr__(self) -> str:
        return f"SecondMoment(dim={self.dim}, count={self.count})"


class RetainMoments:
    """What methods that may read retained data keep of it: the second moment of D_r and the mean of each of its classes.

    State is O(d^2 + C d), whatever the number of samples.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu"):
        self.moment = SecondMoment(dim, device)
        self.sums: dict[int, Tensor] = {}
        """Sum of the features of each class [d], float64."""
        self.counts: dict[int, int] = {}

    @classmethod
    def of(cls, features: Tensor, labels: Tensor) -> RetainMoments:
        """The moments of features [n, d] with labels [n] that are at hand at once."""
        return cls(features.shape[1], features.device).update(features, labels)

    def update(self, batch: Tensor, labels: Tensor) -> RetainMoments:
        """Add features [n, d] with labels [n]; returns self. Raises ValueError as `SecondMoment.update`."""
        self.moment.update(batch)
        for label in labels.unique().tolist():
            part = batch[(labels == label).to(batch.device)].detach().to(self.moment.outer_sum.device, torch.float64)
            self.sums[label] = self.sums.get(label, 0) + part.sum(dim=0)
            self.counts[label] = self.counts.get(label, 0) + len(part)
        return self

    def means(self) -> dict[int, Tensor]:
        """The mean of each class [d], by ascending label."""
        return {label: self.sums[label] / self.counts[label] for label in sorted(self.sums)}

    def all_reduce(self, sum_over_processes: Callable[[Tensor], Tensor], labels: Iterable[int]) -> RetainMoments:
        """Make every process hold the moments of all processes' samples; returns self. labels: of all processes."""
        self.moment.all_reduce(sum_over_processes)
        for label in sorted(labels):
            own = self.sums.get(label, torch.zeros_like(self.moment.feature_sum))
            total = sum_over_processes(torch.cat([own, own.new_tensor([float(self.counts.get(label, 0))])]))
            self.sums[label], self.counts[label] = total[:-1], round(float(total[-1]))
        return self


def _float64_device(device: torch.device | str) -> torch.device:
    device = torch.device(device)
    return torch.device("cpu") if device.type in ("mps", "xla") else device


def _null_space_basis(range_basis: Tensor) -> Tensor:
    """Orthonormal basis [d, d - r] of the complement of `range_basis` [d, r], a continuous function of its span."""
    dim, rank = range_basis.shape
    fixed = torch.randn(dim, dim - rank, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # the second pass removes what rounding left of the range in the first
        fixed = fixed - range_basis @ (range_basis.T @ fixed)
        fixed = torch.linalg.qr(fixed).Q
    return fixed


def _fix_signs(vectors: Tensor) -> Tensor:
    largest = vectors.abs().argmax(dim=0, keepdim=True)
    return vectors * torch.where(vectors.gather(0, largest) < 0, -1.0, 1.0)
