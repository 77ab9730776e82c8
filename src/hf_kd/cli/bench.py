"""`hf-kd bench`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markdown import Markdown

from hf_kd.data.progress import working
from hf_kd.data.text import first_sentence, one_line
from hf_kd.errors import InvalidValueError, MissingFileError, has_package

from . import _inputs
from ._app import IN_PART, command, console, errors
from ._options import Shared

if TYPE_CHECKING:
    from hf_kd.bench.config import Experiment
    from hf_kd.bench.store import Store


@command("device")
def bench(
    config: Annotated[Path, typer.Argument(help="YAML file: model, dataset, protocol, methods, seeds.")],
    output: Annotated[Path, typer.Option(help="Folder for results.jsonl, tables and figures.")],
    limit: Annotated[
        int | None, typer.Option(min=20, help="At most so many images a split: a check, not a result.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Instead of the file's, as in 0,1,2.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Label or method of a row to run; may be repeated.")] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run again, and draw, what failed before.")
    ] = False,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Run nothing; write tables of what there is.")
    ] = False,
    *,
    shared: Shared,
) -> None:
    """Compare unlearning methods on one model and data set, and print the paper's tables.

    A run that was stopped goes on where it was: each cell's result is kept and found by its settings. One failing
    method does not stop the others: what failed is said last, and the exit code is 3.

    **Example:** `hf-kd bench benchmarks/paper/cifar10-allcnn.yaml --output results --limit 500`
    """
    chosen = None if seeds is None else _numbers(seeds)
    _inputs.load_libraries(shared)
    from hf_kd import bench as benchmark
    from hf_kd.data.distributed import process_state

    found, unopened = benchmark.read_config(config, limit, chosen), None
    if tables_only:
        store = benchmark.Store(output, writes=False)  # a run may be going on
        if not store.path.is_file():
            raise MissingFileError(f"There is no {store.path}: name the folder that the bench wrote to.")
    else:
        try:
            store = benchmark.bench(
                found,
                output,
                only=only or (),
                retry_failed=retry_failed,
                device=shared.device,
                progress=sys.stderr.isatty(),
                log=lambda text: console.print(text, markup=False, highlight=False),
            )
        except benchmark.NotOpenedError as error:
            if len(error.unopened) == len(found):
                raise
            unopened, store = error, error.store
    if not process_state().is_main_process:
        return
    has_figures = has_package("matplotlib")
    with working("writing tables and figures"):
        written = benchmark.write_tables(found, store, output, figures=has_figures)
    for one in found:
        console.print(Markdown(benchmark.markdown(one, store)))
    if not has_figures:
        console.print(
            "No figures without matplotlib: pip install 'hf-kd[figures]', then run with --tables-only.", markup=False
        )
    console.print("Written: " + ", ".join(str(path) for path in written), highlight=False)
    failed = [told for one in found for told in _failures(one, store, only or ())]
    if failed:
        errors.print(f"[bold red]{len(failed)} failed[/], the others are done; --retry-failed runs them again:")
        for told in failed:
            errors.print(f"  {told}", markup=False, highlight=False)
    if unopened is not None:
        raise unopened
    if failed and not tables_only:
        raise typer.Exit(IN_PART)


def _failures(experiment: Experiment, store: Store, only: Sequence[str]) -> list[str]:
    """A line for each cell of the rows asked for that has failed, now or before; the tables have the whole messages."""
    from hf_kd.bench.lines import lines

    return [
        one_line(f"{experiment.name}: {line.label}, seed {record['seed']}: {first_sentence(record['error'])}")
        for line in lines(experiment, store)
        if not only or line.label in only or line.row.name in only
        for record in line.failed
    ]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidValueError(
            f"--seeds {text}: write whole numbers with commas between them, as in 0,1,2."
        ) from error
