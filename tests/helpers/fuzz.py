"""Saved folders are mutated, loaded, and compared with what their records say; the only good refusal is one in words.

A mutation is named by the seed and its number: the same two give the same one again.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import pickle  # noqa: TID251  (to see that nobody loads one)
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from hf_kd import ErasedModel
from hf_kd.data.paths import ERASER_CONFIG
from hf_kd.errors import HfKdError
from hf_kd.features.taps.intervention import Constant, depending_fields, leaking_fields
from hf_kd.hub.files import ERASER_WEIGHTS, is_eraser
from hf_kd.model.verify import verify
from tests.helpers.mutations import CONFIG, INDEX, RECEIPT, WEIGHTS, mutate

OLD = Path(__file__).resolve().parents[1] / "saved_0_1_0"
SOURCE = f"{os.sep}hf_kd{os.sep}"
SECONDS = 30
"""Longest time that a load may take."""
TEXT = ("input_ids", "attention_mask")
MASKED = -1e3
"""Logits of classes that are never answered lie below."""


class Wrong(Exception):
    """A folder that loaded and does not act as its records say."""


class Slow(BaseException):
    """No answer within `SECONDS`; no handler of errors catches it."""


@dataclass
class Base:
    """A saved folder as it was, and what it answers."""

    folder: Path
    inputs: dict[str, torch.Tensor]
    pictures: list[Image.Image] | None
    auto: str
    answers: dict[str, torch.Tensor] = field(default_factory=dict)
    erasers: list[torch.Tensor] = field(default_factory=list)
    says: dict[str, Any] = field(default_factory=dict)
    pixels: torch.Tensor | None = None
    stands_on: Path | None = None
    """Of an eraser on its own: its base."""

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / config_name(self.folder)).read_text(encoding="utf-8"))

    @property
    def donor(self) -> Path:
        """The folder under the names of a whole model, by which mutations know files."""
        if self.stands_on is None:
            return self.folder
        place = self.folder.with_name(f"{self.folder.name}-renamed")
        if not place.exists():
            renamed(shutil.copytree(self.folder, place))
        return place

    @property
    def covers_processor(self) -> bool:
        """Whether the receipt lists the processor; those of 0.1.0 do not."""
        receipt = self.folder / RECEIPT
        return receipt.is_file() and json.loads(receipt.read_text(encoding="utf-8"))["schema_version"] >= 2

    def learn(self) -> Base:
        model = self.load(self.folder).eval()
        self.answers, self.erasers, self.says = answers(model, self.inputs), acts(model), says(model)
        self.pixels = seen(model.processor, self.pictures)
        return self

    def load(self, folder: Path) -> ErasedModel:
        if self.stands_on is None:
            return ErasedModel.from_pretrained(str(folder))
        return ErasedModel.from_pretrained(str(self.stands_on), eraser=str(folder))


NAMES = {ERASER_CONFIG: CONFIG, ERASER_WEIGHTS: WEIGHTS}
"""Files of an eraser on its own, and which of a whole model they are like."""


def renamed(folder: Path, back: bool = False) -> Path:
    """An eraser's files under the names of a whole model's, or back again."""
    for own, whole in NAMES.items():
        old, new = (whole, own) if back else (own, whole)
        if os.path.lexists(folder / old):
            os.rename(folder / old, folder / new)
    return folder


def config_name(folder: Path) -> str:
    return ERASER_CONFIG if is_eraser(path.name for path in folder.iterdir()) else CONFIG


def old_bases() -> list[Base]:
    found = []
    for path in sorted(OLD.glob("*/config.json")):
        saved = load_file(path.parent / "expected.safetensors")
        auto = json.loads((path.parent / "expected.json").read_text(encoding="utf-8"))["auto"]
        inputs = {name: saved[name] for name in ("pixel_values", "input_ids") if name in saved}
        pictures = [Image.fromarray(pixels.numpy()) for pixels in saved["images"]]
        found.append(Base(path.parent, inputs, pictures, auto))
    return found


@torch.no_grad()
def answers(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    dtype = next(model.parameters()).dtype
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    return {name: value for name, value in model(**inputs).items() if isinstance(value, torch.Tensor)}


@torch.no_grad()
def acts(model: Any) -> list[torch.Tensor]:
    """What each eraser makes of the same features."""
    sites = [*model.sites, *model.text_sites]
    rows = [torch.randn(5, site.tap.dim, generator=torch.Generator().manual_seed(0)) for site in sites]
    return [row if site.eraser is None else site.eraser(row) for site, row in zip(sites, rows, strict=True)]


def says(model: Any) -> dict[str, Any]:
    config = model.config
    return {
        "records": [{k: v for k, v in record.to_dict().items() if k != "versions"} for record in model.erasures],
        "masked": sorted(config.masked),
        "labels": dict(config.id2label or {}),
        "classes": dict(model.class_names),
    }


def seen(processor: Any, pictures: list[Image.Image] | None) -> torch.Tensor | None:
    """What the processor makes of pictures; None where it does not work, which it says when it is asked."""
    if processor is None or pictures is None:
        return None
    try:
        return processor(pictures, return_tensors="pt")["pixel_values"]
    except Exception:
        return None


def equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(equal(found[name], expected[name]) for name in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(equal, found, expected))
    if found is None or expected is None:
        return found is expected
    if found.shape != expected.shape:
        return False
    a, b = found.float(), expected.float()
    return bool(torch.allclose(a, b, atol=1e-5 * max(1.0, float(b.abs().max())), rtol=1e-5, equal_nan=True))


def eraser_tensors(folder: Path) -> list[str]:
    """Names of the tensors of erasers that the folder's weights hold."""
    names: list[str] = []
    whole = folder / (WEIGHTS if config_name(folder) == CONFIG else ERASER_WEIGHTS)
    files = [whole] if whole.is_file() else []
    if not files and (folder / INDEX).is_file():
        files = [folder / file for file in set(json.loads((folder / INDEX).read_text())["weight_map"].values())]
    for path in files:
        with safe_open(path, framework="pt") as file:
            names += [name for name in file.keys() if name.startswith(("sites.", "text_sites."))]  # noqa: SIM118  (no mapping)
    return names


@torch.no_grad()
def check(model: Any, folder: Path, base: Base) -> None:
    """Raise Wrong where a loaded model is not what its own records say."""
    if not isinstance(model, ErasedModel):
        raise Wrong(f"loaded as a {type(model).__name__}")
    erasers, records = [site.eraser for site in model.sites], model.erasures
    if not records:
        if model.is_erased:
            raise Wrong("erased, and there is no record of it")
        if tensors := eraser_tensors(folder):
            raise Wrong(f"not erased, and the weights hold {tensors[0]}")
        return
    if not erasers or None in erasers:
        raise Wrong("a record, and no eraser")
    found = answers(model, base.inputs)
    for record in records:
        for c in (record.classes or ()) if record.masked else ():
            for name, value in found.items():
                if "logits" not in name or value.ndim != 2:
                    continue
                if record.erased_label is not None and not bool((value[:, c] < MASKED).all()):
                    raise Wrong(f"class {c} is masked by its record, and answered in {name}")
                if record.erased_label is None and value.shape[1] != len(model.class_names) - len(model.config.masked):
                    raise Wrong(f"class {c} is dropped by its record, and has a column in {name}")
    inputs = {name: value.to(next(model.parameters()).dtype) for name, value in base.inputs.items() if name not in TEXT}
    before, after = (model.pooled_features(**inputs, stage=stage) for stage in ("before", "after"))
    before, after = (rows if isinstance(rows, tuple) else (rows,) for rows in (before, after))
    for number, (eraser, rows, erased) in enumerate(zip(erasers, before, after, strict=True)):
        if not equal(erased, eraser(rows)):
            raise Wrong(f"features at tap {number} do not pass its eraser")
    if not all(bool(value.isfinite().all()) for value in found.values() if value.is_floating_point()):
        return  # weights that are not finite say nothing of what depends on what; `verify` sees them
    leaks = set(leaking_fields(model.inner, base.inputs, model.taps)) & set(found)
    if leaks:
        raise Wrong(f"{sorted(leaks)} go around the erasers")
    if any(record.n_texts for record in records):
        check_texts(model, base.inputs)
    told = [(record.sha256, record.method) for record in records]
    known = [(tuple(record["sha256"]), record["method"]) for record in base.says["records"]]
    stored = json.loads((folder / config_name(folder)).read_text(encoding="utf-8")).get("eraser_sha256")
    covered = len(records) == 1 or bool(stored)
    same = told == known and all(sha for sha, _ in told) and (stored or None) == base.config.get("eraser_sha256")
    if same and covered and not equal(acts(model), base.erasers):
        raise Wrong("the eraser does something else than the one of the same record")


@torch.no_grad()
def check_texts(model: ErasedModel, inputs: dict[str, torch.Tensor]) -> None:
    """Raise Wrong where texts are answered by more than what passes the eraser of the text tower."""
    other = copy.deepcopy(model)
    other.text_sites[0].eraser = Constant()
    texts = {name: inputs[name] for name in TEXT if name in inputs}
    rolled = {name: value.roll(1, 0) for name, value in texts.items()}
    found, again = other(**inputs), other(**inputs | rolled)
    around = depending_fields(found, again)
    around += depending_fields(other.get_text_features(**texts), other.get_text_features(**rolled))
    if around:
        raise Wrong(f"{sorted(around)} go around the eraser of the text tower")
    if not equal(found.text_embeds, torch.nn.functional.normalize(Constant()(found.text_embeds), dim=1)):
        raise Wrong("the eraser of the text tower stands before its embeddings")


# One mutation


def load(way: str, folder: Path, base: Base) -> Any:
    if way == "pipeline":
        return transformers.pipeline("image-classification", model=str(folder), trust_remote_code=False).model
    if way == "ErasedModel":
        return base.load(folder)
    return getattr(transformers, way).from_pretrained(str(folder), trust_remote_code=False)


@contextlib.contextmanager
def guarded(limit: float = SECONDS, stock: bool = False) -> Iterator[list[str]]:
    """Stops what takes too long, and lists what was unpickled.

    Of a stock checkpoint transformers may read the tensors of a .bin file, by the loader that builds nothing else.
    """

    def stop(*_: Any) -> None:
        raise Slow

    opened: list[str] = []
    torch_load, pickle_load = torch.load, pickle.load

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if stock and kwargs.get("weights_only"):
            return torch_load(*args, **kwargs)
        return opened.append("a pickle")

    torch.load = pickle.load = refuse  # type: ignore[assignment]
    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield opened
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        torch.load, pickle.load = torch_load, pickle_load  # type: ignore[assignment]


def is_ours(error: BaseException) -> bool:
    """Whether an error came through the code of hf_kd, and not only through that of transformers."""
    return any(
        SOURCE in frame.filename and "tests" not in frame.filename
        for frame in traceback.extract_tb(error.__traceback__)
    )


def in_words(error: BaseException) -> bool:
    bare = isinstance(error, (UnicodeError, json.JSONDecodeError))
    return isinstance(error, (HfKdError, OSError, ValueError)) and not bare and len(str(error)) >= 20


def is_stock(folder: Path) -> bool:
    """Whether a configuration names a model of transformers: Auto classes never come to hf_kd then, and may read a .bin."""
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    return isinstance(named, str) and not named.startswith("hf_kd_erased")


def outcome(base: Base, folder: Path, way: str) -> tuple[str, str]:
    """What became of one mutated folder, in a word, and what was found; "FAULT ..." for what may not be."""
    started, marker = time.monotonic(), folder.parent / "marker"
    with guarded(stock=is_stock(folder)) as opened:
        try:
            result = _loaded(base, folder, way)
        except Slow:
            result = "FAULT slow", f"no answer within {SECONDS} s"
    if opened or marker.exists():
        return "FAULT code", f"{opened or 'code'} was run"
    return result if time.monotonic() - started <= SECONDS else ("FAULT slow", "too long")


def _loaded(base: Base, folder: Path, way: str) -> tuple[str, str]:
    try:
        model = load(way, folder, base)
    except Exception as error:
        text = f"{type(error).__name__}: {str(error)[:300]}"
        if way != "ErasedModel" and not is_ours(error):
            return "refused by transformers", text
        return ("refused", text) if in_words(error) else ("FAULT raw", text + _place(error))
    if way != "ErasedModel" and not isinstance(model, ErasedModel):
        return "loaded by transformers alone", type(model).__name__
    try:
        model.eval()
        check(model, folder, base)
        same = equal(answers(model, base.inputs), base.answers) and says(model) == base.says
        if base.covers_processor and way == "ErasedModel":
            same = same and equal(seen(model.processor, base.pictures), base.pixels)
    except Wrong as error:
        return "FAULT acts otherwise", str(error)
    except Exception as error:
        if in_words(error) and isinstance(error, HfKdError):
            return "loads and refuses to answer", f"{type(error).__name__}: {error}"
        # answers of another model than the inputs are for: transformers' own errors, once the records were right
        text, same = f"answer: {type(error).__name__}: {str(error)[:200]}{_place(error)}", False
        if not _verified_differs(base, folder):
            return "FAULT raw", text
        return "loads, does not answer these inputs, verify notices", text
    if same:
        return "loads and acts as before", ""
    if not (base.folder / RECEIPT).is_file():
        return "loads and differs, no receipt", ""
    return (
        ("loads and differs, verify notices", "")
        if _verified_differs(base, folder)
        else ("FAULT verify", "verify says it matches")
    )


def _verified_differs(base: Base, folder: Path) -> bool:
    """Whether `verify` finds, with the receipt that was given out, that a folder is another."""
    if not (base.folder / RECEIPT).is_file():
        return True
    target = folder / RECEIPT
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.is_dir():
        shutil.rmtree(target)
    shutil.copy(base.folder / RECEIPT, target)
    try:
        return not verify(folder, base=base.stands_on and str(base.stands_on)).ok
    except (HfKdError, OSError, ValueError) as error:
        if not in_words(error):
            raise
        return True


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if SOURCE in frame.filename]
    return f"  [{' < '.join(f'{Path(f.filename).name}:{f.lineno}' for f in [*frames[-1:], *ours[::-1][:2]])}]"


@dataclass
class Result:
    number: int
    base: str
    way: str
    mutation: str
    outcome: str
    found: str
    seconds: float

    @property
    def is_fault(self) -> bool:
        return self.outcome.startswith("FAULT")


def run_one(seed: int, number: int, bases: list[Base], place: Path) -> Result:
    """Mutation `number` of `seed`, in a folder of its own in `place`."""
    rng = random.Random(f"{seed}/{number}")
    base = bases[number % len(bases)]
    work = place / "case"
    shutil.rmtree(work, ignore_errors=True)
    folder = work / "model"
    shutil.copytree(base.folder, folder, ignore=shutil.ignore_patterns("expected.*"))
    way = rng.choices(("ErasedModel", base.auto, "pipeline"), (0.7, 0.2, 0.1))[0]
    if way == "pipeline" and base.auto != "AutoModelForImageClassification":
        way = "ErasedModel"
    if base.config.get("model_type") != "hf_kd_erased" or base.stands_on is not None:
        way = "ErasedModel"
    alone = base.stands_on is not None
    told = mutate(rng, renamed(folder) if alone else folder, [other.donor for other in bases])
    if alone:
        renamed(folder, back=True)
    started = time.monotonic()
    word, found = outcome(base, folder, way)
    return Result(number, base.folder.name, way, told, word, found, time.monotonic() - started)


def run(
    seed: int, numbers: Any, bases: list[Base], place: Path, tell: Callable[[Result], None] | None = None
) -> list[Result]:
    """Many mutations one after another; what libraries log meanwhile is left out."""
    results = []
    level = transformers.logging.get_verbosity()
    logging.disable(logging.CRITICAL)
    transformers.logging.set_verbosity(50)
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number in numbers:
                results.append(run_one(seed, number, bases, place))
                if tell is not None:
                    tell(results[-1])
    finally:
        logging.disable(logging.NOTSET)
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()
    return results


def summary(results: list[Result]) -> str:
    lines = [f"{count:6}  {word}" for word, count in Counter(result.outcome for result in results).most_common()]
    return "\n".join([f"{len(results):6}  mutations of {len({r.base for r in results})} folders", *lines])


if __name__ == "__main__":
    sys.exit("run tools/fuzz.py")
