"""What a network's own head answers, as an attack result: the reading that all changes of weights end in."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from hf_kd.metrics.attack_data import AttackResult
from hf_kd.metrics.scores import area_under_roc

from .class_row import margin
from .network import Network, WhiteBoxData, recalibrated
from .probes import BATCHNORM_IMAGES, amounts


def head_answers(network: Network, data: WhiteBoxData, name: str = "head") -> AttackResult:
    """Accuracy of the head on forgotten and retained test images; the area is that of the class's margin."""
    auc, recall, retained, false_alarms = head_scores(network.class_logits(data.test, data.classes), data)
    return AttackResult(name, recall, retained, false_alarms, auc, {})


def head_scores(logits: Tensor, data: WhiteBoxData) -> tuple[float, float, float, float]:
    """Of the logits [n_test, K] of the data's classes, in percent: the area of the class's margin, F, R and false alarms."""
    columns, forgotten = logits.argmax(dim=1), data.test_forget
    right, flagged = (data.classes[columns] == data.test.labels).double(), data.forget_columns[columns].double()
    rates = right[forgotten].mean(), right[~forgotten].mean(), flagged[~forgotten].mean()
    found, kept, alarms = (100 * float(rate) for rate in rates)
    return area_under_roc(margin(logits, data), forgotten), found, kept, alarms


def answers_by_batchnorm(network: Network, data: WhiteBoxData) -> Iterator[AttackResult]:
    """The head as it is and, where there is BatchNorm, with statistics anew from 10 and up to 2,000 unlabelled images."""
    more = any(head.out_features > len(data.classes) for head in network.linear_heads())
    among = f", among {len(data.classes)} classes" if more else ""
    yield head_answers(network, data, f"head as it is{among}")
    for count in amounts(BATCHNORM_IMAGES, len(data.train)) if network.norms else ():
        own = recalibrated(network, data.train.rows(slice(count)))
        yield head_answers(own, data, f"head, BatchNorm from {count:,} images{among}")
