"""Retained-span projection: keep of the features only what tells the retained classes apart by the head.

The middle of the road between ESC and cover erasure. A backbone stores a class redundantly, so a converged probe still
reads most of it from what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError
from hf_kd.methods.measured import RetainedSpanMeasured

from .base import Eraser, ForgetData, Head, Method
from .heads import affine_head, checked_labels, mirrored_prototypes, missing_input, still_answered


class KeptSpan(Eraser):
    """h -> c + B B^T (h - c) with orthonormal B [d, r]: keeps r directions, and c in all others.

    Args:
        dim: d.
        rank: r.
    """

    kind = "kept-span"
    is_projection = True

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__(dim)
        self.register_buffer("basis", torch.zeros(dim, rank))
        self.register_buffer("center", torch.zeros(dim))
        self.basis: Tensor
        """B, orthonormal columns [d, r]."""
        self.center: Tensor
        """c [d]."""

    def erase(self, features: Tensor) -> Tensor:
        basis, center = self.basis.to(features.device, features.dtype), self.center.to(features.device, features.dtype)
        return center + ((features - center) @ basis) @ basis.T

    @property
    def rank_removed(self) -> int:
        return self.dim - self.basis.shape[1]

    @property
    def condition_number(self) -> float:
        return float("inf") if self.rank_removed else 1.0

    def spec(self) -> dict[str, Any]:
        return {"dim": self.dim, "rank": self.basis.shape[1]}

    def check(self) -> None:
        basis = self.basis.cpu().double()
        error = float((basis.T @ basis - torch.eye(basis.shape[1], dtype=torch.float64)).abs().max())
        if not (error < 1e-2 and bool(torch.isfinite(self.center).all())):  # catches NaN too
            raise InvalidValueError(
                f"The basis of a kept span has to be orthonormal, but B^T B differs from I by {error:.3g}: the eraser was "
                "not loaded or is damaged."
            )


@dataclass(frozen=True)
class RetainedSpan(Method):
    """Keep the span of w_c - mean w over the retained classes c; elsewhere every feature gets the same value.

    h -> c + B B^T (h - c). Logits of retained classes keep their differences exactly. The constant outside the span is that
    of the mean of the mirrored prototypes. Needs fewer retained classes than d.
    """

    name: ClassVar[str] = "retained-span"
    source: ClassVar[str] = "ours"
    measures: ClassVar[type] = RetainedSpanMeasured
    when: ClassVar[str] = (
        "Only the answers among the retained classes matter: keeps what the head reads and nothing else."
    )
    needs_features: ClassVar[bool] = True
    needs_head: ClassVar[bool] = True
    masks_head: ClassVar[bool] = True

    def fit(self, forget: ForgetData, labels: Tensor | None = None, head: Head | None = None) -> KeptSpan:
        """The projection on the span of retained rows.

        Args:
            forget: Features [n, d].
            labels: Their classes [n], in the head's own ids.
            head: Features [n, d] -> logits [n, C].

        Returns:
            The projection; `measured` is a `RetainedSpanMeasured`.

        Raises:
            InvalidValueError: Where something is missing or does not fit, the retained rows of the head span all of
                R^d, or a forgotten class is masked already.
        """
        if head is None or labels is None or not isinstance(forget, Tensor):
            raise missing_input("retained-span is fitted on", labels, head)
        weight, bias = affine_head(head, forget.detach().float())
        forgotten = checked_labels(forget, labels, len(bias))
        retained = still_answered(head, len(bias), forgotten)
        if len(retained) < 2:
            raise InvalidValueError(f"{len(retained)} classes are retained; a span needs two or more.")
        rows = weight[retained] - weight[retained].mean(dim=0)
        _, values, directions = torch.linalg.svd(rows, full_matrices=False)
        # relative to what the mean was subtracted from: of rows that are alike, rounding is all that is left
        basis = directions[values > 1e-6 * torch.linalg.matrix_norm(weight[retained], 2)].T
        if basis.shape[1] >= basis.shape[0]:
            raise InvalidValueError(
                f"{len(retained)} retained classes span all d = {basis.shape[0]} dimensions, so keeping their span removes "
                "nothing. Use another method."
            )
        means = {f: forget[labels == f].cpu().double().mean(dim=0) for f in forgotten}
        center = torch.stack(list(mirrored_prototypes(weight, bias, means, retained).values())).mean(dim=0)
        eraser = KeptSpan(*basis.shape)
        eraser.basis.copy_(basis)
        eraser.center.copy_(center - basis @ (basis.T @ center))
        eraser.measured.update({"kept_dimensions": basis.shape[1], "n_forget": len(labels)})
        return eraser

    def fit_taps(
        self, forget: Sequence[ForgetData], labels: Tensor | None = None, head: Any = None, **given: Sequence[Any]
    ) -> list[Eraser]:
        """Each tap by its own head.

        Args:
            forget: Features [n, d] at each tap.
            labels: Their classes [n], in the head's own ids.
            head: The model's logits as a function of features at all taps; see `hf_kd.features.taps.head_function`.
            **given: Not used.

        Returns:
            A `KeptSpan` for each tap.

        Raises:
            InvalidValueError: As `fit`.
        """
        return [self.fit(data, labels, None if head is None else head.of_tap(i)) for i, data in enumerate(forget)]
