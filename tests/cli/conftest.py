"""What the commands work on."""

from __future__ import annotations

import pytest
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from tests.helpers.small import labelled, make_dataset, randomise
from tests.helpers.taught import taught


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with a tiny checkpoint, images of its labels as parquet files, and images of others."""
    folder = tmp_path_factory.mktemp("unlearn")
    config = labelled(ViTConfig, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                      image_size=16, patch_size=8)  # fmt: skip
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    taught(randomise(ViTForImageClassification(config)), processor).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    for name, labels in (("data", None), ("other", ("fox", "gnu", "hen"))):
        (folder / name).mkdir()
        for split, seed, count in (("train", 0, 12), ("test", 9, 6)):
            rows = list(range(5 if labels is None else 3)) * count
            made = make_dataset(rows, seed=seed) if labels is None else make_dataset(rows, seed=seed, names=labels)
            made.to_parquet(folder / name / f"{split}.parquet")
    return folder
