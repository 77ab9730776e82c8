"""Train the original models of the paper's tables, so that every row can be made from scratch.

Training is `Retrain` on all of D: the same code that later makes the retrained reference.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_kd.data.labels import match_labels
from hf_kd.errors import InvalidTypeError, InvalidValueError, LabelMismatchError
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.methods.records import versions
from hf_kd.methods.unlearning.retrain import Retrain

from . import recipes
from .erased_model import ErasedModel
from .recipes import PRETRAINED
from .unlearn import make_task, student_of, unwrapped

logger = logging.getLogger(__name__)

RECIPES: dict[str, Retrain] = {name: Retrain(**settings) for name, settings in recipes.RECIPES.items()}
"""Those of `hf_kd.model.recipes`, by name."""


def train_original(
    model: PreTrainedModel | ErasedModel,
    data: Any,
    recipe: str | Retrain = "resnet18-cifar10",
    *,
    processor: Any = None,
    from_scratch: bool | None = None,
    reading: ReadOptions | None = None,
    progress: bool = True,
    **options: Any,
) -> PreTrainedModel:
    """Train a classifier on labelled images. Returns a trained copy; what was done stands in `config.hf_kd_trained`.

    recipe: a key of `RECIPES` or a `Retrain`; options overrule its settings (epochs, lr, seed, ...).
    from_scratch: start from fresh weights instead of the model's own; by default so, but for the recipes of `PRETRAINED`.
    reading: how images are read. With a label mapping, and where the data set has just the labels of the model, the
        model's labels stay; otherwise the result has the data set's labels and a new head.

    The rest is as in `unlearn`. The last epoch's weights are taken: the published code keeps the epoch that is best on the
    test images. Raises ValueError for an unknown recipe, images without labels, a setting out of range, an erased model
    and a model without a classification head, and TypeError for an unknown option.
    """
    name = recipe if isinstance(recipe, str) else None
    reading = ReadOptions.given(reading, progress, options, own=["batch_size"])
    chosen = _recipe(recipe, options)
    fresh = name not in PRETRAINED if from_scratch is None else from_scratch
    if chosen.init is not None and not fresh:
        raise InvalidValueError(
            f"init={chosen.init!r} and the model's own weights are two places to start from; give one."
        )
    student = student_of(model, processor)
    names = _new_labels(student, data, reading)
    if names is not None:
        logger.info(f"The head is new: {len(names)} labels of the data set instead of {student.config.num_labels}.")
        other = with_labels(student.inner, names, chosen.seed)
        student = ErasedModel.from_model(other.eval(), student.processor)
    task = make_task(student, data, None, reading)
    task.retain = task.forget
    if not fresh:
        start = copy.deepcopy(student.inner)
        task.fresh = lambda seed, init: start
    measured = chosen.run(task)
    images = measured.pop("n_retain", len(task.forget))
    stock = unwrapped(student)
    for earlier in ("hf_kd_unlearned", "hf_kd_folded") if fresh else ():
        if hasattr(stock.config, earlier):  # records of the weights whose configuration this is
            delattr(stock.config, earlier)
    stock.config.hf_kd_trained = {
        "recipe": name,
        "settings": chosen.settings(),
        "from_scratch": fresh,
        "new_head": names is not None,
        "images": images,
        "measured": {**measured, "accuracy": task.forget_accuracy()},
        "versions": versions(),
    }
    return stock


def label_settings(names: Sequence[str]) -> dict[str, Any]:
    """What a configuration says about labels of these names, in their order."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}


def with_labels(model: PreTrainedModel, names: Sequence[str], seed: int = 0) -> PreTrainedModel:
    """A copy of a classifier for other labels: layers whose shape follows their number are fresh, the rest is kept."""
    with torch.device("meta"):
        one_more = type(model)(_config_for(model, [*names, "one more"])).state_dict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        other = type(model)(_config_for(model, names))
    heads = {key.rpartition(".")[0] for key, value in other.state_dict().items() if one_more[key].shape != value.shape}
    kept = {key: value for key, value in model.state_dict().items() if key.rpartition(".")[0] not in heads}
    other.load_state_dict(kept, strict=False)
    parameter = next(model.parameters())
    return other.to(parameter.device, parameter.dtype)


def _config_for(model: PreTrainedModel, names: Sequence[str]) -> PreTrainedConfig:
    config = copy.deepcopy(model.config)
    for setting, value in label_settings(names).items():
        setattr(config, setting, value)
    return config


def _recipe(recipe: str | Retrain, options: Mapping[str, Any]) -> Retrain:
    if isinstance(recipe, str) and recipe not in RECIPES:
        raise InvalidValueError(f"Unknown recipe {recipe!r}; choose {', '.join(RECIPES)}.")
    chosen = RECIPES[recipe] if isinstance(recipe, str) else recipe
    unknown = sorted(set(options) - set(chosen.settings()))
    if unknown:
        raise InvalidTypeError(f"A recipe has no option {', '.join(unknown)}; it takes {', '.join(chosen.settings())}.")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    return Retrain(**{**chosen.settings(), **given})


def _new_labels(student: ErasedModel, data: Any, reading: ReadOptions) -> tuple[str, ...] | None:
    """The data set's labels where they have to become the model's; None where the model's stay."""
    names = ImageReader(student, data, reading).label_names
    if names is None or reading.label_mapping is not None:
        return None  # ids are the model's, and a mapping says which
    try:
        mapping = match_labels(names, student.config.id2label)
    except LabelMismatchError:
        return tuple(names)
    if mapping.how == "same ids":  # a model without names takes the data set's, and keeps its head
        for setting, value in label_settings(names).items():
            setattr(student.inner.config, setting, value)
            setattr(student.config, setting, value)
    return None if len(names) == student.config.num_labels else tuple(names)
