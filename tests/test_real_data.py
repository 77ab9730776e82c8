"""On real images and trained networks: the numbers of the README. Skipped where the shared data is not there."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from transformers import AutoConfig

from hf_kd import ErasedModel
from hf_kd.data.labels import match_labels
from hf_kd.data.load import filter_by_labels
from hf_kd.features.heads import predictions
from hf_kd.features.reader import ImageReader
from hf_kd.metrics.scores import forget_retain_accuracy
from tests.cli.runner import hf_kd
from tests.test_readme import blocks, commands

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "cifar_resnet20.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("cifar_resnet20", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["cifar_resnet20"] = module
    spec.loader.exec_module(module)
    return module


def test_imagenette_names_match_the_1001_labels(shared):
    names = (
        load_dataset("parquet", data_files=str(shared / "data" / "imagenette" / "test.parquet"), split="train")
        .features["label"]
        .names
    )
    for weights in ("mobilenet_v2_1.0_224", "mobilenet_v1_0.25_128"):
        id2label = AutoConfig.from_pretrained(shared / "weights" / weights).id2label
        mapping = match_labels(names, id2label)
        assert mapping(torch.tensor([names.index("tench")])).tolist() == [1]


def test_a_trained_mobilenet_forgets_a_class(shared, tmp_path):
    data = load_dataset(
        "parquet",
        data_files={split: str(shared / "data" / "imagenette" / f"{split}.parquet") for split in ("train", "test")},
    )
    model = ErasedModel.from_pretrained(shared / "weights" / "mobilenet_v1_0.25_128")
    model.erase(filter_by_labels(data["train"], "label", [0]), "esc", progress=False)
    read = ImageReader(model, data["test"]).read()
    original = forget_retain_accuracy(predictions(model, read.before), read.labels, 1)
    erased = forget_retain_accuracy(predictions(model, read.erased(model)), read.labels, 1)
    assert original[0] > 50
    assert erased[0] < 5
    assert erased[1] > original[1] - 10, "a small network pays for it"


@pytest.mark.slow
def test_erase_and_verify_print_what_the_readme_shows(example, shared, tmp_path, monkeypatch):
    model, processor = example.load(shared / "weights" / "cifar10_resnet20")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "resnet20")
    (tmp_path / "cifar10").mkdir()
    for split in ("train", "test"):
        (tmp_path / "cifar10" / f"{split}.parquet").symlink_to(shared / "data" / "cifar10" / f"{split}.parquet")
    monkeypatch.chdir(tmp_path)
    (shown,) = blocks("console")
    for command in commands():
        if command[0] in ("erase", "verify"):
            _, told = shown.split(f"$ hf-kd {shlex.join(command)}\n")
            told = told.partition("\n...\n")[0]
            assert " ".join(hf_kd(*command).stdout.split()).startswith(" ".join(told.split()))
