"""The receipt `erasures.json`: what was asked, what it did to the weights, and hashes with which anyone can check it.

Hashes are sha256. The digest of weights covers dtypes, shapes and bytes of all distinct tensors. It leaves names out,
because transformers renames tensors on their way to a file, and so does not depend on how a checkpoint is split either;
which tensor is which is covered by the hashes of the files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_kd.data.digest import tensors_digest
from hf_kd.data.text import shell_word
from hf_kd.errors import InvalidValueError, MissingFileError
from hf_kd.methods.records import Erasure, WeightChange, versions
from hf_kd.methods.settings import chosen_settings

from .files import RECEIPT, checkpoint_files, weight_files

SCHEMA_VERSION = 2
"""From 2 on a receipt names every file that changes an answer; before, config.json and weights."""
KIND = "hf_kd.erasures"
ERASERS = ("sites.", "text_sites.")
"""How the names of an eraser's tensors begin."""

SINCE = {
    "unchanged": "the weights are those that the requests left",
    "trained": "trained since: the weights are not those that the requests left, and training can restore what was",
    "converted": "the weights are stored in another precision than the requests left them in",
    "unknown": "nobody took a digest of the weights at the time of the requests",
}
"""What became of the weights since the first request, in words."""


def receipt(
    folder: Path,
    records: Mapping[str, Sequence[Mapping[str, Any]]],
    before: str | None,
    *,
    since: str = "unknown",
    beside: Path | None = None,
    folded: bool,
    base: tuple[str | None, str | None] = (None, None),
    commands: Sequence[str] = (),
    weights: str | None = None,
) -> dict[str, Any]:
    """The receipt of the checkpoint in `folder`.

    Args:
        folder: Where the checkpoint lies.
        records: By its key in the receipt, each kind of records in order: "changes" of weights, "folded_before" (erasers
            folded into the weights before those that stand were fitted), "erasures".
        before: Digest of the weights as the first request found them (`tensors_digest`); None where nobody took it then.
        since: What became of the weights since the first request, one of `SINCE`.
        beside: The folder that these files are about to be put into.
        folded: Whether the checkpoint is a stock model with the erasers in its head.
        base: Hub id and commit of the model before the first request.
        commands: One for each record, as `commands_of` writes them.
        weights: Digest of the weights of the base, where the folder holds an eraser on its own.

    Returns:
        What `erasures.json` holds.

    Raises:
        MissingFileError: There are no weights in the folder.
        InvalidValueError: They cannot be read.
    """
    files = checkpoint_files(folder, beside)
    after = weights_digest(files) if weights is None else weights
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "base_model": base[0],
        "base_commit": base[1],
        "folded": folded,
        "eraser_only": weights is not None,
        **{kind: [dict(record) for record in own] for kind, own in records.items()},
        "weights": {
            "before": before,
            "after": after,
            "unchanged": None if before is None else before == after,
            "since": since,
        },
        "erasers": erasers_digest(files),
        "files": {name: file_digest(path) for name, path in files.items()},
        "seeds": [record["settings"].get("seed") for own in records.values() for record in own],
        "commands": list(commands),
        "versions": versions(),
    }


def read_receipt(path: Path) -> dict[str, Any]:
    """A receipt from its file.

    Raises:
        MissingFileError: There is none.
        InvalidValueError: It is damaged, no receipt, or of a later hf_kd.
    """
    if not path.is_file():
        raise MissingFileError(f"There is no {path.name}.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8 text among them
        raise InvalidValueError(f"{path.name} is not JSON ({error}): the receipt is damaged.") from error
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise InvalidValueError(f"{path.name} is no receipt of hf_kd: it lacks the kind {KIND!r}.")
    if found.get("schema_version") not in range(1, SCHEMA_VERSION + 1) or found["schema_version"] is True:
        raise InvalidValueError(
            f"{path.name} has schema version {found.get('schema_version')}, and this hf_kd reads up to {SCHEMA_VERSION}; "
            "install a later one."
        )
    missing = {"erasures", "weights", "erasers", "files", "folded"} - set(found)
    if missing:
        raise InvalidValueError(f"{path.name} lacks {', '.join(sorted(missing))}: the receipt is damaged.")
    wrong = _of_a_wrong_type(found)
    if wrong:
        raise InvalidValueError(
            f"{path.name} has {wrong} = {str(found.get(wrong))[:100]!r}, which no receipt has: it is damaged. `hf-kd card` "
            "writes a new one, of the files as they are."
        )
    return found


def _of_a_wrong_type(found: Mapping[str, Any]) -> str | None:
    """The first entry that is not what `receipt` writes."""
    weights = found["weights"]
    right = {
        "files": isinstance(found["files"], dict) and all(isinstance(value, str) for value in found["files"].values()),
        "weights": isinstance(weights, dict)
        and isinstance(weights.get("after"), str)
        and isinstance(weights.get("before"), (str, type(None)))
        and weights.get("since", "unknown") in tuple(SINCE),
        "erasers": isinstance(found["erasers"], (str, type(None))),
        "folded": isinstance(found["folded"], bool),
        "eraser_only": isinstance(found.get("eraser_only", False), bool),
        "erasures": _are_records(found["erasures"], Erasure),
        "changes": _are_records(found.get("changes", []), WeightChange),
        "folded_before": _are_records(found.get("folded_before", []), Erasure),
    }
    return next((name for name, is_right in right.items() if not is_right), None)


def _are_records(stored: Any, kind: type[Erasure]) -> bool:
    if not isinstance(stored, list):
        return False
    try:
        records = [kind.from_dict(record) for record in stored]
    except (TypeError, ValueError, KeyError, AttributeError):
        return False
    return all(
        isinstance(record.method, str)
        and isinstance(record.settings, dict)
        and isinstance(record.n_forget, int)
        and all(isinstance(tap, str) for tap in record.taps)
        and all(isinstance(label, int) for label in record.classes or ())
        and all(isinstance(part, dict) for part in record.measured)
        for record in records
    )


def write_receipt(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the receipt into a checkpoint folder."""
    (folder / RECEIPT).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


# Hashes


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def weights_digest(files: Mapping[str, Path]) -> str:
    """Digest of the weights among the files of a checkpoint (`checkpoint_files`), without its erasers."""
    return tensors_digest(_tensors(files, lambda name: not name.startswith(ERASERS)))


def erasers_digest(files: Mapping[str, Path]) -> str | None:
    """Digest of the erasers among the files of a checkpoint; None where it has none."""
    found = list(_tensors(files, lambda name: name.startswith(ERASERS)))
    return tensors_digest(found) if found else None


def _tensors(files: Mapping[str, Path], wanted: Callable[[str], bool]) -> Iterator[Tensor]:
    """The tensors of a checkpoint whose names are wanted, one in memory at a time."""
    paths = weight_files(files)
    if not paths:
        raise MissingFileError("No model*.safetensors in this folder: there are no weights to check.")
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in filter(wanted, file.keys()):
                    yield file.get_tensor(name)
        except SafetensorError as error:
            raise InvalidValueError(f"{path.name} is damaged ({error}).") from error


# Commands


def commands_of(
    erasures: Sequence[Mapping[str, Any]],
    base_model: str | None,
    labels: Sequence[Sequence[str]] | None = None,
    *,
    own_class: bool = False,
    saved_by: Sequence[str] = (),
    folded: Sequence[bool] = (),
) -> list[str]:
    """`hf-kd erase` or `unlearn` for each record, in order; words in capitals stand for what is not said here.

    That are the data set, labels and texts that may not be named, class means (PROTOTYPES), which are thousands of numbers,
    and the FILE that registers a class of the user's own. Settings are those that differ from the method's defaults.

    Args:
        erasures: The records, in the order in which they were carried out.
        base_model: Hub id of the model before the first of them.
        labels: Names of the forgotten classes of each record, if they may be named.
        own_class: Whether the model's class is none of transformers.
        saved_by: Options of the last command that say what is saved.
        folded: Of each, whether its eraser was folded in before a later one; the last of those that were together says it.
    """
    lines, model = [], base_model or "BASE_MODEL"
    folds = [number for number, one in enumerate(folded, 1) if one and not any(folded[number : number + 1])]
    for number, record in enumerate(erasures):
        changed = "weights_before" in record
        words = ["hf-kd", "unlearn" if changed else "erase", model]
        words += ["--dataset", "DATASET"] if record.get("n_forget") or not record.get("n_texts") else []
        words += ["--import", "FILE"] if own_class else []
        words += _forgotten(record, None if labels is None else labels[number])
        words += ["--method", record["method"]]
        for name, value in chosen_settings(record["method"], record["settings"], bool(record.get("n_texts"))).items():
            words += ["--option", f"{name}={'PROTOTYPES' if name == 'prototypes' else json.dumps(value)}"]
        saved = ["--fold"] if number + 1 in folds else saved_by if number == len(erasures) - 1 else []
        since = max((fold for fold in folds if fold <= number), default=0)  # a fold brings dropped labels back
        keeps_labels = "--fold" in saved and not any(map(_drops, erasures[since:number]))
        words += [*_masks(record, keeps_labels), *_limits(record), *saved]
        model = "changed" if changed else "erased"
        lines.append(" ".join(map(shell_word, [*words, "--output", model])))
    return lines


def _forgotten(record: Mapping[str, Any], labels: Sequence[str] | None) -> list[str]:
    """What was asked to be forgotten: texts, labels, or both, as many as there were."""
    texts = record.get("texts") or ["TEXT"] * (record.get("n_texts") or 0)
    by_label = not texts or (record.get("measured") or [{}])[0].get("images_sorted_by") == "given apart"
    count = len(record.get("classes") or record.get("dataset_classes") or [""])
    told = list(labels or ["LABEL"] * count) if by_label else []
    words = [("--text", text) for text in texts] + [("--forget-labels", str(label)) for label in told]
    return [*(word for pair in words for word in pair), *(["--publish-texts"] if record.get("texts") else [])]


def _limits(record: Mapping[str, Any]) -> list[str]:
    """How many images were drawn: what has a seed by --limit, the same for all sets; else retained ones alone."""
    drawn = record.get("sampled") or {}
    limit = next((each["drawn"] for each in drawn.values() if "seed" in each), None)
    retain, measured = drawn.get("retain"), (record.get("measured") or [{}])[0]
    count = (record.get("n_retain") or measured.get("n_retain") or 0) if retain is None else retain["drawn"]
    apart = "seed" not in retain if retain is not None else limit is not None and count > limit and "forget" in drawn
    return [
        *([] if limit is None else ["--limit", str(limit)]),
        *(["--retain-limit", str(count)] if apart else []),
    ]


def _drops(record: Mapping[str, Any]) -> bool:
    return bool(record.get("masked")) and record.get("erased_label") is None


def _masks(record: Mapping[str, Any], keeps_labels: bool = False) -> list[str]:
    """What was asked of the answers and, unless those are kept, labels of forgotten classes; nothing where nobody asked."""
    if record.get("masked") is None:
        return []
    if not record["masked"]:
        return ["--no-mask-head"]
    if keeps_labels:
        return ["--mask-head"]
    return ["--mask-head", *(["--drop-label"] if _drops(record) else ["--erased-label", record["erased_label"]])]
