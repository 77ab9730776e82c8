"""Membership by the share of D_f that an attacker, fitted on retained against unseen images, takes for members.

The member rate of Golatkar et al. / BadT / SSD, and the "MIA efficacy" of Unlearn-Sparse / SalUn; both are candidates
for Table 5 of the ESC paper. As in `membership` all logits have to come from the same, un-augmented test transform.
Rates are in percent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from ._inputs import ArrayLike, aligned_chunks, as_logits
from .membership import LOG_FLOOR, checked_logits, with_labels

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

EFFICACY_STATISTICS = ("confidence", "correctness", "entropy", "modified_entropy", "probabilities")


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
    """Share of D_t called member by the attacker that was not fitted on it, percent: the level of unseen images."""
    samples: int
    """Images a side, half of them for each attacker."""

    @property
    def efficacy(self) -> float:
        """Share of D_f called non-member, percent: the "MIA efficacy" of Unlearn-Sparse and SalUn."""
        return 100 - self.member_rate

    @property
    def leak(self) -> float:
        """Distance of D_f from unseen images, in points. Chance for this attack is not 50."""
        return abs(self.member_rate - self.false_alarm_rate)


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

    The likely MIA of the paper's Table 5, whose target is the retrained model's value.

    Args:
        retain_logits: [n, C] on D_r, the members.
        test_logits: [m, C] on D_t, the non-members.
        forget_logits: [k, C] on D_f, which are judged.
        attacker: "logistic" (class-balanced) or "svc" (RBF, C = 3), as both are in use.
        max_samples: At most so many images a side are drawn.
        seed: Of the drawing.

    Raises:
        InvalidValueError: On an unknown attacker, fewer than 4 images, or malformed input.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> sure, unsure = (s * torch.randn(40, 5, generator=rng).abs() for s in (8.0, 1.0))
        >>> share = member_rate(sure, unsure, forget_logits=sure)
        >>> share.member_rate > 60 > 40 > share.false_alarm_rate
        True
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
    """The five attacks of Unlearn-Sparse / SalUn: `MemberShare.efficacy` is what those papers print.

    An RBF support vector machine (C = 3, gamma "auto") on the true class's probability ("confidence"), whether the
    answer is right ("correctness"), entropy, modified entropy, or the whole probability vector, fitted on equally many
    images of D_r and D_t. Modified entropy follows Song & Mittal: -(1 - p_y) log p_y - sum_{i != y} p_i log(1 - p_i).
    The published code takes the first |D_t| retain images; here they are drawn at random.

    Args:
        retain_logits: [n, C] on D_r, the members.
        retain_labels: [n].
        test_logits: [m, C] on D_t, the non-members.
        test_labels: [m].
        forget_logits: [k, C] on D_f, which are judged.
        forget_labels: [k].
        max_samples: At most so many images a side are drawn.
        seed: Of the drawing.

    Returns:
        What each attack finds, by the names in `EFFICACY_STATISTICS`.

    Raises:
        InvalidValueError: On malformed input.

    Example:
        >>> rng = torch.Generator().manual_seed(0)
        >>> sure, unsure = (s * torch.randn(40, 5, generator=rng).abs() for s in (8.0, 1.0))
        >>> y = sure.argmax(1)
        >>> attacks = mia_efficacy(sure, y, unsure, unsure.argmax(1), sure, y)
        >>> list(attacks) == list(EFFICACY_STATISTICS), attacks["confidence"].efficacy < 40
        (True, True)
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


def sample_statistics(logits: ArrayLike, labels: ArrayLike, name: str = "given") -> dict[str, np.ndarray]:
    """What the efficacy attacks look at.

    Args:
        logits: [n, C].
        labels: [n].
        name: What error messages call them.

    Returns:
        The five `EFFICACY_STATISTICS`, each [n, 1] but "probabilities" [n, C]; entropies in nats.

    Raises:
        InvalidValueError: On malformed input.

    Example:
        >>> found = sample_statistics(torch.zeros(1, 4), torch.tensor([0]))
        >>> found["confidence"].tolist(), found["entropy"].round(4).tolist()
        ([[0.25]], [[1.3863]])
    """
    logits, labels = checked_logits(logits, labels, name)
    columns: dict[str, list[Tensor]] = {statistic: [] for statistic in EFFICACY_STATISTICS}
    for part, y in with_labels(logits, labels):
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


def _attackers() -> dict[str, LogisticRegression | SVC]:
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
            f"{len(retain):,} retain and {len(test):,} test images, max_samples={max_samples}: the attacker is fitted on "
            "equally many of both and needs at least 4."
        )
    generator = np.random.default_rng(seed)
    members, nonmembers = (side[generator.permutation(len(side))[:size]] for side in (retain, test))

    def fitted(rows: slice) -> LogisticRegression | SVC:
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
