"""Print the lowest versions that pyproject.toml promises, as pip constraints: `python tools/lowest.py > lowest.txt`.

torch is left out: the version of constraints.txt is used, whose build is the one for this kind of machine.
"""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
LEFT_OUT = {"torch"}
OF_THE_TESTS = ("dependencies", "peft", "figures", "evaluate", "onnx")


def lowest(project: str) -> list[str]:
    """NAME==FLOOR for each requirement with a floor, of the package and of the extras that the tests need."""
    found = []
    for name in OF_THE_TESTS:
        requirements = re.search(rf"^{name} = \[(.*?)\]", project, re.MULTILINE | re.DOTALL)
        found += re.findall(r'"([\w.-]+)>=([\w.]+)', requirements[1])
    return [f"{name}=={floor}" for name, floor in found if name not in LEFT_OUT]


if __name__ == "__main__":
    print("\n".join(lowest(PROJECT.read_text(encoding="utf-8"))))
