"""`hf-kd push`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from . import _inputs
from ._app import command, console
from ._options import Shared
from ._published import erased_in, report_of


@command("revision", "as_json")
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of an erased or unlearned model.")],
    repo_id: Annotated[str, typer.Argument(help="USER/NAME on the Hub.")],
    private: Annotated[bool | None, typer.Option("--private/--public", help="For a new repository.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of writing.")] = False,
    folded: Annotated[
        bool, typer.Option("--folded", help="A stock checkpoint: loads without hf_kd, features NOT erased.")
    ] = False,
    handler: Annotated[
        bool, typer.Option("--handler", help="Add a handler.py, with which an Inference Endpoint serves the model.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="report.json of hf-kd audit, for the card. Without it: the one in the folder.")
    ] = None,
    datasets: Annotated[list[str] | None, typer.Option(help="Hub id of the data set, for the card; repeat it.")] = None,
    show_class_names: Annotated[
        bool, typer.Option("--show-class-names", help="Name the forgotten classes in card, report and figures.")
    ] = False,
    verify: Annotated[bool, typer.Option(help="Load it back from the Hub and compare.")] = True,
    commit_message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
    *,
    shared: Shared,
) -> None:
    """Publish the erased model in FOLDER as REPO_ID: weights, card, receipt, report and figures in one commit.

    The token is that of `hf auth login`, or HF_TOKEN.
    """
    _inputs.load_libraries(shared)
    result = erased_in(folder).push_to_hub(
        repo_id,
        report=report_of(folder, report),
        private=private,
        revision=shared.revision,
        create_pr=create_pr,
        folded=folded,
        verify=verify,
        commit_message=commit_message,
        show_class_names=show_class_names,
        datasets=datasets or (),
        handler=handler,
    )
    if shared.as_json:
        print(json.dumps(result.to_dict()))
        return
    console.print(f"Published as [bold]{result.repo_id}[/]: {result.pull_request or result.url}", highlight=False)
    if result.verified:
        console.print("Loaded back from the Hub, it gives equal answers bit for bit.")
