"""How the command line shows an erasure: tables of plain values, one 80-column screen."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hf_kd.data.text import one_line, terminal
from hf_kd.hub.wording import FOLDED, GETS_THROUGH, folded_into
from hf_kd.methods.attribute_texts import typed_texts

from ._verdict import show_verdict


def show_erasure(console: Console, result: dict[str, Any]) -> None:
    """The verdict, the record of a carried-out request, the head's accuracies if measured, and what to keep in mind."""
    show_verdict(console, result["verdict"], result["erasure"].get("warnings") or ())
    show_record(console, result["erasure"], result["class_names"], folded=result["folded"])
    show_accuracy(console, result["accuracy"], "before any erasure", ("original", "erased"))
    if (result["accuracy"] or {}).get("hardest_hit"):
        console.print(
            "Where others lose too much: try other --k, and --method retained-span or leace, which read the images that "
            "stay and move them less; hf-kd methods says when to take which.",
            style="dim",
            highlight=False,
        )
    if result["cover_missing"]:
        missing = ", ".join(named(c, result["cover_names"]) for c in result["cover_missing"])
        console.print(
            f"Warning: there is no image of cover class {missing} in this data. Where a cover class does not occur, "
            "nothing but forgotten images lies on its point, and cover erasure makes the class easier to find. Name "
            "classes that occur: --option cover_classes=ID,ID.",
            style="yellow",
            markup=False,
            highlight=False,
        )
    console.print(f"Saved to [bold]{terminal(str(result['output']))}[/].", highlight=False)
    if result["folded"]:
        where, what = FOLDED[folded_into(result["classifies"], bool(result["erasure"].get("n_texts")))]
        console.print(f"A stock checkpoint, folded into {where}: {what}.")
    below = "The weights below the eraser still hold the knowledge"
    if not result["folded"]:
        below += ", and whoever has them can take the eraser away"
    console.print(f"{below}.", style="dim")
    show_next(console, "Measure what attackers still read from the features:", result["next"], result["next_lacks"])


def show_next(console: Console, why: str, command: str, lacks: str = "") -> None:
    """The command to run next, on one line that can be copied; before it what it `lacks` as yet."""
    if lacks:
        why = f"{why.removesuffix(':')} on images of a test split, which are missing. {one_line(lacks)} Then:"
    console.print(why, markup=False, highlight=False)
    console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


def show_measured(console: Console, measured: Mapping[str, Any], measures: type) -> None:
    """What a method that changes weights measured while it worked, in the words of its `measures`."""
    texts = typed_texts(measures)
    table = Table(show_header=False)
    for key, value in measured.items():
        text = texts.get(key, key.replace("_", " ")).replace("`", "")
        text = text.replace("D_f", "the forget set").replace("D_r", "the retained set")
        what, *more = re.split(r"[.;](?: |$)", text)
        why = next((part.removeprefix("None where ") for part in more if part.startswith("None where ")), "not known")
        table.add_row(Text(one_line(what)), Text("\n".join([why] if value is None else _plain(value))))
    if measured:
        console.print(table)


def _plain(value: Any) -> list[str]:
    """A measured value in plain words, a line for each part of a list of several facts."""
    if isinstance(value, Mapping):
        # a key is of words unless it is the path of a module; what there is none of is not said
        words = {key: key.replace("_", " ") if key.isidentifier() else one_line(key) for key in value}
        return [", ".join(f"{words[key]} {' '.join(_plain(part))}" for key, part in value.items() if part != {})]
    if isinstance(value, list | tuple):
        parts = [" ".join(_plain(part)) for part in value]
        return parts if any(isinstance(part, Mapping) for part in value) else [", ".join(parts) or "none"]
    if isinstance(value, float):
        return [f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"]
    return [f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else one_line(value)]


def show_accuracy(console: Console, accuracy: dict[str, Any] | None, original: str, whens: tuple[str, str]) -> None:
    """The head's accuracies before and after, where they were measured; `original` says what the first row is."""
    if not accuracy:
        return
    part = accuracy.get("sampled")
    where = accuracy["split"] + (f", a sample of {part['drawn']:,} of {part['of']:,} images" if part else "")
    console.print(f"Top-1 of the model's own head on {where} (%), original = {original}:")
    table = Table()
    for column in ("", "forgotten", "retained"):
        table.add_column(column, justify="right" if column else "left")
    for when, shown in zip(("original", "erased"), whens, strict=True):
        table.add_row(shown, *(f"{accuracy[when][part]:.2f}" for part in ("forget", "retain")))
    console.print(table)


def show_masks(console: Console, facts: dict[str, Any]) -> None:
    """Which classes are never answered, and what they are called."""
    masked = facts["masked"]
    if not masked["classes"]:
        return
    labels = ", ".join(named(c, facts["class_names"]) for c in masked["classes"])
    how = (
        "dropped from labels and logits"
        if masked["dropped"]
        else f"called {', '.join(map(one_line, masked['labels']))}"
    )
    console.print(f"Masked, so never answered: {labels}; {how}.", markup=False, highlight=False)


def named(label: int, names: dict[int, str] | None) -> str:
    """A class as "3 (cat)"."""
    return f"{label} ({one_line(names[label])})" if names and label in names else str(label)


def show_record(
    console: Console,
    record: dict[str, Any],
    names: dict[int, str] | None = None,
    number: int | None = None,
    folded: bool = False,
) -> None:
    """One erasure as a table; `names` are the model's labels, `number` its place among several.

    `folded` into weights it masks answers, and labels stay.
    """
    console.print(f"{'' if number is None else f'{number}. '}Erased by {terminal(record['method'])}:")
    table = Table(show_header=False)
    if record.get("n_texts"):
        words = ", ".join(record.get("texts") or ()) or str(record["n_texts"])
        table.add_row("texts", Text(one_line(words)))
    table.add_row("forget samples", f"{record['n_forget']:,}")
    for name, part in (record.get("sampled") or {}).items():
        table.add_row(f"sample of the {name} set", f"{part['drawn']:,} of {part['of']:,}")
    if record["classes"] is not None:
        table.add_row("classes of the model", Text(", ".join(named(c, names) for c in record["classes"])))
    if record.get("dataset_classes"):
        table.add_row("labels of the data set", Text(one_line(", ".join(record["dataset_classes"]))))
    if record.get("n_retain") is not None:
        others = "images of other things" if record.get("n_texts") else "images of other labels"
        table.add_row(others, f"{record['n_retain']:,}")
    if by := (record["measured"] or [{}])[0].get("images_sorted_by"):
        table.add_row("which images show it", "as they were given" if by == "given apart" else f"by {by}")
    if record.get("masked") is not None:
        label = record["erased_label"]
        how = "dropped from labels and logits" if label is None else f"never answered, called {one_line(label)}"
        how = "never answered; the label stays" if folded else how
        table.add_row("masked", Text(how if record["masked"] else "no: the head may still answer them"))
    for tap, measured, rank, condition in zip(
        record["taps"], record["measured"], record["rank_removed"], record["condition_number"], strict=True
    ):
        table.add_row("tap", Text(one_line(tap)))
        if "cover_classes" in measured:
            for what, found in cover_facts(measured, record["settings"], names):
                table.add_row(what, Text(found))
            continue
        table.add_row("rank removed", str(rank))
        if "energy_removed" in measured:
            table.add_row("forget energy removed", f"{100 * measured['energy_removed']:.1f} %")
        if "forget_hits_before" in measured:
            hits = " -> ".join(f"{measured[f'forget_hits_{name}']:.1f}" for name in ("before", "soft", "hard"))
            table.add_row("forget hits, %", f"{hits} (before, soft mask, hard mask)")
            table.add_row("epochs", str(measured["epochs_run"]))
        shown = (
            "infinite, as it has a null space"
            if condition is None
            else f"{condition:.1f}, so a linear probe can undo it"
        )
        table.add_row("condition number", shown)
    table.add_row("seconds", f"{record['feature_seconds']:.1f} features + {record['fit_seconds']:.1f} fit")
    console.print(table)
    if any("cover_classes" in measured for measured in record["measured"]):
        console.print(f"The cover classes keep their label and lose all detail within the class. {GETS_THROUGH}")


def cover_facts(
    measured: dict[str, Any], settings: dict[str, Any], names: dict[int, str] | None
) -> list[tuple[str, str]]:
    """What cover erasure measured at a tap, as rows of a table."""

    def classes(key: str) -> str:
        return ", ".join(named(c, names) for c in measured[key]) or "none"

    sizes = "class sizes given" if settings.get("class_sizes") else "classes of equal size"
    shares = " / ".join(f"{share:.1%}" for share in measured["shares"])
    elsewhere = ", ".join(f"{share:.1%}" for share in measured["moved_by_views"])
    guard = "none: images unlike the training data are replaced too"
    if "guard_margin" in measured:
        guard = (
            f"quantile {measured['guard_quantile']:.3f}: passed unchanged where the two largest logits are within "
            f"{measured['guard_margin']:.2f}"
        )
    rows = [
        ("cover classes", classes("cover_classes")),
        ("forget samples replaced", f"{measured['share_of_forget_replaced']:.1%}"),
        ("of all inputs, expected", f"{measured['share_of_inputs_expected']:.1%} ({sizes})"),
        ("D_f shared out", f"{shares}, by {measured['shared_by']}"),
    ]
    rows += [("moved in other views", elsewhere)] if elsewhere else []
    return [
        *rows,
        ("prototypes moved", classes("prototypes_moved")),
        ("classes skipped", classes("classes_skipped")),
        ("guard", guard),
    ]
