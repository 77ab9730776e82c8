"""What a downloader finds: the white-box battery on many networks, one JSON file each, and one line each of a table.

    python benchmarks/weights.py --train A.parquet B.parquet --test T.parquet --forget deer --output results \
        --original FOLDER --references FOLDER ... --audited FOLDER ... [--import examples/cifar_resnet20.py] \
        [--device cuda] [--part 0/4]

Folders hold checkpoints that `ErasedModel.from_pretrained` loads. A network whose file is complete is not attacked again:
a run that was stopped goes on. Several processes (`--part 0/4` to `--part 3/4`) share the networks of one device. Every run
prints the table of the files that there are. Each network also stands beside the level of the references at its own R.
The attacker who regrows keeps of each network what its own record says was kept, else the lower third.
"""

from __future__ import annotations

import argparse
import json
import logging
import runpy
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset

from hf_kd import ErasedModel
from hf_kd.audit.sections.weight_access import idi
from hf_kd.audit.weight_access import last_kept
from hf_kd.audit.whitebox.battery import ATTACKS, run_battery
from hf_kd.audit.whitebox.findings import NetworkFindings
from hf_kd.audit.whitebox.images import MOST_IMAGES, white_box_images
from hf_kd.audit.whitebox.network import Network, WhiteBoxData
from hf_kd.features.reader import ReadOptions
from hf_kd.metrics.equal_accuracy import level_at

COLUMNS = (
    "network", "head F/R", "BN 2,000 F/R", "tap F/R", "AUC", "10 labels", "50 labels", "strongest F/R", "where",
    "level at R", "IDI", "row at 1 %", "two-sided", "area 5/50/500", "steps to 50 %", "retained", "regrown", "minutes",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", required=True)
    parser.add_argument("--test", nargs="+", required=True)
    parser.add_argument("--forget", required=True, help="name of the label")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--original", type=Path)
    parser.add_argument("--references", type=Path, nargs="*", default=[])
    parser.add_argument("--audited", type=Path, nargs="*", default=[])
    parser.add_argument("--import", dest="imports", type=Path, nargs="*", default=[])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--attacks", nargs="*", choices=[attack.name for attack in ATTACKS])
    parser.add_argument("--most-train", type=int, default=MOST_IMAGES["train"])
    parser.add_argument("--most-test", type=int, default=MOST_IMAGES["test"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="0/1", help="I/N: the I-th of N processes")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for file in arguments.imports:
        runpy.run_path(str(file))
    networks = _networks(arguments)
    arguments.output.mkdir(parents=True, exist_ok=True)
    part, parts = map(int, arguments.part.split("/"))
    torch.set_num_threads(max(1, torch.get_num_threads() // parts))
    data = _data(arguments)
    shared: dict[str, WhiteBoxData] = {}
    for number, (name, folder) in enumerate(networks.items()):
        if number % parts == part:
            _attack(name, folder, data, arguments, shared)
    print(table(arguments.output, networks, arguments))


def _networks(arguments: argparse.Namespace) -> dict[str, Path]:
    """By the name of their folder; those of one name get their parent's too."""
    folders = [*([arguments.original] if arguments.original else []), *arguments.references, *arguments.audited]
    names = [folder.name for folder in folders]
    return {
        folder.name if names.count(folder.name) == 1 else f"{folder.parent.name}-{folder.name}": folder
        for folder in folders
    }


def _data(arguments: argparse.Namespace) -> dict[str, Any]:
    files = {"train": arguments.train, "test": arguments.test}
    return dict(load_dataset("parquet", data_files=files))


def _attack(
    name: str, folder: Path, data: dict[str, Any], arguments: argparse.Namespace, shared: dict[str, WhiteBoxData]
) -> None:
    file = arguments.output / f"{name}.json"
    done = NetworkFindings.from_dict(json.loads(file.read_text())) if file.is_file() else NetworkFindings()
    wanted = [attack.name for attack in ATTACKS if arguments.attacks is None or attack.name in arguments.attacks]
    if all(attack in done.seconds for attack in wanted):
        return
    model = ErasedModel.from_pretrained(folder).to(arguments.device)
    images = _images(model, data, arguments, shared)
    names = _names(data)
    for attack in wanted:  # saved after each, for who is stopped
        done = run_battery(
            {name: Network.of(model, names, last_kept(model))},
            images,
            attacks=[attack],
            found={name: done},
            seed=arguments.seed,
        )[name]
        part = file.with_suffix(".part")
        part.write_text(json.dumps(done.to_dict()))
        part.replace(file)


def _names(data: dict[str, Any]) -> dict[int, str]:
    """Of the class ids of the data set."""
    column = next(c for c in data["train"].features if "label" in c)
    return dict(enumerate(data["train"].features[column].names))


def _images(
    model: ErasedModel, data: dict[str, Any], arguments: argparse.Namespace, shared: dict[str, WhiteBoxData]
) -> WhiteBoxData:
    """In the class ids of the data set; networks with the same preprocessing share them."""
    key = str(model.processor.to_dict())
    if key not in shared:
        names = _names(data)
        column = next(c for c in data["train"].features if "label" in c)
        labels = {split: torch.tensor(data[split][column]) for split in data}
        forget = [label for label, name in names.items() if name == arguments.forget]
        if not forget:
            raise SystemExit(f"No label {arguments.forget!r}; there are {', '.join(names.values())}.")
        shared[key] = white_box_images(
            model,
            data,
            labels,
            {split: torch.ones_like(own, dtype=torch.bool) for split, own in labels.items()},
            forget,
            ReadOptions(progress=False),
            {"train": arguments.most_train, "test": arguments.most_test},
        )
    return shared[key]


def table(output: Path, networks: dict[str, Path], arguments: argparse.Namespace) -> str:
    """Markdown, a line for each network whose file is there."""
    found = {
        name: NetworkFindings.from_dict(json.loads((output / f"{name}.json").read_text()))
        for name in networks
        if (output / f"{name}.json").is_file()
    }
    by_folder = {folder: name for name, folder in networks.items()}
    original = found.get(by_folder.get(arguments.original, ""))
    references = {by_folder[f]: found[by_folder[f]] for f in arguments.references if by_folder[f] in found}
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for name, own in found.items():
        lines.append("| " + " | ".join(_cells(name, own, original, references)) + " |")
    return "\n".join(lines)


def _cells(
    name: str, own: NetworkFindings, original: NetworkFindings | None, references: dict[str, NetworkFindings]
) -> list[str]:
    profile = list(own.profile().values())
    few = [own.best_of("linear", labels) for labels in ("10", "50")]
    others = {other: found for other, found in references.items() if other != name}
    points = [point for found in others.values() if (point := found.level()) is not None]
    level = level_at(own.level()[0], points) if own.level() and points else None
    compared = idi({"erased": own, "original": original, "reference": next(iter(references.values()))}) if (
        original and references
    ) else None  # fmt: skip
    removal = {result.name: result for result in own.removal}
    best, row = own.best, own.class_row
    return [
        name,
        _pair(own.answers[0] if own.answers else None),
        _pair(own.answers[-1] if len(own.answers) > 1 else None),
        _pair(profile[-1] if profile else None),
        _number(profile[-1].auc if profile else None),
        *(_number(one and one.recall_forget) for one in few),
        _pair(best),
        "-" if best is None else f"{best.name}, {best.settings['block']}",
        "-" if level is None else level.reason or f"{level.level:.1f}" + (f" ± {level.sd:.1f}" if level.sd else ""),
        "-" if compared is None or compared.idi is None else f"{compared.idi:.2f} ± {compared.sd:.2f}",
        _number(row and row.recall_forget),
        _number(row and row.settings["auroc_of_logit"]),
        "/".join(f"{curve.area:.3f}" for curve in own.relearning) or "-",
        "/".join(_number(curve.steps_to_half, 0) for curve in own.relearning) or "-",
        _pair(removal.get("5 epochs on retained images")),
        _pair(own.regrown),
        f"{sum(own.seconds.values()) / 60:.1f}",
    ]


def _pair(result: Any) -> str:
    return "-" if result is None else f"{result.recall_forget:.1f}/{result.accuracy_retain:.1f}"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
