"""`hf-kd train-original`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_kd.data.progress import working
from hf_kd.data.text import one_line
from hf_kd.errors import InvalidValueError
from hf_kd.methods.choices import refuse_fp16
from hf_kd.methods.registry import method_info, refuse_method
from hf_kd.model.recipes import PRETRAINED, RECIPES

from . import _inputs
from ._app import command, console, kept_training, refuse_without_test
from ._options import LIMITS, READING, Shared
from ._tables import show_next
from ._verdict import audit_command

if TYPE_CHECKING:
    from hf_kd.features.reader import ReadOptions


@command(
    "processor",
    *READING,
    *LIMITS,
    "mixed_precision",
    "overwrite",
    "device",
    "as_json",
    methods=[method_info("retrain")],
)
def train_original(
    model: Annotated[
        str,
        typer.Argument(help="Folder, or USER/NAME[@REVISION]: its configuration, and its weights if pre-trained."),
    ],
    dataset: Annotated[str, typer.Option(help="Labelled images to train on.")],
    output: Annotated[Path, typer.Option(help="Folder for the trained model.")],
    recipe: Annotated[str, typer.Option(help=f"One of {', '.join(RECIPES)}; settings of your own overrule it.")],
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    from_scratch: Annotated[
        bool | None,
        typer.Option(
            help=f"Fresh weights, or the model's own; by default its own for {' and '.join(PRETRAINED)} alone."
        ),
    ] = None,
    test_split: Annotated[str | None, typer.Option(help="Labelled split to measure the accuracy on.")] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            help="Label of the data set whose images are left out, name or id; repeat it. From fresh weights it makes a "
            "reference that has never seen them, for audit --retrained."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last epoch of a run for this --output that was killed.")
    ] = False,
    *,
    shared: Shared,
) -> None:
    """Train an original model with one of the recipes behind the paper's tables.

    Where the labels of the data set are not the model's, the result has those of the data set and a new head.

    **Example:** `hf-kd train-original microsoft/resnet-18 --recipe resnet18-pretrained --dataset user/pets --output r18`
    """
    refuse_without_test(test_split)
    _inputs.check_output(output, shared.overwrite, model)
    refuse_method("retrain", "weights", shared.settings)
    refuse_fp16(shared.mixed_precision)
    _inputs.load_libraries(shared)
    from hf_kd.data.devices import moved
    from hf_kd.data.paths import with_revision
    from hf_kd.model.configuration import label_names
    from hf_kd.model.loading import load_classifier, load_processor
    from hf_kd.model.train import train_original as train

    kept = _state_folder(output, resume, shared.overwrite)
    reading = _inputs.read_options(shared)
    data = _inputs.load_data(dataset, split, shared)
    _refuse_unnamed(data, reading)
    fresh = recipe not in PRETRAINED if from_scratch is None else from_scratch
    with working("loading the model", reading.progress):
        name, hub = with_revision(os.path.expanduser(model), {})
        start = load_classifier(name, hub, fresh)
    processor = load_processor(name, hub) if shared.processor is None else _inputs.load_processor(shared.processor)
    trained = train(
        moved(start, _inputs.device_of(shared)),
        data,
        recipe,
        processor=processor,
        from_scratch=fresh,
        without=without or (),
        test=None if test_split is None else _inputs.load_data(dataset, test_split, shared, "test_split"),
        checkpoint=kept,
        reading=reading,
        **shared.settings,
    )
    if not _inputs.save_once(lambda: _inputs.save_stock(trained.cpu(), processor, output), reading.progress):
        return  # another process of the same launch reports
    shutil.rmtree(kept, ignore_errors=True)
    facts = {"model": model, "output": str(output), "labels": trained.config.num_labels, **trained.config.hf_kd_trained}
    if facts["without"] and facts["from_scratch"]:  # a reference
        words = ["MODEL", dataset, "--retrained", str(output)]
        facts["next"] = audit_command(*words, shared=shared, split=split, test_split=test_split)
    if shared.as_json:
        console.print_json(data=facts)
    else:
        _show(facts, label_names(trained.config), test_split)


def _refuse_unnamed(data: Any, reading: ReadOptions) -> None:
    """Images whose labels have no names, which those of the trained model would be."""
    from hf_kd.data.image_source import inspect_images

    images = inspect_images(data, reading.image_column, reading.label_column)
    if images.label_names is None:
        among = f" (candidates: {', '.join(images.label_candidates)})" if images.label_candidates else ""
        raise InvalidValueError(
            f"The data set names no labels in a single column{among}. Name it with --label-column, or cast it to ClassLabel."
        )


def _show(facts: dict[str, Any], names: dict[int, str], test_split: str | None) -> None:
    measured = facts["measured"]
    came_from = "fresh weights" if facts["from_scratch"] else f"the weights of {facts['model']}"
    head = " and a new head" if facts["new_head"] and not facts["from_scratch"] else ""
    console.print(
        f"Trained from {came_from}{head} on {facts['images']:,} images of {facts['labels'] - len(facts['without'])} labels; "
        f"{measured['accuracy']:.1f} % of them are answered right. Written to [bold]{facts['output']}[/].",
        highlight=False,
    )
    if test_split is not None:
        console.print(
            f"Of {measured['test_images']:,} images of {test_split}, {measured['test_accuracy']:.1f} % are answered right.",
            markup=False,
            highlight=False,
        )
    if facts["without"]:
        without = ", ".join(one_line(names[label]) for label in facts["without"])
        trained = "It has never seen" if facts["from_scratch"] else "It was not trained on"
        console.print(f"{trained} {without}, and never answers so.", markup=False, highlight=False)
    if "next" in facts:
        show_next(console, "Compare a MODEL that was made to forget that with it:", facts["next"])


def _state_folder(output: Path, resume: bool, overwrite: bool) -> Path:
    """Folder of the state of the training, beside the output."""
    from hf_kd.data.distributed import process_state

    kept, state = kept_training(output), process_state()
    there = kept.exists()
    state.wait_for_everyone()  # all have looked before one deletes it
    if there and not resume:
        if not overwrite:
            raise InvalidValueError(
                f"A training of {output} was stopped, and {kept} has its state. Go on with --resume, or start again with "
                "--overwrite."
            )
        if state.is_main_process:
            shutil.rmtree(kept)
        state.wait_for_everyone()
    if resume and not there:
        raise InvalidValueError(f"--resume: there is no {kept}, so no training of {output} was stopped. Leave it out.")
    return kept
