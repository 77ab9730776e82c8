"""Carry out a request with a method that changes weights: the other methods of the field, on any image classifier.

`unlearn` works on a copy and returns a stock model; what was done stands in its configuration
(`hf_kd_unlearned`), where audit, card and push find it.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_kd.data.devices import moved, refuse_unreachable_weights
from hf_kd.data.digest import tensors_digest
from hf_kd.data.distributed import precision_of, process_state
from hf_kd.data.labels import LabelMapping
from hf_kd.data.modes import drop_caches
from hf_kd.data.paths import local_path
from hf_kd.data.progress import working
from hf_kd.data.samples import Samples, in_dtype
from hf_kd.errors import InvalidTypeError, InvalidValueError, LabelMismatchError, out_of_memory, shortened
from hf_kd.features.heads import linear_heads, problem_type
from hf_kd.features.reader import ImageReader, ReadOptions, probe_batch
from hf_kd.features.readers import labels_of, open_readers, options_of
from hf_kd.features.taps.blocks import find_blocks
from hf_kd.features.taps.inputs import main_input
from hf_kd.features.taps.site import sites_on
from hf_kd.methods.choices import refuse_fp16
from hf_kd.methods.measured import UnlearningMeasured
from hf_kd.methods.records import WeightChange, folded_erasures, forgotten_classes, weight_changes
from hf_kd.methods.registry import get_method, make_unlearning_method
from hf_kd.methods.unlearning.base import UnlearningMethod
from hf_kd.methods.unlearning.fresh import fresh_model
from hf_kd.methods.unlearning.task import Task

from . import outcome
from .configuration import take_name
from .erase import common_fields, leave_other_base
from .erased_model import ErasedModel

logger = logging.getLogger(__name__)

ASKED = 1024
"""Samples of each set that the model answers for before and after."""

SAME_REFERENCE = (
    "The reference has the very weights of the model that is changed: it saw the classes, and the two differ nowhere. Give "
    "one that was trained without them (hf-kd train-original --without), or leave it out."
)


def unlearn(
    model: PreTrainedModel | ErasedModel,
    forget: Any,
    method: str | UnlearningMethod = "scrub",
    *,
    retain: Any = None,
    processor: Any = None,
    reading: ReadOptions | None = None,
    progress: bool = True,
    allow_unrecognised: bool = False,
    checkpoint: str | Path | None = None,
    reference_model: PreTrainedModel | ErasedModel | None = None,
    **method_options: Any,
) -> PreTrainedModel:
    """Forget a set of images by changing weights.

    Runs on the device of `model`; under `accelerate launch` each process takes its part of every batch and gradients are
    averaged.

    Args:
        model: A classifier; its weights are read, not changed.
        forget: Labelled images, anything `ErasedModel.erase` takes: D_f. A class that `retain` has images of, too, stays,
            and the record does not name it as forgotten.
        method: A name in `hf_kd.unlearning_methods()`, or a method with its settings.
        retain: Labelled images of the classes that stay, D_r or the part of it that may be used; for methods that read them.
        processor: The image processor, where `model` is not an ErasedModel that has one.
        reading: How images are read, and the precision of the forward passes. Images a step: `batch_size` of the method.
        progress: False shows no bar, whatever `reading` says.
        allow_unrecognised: Carry on where the model takes the images for other classes than their labels say.
        checkpoint: A folder in which a method that can be resumed (regrow, retrain) keeps its state after each epoch, and
            regrow with keep="auto" after each cut it tried; the same call goes on from there. Data is known again by all its
            labels and 16 images of each set.
        reference_model: For regrow with keep="auto": a model of the same class that never saw the classes. The cut is then
            where the two begin to differ.
        **method_options: Hyper-parameters of the method.

    Returns:
        A stock model of the same class, changed; its record stands in `config.hf_kd_unlearned`. It has no image processor,
        as no stock model has: it is audited as `ErasedModel.from_model(changed, processor)`, and the processor is saved
        beside it.

    Raises:
        ValueError: For an unknown method or option, missing labels or retained images, labels the model does not know or
            contradicts, an erased model, one whose weights are offloaded or quantised, a model without a head that chooses a
            class, and where nothing changed.
    """
    own = [field.name for field in fields(get_method(method, "weights"))] if isinstance(method, str) else []
    options = ReadOptions.given(reading, progress, method_options, own=own)
    chosen: UnlearningMethod = make_unlearning_method(method, **method_options)
    reference = None if reference_model is None else _reference_inside(reference_model, chosen)
    student = student_of(model, processor)
    before = tensors_digest(student.inner.state_dict().values())
    started = time.perf_counter()
    if chosen.needs_retain and retain is None:
        raise chosen.missing_retain()
    folder = _checkpoint_folder(checkpoint, chosen)
    check_model(chosen, student)
    if not chosen.needs_retain:
        retain, options = None, options_of([forget], [retain], student, options)
    readers = open_readers(student, options, forget=forget, retain=retain)
    task = _task(student, readers, options, chosen)
    if reference is not None:
        task.reference = _reference(reference, task)
        if tensors_digest(reference.state_dict().values()) == before:
            task.warn(SAME_REFERENCE)
    task.checkpoint = folder
    refuse = "D_f" in chosen.needs and not allow_unrecognised
    measured, warnings, (between, finished) = _run(chosen, task, student, readers["forget"].mapping, refuse)
    stock = unwrapped(student)
    after = tensors_digest(stock.state_dict().values())
    outcome.refuse_unchanged(chosen.name, after != before, measured)
    for text in warnings:
        logger.warning(text)
    dtype = next(stock.parameters()).dtype if task.mixed_precision == "no" else task.mixed_precision
    record = WeightChange(
        method=chosen.name,
        settings=chosen.settings(),
        taps=(),
        n_forget=len(task.forget),
        classes=_whole_classes(task, chosen),
        measured=(dict(measured),),
        warnings=(*warnings, *task.warnings),  # which the method said already
        base_model=student.config.base_model,
        base_commit=student.config.base_commit,
        weights_before=before,
        weights_after=after,
        folded_before=len(folded_erasures(stock.config)),
        needs=chosen.needs,
        source=chosen.source or None,
        n_retain=None if task.retain is None else len(task.retain),
        **common_fields((), readers, dtype, (started, between, finished)),
    )
    stock.config.hf_kd_unlearned = [*(getattr(stock.config, "hf_kd_unlearned", None) or []), record.to_dict(names=True)]
    return stock


def check_model(method: UnlearningMethod, model: ErasedModel) -> None:
    """Refuse, before any image is read, a method whose settings are not for this model (InvalidValueError)."""
    inner = model.inner
    method.check_model(inner, lambda: find_blocks(inner, probe_batch(model), main_input(inner), at_most=None))


def _checkpoint_folder(checkpoint: str | Path | None, method: UnlearningMethod) -> Path | None:
    if checkpoint is None:
        return None
    if not method.resumes:
        raise InvalidValueError(
            f"{method.name} cannot be resumed, so checkpoint={str(checkpoint)!r} is of no use to it: leave it out."
        )
    if not isinstance(checkpoint, str | os.PathLike):
        raise InvalidTypeError(f"checkpoint is {shortened(checkpoint)}; name a folder for the state of the training.")
    folder = local_path(checkpoint)
    above = next(place for place in (folder, *folder.absolute().parents) if os.access(place, os.F_OK))
    if not above.is_dir() or not os.access(above, os.W_OK):
        what = "is a file" if above.is_file() else "cannot be written to"
        raise InvalidValueError(
            f"checkpoint={str(folder)!r}: {above} {what}; name a folder for the state of the training."
        )
    return folder


def _reference_inside(model: PreTrainedModel | ErasedModel, method: UnlearningMethod) -> PreTrainedModel:
    """A reference as it was given, without a wrapper."""
    if getattr(method, "keep", None) != "auto":
        raise InvalidValueError(
            "reference_model says where to cut, and only regrow with keep='auto' asks: leave it out."
        )
    inner = model.inner if isinstance(model, ErasedModel) else model
    if not isinstance(inner, PreTrainedModel):
        raise InvalidTypeError(
            f"reference_model is {shortened(inner)}; give the model itself, an ErasedModel or any PreTrainedModel: "
            "load it with from_pretrained."
        )
    refuse_unreachable_weights(inner, "reference_model")
    return inner


def _reference(inner: PreTrainedModel, task: Task) -> nn.Module:
    """A copy of a reference model, in the precision of the model that is changed."""
    made = moved(copy.deepcopy(inner), task.device, torch.promote_types(inner.dtype, torch.float32)).eval()
    try:
        with torch.no_grad(), task.autocast():
            made(**in_dtype(made, task.two_images()))  # whose logits nobody needs
    except (RuntimeError, ValueError, TypeError) as error:
        if out_of_memory(error):
            raise
        raise InvalidValueError(
            f"The reference_model ({type(inner).__name__}) does not take the images as the model does that is changed "
            f"({error}). Give one that is fed the same way, or leave it out: the cut is then found by trying."
        ) from error
    return made


def _run(
    method: UnlearningMethod, task: Task, student: ErasedModel, mapping: LabelMapping | None, refuse: bool
) -> tuple[UnlearningMeasured, list[str], tuple[float, float]]:
    """Change the weights: what was measured, what is to be said of answers before and after, when it began and ended."""
    labels, answers = _answers(task, task.forget)
    earlier = outcome.forgotten_before(student)
    asked = outcome.pairs(labels, answers)
    warnings = outcome.check_recognised(asked, student.class_names, mapping, earlier=earlier, refuse=refuse)
    retained = None if task.retain is None else (task.retain, *_answers(task, task.retain))
    between = time.perf_counter()
    task.begin()
    measured = method.run(task)
    finished = between + task.seconds
    warnings += outcome.accuracy_warnings(
        (labels, answers, _answers(task, task.forget)[1]),
        None if retained is None else (*retained[1:], _answers(task, retained[0])[1]),
    )
    return measured, warnings, (between, finished)


def _whole_classes(task: Task, method: UnlearningMethod) -> tuple[int, ...] | None:
    """Ids of the forgotten classes; a class with retained images stays, and only samples of it were forgotten."""
    stay = () if task.retain is None or not method.reads_retained_labels else task.retain.labels.unique().tolist()
    return tuple(label for label in task.forget_classes.tolist() if label not in stay) or None


def make_task(student: ErasedModel, forget: Any, retain: Any, options: ReadOptions) -> Task:
    """The task that a method is handed: the model inside `student`, its samples and its heads."""
    return _task(student, open_readers(student, options, forget=forget, retain=retain), options)


@torch.no_grad()
def _answers(task: Task, samples: Samples) -> tuple[Tensor, Tensor]:
    """Labels [n] and the model's answers [n] for at most `ASKED` samples, evenly spaced; every process asks all of them."""
    rows = torch.linspace(0, len(samples) - 1, min(ASKED, len(samples))).round().long()
    chosen = samples.subset(rows)
    with task.mode("eval"), working("asking the model", task.progress and task.state.is_main_process):
        found = [task.logits(batch.to(task.device).inputs).argmax(dim=1).cpu() for batch in chosen.batches(128)]
    return chosen.labels, torch.cat(found)


def _task(
    student: ErasedModel,
    readers: Mapping[str, ImageReader],
    options: ReadOptions,
    method: UnlearningMethod | None = None,
) -> Task:
    precision = precision_of(options.mixed_precision)
    refuse_fp16(precision)  # before images are read
    earlier, warnings = forgotten_classes(student), outcome.without_earlier(student, readers)
    forget = readers["forget"].samples()
    if method is not None:
        method.check_forget(forget)
    retain, more = _without(earlier, _retained(readers, {*forget.labels.tolist(), *earlier}, method))
    readers["forget"].find_taps()
    if not all(tap.heads for tap in student.taps):
        raise InvalidValueError(
            f"{type(student.inner).__name__} has no classification head; methods that change weights train on its labels. "
            "Erase with method='esc', which needs the images alone."
        )
    outcome.refuse_other_heads(student, "train_original" if method is None else method.name)
    state = process_state()
    if state.num_processes > 1:
        student.inner.to(state.device)
    mean, std = _normalisation(student.processor)
    return Task(
        student.inner,
        forget,
        retain,
        num_labels=student.config.num_labels,
        heads=tuple(linear_heads(student.inner, [head for tap in student.taps for head in tap.heads])),
        fresh=lambda seed, init: fresh_model(student.inner, seed, init),
        blocks=lambda inputs, every: find_blocks(student.inner, inputs, main_input(student.inner), every, at_most=None),
        forgotten_before=earlier,
        changed_before=len(weight_changes(student.config)),
        pixel_mean=mean,
        pixel_std=std,
        mixed_precision=precision,
        progress=options.progress,
        warnings=[*warnings, *more],
    )


def _without(earlier: Collection[int], retain: Samples | None) -> tuple[Samples | None, list[str]]:
    """As `outcome.without_earlier`, of a stream or a loader, whose labels show when it is read."""
    classes = torch.tensor(sorted(earlier), dtype=torch.long)
    if retain is None or not bool((gone := torch.isin(retain.labels, classes)).any()):
        return retain, []
    said = outcome.left_out(int(gone.sum()), len(retain))
    logger.warning(said)
    return retain.subset((~gone).nonzero().flatten()), [said]


def _retained(
    readers: Mapping[str, ImageReader], forgotten: Collection[int], method: UnlearningMethod | None
) -> Samples | None:
    """D_r; for a method that needs no labels of it, with those of forgotten classes all the same, as far as it says them."""
    reader = readers.get("retain")
    if reader is None or method is None:
        return None if reader is None else reader.samples()
    try:
        known = None if method.reads_retained_labels else labels_of(forgotten, reader, readers["forget"])
        return reader.samples(known)
    except LabelMismatchError as error:
        raise LabelMismatchError(f"{error} {method.unlabelled}".strip()) from error


def unwrapped(model: ErasedModel) -> PreTrainedModel:
    """The model inside, without the sites."""
    for site in model.sites:
        site.detach()
    return model.inner.eval()


def student_of(model: Any, processor: Any) -> ErasedModel:
    """A copy that may be changed, of a model or of what an ErasedModel holds.

    Raises ValueError for an erased one, and for weights that are offloaded or quantised.
    """
    base, problem = (None, None), None
    if isinstance(model, ErasedModel):
        leave_other_base(model)
        base, problem = (model.config.base_model, model.config.base_commit), problem_type(model)
        model, processor = model.inner, processor or model.processor
    if any(site.eraser is not None for site in sites_on(model)):  # also of a model that was taken out of its wrapper
        raise InvalidValueError(
            "This model carries an eraser, and changing the weights below it would change what it erases. Change the "
            "weights first, or fold the eraser in: use ErasedModel.fold(), or hf-kd erase --fold on the command line."
        )
    refuse_unreachable_weights(model, "A change of weights")
    drop_caches(model)
    student = copy.deepcopy(model)
    for site in sites_on(student):
        site.detach()
    for module in student.modules():  # hooks of the wrapper that the original stands in
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                if type(getattr(getattr(hook, "func", None), "__self__", None)).__name__ == "TapSite":
                    del hooks[key]
    take_name(student)
    if problem is not None:  # which may have been said of the wrapper alone
        student.config.problem_type = problem
    wrapped = ErasedModel.from_model(student.eval(), processor)
    wrapped.config.base_model, wrapped.config.base_commit = base
    return wrapped


def _normalisation(processor: Any) -> tuple[Tensor | None, Tensor | None]:
    """Mean and standard deviation [channels or 1] of the model's normalisation of pixels in [0, 1]; None where the processor
    does not say, or normalises other pixels.
    """
    processor = getattr(processor, "image_processor", processor)
    mean, std = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    to_one = getattr(processor, "do_rescale", False) and math.isclose(getattr(processor, "rescale_factor", 0), 1 / 255)
    if mean is None or std is None or not to_one or not getattr(processor, "do_normalize", False):
        return None, None
    return torch.tensor(mean).reshape(-1), torch.tensor(std).reshape(-1)
