"""`hf-kd demo`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from hf_kd.cli import _inputs
from hf_kd.cli._app import command, console, refuse_unused
from hf_kd.cli._options import Shared
from hf_kd.errors import MissingFileError

if TYPE_CHECKING:
    from .run import DemoResult, DemoRow


EXAMPLE = Path("examples") / "0-zero.png"
"""What a folder that the demo wrote has, and no other model's."""


@command("eraser", "overwrite", "as_json")
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the erased demo model.")] = Path("hf-kd-demo"),
    digit: Annotated[int, typer.Option(min=0, max=9, help="Digit to forget.")] = 3,
    ui: Annotated[bool, typer.Option("--ui", help="Then open a page that compares original and erased model.")] = False,
    model: Annotated[str | None, typer.Option(help="With --ui: the page for this erased model instead.")] = None,
    examples: Annotated[
        Path | None,
        typer.Option(help="With --model: folder of images to click on, called NUMBER-LABEL.png."),
    ] = None,
    port: Annotated[int | None, typer.Option(help="With --ui: port of the page.")] = None,
    *,
    shared: Shared,
) -> None:
    """Train a small classifier of handwritten digits, let it forget one, and see what is left. Needs no network."""
    if model is not None and not ui:
        raise typer.BadParameter("--model is for the page; add --ui.")
    if shared.eraser and model is None:
        raise typer.BadParameter("--eraser is put on a model; name it with --model.")
    if not ui:
        refuse_unused(["port"], "is of the page: add --ui, or leave it out.")
    if model is not None:
        refuse_unused(
            ["output", "digit", "overwrite"], "is of the demo's own model, and --model names another: leave it out."
        )
    if ui:
        refuse_unused(["as_json"], "prints what was measured and ends, and --ui opens a page: leave one out.")
    if examples is not None and not examples.is_dir():
        raise MissingFileError(f"--examples {examples}: there is no such folder.")
    if model is not None:
        _inputs.load_libraries(shared)
        _open_page(model, examples, port, shared.eraser)
        return
    if examples is not None:
        raise typer.BadParameter("--examples is for the page of --model; the demo brings its own.")
    _inputs.check_output(output, shared.overwrite or (output / EXAMPLE).is_file())
    _inputs.load_libraries(shared)
    from .run import audit_demo, run_demo

    result = run_demo(output, digit, log=(lambda text: None) if shared.as_json else console.print)
    if shared.as_json:
        print(json.dumps(_plain(result)))
    else:
        _show(digit, result)
    if not result.reloaded_equal:
        raise typer.Exit(1)
    if ui:
        console.print("Auditing it for the page ...")
        audit_demo(result)
        _open_page(str(result.folder), result.examples, port)


def _plain(result: DemoResult) -> dict[str, Any]:
    """What `--json` prints."""
    rows = [
        {
            "method": row.method,
            "head": _scores(row.head),
            "converged_probe": _scores(row.probe.scores),
            "probe_converged": row.probe.convergence.converged,
        }
        for row in result.rows
    ]
    return {"rows": rows, "folder": str(result.folder), "reloaded_equal": result.reloaded_equal}


def _show(digit: int, result: DemoResult) -> None:
    table = Table(
        title=f"Digit {digit} forgotten: accuracy in %, D_f and D_ft are the forgotten digit", title_justify="left"
    )
    table.add_column("")
    for name in _scores(result.rows[0].head):
        table.add_column(name, justify="right")
    for who, scores in (
        ("converged linear probe", lambda row: row.probe.scores),
        ("the model's own head", lambda row: row.head),
    ):
        table.add_row(f"[bold]{who}[/]")
        for row in result.rows:
            table.add_row(f"  {row.method}", *(f"{value:.1f}" for value in _scores(scores(row)).values()))
        table.add_section()
    console.print(table)
    console.print(_in_words(digit, result.rows[1:]))
    console.print(
        f"Saved to [bold]{result.folder}[/]; loaded again, its logits are "
        + ("[green]equal bit for bit[/]." if result.reloaded_equal else "[red]different[/].")
        + f" Look at it: hf-kd inspect {result.folder}"
    )


def _open_page(source: str, examples: Path | None, port: int | None, eraser: list[str] | None = None) -> None:
    from .page import page

    blocks = page(source, examples, show_class_names=True, eraser=eraser or ())
    # quiet: it would offer a public link
    _, url, _ = blocks.launch(server_port=port, server_name="127.0.0.1", quiet=True, prevent_thread_lock=True)
    console.print(f"The page is at {url} ; Ctrl-C ends it.", highlight=False)
    blocks.block_thread()


def _in_words(digit: int, rows: Sequence[DemoRow]) -> str:
    """What the erased models' numbers say, the probe's first."""
    read, answered = max(row.probe.scores.D_ft for row in rows), max(row.head.D_ft for row in rows)
    how = "to convergence" if all(row.probe.convergence.converged for row in rows) else "as long as it may"
    told = (
        f"A linear probe trained {how} on the erased features, with labels of every image, reads up to {read:.0f} % of "
    )
    told += f"the unseen {digit}s; the head answers right for up to {answered:.0f} % of them."
    return told + (" The features keep knowledge that the head does not show." if read > answered + 1 else "")


def _scores(scores: Any) -> dict[str, float]:
    return {name: getattr(scores, name) for name in ("D_f", "D_r", "D_ft", "D_rt", "HM", "HM_t")}
