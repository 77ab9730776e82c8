"""Knowledge Retention: how well a fresh linear classifier reads the forgotten labels from features.

Two protocols. `converged` is the headline: multinomial logistic regression at its optimum, which no scaling, rotation
or other invertible map of the features can fool. `paper` is the published recipe, ten epochs of plain SGD from scratch:
it stops long before the optimum and mostly measures how large the features are, so it is kept for comparability only.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hf_kd.errors import InvalidValueError

from ._inputs import ArrayLike, as_forget_labels, checked_splits, count_shared_rows
from .linear_probe import Convergence, fit_linear_probe, fit_paper_probe
from .scores import ForgetRetainScores


@dataclass(frozen=True)
class KnowledgeRetentionResult:
    """KR: the paper's four accuracies, read by a fresh linear probe instead of the model's own head."""

    scores: ForgetRetainScores
    protocol: str
    forget_labels: tuple[int, ...]
    convergence: Convergence
    repeated_test_rows: int
    """Test rows that also occur, bit for bit, among the training rows."""
    seed: int


def knowledge_retention(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    forget_labels: int | ArrayLike,
    protocol: Literal["converged", "paper"] = "converged",
    *,
    seed: int = 0,
    **probe_settings,
) -> KnowledgeRetentionResult:
    """Knowledge Retention of `forget_labels` in features: fit a linear probe on train, score train and test.

    Warns, with the count, where test rows are exact copies of training rows: of few, the split overlaps; of many, the
    features collapse inputs onto shared vectors.

    Args:
        train_features: [n, d].
        train_labels: [n], those of the forgotten classes included.
        test_features: [m, d].
        test_labels: [m].
        forget_labels: The forgotten classes.
        protocol: The optimum, or the published recipe that stops before it.
        seed: Of the probe.
        **probe_settings: For `fit_linear_probe` or `fit_paper_probe`.

    Returns:
        The four accuracies of the probe, in percent, and how it converged.

    Raises:
        InvalidValueError: On features that are not finite [n, d] (naming the row), on labels that do not fit them, where
            a split has no forget or no retain sample, on no more samples than classes, and on test labels that training
            does not show.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.1], [0.1, 0.0], [5.0, 5.1], [5.2, 5.0], [9.0, 0.0], [9.1, 0.2]])
        >>> y = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> knowledge_retention(x, y, x + 0.01, y, forget_labels=0).scores
        ForgetRetainScores(D_f=100.0, D_r=100.0, D_ft=100.0, D_rt=100.0)
    """
    train, train_y, test, test_y = checked_splits(
        train_features, train_labels, test_features, test_labels, forget_labels
    )
    if protocol == "converged":
        probe = fit_linear_probe(train, train_y, seed=seed, **probe_settings)
    elif protocol == "paper":
        probe = fit_paper_probe(train, train_y, seed=seed, **probe_settings)
    else:
        raise InvalidValueError(f"protocol is {protocol!r}; expected 'converged' or 'paper'.")
    repeated = _repeated_rows(train, test)
    scores = ForgetRetainScores.from_predictions(
        probe.predict(train), train_y, probe.predict(test), test_y, forget_labels
    )
    return KnowledgeRetentionResult(
        scores, protocol, as_forget_labels(forget_labels), probe.convergence, repeated, seed
    )


def _repeated_rows(train: Tensor, test: Tensor) -> int:
    """How many test rows are copies of training rows, with a warning where any are."""
    repeated = count_shared_rows(train, test)
    if repeated:
        warnings.warn(
            f"{repeated} of {test.shape[0]} test rows are exact copies of training rows. Either the splits overlap, or "
            "the features send many inputs to the same vector; in the first case the test scores are too high.",
            stacklevel=3,
        )
    return repeated
