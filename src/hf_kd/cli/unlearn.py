"""`hf-kd unlearn`: change weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_kd.data.text import terminal
from hf_kd.errors import InvalidValueError, UnreachableError
from hf_kd.methods.choices import refuse_fp16
from hf_kd.methods.registry import built_in_infos, refuse_method

from . import _inputs
from ._accuracy import HeadAccuracy
from ._app import command, console, refuse_unused, refuse_without_test
from ._options import LIMITS, READING, ModelArgument, Shared, method_names
from ._tables import show_accuracy, show_measured, show_next
from ._verdict import accuracy_verdict, audit_command, audit_lacks, record_names, show_verdict

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_kd.features.reader import ReadOptions
    from hf_kd.methods.unlearning.base import UnlearningMethod
    from hf_kd.model.erased_model import ErasedModel


@command(
    "tap",
    "processor",
    *READING,
    *LIMITS,
    "mixed_precision",
    "allow_unrecognised",
    "overwrite",
    "device",
    "revision",
    "as_json",
    methods=built_in_infos("weights"),
)
def unlearn(
    model: ModelArgument,
    dataset: Annotated[str, typer.Option(help="Labelled images: Hub id, folder of parquet files, image folder, ...")],
    output: Annotated[Path, typer.Option(help="Folder for the changed model, a stock checkpoint.")],
    forget_labels: Annotated[
        list[str], typer.Option(help="Label of the data set to forget, name or id; repeat for several.")
    ],
    method: Annotated[
        str,
        typer.Option(
            help="A method that changes weights; see `hf-kd methods`. For weights that are published: regrow.",
            autocompletion=method_names("weights"),
        ),
    ] = "scrub",
    split: Annotated[str, typer.Option(help="Split that holds the images.")] = "train",
    test_split: Annotated[
        str | None, typer.Option(help="Labelled split to measure the head's accuracy on, before and after.")
    ] = None,
    retain_limit: Annotated[
        int | None, typer.Option(min=1, help="Use at most so many of the other labels' images, whatever --limit says.")
    ] = None,
    retain: Annotated[
        str | None,
        typer.Option(
            help="Another data set (no label): its images are retained, instead of other labels of --dataset; those with "
            "a label to forget are left out. For regrow with --labels teacher they need no labels."
        ),
    ] = None,
    reference_model: Annotated[
        str | None,
        typer.Option(
            help="A network that never saw the classes, for regrow with --keep auto: the cut is where both begin to differ."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Folder in which regrow or retrain keeps its state after each epoch, and each cut that regrow tries, and "
            "goes on from it."
        ),
    ] = None,
    *,
    shared: Shared,
) -> None:
    """Forget labels by changing weights: the other methods of the field. D_r: images of all labels never forgotten.

    **Example:** `hf-kd unlearn user/pets-classifier --dataset user/pets --forget-labels tabby --output scrubbed`
    """
    if shared.labels in ("data", "teacher"):  # not whose ids they are, but whose labels: regrow's own
        shared = replace(shared, labels=None, settings={**shared.settings, "labels": shared.labels})
    refuse_without_test(test_split)
    _inputs.check_output(output, shared.overwrite, model, reference_model)
    refuse_method(method, "weights", shared.settings)
    refuse_fp16(shared.mixed_precision)
    _inputs.load_libraries(shared)
    from hf_kd.data.devices import moved
    from hf_kd.features.readers import options_of
    from hf_kd.methods.registry import make_unlearning_method
    from hf_kd.model.erased_model import ErasedModel
    from hf_kd.model.unlearn import check_model
    from hf_kd.model.unlearn import unlearn as change_weights

    chosen = make_unlearning_method(method, **shared.settings)  # refused before anything is loaded
    _refuse_unread(chosen, retain)
    reading = _inputs.read_options(shared)
    data = _inputs.load_data(dataset, split, shared)
    test = _inputs.load_data(dataset, test_split, shared, "test_split") if test_split else None
    parts = _inputs.by_labels(data, forget_labels, reading, chosen.needs_retain and retain is None)
    retained = parts.retain if retain is None else _retained_data(retain, split, shared)
    original = moved(_inputs.load_model(model, shared), device := _inputs.device_of(shared))
    check_model(chosen, original)
    audited = options_of([data, test], [retained], original, reading)
    of_test = options_of([test], [data, retained], original, reading)
    of_split = options_of([data], [test, retained], original, reading)
    reading = options_of([data, retained], [test], original, reading)
    left_out = 0
    if retain is not None:
        retained, left_out = _without_forgotten(retained, parts, original, reading, of_split)
    retained = _inputs.at_most(retained, retain_limit)
    accuracy = None
    if test_split:
        accuracy = HeadAccuracy(original, test, test_split, parts.in_model(original, of_split), of_test)
    changed = change_weights(
        original,
        parts.forget,
        chosen,
        retain=retained,
        reading=reading,
        allow_unrecognised=shared.allow_unrecognised,
        checkpoint=checkpoint,
        reference_model=None
        if reference_model is None
        else _inputs.load_model(reference_model, replace(shared, revision=None)),
    )
    here = _inputs.save_once(lambda: _save(changed.cpu(), original.processor, output), reading.progress)
    measured = None
    if accuracy is not None:
        measured = accuracy.measured(output, ErasedModel.from_model(moved(changed, device), original.processor))
    if not here:
        return  # another process of the same launch reports
    record = {"model": model, "output": str(output), **changed.config.hf_kd_unlearned[-1], "accuracy": measured}
    record["class_names"] = {c: original.class_names[c] for c in record["classes"] or ()}  # as erase has them
    # regrow is for weights that are handed out: what their holder finds is what to ask
    words = ["--original", shared.at_revision(model), *(("--access", "weights") if method == "regrow" else ())]
    known = replace(shared, label_mapping=_inputs.mapping_words(shared, audited))
    record["next"] = audit_command(str(output), dataset, *words, shared=known, split=split, test_split=test_split)
    record["next_lacks"] = audit_lacks(dataset, known, test_split)
    record["verdict"] = accuracy_verdict(measured, record, original.class_names).text
    if shared.as_json:
        console.print_json(data=record)
    else:
        _show(record, chosen, record_names(record, original.class_names), left_out, output)


def _refuse_unread(method: UnlearningMethod, retain: str | None) -> None:
    """Retained images of which the method could make nothing."""
    if not method.needs_retain:
        refuse_unused(
            ("retain", "retain_limit"), f"says which images stay, and {method.name} reads none of them: leave it out."
        )
    if retain is not None and getattr(method, "keep", None) == "auto":
        raise InvalidValueError(
            "--keep auto reads the class from among the retained images, and those of another data set (--retain) are told "
            "from it whatever a network knows. Say the share that is kept, --keep 0.33, or retain other labels of --dataset."
        )


def _without_forgotten(
    retained: Any, parts: _inputs.Parts, model: ErasedModel, reading: ReadOptions, of_split: ReadOptions
) -> tuple[Any, int]:
    """Another data set as D_r, without the classes to forget; also how many images are left out."""
    classes = set(parts.in_model(model, of_split))
    retained, left_out = _inputs.without_classes(retained, classes, parts, model, reading)
    if retained is None:
        raise InvalidValueError(
            f"No retained image is left: {left_out:,} had a label to forget, and what is forgotten is not trained on. Give "
            "images of classes that stay with --retain, or take a method that reads the forget set alone (hf-kd methods)."
        )
    return retained, left_out


def _show(record: dict[str, Any], method: UnlearningMethod, names: list[str], left_out: int, output: Path) -> None:
    show_verdict(console, record["verdict"], record.get("warnings") or ())
    console.print(
        f"[bold]{terminal(record['method'])}[/] was asked to forget {terminal(', '.join(names))}; "
        f"changing its weights took {record['fit_seconds']:.1f} s.",
        highlight=False,
    )
    for name, part in (record.get("sampled") or {}).items():
        console.print(f"A sample: {part['drawn']:,} of {part['of']:,} images of the {name} set.", highlight=False)
    if left_out:
        console.print(f"{left_out:,} retained images had a label to forget, and were left out.", highlight=False)
    show_measured(console, record["measured"][0], method.measures)
    show_accuracy(console, record["accuracy"], "before its weights were changed", ("original", "changed"))
    console.print(f"Written to [bold]{terminal(str(output))}[/]. Its weights changed.", highlight=False)
    show_next(console, "Measure what it still knows:", record["next"], record["next_lacks"])


def _retained_data(retain: str, split: str, shared: Shared) -> Any:
    try:
        return _inputs.load_data(retain, split, shared)
    except (InvalidValueError, UnreachableError) as error:
        raise type(error)(
            f"{error} (--retain names a data set. The images of the other labels of --dataset are retained without it.)"
        ) from error


def _save(changed: PreTrainedModel, processor: Any, output: Path) -> None:
    """A stock checkpoint with its image processor, receipt and card."""
    from hf_kd.hub.document import document
    from hf_kd.model.erased_model import ErasedModel
    from hf_kd.model.saving import atomic_directory

    with atomic_directory(output) as folder:
        _inputs.write_stock(changed, processor, folder)
        document(ErasedModel.from_model(changed, processor), folder, beside=output)
