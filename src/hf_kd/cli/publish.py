"""`hf-kd publish-metric` and `hf-kd publish-demo`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from . import _inputs
from ._app import command, console
from ._options import Shared

PrivateOption = Annotated[bool | None, typer.Option("--private/--public", help="For a new Space.")]


@command()
def publish_metric(
    repo_id: Annotated[str, typer.Argument(help="USER/NAME of the Space; NAME as a Python name.")],
    private: PrivateOption = None,
    *,
    shared: Shared,
) -> None:
    """Publish Knowledge Retention as a metric Space, for `evaluate.load("USER/NAME")`."""
    _inputs.load_libraries(shared)
    from hf_kd.hub.spaces import KNOWLEDGE_RETENTION
    from hf_kd.hub.spaces.build import metric_space
    from hf_kd.hub.upload import prepare, upload

    with tempfile.TemporaryDirectory() as folder:
        metric_space(Path(KNOWLEDGE_RETENTION), Path(folder), repo_id)  # what is refused makes no Space
        full = prepare(repo_id, repo_type="space", private=private, space_sdk="gradio")
        published = upload(Path(folder), full, repo_type="space", message="Knowledge Retention of hf_kd")
    console.print(f'Published: {published.url}\nevaluate.load("{published.repo_id}") loads it.', highlight=False)


@command()
def publish_demo(
    model_id: Annotated[str, typer.Argument(help="USER/NAME of an erased model on the Hub.")],
    space: Annotated[
        str | None, typer.Option(help="USER/NAME of the Space; by default the model's with -demo.")
    ] = None,
    private: PrivateOption = None,
    *,
    shared: Shared,
) -> None:
    """Publish a Space that shows the answers of an erased model beside those of its original."""
    _inputs.load_libraries(shared)
    from hf_kd.hub.spaces.build import demo_space
    from hf_kd.hub.upload import prepare, upload

    with tempfile.TemporaryDirectory() as folder:
        demo_space(model_id, Path(folder))
        full = prepare(space or f"{model_id}-demo", repo_type="space", private=private, space_sdk="gradio")
        published = upload(Path(folder), full, repo_type="space", message=f"Demo of {model_id}")
    console.print(f"Published: {published.url}", highlight=False)
