"""The audit on a real network: CIFAR ResNet-20, one class forgotten by ESC and ESC-T, beside controls that forget nothing.

    OMP_NUM_THREADS=2 python benchmarks/audit.py --weights RESNET20_DIR --data CIFAR10_DIR [--unseen IMAGENETTE_DIR]
        [--forget cat] [--k 1] [--output DIR]

--weights and --data as in examples/cifar_resnet20.py. --unseen is a folder with a train.parquet of classes the network was
never trained on; images are scaled to 32 px. Features are read in one pass; wall and processor time of every audit are
without that pass. Prints Markdown; with --output the reports and their figures are kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hf_kd import ESC, ESCT, ErasedModel, SecondMoment
from hf_kd.audit import RetentionReport, audit_features
from hf_kd.configuration import versions
from hf_kd.measuring import read_features

UNSEEN = ("tench", "cassette player", "church", "French horn", "golf ball")
"""Classes of imagenette that CIFAR-10 has no like of."""


def example():
    """The example that wraps the network, imported from its file."""
    path = Path(__file__).resolve().parents[1] / "examples" / "cifar_resnet20.py"
    spec = importlib.util.spec_from_file_location("cifar_resnet20", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["cifar_resnet20"] = module
    spec.loader.exec_module(module)
    return module


def unseen_features(model: ErasedModel, folder: Path) -> tuple[Tensor, Tensor]:
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files=str(folder / "train.parquet"), split="train")
    names = rows.features["label"].names
    wanted = [number for number, name in enumerate(names) if name.partition(",")[0] in UNSEEN]
    if not wanted:
        raise SystemExit(f"None of {UNSEEN} among {names}")
    rows = rows.filter(lambda label: label in wanted, input_columns="label")
    rows = rows.map(lambda row: {"image": row["image"].convert("RGB").resize((32, 32))})
    read = read_features(model, rows, own_labels=True)
    return read.before[0], read.labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--unseen", type=Path)
    parser.add_argument("--forget", default="cat")
    parser.add_argument("--k", type=int, default=1)
    parser.add_argument("--attacks", default="standard")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    from datasets import load_dataset

    network = example()
    started = time.perf_counter()
    model = ErasedModel.from_model(*network.load(arguments.weights))
    files = {split: str(arguments.data / f"{split}.parquet") for split in ("train", "test")}
    data = load_dataset("parquet", data_files=files)
    train, test = (read_features(model, data[split]) for split in ("train", "test"))
    unseen = unseen_features(model, arguments.unseen) if arguments.unseen else None
    pass_seconds = time.perf_counter() - started
    label = network.CIFAR10.index(arguments.forget)
    x, y, x_test, y_test = train.before[0], train.labels, test.before[0], test.labels
    head = model.inner.linear

    moment = SecondMoment(x.shape[1])
    moment.update(x[y == label])
    silenced = torch.nn.Linear(64, 10)
    silenced.load_state_dict(head.state_dict())
    with torch.no_grad():
        silenced.weight[label], silenced.bias[label] = 0.0, float("-inf")
    unchanged = torch.nn.Identity()
    variants = {
        f"ESC, k = {arguments.k}": (ESC(k=arguments.k).fit(moment), head),
        "ESC-T": (ESCT().fit(x[y == label], y[y == label], head), head),
        "head surgery (control)": (unchanged, silenced),
        "untouched (control)": (unchanged, head),
    }
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {torch.get_num_threads()} threads, {versions()}\n")
    print(f"Reading {len(y):,} + {len(y_test):,} images: {pass_seconds:.0f} s\n")
    reports: dict[str, RetentionReport] = {}
    times = {}
    for number, (name, (eraser, own)) in enumerate(variants.items()):
        with torch.no_grad():
            versions_of = [{"original": f, "erased": eraser(f)} for f in (x, x_test)]
            logits = {
                "original": (head(x), head(x_test)),
                "erased": (own(versions_of[0]["erased"]), own(versions_of[1]["erased"])),
            }
        wall, processor = time.perf_counter(), time.process_time()
        reports[name] = audit_features(
            versions_of[0],
            y,
            versions_of[1],
            y_test,
            label,
            logits=logits,
            attacks=arguments.attacks,
            unseen=None if number else unseen,
            class_names=dict(enumerate(network.CIFAR10)),
        )
        times[name] = (time.perf_counter() - wall, time.process_time() - processor)
        if arguments.output:
            folder = arguments.output / str(number)
            reports[name].figures(folder)
            reports[name].to_json(folder / "report.json")
    summary(reports, times)
    first = next(iter(reports.values()))
    print(f"\nPeak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB\n")
    print(replace(first, class_names={label: arguments.forget}).to_markdown(3))


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
