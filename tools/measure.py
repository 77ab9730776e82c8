"""Measure the source tree: its size, its cycles, its long functions, and what starting it costs.

    python tools/measure.py [ROOT] [--json] [--tests] [--runs 3]

ROOT is a checkout, this one unless given. Its `src` is put in front of everything else on the path, so one
environment measures several checkouts; it has to hold what they depend on, and hf-kd installed in any version.
Standard library only, Unix only.

What is counted:

- lines: of all .py files in `src`, blank ones and comments too.
- cycles: strongly connected components of more than one file in the graph "this file names that one in an import".
  Imports inside functions and under TYPE_CHECKING count, and `import_module("literal")` does. `from .a import b` is
  an import of a/b.py where there is one, otherwise of a.py or a/__init__.py. That importing a/b.py runs a/__init__.py
  does not count: it would put every package that collects its own files into a cycle.
- long functions: more than 60 lines from `def` to the last, with signature and docstring, without decorators.
  Functions inside functions count on their own, too.
- functions of many parameters: 10 or more, *args and **kwargs one each, self and cls none.
- start: CPU seconds (user and system, smallest of the runs, bytecode written before) of a fresh interpreter with one
  thread, and which of a list of heavy modules it loads. Compare only what one run of this script measured side by
  side.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGE = "hf_kd"
LONG = 60
MANY = 10
HEAVY = ("sklearn", "scipy", "datasets", "peft", "torch", "transformers")
LIBRARIES = "import torch, transformers"


# The graph of imports


def module_name(path: Path, source: Path) -> str:
    """a.b of a/b.py, a of a/__init__.py."""
    parts = list(path.relative_to(source).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, package: str, known: set[str]) -> set[str]:
    """The modules among `known` that a file of `package` names in its imports, wherever they stand."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {_longest(alias.name, known) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package)
            for alias in node.names:
                found.add(_longest(f"{base}.{alias.name}", known))
        elif isinstance(node, ast.Call) and _name(node.func) == "import_module":
            literals = [given.value for given in node.args[:1] if isinstance(given, ast.Constant)]
            found |= {_longest(_absolute(name, package), known) for name in literals if isinstance(name, str)}
    return found - {""}


def _absolute(name: str, package: str) -> str:
    level = len(name) - len(name.lstrip("."))
    if not level:
        return name
    base = package.split(".")[: len(package.split(".")) - level + 1]
    return ".".join([*base, *([name[level:]] if name[level:] else [])])


def _longest(name: str, known: set[str]) -> str:
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node, the largest first (Tarjan)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    sys.setrecursionlimit(max(sys.getrecursionlimit(), 10 * len(graph) + 1000))
    for node in sorted(graph):
        if node not in number:
            visit(node)
    return sorted(found, key=lambda component: (-len(component), component))


# Functions


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Every function of a file: its dotted name, its node, and whether a class holds it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name, node, isinstance(tree, ast.ClassDef)
            yield from functions(node, f"{prefix}{node.name}.")
        else:
            yield from functions(node, f"{prefix}{node.name}." if isinstance(node, ast.ClassDef) else prefix)


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef, method: bool) -> int:
    given = node.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args)]
    own = 1 if method and names[:1] in (["self"], ["cls"]) else 0
    return len(names) - own + len(given.kwonlyargs) + (given.vararg is not None) + (given.kwarg is not None)


def tree_of(root: Path) -> dict[str, Any]:
    """What can be read off the source without running it."""
    source = root / "src"
    files = sorted(path for path in source.rglob("*.py"))
    if not (source / PACKAGE / "__init__.py").is_file():
        raise SystemExit(f"{root} has no src/{PACKAGE}: give the root of a checkout.")
    texts = {path: path.read_text(encoding="utf-8") for path in files}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    names = {path: module_name(path, source) for path in files}
    known = set(names.values())
    graph = {}
    for path, tree in trees.items():
        package = names[path] if path.name == "__init__.py" else names[path].rpartition(".")[0]
        graph[names[path]] = imported(tree, package, known) - {names[path]}
    long, many = [], []
    for path, tree in trees.items():
        where = path.relative_to(source / PACKAGE).as_posix()
        for name, node, method in functions(tree):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > LONG:
                long.append({"function": f"{where}:{name}", "lines": lines})
            if (count := parameters(node, method)) >= MANY:
                many.append({"function": f"{where}:{name}", "parameters": count})
    return {
        "files": len(files),
        "lines": sum(len(text.splitlines()) for text in texts.values()),
        "files_at_the_root": len(list((source / PACKAGE).glob("*.py"))),
        "import_cycles": len(cycles(graph)),
        "import_cycles_members": cycles(graph),
        "functions_over_60_lines": len(long),
        "functions_over_60_lines_members": sorted(long, key=lambda entry: (-entry["lines"], entry["function"])),
        "functions_with_10_or_more_parameters": len(many),
        "functions_with_10_or_more_parameters_members": sorted(
            many, key=lambda entry: (-entry["parameters"], entry["function"])
        ),
    }


# What starting costs


def environment(root: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    path = os.pathsep.join(filter(None, [str(root / "src"), os.environ.get("PYTHONPATH")]))
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}


def entry_point(root: Path) -> tuple[str, str]:
    """Module and function of the command `hf-kd`."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^hf-kd\s*=\s*"([\w.]+):(\w+)"', text, re.MULTILINE)
    if found is None:
        raise SystemExit(f"{root / 'pyproject.toml'} names no command hf-kd.")
    return found[1], found[2]


def programs(root: Path) -> dict[str, str]:
    """What is started, as Python code."""
    module, function = entry_point(root)

    def command(*words: str) -> str:
        return f"import sys\nsys.argv = {['hf-kd', *words]!r}\nfrom {module} import {function}\n{function}()"

    return {
        f"import {PACKAGE}": f"import {PACKAGE}",
        LIBRARIES: LIBRARIES,
        "hf-kd --help": command("--help"),
        "hf-kd erase --help": command("erase", "--help"),
    }


def started(code: str, root: Path) -> tuple[float, str]:
    """CPU seconds of a fresh interpreter that runs `code`, and its standard error."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(root), cwd=root, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{code!r} failed:\n{done.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stderr


def loaded_by(code: str, root: Path) -> list[str]:
    """Which heavy modules are there after `code`, which also writes all bytecode before anything is timed."""
    probe = f"""import atexit, sys
def tell():
    package = sys.modules.get({PACKAGE!r})
    here = package is None or str(package.__file__).startswith({str(root / "src")!r})
    print("\\nLOADED", here, *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
atexit.register(tell)
"""
    line = started(probe + code, root)[1].strip().rpartition("\n")[2].split()
    if line[:2] != ["LOADED", "True"]:
        raise SystemExit(f"{code!r} did not run {root / 'src'}: it said {' '.join(line)[:200]!r}.")
    return line[2:]


def start_of(root: Path, runs: int) -> dict[str, Any]:
    wanted = programs(root)
    loads = {name: loaded_by(code, root) for name, code in wanted.items()}
    times: dict[str, list[float]] = {name: [] for name in wanted}
    for _ in range(runs):  # in turn, so that a busy moment of the machine meets all of them
        for name, code in wanted.items():
            times[name].append(started(code, root)[0])
    best = {name: round(min(values), 2) for name, values in times.items()}
    return {
        "cpu_seconds": best,
        "ratio_to_torch_and_transformers": round(min(times[f"import {PACKAGE}"]) / min(times[LIBRARIES]), 2),
        "loads": loads,
    }


def tests_of(root: Path) -> int:
    """Number of tests that pytest collects."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=environment(root), cwd=root, capture_output=True, text=True, check=False)
    found = re.search(r"^(\d+)(?:/\d+)? tests? collected", done.stdout, re.MULTILINE)
    if done.returncode or found is None:
        raise SystemExit(f"pytest collected nothing:\n{(done.stdout + done.stderr)[-2000:]}")
    return int(found[1])


# All of it


def commit_of(root: Path) -> str | None:
    """The commit of the checkout, with "+" where its source was changed since; None where git does not say."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "src"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def measure(root: Path, runs: int = 3, tests: bool = False) -> dict[str, Any]:
    found = {"commit": commit_of(root), "tree": tree_of(root), "start": start_of(root, runs)}
    if tests:
        found["tests_collected"] = tests_of(root)
    with_versions = {name: installed(name) for name in ("torch", "transformers")}
    found["measured_with"] = {
        "python": platform.python_version(),
        **with_versions,
        "machine": platform.machine(),
        "runs": runs,
    }
    return found


def words(found: dict[str, Any]) -> str:
    """The same for people."""
    tree, start = found["tree"], found["start"]

    def line(what: str, value: Any) -> str:
        return f"{what:34}{value}"

    lines = [
        line("commit", found["commit"] or "unknown"),
        line("lines of src", f"{tree['lines']} in {tree['files']} files"),
        line("files at the root of the package", tree["files_at_the_root"]),
        line("import cycles", tree["import_cycles"]),
        *(f"    {len(component)} files: {', '.join(component)}" for component in tree["import_cycles_members"]),
        line(f"functions over {LONG} lines", tree["functions_over_60_lines"]),
        *(f"    {entry['lines']:4}  {entry['function']}" for entry in tree["functions_over_60_lines_members"]),
        line(f"functions of {MANY} or more parameters", tree["functions_with_10_or_more_parameters"]),
        *(
            f"    {entry['parameters']:4}  {entry['function']}"
            for entry in tree["functions_with_10_or_more_parameters_members"]
        ),
        "CPU seconds",
        *(
            f"    {seconds:5.2f}  {name:28}loads {', '.join(start['loads'][name]) or 'none of the heavy modules'}"
            for name, seconds in start["cpu_seconds"].items()
        ),
        f"    {start['ratio_to_torch_and_transformers']:5.2f}  import {PACKAGE} : {LIBRARIES}",
    ]
    if "tests_collected" in found:
        lines.append(line("tests collected", found["tests_collected"]))
    lines.append(line("measured with", ", ".join(f"{name} {value}" for name, value in found["measured_with"].items())))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the source tree of a checkout.")
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parents[1], help="a checkout")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--tests", action="store_true", help="collect the tests, too")
    parser.add_argument("--runs", type=int, default=3, help="starts of each program; the fastest counts")
    asked = parser.parse_args()
    if asked.runs < 1:
        parser.error("--runs has to be 1 or more")
    found = measure(asked.root.resolve(), asked.runs, asked.tests)
    print(json.dumps(found, indent=1) if asked.json else words(found))


if __name__ == "__main__":
    main()
