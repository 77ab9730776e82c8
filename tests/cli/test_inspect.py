"""`hf-kd inspect`, as it is installed, and what it says of changed weights."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from hf_kd import train_original, unlearn
from tests.cli.runner import hf_kd
from tests.helpers.small import make_dataset


@pytest.mark.processes
def test_the_installed_command_prints_json_and_nothing_else(place):
    command = [sys.executable, "-m", "hf_kd", "inspect", str(place / "model"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert json.loads(done.stdout)["class"] == "ViTForImageClassification"
    assert all(line.endswith(" ...") for line in done.stderr.splitlines()), "what it is at, and no warning"


def test_what_another_head_had_forgotten_is_named_as_it_was_called(resnet, processor, tmp_path):
    """A head of other labels has other ids, so that the record has none."""
    changed = unlearn(resnet, make_dataset([2] * 8), "head-surgery", processor=processor, progress=False)
    others = make_dataset([0, 1, 2] * 4, names=("cat", "fox", "gnu"))
    again = train_original(
        changed, others, processor=processor, from_scratch=False, epochs=1, batch_size=8, progress=False, augment="none"
    )
    again.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert "Its weights were changed by head-surgery, to forget cat" in hf_kd("inspect", tmp_path).stdout
    (change,) = json.loads(hf_kd("inspect", tmp_path, "--json").stdout)["changes"]
    assert (change["classes"], change["dataset_classes"]) == (None, ["cat"])
