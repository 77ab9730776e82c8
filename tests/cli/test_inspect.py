"""What `hf-kd inspect` says of changed weights."""

from __future__ import annotations

import json
import re

import pytest

from hf_kd import train_original, unlearn
from tests.cli.runner import hf_kd
from tests.helpers.small import make_dataset


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


def test_the_blocks_that_are_listed_are_those_that_keep_takes(resnet, processor, tmp_path):
    resnet.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    blocks = json.loads(hf_kd("inspect", tmp_path, "--json").stdout)["blocks"]
    shown = "".join(hf_kd("inspect", tmp_path).stdout.replace("│", "").split())
    assert all(f"{block}," in shown for block in blocks[:-1])
    with pytest.raises(ValueError, match=f"Its blocks are {re.escape(', '.join(blocks))}"):
        unlearn(resnet, make_dataset([2] * 8), "regrow", retain=make_dataset([0, 1] * 8), keep="nowhere", progress=False,
                processor=processor, allow_unrecognised=True)  # fmt: skip
