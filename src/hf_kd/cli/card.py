"""`hf-kd card`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._app import ImportOption, app, console, exit_on_error, import_files


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(help="Folder of an erased or unlearned model.")],
    report: Annotated[
        Path | None, typer.Option(help="report.json of hf-kd audit. Without it: the one in the folder.")
    ] = None,
    repo_id: Annotated[str | None, typer.Option(help="USER/NAME under which it will be published.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Hub id of the data set; repeat it.")] = None,
    show_class_names: Annotated[
        bool, typer.Option("--show-class-names", help="Name the forgotten classes in card, report and figures.")
    ] = False,
    imports: ImportOption = None,
) -> None:
    """Write model card, receipt, report and figures into FOLDER, as pushing would. Text of your own in README.md stays."""
    with exit_on_error():
        import_files(imports)
        from . import commands

        written = commands.card(
            folder, report, repo_id=repo_id, datasets=dataset or (), show_class_names=show_class_names
        )
    console.print(f"Written to [bold]{folder}[/]: {', '.join(written)}.", highlight=False)
