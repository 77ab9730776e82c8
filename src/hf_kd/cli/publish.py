"""`hf-kd publish-metric` and `hf-kd publish-demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from ._app import app, console, exit_on_error

PrivateOption = Annotated[bool | None, typer.Option("--private/--public", help="For a new Space.")]


@app.command("publish-metric")
def publish_metric(
    repo_id: Annotated[str, typer.Argument(help="USER/NAME of the Space; NAME as a Python name.")],
    private: PrivateOption = None,
) -> None:
    """Publish Knowledge Retention as a metric Space, for `evaluate.load("USER/NAME")`."""
    with exit_on_error():
        from . import commands

        published = commands.publish_metric(repo_id, private)
    console.print(f'Published: {published.url}\nevaluate.load("{published.repo_id}") loads it.', highlight=False)


@app.command("publish-demo")
def publish_demo(
    model_id: Annotated[str, typer.Argument(help="USER/NAME of an erased model on the Hub.")],
    space: Annotated[
        str | None, typer.Option(help="USER/NAME of the Space; by default the model's with -demo.")
    ] = None,
    private: PrivateOption = None,
) -> None:
    """Publish a Space that shows the answers of an erased model beside those of its original."""
    with exit_on_error():
        from . import commands

        published = commands.publish_demo(model_id, space, private)
    console.print(f"Published: {published.url}", highlight=False)
