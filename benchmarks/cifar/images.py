"""CIFAR-10 as arrays: from a folder of parquet files, or from one .npz made of them (decoded once, read in a second)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN = ("train", "train_rest")
"""All 50,000 training images; the first file alone is the half that the older result pages used."""


def read_parquet(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) uint8 and labels (n,) of one parquet file with `image` and `label`."""
    import pyarrow.parquet as pq

    table = pq.read_table(file, columns=["image", "label"]).to_pydict()
    images = [np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in table["image"]]
    return np.stack(images), np.asarray(table["label"], np.int64)


def load(source: Path) -> dict[str, np.ndarray]:
    """`train_x`, `train_y`, `test_x`, `test_y` of a folder with {train,train_rest,test}.parquet or of such a .npz."""
    if source.suffix == ".npz":
        with np.load(source) as arrays:
            return {name: arrays[name] for name in ("train_x", "train_y", "test_x", "test_y")}
    parts = [read_parquet(source / f"{name}.parquet") for name in TRAIN if (source / f"{name}.parquet").exists()]
    test = read_parquet(source / "test.parquet")
    train = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    return {"train_x": train[0], "train_y": train[1], "test_x": test[0], "test_y": test[1]}
