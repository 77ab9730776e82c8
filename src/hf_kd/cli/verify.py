"""`hf-kd verify`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ._app import (
    ImageColumnOption,
    ImportOption,
    JsonOption,
    LabelColumnOption,
    RevisionOption,
    app,
    console,
    exit_on_error,
    import_files,
)


@app.command()
def verify(
    source: Annotated[str, typer.Argument(help="Folder or Hub id of an erased model.")],
    dataset: Annotated[
        str | None, typer.Option(help="The images, to carry the erasure out again; as for erase.")
    ] = None,
    forget: Annotated[list[str] | None, typer.Option(help="Forgotten label, by name or id; repeat it.")] = None,
    split: Annotated[str, typer.Option(help="Split that holds the images.")] = "train",
    retain_limit: Annotated[
        int | None, typer.Option(min=1, help="As for erase: at most so many images of other labels are read as D_r.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The model before erasing, to compare its weights with.")] = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    revision: RevisionOption = None,
    imports: ImportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check an erased model against its receipt; with --dataset, carry the erasure out again. Exit code 1: it differs."""
    with exit_on_error():
        import_files(imports)
        from . import commands

        request = commands.Request(
            forget=tuple(forget or ()),
            split=split,
            image_column=image_column,
            label_column=label_column,
            revision=revision,
            progress=not as_json,
            retain_limit=retain_limit,
        )
        result = commands.verify(source, dataset, request, base)
    if as_json:
        print(json.dumps(result.to_dict()))
    else:
        table = Table(show_header=False, box=None, pad_edge=False)
        for check in result.checks:
            table.add_row(
                "ok" if check.ok else "[bold red]DIFFERS[/]", Text(check.what), Text(check.found, style="dim")
            )
        console.print(table)
        again = " The erasure was not carried out again: give its images with --dataset."
        again = " What changed the weights was not carried out again." if not result.repeatable else again
        again = "" if result.repeated else again
        console.print(("Everything matches the receipt." if result.ok else "[bold red]Not as published.[/]") + again)
    if not result.ok:
        raise typer.Exit(1)
