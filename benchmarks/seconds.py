"""What erasing and auditing cost: processor seconds for 1,000 images, the table of the README.

    OMP_NUM_THREADS=1 python benchmarks/seconds.py --model FOLDER --data FOLDER --forget LABEL [--limit N] [--import FILE]

FOLDER of --data holds train.parquet and test.parquet with an image and a label column; --limit draws so many training
images, and half as many test images, for the audit. Opening the model and the data is not counted; decoding is.
"""

from __future__ import annotations

import argparse
import runpy
import time
from pathlib import Path

from hf_kd import ErasedModel, ReadOptions
from hf_kd.data.labels import resolve_forget_labels
from hf_kd.data.load import filter_by_labels, load_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--forget", required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--import", dest="imports", action="append", default=[])
    arguments = parser.parse_args()
    for file in arguments.imports:
        runpy.run_path(file)
    train, test = (load_source(arguments.data / f"{split}.parquet") for split in ("train", "test"))
    forget = filter_by_labels(train, "label", resolve_forget_labels([arguments.forget], train.features["label"].names))
    reading = ReadOptions(limit=arguments.limit, limit_test=arguments.limit and arguments.limit // 2, progress=False)
    model = ErasedModel.from_pretrained(arguments.model).eval()
    millions = sum(p.numel() for p in model.parameters()) / 1e6

    started = time.process_time()
    model.erase(forget, progress=False)
    erased = time.process_time()
    model.audit(train, test, reading=reading, progress=False)
    audited = time.process_time()
    read = min(len(train), reading.limit or len(train)) + min(len(test), reading.limit_test or len(test))
    print(f"{millions:.2f} M parameters, d = {model.taps[0].dim}")
    for what, seconds, images in (("erase", erased - started, len(forget)), ("audit", audited - erased, read)):
        print(f"{what}: {seconds:.1f} s for {images:,} images, {1000 * seconds / images:.1f} s for 1,000")


if __name__ == "__main__":
    main()
