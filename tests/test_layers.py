"""The house rules: which room may know which, no pickle, no asserts, no over-long files, no claims we do not make."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "hf_kd"
FILES = sorted(SOURCE.rglob("*.py"))

ROOMS = {
    "erasers": set(),
    "taps": set(),
    "audit": set(),
    "data": {"taps"},
    "metrics": {"audit"},
    "hub": {"audit"},
    "unlearning": {"data"},
    "configuration": {"taps"},
    "modeling": {"configuration", "erasers", "taps", "data", "audit", "hub", "unlearning"},
    "bench": {"modeling", "configuration", "erasers", "data", "audit", "unlearning"},
    "cli": {"bench", "unlearning", "modeling", "configuration", "erasers", "taps", "data", "audit", "hub", "metrics"},
}
"""Room -> rooms it may import. The modelling room and the command line are several files each."""

OF_MODELING = {
    "modeling",
    "auditing",
    "changing",
    "documenting",
    "erasing",
    "folding",
    "loading",
    "looking",
    "masking",
    "measuring",
    "originals",
    "passes",
    "publishing",
    "saving",
    "verifying",
}
OF_CLI = {"cli", "command_facts", "commands", "demo", "demo_page", "__main__", "__init__"}


def room(relative: Path) -> str:
    top = relative.parts[0].removesuffix(".py")
    return "modeling" if top in OF_MODELING else "cli" if top in OF_CLI else top


def imported_rooms(path: Path) -> set[str]:
    """Rooms of hf_kd that a file imports, at the top or inside functions."""
    package = ("hf_kd", *path.relative_to(SOURCE).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [module] if module.count(".") else [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "hf_kd":
                found.add(room(Path(parts[1])) if len(parts) > 1 else "cli")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_arrows_run_down_only(path):
    own = room(path.relative_to(SOURCE))
    assert own in ROOMS, f"{path.name} belongs to no room"
    allowed = ROOMS[own] | {own}
    assert imported_rooms(path) <= allowed, f"{own} may know {sorted(allowed)}"


def test_the_eraser_room_imports_torch_and_the_standard_library_only():
    import sys

    for path in (SOURCE / "erasers").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top == "torch" or top in sys.stdlib_module_names, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_every_file_keeps_the_rules(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert not text or ast.get_docstring(tree), "a room should be known from its first lines"
    assert text.count("\n") <= 400, "a file over 400 lines is asking to become two ideas"
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree)), "users get exceptions with a way out"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            broad = node.type is None or (isinstance(node.type, ast.Name) and node.type.id == "Exception")
            assert not broad, "a broad except hides what went wrong"
    banned = r"import pickle|torch\.save\(|joblib|weights_only=False|trust_remote_code=True|import (timm|torchvision)\b"
    assert not re.search(banned, text)
    claims = re.compile(r"irreversib|certified (deletion|removal)|guaranteed deletion|better than retrain", re.I)
    assert not claims.search(text)


def test_heavy_extras_are_not_imported_with_the_package():
    import subprocess
    import sys

    code = "import sys, hf_kd; print([m for m in ('peft', 'matplotlib', 'evaluate', 'gradio') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "matplotlib" not in out
    assert "evaluate" not in out
    assert "gradio" not in out
