"""On real images and trained networks: the numbers of the README. Skipped where the shared data is not there."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path

import numpy as np
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


def test_resnet20_forgets_cats_as_expected_and_comes_back_from_disk(example, shared, tmp_path):
    files = {split: str(shared / "data" / "cifar10" / f"{split}.parquet") for split in ("train", "test")}
    data = load_dataset("parquet", data_files=files)
    model = ErasedModel.from_model(*example.load(shared / "weights" / "cifar10_resnet20"))
    model.erase(filter_by_labels(data["train"], "label", [3]).select(range(500)), k=1, progress=False)
    labels = np.asarray(data["test"]["label"])
    others = [rows[:50] for rows in (np.flatnonzero(labels == label) for label in range(10) if label != 3)]
    read = ImageReader(model, data["test"].select(np.concatenate([np.flatnonzero(labels == 3), *others]))).read()
    original = forget_retain_accuracy(predictions(model, read.before), read.labels, 3)
    erased = forget_retain_accuracy(predictions(model, read.erased(model)), read.labels, 3)
    assert original[0] == pytest.approx(83.2, abs=0.1), "all 1,000 cats"
    assert erased[0] == pytest.approx(7.0, abs=1.0)
    assert original[1] == pytest.approx(92.7, abs=2.0), "50 of each other class"
    assert erased[1] == pytest.approx(original[1], abs=1.0)

    model.save_pretrained(tmp_path)
    again = ErasedModel.from_pretrained(tmp_path)
    pixels = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(pixels).logits, model(pixels).logits)


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
