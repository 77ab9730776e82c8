"""`hf-kd inspect`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from hf_kd.data.text import one_line, terminal
from hf_kd.hub.wording import FOLDED, folded_into

from . import _inputs
from ._app import command, console
from ._options import ModelArgument, Shared
from ._tables import show_masks, show_record
from ._verdict import record_names, report_verdict, show_verdict

if TYPE_CHECKING:
    from hf_kd.model.erased_model import ErasedModel
    from hf_kd.model.stored_eraser import StoredEraser


@command("eraser", "tap", "processor", "revision", "as_json")
def inspect(model: ModelArgument, *, shared: Shared) -> None:
    """Show where pooled features pass in MODEL, their d, the heads that read them, its blocks, and what was erased.

    An eraser on its own is shown without its base, which is not loaded.
    """
    _inputs.load_libraries(shared)
    from hf_kd.audit.hidden_states import blocks_of
    from hf_kd.model.stored_eraser import find_eraser, read_eraser

    hub = shared.chosen("revision")
    if not shared.eraser and find_eraser(model, hub):
        loaded = read_eraser(model, hub)
        facts: dict[str, Any] = _facts(model, loaded) | {"base": loaded.base_in_words}
    else:
        loaded = _inputs.load_model(model, shared)
        loaded.find_taps()
        facts = _facts(model, loaded) | {"blocks": list(blocks_of(loaded, at_most=None))}
    if records := [*facts["changes"], *facts["folded"], *facts["erasures"]]:
        base = shared.at_revision(model) if shared.eraser else None
        facts["verdict"] = report_verdict(shared.documented(model), records, shared, base)
    if shared.as_json:
        print(json.dumps(facts))
        return
    show(console, facts, loaded.class_names)


def show(console: Console, facts: dict[str, Any], names: dict[int, str]) -> None:
    """What was found of a model, the verdict of its audit first; `names` are its labels."""
    if "verdict" in facts:
        show_verdict(console, facts["verdict"])
    table = Table(
        title=terminal(f"{facts['class']} in {facts['model']}"),
        show_header=False,
        title_justify="left",
    )
    for number, place in enumerate(facts["taps"]):
        suffix = f" {number + 1}" if len(facts["taps"]) > 1 else ""
        table.add_row(f"tap{suffix}", terminal(place["place"]))
        table.add_row(f"d{suffix}", str(place["d"]))
        table.add_row(f"head{suffix}", terminal(", ".join(place["heads"])) or "none (embedding model)")
    if "blocks" in facts:
        listed = ", ".join(facts["blocks"])
        table.add_row(
            "blocks, as for --keep", f"{len(facts['blocks'])}: {terminal(listed)}" if listed else "none found"
        )
    if "base" in facts:
        table.add_row("an eraser, for", terminal(facts["base"]))
    table.add_row("labels", str(facts["num_labels"]) if facts["num_labels"] else "none")
    table.add_row("withheld once erased", terminal(", ".join(facts["withheld"])) or "nothing")
    table.add_row("erasures", str(len(facts["erasures"])))
    console.print(table)
    if facts["folded"]:
        by_name = any(record.get("n_texts") for record in facts["folded"])
        where, what = FOLDED[folded_into(all(place["heads"] for place in facts["taps"]), by_name)]
        console.print(f"{len(facts['folded'])} erasure(s) are folded into {where}: {what}.")
    for change in facts["changes"]:
        what = ", ".join(record_names(change, names)) or "a set of images"
        console.print(
            one_line(f"Its weights were changed by {change['method']}, to forget {what}")
            + f" ({change['read_from']}).",
            markup=False,
        )
    for number, erasure in enumerate(facts["erasures"] or facts["folded"], 1):
        show_record(console, erasure, names, number, folded=not facts["erasures"])
    show_masks(console, facts | {"class_names": names})


def _facts(name: str, model: ErasedModel | StoredEraser) -> dict[str, Any]:
    from hf_kd.methods.records import weight_changes
    from hf_kd.model.configuration import label_names

    changes = weight_changes(model.config)
    return {
        "model": name,
        "class": model.config.inner_class,
        "taps": [{"place": str(tap), "d": tap.dim, "heads": list(tap.heads)} for tap in model.taps],
        "num_labels": model.config.num_labels if all(tap.heads for tap in model.taps) else None,
        "withheld": list(model.config.leaking),
        "erased": model.is_erased,
        "erasures": [erasure.to_dict(names=True) for erasure in model.erasures],
        "changes": [change.to_dict(names=True) | {"read_from": change.read_from} for change in changes],
        "masked": {
            "classes": list(model.config.masked),
            "dropped": model.config.dropped,
            "labels": [] if model.config.dropped else [label_names(model.config)[c] for c in model.config.masked],
        },
        "folded": getattr(model.config.inner, "hf_kd_folded", None) or [],
    }
