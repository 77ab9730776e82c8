"""Rules of the source that the linter does not hold."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "hf_kd"
TEXTS = {str(path.relative_to(SOURCE)): path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py"))}

AFTER_3_10 = {
    "calendar": {"Month", "Day"},
    "contextlib": {"chdir"},
    "datetime": {"UTC"},
    "enum": {"EnumType", "FlagBoundary", "ReprEnum", "StrEnum", "member", "nonmember", "property", "verify"},
    "functools": {"Placeholder"},
    "hashlib": {"file_digest"},
    "inspect": {"getmembers_static", "ismethodwrapper", "markcoroutinefunction"},
    "itertools": {"batched"},
    "logging": {"getHandlerByName", "getHandlerNames", "getLevelNamesMapping"},
    "math": {"cbrt", "exp2", "fma", "sumprod"},
    "operator": {"call", "is_none", "is_not_none"},
    "os": {"process_cpu_count"},
    "re": {"NOFLAG"},
    "statistics": {"kde", "kde_random"},
    "string": {"templatelib"},
    "sys": {"activate_stack_trampoline", "exception", "monitoring"},
    "threading": {"setprofile_all_threads", "settrace_all_threads"},
    "typing": {
        "LiteralString", "Never", "NoDefault", "NotRequired", "ReadOnly", "Required", "Self", "TypeAliasType", "TypeIs",
        "TypeVarTuple", "Unpack", "assert_never", "assert_type", "clear_overloads", "dataclass_transform", "get_overloads",
        "override", "reveal_type",
    },
}  # fmt: skip
"""What modules of the standard library have gained since the first Python that pyproject.toml promises."""


def test_nothing_is_imported_that_the_first_promised_python_lacks():
    for name, text in TEXTS.items():
        for node in ast.walk(ast.parse(text)):
            used = []
            if isinstance(node, ast.ImportFrom) and not node.level:
                used = [(node.module, alias.name) for alias in node.names]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used = [(node.value.id, node.attr)]
            elif isinstance(node, ast.Import):
                assert "tomllib" not in [alias.name for alias in node.names], name
            late = [f"{module}.{what}" for module, what in used if what in AFTER_3_10.get(module, ())]
            assert not late, f"{name} uses {late[0]}, which Python 3.10 does not have"


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


def test_global_generators_are_seeded_at_one_place():
    """`torch.manual_seed` seeds those of devices that nobody sets back."""
    seeding = re.compile(r"torch\.manual_seed\(|fork_rng\(")
    assert [name for name, text in TEXTS.items() if seeding.search(text)] == ["data/devices.py"]


def test_nothing_is_read_or_written_that_runs_code():
    banned = re.compile(r"torch\.save\(|weights_only=False|trust_remote_code=True")
    assert not [name for name, text in TEXTS.items() if banned.search(text)]
