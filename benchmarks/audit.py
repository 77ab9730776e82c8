"""The audit on real networks: one class forgotten by ESC and ESC-T, beside controls that forget nothing.

    OMP_NUM_THREADS=2 python benchmarks/audit.py --weights DIR --data DIR [--unseen DIR] [--forget cat] [--k 1]
        [--attacks full] [--seeds 3] [--output DIR]

--weights: CIFAR ResNet-20 as in examples/cifar_resnet20.py, or a checkpoint of transformers. --data and --unseen: folders
with train.parquet and test.parquet. Of --unseen the classes that the network was never trained on are read (`UNSEEN`),
scaled to 32 px for the ResNet-20. Features are read in one pass; wall and processor time of every audit are without it.
The first variant gets the reference, the identities and the attacks that were asked for. Prints Markdown; --output keeps
reports and figures.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import load_dataset
from torch import Tensor, nn

from hf_kd import ESC, ESCT, AuditOptions, ErasedModel, SecondMoment, Unseen
from hf_kd.audit import AuditExtras
from hf_kd.audit.audit_features import audit_features
from hf_kd.audit.report import RetentionReport
from hf_kd.features.reader import ImageReader
from hf_kd.features.taps.site import head_function
from hf_kd.methods.records import versions

UNSEEN = {
    10: ("tench", "cassette player", "church", "French horn", "golf ball"),
    1001: ("deer", "horse"),
}
"""By number of labels: classes of imagenette that CIFAR-10 has no like of, and of CIFAR-10 that ImageNet's labels lack."""


@dataclass
class Network:
    """A model and what it reads."""

    model: ErasedModel
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    unseen: Unseen | None
    seconds: float
    """Of the feature pass."""

    def head(self, features: Tensor) -> Tensor:
        return head_function(self.model.inner, self.model.taps)([features])

    def label(self, name: str) -> int:
        found = [label for label, own in self.model.config.id2label.items() if own.partition(",")[0] == name]
        if len(found) != 1:
            raise SystemExit(f"{len(found)} labels of the model are called {name!r}")
        return found[0]


def example():
    """The example that wraps the ResNet-20, imported from its file."""
    path = Path(__file__).resolve().parents[1] / "examples" / "cifar_resnet20.py"
    spec = importlib.util.spec_from_file_location("cifar_resnet20", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["cifar_resnet20"] = module
    spec.loader.exec_module(module)
    return module


def read(weights: Path, data: Path, unseen: Path | None) -> Network:
    if (weights / "config.json").exists():
        model = ErasedModel.from_pretrained(weights)
    else:
        model = ErasedModel.from_model(*example().load(weights))
    started = time.perf_counter()
    train, test = (ImageReader(model, parquet(data, split)).read() for split in ("train", "test"))
    seconds = time.perf_counter() - started
    other = None
    if unseen is not None:
        wanted = UNSEEN[model.config.num_labels]
        rows = parquet(unseen, "train")
        ids = [number for number, name in enumerate(rows.features["label"].names) if name.partition(",")[0] in wanted]
        if len(ids) != len(wanted):
            raise SystemExit(f"{wanted} are not all in {unseen}")
        rows = rows.filter(lambda label: label in ids, input_columns="label")
        if model.config.num_labels == 10:
            rows = rows.map(lambda row: {"image": row["image"].convert("RGB").resize((32, 32))})
        found = ImageReader(model, rows.shuffle(seed=0).select(range(min(len(rows), 1000)))).read(own_labels=True)
        other = Unseen(found.before[0], found.labels)
    return Network(model, train.before[0], train.labels, test.before[0], test.labels, other, seconds)


def parquet(folder: Path, split: str):
    return load_dataset("parquet", data_files=str(folder / f"{split}.parquet"), split="train")


def silenced(head, label: int):
    """Head surgery: W_c = 0, b_c = -inf."""

    def answer(features: Tensor) -> Tensor:
        logits = head(features)
        logits[:, label] = float("-inf")
        return logits

    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--unseen", type=Path)
    parser.add_argument("--forget", default="cat")
    parser.add_argument("--k", type=int, help="directions that ESC removes; by default its p of 1.5 %% of d")
    parser.add_argument("--attacks", default="standard")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    network = read(arguments.weights, arguments.data, arguments.unseen)
    label = network.label(arguments.forget)
    x, y, x_test, y_test = network.train, network.train_labels, network.test, network.test_labels
    esc = ESC() if arguments.k is None else ESC(k=arguments.k)

    moment = SecondMoment(x.shape[1])
    moment.update(x[y == label])
    eraser = esc.fit(moment)
    unchanged = nn.Identity()
    variants = {
        f"ESC, k = {eraser.rank_removed}": (eraser, network.head),
        "ESC-T": (ESCT().fit(x[y == label], y[y == label], network.head), network.head),
        "head surgery (control)": (unchanged, silenced(network.head, label)),
        "untouched (control)": (unchanged, network.head),
    }
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {torch.get_num_threads()} threads, {versions()}\n")
    print(f"{arguments.forget} forgotten, d = {x.shape[1]}. Reading {len(y):,} + {len(y_test):,} images: "
          f"{network.seconds:.0f} s\n")  # fmt: skip
    reports: dict[str, RetentionReport] = {}
    times = {}
    for number, (name, (eraser, own)) in enumerate(variants.items()):
        with torch.no_grad():
            versions_of = [{"original": f, "erased": eraser(f)} for f in (x, x_test)]
            logits = {
                "original": (network.head(x), network.head(x_test)),
                "erased": (own(versions_of[0]["erased"]), own(versions_of[1]["erased"])),
            }
        wall, processor = time.perf_counter(), time.process_time()
        names = network.model.config.id2label
        reports[name] = audit_features(
            versions_of[0],
            y,
            versions_of[1],
            y_test,
            label,
            reference=None if number else network.unseen,
            options=AuditOptions(identities=True, attacks=arguments.attacks, seeds=arguments.seeds)
            if not number
            else None,
            logits=logits,
            extras=AuditExtras(class_names={int(c): names[int(c)].partition(",")[0] for c in y_test.unique()}),
        )
        times[name] = (time.perf_counter() - wall, time.process_time() - processor)
        if arguments.output:
            folder = arguments.output / str(number)
            reports[name].figures(folder)
            reports[name].to_json(folder / "report.json")
    summary(reports, times)
    print(f"\nPeak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB\n")
    print(next(iter(reports.values())).to_markdown(3))


def summary(reports: dict[str, RetentionReport], times: dict[str, tuple[float, float]]) -> None:
    """One row for each variant and the original."""
    columns = ("converged", "paper", "head")
    cells = [f"{key} {name}" for key in columns for name in ("D_ft", "D_rt")]
    print("| | " + " | ".join(cells) + " | strongest attack | its recall (false alarms) | wall s | CPU s |")
    print("|---|" + "---:|" * len(cells) + "---|---:|---:|---:|")
    first = next(iter(reports.values()))
    row = [f"{first.score(key, name).original:.1f}" for key in columns for name in ("D_ft", "D_rt")]
    print("| original | " + " | ".join(row) + " | | | | |")
    for name, report in reports.items():
        row = [f"{report.score(key, score).value:.1f}" for key in columns for score in ("D_ft", "D_rt")]
        worst = report.worst_case
        alarms = report.score("worst_case", "false_alarms", worst.group).value
        row += [worst.group, f"{worst.value:.1f} ({alarms:.1f})", *(f"{seconds:.0f}" for seconds in times[name])]
        print(f"| {name} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
