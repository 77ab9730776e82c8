"""Membership inference: can an attacker tell that a forgotten image was in the training set?

Attacks on the outputs of one model, in the variants the unlearning literature reports: here the loss attack of the ESC
paper's Table 1, in `membership_share` those that count the share of D_f taken for members. They are weak: attackers with
reference models (`membership_reference`) find more. Every result is read two-sided, as `leak`: an attack far *below*
chance tells members apart just as well.

All logits have to come from the same, un-augmented test transform. The published code feeds members through the
training augmentation and non-members through the test transform, and so also measures the augmentation. A model
retrained without a class answers neither its train nor its test images: after class forgetting compare these numbers
with a retrained model's, not with chance. Rates are in percent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from ._inputs import CHUNK, ArrayLike, aligned_chunks, as_classes, as_logits
from .scores import area_under_roc, check_rate, recall_at

LOG_FLOOR = -100.0
"""Log-probabilities are clipped here, as SCRUB clips its losses: a class whose logit was removed has log p = -inf."""


@dataclass(frozen=True)
class Separation:
    """How well one score tells members from non-members; direction: a higher score claims membership."""

    auc: float
    """P(member scores above non-member), percent; 50 is chance, 0 a perfect attack read backwards."""
    auc_sd: float
    tpr: float
    """Members found at the false-positive rate `fpr`, percent; chance is 100 * `fpr`."""
    tpr_reversed: float
    """The same when a lower score claims membership: what the attacker finds by turning the test around."""
    fpr: float
    members: int
    nonmembers: int
    draws: int
    """Bootstrap resamples of the images behind the standard deviations; the model stays the same."""

    @property
    def auc_two_sided(self) -> float:
        """max(AUC, 100 - AUC): the attacker picks the direction."""
        return max(self.auc, 100 - self.auc)

    @property
    def leak(self) -> float:
        """Distance of the AUC from chance, in points: 0 no leak, 50 total."""
        return abs(self.auc - 50)


@dataclass(frozen=True)
class LossAttack(Separation):
    """The loss attack of Table 1; `auc` and `tpr` use the loss itself, without a fitted attacker."""

    accuracy: float
    """Held-out accuracy of the logistic attacker on balanced data, percent, mean over draws; 50 is chance."""
    accuracy_sd: float
    """Over draws, each with its own balanced subsample and its own splits."""

    @property
    def leak(self) -> float:
        """The larger distance from chance of accuracy and AUC, in points."""
        return max(abs(self.accuracy - 50), abs(self.auc - 50))


def loss_attack(
    member_logits: ArrayLike,
    member_labels: ArrayLike,
    nonmember_logits: ArrayLike,
    nonmember_labels: ArrayLike,
    *,
    draws: int = 20,
    fpr: float = 0.01,
    seed: int = 0,
) -> LossAttack:
    """Loss-based membership attack of the ESC paper (Table 1): D_f against D_ft.

    Cross-entropy of each image, clipped to [0, 100]; both sides cut to the same number at random; scikit-learn's
    default logistic regression scored on `StratifiedShuffleSplit(n_splits=5, test_size=0.1)`. One such draw moves by
    about a point, as much as most gaps in Table 1, hence the mean over `draws`.

    Args:
        member_logits: [n, C], of images that were in the training set.
        member_labels: [n].
        nonmember_logits: [m, C], of images of the same classes that were not.
        nonmember_labels: [m].
        draws: Subsamples and bootstrap resamples.
        fpr: False-positive rate at which members are counted.
        seed: Of the draws.

    Raises:
        InvalidValueError: On fewer than 10 images a side or malformed input.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> sure, unsure = (s * torch.randn(40, 5, generator=rng).abs() for s in (8.0, 1.0))
        >>> attack = loss_attack(sure, sure.argmax(1), unsure, unsure.argmax(1), draws=2)
        >>> attack.auc > 80 and attack.leak > 30
        True
    """
    check_rate(fpr, "fpr")
    losses = [
        sample_losses(*checked_logits(member_logits, member_labels, "member")).numpy(),
        sample_losses(*checked_logits(nonmember_logits, nonmember_labels, "nonmember")).numpy(),
    ]
    size = min(map(len, losses))
    if size < 10:
        raise InvalidValueError(
            f"{len(losses[0])} members and {len(losses[1])} non-members; the attack splits off a tenth of each side "
            "and needs at least 10. Use more images of the forgotten classes."
        )
    accuracies = [_held_out_accuracy(losses, size, own) for own in np.random.default_rng(seed).spawn(draws)]
    separation = separate(-losses[0], -losses[1], fpr=fpr, draws=draws, seed=seed)
    return LossAttack(**vars(separation), accuracy=float(np.mean(accuracies)), accuracy_sd=float(np.std(accuracies)))


def _held_out_accuracy(losses: Sequence[np.ndarray], size: int, generator: np.random.Generator) -> float:
    """Mean accuracy of logistic regression on held-out tenths of one draw of `size` losses a side, in percent."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit

    targets = np.repeat([1, 0], size)
    inputs = np.concatenate([side[generator.permutation(len(side))[:size]] for side in losses])[:, None]
    splits = StratifiedShuffleSplit(n_splits=5, test_size=0.1, random_state=int(generator.integers(2**31)))
    scores = [
        LogisticRegression().fit(inputs[fit], targets[fit]).score(inputs[held_out], targets[held_out])
        for fit, held_out in splits.split(inputs, targets)
    ]
    return 100 * float(np.mean(scores))


def separate(
    member_scores: np.ndarray | Tensor,
    nonmember_scores: np.ndarray | Tensor,
    *,
    fpr: float = 0.01,
    draws: int = 20,
    seed: int = 0,
) -> Separation:
    """AUC and true-positive rate at a low false-positive rate of any membership score, with bootstrap deviations.

    Args:
        member_scores: [n], higher claims membership; may be infinite.
        nonmember_scores: [m].
        fpr: False-positive rate at which members are counted.
        draws: Bootstrap resamples.
        seed: Of these.

    Returns:
        Rates in percent, also for the reversed test.

    Raises:
        InvalidValueError: On NaN or no scores, or `fpr` outside (0, 1).

    Example:
        >>> found = separate([3.0, 2.0], [1.0, 2.0], fpr=0.5, draws=1)
        >>> found.auc, found.tpr, found.tpr_reversed
        (87.5, 100.0, 0.0)
    """
    check_rate(fpr, "fpr")
    members, nonmembers = _scores(member_scores, "member_scores"), _scores(nonmember_scores, "nonmember_scores")
    positive = np.repeat([True, False], [len(members), len(nonmembers)])
    scores = np.concatenate([members, nonmembers])
    aucs = []
    for generator in np.random.default_rng(seed).spawn(draws):
        resampled = [side[generator.integers(len(side), size=len(side))] for side in (members, nonmembers)]
        resampled = np.concatenate(resampled)
        aucs.append(area_under_roc(resampled, positive))
    return Separation(
        auc=area_under_roc(scores, positive),
        auc_sd=float(np.std(aucs)),
        tpr=recall_at(scores, positive, fpr),
        tpr_reversed=recall_at(-scores, positive, fpr),
        fpr=fpr,
        members=len(members),
        nonmembers=len(nonmembers),
        draws=draws,
    )


def sample_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each sample in nats, float64 [n], clipped to 100 (the loss of a removed class is infinite).

    Args:
        logits: [n, C].
        labels: [n].

    Example:
        >>> sample_losses(torch.tensor([[0.0, 0.0], [0.0, float("-inf")]]), torch.tensor([0, 1])).tolist()
        [0.6931471805599453, 100.0]
    """
    return -true_class_log_probabilities(logits, labels).clamp(min=LOG_FLOOR)


def true_class_log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """log p_y of each sample in nats, float64 [n] on the CPU; -inf where the class was removed.

    Args:
        logits: [n, C].
        labels: [n].

    Example:
        >>> true_class_log_probabilities(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).exp().tolist()
        [0.5]
    """
    parts = [torch.log_softmax(part, 1).gather(1, y[:, None])[:, 0] for part, y in with_labels(logits, labels)]
    return torch.cat(parts).cpu()


def checked_logits(logits: ArrayLike, labels: ArrayLike, name: str) -> tuple[Tensor, Tensor]:
    """Logits [n, C] and the class of each row [n], or an error that calls them by `name`.

    Example:
        >>> checked_logits([[0.5, 0.0]], [1], "member")
        (tensor([[0.5000, 0.0000]]), tensor([1]))
    """
    logits = as_logits(logits, f"{name}_logits")
    return logits, as_classes(labels, logits, f"{name} labels")


def with_labels(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A few thousand rows of logits in float64 at a time, and their labels.

    Example:
        >>> [len(y) for _, y in with_labels(torch.zeros(5000, 2), torch.zeros(5000, dtype=torch.int64))]
        [4096, 904]
    """
    rows = zip(aligned_chunks(logits), labels.split(CHUNK), strict=True)
    return ((part, y) for (part,), y in rows)


def _scores(values: np.ndarray | Tensor, name: str) -> np.ndarray:
    scores = torch.as_tensor(values).detach().cpu().double().numpy()
    if scores.ndim != 1 or len(scores) == 0 or np.isnan(scores).any():
        raise InvalidValueError(
            f"{name} has shape {scores.shape} and {int(np.isnan(scores).sum())} NaN; one score a sample is needed."
        )
    return scores
