"""Pages that are made of what stands elsewhere: the command line of its commands, and documents of the project.

They are written into docs/_generated when a build begins, so that nothing is kept equal by hand.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import typer

DOCS = Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
GENERATED = DOCS / "_generated"

COPIED = {
    "ARCHITECTURE.md": "architecture",
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
    "SECURITY.md": "security",
    **{f"benchmarks/{path.name}": path.stem.lower() for path in sorted((ROOT / "benchmarks").glob("RESULTS*.md"))},
}
"""Documents of the project that are pages of the site too."""

ELSEWHERE = {"index", "install", "glossary", "which_method", "what_to_tell", "methods", "library_registry"}
"""Pages right in docs/ that have a place of their own; every other one is a topic."""

LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", lambda _app: write())
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write() -> None:
    """Write all of them; a file that did not change keeps its time, so that it is not built again."""
    GENERATED.mkdir(exist_ok=True)
    pages = {f"{page}.md": copied(source) for source, page in COPIED.items()}
    pages |= {"cli.md": command_line(), "topics.md": topics()}
    for name, text in pages.items():
        path = GENERATED / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in GENERATED.iterdir():
        if path.name not in pages:
            path.unlink()


def read(_app: Any, name: str, source: list[str]) -> None:
    """A page as Sphinx reads it: its links to documents of the project, which hold in a checkout, lead to their pages."""
    page = DOCS / f"{name}.md"
    if GENERATED not in page.parents:
        source[0] = linked(source[0], page.parent, page.parent)


def copied(source: str) -> str:
    """A document of the project as a page of the site."""
    return linked((ROOT / source).read_text(encoding="utf-8"), (ROOT / source).parent, GENERATED)


def linked(source: str, here: Path, to: Path) -> str:
    """A text that stood in `here` and will stand in `to`: links lead to pages; those to other files become their names."""

    def link(match: re.Match[str]) -> str:
        text, target = match.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return match[0]
        path, _, anchor = target.partition("#")
        name = os.path.relpath(here / path, ROOT)
        if name in COPIED:
            path = os.path.relpath(GENERATED / f"{COPIED[name]}.md", to)
        elif name == "README.md":
            path = os.path.relpath(DOCS / "index.md", to)
        elif name.startswith("docs/") and name.endswith(".md"):
            path = os.path.relpath(ROOT / name, to)
        else:
            return text if text.startswith("`") else f"`{name}`" if text == name else f"{text} (`{name}`)"
        return f"[{text}]({path}{'#' + anchor if anchor else ''})"

    return LINK.sub(link, source)


def topics() -> str:
    """The list of pages that go into one matter: whatever stands right in docs/ and has no other place."""
    found = sorted(path.stem for path in DOCS.glob("*.md") if path.stem not in ELSEWHERE)
    about = "One page a topic: definitions, what was measured, what breaks it and what did not help."
    return "\n".join(["# Topics in depth", "", about, "", "```{toctree}", *(f"../{name}" for name in found), "```", ""])


def command_line() -> str:
    """Every command with its arguments and options, as the program itself has them."""
    from hf_kd.cli import app

    program = typer.main.get_command(app)
    parts = [
        "# Command line",
        _prose(program.help),
        "`hf-kd --version` shows the version, `hf-kd --install-completion` installs completion for your shell. Exit codes: "
        "0 done, 1 refused, or not what a receipt says, 2 wrong usage, 3 done in part (rows of a bench failed, or what was "
        "given is too little to tell whether a receipt is right). Every command takes `--help`.",
    ]
    for name, command in sorted(program.commands.items()):
        arguments = [p for p in command.params if not p.opts[0].startswith("-")]
        options = [p for p in command.params if p.opts[0].startswith("-")]
        usage = " ".join(["hf-kd", name, *(p.name.upper() for p in arguments), *_required(options), "[OPTIONS]"])
        parts += [f"## hf-kd {name}", f"```console\n$ {usage}\n```", _prose(command.help)]
        if arguments:
            parts.append("\n".join(f"`{p.name.upper()}`\n: {_about(p)}\n" for p in arguments))
        panels: dict[str, list[Any]] = {}
        for option in options:
            panels.setdefault(option.rich_help_panel, []).append(option)
        for panel, members in panels.items():
            lines = "\n".join(f"`{_spelled(p)}`\n: {_about(p)}\n" for p in members)
            parts.append(f"**{panel}**\n\n{lines}")
    return "\n\n".join(parts) + "\n"


def _required(options: list[Any]) -> list[str]:
    return [f"{p.opts[0]} {p.name.upper()}" for p in options if p.required]


def _prose(text: str | None) -> str:
    return " \n".join(line.strip() for line in (text or "").strip().splitlines())


def _spelled(parameter: Any) -> str:
    flag = getattr(parameter, "is_flag", False)
    return " / ".join([*parameter.opts, *parameter.secondary_opts]) + ("" if flag else f" {parameter.name.upper()}")


def _about(parameter: Any) -> str:
    about = (getattr(parameter, "help", None) or "").strip()
    notes = ["required"] if parameter.required else []
    if parameter.multiple:
        notes.append("may be repeated")
    if isinstance(parameter.default, str | int | float) and not isinstance(parameter.default, bool):
        notes.append(f"default `{parameter.default}`")
    about = re.sub(r"(?<![`\w])(--[a-z][\w-]*)", r"`\1`", about) if "`" not in about else about
    return " ".join([about.replace("|", "\\|"), f"({', '.join(notes)})" if notes else ""]).strip() or "."
