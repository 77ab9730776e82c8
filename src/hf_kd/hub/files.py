"""Which files of a folder belong to the checkpoint in it: its weights by variant, and all that changes an answer."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hf_kd.data.paths import CONFIG_NAME, ERASER_CONFIG
from hf_kd.errors import MissingFileError

logger = logging.getLogger(__name__)

RECEIPT = "erasures.json"
WEIGHT_PATTERNS = ("model*.safetensors", "model*.safetensors.index*.json")
"""Files in which a saved model keeps its weights, as patterns for the Hub."""

WEIGHTS = re.compile(r"model(?:\.(?P<variant>.+?))?(?:-\d{5}-of-\d{5})?\.safetensors")
INDEX = re.compile(r"model\.safetensors\.index(?:\.(?P<variant>.+))?\.json")
"""Names that transformers gives weights, whole or in shards, and the index of shards. Any other file is the user's."""

ERASER_WEIGHTS = "eraser.safetensors"
"""What an eraser on its own is kept in, with its configuration and beside no weights of a base."""

PROCESSORS = (
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
)
"""Names under which transformers has kept what turns images into tensors; a later name wins over an earlier one."""

ANSWERING = (
    "*.safetensors",
    "*.safetensors.index*.json",
    "*config.json",
    "adapter_model*",
    "pytorch_model*",
    "tokenizer*",
    "*.model",
    "vocab*",
    "merges.txt",
    "normalizer.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template*",
)
"""Files that change what a model answers once they lie beside it, as patterns."""


def variant_of(name: str) -> str | None:
    """The variant that a weight file is of, "" for none; None for the name of any other file."""
    found = WEIGHTS.fullmatch(name) or INDEX.fullmatch(name)
    return None if found is None else found["variant"] or ""


def superseded(there: Iterable[str], new: Iterable[str]) -> set[str]:
    """Of the files that are there, those that a save of `new` makes untrue.

    Weights of the same variant in other shards, an eraser on its own, another name of the processor, and the receipt of the
    model before; other variants and a user's own files stay. Nothing where `new` brings neither weights nor an eraser: a
    report beside a model is no other model.
    """
    new = set(new)
    variants = {variant_of(name) for name in new} - {None}
    if not variants and ERASER_WEIGHTS not in new:
        return set()
    gone = {RECEIPT, ERASER_CONFIG, ERASER_WEIGHTS} | (set(PROCESSORS) if new & set(PROCESSORS) else set())
    return {name for name in there if variant_of(name) in variants or name in gone} - new


def is_eraser(names: Iterable[str]) -> bool:
    """Whether a folder with files of these names holds an eraser on its own, and no model."""
    names = set(names)
    return ERASER_CONFIG in names and CONFIG_NAME not in names


def outcome_in(folder: Path) -> str:
    """What hf_kd did to the model in a folder, by its configuration: erased, changed, folded, or "" for nothing."""
    if (folder / ERASER_CONFIG).is_file():
        return "erased"
    config = folder / CONFIG_NAME
    said = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    # an eraser that stands in the model is what push and card speak of, whatever was folded or changed below it
    marks = (("erased", r'"erasures":\s*\[\s*\{'), ("folded", '"hf_kd_folded"'), ("changed", '"hf_kd_unlearned"'))
    found = next((outcome for outcome, mark in marks if re.search(mark, said)), "")
    return "changed" if found == "folded" and _changed_since(said) else found


def _changed_since(config: str) -> bool:
    """Whether weights were changed after the last fold; not where that cannot be read, which is refused where it is."""
    try:
        stored = json.loads(config)
        return stored["hf_kd_unlearned"][-1]["folded_before"] >= len(stored["hf_kd_folded"])
    except (ValueError, TypeError, LookupError, RecursionError):
        return False


def refuse_no_receipt(source: str | Path, folder: Path) -> None:
    """Refuse a checkpoint without a receipt.

    Args:
        source: What was named.
        folder: Where its files are.

    Raises:
        MissingFileError: With the way to a receipt, where there is one.
    """
    if (folder / RECEIPT).is_file():
        return
    outcome = outcome_in(folder)
    if outcome == "folded":
        way = (
            "The erasure is folded into its weights, and a receipt is made from the eraser, which is not in it: `hf-kd "
            "erase --fold` and `hf-kd push --folded` write one with the checkpoint, as push_to_hub(folded=True) does."
        )
    elif outcome:
        way = "`hf-kd card` writes one into a folder, of the files as they are."
    else:
        way = "It holds no model that hf_kd made forget something: that is what receipts are about."
    raise MissingFileError(f"{source} has no {RECEIPT}, so there is nothing to check it against. {way}")


def checkpoint_files(folder: Path, beside: Path | None = None) -> dict[str, Path]:
    """Every file that changes an answer, by name.

    Args:
        folder: Where a model has been written.
        beside: The folder these files are about to be put into; what stays there counts too.
    """
    found = _answering(folder)
    if beside is not None and beside.is_dir():
        stay = _answering(beside)
        found = {name: path for name, path in stay.items() if name not in superseded(stay, found)} | found
    return dict(sorted(found.items()))


def is_answering(name: str) -> bool:
    """Whether a file of this name changes what a model answers once it lies beside it."""
    return any(fnmatch(name, pattern) for pattern in ANSWERING)


def _answering(folder: Path) -> dict[str, Path]:
    # is_file follows links: what a killed save left leading nowhere is not there
    return {path.name: path for path in folder.iterdir() if path.is_file() and is_answering(path.name)}


def weight_files(files: Mapping[str, Path]) -> list[Path]:
    """The safetensors files of the weights: those without a variant, or where there are none of the first variant.

    A whole file wins over shards, as in transformers. Of an eraser on its own the file that it is in.
    """
    if is_eraser(files):
        return [files[ERASER_WEIGHTS]] if ERASER_WEIGHTS in files else []
    found = {name: path for name, path in files.items() if WEIGHTS.fullmatch(name)}
    first = min((variant_of(name) or "" for name in found), default="")
    whole = f"model.{first}.safetensors" if first else "model.safetensors"
    if whole in found:
        return [found[whole]]
    return [path for name, path in sorted(found.items()) if variant_of(name) == first]


def save_processor(model: Any, folder: str | Path) -> None:
    """Write what turns images (and texts) into the model's inputs, where it can be written; where not, the log says so."""
    whole, images = getattr(model, "whole_processor", None), model.processor
    if whole is not None and hasattr(images, "save_pretrained"):
        whole.image_processor = images
        whole.save_pretrained(folder)
    elif hasattr(images, "save_pretrained"):
        images.save_pretrained(folder)
    elif images is not None:
        logger.warning(
            f"The image processor is a {type(images).__name__}, which cannot be saved: the saved model comes without it. "
            "Set it again after loading, model.processor = ..."
        )
