"""`hf-kd`: erase, audit, inspect and demo from a terminal. Exit codes: 0 done, 1 refused with a reason, 2 wrong usage."""

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

from .showing import show_erasure, show_record

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
        hint = "On the command line: --label-map THEIR_NAME=MODEL_NAME." if "with a mapping" in str(error) else ""
        errors.print(f"[bold red]{type(error).__name__}:[/] ", end="")
        errors.print(f"{error} {hint}".strip(), markup=False, highlight=False)
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
        typer.Option(
            help="Label of the data set to forget, name or id; repeat for several. Without it: the whole split."
        ),
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
        show_erasure(console, result)


@app.command()
def audit(
    model: ModelArgument,
    dataset: Annotated[str, typer.Option(help="Labelled images, as for erase: Hub id, folder or file.")],
    forget: Annotated[
        list[str] | None,
        typer.Option(help="Forgotten label, by name or id; repeat it. Without it: those of the erasure records."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split that attackers train on.")] = "train",
    test_split: Annotated[str, typer.Option(help="Split that they are scored on.")] = "test",
    attacks: Annotated[str, typer.Option(help="standard, full, or names of attacks with commas.")] = "standard",
    seeds: Annotated[int, typer.Option(min=1, help="Repeat what depends on chance, for mean and sd.")] = 1,
    reference_model: Annotated[
        str | None, typer.Option(help="A model retrained without the forgotten classes, to compare with.")
    ] = None,
    unseen: Annotated[
        str | None, typer.Option(help="Data set of classes the model was never trained on, to compare with.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for report.json, report.md and figures.")] = None,
    tap: Annotated[str | None, typer.Option(help="Where pooled features pass; found by itself.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of images, if there are several.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of labels, if there are several.")] = None,
    label_map: Annotated[list[str] | None, typer.Option(help="DATASET_LABEL=MODEL_LABEL; may be repeated.")] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    num_workers: Annotated[int | None, typer.Option(min=0, help="Processes that decode images.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; the GPU if there is one.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of the model on the Hub.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what the features of MODEL still reveal of forgotten labels, by attackers that try.

    **Example:** `hf-kd audit erased --dataset user/pets --output report`
    """
    with _refusals():
        mapping = dict(_name_and_value(text, "--label-map") for text in label_map or []) or None
        from . import commands

        request = commands.Request(
            forget=tuple(forget or ()),
            split=split,
            test_split=test_split,
            tap=tap,
            device=device,
            revision=revision,
            image_column=image_column,
            label_column=label_column,
            label_mapping=mapping,
            batch_size=batch_size,
            num_workers=num_workers,
            progress=not as_json,
        )
        names = attacks if attacks in ("standard", "full") else attacks.split(",")
        report = commands.audit(
            model,
            dataset,
            request,
            reference=reference_model,
            unseen=unseen,
            attacks=names,
            seeds=seeds,
            output=output,
        )
    if report is None:
        return
    if as_json:
        print(report.to_json(indent=None))
        return
    console.print(report)
    if output is not None:
        console.print(f"Written to [bold]{output}[/].", highlight=False)


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
    if facts["folded"]:
        console.print(
            f"{len(facts['folded'])} erasure(s) are folded into the head: logits are erased, features are not."
        )
    for number, erasure in enumerate(facts["erasures"] or facts["folded"], 1):
        show_record(console, erasure, loaded.config.id2label, number)


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
        "folded": getattr(model.config.inner, "hf_kd_folded", None) or [],
    }


def main() -> None:
    """Entry point: quiet libraries, then the commands."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging

    logging.disable_progress_bar()  # shards and weights; the feature pass has its own bar
    app()
