"""How the command line shows an erasure: tables of plain values, one 80-column screen."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def show_erasure(console: Console, result: dict[str, Any]) -> None:
    """The record of a carried-out request, the head's accuracies if they were measured, and what to keep in mind."""
    show_record(console, result["erasure"], result["class_names"])
    accuracy = result["accuracy"]
    if accuracy:
        console.print(f"Top-1 of the model's own head on {accuracy['split']} (%), original = before any erasure:")
        table = Table()
        for column in ("", "forgotten", "others"):
            table.add_column(column, justify="right" if column else "left")
        for when in ("original", "erased"):
            table.add_row(when, *(f"{accuracy[when][part]:.2f}" for part in ("forget", "retain")))
        console.print(table)
        console.print("This is not what the features still reveal: hf-kd audit measures that.")
    console.print(f"Saved to [bold]{result['output']}[/].", highlight=False)
    if result["folded"]:
        console.print("Folded: a stock checkpoint whose logits are erased and whose features are NOT.")
    console.print(
        "The weights below the eraser still hold the knowledge, and whoever has them can take the eraser away.",
        style="dim",
    )


def show_record(
    console: Console, record: dict[str, Any], names: dict[int, str] | None = None, number: int | None = None
) -> None:
    """One erasure as a table; `names` are the model's labels, `number` its place among several."""
    console.print(f"{'' if number is None else f'{number}. '}Erased by {record['method']}:")
    table = Table(show_header=False)
    table.add_row("forget samples", f"{record['n_forget']:,}")
    if record["classes"] is not None:
        labels = [f"{c} ({names[c]})" if names and c in names else str(c) for c in record["classes"]]
        table.add_row("classes of the model", ", ".join(labels))
    for tap, measured, rank, condition in zip(
        record["taps"], record["measured"], record["rank_removed"], record["condition_number"], strict=True
    ):
        table.add_row("tap", tap)
        table.add_row("rank removed", str(rank))
        if "energy_removed" in measured:
            table.add_row("forget energy removed", f"{measured['energy_removed']:.2%}")
        if "forget_hits_before" in measured:
            hits = " -> ".join(f"{measured[f'forget_hits_{name}']:.1f}" for name in ("before", "soft", "hard"))
            table.add_row("forget hits, %", f"{hits} (before, soft mask, hard mask)")
            table.add_row("epochs", str(measured["epochs_run"]))
        shown = "inf (has a null space)" if condition is None else f"{condition:.1f}, so a linear probe can undo it"
        table.add_row("condition number", shown)
    table.add_row("seconds", f"{record['feature_seconds']:.1f} features + {record['fit_seconds']:.1f} fit")
    console.print(table)
