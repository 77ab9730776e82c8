"""What `hf-kd COMMAND --help` prints: options in titled groups, the common ones first, as short as a terminal is high."""

from __future__ import annotations

from typing import Any

from rich.console import Console, RenderableType
from rich.markdown import Markdown
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand

from ._options import METHOD

WIDEST = 30
"""Columns of a terminal that the names of options take at most."""


class ReadableCommand(TyperCommand):
    """A command whose help has no boxes and no column of types, and only names the settings of methods."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help; the formatter gets nothing."""
        console = Console()
        usage = " ".join([ctx.command_path, *self.collect_usage_pieces(ctx)])
        console.print(Text.assemble(("Usage: ", "yellow"), (usage, "bold")))
        console.print(Padding(Markdown(self.help or ""), (1, 0, 0, 0)))
        shown: list[Any] = [p for p in self.get_params(ctx) if p.name != "help"]
        groups: dict[str, list[Any]] = {"Arguments": [p for p in shown if not _is_option(p)]}
        for option in filter(_is_option, shown):
            groups.setdefault(option.rich_help_panel, []).append(option)
        for title, members in groups.items():
            explained = [p for p in members if title != METHOD or p.name == "option"]
            named = [p.opts[0] for p in members if p not in explained]
            if members:
                console.print(Text(f"\n{title}", style="bold cyan"))
            if explained:
                console.print(_table(explained))
            if named:
                about = "Each is an option too, and hf-kd methods NAME explains those of a method:"
                console.print(Padding(Text(f"{about}\n{'  '.join(named)}", style="dim"), (0, 0, 0, 2)))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The line of usage behind the command: arguments and what is required by name."""
        required = [f"{p.opts[0]} {p.metavar or ''}" for p in self.params if _is_option(p) and p.required]
        arguments = [p.name.upper() for p in self.params if not _is_option(p)]
        return [*arguments, *required, "[OPTIONS]"]


def _is_option(parameter: Any) -> bool:
    return parameter.opts[0].startswith("-")


def _table(parameters: list[Any]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(max_width=WIDEST, style="bold")
    table.add_column()
    for p in parameters:
        names = " / ".join([p.opts[0], *p.secondary_opts]) if _is_option(p) else p.name.upper()
        value = "" if getattr(p, "is_flag", False) or not _is_option(p) else f" {p.metavar}"
        notes = ["required"] if p.required and _is_option(p) else []
        if isinstance(p.default, str | int | float) and not isinstance(p.default, bool):
            notes.append(f"default: {p.default}")
        text = Text((p.help or "").replace("`", ""))
        table.add_row(names + value, text.append(f" [{', '.join(notes)}]" if notes else "", style="dim"))
    return Padding(table, (0, 0, 0, 2))
