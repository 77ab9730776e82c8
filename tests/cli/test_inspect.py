"""`hf-kd inspect`, as it is installed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.processes
def test_the_installed_command_prints_json_and_nothing_else(place):
    command = [sys.executable, "-m", "hf_kd", "inspect", str(place / "model"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert json.loads(done.stdout)["class"] == "ViTForImageClassification"
    assert all(line.endswith(" ...") for line in done.stderr.splitlines()), "what it is at, and no warning"
