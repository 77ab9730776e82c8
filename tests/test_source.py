"""Rules of the source that the linter does not hold."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "hf_kd"
TEXTS = {str(path.relative_to(SOURCE)): path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py"))}


def test_the_erasers_import_torch_and_the_standard_library_only():
    for name, text in TEXTS.items():
        if not name.startswith("methods/erasers/"):
            continue
        for node in ast.walk(ast.parse(text)):
            imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                imported = [node.module]
            for module in imported:
                top = module.split(".")[0]
                own = module == "hf_kd.errors" or module.startswith("hf_kd.methods.")
                assert top == "torch" or own or top in sys.stdlib_module_names, f"{name} imports {module}"


def test_no_file_is_over_400_lines():
    assert not [name for name, text in TEXTS.items() if text.count("\n") > 400]


def test_claims_never_made():
    claims = re.compile(r"irreversib|\bcertified\b|guaranteed deletion|better than retrain", re.I)
    assert not [name for name, text in TEXTS.items() if claims.search(text)]


def test_nothing_is_read_or_written_that_runs_code():
    banned = re.compile(r"torch\.save\(|weights_only=False|trust_remote_code=True")
    assert not [name for name, text in TEXTS.items() if banned.search(text)]
