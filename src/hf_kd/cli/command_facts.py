"""What the commands measure beside what they do: the head's accuracy before and after, and whether cover classes occur."""

from __future__ import annotations

from typing import Any

import torch

from hf_kd.data.image_source import inspect_images
from hf_kd.data.labels import match_labels
from hf_kd.data.load import load_source
from hf_kd.errors import InvalidValueError
from hf_kd.features.heads import has_head, predictions
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.metrics.scores import forget_retain_accuracy
from hf_kd.model.erased_model import ErasedModel


def cover_in(data: Any, model: ErasedModel, settings: ReadOptions) -> dict[str, Any]:
    """Cover classes of the last erasure that the data set has no image of, and the names of all of them."""
    cover = sorted({c for measured in model.erasures[-1].measured for c in measured.get("cover_classes", ())})
    missing: list[int] = []
    described = inspect_images(data, settings.image_column, settings.label_column) if cover else None
    if described is not None and described.label_column is not None:
        mapping = match_labels(described.label_names, model.class_names, settings.label_mapping)
        present = set(mapping(torch.tensor(data[described.label_column])).tolist())
        missing = [c for c in cover if c not in present]
    return {"cover_missing": missing, "cover_names": {c: model.class_names.get(c, str(c)) for c in cover}}


def head_accuracy(
    model: ErasedModel,
    source: str,
    ids: list[int],
    settings: ReadOptions,
    split: str,
    changed: ErasedModel | None = None,
) -> dict[str, Any] | None:
    """Of the head, in percent, before and after: behind the eraser of `model`, or of the `changed` model."""
    if not has_head(model):
        raise InvalidValueError("--test-split measures the head's accuracy, and this model has no classification head.")
    if not ids:
        raise InvalidValueError(
            "--test-split measures forgotten against other labels; name the forgotten ones with --forget."
        )
    data = load_source(source, split=split)
    described = inspect_images(data, image_column=settings.image_column, label_column=settings.label_column)
    mapping = match_labels(described.label_names, model.class_names, settings.label_mapping)
    earlier = {c for erasure in model.erasures for c in erasure.classes or ()}
    classes = sorted(earlier | set(mapping(torch.tensor(ids)).tolist()))
    read = ImageReader(model, data, settings).read()
    if changed is None:
        after = predictions(model, read.erased(model))
    else:
        after = predictions(changed, ImageReader(changed, data, settings).read().before)
    scores: dict[str, Any] = {"split": split, "classes": classes}
    for when, answers in (("original", predictions(model, read.before, masked=False)), ("erased", after)):
        forget, retain = forget_retain_accuracy(answers, read.labels, classes)
        scores[when] = {"forget": forget, "retain": retain}
    return scores
