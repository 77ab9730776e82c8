"""A tiny classifier and a tiny data set on disk, as a bench reads them, and results that were never run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

from hf_kd.audit import plotting
from hf_kd.bench import row_figures
from hf_kd.bench.config import Experiment, experiments
from hf_kd.bench.store import Store, cell_settings, key_of
from tests.helpers.small import labelled, make_dataset, randomise
from tests.helpers.taught import taught

FINE = ["pug", "wolf", "sphynx", "tabby"]


@pytest.fixture(scope="package", autouse=True)
def quick_collection() -> Iterator[None]:
    """Every cell collects garbage before its memory is looked at; what all tests imported need not be gone through."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def small_figures(monkeypatch) -> None:
    """Files of figures are of few pixels and of two images: how they look is asked of the figures themselves."""
    monkeypatch.setitem(plotting.STYLE, "savefig.dpi", 30)
    monkeypatch.setattr(row_figures, "MOST_IMAGES", 2)


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """A folder with `model` (a ResNet with BatchNorm, five classes) and `data` (parquet; 60 training, 50 test images, and
    fine labels: two of them below each of two classes)."""
    folder = tmp_path_factory.mktemp("bench")
    config = labelled(ResNetConfig, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    taught(randomise(ResNetForImageClassification(config)), processor).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for seed, (split, each) in enumerate((("train", 12), ("test", 10))):
        with_fine_labels(make_dataset([0, 1, 2, 3, 4] * each, seed)).to_parquet(folder / "data" / f"{split}.parquet")
    return folder


def with_fine_labels(data: Dataset) -> Dataset:
    """cats are sphynx or tabby, dogs are pug or wolf, and everything else a pug, in turn."""
    pairs = {2: ("sphynx", "tabby"), 3: ("pug", "wolf")}
    fine = [FINE.index(pairs.get(label, ("pug", "pug"))[row % 2]) for row, label in enumerate(data["label"])]
    return data.add_column("fine", fine).cast_column("fine", ClassLabel(names=FINE))


@pytest.fixture
def one(place) -> Callable[..., Experiment]:
    """An experiment on the files of `place`; keywords change its settings."""

    def make(**changes: Any) -> Experiment:
        content = {
            "model": "model",
            "dataset": {"name": "data", "label_column": "label"},
            "protocol": {"kind": "class", "forget": ["cat"]},
            "methods": ["original"],
            "measure": {"knowledge_retention": False, "membership": False},
        }
        (found,) = experiments({**content, **changes}, place)
        return found

    return make


@pytest.fixture
def results(tmp_path) -> Callable[..., Store]:
    """A store with made-up results: {label: [scores of each seed, or an error's text]} of an experiment."""

    def make(experiment: Experiment, scores: dict[str, list[Any]], **more: Any) -> Store:
        store = Store(tmp_path / "made-up")
        for row in experiment.rows:
            for seed, given in zip(row.seeds, scores.get(row.label, []), strict=False):
                failed = isinstance(given, str)
                store.add(
                    {
                        "key": key_of(cell_settings(experiment, row, seed)),
                        "row": row.label,
                        "seed": seed,
                        "status": "failed" if failed else "ok",
                        "seconds": {"cell": 1.0, "features": 0.5, "fit": 1.5},
                        "memory_mib": {"process_before": 100, "process_peak": 150, "method": 7},
                        **({"error": given} if failed else {"scores": given}),
                        **more,
                    }
                )
        return store

    return make
