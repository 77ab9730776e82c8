"""Every change of weights of a bench file, read as the network is and with its BatchNorm statistics taken anew.

    python benchmarks/recalibrated.py benchmarks/real/resnet20-deer.yaml --import examples/cifar_resnet20.py \
        --output results [--only LABEL ...] [--skip LABEL ...] [--images N] [--retained]

A method that leaves the statistics of BatchNorm behind its weights may look as if it had forgotten, until somebody runs
2,000 unlabelled images through the network. One JSON line a row (one seed) in OUTPUT/recalibrated.jsonl, then the table:
F, recall of the forgotten test images, and R, accuracy on the others, of the head and of a converged linear probe at the
last block, before and after; recall of the class at 1 % false alarms under the best constant added to its logit;
selectivity, the area under the ROC curve of that logit alone (below 50: pushed under those of the others). --retained
takes the statistics from images of the other classes alone. A row that is there is not run again: another OUTPUT for other
images.
"""

from __future__ import annotations

import argparse
import json
import runpy
import time
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from torch import Tensor

from hf_kd import ErasedModel, unlearn
from hf_kd.audit.whitebox.answers import head_answers
from hf_kd.audit.whitebox.class_row import SHOTS, class_row_attack
from hf_kd.audit.whitebox.images import white_box_images
from hf_kd.audit.whitebox.network import Network, WhiteBoxData, recalibrated, with_rows
from hf_kd.audit.whitebox.probes import linear_attack
from hf_kd.audit.whitebox.reading import read_blocks
from hf_kd.bench.config import Experiment, Row, read_config
from hf_kd.features.reader import ReadOptions
from hf_kd.metrics.attack_data import AttackResult, AuditData
from hf_kd.metrics.scores import area_under_roc

READ = {"train": 10_000, "test": 5_000}
"""Images that are read at most; drawn with all forgotten ones among them where these are few."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--import", dest="imports", type=Path, nargs="*", default=[])
    parser.add_argument("--only", nargs="*", default=[], help="labels of rows")
    parser.add_argument("--skip", nargs="*", default=[], help="labels of rows")
    parser.add_argument("--images", type=int, default=2000, help="unlabelled images to take the statistics anew from")
    parser.add_argument("--retained", action="store_true", help="of the other classes alone")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for file in arguments.imports:
        runpy.run_path(str(file))
    (experiment,) = read_config(arguments.config)
    arguments.output.mkdir(parents=True, exist_ok=True)
    file = arguments.output / "recalibrated.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    model = ErasedModel.from_pretrained(experiment.model)
    data, forget = _images(experiment, model)
    candidates = torch.nonzero(~data[0].train_forget) if arguments.retained else torch.arange(len(data[0].train))
    images = candidates.flatten()[: arguments.images]
    rows = {row.label: row for row in experiment.rows if row.kind in ("original", "weights")}
    if strange := [label for label in (*arguments.only, *arguments.skip) if label not in rows]:
        raise SystemExit(f"{strange[0]!r} is no row of weights in {arguments.config}: {'; '.join(rows)}")
    for label in arguments.only or rows:
        if label in arguments.skip:
            continue
        row = rows[label]
        if row.label not in {each["row"] for each in done}:
            started = time.time()
            network = (
                model.inner if row.kind == "original" else _changed(row, experiment, model, forget, arguments.seed)
            )
            seconds = time.time() - started
            found = {"row": row.label, "seed": arguments.seed, "seconds": round(seconds, 1)}
            found |= read(
                Network.of(ErasedModel.from_model(network, model.processor), data[1]), data[0], images, arguments.seed
            )
            done.append(found)
            with file.open("a") as lines:
                lines.write(json.dumps(found) + "\n")
            print(json.dumps(found), flush=True)
    print(table(done))


def _images(experiment: Experiment, model: ErasedModel) -> tuple[tuple[WhiteBoxData, dict[int, str]], tuple[Any, Any]]:
    """What networks are read on, with the names of the classes, and the forgotten and retained training images."""
    folder = Path(experiment.dataset["name"])
    data = load_dataset("parquet", data_files={split: str(folder / f"{split}.parquet") for split in READ})
    names = dict(enumerate(data["train"].features["label"].names))
    forget = [label for label, name in names.items() if name in experiment.protocol["forget"]]
    labels = {split: torch.tensor(own["label"]) for split, own in data.items()}
    everything = {split: torch.ones_like(own, dtype=torch.bool) for split, own in labels.items()}
    read = white_box_images(model, dict(data), labels, everything, forget, ReadOptions(progress=False), READ)
    parts = [
        torch.nonzero(torch.isin(labels["train"], torch.tensor(forget)) == mine).flatten() for mine in (True, False)
    ]
    return (read, names), tuple(data["train"].select(rows.tolist()) for rows in parts)


def _changed(row: Row, experiment: Experiment, model: ErasedModel, images: tuple[Any, Any], seed: int) -> Any:
    forget, retain = images
    reading = ReadOptions(mixed_precision=experiment.train_precision, progress=False)
    return unlearn(
        model, forget, row.name, retain=retain, reading=reading, allow_unrecognised=True, **row.settings(seed)
    )


def read(network: Network, data: WhiteBoxData, images: Tensor, seed: int = 0) -> dict[str, Any]:
    """Head, probe and the class's row of one network, as it is and recalibrated on these rows of the training images."""
    found: dict[str, Any] = {}
    for state, own in (("as it is", network), ("recalibrated", recalibrated(network, data.train.rows(images)))):
        train, test = (features.pooled for features in read_blocks(own, data))
        last = list(train)[-1]
        probe = linear_attack(
            AuditData.of(train[last], data.train.labels, test[last], data.test.labels, data.forget), seed
        )
        opened, _ = with_rows(own, data, data.shots(SHOTS, seed))
        logit = opened.class_logits(data.test, data.classes)[:, data.forget_columns].amax(dim=1)
        found[state] = {
            "head": _pair(head_answers(own, data)),
            "probe": _pair(probe),
            "row": round(class_row_attack(own, data, seed).recall_forget, 2),
            "selectivity": round(area_under_roc(logit, data.test_forget), 2),
        }
    return found


def _pair(result: AttackResult) -> list[float]:
    return [round(result.recall_forget, 2), round(result.accuracy_retain, 2)]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; each cell as the network is, then recalibrated."""
    lines = ["| | head F/R | head F/R, recalibrated | probe F/R | probe F/R, recalibrated | row at 1 % | selectivity |"]
    lines += ["|---" + "|---:" * 6 + "|"]
    for found in rows:
        before, after = found["as it is"], found["recalibrated"]
        cells = ["/".join(f"{part:.1f}" for part in own[what]) for what in ("head", "probe") for own in (before, after)]
        cells += [f"{before[what]:.1f}, {after[what]:.1f}" for what in ("row", "selectivity")]
        lines.append(f"| {found['row']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
