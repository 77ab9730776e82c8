"""Parquet files of images and labels -> the one .npz of arrays that train.py and table.py read.

python benchmarks/clip/pack.py CIFAR10.npz --train train.parquet train_rest.parquet --test test.parquet
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from datasets import load_dataset


def arrays(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    rows = load_dataset("parquet", data_files=[str(file) for file in files], split="train")
    return np.stack([np.asarray(image.convert("RGB")) for image in rows["image"]]), np.asarray(rows["label"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--train", type=Path, nargs="+", required=True)
    parser.add_argument("--test", type=Path, nargs="+", required=True)
    options = parser.parse_args()
    packed = {}
    for part in ("train", "test"):
        packed[f"{part}_images"], packed[f"{part}_labels"] = arrays(getattr(options, part))
    np.savez(options.output, **packed)


if __name__ == "__main__":
    main()
