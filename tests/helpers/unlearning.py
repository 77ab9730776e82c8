"""What methods that change weights are handed, of a small network, with its images read once."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

from hf_kd import ErasedModel
from hf_kd.features.reader import ReadOptions
from hf_kd.features.taps.inputs import main_input
from hf_kd.methods.unlearning.task import Task
from hf_kd.model.unlearn import find_blocks, fresh_model, make_task
from tests.conftest import image_processor, small_resnet
from tests.helpers.small import make_dataset


@functools.cache
def _read(forget: tuple[int, ...], retain: tuple[int, ...]) -> Task:
    student = ErasedModel.from_model(copy.deepcopy(small_resnet()), image_processor())
    return make_task(student, make_dataset(forget), make_dataset(retain, seed=3), ReadOptions(progress=False))


def task_of(forget: list[int], retain: list[int]) -> Task:
    """A task with a model of its own; the samples are those of every task with these labels."""
    return own(_read(tuple(forget), tuple(retain)))


def own(task: Task) -> Task:
    """The same task with a copy of its model."""
    model = copy.deepcopy(task.model)
    return replace(
        task,
        model=model,
        fresh=lambda seed, init: fresh_model(model, seed, init),
        blocks=lambda inputs, every: find_blocks(model, inputs, main_input(model), every, at_most=None),
        warnings=[],
    )
