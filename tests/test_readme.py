"""The README holds: its commands and its Python run as they stand, and it stays a page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from datasets import ClassLabel
from transformers import ViTConfig, ViTForImageClassification

from tests.cli.runner import hf_kd
from tests.helpers.small import make_dataset, randomise
from tests.helpers.taught import taught

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMES = ["ape", "bee", "cat", "dog", "elk"]


def blocks(language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(TEXT) if found == language]


def commands() -> list[list[str]]:
    """Those of `hf-kd` after a prompt; a backslash joins lines, and what is printed stands without one."""
    joined = "\n".join(blocks("console")).replace("\\\n", " ")
    lines = [line[2:] for line in joined.splitlines() if line.startswith("$ ")]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("$ hf-kd"[2:])]


@pytest.fixture
def folder(tmp_path, monkeypatch, processor):
    """What the README names: a classifier in `resnet20` and images in `cifar10`, here tiny ones."""
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8,
        id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)},
    )  # fmt: skip
    taught(randomise(ViTForImageClassification(config)), processor).save_pretrained(tmp_path / "resnet20")
    processor.save_pretrained(tmp_path / "resnet20")
    (tmp_path / "cifar10").mkdir()
    for seed, (split, count) in enumerate({"train": 12, "test": 6}.items()):
        data = make_dataset(list(range(5)) * count, seed=seed, names=NAMES)
        assert isinstance(data.features["label"], ClassLabel)
        data.to_parquet(tmp_path / "cifar10" / f"{split}.parquet")
    make_dataset([2]).to_dict()
    data[2]["image"].save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("few_draws", "no_figures")
def test_its_commands_run(folder):
    ran = [command for command in commands() if "push" not in command]  # the one that needs a network
    assert {command[0] for command in ran} >= {"erase", "audit", "verify"}
    for command in ran:
        hf_kd(*command)
    assert (folder / "report" / "report.md").is_file()


@pytest.mark.usefixtures("few_draws", "no_figures")
def test_its_python_runs(folder):
    namespace: dict[str, object] = {}
    assert blocks("python")
    for code in blocks("python"):
        exec(compile(code, "README.md", "exec"), namespace)


def test_it_is_a_page_and_its_links_lead_somewhere():
    assert len(TEXT.splitlines()) <= 120
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT)
    assert targets
    for target in (target for target in targets if "://" not in target):
        assert (ROOT / target).exists(), target
