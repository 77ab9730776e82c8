"""Put features on a comparable scale: whitening, principal axes at their own spread, standardisation, rows of length 1.

Statistics are float64 whatever the features are stored in. Directions in which the features do not vary beyond the
rounding of that storage are dropped and never rescaled: an erased direction keeps a residue of about 1e-7 of the
feature norm in float32, and dividing by its standard deviation would hand the attacker noise as if it were signal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ._inputs import ROWS_PER_CHUNK, chunks


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and covariance [d, d] (divided by n) of features [n, d], float64, centred before squaring.

    Example:
        >>> mean, covariance = moments(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> mean.tolist(), covariance.tolist()
        ([1.0, 1.0], [[1.0, 0.0], [0.0, 0.0]])
    """
    n, d = features.shape
    mean = sum((part.sum(dim=0) for part in chunks(features)), start=_zeros(features, d)) / n
    covariance = sum(((part - mean).T @ (part - mean) for part in chunks(features)), start=_zeros(features, d, d)) / n
    return mean, covariance


def _zeros(features: Tensor, *shape: int) -> Tensor:
    return features.new_zeros(shape, dtype=torch.float64)


def rounding_floor(features: Tensor, mean: Tensor, covariance: Tensor) -> float:
    """The standard deviation below which variation along a direction is rounding of the storage, not signal.

    float32 and wider: 8 eps of float32 times the root mean square norm (a projection done in float32 leaves a residue
    proportional to the whole norm, and float64 input has usually been float32 before). Half precisions: half an eps of
    the dtype times the same norm over sqrt(d), the spread of independent rounding of each coordinate.

    Args:
        features: [n, d]; only dtype and d are used.
        mean: [d].
        covariance: [d, d].

    Example:
        >>> x = torch.tensor([[3.0, 4.0], [3.0, 4.0]])
        >>> rounding_floor(x, *moments(x)) == 8 * torch.finfo(torch.float32).eps * 5
        True
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


def principal_scales(features: Tensor) -> dict[str, FeatureScale]:
    """Two scales from one eigendecomposition of the covariance, with the same directions kept.

    Args:
        features: [n, d].

    Returns:
        `whitened`: every direction at unit variance, unique up to a rotation whatever invertible affine map the features
        went through. `principal`: relative spread as it is, one common factor that brings the mean variance of the kept
        directions to 1; a ridge penalty then trusts wide directions more, which matters where samples are few.

    Example:
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]])
        >>> variances = principal_scales(x)["principal"](x).var(dim=0, correction=0)
        >>> [round(float(v), 3) for v in variances]
        [0.4, 1.6]
    """
    mean, covariance = moments(features)
    floor = rounding_floor(features, mean, covariance)
    variances, directions = torch.linalg.eigh(covariance)
    keep = variances > floor**2
    variances, directions = variances[keep], directions[:, keep]
    common = variances.mean().sqrt() if keep.any() else torch.ones_like(mean[0])
    return {
        "whitened": FeatureScale(mean, directions / variances.sqrt(), floor),
        "principal": FeatureScale(mean, directions / common, floor),
    }


def fit_standardisation(features: Tensor) -> FeatureScale:
    """Centre and scale each coordinate to unit variance, dropping coordinates below the rounding floor.

    Args:
        features: [n, d].

    Example:
        >>> x = torch.tensor([[0.0, 7.0, 1.0], [4.0, 7.0, 3.0]])
        >>> fit_standardisation(x)(x).tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
    """
    mean, covariance = moments(features)
    floor = rounding_floor(features, mean, covariance)
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    keep = torch.nonzero(deviation > floor).flatten()
    transform = torch.zeros(features.shape[1], keep.numel(), dtype=torch.float64, device=features.device)
    transform[keep, torch.arange(keep.numel(), device=features.device)] = 1 / deviation[keep]
    return FeatureScale(mean, transform, floor)


def unit_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [n, d] scaled to length 1, float64, and their lengths [n]; a row of zeros stays one: cosine 0 to all.

    Example:
        >>> rows, lengths = unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> rows.tolist(), lengths.tolist()
        ([[0.6, 0.8], [0.0, 0.0]], [5.0, 0.0])
    """
    matrix = matrix.to(torch.float64)
    lengths = torch.linalg.vector_norm(matrix, dim=1)
    return matrix / torch.where(lengths > 0, lengths, torch.ones_like(lengths))[:, None], lengths
