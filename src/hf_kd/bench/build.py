"""From a row of the table to a model: the original with an eraser, with other weights, or a checkpoint made elsewhere.

What a row makes is its own. The original, which all rows share, is copied and never changed.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.features.readers import options_of
from hf_kd.methods.registry import method_info
from hf_kd.model.erased_model import ErasedModel
from hf_kd.model.unlearn import unlearn

from .config import Experiment, Row
from .protocols import Problem

Seconds = dict[str, float]


def make(
    row: Row,
    seed: int,
    experiment: Experiment,
    problem: Problem,
    original: ErasedModel,
    settings: ReadOptions,
    stage: int | None,
    before: ErasedModel | None = None,
) -> tuple[ErasedModel, Seconds]:
    """The model of a row after a request.

    Args:
        row: What is done.
        seed: Of this run.
        experiment: What is asked for.
        problem: The images.
        original: The model that all rows start from; never changed.
        settings: How images are read.
        stage: Number of the request; None for all of them at once.
        before: What the requests before this one left; an eraser is added to it in place, weights are changed in a copy.

    Returns:
        The model, and the seconds that reading or the feature pass ("features") and the rest ("fit") took.
    """
    if row.kind == "original":
        return original, {"features": 0.0, "fit": 0.0}
    if row.kind == "checkpoint":
        other = ErasedModel.from_pretrained(row.options["path"], processor=original.processor)
        return other.to(next(original.inner.parameters()).device), {"features": 0.0, "fit": 0.0}
    stages = range(len(problem.stages)) if stage is None else [stage]
    forget = problem.train.select(forget_rows(problem, stages, row.forget_limit, seed).tolist())
    retain = problem.images_to_keep(stages[-1], experiment.retain_limit)
    settings = options_of([problem.train], [problem.test], original, settings)
    if row.kind == "weights":
        return _with_other_weights(row, seed, experiment, before or original, forget, retain, settings)
    model = before if before is not None else _same_inner(original)
    wants = {"retain": retain} if method_info(row.name).needs_retain else {}
    # as the row gives them, since a method may refuse two settings that exclude each other
    own: dict[str, Any] = {"seed": seed} if row.has_seed else {}
    options = row.published.options(row.name, row.options, model) | own
    with row.published.reading(model, seed):
        model.erase(
            forget,
            row.name,
            **wants,
            reading=settings,
            allow_unrecognised=True,  # the table shows what the original answers
            **options,
            whole_classes=problem.forgets_whole_classes,
        )
    record = model.erasures[-1]
    return model, {"features": record.feature_seconds, "fit": record.fit_seconds}


def bare_pass(row: Row, seed: int, problem: Problem, original: ErasedModel, settings: ReadOptions) -> float:
    """Seconds of one forward pass of the original over the images that the method of a row is to forget."""
    rows = forget_rows(problem, range(len(problem.stages)), row.forget_limit, seed)
    reader = ImageReader(original, problem.train.select(rows.tolist()), settings)
    reader.find_taps()
    started = time.perf_counter()
    reader.run(lambda features, labels, rows: None, stage="before", description="bare pass")
    return time.perf_counter() - started


def forget_rows(problem: Problem, stages: Any, most: int | None, seed: int) -> Tensor:
    """Rows of `problem.train` that a method sees of the requests `stages`: all, or `most` of each drawn by `seed`."""
    parts = []
    for stage in stages:
        rows = problem.stages[stage]
        if most is not None and most < len(rows):
            order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
            rows = rows[order[:most]]
        parts.append(rows)
    return torch.cat(parts).sort().values


def records_of(model: ErasedModel) -> list[dict[str, Any]]:
    """What was done to a model, as plain values: its erasures, or else the changes of its weights."""
    own = [record.to_dict() for record in model.erasures]
    return own or list(getattr(model.inner.config, "hf_kd_unlearned", None) or [])


def _with_other_weights(
    row: Row, seed: int, experiment: Experiment, start: ErasedModel, forget: Any, retain: Any, settings: ReadOptions
) -> tuple[ErasedModel, Seconds]:
    reading = replace(settings, mixed_precision=experiment.train_precision or experiment.mixed_precision)
    stock = unlearn(
        start, forget, row.name, retain=retain, reading=reading, allow_unrecognised=True, **row.settings(seed)
    )
    model = ErasedModel.from_model(stock, processor=start.processor)
    record = records_of(model)[-1]
    return model, {"features": record["feature_seconds"], "fit": record["fit_seconds"]}


def _same_inner(original: ErasedModel) -> ErasedModel:
    """A wrapper of its own around a copy, so that no cell sees another's eraser."""
    return ErasedModel.from_model(copy.deepcopy(original.inner), processor=original.processor)
