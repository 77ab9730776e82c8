"""`hf-kd unlearn` and `hf-kd train-original`: the commands that change weights."""

from __future__ import annotations

import inspect
import shlex
from pathlib import Path
from typing import Annotated

import typer

from hf_kd.model.recipes import PRETRAINED, RECIPES

from ._app import (
    DeviceOption,
    ImageColumnOption,
    ImportOption,
    JsonOption,
    LabelColumnOption,
    LabelMapOption,
    ModelArgument,
    RevisionOption,
    WorkersOption,
    app,
    console,
    exit_on_error,
    import_files,
    name_and_value,
)
from ._tables import show_accuracy

OptionsOption = Annotated[
    list[str] | None, typer.Option("--option", help="NAME=VALUE of the method, such as epochs=2; may be repeated.")
]
PrecisionOption = Annotated[str, typer.Option(help="no, bf16 or fp16 for the forward passes.")]


@app.command()
def unlearn(
    model: ModelArgument,
    dataset: Annotated[str, typer.Option(help="Labelled images: Hub id, folder of parquet files, image folder, ....")],
    output: Annotated[Path, typer.Option(help="Folder for the changed model, a stock checkpoint.")],
    forget: Annotated[list[str], typer.Option(help="Label of the data set to forget, name or id; repeat for several.")],
    method: Annotated[str, typer.Option(help="A method that changes weights; see `hf-kd methods`.")] = "scrub",
    split: Annotated[str, typer.Option(help="Split that holds the images.")] = "train",
    test_split: Annotated[
        str | None, typer.Option(help="Labelled split to measure the head's accuracy on, before and after.")
    ] = None,
    retain_limit: Annotated[
        int | None, typer.Option(min=1, help="Use at most so many of the other labels' images.")
    ] = None,
    option: OptionsOption = None,
    mixed_precision: PrecisionOption = "no",
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    label_map: LabelMapOption = None,
    num_workers: WorkersOption = None,
    device: DeviceOption = None,
    revision: RevisionOption = None,
    imports: ImportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget labels by changing weights: the other methods of the field. The images of all other labels are D_r.

    **Example:** `hf-kd unlearn user/pets-classifier --dataset user/pets --forget tabby --method scrub --output scrubbed`
    """
    with exit_on_error():
        import_files(imports)
        mapping = dict(name_and_value(text, "--label-map") for text in label_map or []) or None
        options = dict(name_and_value(text, "--option") for text in option or [])
        from . import commands

        request = commands.Request(
            output=output,
            forget=tuple(forget),
            split=split,
            test_split=test_split,
            method=method,
            options=options,
            device=device,
            revision=revision,
            image_column=image_column,
            label_column=label_column,
            label_mapping=mapping,
            num_workers=num_workers,
            mixed_precision=mixed_precision,
            progress=not as_json,
        )
        record = commands.unlearn(model, dataset, request, retain_limit)
    if record is None:
        return
    if as_json:
        console.print_json(data=record)
        return
    classes = ", ".join(map(str, record["classes"]))
    console.print(f"[bold]{record['method']}[/] was asked to forget classes {classes}; {record['fit_seconds']:.1f} s.")
    console.print(", ".join(f"{key} {value}" for key, value in record["measured"][0].items()), highlight=False)
    show_accuracy(console, record["accuracy"], "before its weights were changed", ("original", "changed"))
    console.print(f"Written to [bold]{output}[/]. Its weights changed; measure what it still knows:", highlight=False)
    words = ["hf-kd", "audit", str(output), "--dataset", dataset, "--split", split, "--original-model", model]
    words += [word for path in imports or () for word in ("--import", str(path))]
    console.print(f"  {shlex.join(words)}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method: what it does, and its hyper-parameters.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List every method: what data it needs (D_f: the images to forget, D_r: those that stay) and where it comes from.

    **Example:** `hf-kd methods scrub`
    """
    from rich.table import Table

    from hf_kd.methods.registry import get_method, method_info, method_infos

    if name is not None:
        with exit_on_error():
            method, info = get_method(name), method_info(name)
        settings = {option.name: option.default for option in info.options}
        if as_json:
            console.print_json(data={"method": name, "about": method.__doc__, "settings": settings}, default=str)
            return
        console.print(f"[bold]{name}[/]\n\n", end="")
        console.print(inspect.cleandoc(method.__doc__ or ""), markup=False, highlight=False)
        console.print("\n--option NAME=VALUE:", markup=False, highlight=False)
        for key, value in settings.items():
            console.print(f"  {key} = {value}", markup=False, highlight=False)
        return
    acts_on = {"eraser": "features", "weights": "weights"}
    rows = [
        {
            "method": info.name,
            "acts on": acts_on[info.kind],
            "needs": info.needs,
            "when": info.when,
            "about": info.about,
            "source": info.source,
        }
        for info in method_infos()
    ]
    if as_json:
        console.print_json(data=rows)
        return
    shown = ("method", "acts on", "needs", "when")
    table = Table(*shown)
    for row in rows:
        table.add_row(*(row[key] for key in shown))
    console.print(table)


@app.command()
def train_original(
    model: Annotated[str, typer.Argument(help="Hub id or folder: its configuration, and its weights if pre-trained.")],
    dataset: Annotated[str, typer.Option(help="Labelled images to train on.")],
    output: Annotated[Path, typer.Option(help="Folder for the trained model.")],
    recipe: Annotated[str, typer.Option(help=f"One of {', '.join(RECIPES)}.")],
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    from_scratch: Annotated[
        bool | None,
        typer.Option(
            "--from-scratch/--from-pretrained",
            help=f"Fresh weights, or the model's own; by default its own for {' and '.join(PRETRAINED)} alone.",
        ),
    ] = None,
    option: OptionsOption = None,
    limit: Annotated[int | None, typer.Option(min=2, help="At most so many images: a check, not a result.")] = None,
    mixed_precision: PrecisionOption = "no",
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    label_map: LabelMapOption = None,
    num_workers: WorkersOption = None,
    device: DeviceOption = None,
    imports: ImportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train an original model with one of the recipes behind the paper's tables.

    Where the labels of the data set are not the model's, the result has those of the data set and a new head.

    **Example:** `hf-kd train-original microsoft/resnet-18 --recipe resnet18-pretrained --dataset user/pets --output r18`
    """
    with exit_on_error():
        import_files(imports)
        mapping = dict(name_and_value(text, "--label-map") for text in label_map or []) or None
        options = dict(name_and_value(text, "--option") for text in option or [])
        from . import commands

        request = commands.Request(
            output=output,
            split=split,
            options=options,
            device=device,
            image_column=image_column,
            label_column=label_column,
            label_mapping=mapping,
            num_workers=num_workers,
            mixed_precision=mixed_precision,
            progress=not as_json,
        )
        facts = commands.train_original(model, dataset, request, recipe, from_scratch, limit)
    if facts is None:
        return
    if as_json:
        console.print_json(data=facts)
        return
    start = "fresh weights" if facts["from_scratch"] else f"the weights of {model}"
    head = " and a new head" if facts["new_head"] and not facts["from_scratch"] else ""
    console.print(
        f"Trained from {start}{head} on {facts['images']} images of {facts['labels']} labels; "
        f"{facts['measured']['accuracy']:.1f} % of them are answered right. Written to [bold]{output}[/].",
        highlight=False,
    )
