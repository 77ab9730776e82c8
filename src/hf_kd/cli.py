"""`hf-kd`: erase, inspect and demo from a terminal. Exit codes: 0 done, 1 refused with a reason, 2 wrong usage."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from .modeling import ErasedModel

app = typer.Typer(
    name="hf-kd",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Make a trained Hugging Face vision model forget, and see what it still answers.\n\n"
    "An erased model answers from features with the forgotten directions removed. Its weights are unchanged: whoever "
    "holds them can take the eraser away, and a probe trained long enough on enough labels reads most of what was erased.",
)

console = Console()
errors = Console(stderr=True)

ModelArgument = Annotated[
    str, typer.Argument(help="Hub id or folder of a checkpoint, a PEFT adapter or an erased model.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """What the library refuses ends as one message and exit code 1; everything else is a bug and keeps its traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        errors.print(f"[bold red]{type(error).__name__}:[/] ", end="")
        errors.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from error


@app.command()
def erase(
    model: ModelArgument,
    dataset: Annotated[
        str,
        typer.Option(
            help="Hub id, folder of parquet files, single .parquet, image folder, or a data set saved to disk."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the erased model.")],
    forget: Annotated[
        list[str] | None,
        typer.Option(help="Label to forget, by name or id; repeat it for several. Without it: every row of the split."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split that holds the images to forget.")] = "train",
    test_split: Annotated[
        str | None, typer.Option(help="Labelled split to measure the head's accuracy on, before and after.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="esc (no training), esc-t (trained mask), or a registered method.")
    ] = "esc",
    p: Annotated[
        float | None, typer.Option(help="ESC: percentage of the d directions to remove (default 1.5).")
    ] = None,
    k: Annotated[int | None, typer.Option(help="ESC: number of directions to remove, instead of --p.")] = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="ESC: k directions for each label on its own.")
    ] = False,
    center: Annotated[
        bool, typer.Option("--center", help="ESC: subtract the forget mean first (not in the paper).")
    ] = False,
    threshold: Annotated[
        float | None, typer.Option(help="ESC-T: tau, mask entries above it stay (default 0.7).")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="ESC-T: step size of the mask (default 1).")] = None,
    epochs: Annotated[int | None, typer.Option(help="ESC-T: at most so many epochs (default 50).")] = None,
    seed: Annotated[int | None, typer.Option(help="ESC-T: order of the samples (default 42).")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Another hyper-parameter of the method as name=value; may be repeated.")
    ] = None,
    tap: Annotated[
        str | None, typer.Option(help="Where pooled features pass, path.to.module; found by itself.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of images, if there are several.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of labels, if there are several.")] = None,
    label_map: Annotated[
        list[str] | None,
        typer.Option(help="DATASET_LABEL=MODEL_LABEL (names or ids) where names do not match; may be repeated."),
    ] = None,
    fold: Annotated[
        bool,
        typer.Option(
            "--fold", help="Save a stock checkpoint with the eraser in its head: logits erased, features not."
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    num_workers: Annotated[int | None, typer.Option(min=0, help="Processes that decode images.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; the GPU if there is one.")] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="no, fp16 or bf16 for the forward pass.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the model on the Hub.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make MODEL forget the images of --dataset with the labels of --forget, and save it to --output.

    **Example:** `hf-kd erase user/pets-classifier --dataset user/pets --forget tabby --output erased`
    """
    options = _given(p=p, k=k, threshold=threshold, lr=lr, epochs=epochs, seed=seed)
    options |= {name: True for name, value in (("per_class", per_class), ("center", center)) if value}
    with _refusals():
        options |= dict(_name_and_value(text, "--option") for text in option or [])
        mapping = dict(_name_and_value(text, "--label-map") for text in label_map or []) or None
        from . import commands

        result = commands.erase(
            model,
            dataset,
            commands.Request(
                output=output,
                forget=tuple(forget or ()),
                split=split,
                test_split=test_split,
                method=method,
                options=options,
                tap=tap,
                fold=fold,
                device=device,
                revision=revision,
                image_column=image_column,
                label_column=label_column,
                label_mapping=mapping,
                batch_size=batch_size,
                num_workers=num_workers,
                mixed_precision=mixed_precision,
                progress=not as_json,
            ),
        )
    if result is None:  # another process of the same launch reports
        return
    if as_json:
        print(json.dumps(result))
    else:
        _show_erasure(result)


@app.command()
def inspect(
    model: ModelArgument,
    tap: Annotated[str | None, typer.Option(help="Try this place instead of searching.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the model on the Hub.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show where pooled features pass in MODEL, their d, the heads that read them, and what was erased."""
    with _refusals():
        from .modeling import ErasedModel

        loaded = ErasedModel.from_pretrained(model, **_given(tap=tap, revision=revision))
        loaded.find_taps()
    facts = _facts(model, loaded)
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(title=f"{facts['class']} in {model}", show_header=False, title_justify="left")
    for number, place in enumerate(facts["taps"]):
        suffix = f" {number + 1}" if len(facts["taps"]) > 1 else ""
        table.add_row(f"tap{suffix}", place["place"])
        table.add_row(f"d{suffix}", str(place["d"]))
        table.add_row(f"head{suffix}", ", ".join(place["heads"]) or "none (embedding model)")
    table.add_row("labels", str(facts["num_labels"]) if facts["num_labels"] else "none")
    table.add_row("withheld once erased", ", ".join(facts["withheld"]) or "nothing")
    table.add_row("erasures", str(len(facts["erasures"])))
    console.print(table)
    for erasure in facts["erasures"]:
        _show_record(erasure)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the erased demo model.")] = Path("hf-kd-demo"),
    digit: Annotated[int, typer.Option(min=0, max=9, help="Digit to forget.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Train a small classifier of handwritten digits, let it forget one, and see what is left. Needs no network."""
    with _refusals():
        from .demo import run_demo

        result = run_demo(output, digit, say=(lambda text: None) if as_json else console.print)
    if as_json:
        rows = [
            {
                "method": row.method,
                "head": _scores(row.head),
                "converged_probe": _scores(row.probe.scores),
                "probe_converged": row.probe.convergence.converged,
            }
            for row in result.rows
        ]
        print(json.dumps({"rows": rows, "folder": str(result.folder), "reloaded_equal": result.reloaded_equal}))
        return
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
    worst = max(row.probe.scores.D_ft for row in result.rows[1:])
    console.print(
        f"The head hardly answers {digit} any more. But a linear probe trained to convergence on the erased features, "
        f"with labels of every image, still reads up to {worst:.0f} % of the unseen {digit}s: the features keep the "
        "knowledge, and the head alone does not show it."
    )
    console.print(
        f"Saved to [bold]{result.folder}[/]; loaded again, its logits are "
        + ("[green]equal bit for bit[/]." if result.reloaded_equal else "[red]different[/].")
        + f" Look at it: hf-kd inspect {result.folder}"
    )
    if not result.reloaded_equal:
        raise typer.Exit(1)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _name_and_value(text: str, flag: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"{flag} {text!r}: write it as NAME=VALUE.")
    with contextlib.suppress(json.JSONDecodeError):
        value = json.loads(value)
    return name, value


def _scores(scores: Any) -> dict[str, float]:
    return {name: getattr(scores, name) for name in ("D_f", "D_r", "D_ft", "D_rt", "HM", "HM_t")}


def _facts(name: str, model: ErasedModel) -> dict[str, Any]:
    return {
        "model": name,
        "class": type(model.inner).__name__,
        "taps": [{"place": str(tap), "d": tap.dim, "heads": list(tap.heads)} for tap in model.taps],
        "num_labels": model.config.num_labels if all(tap.heads for tap in model.taps) else None,
        "withheld": list(model.config.leaking),
        "erased": model.is_erased,
        "erasures": [erasure.to_dict() for erasure in model.erasures],
    }


def _show_erasure(result: dict[str, Any]) -> None:
    _show_record(result["erasure"])
    accuracy = result["accuracy"]
    if accuracy:
        table = Table(title=f"Top-1 of the model's own head on {accuracy['split']} (%)", title_justify="left")
        for column in ("", "forgotten", "others"):
            table.add_column(column, justify="right" if column else "left")
        for when in ("original", "erased"):
            table.add_row(when, *(f"{accuracy[when][part]:.2f}" for part in ("forget", "retain")))
        console.print(table)
    console.print(f"Saved to [bold]{result['output']}[/].", highlight=False)
    console.print(
        "The weights below the eraser still hold the knowledge; the head's accuracy does not show it. "
        "See the limits in the README before you publish.",
        style="dim",
    )


def _show_record(record: dict[str, Any]) -> None:
    table = Table(title=f"Erased by {record['method']}", show_header=False, title_justify="left")
    table.add_row("forget samples", f"{record['n_forget']:,}")
    if record["classes"] is not None:
        table.add_row("class ids", ", ".join(map(str, record["classes"])))
    for tap, measured, rank, condition in zip(
        record["taps"], record["measured"], record["rank_removed"], record["condition_number"], strict=True
    ):
        table.add_row("tap", tap)
        table.add_row("rank removed", str(rank))
        if "energy_removed" in measured:
            table.add_row("forget energy removed", f"{measured['energy_removed']:.2%}")
        if "forget_hits_before" in measured:
            hits = " -> ".join(f"{measured[f'forget_hits_{name}']:.1f}" for name in ("before", "soft", "hard"))
            table.add_row("forget hits % (before -> soft -> hard mask)", hits)
            table.add_row("epochs", str(measured["epochs_run"]))
        table.add_row("condition number", "inf (has a null space)" if condition is None else f"{condition:.1f}")
        if condition is not None:
            table.add_row("", "invertible: a linear probe can undo it")
    table.add_row("seconds (features + fit)", f"{record['feature_seconds']:.1f} + {record['fit_seconds']:.1f}")
    console.print(table)


def main() -> None:
    """Entry point: quiet libraries, then the commands."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging

    logging.disable_progress_bar()  # shards and weights; the feature pass has its own bar
    app()
