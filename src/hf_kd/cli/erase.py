"""`hf-kd erase`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .app import (
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
    given,
    import_files,
    name_and_value,
    refusals,
)
from .showing import show_erasure


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
        str, typer.Option(help="esc (no training), esc-t (trained mask), or a registered method.")
    ] = "esc",
    p: Annotated[
        float | None, typer.Option(help="ESC: percentage of the d directions to remove (default 1.5).")
    ] = None,
    k: Annotated[int | None, typer.Option(help="ESC: number of directions to remove, instead of --p.")] = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="ESC: k directions for each label on its own.")
    ] = False,
    center: Annotated[
        bool, typer.Option("--center", help="ESC: subtract the forget mean first (not in the paper).")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(help="ESC-T: tau, mask entries above it stay (default 0.7).")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="ESC-T: step size of the mask (default 1).")] = None,
    epochs: Annotated[int | None, typer.Option(help="ESC-T: at most so many epochs (default 50).")] = None,
    seed: Annotated[int | None, typer.Option(help="ESC-T: order of the samples (default 42).")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Another hyper-parameter of the method as name=value; may be repeated.")
    ] = None,
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
    options = given(p=p, k=k, threshold=threshold, lr=lr, epochs=epochs, seed=seed)
    options |= {name: True for name, value in (("per_class", per_class), ("center", center)) if value}
    with refusals():
        import_files(imports)
        options |= dict(name_and_value(text, "--option") for text in option or [])
        mapping = dict(name_and_value(text, "--label-map") for text in label_map or []) or None
        from .. import commands

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
            ),
        )
    if result is None:  # another process of the same launch reports
        return
    if as_json:
        print(json.dumps(result))
    else:
        show_erasure(console, result)
