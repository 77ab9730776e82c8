"""`hf-kd push`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from . import _inputs
from ._app import command, console
from ._options import BaseOption, Shared
from ._published import erased_in, holds_eraser, refuse_unpublishable, report_of


@command("eraser", "revision", "as_json")
def push(
    folder: Annotated[Path, typer.Argument(help="Folder of an erased or unlearned model, or of an eraser.")],
    repo_id: Annotated[str, typer.Argument(help="USER/NAME on the Hub.")],
    private: Annotated[bool | None, typer.Option("--private/--public", help="For a new repository.")] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead of writing.")] = False,
    folded: Annotated[
        bool, typer.Option("--folded", help="A stock checkpoint: loads without hf_kd, features NOT erased.")
    ] = False,
    handler: Annotated[
        bool, typer.Option("--handler", help="Add a handler.py, with which an Inference Endpoint serves the model.")
    ] = False,
    eraser_only: Annotated[
        bool,
        typer.Option(
            "--eraser-only", help="The eraser without its base; of a folder that holds no more it is always so."
        ),
    ] = False,
    base: BaseOption = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder or report.json of hf-kd audit, for the card. Without it: the one in FOLDER."),
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

    A text of your own in FOLDER/README.md is published where the README of REPO_ID has none; else that one stays.

    An eraser in FOLDER, as `hf-kd erase --eraser-only` saves it, is published as it is, without its base.

    The token is that of `hf auth login`, or HF_TOKEN.
    """
    refuse_unpublishable(folder, base, shared.eraser)
    from hf_kd.hub.upload import check_repo_id  # huggingface_hub, which help has no need of

    check_repo_id(repo_id)
    _inputs.load_libraries(shared)
    from hf_kd.hub.own_report import records_told

    model = erased_in(folder, base, shared.eraser)
    result = model.push_to_hub(
        repo_id,
        report=report_of(folder, report, records_told(model)),
        private=private,
        revision=shared.revision,
        create_pr=create_pr,
        folded=folded,
        eraser_only=eraser_only or holds_eraser(folder),
        verify=verify,
        commit_message=commit_message,
        show_class_names=show_class_names,
        datasets=datasets or (),
        handler=handler,
        beside=folder,
    )
    if shared.as_json:
        print(json.dumps(result.to_dict()))
        return
    console.print(f"Published as [bold]{result.repo_id}[/]: {result.pull_request or result.url}", highlight=False)
    if result.verified:
        console.print("Loaded back from the Hub, it gives equal answers bit for bit.")
