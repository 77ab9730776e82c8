"""What was tried to make cover erasure cheaper or steadier: variants of one fitted map on cached features.

    OMP_NUM_THREADS=1 python benchmarks/real/cover_tried.py --weights DIR --data CIFAR10 --other IMAGENETTE [--forget cat]

--weights: CIFAR ResNet-20 as in examples/cifar_resnet20.py. --data, --other: folders of train.parquet and test.parquet.
Every variant replaces the same inputs; they differ in what is put there. Prints a Markdown table.

- several points a class: each cover class has L points along the first principal direction of D_f instead of one, and
  forgotten and cover features are shared out among them by quantiles;
- content kept: P_c + rho (z - its class mean) instead of P_c;
- close calls to the axis too: without the rule that a close call goes where its retained answer is;
- averaged over the mirror image: decisions on the mean feature of an image and its mirror image, a second forward pass.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hf_kd import Cover, ErasedModel
from hf_kd.bench.other_data import open_other, read_other
from hf_kd.data.load import load_source
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.features.taps.site import head_function
from hf_kd.metrics.attacks import run_attacks
from hf_kd.metrics.linear_probe import fit_linear_probe
from hf_kd.metrics.similarity import linear_cka

VIEWS = (None, "mirrored", "cropped")
ATTACKS = ("linear", "mlp-large", "knn-l2", "few-shot-5-l2", "views-2-linear", "views-3-linear")


class Features:
    """Of both splits and three views each, and of another data set."""

    def __init__(self, model: ErasedModel, data: Path, other: Path):
        images = {split: load_source(data, split=split) for split in ("train", "test")}
        read = {(split, view): ImageReader(model, images[split]).read(view) for split in images for view in VIEWS}
        self.views = {key: part.before[0] for key, part in read.items()}
        self.labels = {split: read[split, None].labels for split in images}
        where = {"name": str(other), "resize": 32}
        self.other = read_other(model, open_other(where), where, ReadOptions())

    def partner(self, features: Tensor) -> Tensor:
        """The mean of an image's features and its mirror image's, of whichever view is asked for; else the features."""
        for split in ("train", "test"):
            pair = [self.views[split, view] for view in ("mirrored", None)]
            if any(features is one for one in pair):
                return sum(pair) / 2
        return features


def row(name: str, erase: Callable[[Tensor], Tensor], features: Features, head, label: int) -> str:
    """One line: the head, retained CKA, another data set, attackers."""
    with torch.no_grad():
        behind = {key: erase(part) for key, part in features.views.items()}
        other = [(erase(part[0]), own) for part, own in (features.other.train, features.other.test)]
        logits = head([behind["test", None]]).clone()
    train, test = (features.labels[split] for split in ("train", "test"))
    logits[:, label] = float("-inf")
    kept = test != label
    right = 100 * float((logits.argmax(dim=1) == test)[kept].double().mean())
    results = run_attacks(
        behind["train", None], train, behind["test", None], test, [label], ATTACKS,
        train_views=[behind["train", view] for view in VIEWS[1:]],
        test_views=[behind["test", view] for view in VIEWS[1:]],
    )  # fmt: skip
    probe = fit_linear_probe(*other[0], tolerance=1e-5)
    elsewhere = (probe.predict(other[1][0]) == other[1][1]).double().mean()
    cka = linear_cka(features.views["test", None][kept], behind["test", None][kept])
    cells = [f"{right:.1f}", f"{cka:.3f}", f"{100 * float(elsewhere):.1f}"]
    return f"| {name} | " + " | ".join(cells + [f"{result.recall_forget:.1f}" for result in results]) + " |"


def several_points(eraser, forgotten: Tensor, count: int, label: int) -> Callable[[Tensor], Tensor]:
    mean = forgotten.mean(dim=0)
    centred = forgotten - mean
    values, directions = torch.linalg.eigh(centred.T @ centred / len(forgotten))
    along, spread = directions[:, -1], values[-1].sqrt()
    quantiles = torch.arange(1, count) / count
    rows = eraser.decide(forgotten)[0]
    own_cuts = [torch.quantile((centred @ along)[rows == r], quantiles) for r in range(len(eraser.cover))]
    cover_cuts = torch.quantile(centred @ along, quantiles)
    offsets = (torch.arange(count) - (count - 1) / 2) / count * 2 * spread

    def erase(z: Tensor) -> Tensor:
        rows, replaced = eraser.decide(z)
        seen = (z @ eraser.weight.T + eraser.bias).argmax(dim=1) == label
        cell = torch.bucketize((z - eraser.prototypes[rows]) @ along, cover_cuts)
        for r, cuts in enumerate(own_cuts):
            cell = torch.where(seen & (rows == r), torch.bucketize((z - mean) @ along, cuts), cell)
        return torch.where(replaced[:, None], eraser.prototypes[rows] + offsets[cell][:, None] * along, z)

    return erase


def content_kept(eraser, forgotten: Tensor, share: float, label: int) -> Callable[[Tensor], Tensor]:
    mean = forgotten.mean(dim=0)

    def erase(z: Tensor) -> Tensor:
        rows, replaced = eraser.decide(z)
        seen = (z @ eraser.weight.T + eraser.bias).argmax(dim=1) == label
        base = eraser.prototypes[rows]
        content = z - torch.where(seen[:, None], mean, base)
        return torch.where(replaced[:, None], base + share * content, z)

    return erase


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("weights", "data", "other"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--forget", default="cat")
    arguments = parser.parse_args()
    path = Path(__file__).resolve().parents[2] / "examples" / "cifar_resnet20.py"
    spec = importlib.util.spec_from_file_location("cifar_resnet20", path)
    example = importlib.util.module_from_spec(spec)
    sys.modules["cifar_resnet20"] = example
    spec.loader.exec_module(example)
    model = ErasedModel.from_model(*example.load(arguments.weights))
    features = Features(model, arguments.data, arguments.other)
    label = example.CIFAR10.index(arguments.forget)
    head = head_function(model.inner, model.taps)
    own = features.labels["train"] == label
    forgotten = features.views["train", None][own]
    views = [features.views["train", view][own] for view in VIEWS[1:]]
    eraser = Cover().fit(forgotten, features.labels["train"][own], head.of_tap(0), views)
    by_logits = Cover(views=0).fit(forgotten, features.labels["train"][own], head.of_tap(0))
    to_axis = Cover().fit(forgotten, features.labels["train"][own], head.of_tap(0), views)
    to_axis.limits[2] = -float("inf")

    def averaged(z: Tensor) -> Tensor:
        rows, replaced = eraser.decide(features.partner(z))
        return torch.where(replaced[:, None], eraser.prototypes[rows], z)

    variants: dict[str, Callable[[Tensor], Tensor]] = {
        "original": lambda z: z,
        "cover, m = 2": eraser,
        "shared by logits": by_logits,
        "close calls to the axis too": to_axis,
        "2 points a class": several_points(eraser, forgotten, 2, label),
        "4 points a class": several_points(eraser, forgotten, 4, label),
        "content kept, 0.1": content_kept(eraser, forgotten, 0.1, label),
        "content kept, 0.3": content_kept(eraser, forgotten, 0.3, label),
        "averaged over the mirror image": averaged,
    }
    print(f"{arguments.forget}\n\n| | head, others | CKA | another data set | " + " | ".join(ATTACKS) + " |")
    print("|---|" + "---:|" * (len(ATTACKS) + 3))
    for name, erase in variants.items():
        print(row(name, erase, features, head, label), flush=True)


if __name__ == "__main__":
    main()
