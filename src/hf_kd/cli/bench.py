"""`hf-kd bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown

from hf_kd.errors import InvalidValueError, has_package

from ._app import command, console
from ._options import Shared


@command("device")
def bench(
    config: Annotated[Path, typer.Argument(help="YAML file: model, dataset, protocol, methods, seeds.")],
    output: Annotated[Path, typer.Option(help="Folder for results.jsonl, tables and figures.")],
    limit: Annotated[
        int | None, typer.Option(min=20, help="At most so many images a split: a check, not a result.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Instead of the file's, as in 0,1,2.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Label or method of a row to run; may be repeated.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run cells again that failed before.")] = False,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Run nothing; write tables of what there is.")
    ] = False,
    *,
    shared: Shared,
) -> None:
    """Compare unlearning methods on one model and data set, and print the paper's tables.

    A run that was stopped goes on where it was: each cell's result is kept and found by its settings. One failing
    method does not stop the others.

    **Example:** `hf-kd bench benchmarks/paper/cifar10-allcnn.yaml --output results --limit 500`
    """
    from hf_kd import bench as benchmark
    from hf_kd.data.distributed import process_state

    chosen = None if seeds is None else _numbers(seeds)
    found = benchmark.read_config(config, limit, chosen)
    if tables_only:
        store = benchmark.Store(output, writes=False)  # a run may be going on
    else:
        store = benchmark.bench(
            found,
            output,
            only=only or (),
            retry_failed=retry_failed,
            device=shared.device,
            progress=sys.stderr.isatty(),
            log=lambda text: console.print(text, markup=False, highlight=False),
        )
    if not process_state().is_main_process:
        return
    has_figures = has_package("matplotlib")
    written = benchmark.write_tables(found, store, output, figures=has_figures)
    for one in found:
        console.print(Markdown(benchmark.markdown(one, store)))
    if not has_figures:
        console.print(
            "No figures without matplotlib: pip install 'hf-kd[figures]', then run with --tables-only.", markup=False
        )
    console.print("Written: " + ", ".join(str(path) for path in written), highlight=False)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidValueError(
            f"--seeds {text}: write whole numbers with commas between them, as in 0,1,2."
        ) from error
