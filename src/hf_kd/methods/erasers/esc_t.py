"""ESC-T: learn which entries of U may stay (paper, section 3.4).

A mask M in [0, 1]^(d x d) on U = [u_1 ... u_d] is trained on the forget features and the head alone. The backbone is
frozen, so features are computed once: the same optimisation as the published loop, which runs the backbone every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from hf_kd.errors import DivergedError, InvalidValueError
from hf_kd.methods.choices import check_fields
from hf_kd.methods.measured import ESCTMeasured

from .base import Eraser, ForgetData, Head, Method, condition_number
from .heads import missing_input
from .moments import SecondMoment


class MaskedProjection(Eraser):
    """h_R = P_R h with P_R = (U o M)(U o M)^T, stored dense.

    In spite of the paper's words not a projection: it is symmetric and positive semi-definite, but not idempotent, and
    generically of full rank. Where `condition_number` is finite, a linear probe recovers everything it maps.

    Args:
        dim: d.
    """

    kind = "masked-projection"

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.register_buffer("operator", torch.zeros(dim, dim))
        self.operator: Tensor
        """P_R, symmetric [d, d], float32."""

    @classmethod
    def of(cls, masked_directions: Tensor, **measured: Any) -> MaskedProjection:
        """The map E E^T of masked directions E.

        Args:
            masked_directions: E = U o M [d, d].
            **measured: What was measured while fitting.
        """
        eraser = cls(masked_directions.shape[0])
        wide = masked_directions.cpu().double()
        eraser.operator.copy_(wide @ wide.T)
        eraser.measured.update(measured)
        return eraser.to(masked_directions.device)

    def erase(self, features: Tensor) -> Tensor:
        return features @ self.operator.to(features.device, features.dtype)

    @property
    def rank_removed(self) -> int:
        return self.dim - int(torch.linalg.matrix_rank(self.operator.cpu().double(), rtol=1e-6, hermitian=True))

    @property
    def condition_number(self) -> float:
        return condition_number(self.operator)

    def spec(self) -> dict[str, Any]:
        return {"dim": self.dim}

    def check(self) -> None:
        operator = self.operator.cpu().double()
        norm, asymmetry = float(operator.norm()), float((operator - operator.T).norm())
        if not (norm > 0 and asymmetry <= 1e-2 * norm):  # catches NaN too
            raise InvalidValueError(
                f"The operator of ESC-T has to be symmetric and not zero, but its norm is {norm:.3g} and its asymmetry "
                f"{asymmetry:.3g}: the eraser was not loaded or is damaged."
            )


@dataclass(frozen=True)
class ESCT(Method):
    """Train a mask on the principal directions of D_f until the head answers none of it (paper, section 3.4, equation 4).

    max CE over D_f in M, h_R = (U o M)(U o M)^T h, then M <- 1[M > tau]. The loss is the penalised cross entropy
    PCE = -CE(f(x), y) averaged over the samples still predicted correctly, as in the published code. After each plain SGD
    step M is clamped to [0, 1]; training stops when no forget sample is predicted correctly, or after `epochs`.

    Attributes:
        threshold: tau, 0.7 to 0.8 in the paper. None keeps the soft mask (an ablation: the operator is then even less of a
            projection).
        lr: Step size of the mask. The paper says "high"; the published code uses 1e-3, which moves nothing on a CIFAR-10
            ResNet-20 or an ImageNet MobileNetV2 in 50 epochs. With 1 both forget their class in 1 to 5 epochs.
        epochs: At most so many passes over D_f.
        batch_size: Features in each step.
        seed: Of the order of the features.
        loss: "pce", or "ce" for -CE of all samples of the batch, forgotten ones included. With `threshold` and `clip` these
            are the parts that the paper's Table 3 takes away.
        clip: Whether M is held in [0, 1].
    """

    name: ClassVar[str] = "esc-t"
    source: ClassVar[str] = "ESC, section 3.4; threshold of the paper, lr is ours (the published 1e-3 moves nothing)"
    when: ClassVar[str] = "To compare with the paper; where its condition number is finite, a linear probe undoes it."
    measures: ClassVar[type] = ESCTMeasured
    needs_features: ClassVar[bool] = True
    needs_head: ClassVar[bool] = True

    threshold: float | None = 0.7
    lr: float = 1.0
    epochs: int = 50
    batch_size: int = 64
    seed: int = 42
    loss: Literal["pce", "ce"] = "pce"
    clip: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise InvalidValueError(
                f"threshold={self.threshold!r} is out of range: mask entries lie in [0, 1], 0 <= tau < 1."
            )
        if not self.lr > 0:
            raise InvalidValueError(f"lr={self.lr!r} is out of range: the step size has to be positive.")
        for field in ("epochs", "batch_size"):
            if getattr(self, field) < 1:
                raise InvalidValueError(f"{field}={getattr(self, field)!r} is out of range: at least 1.")

    def fit(self, forget: ForgetData, labels: Tensor | None = None, head: Head | None = None) -> MaskedProjection:
        """The masked projection of one tap.

        Args:
            forget: Features [n, d].
            labels: Their classes [n], in the head's own ids.
            head: Features [n, d] -> logits [n, C].

        Returns:
            The masked projection; `measured` is an `ESCTMeasured`.

        Raises:
            InvalidValueError: Without features, labels or head.
            DivergedError: When the mask is no longer finite.
        """
        joint = None if head is None else (lambda features: head(features[0]))
        return self.fit_taps([forget], labels, joint)[0]

    def fit_taps(
        self,
        forget: Sequence[ForgetData],
        labels: Tensor | None = None,
        head: Callable[[Sequence[Tensor]], Tensor] | None = None,
    ) -> list[MaskedProjection]:
        """One mask per tap, trained together: a prediction is the model's, whatever the number of its heads.

        Args:
            forget: Features [n, d] at each tap.
            labels: Their classes [n].
            head: The features at all taps -> the model's logits [n, C].

        Returns:
            A masked projection for each tap; `measured` is an `ESCTMeasured`.

        Raises:
            InvalidValueError: Where features, labels or the head are missing, and where their numbers differ.
        """
        if head is None or labels is None or not all(isinstance(features, Tensor) for features in forget):
            raise missing_input("ESC-T trains its mask on", labels, head)
        features = [cast(Tensor, f).detach().float() for f in forget]
        labels = labels.to(features[0].device)
        if features[0].shape[0] != labels.shape[0]:
            raise InvalidValueError(
                f"Got {features[0].shape[0]} features and {labels.shape[0]} labels; they have to match."
            )
        directions = [SecondMoment.of(f).principal_directions()[0].to(f) for f in features]
        masks = [torch.ones_like(u, requires_grad=True) for u in directions]

        def logits(rows: Tensor) -> Tensor:
            masked = [u * m for u, m in zip(directions, masks, strict=True)]
            return head([(f[rows] @ e) @ e.T for f, e in zip(features, masked, strict=True)])

        measured: dict[str, Any] = {"n_forget": len(labels), "forget_hits_before": _hits(logits, labels)}
        epochs_run, left = self._train(masks, logits, labels) if measured["forget_hits_before"] > 0 else (0, False)
        soft = _hits(logits, labels) if left else 0.0
        if self.threshold is not None:
            for mask in masks:
                mask.detach().copy_(mask > self.threshold)
        measured |= {"epochs_run": epochs_run, "forget_hits_soft": soft, "forget_hits_hard": _hits(logits, labels)}
        return [
            MaskedProjection.of((u * m).detach(), **measured, masked_entries=int((m == 0).sum()))
            for u, m in zip(directions, masks, strict=True)
        ]

    def _train(self, masks: Sequence[Tensor], logits: Callable[[Tensor], Tensor], labels: Tensor) -> tuple[int, bool]:
        """Change the masks until no feature is hit or the epochs are over; how many ran, and whether any is hit still."""
        generator = torch.Generator().manual_seed(self.seed)
        for epoch in range(1, self.epochs + 1):
            for rows in torch.randperm(len(labels), generator=generator).to(labels.device).split(self.batch_size):
                self._step(masks, logits, rows, labels[rows])
            if not all(bool(torch.isfinite(mask).all()) for mask in masks):
                raise DivergedError(
                    f"The mask of ESC-T is no longer finite after {epoch} epochs with lr={self.lr}, "
                    f"loss={self.loss!r} and clip={self.clip}: use a smaller lr, or loss='pce' and clip=True."
                )
            if not any(_hit_counts(logits, labels, self.batch_size)):  # up to the first batch with one
                return epoch, False
        return self.epochs, True

    def _step(self, masks: Sequence[Tensor], logits: Callable[[Tensor], Tensor], rows: Tensor, labels: Tensor) -> None:
        """Plain SGD; torch.optim imports a compiler at its first step, which takes longer than all of the training."""
        with torch.enable_grad():
            answers = logits(rows)
            correct = answers.argmax(dim=1) == labels
            if self.loss == "ce":
                correct = torch.ones_like(correct)
            if not bool(correct.any()):
                return
            loss = -F.cross_entropy(answers[correct], labels[correct])
            gradients = torch.autograd.grad(loss, masks)
        with torch.no_grad():
            for mask, gradient in zip(masks, gradients, strict=True):
                mask.sub_(gradient, alpha=self.lr)
                if self.clip:
                    mask.clamp_(0, 1)


@torch.no_grad()
def _hit_counts(logits: Callable[[Tensor], Tensor], labels: Tensor, at_once: int) -> Iterator[int]:
    """How many features of each batch are answered as their class."""
    for rows in torch.arange(len(labels), device=labels.device).split(at_once):
        yield int((logits(rows).argmax(dim=1) == labels[rows]).sum())


def _hits(logits: Callable[[Tensor], Tensor], labels: Tensor) -> float:
    """Percent of all."""
    return 100.0 * sum(_hit_counts(logits, labels, 4096)) / len(labels)
