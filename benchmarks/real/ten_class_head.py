"""Give a network the ten classes of a data set: a converged linear head on its frozen features, saved as a stock checkpoint.

python benchmarks/real/ten_class_head.py --weights MOBILENET_V2 --data imagenette --output mobilenet10 [--size 128]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForImageClassification

from hf_kd import ErasedModel
from hf_kd.data.load import load_source
from hf_kd.features.reader import ImageReader
from hf_kd.metrics.linear_probe import fit_linear_probe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("weights", "data", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument(
        "--size", type=int, help="pixels of the middle square that is read, in place of the processor's"
    )
    arguments = parser.parse_args()
    train, test = (load_source(arguments.data, split=split) for split in ("train", "test"))
    names = [name.partition(",")[0] for name in train.features["label"].names]
    model = ErasedModel.from_pretrained(arguments.weights)
    if arguments.size:
        model.processor.size = {"shortest_edge": round(arguments.size * 8 / 7)}
        model.processor.crop_size = {"height": arguments.size, "width": arguments.size}
    read = [ImageReader(model, part).read(own_labels=True) for part in (train, test)]
    probe = fit_linear_probe(read[0].before[0], read[0].labels)
    stock = AutoModelForImageClassification.from_pretrained(
        arguments.weights,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: label for label, name in enumerate(names)},
        ignore_mismatched_sizes=True,
    )
    head = stock.get_submodule(model.taps[0].heads[0])
    linear = next(module for module in head.modules() if isinstance(module, torch.nn.Linear))
    with torch.no_grad():
        linear.weight.copy_(probe.weight.T)
        linear.bias.copy_(probe.bias)
    stock.save_pretrained(arguments.output)
    model.processor.save_pretrained(arguments.output)
    hits = [float((probe.predict(part.before[0]) == part.labels).double().mean()) for part in read]
    print(f"{len(names)} classes, d = {linear.in_features}: train {hits[0]:.1%}, test {hits[1]:.1%}")


if __name__ == "__main__":
    main()
