"""What erase and unlearn measure beside what they do: the head's accuracy on a test split, before and after."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hf_kd.errors import InvalidValueError

if TYPE_CHECKING:
    from torch import Tensor

    from hf_kd.features.reader import ReadOptions
    from hf_kd.model.erased_model import ErasedModel


def head_accuracy(
    model: ErasedModel, data: Any, classes: list[int], reading: ReadOptions, changed: ErasedModel | None = None
) -> dict[str, Any]:
    """Of the head, in percent, before and after: behind the eraser of `model`, or of the `changed` model.

    `changes` says of both parts how many images they have, and how many are answered rightly no more, or only now;
    `hardest_hit` which other class lost most, as a `Share`, where one lost more than chance.
    `classes` are ids of the model; those that were erased earlier count as forgotten too.
    """
    from hf_kd.audit.shares import Share, hardest_hit
    from hf_kd.features.heads import has_head, predictions
    from hf_kd.features.reader import ImageReader
    from hf_kd.metrics._inputs import is_in
    from hf_kd.metrics.scores import forget_retain_accuracy

    if not has_head(model):
        raise InvalidValueError("--test-split measures the head's accuracy, and this model has no classification head.")
    if not classes:
        raise InvalidValueError(
            "--test-split measures forgotten against other labels; name the forgotten ones with --forget-labels."
        )
    earlier = {c for erasure in model.erasures for c in erasure.classes or ()}
    forgotten = sorted(earlier | set(classes))
    reader = ImageReader(model, data, reading.of_test())
    read = reader.read()
    if changed is None:
        after = predictions(model, read.erased(model))
    else:
        after = predictions(changed, ImageReader(changed, data, reading.of_test()).read().before)
    scores: dict[str, Any] = {"classes": forgotten, "sampled": reader.sampled}
    before = predictions(model, read.before, masked=False)
    for when, answers in (("original", before), ("erased", after)):
        forget, retain = forget_retain_accuracy(answers, read.labels, forgotten)
        scores[when] = {"forget": forget, "retain": retain}
    rows = is_in(read.labels, forgotten)
    hits, hits_before = after == read.labels, before == read.labels

    def changes(own: Tensor) -> dict[str, int]:
        lost, gained = hits_before & ~hits & own, hits & ~hits_before & own
        return {"samples": int(own.sum()), "lost": int(lost.sum()), "gained": int(gained.sum())}

    scores["changes"] = {"forget": changes(rows), "retain": changes(~rows)}
    worst = hardest_hit(
        {
            int(label): Share(_percent(hits[own]), _percent(hits_before[own]), **changes(own))
            for label in read.labels[~rows].unique()
            for own in [read.labels == label]
        }
    )
    scores["hardest_hit"] = None if worst is None else {"label": worst[0], **asdict(worst[1])}
    return scores


def _percent(hits: Tensor) -> float:
    return 100 * float(hits.double().mean())
