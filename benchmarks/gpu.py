"""What hf_kd costs on an accelerator, and whether it computes there what it computes on the CPU. Prints Markdown.

    python benchmarks/gpu.py            # ViT-B/16 at 224 px, 50,000 synthetic images, features of 60,000 x 768
    python benchmarks/gpu.py --small    # tiny everything: tries the whole way on any machine

Images and weights are random: nothing here depends on what they show. Ratios are medians over rounds in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from transformers import ViTConfig, ViTForImageClassification

from hf_kd import ESC, AuditOptions, Cover, ErasedModel, SecondMoment
from hf_kd.audit.audit_features import audit_features
from hf_kd.methods.records import versions
from hf_kd.metrics.linear_probe import fit_linear_probe


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    images: int = 50_000
    batch: int = 512
    steps: int = 8
    audit: int = 60_000
    width: int = 768


SMALL = Size(images=64, batch=16, steps=2, audit=300, width=32)


class SyntheticImages(IterableDataset):
    """Batches of one random picture each with noise of its own, made on the device: what is timed is the model."""

    def __init__(self, size: Size, pixels: int, device: torch.device):
        self.size, self.pixels, self.device = size, pixels, device

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator(self.device).manual_seed(0)
        shape = (self.size.batch, 3, self.pixels, self.pixels)
        noise = torch.randn(shape, generator=generator, device=self.device)
        for start in range(0, self.size.images, self.size.batch):
            count = min(self.size.batch, self.size.images - start)
            labels = torch.zeros(count, dtype=torch.long, device=self.device)
            yield {"pixel_values": noise[:count].roll(start, dims=-1), "labels": labels}


def vit(size: Size) -> ViTForImageClassification:
    """ViT-B/16 with random weights; a tiny one for `--small`."""
    torch.manual_seed(0)
    shape = {"hidden_size": size.width, "num_attention_heads": size.width // 32}
    if size is SMALL:
        shape |= {"num_hidden_layers": 2, "intermediate_size": 64, "image_size": 32, "patch_size": 8}
    else:
        shape |= {"num_attention_heads": 12}
    return ViTForImageClassification(ViTConfig(**shape, num_labels=1000)).eval()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def in_turn(
    variants: dict[str, Callable[[], object]], device: torch.device, rounds: int = 5, unmeasured: int = 1
) -> dict[str, list[float]]:
    """Seconds of each variant in each round, after `unmeasured` rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + unmeasured):
        for name, variant in variants.items():
            synchronize(device)
            started = time.perf_counter()
            variant()
            synchronize(device)
            if turn >= unmeasured:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def throughput(size: Size, device: torch.device) -> None:
    """Images a second, bare and with each eraser at the tap."""
    models: dict[str, torch.nn.Module] = {"bare": vit(size).to(device, torch.bfloat16)}
    pixels = models["bare"].config.image_size
    images = torch.randn(size.batch, 3, pixels, pixels, device=device, dtype=torch.bfloat16)
    features = torch.randn(4 * size.width, size.width)
    head = models["bare"].classifier.float().cpu()
    labels = head(features).argmax(-1)
    few = labels == labels.mode().values
    erasers = {"ESC": ESC().fit(features), "cover": Cover().fit(features[few], labels[few], head)}
    models["bare"].to(device, torch.bfloat16)
    for name, eraser in erasers.items():
        erased = ErasedModel.from_model(vit(size))
        erased.find_taps()
        erased.sites[0].eraser = eraser
        models[name] = erased.to(device, torch.bfloat16)

    def forward(model: torch.nn.Module) -> None:
        with torch.no_grad():
            for _ in range(size.steps):
                model(pixel_values=images)

    seconds = in_turn({name: lambda model=model: forward(model) for name, model in models.items()}, device)
    print(f"\n### Forward pass, ViT, {pixels} px, bfloat16, batch {size.batch}\n")
    print("| | images/s | ratio to bare |\n|---|---|---|")
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, seconds["bare"], strict=True))
        print(f"| {name} | {size.steps * size.batch / statistics.median(own):,.0f} | {ratio:.3f} |")


def erasing(size: Size, device: torch.device) -> None:
    """`erase` over the same images as a bare pass."""
    model = ErasedModel.from_model(vit(size)).to(device)
    images = SyntheticImages(size, model.inner.config.image_size, device)
    loader = DataLoader(images, batch_size=None)

    def bare() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            for batch in loader:
                model.inner(pixel_values=batch["pixel_values"])

    def erase() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            model.erase(loader, "esc", progress=False, allow_unrecognised=True)
        model.reset()

    model.inner(pixel_values=next(iter(loader))["pixel_values"][:8])
    seconds = in_turn({"bare pass": bare, "erase, ESC": erase}, device, rounds=1, unmeasured=0)
    print(f"\n### Erasing {size.images:,} synthetic images, bfloat16 autocast\n\n| | seconds | ratio |\n|---|---|---|")
    for name, own in seconds.items():
        print(f"| {name} | {own[0]:.2f} | {own[0] / seconds['bare pass'][0]:.3f} |")


def planted(size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Features of ten classes [n, d] with spread that falls along the axes, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (size.audit,), generator=generator)
    means = 1.5 * torch.randn(10, size.width, generator=generator) / size.width**0.5
    scales = torch.logspace(0, -2, size.width)
    features = (
        means[labels] + torch.randn(size.audit, size.width, generator=generator) / size.width**0.5
    ) * scales + 0.1
    return features.to(device), labels.to(device)


def auditing(size: Size, device: torch.device) -> None:
    """The default audit of the features of ten classes, one forgotten by ESC; with `--small` of few draws."""
    features, labels = planted(size, device)
    eraser = ESC().fit(SecondMoment(size.width).update(features[labels == 0].cpu())).to(device)
    versions = {"original": features, "erased": eraser(features)}
    half = size.audit * 5 // 6
    train, test = ({k: v[part] for k, v in versions.items()} for part in (slice(half), slice(half, None)))
    options = AuditOptions(draws=1) if size is SMALL else AuditOptions()
    started = time.perf_counter()
    audit_features(train, labels[:half], test, labels[half:], 0, options=options)
    synchronize(device)
    print(f"\n### Audit of {size.audit:,} x {size.width} features\n\n{time.perf_counter() - started:.1f} s")


def equality(size: Size, device: torch.device) -> None:
    """The same eraser and the same probe, fitted on the CPU and on the device."""
    features, labels = planted(Size(audit=min(size.audit, 10_000), width=size.width), torch.device("cpu"))
    there, labels_there = features.to(device), labels.to(device)
    here = ESC(k=5).fit(features[labels == 0])
    away = ESC(k=5).fit(there[labels_there == 0])
    moved = (here(features) - away.to("cpu")(features)).abs().max() / features.abs().max()
    probes = fit_linear_probe(features, labels), fit_linear_probe(there, labels_there)
    agree = (probes[0].predict(features) == probes[1].predict(there).cpu()).double().mean()
    apart = (probes[0].logits(features) - probes[1].logits(there).cpu()).abs().max()
    print("\n### CPU and device\n")
    print(f"ESC, k = 5: erased features differ by at most {float(moved):.1e} of the largest feature.")
    print(f"Converged probe: {100 * float(agree):.2f} % of answers equal, logits differ by at most {float(apart):.1e}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    size = SMALL if parser.parse_args().small else Size()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{time.strftime('%Y-%m-%d')}, {name}, {versions()}")
    for part in (throughput, erasing, auditing, equality):
        part(size, device)


if __name__ == "__main__":
    main()
