"""The receipt `erasures.json`: what was asked, what it did to the weights, and hashes with which anyone can check it.

Hashes are sha256. A digest of tensors covers names, dtypes, shapes and bytes, in the order of the names, so it does not
depend on how a checkpoint is split into files.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

RECEIPT = "erasures.json"
SCHEMA_VERSION = 1
KIND = "hf_kd.erasures"

FLAGS = ("p", "k", "threshold", "lr", "epochs", "seed")
"""Hyper-parameters that `hf-kd erase` has an option of its own for."""


def receipt(
    folder: Path,
    erasures: Sequence[Mapping[str, Any]],
    before: Callable[[Sequence[str]], str],
    *,
    folded: bool,
    base_model: str | None = None,
    base_commit: str | None = None,
    labels: Sequence[Sequence[str]] | None = None,
    versions: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The receipt of the checkpoint in `folder`.

    erasures: the records. before: gives the digest of the weights with the given names as erasing found them.
    labels: names of the forgotten classes of each record, if they may be named.
    """
    names, after = weights_digest(folder)
    found = before(names)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "base_model": base_model,
        "base_commit": base_commit,
        "folded": folded,
        "erasures": [dict(record) for record in erasures],
        "weights": {"before": found, "after": after, "unchanged": found == after},
        "erasers": erasers_digest(folder),
        "files": {path.name: file_digest(path) for path in _checkpoint_files(folder)},
        "seeds": [record["settings"].get("seed") for record in erasures],
        "commands": commands(erasures, base_model, labels),
        "versions": dict(versions or {}),
    }


def read_receipt(path: Path) -> dict[str, Any]:
    """A receipt from its file. Raises ValueError on anything else, and FileNotFoundError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is not JSON ({error}): the receipt is damaged.") from error
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise ValueError(f"{path.name} is no receipt of hf_kd: it lacks the kind {KIND!r}.")
    if not isinstance(found.get("schema_version"), int) or found["schema_version"] > SCHEMA_VERSION:
        raise ValueError(
            f"{path.name} has schema version {found.get('schema_version')}, and this hf_kd reads up to {SCHEMA_VERSION}; "
            "install a later one."
        )
    missing = {"erasures", "weights", "erasers", "files", "folded"} - set(found)
    if missing:
        raise ValueError(f"{path.name} lacks {', '.join(sorted(missing))}: the receipt is damaged.")
    return found


def write_receipt(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


# Hashes


def file_digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(handle)


def _sha256(handle: Any) -> str:
    digest = hashlib.sha256()
    while chunk := handle.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Of pairs in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        values = tensor.detach().cpu().contiguous()
        header = json.dumps([name, str(values.dtype).removeprefix("torch."), list(values.shape)])
        digest.update(header.encode())
        digest.update(_bytes(values))
    return digest.hexdigest()


def _bytes(values: Tensor) -> bytes:
    import torch

    return values.reshape(-1).view(torch.uint8).numpy().tobytes() if values.numel() else b""


def weights_digest(folder: Path) -> tuple[list[str], str]:
    """Names (as the model inside has them) and digest of the weights in a checkpoint, without its erasers."""
    names: list[str] = []

    def weights() -> Iterator[tuple[str, Tensor]]:
        wrapped = any(name.startswith("inner.") for name in _names(folder))
        for name, tensor in _tensors(folder):
            if wrapped and not name.startswith("inner."):
                continue
            names.append(name.removeprefix("inner.") if wrapped else name)
            yield names[-1], tensor

    return names, tensors_digest(weights())


def erasers_digest(folder: Path) -> str | None:
    """Digest of the erasers in a checkpoint; None where it has none."""
    found = [(name, tensor) for name, tensor in _tensors(folder) if name.startswith("sites.")]
    return tensors_digest(found) if found else None


def _checkpoint_files(folder: Path) -> list[Path]:
    patterns = ("config.json", "model*.safetensors", "model*.safetensors.index.json")
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def _names(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                found |= dict.fromkeys(file.keys(), path)
        except SafetensorError as error:
            raise ValueError(f"{path.name} is damaged ({error}).") from error
    if not found:
        raise FileNotFoundError(f"No model*.safetensors in {folder.name}: there are no weights to check.")
    return dict(sorted(found.items()))


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a checkpoint in the order of their names, one in memory at a time."""
    for name, path in _names(folder).items():
        with safe_open(path, framework="pt") as file:
            yield name, file.get_tensor(name)


# Commands


def commands(
    erasures: Sequence[Mapping[str, Any]], base_model: str | None, labels: Sequence[Sequence[str]] | None = None
) -> list[str]:
    """`hf-kd erase` for each record, in order; DATASET and LABEL stand for what is not said here."""
    lines = []
    for number, record in enumerate(erasures):
        model = base_model or "BASE_MODEL" if number == 0 else "erased"
        words = ["hf-kd", "erase", model, "--dataset", "DATASET"]
        for label in labels[number] if labels else ["LABEL"]:
            words += ["--forget", str(label)]
        words += ["--method", record["method"]]
        for name, value in record["settings"].items():
            if value is None or value is False:
                continue
            if name in FLAGS:
                words += [f"--{name}", str(value)]
            elif value is True and name in ("per_class", "center"):
                words.append(f"--{name.replace('_', '-')}")
            else:
                words += ["--option", f"{name}={json.dumps(value)}"]
        lines.append(shlex.join([*words, "--output", "erased"]))
    return lines
