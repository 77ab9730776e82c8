"""The scripts of `benchmarks/` that a release is measured with run to their end on the smallest input."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.test_project_files import ROOT


@pytest.mark.slow
def test_what_an_accelerator_is_asked_runs_on_the_cpu(tmp_path):
    numbers = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 40), ("test", 20)):
        arrays[f"{split}_x"] = numbers.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
        arrays[f"{split}_y"] = np.arange(count) % 10
    np.savez(tmp_path / "cifar.npz", **arrays)

    command = [ROOT / "benchmarks" / "gpu.sh", tmp_path / "cifar.npz", tmp_path / "out", "--small"]
    ran = subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)

    assert ran.returncode == 0, ran.stderr
    for part in ("Forward pass", "Erasing", "Audit of", "CPU and device"):
        assert f"### {part}" in ran.stdout
    assert {"allcnn-1-0", "allcnn-deer-1-0"} <= {path.name for path in (tmp_path / "out" / "networks").iterdir()}


def test_the_papers_tables_stand_beside_the_printed_numbers(tmp_path):
    """Means over the seeds that ran; a row that failed is no row."""
    keys = ("HM", "HM_t", "KR_paper HM", "KR_paper HM_t", "KR D_ft", "KR D_rt", "D_ft", "D_rt", "MIA")
    rows = [("esc", "ok", 90.0), ("esc", "ok", 92.0), ("leace", "ok", 80.0), ("delete", "failed", 1.0)]
    lines = [
        {"experiment": "table-1", "row": row, "status": status, "scores": dict.fromkeys(keys, value)}
        for row, status, value in rows
    ]
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = [sys.executable, ROOT / "benchmarks" / "paper" / "table.py", tmp_path / "results.jsonl"]
    table = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    own = "91.0 / 91.0"
    assert f"| esc | 93.4 / 87.4 | {own} | 94.4 / 89.1 | {own} | {own} | {own} | 91.0 | 2 |" in table
    assert "| leace | - | 80.0 / 80.0 | - |" in table
    assert "delete" not in table
