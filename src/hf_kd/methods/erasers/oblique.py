"""The oblique projection: what it removes, and along which directions, may differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from .base import Eraser


class ObliqueProjection(Eraser):
    """h -> h - W R^T (h - c) with R^T W = I: removes r directions W as R reads them, along the null space of R^T.

    Args:
        dim: d.
        rank: r.
    """

    kind = "oblique-projection"
    is_projection = True

    def __init__(self, dim: int, rank: int) -> None:
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
        """The projection with these R, W and c.

        Args:
            read: R [d, r].
            write: W [d, r].
            center: c [d]; 0 by default.
            **measured: What was measured while fitting.
        """
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
        gram = self.read.cpu().double().T @ self.write.cpu().double()
        error = float((gram - torch.eye(self.rank_removed, dtype=gram.dtype)).abs().max())
        if not (error < 5e-2 and bool(torch.isfinite(self.center).all())):  # catches NaN too
            raise InvalidValueError(
                f"R^T W of an oblique projection has to be I, but differs from it by {error:.3g}: the eraser was not loaded "
                "or is damaged."
            )
