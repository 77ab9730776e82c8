"""What attacks share: the checked data they work on, the result they return, and how predictions become that result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError

from ._inputs import ArrayLike, as_features, checked_splits, is_in, trained_forget_labels
from .linear_probe import LinearProbe, fit_linear_probe
from .neighbours import tie_shares
from .nonlinear_probes import MLPProbe, fit_mlp_probe
from .scaling import FeatureScale, principal_scales
from .scores import area_under_roc


@dataclass(frozen=True)
class AttackResult:
    """What one attacker gets on the test split, in percent."""

    name: str
    recall_forget: float
    """Forgotten samples given their true label (binary attacks: flagged as forgotten), over all forgotten classes."""
    accuracy_retain: float
    """Retained samples given their true label (binary attacks: not flagged)."""
    false_alarms: float
    """Retained samples given a forgotten label, or flagged."""
    auc: float | None = None
    """Area under the ROC curve of forgotten against retained in percent, where the attack yields a score; chance 50."""
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    hits: Tensor | None = field(default=None, repr=False, compare=False)
    """How often each forgotten test sample was read [n_ft], 0 to 1, in the order of the split; to compare pairs."""

    @property
    def advantage(self) -> float:
        """Recall minus false alarms: 0 for flagging at random or flagging everybody, 100 for a perfect attacker."""
        return self.recall_forget - self.false_alarms


@dataclass(frozen=True, eq=False)
class AuditData:
    """Checked features and labels of both splits, with the fits that several attacks share made once."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    forget: tuple[int, ...]
    train_views: tuple[Tensor, ...] = ()
    """Features of further views of the same training images, rows aligned with `train`."""
    test_views: tuple[Tensor, ...] = ()
    _mlps: dict[tuple[str, int], MLPProbe] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        train_features: ArrayLike,
        train_labels: ArrayLike,
        test_features: ArrayLike,
        test_labels: ArrayLike,
        forget_labels: int | ArrayLike,
        train_views: Sequence[ArrayLike] = (),
        test_views: Sequence[ArrayLike] = (),
    ) -> AuditData:
        """The data of the attacks, checked first.

        Args:
            train_features: [n, d].
            train_labels: [n].
            test_features: [m, d].
            test_labels: [m].
            forget_labels: The forgotten classes; those without a training sample are left out.
            train_views: Features [n, d] of further views of the training images.
            test_views: Features [m, d] of the same views of the test images.

        Raises:
            InvalidValueError: As `knowledge_retention`, and on views that do not align.
        """
        train, train_y, test, test_y = checked_splits(
            train_features, train_labels, test_features, test_labels, forget_labels
        )
        if len(train_views) != len(test_views):
            raise InvalidValueError(
                f"Got {len(train_views)} further views of train and {len(test_views)} of test; give both."
            )
        views = []
        for name, given, base in (("training", train_views, train), ("test", test_views, test)):
            checked = tuple(as_features(view, f"{name} view").to(train.device) for view in given)
            for view in checked:
                if view.shape != base.shape:
                    raise InvalidValueError(
                        f"A {name} view has shape {tuple(view.shape)}; expected {tuple(base.shape)}, a row for each "
                        "image."
                    )
            views.append(checked)
        return cls(train, train_y, test, test_y, trained_forget_labels(forget_labels, train_y), *views)

    def of_rows(self, train: Tensor, test: Tensor) -> AuditData:
        """The same of some samples only.

        Args:
            train: Numbers of the training rows, ascending.
            test: Numbers of the test rows, ascending.
        """
        views = tuple(view[train] for view in self.train_views), tuple(view[test] for view in self.test_views)
        return AuditData(
            self.train[train], self.train_labels[train], self.test[test], self.test_labels[test], self.forget, *views
        )

    @cached_property
    def classes(self) -> Tensor:
        """[K], ascending: the columns of every score and probability."""
        return self.train_labels.unique()

    @cached_property
    def train_forget(self) -> Tensor:
        return is_in(self.train_labels, self.forget)

    @cached_property
    def test_forget(self) -> Tensor:
        return is_in(self.test_labels, self.forget)

    @cached_property
    def forget_columns(self) -> Tensor:
        return is_in(self.classes, self.forget)

    @cached_property
    def scales(self) -> dict[str, FeatureScale]:
        return principal_scales(self.train)

    @cached_property
    def linear_probe(self) -> LinearProbe:
        return fit_linear_probe(self.train, self.train_labels, scales=self.scales)

    def mlp(self, size: str, seed: int) -> MLPProbe:
        """A perceptron, fitted once for a seed.

        Args:
            size: "small" (256 hidden units, on whitened features) or "large" (256-256, on standardised ones).
            seed: Of its initialisation, order and held-out tenth.
        """
        if (size, seed) not in self._mlps:
            hidden, geometry = {"small": ((256,), "whitened"), "large": ((256, 256), "standardised")}[size]
            self._mlps[size, seed] = fit_mlp_probe(self.train, self.train_labels, hidden, geometry=geometry, seed=seed)
        return self._mlps[size, seed]

    def forget_score(self, logits: Tensor) -> Tensor:
        """log-odds [n] of forgotten against retained classes.

        Args:
            logits: Class scores [n, K], columns as in `classes`.
        """
        logits = logits.double()
        return logits[:, self.forget_columns].logsumexp(dim=1) - logits[:, ~self.forget_columns].logsumexp(dim=1)


def result_from_shares(
    data: AuditData, name: str, shares: Tensor, score: Tensor | None = None, **settings: str | int | float | bool
) -> AttackResult:
    """Score predicted class probabilities on the test split.

    Args:
        data: What was attacked.
        name: Of the attack.
        shares: [n_test, K], one-hot for a deterministic attacker; columns are `data.classes`.
        score: [n_test], higher for forgotten, where the attack yields one.
        **settings: What the attack was run with.

    Example:
        >>> x = torch.tensor([[0.0, 0.1], [0.1, 0.0], [5.0, 5.1], [5.2, 5.0], [9.0, 0.0], [9.1, 0.2]])
        >>> y = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> data = AuditData.of(x, y, x, y, forget_labels=0)
        >>> result = result_from_shares(data, "all of class 0", torch.eye(3)[torch.zeros(6, dtype=torch.int64)])
        >>> result.recall_forget, result.false_alarms, result.advantage
        (100.0, 100.0, 0.0)
    """
    column = torch.searchsorted(data.classes, data.test_labels.contiguous())
    hit = shares.gather(1, column.unsqueeze(1)).squeeze(1)
    flagged = shares[:, data.forget_columns].sum(dim=1)
    forget = data.test_forget
    return AttackResult(
        name,
        recall_forget=100 * float(hit[forget].mean()),
        accuracy_retain=100 * float(hit[~forget].mean()),
        false_alarms=100 * float(flagged[~forget].mean()),
        auc=None if score is None else area_under_roc(score, forget),
        settings=settings,
        hits=hit[forget].double().cpu(),
    )


def result_from_logits(
    data: AuditData, name: str, logits: Tensor, **settings: str | int | float | bool
) -> AttackResult:
    """Score class scores on the test split: the highest is answered, and their log-odds tell forgotten from retained.

    Args:
        data: What was attacked.
        name: Of the attack.
        logits: [n_test, K]; columns are `data.classes`.
        **settings: What the attack was run with.

    Example:
        >>> x = torch.tensor([[0.0, 0.1], [0.1, 0.0], [5.0, 5.1], [5.2, 5.0], [9.0, 0.0], [9.1, 0.2]])
        >>> y = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> data = AuditData.of(x, y, x, y, forget_labels=0)
        >>> result = result_from_logits(data, "the labels", 9.0 * torch.eye(3)[y])
        >>> result.recall_forget, result.false_alarms, result.auc
        (100.0, 0.0, 100.0)
    """
    return result_from_shares(data, name, tie_shares(logits), data.forget_score(logits), **settings)


def result_from_flags(
    data: AuditData, name: str, flagged: Tensor, score: Tensor, **settings: str | int | float | bool
) -> AttackResult:
    """Score a binary attacker on the test split.

    Args:
        data: What was attacked.
        name: Of the attack.
        flagged: [n_test], which samples it takes for forgotten.
        score: [n_test], higher for forgotten.
        **settings: What the attack was run with.

    Example:
        >>> x = torch.tensor([[0.0, 0.1], [0.1, 0.0], [5.0, 5.1], [5.2, 5.0], [9.0, 0.0], [9.1, 0.2]])
        >>> y = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> data = AuditData.of(x, y, x, y, forget_labels=0)
        >>> result = result_from_flags(data, "near the origin", x.norm(dim=1) < 6, -x.norm(dim=1))
        >>> result.recall_forget, result.false_alarms, result.auc
        (100.0, 0.0, 100.0)
    """
    flagged, forget = flagged.double(), data.test_forget
    alarms = 100 * float(flagged[~forget].mean())
    recall = 100 * float(flagged[forget].mean())
    return AttackResult(
        name,
        recall,
        100 - alarms,
        alarms,
        area_under_roc(score, forget),
        {"task": "binary", **settings},
        hits=flagged[forget].cpu(),
    )
