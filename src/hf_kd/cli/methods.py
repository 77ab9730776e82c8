"""`hf-kd methods`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hf_kd.methods.registry import MethodInfo, by_name_infos, method_info, method_infos

from ._app import command, console, setting_flags
from ._options import Shared, method_names

ACTS_ON = {"eraser": "features", "weights": "weights", "by name": "features, by name"}

COMMANDS = {
    "eraser": "hf-kd erase --method NAME",
    "weights": "hf-kd unlearn --method NAME",
    "by name": "hf-kd erase --text TEXT --method NAME",
}
"""That take the methods of a kind, in the order in which they are listed."""


@command("as_json")
def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="One method: what it does, and its hyper-parameters.", autocompletion=method_names()),
    ] = None,
    *,
    shared: Shared,
) -> None:
    """List every method: what data it needs (D_f: the images to forget, D_r: those that stay), and when to take it.

    **Example:** `hf-kd methods scrub`
    """
    if name is not None:
        named = {info.name: info for info in by_name_infos()}
        _show(named.get(name) or method_info(name), shared.as_json)
        return
    infos = [*method_infos(), *by_name_infos()]
    if shared.as_json:
        console.print_json(data=[_facts(info) for info in infos])
        return
    widest = max(len(info.name) for info in infos)
    for kind, typed in COMMANDS.items():
        console.print(f"[bold cyan]Acting on {ACTS_ON[kind]}: {typed}[/]", highlight=False)
        table = Table(box=None, pad_edge=False)
        table.add_column("method", min_width=widest, style="bold")
        table.add_column("needs", min_width=len("D_f and D_r"))
        table.add_column("when to take it")
        for info in infos:
            if info.kind == kind:
                table.add_row(info.name, info.needs, info.when)
        console.print(table, "")
    console.print("D_f: the images to forget, D_r: those that stay. One method with its settings: hf-kd methods NAME")


def _facts(info: MethodInfo) -> dict[str, str]:
    return {
        "method": info.name,
        "acts on": ACTS_ON[info.kind],
        "needs": info.needs,
        "when": info.when,
        "about": info.about,
        "source": info.source,
    }


def _show(info: MethodInfo, as_json: bool) -> None:
    if as_json:
        settings = {option.name: option.default for option in info.options}
        console.print_json(data=_facts(info) | {"settings": settings}, default=str)
        return
    command = "unlearn" if info.kind == "weights" else "erase"
    console.print(f"[bold]{info.name}[/]: {COMMANDS[info.kind].replace('NAME', info.name)}\n", highlight=False)
    table = Table(show_header=False, box=None, pad_edge=False)
    for what, text in (("what", info.about), ("when", info.when), ("needs", info.needs), ("from", info.source)):
        table.add_row(what, text)
    console.print(table)
    by_name = info.kind == "by name"
    how = "each as --option NAME=VALUE" if by_name else "each an option of that command or --option NAME=VALUE"
    console.print(f"\nIts settings, {how}:", highlight=False)
    # --labels of unlearn is that of the reading, and hands on what is a setting
    reached = {option.name for option in info.options} if by_name else setting_flags(command) | {"labels"}
    for option in info.options:
        shown = f"{option.default:.4g}" if isinstance(option.default, float) else option.default
        only = "" if option.name in reached else f" (only as --option {option.name}=VALUE)"
        console.print(f"  {option.name} = {shown}{only}", markup=False, highlight=False)
        if option.about:
            console.print(Padding(Text(option.about, style="dim"), (0, 0, 0, 6)))
