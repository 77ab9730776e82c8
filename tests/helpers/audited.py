"""Audits of planted features, for all tests of reports."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from hf_kd.audit import AuditExtras, AuditOptions, RetentionReport, audit_features
from tests.metrics.planted import planted

QUICK = {"attacks": ["linear", "few-shot-5-l2", "norm"], "draws": 3, "shots": [1, 5, 20]}
"""Options of a small audit."""

LEAST = {"attacks": ["linear"], "draws": 1, "shots": [1, 5]}
"""Those of the smallest."""


def erase_axis(features: torch.Tensor, axis: int = 0) -> torch.Tensor:
    """Without the axis that carries the forgotten class."""
    out = features.clone()
    out[:, axis] = 0
    return out


def both(data, eraser=erase_axis):
    """Train and test features of both versions, with their labels."""
    train, train_y, test, test_y = data
    return {"original": train, "erased": eraser(train)}, train_y, {"original": test, "erased": eraser(test)}, test_y


def audited(data=None, eraser=erase_axis, forget=0, *, logits: Any = (), **settings) -> RetentionReport:
    """An audit in which the head reads the axes. `logits` are added to its own, None for none at all; `settings` are those
    of `AuditOptions` and `AuditExtras`, and arguments of `audit_features`."""
    train, train_y, test, test_y = both(planted(n=300) if data is None else data, eraser)
    head = torch.eye(train["original"].shape[1])[:, : int(train_y.max()) + 1]
    if logits is not None:
        logits = {name: (train[name] @ head, test[name] @ head) for name in train} | dict(logits)
    groups = {}
    for group in (AuditOptions, AuditExtras):
        names = {field.name for field in fields(group)} & set(settings)
        groups[group] = {name: settings.pop(name) for name in names}
    return audit_features(
        train,
        train_y,
        test,
        test_y,
        forget,
        logits=logits,
        options=AuditOptions(**QUICK | groups[AuditOptions]),
        extras=AuditExtras(**groups[AuditExtras]),
        **settings,
    )
