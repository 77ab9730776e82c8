"""`hf-kd erase`."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from hf_kd.errors import InvalidValueError

from ._app import (
    BatchSizeOption,
    DeviceOption,
    ImageColumnOption,
    ImportOption,
    JsonOption,
    LabelColumnOption,
    LabelMapOption,
    ModelArgument,
    RevisionOption,
    TapOption,
    WorkersOption,
    app,
    console,
    exit_on_error,
    given,
    import_files,
    name_and_option,
    name_and_value,
)
from ._tables import show_erasure

ESC, TRAINED, COVER = "ESC", "ESC-T", "Cover erasure"
RETAIN, MASKS = "Methods that read D_r", "Masked classes"
"""Panels of the help: options of one method or one idea."""


@app.command()
def erase(
    model: ModelArgument,
    dataset: Annotated[
        str,
        typer.Option(
            help="Hub id, folder of parquet files, single .parquet, image folder, or a data set saved to disk."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the erased model.")],
    forget: Annotated[
        list[str] | None,
        typer.Option(
            help="Label of the data set to forget, name or id; repeat for several. Without it: the whole split."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split that holds the images to forget.")] = "train",
    test_split: Annotated[
        str | None, typer.Option(help="Labelled split to measure the head's accuracy on, before and after.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="esc (no training), esc-t (trained mask), cover, or another of `hf-kd methods`.")
    ] = "esc",
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="Another hyper-parameter as NAME=VALUE; repeat it. The value is JSON, or numbers with commas: "
            'cover_classes=5,2 or \'class_sizes={"0": 500, "1": 400}\'.'
        ),
    ] = None,
    p: Annotated[
        float | None,
        typer.Option(help="Percentage of the d directions to remove (default 1.5).", rich_help_panel=ESC),
    ] = None,
    k: Annotated[
        int | None, typer.Option(help="Number of directions to remove, instead of --p.", rich_help_panel=ESC)
    ] = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="k directions for each label on its own.", rich_help_panel=ESC)
    ] = False,
    center: Annotated[
        bool,
        typer.Option("--center", help="Subtract the forget mean first (not in the paper).", rich_help_panel=ESC),
    ] = False,
    renorm: Annotated[
        bool,
        typer.Option(
            "--renorm", help="Give every feature its length back, which alone betrays the class.", rich_help_panel=ESC
        ),
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(help="tau, mask entries above it stay (default 0.7).", rich_help_panel=TRAINED)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Step size of the mask (default 1).", rich_help_panel=TRAINED)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="At most so many epochs (default 50).", rich_help_panel=TRAINED)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Order of the samples (default 42).", rich_help_panel=TRAINED)
    ] = None,
    m: Annotated[
        int | None,
        typer.Option(
            help="Number of cover classes, which keep their label and lose all detail within the class (default: twice as "
            "many as are forgotten).",
            rich_help_panel=COVER,
        ),
    ] = None,
    guard: Annotated[
        str | None,
        typer.Option(
            help="A quantile such as 0.02, or auto: replace only what the head is surer of than of that share of D_f. For "
            "models that meet images unlike their training data.",
            rich_help_panel=COVER,
        ),
    ] = None,
    retain_limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="leace, mean-difference, prototype-orthogonal read the images of all other labels of --split as D_r: at "
            "most so many of them.",
            rich_help_panel=RETAIN,
        ),
    ] = None,
    mask_head: Annotated[
        bool | None,
        typer.Option(
            "--mask-head/--no-mask-head",
            help="Never answer the forgotten classes again; by default so for cover and retained-span.",
            rich_help_panel=MASKS,
        ),
    ] = None,
    erased_label: Annotated[
        str | None, typer.Option(help="What they are called then (default '(erased)').", rich_help_panel=MASKS)
    ] = None,
    drop_label: Annotated[
        bool,
        typer.Option(
            "--drop-label", help="Take them out of labels and logits; the others are renumbered.", rich_help_panel=MASKS
        ),
    ] = False,
    tap: TapOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    label_map: LabelMapOption = None,
    fold: Annotated[
        bool,
        typer.Option(
            "--fold", help="Save a stock checkpoint with the eraser in its head: logits erased, features not."
        ),
    ] = False,
    batch_size: BatchSizeOption = 64,
    num_workers: WorkersOption = None,
    device: DeviceOption = None,
    mixed_precision: Annotated[str | None, typer.Option(help="no, fp16 or bf16 for the forward pass.")] = None,
    revision: RevisionOption = None,
    imports: ImportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make MODEL forget the images of --dataset with the labels of --forget, and save it to --output.

    **Example:** `hf-kd erase user/pets-classifier --dataset user/pets --forget tabby --output erased`
    """
    options = given(p=p, k=k, threshold=threshold, lr=lr, epochs=epochs, seed=seed, m=m, guard=guard)
    switches = {"per_class": per_class, "center": center, "renorm": renorm}
    options |= {name: True for name, value in switches.items() if value}
    if guard is not None:
        with contextlib.suppress(ValueError):  # "auto" stays a word, and the method refuses all others
            options["guard"] = float(guard)
    with exit_on_error():
        import_files(imports)
        if drop_label and erased_label is not None:
            raise InvalidValueError(f"Give --drop-label or --erased-label {erased_label!r}, not both.")
        options |= dict(map(name_and_option, option or []))
        mapping = dict(name_and_value(text, "--label-map") for text in label_map or []) or None
        label = {"erased_label": None} if drop_label else given(erased_label=erased_label)
        from . import commands

        result = commands.erase(
            model,
            dataset,
            commands.Request(
                output=output,
                forget=tuple(forget or ()),
                split=split,
                test_split=test_split,
                method=method,
                options=options,
                tap=tap,
                fold=fold,
                device=device,
                revision=revision,
                image_column=image_column,
                label_column=label_column,
                label_mapping=mapping,
                batch_size=batch_size,
                num_workers=num_workers,
                mixed_precision=mixed_precision,
                progress=not as_json,
                mask_head=mask_head,
                retain_limit=retain_limit,
                **label,
            ),
        )
    if result is None:  # another process of the same launch reports
        return
    if as_json:
        print(json.dumps(result))
    else:
        show_erasure(console, result)
