"""`hf-kd verify`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from hf_kd.data.paths import CONFIG_NAME
from hf_kd.errors import InvalidValueError
from hf_kd.hub.files import RECEIPT, refuse_no_receipt

from . import _inputs
from ._app import IN_PART, command, console, in_words, refuse_unused, refuse_without_data
from ._options import READING, Shared
from ._published import beside
from ._verdict import report_verdict, show_verdict

if TYPE_CHECKING:
    from hf_kd.model.verification import Verification

SHOWN = {True: "ok", False: "[bold red]DIFFERS[/]", None: "[bold yellow]?[/]"}
"""How a check is marked."""

WITH = "with --dataset, and with --forget-labels where that holds others too"
"""What gives the images."""


@command("eraser", *READING, "processor", "batch_size", "mixed_precision", "revision", "as_json")
def verify(
    source: Annotated[
        str, typer.Argument(help="Folder or Hub id of an erased model, of an eraser, or of what --eraser stands on.")
    ],
    dataset: Annotated[
        str | None, typer.Option(help="The images, to carry the erasure out again; as for erase.")
    ] = None,
    forget_labels: Annotated[list[str] | None, typer.Option(help="Forgotten label, by name or id; repeat it.")] = None,
    split: Annotated[str, typer.Option(help="Split that holds the images.")] = "train",
    retain_limit: Annotated[
        int | None, typer.Option(min=1, help="As for erase: at most so many images of other labels are read as D_r.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="The model before erasing, to compare its weights with, and for an eraser to be put on."),
    ] = None,
    texts: Annotated[
        list[str] | None, typer.Option(help="Text said to have been forgotten by name; repeat it for all of a request.")
    ] = None,
    *,
    shared: Shared,
) -> None:
    """Check an erased model against its receipt; with --dataset, carry the erasure out again.

    Exit code 1: it differs. 3: it cannot be told by the images and options that were given, or the base of an eraser
    cannot be fetched.
    """
    refuse_without_data(dataset, "processor")
    if not forget_labels:
        refuse_unused(
            ["retain_limit"], "is of the images of other labels: name the forgotten ones with --forget-labels."
        )
    if shared.eraser:
        source, base = _of_eraser(source, base, shared.eraser)
    if Path(source).is_dir():
        refuse_no_receipt(source, Path(source))
    _inputs.load_libraries(shared)
    from hf_kd.hub.receipt import read_receipt
    from hf_kd.model.verification import GIVE_IMAGES
    from hf_kd.model.verify import verify as check

    given: dict[str, Any] = {"base": base, "revision": shared.revision, "texts": texts or None}
    given["reading"] = reading = _inputs.read_options(shared)
    if dataset is not None:
        parts = _inputs.by_labels(_inputs.load_data(dataset, split, shared), forget_labels, reading, True, retain_limit)
        given |= {"forget": parts.forget, "retain": parts.retain}
        if shared.processor is not None:
            given["processor"] = _inputs.load_processor(shared.processor)
    result = check(source, **given)
    result = replace(result, checks=tuple(replace(one, found=in_words(one.found)) for one in result.checks))
    headline = in_words(result.headline).replace(GIVE_IMAGES, f"{GIVE_IMAGES} {WITH}")
    if shared.as_json:
        print(json.dumps(result.to_dict() | {"headline": headline}))
    else:
        _show(result, headline)
        named = shared.at_revision(source)
        if result.ok and (receipt := beside(named, RECEIPT)) is not None:
            records = _records(receipt.parent, read_receipt(receipt))
            show_verdict(console, report_verdict(named, records, shared, base))
    if not result.ok:
        raise typer.Exit(IN_PART if result.undecided else 1)


def _show(result: Verification, headline: str) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for one in result.checks:
        table.add_row("-" if one.skipped else SHOWN[one.ok], Text(one.what), Text(one.found, style="dim"))
    style = "bold" if result.ok else "bold yellow" if result.as_published else "bold red"
    claim, end, rest = headline.partition(". ")
    console.print(Text.assemble((claim + end, style), rest))
    console.print(table)


def _records(folder: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    """All that the model in a folder was made to forget; a receipt does not hold what was folded into it before."""
    config = folder / CONFIG_NAME
    stored = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    folded = (stored.get("inner") or stored).get("hf_kd_folded") or []
    standing = [] if content["folded"] and folded else content["erasures"]
    return [*content.get("changes", []), *folded, *standing]


def _of_eraser(source: str, base: str | None, erasers: Sequence[str]) -> tuple[str, str]:
    """What to verify, and on which base: with --eraser the receipt is that of the eraser, and the model is its base."""
    if base is not None:
        raise InvalidValueError(
            f"--base {base}: with --eraser the model that it stands on is {source}; leave --base out."
        )
    if len(erasers) > 1:
        raise InvalidValueError(
            f"--eraser was given {len(erasers)} times, and each has a receipt: verify them one by one."
        )
    return erasers[0], source
