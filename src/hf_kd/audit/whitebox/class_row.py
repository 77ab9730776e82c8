"""Attack 3: the head's row of the class, and one constant added to its logit."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_kd.metrics.attack_data import AttackResult
from hf_kd.metrics.scores import area_under_roc, recall_at

from .network import Network, WhiteBoxData, with_rows

ROW = "the class's row"
"""What this attack is called, and what others had to make anew."""

FALSE_ALARMS = 1.0
"""Percent of retained images that may be taken for the class."""

SHOTS = 5
"""Labelled images of each class from which a row is made where there is none."""


def margin(logits: Tensor, data: WhiteBoxData) -> Tensor:
    """The best logit of a forgotten class less the best of the others, [n]: at minus the added constant it is answered."""
    return logits[:, data.forget_columns].amax(dim=1) - logits[:, ~data.forget_columns].amax(dim=1)


def class_row_attack(network: Network, data: WhiteBoxData, seed: int = 0) -> AttackResult:
    """Recall of the class under the constant that costs 1 % of false alarms, by its own row or by one made of 5 images.

    The constant is chosen on the test images themselves, the best that there is. `auroc_of_logit` in the settings is that
    of the class's logit alone, two-sided: a logit that was pushed down tells as much as one that was left.
    """
    opened, row = with_rows(network, data, data.shots(SHOTS, seed))
    logits = opened.class_logits(data.test, data.classes)
    score = margin(logits, data)
    alone = area_under_roc(logits[:, data.forget_columns].amax(dim=1), data.test_forget)
    constant = torch.quantile(score[~data.test_forget], 1 - FALSE_ALARMS / 100)
    answered = logits.masked_fill(data.forget_columns, -torch.inf).argmax(dim=1)
    right = (data.classes[answered] == data.test.labels) & (score <= constant)
    return AttackResult(
        ROW,
        recall_at(score, data.test_forget, FALSE_ALARMS / 100),
        100 * float(right[~data.test_forget].double().mean()),
        FALSE_ALARMS,
        area_under_roc(score, data.test_forget),
        {"row": row, "auroc_of_logit": max(alone, 100 - alone)},
    )
