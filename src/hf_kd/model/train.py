"""Train the original models of the paper's tables, so that every row can be made from scratch.

Training is `Retrain` on all of D: the same code that later makes the retrained reference.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_kd.audit.classes import resolved_labels
from hf_kd.data.devices import moved, own_generators
from hf_kd.data.labels import match_labels
from hf_kd.data.masked_classes import silence_rows
from hf_kd.data.paths import local_path
from hf_kd.data.samples import Samples
from hf_kd.errors import InvalidTypeError, InvalidValueError, LabelMismatchError, check_choice, did_you_mean
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.features.readers import share_mapping
from hf_kd.methods.records import versions
from hf_kd.methods.unlearning.retrain import Retrain
from hf_kd.methods.unlearning.task import Task

from . import recipes
from .configuration import label_names
from .erase import sampled
from .erased_model import ErasedModel
from .recipes import PRETRAINED
from .unlearn import make_task, student_of, unwrapped

logger = logging.getLogger(__name__)

RECIPES: dict[str, Retrain] = {name: Retrain(**settings) for name, settings in recipes.RECIPES.items()}
"""Those of `hf_kd.model.recipes`, by name."""

RECORDS = ("hf_kd_unlearned", "hf_kd_folded")
"""Where a stock model's configuration says what its weights forgot."""

BEGAN_WITH_WEIGHTS = (
    "The training began with the model's own weights. Where these have seen the labels that are left out, so has the "
    "result, and it is no reference: from_scratch=True begins with fresh ones."
)


def train_original(
    model: PreTrainedModel | ErasedModel,
    data: Any,
    recipe: str | Retrain = "resnet18-cifar10",
    *,
    processor: Any = None,
    from_scratch: bool | None = None,
    without: int | str | Iterable[int | str] = (),
    test: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    reading: ReadOptions | None = None,
    progress: bool = True,
    **options: Any,
) -> PreTrainedModel:
    """Train a classifier on labelled images.

    The last epoch's weights are taken: the published code keeps the epoch that is best on the test images. The rest is as
    in `unlearn`.

    Args:
        model: Its class and configuration, and its weights where they are what training starts from.
        data: Labelled images.
        recipe: A key of `RECIPES` or a `Retrain`; options overrule its settings (epochs, lr, seed, ...). A recipe by name
            that starts from the model's own weights keeps BatchNorm's statistics (`bn_mode="freeze"`), which a few epochs
            on other data would spoil.
        processor: The image processor, where `model` is not an ErasedModel that has one.
        from_scratch: Start from fresh weights instead of the model's own; by default so, but for the recipes of
            `PRETRAINED`.
        without: Names or ids of labels whose images are left out: a reference that has never seen them, unless the weights
            that it starts from have. They are those of the data, or the model's where the data names none. The head keeps
            their columns, silenced: they are never answered.
        test: Labelled images to measure the accuracy on, those of `without` left out too.
        checkpoint: Folder in which the state of the training is kept after each epoch; the same call goes on from there.
        reading: How images are read. With a label mapping, and where the data set has just the labels of the model, the
            model's labels stay; otherwise the result has the data set's labels and a new head.
        progress: False shows no bar, whatever `reading` says.
        **options: Settings of the recipe.

    Returns:
        A trained copy; what was done stands in `config.hf_kd_trained`. A stock model, without an image processor, as that of
        `unlearn`.

    Raises:
        ValueError: For an unknown recipe, images without labels, a setting out of range, an erased model, a model without a
            classification head, and labels to leave out that are unknown or all there are.
        TypeError: For an unknown option.
    """
    name = recipe if isinstance(recipe, str) else None
    reading = ReadOptions.given(reading, progress, options, own=["batch_size"])
    chosen, fresh = _recipe(recipe, options, from_scratch)
    student, new_head = _for_labels_of(data, student_of(model, processor), reading, chosen.seed)
    readers = {"train": ImageReader(student, data, reading)}
    if test is not None:
        readers["test"] = ImageReader(student, test, reading.of_test())
    share_mapping(readers)
    left_out = _left_out(readers["train"], without)  # refused before images are read
    task = make_task(student, data, None, readers["train"].options)
    task.checkpoint = None if checkpoint is None else local_path(checkpoint)
    task.retain = task.forget = _seen(task.forget, left_out)
    tested = None if test is None else _seen(readers["test"].samples(), left_out)  # refused before the training
    _start_from(task, None if fresh else copy.deepcopy(student.inner), left_out)
    measured = chosen.run(task)
    _silence(task.model, task.heads, left_out)  # weight decay may have moved them
    images = measured.pop("n_retain", len(task.forget))
    accuracies, warnings = _accuracies(task, tested)
    if left_out and not fresh:
        warnings.append(BEGAN_WITH_WEIGHTS)
    for text in warnings:
        logger.warning(text)
    stock = unwrapped(student)
    for earlier in RECORDS if fresh else ():
        if hasattr(stock.config, earlier):  # records of the weights whose configuration this is
            delattr(stock.config, earlier)
    stock.config.hf_kd_trained = {
        "recipe": name,
        "settings": chosen.settings(),
        "from_scratch": fresh,
        "new_head": new_head,
        "without": left_out,
        "images": images,
        "measured": {**measured, **accuracies},
        "warnings": [*warnings, *task.warnings],  # the task's were said already
        "sampled": sampled(readers),
        "versions": versions(),
    }
    return stock


def _for_labels_of(data: Any, student: ErasedModel, reading: ReadOptions, seed: int) -> tuple[ErasedModel, bool]:
    """The model for the labels of the data, and whether these are not its own, so that the head is new."""
    names, how = ImageReader(student, data, reading).label_names, None
    if names is None or reading.label_mapping is not None:
        return student, False  # ids are the model's, and a mapping says which
    with suppress(LabelMismatchError):
        how = match_labels(names, student.config.id2label).how
    if how == "same ids":  # a model without names takes the data set's, and keeps its head
        for setting, value in label_settings(names).items():
            setattr(student.inner.config, setting, value)
            setattr(student.config, setting, value)
    if how is not None and len(names) == student.config.num_labels:
        return student, False
    logger.info(f"The head is new: {len(names)} labels of the data set instead of {student.config.num_labels}.")
    other = with_labels(student.inner, names, seed)
    return ErasedModel.from_model(other.eval(), student.processor), True


def _accuracies(task: Task, tested: Samples | None) -> tuple[dict[str, Any], list[str]]:
    """On the training and the test images, percent; and what to say where nothing was learnt."""
    found: dict[str, Any] = {"accuracy": task.accuracy(task.forget)}
    warnings = _nothing_learnt(found["accuracy"], task.forget, "training")
    if tested is not None:
        found |= {"test_images": len(tested), "test_accuracy": task.accuracy(tested)}
        warnings += _nothing_learnt(found["test_accuracy"], tested, "test")
    return found, warnings


def _left_out(reader: ImageReader, without: int | str | Iterable[int | str]) -> list[int]:
    """The model's ids of the labels that are not to be seen."""
    if not isinstance(without, int | str) and not without:
        return []
    names, known = reader.label_names, reader.model.class_names
    found = resolved_labels(without, names or known)
    if names and reader.mapping is not None:
        found = reader.mapping(torch.tensor(found)).tolist()
    if len(found) >= len(known) - 1:
        raise InvalidValueError(
            f"without={without!r} leaves {len(known) - len(found)} of {len(known)} labels; a classifier needs two to choose "
            "from. Leave fewer out."
        )
    return sorted(found)


def _seen(samples: Samples, left_out: Sequence[int]) -> Samples:
    """The samples of all labels but those."""
    if not left_out:
        return samples
    absent = [label for label in left_out if not bool((samples.labels == label).any())]
    if absent:
        logger.info(f"There is no image of the labels {absent} that are left out.")
    kept = samples.subset(~torch.isin(samples.labels, torch.tensor(left_out)))
    if not len(kept):
        raise InvalidValueError(f"All images are of the labels {list(left_out)} that are left out. Give others too.")
    return kept


def _start_from(task: Task, weights: nn.Module | None, left_out: Sequence[int]) -> None:
    """Let the training start from these weights, or from fresh ones, with silent rows in the head."""
    make = cast("Callable[[int, str | None], nn.Module]", task.fresh)  # `make_task` gives one

    def start(seed: int, init: str | None) -> nn.Module:
        model = make(seed, init) if weights is None else copy.deepcopy(weights)
        _silence(model, task.heads, left_out)
        return model

    task.fresh = start


def _silence(model: nn.Module, heads: Sequence[str], left_out: Sequence[int]) -> None:
    if not left_out:
        return
    linear = [head for head in map(model.get_submodule, heads) if isinstance(head, nn.Linear) and head.bias is not None]
    if not heads or len(linear) < len(heads):
        raise InvalidValueError(
            f"The labels {list(left_out)} cannot be left out: it is done in the last Linear layer, by its bias, and "
            f"{type(model).__name__} gives its logits otherwise. Train with all labels."
        )
    for head in linear:
        silence_rows(head, left_out)


def _nothing_learnt(accuracy: float, samples: Samples, which: str) -> list[str]:
    """What to say where always answering the most frequent label would do as well."""
    counts = samples.labels.bincount()
    most = 100.0 * int(counts.max()) / len(samples)
    if accuracy > most + 1e-3 or int((counts > 0).sum()) < 2:
        return []
    return [
        f"Only {accuracy:.1f} % of the {which} images are answered right; always answering the most frequent label gives "
        f"{most:.1f} %. Nothing was learnt that can be forgotten: more epochs, another lr, or the model's own weights "
        "(from_scratch=False) may help."
    ]


def label_settings(names: Sequence[str]) -> dict[str, Any]:
    """What a configuration says about labels of these names, in their order."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}


def with_labels(model: PreTrainedModel, names: Sequence[str], seed: int = 0) -> PreTrainedModel:
    """A copy of a classifier for other labels: layers whose shape follows their number are fresh, the rest is kept."""
    with torch.device("meta"):
        one_more = type(model)(_config_for(model, [*names, "one more"])).state_dict()
    with own_generators(torch.get_default_device(), seed):
        other = type(model)(_config_for(model, names))
    heads = {key.rpartition(".")[0] for key, value in other.state_dict().items() if one_more[key].shape != value.shape}
    kept = {key: value for key, value in model.state_dict().items() if key.rpartition(".")[0] not in heads}
    other.load_state_dict(kept, strict=False)
    parameter = next(model.parameters())
    return moved(other, parameter.device, parameter.dtype)


def _config_for(model: PreTrainedModel, names: Sequence[str]) -> PreTrainedConfig:
    config = copy.deepcopy(model.config)
    for setting, value in label_settings(names).items():
        setattr(config, setting, value)
    for records in RECORDS:
        if getattr(config, records, None):
            setattr(config, records, [_named(record, label_names(model.config)) for record in getattr(config, records)])
    return config


def _named(record: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    """A record without ids of classes, which are others in another head; the names that they had stand beside it."""
    if record.get("classes") is None:
        return dict(record)
    return {**record, "classes": None, "dataset_classes": [names.get(label, str(label)) for label in record["classes"]]}


def _recipe(
    recipe: str | Retrain, options: Mapping[str, Any], from_scratch: bool | None = None
) -> tuple[Retrain, bool]:
    """The recipe with these settings, and whether it starts from fresh weights."""
    if isinstance(recipe, str):
        check_choice("recipe", recipe, tuple(RECIPES))
    chosen = RECIPES[recipe] if isinstance(recipe, str) else recipe
    unknown = sorted(set(options) - set(chosen.settings()))
    if unknown:
        near = did_you_mean(unknown[0], chosen.settings())
        raise InvalidTypeError(
            f"A recipe has no option {', '.join(unknown)}.{near} It takes {', '.join(chosen.settings())}."
        )
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    chosen = Retrain(**{**chosen.settings(), **given})
    fresh = from_scratch if from_scratch is not None else recipe not in PRETRAINED
    if chosen.init is not None and not fresh:
        raise InvalidValueError(
            f"init={chosen.init!r} and the model's own weights are two places to start from; give one."
        )
    if isinstance(recipe, str) and not fresh and "bn_mode" not in options:
        chosen = replace(chosen, bn_mode="freeze")
    return chosen, fresh
