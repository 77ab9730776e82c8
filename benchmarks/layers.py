"""Below the tap on real networks: the layer profile of a model that forgot one class by ESC, and Grad-CAM maps.

    OMP_NUM_THREADS=2 python benchmarks/layers.py --weights DIR --data DIR [--forget cat] [--k 1] --output DIR

--weights and --data as in benchmarks/audit.py. Prints the profile as Markdown; --output gets layer_profile.png and
grad_cam.png, which shows images of the data.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from audit import example, parquet
from hf_kd import AuditOptions, ErasedModel
from hf_kd.audit.hidden_states import grad_cam
from hf_kd.data.labels import resolve_forget_labels
from hf_kd.data.load import filter_by_labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--forget", default="cat")
    parser.add_argument("--k", type=int)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if (arguments.weights / "config.json").exists():
        model = ErasedModel.from_pretrained(arguments.weights)
    else:
        model = ErasedModel.from_model(*example().load(arguments.weights))
    train, test = (parquet(arguments.data, split) for split in ("train", "test"))
    ids = resolve_forget_labels([arguments.forget], train.features["label"].names)
    options = {} if arguments.k is None else {"k": arguments.k}
    model.erase(filter_by_labels(train, "label", ids), progress=False, **options)
    started = time.perf_counter()
    asked = AuditOptions(layer_profile=True, attacks=["linear"], draws=1, shots=[1])
    report = model.audit(train, test, options=asked, progress=False)
    print(f"{arguments.forget} forgotten by ESC, k = {model.erasures[0].k}; {time.perf_counter() - started:.0f} s\n")
    print("| layer | d | D_ft | D_rt | recall - false alarms |")
    print("|---|---:|---:|---:|---:|")
    for layer, scores in report.section("layer_profile").rows().items():
        cells = [f"{score.original:.1f}" for score in scores]
        if layer == "tap":
            cells = [f"{score.original:.1f} -> {score.value:.1f}" for score in scores]
        print(f"| {layer} | {scores[0].settings['d']} | {' | '.join(cells)} |")
    report.figures(arguments.output)
    grad_cam(model, test, arguments.output / "grad_cam.png")


if __name__ == "__main__":
    main()
