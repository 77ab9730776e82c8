"""An eraser beside a public base: two services load the same base, and one of them forgets.

    python examples/eraser_beside_base.py [--base MODEL --dataset DATA --forget-label LABEL] [--output FOLDER]

Without a base a small one is trained here, on handwritten digits; no network is needed. The eraser is saved on its own. Put
on the base again it gives the same answers; on a base that was trained since it is refused. It is a layer for a service,
not a removal: whoever has the base has the original model.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from hf_kd import ErasedModel
from hf_kd.cli.demo.run import digits, train_classifier
from hf_kd.data.labels import resolve_forget_labels
from hf_kd.data.load import filter_by_labels, load_source
from hf_kd.errors import InvalidValueError
from hf_kd.model.verify import verify


def own_base(folder: Path) -> tuple[str, Dataset]:
    """A classifier of digits in a folder, and images of all digits."""
    images, _ = digits()
    model, processor = train_classifier(images)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder), images


def kilobytes(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1000:,.0f} kB"


def logits(model: Any, images: Dataset) -> torch.Tensor:
    inputs = model.processor([image.convert("RGB") for image in images[:16]["image"]], return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="Hub id or folder; trained here without it")
    parser.add_argument("--dataset", help="as for hf-kd erase")
    parser.add_argument("--forget-label", default="three")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if (given.base is None) != (given.dataset is None):
        parser.error("give --base and --dataset, or neither")
    with tempfile.TemporaryDirectory() as place:
        out = given.output or Path(place)
        base, images = own_base(out / "base") if given.base is None else (given.base, load_source(given.dataset))
        ids = resolve_forget_labels([given.forget_label], images.features["label"].names)
        forget = filter_by_labels(images, "label", ids)

        model = ErasedModel.from_pretrained(base).erase(forget, progress=False)
        model.save_eraser(out / "eraser")
        model.save_pretrained(out / "whole")
        print(f"the eraser: {kilobytes(out / 'eraser')}; the whole model: {kilobytes(out / 'whole')}")

        service = ErasedModel.from_pretrained(base, eraser=out / "eraser")
        whole = ErasedModel.from_pretrained(out / "whole")
        print(f"the same answers, bit for bit: {torch.equal(logits(service, forget), logits(whole, forget))}")
        print(f"verified on its base: {verify(out / 'eraser', base=base).ok}")

        plain = ErasedModel.from_pretrained(base)  # what another service loads, and everybody can
        for name, each in (("with the eraser", service), ("the base without it", plain)):
            answers = [each.config.id2label[int(c)] for c in logits(each, forget).argmax(dim=1)]
            print(f"{name}: {answers.count(given.forget_label)} of {len(answers)} called {given.forget_label}")

        next(plain.inner.parameters()).data.add_(1e-3)  # trained since
        try:
            plain.load_eraser(out / "eraser")
        except InvalidValueError as error:
            print(f"on another base: {error}")


if __name__ == "__main__":
    main()
