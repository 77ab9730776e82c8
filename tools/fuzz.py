"""Mutate saved models, and fail on one that loads and does not act as its records say, on a raw error, on a hang.

    python tools/fuzz.py [--seed 0] [--count 5000] [--start 0] [--minutes 20] [--only NUMBER] [--old] [--keep FOLDER]

The folders that are mutated are those of `tests/saved_0_1_0` and models of today, saved in the same ways. A mutation is
named by seed and number: `--seed S --only N` does the same one again and prints what is found.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from tests.helpers import fuzz
from tests.helpers.fuzz_models import new_bases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--only", type=int)
    parser.add_argument("--old", action="store_true", help="the folders of 0.1.0 only")
    parser.add_argument("--keep", type=Path, help="where models of today are kept between runs")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    stop = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as place:
        bases = fuzz.old_bases() + ([] if given.old else new_bases(given.keep or Path(place) / "new"))
        for base in bases:
            base.learn()
        numbers = [given.only] if given.only is not None else range(given.start, given.start + given.count)
        results: list[fuzz.Result] = []

        def until_late():
            for number in numbers:
                if time.monotonic() > stop:
                    print(f"Stopped after {given.minutes:g} minutes, before mutation {number}.")
                    return
                yield number

        def tell(result: fuzz.Result) -> None:
            results.append(result)
            if result.is_fault or given.verbose or given.only is not None:
                print(f"{result.outcome}: {result.base} by {result.way}: {result.mutation}\n    {result.found}")
                old = " --old" if given.old else ""
                print(f"    python tools/fuzz.py{old} --seed {given.seed} --only {result.number}", flush=True)

        fuzz.run(given.seed, until_late(), bases, Path(place), tell)
    print(fuzz.summary(results))
    slowest = max(results, key=lambda result: result.seconds)
    print(f"slowest: {slowest.seconds:.1f} s, number {slowest.number}")
    return int(any(result.is_fault for result in results))


if __name__ == "__main__":
    sys.exit(main())
