"""Regrown networks of CIFAR-10: the same original, cut at several depths, on labels or the answers of the original.

    python benchmarks/cifar/regrow.py --original FOLDER --data DIR --output RUNS \
        deer:1/3:data:8 deer:1/2:data:4:1 cat:auto:data:8:2 cat:1/3:foreign:8 [--foreign F.parquet] [--part 0/4]

A network is named CLASS:KEEP:LABELS:EPOCHS[:SEED]. KEEP: a share, or, with LABELS data, auto. LABELS: data (those of the
retained images), teacher (the original's answers on them, the class masked), soft (its probabilities), foreign (its answers
on the unlabelled images of --foreign) or foreign-soft (its probabilities on them).
Each lands in RUNS/regrow-CLASS-KEEP-LABELS-EPOCHS-SEED with the accuracy of its head on the test images in `result.json`.
One that is there is skipped, one that was cut off goes on from its last epoch. DIR holds train, train_rest, test.parquet.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, concatenate_datasets, load_dataset
from images import CLASSES, TRAIN
from PIL import Image, ImageOps

from hf_kd import ErasedModel, unlearn
from hf_kd.features.heads import predictions
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.metrics.scores import forget_retain_accuracy

LABELS = ("data", "teacher", "soft", "foreign", "foreign-soft")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cifar_resnet20.py"


@dataclass(frozen=True)
class Job:
    """One network to regrow."""

    forget: str
    keep: str
    labels: str
    epochs: int
    seed: int

    @classmethod
    def parse(cls, text: str) -> Job:
        """CLASS:KEEP:LABELS:EPOCHS[:SEED]."""
        fields = text.split(":")
        if len(fields) not in (4, 5) or fields[0] not in CLASSES or fields[2] not in LABELS:
            raise SystemExit(f"{text}: CLASS:KEEP:LABELS:EPOCHS[:SEED], LABELS one of {', '.join(LABELS)}")
        return cls(*fields[:3], *map(int, [*fields[3:], 0][:2]))

    @property
    def folder(self) -> str:
        """Name of its folder."""
        keep = self.keep.replace("/", "of")
        return f"regrow-{self.forget}-{keep}-{self.labels}-{self.epochs}-{self.seed}"

    def options(self) -> dict[str, object]:
        """Settings of the method."""
        up, _, down = self.keep.partition("/")
        keep = float(up) / float(down) if down else self.keep
        labels = {"labels": "data"} if self.labels == "data" else {"labels": "teacher", "soft": "soft" in self.labels}
        return {"keep": keep, "epochs": self.epochs, "seed": self.seed, **labels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="+", type=Job.parse, metavar="CLASS:KEEP:LABELS:EPOCHS[:SEED]")
    parser.add_argument("--original", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--foreign", help="parquet file of unlabelled images")
    parser.add_argument("--patches", type=int, help="random patches of every foreign image, in place of its middle")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--import", dest="imports", type=Path, nargs="*", default=[EXAMPLE])
    parser.add_argument("--augment", default="flip", choices=["none", "flip", "flip-crop"])
    parser.add_argument("--crops", type=int, default=0, help="shifted views that are kept, with --augment flip-crop")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, help="at its highest; the method's own unless given")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="bf16", choices=["no", "bf16"])
    parser.add_argument("--limit", type=int, help="images of each set, to try the whole way")
    parser.add_argument("--part", default="0/1", help="I/N: the I-th of N processes")
    arguments = parser.parse_args()
    for file in arguments.imports:
        runpy.run_path(str(file))
    parts = [load_dataset("parquet", data_files=str(arguments.data / f"{n}.parquet"), split="train") for n in TRAIN]
    train = concatenate_datasets(parts)
    test = load_dataset("parquet", data_files=str(arguments.data / "test.parquet"), split="train")
    foreign = load_dataset("parquet", data_files=arguments.foreign, split="train") if arguments.foreign else None
    if foreign is not None:
        foreign, cut = foreign.select_columns("image"), partial(_of_cifar_size, patches=arguments.patches)
        foreign = foreign.map(cut, batched=True, batch_size=50, with_indices=True, features=Features(foreign.features))
    part, count = map(int, arguments.part.split("/"))
    for job in arguments.jobs[part::count]:
        if not (arguments.output / job.folder).exists():
            _regrow(job, train, test, foreign, arguments)


def _of_cifar_size(batch: dict[str, list[Image.Image]], at: list[int], patches: int | None) -> dict[str, list]:
    """At 32 pixels, as the networks read it without resizing: the middle square, or squares of 14 to 100 % of its area."""
    found = []
    for image, index in zip(batch["image"], at, strict=True):
        image = ImageOps.fit(image.convert("RGB"), (min(image.size),) * 2)
        draws, side = np.random.default_rng(index), image.width
        for _ in range(patches or 1):
            size = round(side * draws.uniform(0.14, 1) ** 0.5) if patches else side
            left, top = draws.integers(side - size + 1, size=2).tolist()
            box = (left, top, left + size, top + size)
            found.append(image.resize((32, 32), Image.Resampling.BICUBIC, box, reducing_gap=3.0))
    return {"image": found}


def _regrow(job: Job, train: Dataset, test: Dataset, foreign: Dataset | None, arguments: argparse.Namespace) -> None:
    folder, label = arguments.output / job.folder, CLASSES.index(job.forget)
    is_foreign = job.labels.startswith("foreign")
    if is_foreign and foreign is None:
        raise SystemExit(f"{job.folder}: --foreign names the images")
    original = ErasedModel.from_pretrained(arguments.original).to(arguments.device)
    forget = train.filter(lambda y: y == label, input_columns="label")
    retain = foreign if is_foreign else train.filter(lambda y: y != label, input_columns="label")
    reading = ReadOptions(batch_size=512, mixed_precision=arguments.precision, progress=False, limit=arguments.limit)
    state = folder.with_suffix(".state")
    started = time.time()
    changed = unlearn(
        original, forget, "regrow", retain=retain, reading=reading, checkpoint=state, augment=arguments.augment,
        crops=arguments.crops, batch_size=arguments.batch_size, lr=arguments.lr, **job.options(),
    )  # fmt: skip
    seconds = time.time() - started
    regrown = ErasedModel.from_model(changed, original.processor)
    answers = ImageReader(regrown, test, ReadOptions(batch_size=512, progress=False, limit=arguments.limit)).read()
    accuracy = forget_retain_accuracy(predictions(regrown, answers.before), answers.labels, label)
    record = changed.config.hf_kd_unlearned
    result = {
        "original": arguments.original.name, "forget": job.forget, "keep": job.keep, "labels": job.labels,
        "epochs": job.epochs, "seed": job.seed, "patches": arguments.patches if is_foreign else None,
        "augment": arguments.augment, "crops": arguments.crops,
        "head_forget": round(accuracy[0], 2), "head_retain": round(accuracy[1], 2), "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu", "record": record,
    }  # fmt: skip
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    changed.save_pretrained(part)
    original.processor.save_pretrained(part)
    (part / "result.json").write_text(json.dumps(result, indent=1, default=str))
    os.replace(part, folder)
    shutil.rmtree(state, ignore_errors=True)
    print(json.dumps({name: value for name, value in result.items() if name != "record"}), flush=True)


if __name__ == "__main__":
    main()
