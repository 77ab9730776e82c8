"""`tools/measure.py` counts what it says it counts: cycles, long functions, parameters, and what a start loads."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "tools" / "measure.py"


@pytest.fixture(scope="module")
def measure():
    spec = importlib.util.spec_from_file_location("measure", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path):
    """A package of the same name in which everything that is counted occurs once."""
    package = tmp_path / "src" / "hf_kd"
    (package / "room").mkdir(parents=True)
    files = {
        "__init__.py": "from .a import one\n",
        "a.py": "def one():\n    from . import b\n    return b\n",  # a -> b -> c -> a, each import of another sort
        "b.py": "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from .c import Three\n",
        "c.py": "from importlib import import_module\n\nThree = lambda: import_module('.a', __package__)\n",
        "room/__init__.py": "from .d import deep\n",  # no cycle: d is in the package, and does not name it
        "room/d.py": "import hf_kd.a\nfrom ..a import one\n\n\nclass Deep:\n"
        "    def deep(self, a, b, /, c, d, e, f, g, *rest, h, **more):\n        pass\n\n"
        "    @staticmethod\n    def flat(self, a, b, c, d, e, f, g, h):\n        pass\n\n\n"
        "def deep():\n    def inner():\n" + "        pass\n" * 60 + "\n    return inner\n",
        "room/e.py": "def short():\n" + "    pass\n" * 59,
    }
    for name, text in files.items():
        (package / name).write_text(text)
    (package / "cli.py").write_text("import sys, json\n\n\ndef main():\n    raise SystemExit(0)\n")
    (tmp_path / "pyproject.toml").write_text('[project.scripts]\nhf-kd = "hf_kd.cli:main"\n')
    return tmp_path


def test_cycles_lines_functions_and_parameters(measure, checkout):
    found = measure.tree_of(checkout)
    assert found["files"] == 8
    assert found["files_at_the_root"] == 5
    assert found["lines"] == sum(path.read_text().count("\n") for path in checkout.rglob("*.py"))
    assert found["import_cycles"] == 1
    assert found["import_cycles_members"] == [["hf_kd.a", "hf_kd.b", "hf_kd.c"]]
    assert found["functions_over_60_lines_members"] == [
        {"function": "room/d.py:deep", "lines": 64},
        {"function": "room/d.py:deep.inner", "lines": 61},
    ]
    assert found["functions_with_10_or_more_parameters_members"] == [
        {"function": "room/d.py:Deep.deep", "parameters": 10}
    ]


def test_starting_is_timed_and_what_is_loaded_is_named(measure, checkout, monkeypatch):
    monkeypatch.setattr(measure, "HEAVY", ("torch", "json"))
    monkeypatch.setattr(measure, "LIBRARIES", "import json")
    found = measure.start_of(checkout, runs=1)
    assert found["loads"]["hf-kd --help"] == ["json"]
    assert found["loads"]["import hf_kd"] == []
    assert set(found["cpu_seconds"]) == {"import hf_kd", "import json", "hf-kd --help", "hf-kd erase --help"}
    assert all(0 < seconds < 60 for seconds in found["cpu_seconds"].values())
    assert found["ratio_to_torch_and_transformers"] > 0
    (checkout / "src" / "hf_kd" / "cli.py").write_text("def main():\n    raise SystemExit('no such thing')\n")
    with pytest.raises(SystemExit, match="no such thing"):
        measure.start_of(checkout, runs=1)


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "give the root of a checkout" in done.stderr
