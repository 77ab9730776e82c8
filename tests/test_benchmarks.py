"""The scripts of `benchmarks/` that a release is measured with run to their end on the smallest input."""

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
    for split, count in (("train", 160), ("test", 40)):
        arrays[f"{split}_x"] = numbers.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
        arrays[f"{split}_y"] = np.arange(count) % 10
    np.savez(tmp_path / "cifar.npz", **arrays)

    command = [ROOT / "benchmarks" / "gpu.sh", tmp_path / "cifar.npz", tmp_path / "out", "--small"]
    ran = subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)

    assert ran.returncode == 0, ran.stderr
    for part in ("Forward pass", "Erasing", "Audit of", "CPU and device"):
        assert f"### {part}" in ran.stdout
    assert {"allcnn-1-0", "allcnn-deer-1-0"} <= {path.name for path in (tmp_path / "out" / "networks").iterdir()}
