"""Membership inference: can an attacker tell that a forgotten image was in the training set?

Population attacks on the outputs of one model, in the variants the unlearning literature reports: the loss attack of
the ESC paper's Table 1, the member rate of Golatkar et al. / BadT / SSD, and the "MIA efficacy" of Unlearn-Sparse /
SalUn (both are candidates for Table 5). They are weak: attackers with reference models (`membership_reference`) find
more. Every result is read two-sided, as `leak`: an attack far *below* chance tells members apart just as well.

All logits have to come from the same, un-augmented test transform. The published code feeds members through the
training augmentation and non-members through the test transform, and so also measures the augmentation. A model
retrained without a class answers neither its train nor its test images: after class forgetting compare these numbers
with a retrained model's, not with chance. Rates are in percent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from ._inputs import CHUNK, ArrayLike, aligned_chunks, as_classes, as_logits
from .scores import area_under_roc, check_rate, recall_at

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

LOG_FLOOR = -100.0
"""Log-probabilities are clipped here, as SCRUB clips its losses: a class whose logit was removed has log p = -inf."""

EFFICACY_STATISTICS = ("confidence", "correctness", "entropy", "modified_entropy", "probabilities")


@dataclass(frozen=True)
class Separation:
    """How well one score tells members from non-members; direction: a higher score claims membership."""

    auc: float
    """P(member scores above non-member), percent; 50 is chance, 0 a perfect attack read backwards."""
    auc_sd: float
    tpr: float
    """Members found at the false-positive rate `fpr`, percent; chance is 100 * `fpr`."""
    tpr_sd: float
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


@dataclass(frozen=True)
class MemberShare:
    """What share of D_f an attacker fitted on D_r (members) against D_t (non-members) takes for members.

    Two attackers, each fitted on one half of D_r and D_t, judge D_f and the other half of D_t; both rates are means
    over the two. The published protocols fit one attacker on everything and have no second rate. Without it the first
    means little: where D_r and D_t hardly differ, the attacker calls everything member or nothing, as chance has it.
    """

    statistic: str
    attacker: str
    member_rate: float
    """Share of D_f called member, percent."""
    false_alarm_rate: float
    """Share of D_t called member by the attacker that was not fitted on it, percent: the level of "never seen"."""
    samples: int
    """Images a side, half of them for each attacker."""

    @property
    def efficacy(self) -> float:
        """Share of D_f called non-member, percent: the "MIA efficacy" of Unlearn-Sparse and SalUn."""
        return 100 - self.member_rate

    @property
    def leak(self) -> float:
        """Distance of D_f from images that were never seen, in points. Chance for this attack is not 50."""
        return abs(self.member_rate - self.false_alarm_rate)


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

    Shapes: logits [n, C], labels [n]. Raises ValueError on fewer than 10 images a side or malformed input.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedShuffleSplit

    check_rate(fpr, "fpr")
    losses = [
        sample_losses(*_checked(member_logits, member_labels, "member")).numpy(),
        sample_losses(*_checked(nonmember_logits, nonmember_labels, "nonmember")).numpy(),
    ]
    size = min(map(len, losses))
    if size < 10:
        raise InvalidValueError(
            f"{len(losses[0])} members and {len(losses[1])} non-members; the attack splits off a tenth of each side "
            "and needs at least 10. Use more images of the forgotten classes."
        )
    targets = np.repeat([1, 0], size)
    accuracies = []
    for generator in np.random.default_rng(seed).spawn(draws):
        inputs = np.concatenate([side[generator.permutation(len(side))[:size]] for side in losses])[:, None]
        splits = StratifiedShuffleSplit(n_splits=5, test_size=0.1, random_state=int(generator.integers(2**31)))
        scores = [
            LogisticRegression().fit(inputs[fit], targets[fit]).score(inputs[held_out], targets[held_out])
            for fit, held_out in splits.split(inputs, targets)
        ]
        accuracies.append(100 * np.mean(scores))
    separation = separate(-losses[0], -losses[1], fpr=fpr, draws=draws, seed=seed)
    return LossAttack(**vars(separation), accuracy=float(np.mean(accuracies)), accuracy_sd=float(np.std(accuracies)))


def separate(
    member_scores: np.ndarray | Tensor,
    nonmember_scores: np.ndarray | Tensor,
    *,
    fpr: float = 0.01,
    draws: int = 20,
    seed: int = 0,
) -> Separation:
    """AUC and true-positive rate at a low false-positive rate of any membership score [n], with bootstrap deviations.

    Raises ValueError on NaN or empty scores, or `fpr` outside (0, 1).
    """
    check_rate(fpr, "fpr")
    members, nonmembers = _scores(member_scores, "member_scores"), _scores(nonmember_scores, "nonmember_scores")
    positive = np.repeat([True, False], [len(members), len(nonmembers)])
    scores = np.concatenate([members, nonmembers])
    aucs, tprs = [], []
    for generator in np.random.default_rng(seed).spawn(draws):
        resampled = [side[generator.integers(len(side), size=len(side))] for side in (members, nonmembers)]
        resampled = np.concatenate(resampled)
        aucs.append(area_under_roc(resampled, positive))
        tprs.append(recall_at(resampled, positive, fpr))
    return Separation(
        auc=area_under_roc(scores, positive),
        auc_sd=float(np.std(aucs)),
        tpr=recall_at(scores, positive, fpr),
        tpr_sd=float(np.std(tprs)),
        tpr_reversed=recall_at(-scores, positive, fpr),
        fpr=fpr,
        members=len(members),
        nonmembers=len(nonmembers),
        draws=draws,
    )


def member_rate(
    retain_logits: ArrayLike,
    test_logits: ArrayLike,
    forget_logits: ArrayLike,
    *,
    attacker: str = "logistic",
    max_samples: int = 4000,
    seed: int = 0,
) -> MemberShare:
    """Share of D_f that an entropy attacker fitted on D_r against D_t calls members (Golatkar et al.; BadT; SSD).

    The likely MIA of the paper's Table 5, whose target is the retrained model's value. `attacker` is "logistic"
    (class-balanced) or "svc" (RBF, C = 3), as both are in use. At most `max_samples` images a side are drawn.

    Shapes: logits [n, C]. Raises ValueError on an unknown attacker, fewer than 4 images, or malformed input.
    """
    sides = [
        _entropy(as_logits(logits, f"{name}_logits")).cpu().numpy()[:, None]
        for name, logits in (("retain", retain_logits), ("test", test_logits), ("forget", forget_logits))
    ]
    return _member_share("entropy", attacker, *sides, max_samples=max_samples, seed=seed)


def mia_efficacy(
    retain_logits: ArrayLike,
    retain_labels: ArrayLike,
    test_logits: ArrayLike,
    test_labels: ArrayLike,
    forget_logits: ArrayLike,
    forget_labels: ArrayLike,
    *,
    max_samples: int = 4000,
    seed: int = 0,
) -> dict[str, MemberShare]:
    """The five attacks of Unlearn-Sparse / SalUn, by name: `MemberShare.efficacy` is what those papers print.

    An RBF support vector machine (C = 3, gamma "auto") on the true class's probability ("confidence"), whether the
    answer is right ("correctness"), entropy, modified entropy, or the whole probability vector, fitted on equally many
    images of D_r and D_t. Modified entropy follows Song & Mittal: -(1 - p_y) log p_y - sum_{i != y} p_i log(1 - p_i).
    The published code takes the first |D_t| retain images; here they are drawn at random.

    Shapes: logits [n, C], labels [n]. Raises ValueError on malformed input.
    """
    sides = [
        sample_statistics(logits, labels, name)
        for name, logits, labels in (
            ("retain", retain_logits, retain_labels),
            ("test", test_logits, test_labels),
            ("forget", forget_logits, forget_labels),
        )
    ]
    return {
        name: _member_share(name, "svc", *(side[name] for side in sides), max_samples=max_samples, seed=seed)
        for name in EFFICACY_STATISTICS
    }


def sample_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each sample in nats, float64 [n], clipped to 100 (the loss of a removed class is infinite)."""
    return -true_class_log_probabilities(logits, labels).clamp(min=LOG_FLOOR)


def true_class_log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """log p_y of each sample, float64 [n] on the CPU; -inf where the class was removed."""
    parts = [torch.log_softmax(part, 1).gather(1, y[:, None])[:, 0] for part, y in _with_labels(logits, labels)]
    return torch.cat(parts).cpu()


def sample_statistics(logits: ArrayLike, labels: ArrayLike, name: str = "given") -> dict[str, np.ndarray]:
    """What the efficacy attacks look at: the five `EFFICACY_STATISTICS`, each [n, 1] but "probabilities" [n, C]."""
    logits, labels = _checked(logits, labels, name)
    columns: dict[str, list[Tensor]] = {statistic: [] for statistic in EFFICACY_STATISTICS}
    for part, y in _with_labels(logits, labels):
        log_p = torch.log_softmax(part, 1)
        p, of_label = log_p.exp(), y[:, None]
        columns["confidence"].append(p.gather(1, of_label))
        columns["correctness"].append((part.argmax(1, keepdim=True) == of_label).double())
        columns["entropy"].append(_entropy(part)[:, None])
        columns["modified_entropy"].append(_modified_entropy(part, log_p, of_label))
        columns["probabilities"].append(p)
    return {statistic: torch.cat(parts).cpu().numpy() for statistic, parts in columns.items()}


def _entropy(logits: Tensor) -> Tensor:
    parts = []
    for (part,) in aligned_chunks(logits):
        p = torch.softmax(part, 1)
        parts.append(-torch.xlogy(p, p).sum(1))
    return torch.cat(parts)


def _modified_entropy(logits: Tensor, log_p: Tensor, of_label: Tensor) -> Tensor:
    """Song & Mittal's modified entropy [n, 1], exact where p is within rounding of 1 and finite where p_y is 0."""
    p = log_p.exp()
    top = logits.argmax(1, keepdim=True)
    # log(1 - p) cancels only for the largest class; there it is the log-sum of all others over the log-sum of all.
    others = logits.scatter(1, top, float("-inf")).logsumexp(1, keepdim=True) - logits.logsumexp(1, keepdim=True)
    log_not_p = torch.log1p(-p).scatter(1, top, others).clamp(min=LOG_FLOOR)
    wrong = (p * log_not_p).scatter(1, of_label, 0.0).sum(1, keepdim=True)
    return -log_not_p.gather(1, of_label).exp() * log_p.gather(1, of_label).clamp(min=LOG_FLOOR) - wrong


def _attackers() -> dict[str, BaseEstimator]:
    """The unfitted classifiers of `member_rate` by name."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    return {
        "logistic": LogisticRegression(class_weight="balanced"),
        "svc": SVC(C=3, kernel="rbf", gamma="auto", class_weight="balanced"),
    }


def _member_share(
    statistic: str,
    attacker: str,
    retain: np.ndarray,
    test: np.ndarray,
    forget: np.ndarray,
    *,
    max_samples: int,
    seed: int,
) -> MemberShare:
    attackers = _attackers()
    if attacker not in attackers:
        raise InvalidValueError(f"attacker={attacker!r}; the attackers are {', '.join(map(repr, attackers))}.")
    size = min(len(retain), len(test), max_samples)
    if size < 4:
        raise InvalidValueError(
            f"{len(retain)} retain and {len(test)} test images, max_samples={max_samples}: the attacker is fitted on "
            "equally many of both and needs at least 4."
        )
    generator = np.random.default_rng(seed)
    members, nonmembers = (side[generator.permutation(len(side))[:size]] for side in (retain, test))

    def fitted(rows: slice) -> BaseEstimator:
        inputs = np.concatenate([members[rows], nonmembers[rows]])
        return attackers[attacker].fit(inputs, np.repeat([1, 0], len(inputs) // 2))

    even, odd = slice(0, None, 2), slice(1, None, 2)
    called = {"forget": [], "unseen": []}
    for fit, held_out in ((even, odd), (odd, even)):
        fitted_attacker = fitted(fit)
        called["forget"].append(fitted_attacker.predict(forget))
        called["unseen"].append(fitted_attacker.predict(nonmembers[held_out]))
    return MemberShare(
        statistic=statistic,
        attacker=attacker,
        member_rate=100 * float(np.mean(np.concatenate(called["forget"]))),
        false_alarm_rate=100 * float(np.mean(np.concatenate(called["unseen"]))),
        samples=size,
    )


def _checked(logits: ArrayLike, labels: ArrayLike, name: str) -> tuple[Tensor, Tensor]:
    logits = as_logits(logits, f"{name}_logits")
    return logits, as_classes(labels, logits, f"{name} labels")


def _with_labels(logits: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    rows = zip(aligned_chunks(logits), labels.split(CHUNK), strict=True)
    return ((part, y) for (part,), y in rows)


def _scores(values: np.ndarray | Tensor, name: str) -> np.ndarray:
    scores = torch.as_tensor(values).detach().cpu().double().numpy()
    if scores.ndim != 1 or len(scores) == 0 or np.isnan(scores).any():
        raise InvalidValueError(
            f"{name} has shape {scores.shape} and {int(np.isnan(scores).sum())} NaN; one score a sample is needed."
        )
    return scores
