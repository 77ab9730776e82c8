"""What preparing images costs: the image processor's own path against the bit-equal shortcuts, on real images.

    python benchmarks/preprocess.py --cifar CIFAR10_DIR --imagenette IMAGENETTE_DIR [--images 640] [--rounds 3]

Decoding is not included. Each round runs both paths in turn; times are the best round's. Prints Markdown, and fails if any
pixel differs.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import ViTImageProcessorPil

from hf_kd.data.preprocess import ImagePreprocessor


def images_of(folder: Path, count: int) -> list:
    rows = load_dataset("parquet", data_files=str(folder / "test.parquet"), split="train")
    return [image.convert("RGB") for image in rows.select(range(min(count, len(rows))))["image"]]


def seconds(preprocess: ImagePreprocessor, images: list) -> float:
    started = time.perf_counter()
    for start in range(0, len(images), 64):
        preprocess(images[start : start + 64])
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--imagenette", type=Path, required=True)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    cifar, imagenette = images_of(arguments.cifar, arguments.images), images_of(arguments.imagenette, 256)
    imagenette_square = [image.resize((256, 256)) for image in imagenette]
    cases = (
        ("CIFAR 32 -> 224, bilinear", cifar, {"size": {"height": 224, "width": 224}}),
        ("CIFAR 32, no resize", cifar, {"do_resize": False}),
        ("Imagenette, mixed sizes -> 224, bilinear", imagenette, {"size": {"height": 224, "width": 224}}),
        ("Imagenette 256 -> 224, bicubic", imagenette_square, {"size": {"height": 224, "width": 224}, "resample": 3}),
    )
    print(f"{time.strftime('%Y-%m-%d')}, {torch.get_num_threads()} threads\n")
    print("| case | processor, µs an image | shortcuts, µs an image | ratio |\n|---|---|---|---|")
    for name, images, settings in cases:
        processor = ViTImageProcessorPil(**settings)
        slow, fast = ImagePreprocessor(processor, exact_shortcuts=False), ImagePreprocessor(processor)
        for start in range(0, len(images), 64):  # also warms up: the proof and the first checks lie in this pass
            part = images[start : start + 64]
            if not torch.equal(slow(part)["pixel_values"], fast(part)["pixel_values"]):
                raise SystemExit(f"{name}: the shortcut differs from the processor")
        times = [(seconds(slow, images), seconds(fast, images)) for _ in range(arguments.rounds)]
        a, b = (min(column) / len(images) * 1e6 for column in zip(*times, strict=True))
        print(f"| {name} | {a:.0f} | {b:.0f} | {a / b:.1f} |")


if __name__ == "__main__":
    main()
