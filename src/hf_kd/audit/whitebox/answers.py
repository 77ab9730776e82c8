"""What a network's own head answers, as an attack result: the reading that all changes of weights end in."""

from __future__ import annotations

from collections.abc import Iterator

from hf_kd.metrics.attack_data import AttackResult
from hf_kd.metrics.scores import area_under_roc

from .class_row import margin
from .network import Network, WhiteBoxData, recalibrated
from .probes import BATCHNORM_IMAGES, amounts


def head_answers(network: Network, data: WhiteBoxData, name: str = "head") -> AttackResult:
    """Accuracy of the head on forgotten and retained test images; the area is that of the class's margin."""
    logits = network.class_logits(data.test, data.classes)
    answered, forgotten = data.classes[logits.argmax(dim=1)], data.test_forget
    right, flagged = (answered == data.test.labels).double(), data.forget_columns[logits.argmax(dim=1)].double()
    return AttackResult(
        name,
        100 * float(right[forgotten].mean()),
        100 * float(right[~forgotten].mean()),
        100 * float(flagged[~forgotten].mean()),
        area_under_roc(margin(logits, data), forgotten),
        {},
    )


def answers_by_batchnorm(network: Network, data: WhiteBoxData) -> Iterator[AttackResult]:
    """The head as it is and, where there is BatchNorm, with statistics anew from 10 and up to 2,000 unlabelled images."""
    more = any(head.out_features > len(data.classes) for head in network.linear_heads())
    among = f", among {len(data.classes)} classes" if more else ""
    yield head_answers(network, data, f"head as it is{among}")
    for count in amounts(BATCHNORM_IMAGES, len(data.train)) if network.norms else ():
        own = recalibrated(network, data.train.rows(slice(count)))
        yield head_answers(own, data, f"head, BatchNorm from {count:,} images{among}")
