"""What erasing costs: wall time over a bare forward pass, memory in N, and the price of an erased model at inference.

    python benchmarks/erase.py --weights MOBILENET_DIR --data IMAGENETTE_DIR [--images 1500] [--rounds 3] [--rows 1000000]

Every comparison runs in this one process, variants in turn, several rounds; ratios are medians over rounds. "published" is
a plain restatement of the published procedure: a buffer of all features, a full SVD, the product E E^T in each batch, for
ESC-T the backbone in every epoch. Prints Markdown.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

from hf_kd import ESC, ESCT, Cover, ErasedModel
from hf_kd.methods.records import versions


def in_turn(
    variants: dict[str, Callable[[], None]], rounds: int, base: str
) -> dict[str, tuple[float, float, float, float]]:
    """Median seconds, and median, lowest and highest ratio to `base`, each ratio within one round."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            started = time.perf_counter()
            variant()
            seconds[name].append(time.perf_counter() - started)
    results = {}
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(own, seconds[base], strict=True)]
        results[name] = (statistics.median(own), statistics.median(ratios), min(ratios), max(ratios))
    return results


def show(title: str, results: dict[str, tuple[float, float, float, float]]) -> None:
    print(f"\n### {title}\n\n| | seconds | ratio | lowest | highest |\n|---|---|---|---|---|")
    for name, (seconds, ratio, low, high) in results.items():
        print(f"| {name} | {seconds:.3f} | {ratio:.3f} | {low:.3f} | {high:.3f} |")


# Erasing a real model


def image_loader(weights: Path, data: Path, count: int) -> DataLoader:
    """Preprocessed images in memory, so that nothing but the model is in the bare pass: the hardest case for a ratio."""
    from datasets import load_dataset
    from transformers import AutoConfig, AutoImageProcessor

    from hf_kd.data.labels import match_labels
    from hf_kd.data.preprocess import ImagePreprocessor

    rows = load_dataset("parquet", data_files=str(data / "train.parquet"), split="train")
    rows = rows.shuffle(seed=0).select(range(min(count, len(rows))))
    preprocess = ImagePreprocessor(AutoImageProcessor.from_pretrained(weights))
    pixels = torch.cat(
        [
            preprocess([image.convert("RGB") for image in rows[i : i + 64]["image"]])["pixel_values"]
            for i in range(0, len(rows), 64)
        ]
    )
    mapping = match_labels(rows.features["label"].names, AutoConfig.from_pretrained(weights).id2label)
    dataset = TensorDataset(pixels, mapping(torch.tensor(rows["label"])))
    collate = lambda batch: {  # noqa: E731
        "pixel_values": torch.stack([x for x, _ in batch]),
        "labels": torch.stack([y for _, y in batch]),
    }
    return DataLoader(dataset, batch_size=64, collate_fn=collate)


class Published:
    """The published procedure, restated from its description on the same model and loader."""

    def __init__(self, model: ErasedModel, loader: DataLoader):
        self.backbone = model.inner.mobilenet_v2
        self.head = model.inner.classifier
        self.loader = loader

    def directions(self) -> Tensor:
        buffer = torch.zeros(len(self.loader.dataset), self.head.in_features)
        filled = 0
        with torch.no_grad():
            for batch in self.loader:
                features = self.backbone(batch["pixel_values"]).pooler_output
                buffer[filled : filled + len(features)] = features
                filled += len(features)
        return torch.linalg.svd(buffer.T, full_matrices=False)[0]

    def esc(self, p: float = 1.5) -> None:
        u = self.directions()
        kept = u[:, int(u.shape[0] * p / 100) :]
        assert torch.isfinite(kept @ kept.T).all()

    def esc_t(self, epochs: int, lr: float = 1.0, threshold: float = 0.7) -> None:
        u = self.directions()
        mask = torch.ones_like(u)
        for _ in range(epochs):
            hits = 0
            for batch in self.loader:
                with torch.no_grad():
                    features = self.backbone(batch["pixel_values"]).pooler_output
                with torch.enable_grad():
                    mask.requires_grad_()
                    e = u * mask
                    logits = self.head(features @ (e @ e.T))
                    right = logits.argmax(dim=1) == batch["labels"]
                    if right.any():
                        loss = F.cross_entropy(logits[right], batch["labels"][right])
                        (gradient,) = torch.autograd.grad(loss, mask)
                        mask = (mask + lr * gradient).clamp(0, 1)
                mask = mask.detach()
            with torch.no_grad():  # the early stop looks at the whole forget set again
                for batch in self.loader:
                    features = self.backbone(batch["pixel_values"]).pooler_output
                    hits += int((self.head(features @ (u * mask) @ (u * mask).T).argmax(1) == batch["labels"]).sum())
            if not hits:
                break
        assert ((u * (mask > threshold)).T @ u).isfinite().all()


def bench_erase(weights: Path, data: Path, count: int, rounds: int) -> None:
    loader = image_loader(weights, data, count)
    model = ErasedModel.from_pretrained(weights)
    model.find_taps(next(iter(loader)))
    model.inner.requires_grad_(False)
    epochs: list[int] = []
    few = DataLoader(Subset(loader.dataset, range(256)), batch_size=64, collate_fn=loader.collate_fn)

    def forward() -> None:
        with torch.no_grad():
            for batch in loader:
                model.inner(batch["pixel_values"])

    def erase(method: str) -> None:
        model.erase(loader, method, progress=False)
        if method == "esc-t":
            epochs.append(model.erasures[0].measured[0]["epochs_run"])
        model.reset()

    forward()
    variants = {
        "bare forward pass": forward,
        "ESC, `erase`": lambda: erase("esc"),
        "ESC-T, `erase`": lambda: erase("esc-t"),
        "ESC, published": lambda: Published(model, loader).esc(),
    }
    results = in_turn(variants, rounds, "bare forward pass")
    show(f"Erasing {len(loader.dataset)} preprocessed images, MobileNetV2 224, d = 1280", results)
    print(f"\nESC-T ran {epochs[-1]} epochs.")

    variants = {
        "bare forward pass": lambda: [model.inner(batch["pixel_values"]) for batch in few],
        "ESC-T, `erase`": lambda: model.erase(few, "esc-t", epochs=epochs[-1], progress=False).reset(),
        "ESC-T, published": lambda: Published(model, few).esc_t(epochs[-1]),
    }
    with torch.no_grad():
        results = in_turn(variants, 1, "bare forward pass")
    show(f"ESC-T on 256 images, at most {epochs[-1]} epochs, one round", results)


# Features only, N up to a million

MEMORY = """
import resource, sys, time, torch
from hf_kd import ESC, SecondMoment
rows, method = int(sys.argv[1]), sys.argv[2]
generator = torch.Generator().manual_seed(0)
scales = torch.logspace(0.5, -2, 768)
def batches():
    for start in range(0, rows, 4096):
        yield torch.randn(min(4096, rows - start), 768, generator=generator) * scales + 0.3
for _ in batches() if rows <= 4096 else ():
    pass
empty = time.perf_counter()
for batch in batches():
    pass
empty = time.perf_counter() - empty
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
if method == "streaming":
    moment = SecondMoment(768)
    for batch in batches():
        moment.update(batch)
    ESC().fit(moment)
else:
    buffer = torch.cat(list(batches()))
    u = torch.linalg.svd(buffer.T, full_matrices=False)[0]
seconds = time.perf_counter() - started - empty
print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024)
"""


def bench_features(largest: int) -> None:
    print("\n### Features only, d = 768, batches of 4,096 from a generator, one process each\n")
    print("| rows | procedure | seconds | µs per row | peak memory above the start, MiB |\n|---|---|---|---|---|")
    sizes = [n for n in (10_000, 100_000, 1_000_000) if n <= largest]
    for rows in sizes:
        for method in ("streaming", "published") if rows <= 100_000 else ("streaming",):
            command = [sys.executable, "-c", MEMORY, str(rows), method]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            name = "SecondMoment + ESC" if method == "streaming" else "buffer + full SVD (published)"
            print(
                f"| {rows:,} | {name} | {float(out[0]):.2f} | {float(out[0]) / rows * 1e6:.2f} | {float(out[1]):.0f} |"
            )


# Inference


def bench_inference(rounds: int) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    vit = ViTForImageClassification(ViTConfig(num_labels=1000)).eval()
    pixels = torch.randn(8, 3, 224, 224)
    bare = ViTForImageClassification(vit.config).eval()
    bare.load_state_dict(vit.state_dict())
    erased = ErasedModel.from_model(vit)
    erased.find_taps()
    features = torch.randn(500, 768)
    variants = {}
    with torch.no_grad():
        labels = vit.classifier(features).argmax(dim=1)
        few = labels == labels.mode().values
        erasers = {
            "ESC, k = 12": ESC().fit(features),
            "ESC-T": ESCT(epochs=1).fit(features, labels, vit.classifier),
            "cover, m = 2": Cover().fit(features[few], labels[few], vit.classifier),
        }
        for name, eraser in erasers.items():
            clone = ErasedModel.from_model(
                type(vit).from_pretrained(None, config=vit.config, state_dict=vit.state_dict())
            )
            clone.find_taps()
            clone.sites[0].eraser = eraser
            variants[name] = lambda clone=clone: clone(pixel_values=pixels)
            if name.startswith("ESC,"):
                folded = clone.fold()
                variants["ESC, folded"] = lambda folded=folded: folded(pixel_values=pixels)
        alone = {"bare ViT-B/16": lambda: bare(pixel_values=pixels)} | variants
        for variant in alone.values():
            variant()
        show("Inference, ViT-B/16 (d = 768), batch of 8", in_turn(alone, rounds * 4, "bare ViT-B/16"))
        seconds = {}
        for name, eraser in erasers.items():
            batch = torch.randn(8, 768)
            started = time.perf_counter()
            for _ in range(2000):
                eraser(batch)
            seconds[name] = (time.perf_counter() - started) / 2000
        print("\nThe eraser alone, batch of 8: " + ", ".join(f"{n} {s * 1e6:.0f} µs" for n, s in seconds.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--parts", nargs="+", default=["features", "inference", "erase"])
    arguments = parser.parse_args()
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {torch.get_num_threads()} threads, {versions()}")
    if "features" in arguments.parts:
        bench_features(arguments.rows)
    if "inference" in arguments.parts:
        bench_inference(arguments.rounds)
    if "erase" in arguments.parts:
        bench_erase(arguments.weights, arguments.data, arguments.images, arguments.rounds)
    print(f"\nPeak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
