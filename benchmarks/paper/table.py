"""The paper's tables beside what was measured here, as Markdown: `python benchmarks/paper/table.py RESULTS/results.jsonl`.

RESULTS is the output of `hf-kd bench benchmarks/real/allcnn.yaml`. Published numbers are those of the paper's Table 1,
CIFAR-10 and All-CNN, as far as they were at hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

PUBLISHED: dict[str, tuple[str, str]] = {
    "original": ("3.1 / 24.3", "-"),
    "esc": ("93.4 / 87.4", "94.4 / 89.1"),
    "esc-t": ("98.6 / 92.5", "-"),
    "neggrad": ("93.8 / 85.4", "-"),
    "lau": ("96.2 / 90.3", "-"),
    "fisher": ("97.7 / 89.4", "-"),
    "salun": ("99.4 / 92.9", "-"),
    "retrain": ("98.4 / 92.5", "72.9 / 67.0"),
}
"""HM / HM_t of the model's own head, and of the paper's probe."""
HEADS = (
    "head HM/HM_t, published",
    "head HM/HM_t",
    "paper's probe HM/HM_t, published",
    "paper's probe HM/HM_t",
    "converged D_ft/D_rt",
    "head D_ft/D_rt",
    "MIA",
    "seeds",
)


def main(file: Path) -> None:
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["status"] == "ok":
            rows.setdefault(record["experiment"], {}).setdefault(record["row"], []).append(record["scores"])
    for experiment, found in sorted(rows.items()):
        first = experiment == "table-1"
        heads = HEADS if first else tuple(head for head in HEADS if "published" not in head)
        print(f"\n### {experiment}\n\n| | {' | '.join(heads)} |\n|---|{'---:|' * len(heads)}")
        for label, scores in found.items():
            own = [_pair(scores, "HM", "HM_t"), _pair(scores, "KR_paper HM", "KR_paper HM_t")]
            if first:
                known = PUBLISHED.get(label, ("-", "-"))
                own = [known[0], own[0], known[1], own[1]]
            own += [_pair(scores, *keys) for keys in (("KR D_ft", "KR D_rt"), ("D_ft", "D_rt"), ("MIA",))]
            own.append(str(len(scores)))
            print(f"| {label} | {' | '.join(own)} |")


def _pair(scores: list[dict[str, Any]], *keys: str) -> str:
    return " / ".join(f"{mean(one[key] for one in scores):.1f}" for key in keys)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
