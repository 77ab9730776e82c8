"""Membership: who is sure of its training images is seen, and references that never saw them sharpen it."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.audited import LEAST, audited
from tests.metrics.planted import planted


def test_membership_by_share_and_by_references():
    rng = torch.Generator().manual_seed(0)
    train, train_y, test, _ = planted(n=300)
    head = torch.eye(train.shape[1])[:, : int(train_y.max()) + 1]
    memorised = train @ head
    memorised[torch.arange(len(train)), train_y] += 6  # the audited model is sure of what it was trained on
    blind = [
        (0.1 * torch.randn(memorised.shape, generator=rng), 0.1 * torch.randn(len(test), head.shape[1], generator=rng))
    ]
    report = audited(
        **LEAST,
        logits={"original": (memorised, torch.zeros(len(test), head.shape[1]))},
        membership_references=blind * 3,
    )
    rmia = report.score("membership", "auc_two_sided", "RMIA")
    assert rmia.original > 90
    share = report.score("membership", "member_rate", "confidence, SVC")
    assert share.original > share.chance + 30
    assert share.settings["efficacy"] == pytest.approx(100 - share.value)
    with pytest.raises(ValueError, match="a row for each sample"):
        audited(**LEAST, membership_references=[(memorised[1:], test @ head)])
