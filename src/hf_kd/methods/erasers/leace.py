"""LEACE (Belrose et al. 2023): the smallest affine change that makes forgotten classes linearly unpredictable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError
from hf_kd.methods.measured import LEACEMeasured

from .base import ForgetData, Head
from .class_means import FittedByClass, given_retain, mean_of, moments_by_class
from .moments import RetainMoments, SecondMoment
from .oblique import ObliqueProjection


@dataclass(frozen=True)
class LEACE(FittedByClass):
    """Least-squares concept erasure (Belrose et al. 2023): the smallest affine change after which no linear predictor of
    "is it forget class c" beats a constant.

    h' = h - W^+ u u^T W (h - mu), W = Cov(h)^(-1/2), u an orthonormal basis of the columns of W Cov(h, z), z one-hot. The
    property is of one class against the rest; a multi-class probe may still choose c where all others score low.

    Attributes:
        tolerance: Correlation under which a column is taken for noise.
    """

    name: ClassVar[str] = "leace"
    source: ClassVar[str] = "Belrose et al. 2023; tolerance is ours"
    when: ClassVar[str] = "Linear predictors of the forgotten classes are to fail, and retained images may be read."
    measures: ClassVar[type] = LEACEMeasured
    needs_retain: ClassVar[bool] = True

    tolerance: float = 0.01

    def __post_init__(self) -> None:
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
        """The affine map.

        Args:
            forget: Moments of D_f, by class where classes are known, or features [n, d].
            labels: Classes of the features [n].
            head: Not used.
            retain: Moments of D_r.

        Returns:
            The map; `measured` is a `LEACEMeasured`.

        Raises:
            InvalidValueError: Without retained features, and where nothing is correlated with being forgotten.
        """
        groups = moments_by_class(forget, labels)
        kept = given_retain(self, retain).moment
        total = SecondMoment.union([*groups.values(), kept])
        count, mean = total.count, mean_of(total)
        columns = []
        for moment in groups.values():
            share = moment.count / count
            columns.append((mean_of(moment) - mean) * share / (share * (1 - share)) ** 0.5)  # Cov(h, z_c / sd(z_c))
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
