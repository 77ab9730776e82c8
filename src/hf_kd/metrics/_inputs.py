"""What every probe and attack does first: check features and labels, and put features on a comparable scale.

Statistics are float64 whatever the features are stored in. Directions in which the features do not vary beyond the
rounding of that storage are dropped and never rescaled: an erased direction keeps a residue of about 1e-7 of the
feature norm in float32, and dividing by its standard deviation would hand the attacker noise as if it were signal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

ArrayLike = Tensor | np.ndarray | Sequence
ROWS_PER_CHUNK = 8192


def as_features(features: ArrayLike, name: str = "features") -> Tensor:
    """Features as a floating [n, d] tensor on their own device, without a graph.

    Raises ValueError on ragged or other than two-dimensional input, on no rows or columns, on a non-numeric dtype and
    on NaN or infinite entries (naming the first such row).
    """
    if not isinstance(features, Tensor):
        try:
            array = np.asarray(features)
        except ValueError as error:
            raise InvalidValueError(
                f"The {name} are ragged: every row has to have the same number of columns."
            ) from error
        if array.dtype.kind not in "fiub":
            raise InvalidValueError(
                f"The {name} have dtype {array.dtype}; expected numbers in [n, d] with rows of equal length."
            )
        features = torch.from_numpy(np.ascontiguousarray(array))
    features = features.detach()
    if features.ndim != 2 or 0 in features.shape:
        raise InvalidValueError(
            f"The {name} have shape {tuple(features.shape)}; expected [n, d] with n, d >= 1. Flatten or pool."
        )
    if features.is_complex():
        raise InvalidValueError(f"The {name} are complex; expected real numbers.")
    if not features.is_floating_point():
        features = features.to(torch.float32)
    if features.device.type == "mps":  # no float64 there
        features = features.cpu()
    finite = torch.isfinite(features)
    if not finite.all():
        bad = torch.nonzero(~finite.all(dim=1)).flatten()
        raise InvalidValueError(
            f"Row {int(bad[0])} of the {name} is not finite ({bad.numel()} such rows of {features.shape[0]}); "
            "drop these samples or fix the model's precision."
        )
    return features


def as_labels(labels: ArrayLike, n: int, device: torch.device | str = "cpu", name: str = "labels") -> Tensor:
    """Integer class labels as an int64 [n] tensor on `device`.

    Raises ValueError where they are not n integers >= 0.
    """
    labels = torch.as_tensor(labels if isinstance(labels, Tensor) else np.asarray(labels)).detach()
    if labels.ndim != 1 or labels.shape[0] != n:
        raise InvalidValueError(
            f"The {name} have shape {tuple(labels.shape)}; expected one label for each of the {n} rows."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InvalidValueError(f"The {name} have dtype {labels.dtype}; expected integer class ids.")
    labels = labels.to(device, torch.int64)
    if labels.numel() and int(labels.min()) < 0:
        row = int(torch.nonzero(labels < 0)[0])
        raise InvalidValueError(
            f"Row {row} of the {name} is {int(labels[row])}; class ids are >= 0. Drop unlabelled samples."
        )
    return labels


def as_forget_labels(forget_labels: int | ArrayLike) -> tuple[int, ...]:
    """The forgotten classes as a sorted tuple; raises ValueError on none."""
    if isinstance(forget_labels, Tensor):
        forget_labels = forget_labels.tolist()
    if isinstance(forget_labels, (int, np.integer)):
        forget_labels = [forget_labels]
    forget = tuple(sorted({int(label) for label in forget_labels}))
    if not forget:
        raise InvalidValueError("forget_labels is empty; name at least one class that was to be forgotten.")
    return forget


def is_in(labels: Tensor, classes: Sequence[int]) -> Tensor:
    """Boolean [n]: which labels are among `classes`."""
    return torch.isin(labels, torch.tensor(list(classes), dtype=labels.dtype, device=labels.device))


def chunks(features: Tensor, rows: int = ROWS_PER_CHUNK) -> Iterator[Tensor]:
    """The features in float64, a few thousand rows at a time, so that a copy of everything is never needed."""
    for part in features.split(rows):
        yield part.to(torch.float64)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and covariance [d, d] (divided by n) in float64, centred before squaring."""
    mean = sum(part.sum(dim=0) for part in chunks(features)) / features.shape[0]
    covariance = sum((part - mean).T @ (part - mean) for part in chunks(features)) / features.shape[0]
    return mean, covariance


def rounding_floor(features: Tensor, mean: Tensor, covariance: Tensor) -> float:
    """The standard deviation below which variation along a direction is rounding of the storage, not signal.

    float32 and wider: 8 eps of float32 times the root mean square norm (a projection done in float32 leaves a residue
    proportional to the whole norm, and float64 input has usually been float32 before). Half precisions: half an eps of
    the dtype times the same norm over sqrt(d), the spread of independent rounding of each coordinate.
    """
    norm = math.sqrt(float(mean.square().sum() + covariance.diagonal().sum()))
    if features.dtype in (torch.float16, torch.bfloat16):
        return 0.5 * torch.finfo(features.dtype).eps * norm / math.sqrt(features.shape[1])
    return 8 * torch.finfo(torch.float32).eps * norm


@dataclass(frozen=True, eq=False)
class FeatureScale:
    """An affine map x -> (x - mean) transform from features [n, d] to [n, rank], fitted on training features."""

    mean: Tensor
    """[d], float64."""
    transform: Tensor
    """[d, rank], float64. Dropped directions have no column."""
    floor: float
    """Standard deviation below which a direction counted as constant."""

    @property
    def rank(self) -> int:
        return self.transform.shape[1]

    def __call__(self, features: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """Rescaled features [n, rank]."""
        out = torch.empty(features.shape[0], self.rank, dtype=dtype, device=features.device)
        mean, transform = self.mean.to(features.device), self.transform.to(features.device)
        for source, target in zip(chunks(features), out.split(ROWS_PER_CHUNK), strict=True):
            target.copy_((source - mean) @ transform)
        return out


def fit_whitening(features: Tensor, rank_tolerance: float | None = None) -> FeatureScale:
    """Centre and decorrelate to unit variance, keeping only directions above the rounding floor.

    The result is unique up to a rotation whatever invertible affine map the features went through. `rank_tolerance`
    replaces the floor: the smallest standard deviation kept, relative to the root mean square feature norm.
    """
    return principal_scales(features, rank_tolerance)["whitened"]


def principal_scales(features: Tensor, rank_tolerance: float | None = None) -> dict[str, FeatureScale]:
    """Two scales from one eigendecomposition of the covariance, with the same directions kept.

    `whitened`: every direction at unit variance. `principal`: relative spread as it is, one common factor that brings
    the mean variance of the kept directions to 1; a ridge penalty then trusts wide directions more, which matters where
    samples are few.
    """
    mean, covariance = moments(features)
    floor = _floor(features, mean, covariance, rank_tolerance)
    variances, directions = torch.linalg.eigh(covariance)
    keep = variances > floor**2
    variances, directions = variances[keep], directions[:, keep]
    common = variances.mean().sqrt() if keep.any() else torch.ones_like(mean[0])
    return {
        "whitened": FeatureScale(mean, directions / variances.sqrt(), floor),
        "principal": FeatureScale(mean, directions / common, floor),
    }


def fit_standardisation(features: Tensor, rank_tolerance: float | None = None) -> FeatureScale:
    """Centre and scale each coordinate to unit variance, dropping coordinates below the rounding floor."""
    mean, covariance = moments(features)
    floor = _floor(features, mean, covariance, rank_tolerance)
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    keep = torch.nonzero(deviation > floor).flatten()
    transform = torch.zeros(features.shape[1], keep.numel(), dtype=torch.float64, device=features.device)
    transform[keep, torch.arange(keep.numel(), device=features.device)] = 1 / deviation[keep]
    return FeatureScale(mean, transform, floor)


def _floor(features: Tensor, mean: Tensor, covariance: Tensor, rank_tolerance: float | None) -> float:
    if rank_tolerance is None:
        return rounding_floor(features, mean, covariance)
    if not 0 <= rank_tolerance < 1:
        raise InvalidValueError(f"rank_tolerance is {rank_tolerance}; expected a share of the feature norm in [0, 1).")
    return rank_tolerance * math.sqrt(float(mean.square().sum() + covariance.diagonal().sum()))


def generator(seed: int) -> torch.Generator:
    """A CPU generator of our own, so that the global state is neither read nor moved."""
    return torch.Generator().manual_seed(int(seed))


def stratified_subset(labels: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """Sorted row numbers of a random `share` of every class, at least one row of each."""
    rows = []
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten().cpu()
        count = max(1, round(share * members.numel()))
        rows.append(members[torch.randperm(members.numel(), generator=rng)[:count]])
    return torch.cat(rows).sort().values.to(labels.device)
