"""Ways to damage or edit a saved folder, each drawn from a seeded generator and told in words."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

CONFIG, PROCESSOR, RECEIPT = "config.json", "preprocessor_config.json", "erasures.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOLD = (
    *("taps", "erasers", "eraser_sha256", "leaking", "erasures", "masked", "dropped", "weights_erased", "text_tower"),
    *("inner", "inner_class", "model_type", "architectures", "id2label", "label2id", "base_model", "dtype"),
)
"""Keys of config.json that say what the model is."""
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 0.5, 1e308, -(2**31), 2**63, 10**6, float("nan"), float("inf"), -0.0),
    *("", "cat", "0", "../..", "vit", "a" * 5000, "\x1b[31m\ud83d\ude00", "torch.load", "projection", "input", "classifier"),
    *([], {}, [[]], [None], {"": 0}, [0, 1, 2], ["cat"], {"kind": "projection", "dim": 8, "rank": 1}),
)  # fmt: skip


class Skip(Exception):
    """The mutation does not apply to this folder."""


def read(path: Path) -> Any:
    if not path.is_file():
        raise Skip
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise Skip from None


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def spots(value: Any, above: tuple = ()) -> list[tuple]:
    """The path of every entry in a JSON document."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, inside in pairs for path in [(*above, key), *spots(inside, (*above, key))]]


def at(value: Any, path: tuple) -> Any:
    for key in path:
        value = value[key]
    return value


def nudged(rng: random.Random, value: Any) -> Any:
    """A value near by, of the same type where that is possible."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + rng.choice((-1, 1, 2, 10**4, -value, -2 * value, value))
    if isinstance(value, float):
        return value * rng.choice((0.5, 1.001, -1, 1e300, 0))
    if isinstance(value, str):
        letter = rng.randrange(len(value) + 1)
        return value[:letter] + rng.choice(("x", "0", ".", "/", "")) + value[letter + 1 :]
    if isinstance(value, list):
        return rng.choice((value * 2, value[::-1], value[1:], [], [*value, copy.deepcopy(value)]))
    if isinstance(value, dict):
        keys = list(value)
        rng.shuffle(keys)
        return dict(zip(value, (value[key] for key in keys), strict=True))
    return 1


def edit(rng: random.Random, document: Any, others: list[Any], told: tuple[str, ...] = ()) -> str:
    """Change one entry at any depth. `others` are documents of the same kind whose entries may take its place."""
    paths = spots(document)
    near = [path for path in paths if path[0] in told]
    paths = near if near and rng.random() < 0.7 else paths
    if not paths:
        raise Skip
    path = rng.choice(paths)
    owner, key = at(document, path[:-1]), path[-1]
    how = rng.choice(("delete", "rename", "duplicate", "odd", "odd", "nudge", "nudge", "swap", "graft", "graft"))
    if how == "delete":
        del owner[key]
    elif how == "rename" and isinstance(owner, dict):
        owner[rng.choice((f"{key}_", str(key).upper(), "model_type", "dim"))] = owner.pop(key)
    elif how in ("rename", "duplicate"):
        if isinstance(owner, dict):
            owner[rng.choice(list(owner))] = copy.deepcopy(owner[key])
        else:
            owner.append(copy.deepcopy(owner[key]))
    elif how == "odd":
        owner[key] = copy.deepcopy(rng.choice(ODD))
    elif how == "nudge":
        owner[key] = nudged(rng, owner[key])
    elif how == "swap":
        same = [
            other for other in paths if isinstance(at(document, other), type(owner[key])) and other[: len(path)] != path
        ]
        other = rng.choice([other for other in same if path[: len(other)] != other] or [path])
        owner[key], at(document, other[:-1])[other[-1]] = at(document, other), owner[key]
        how = f"swap with {'.'.join(map(str, other))}"
    else:
        found = [at(other, path) for other in others if path in spots(other)]
        owner[key] = copy.deepcopy(rng.choice(found or [rng.choice(ODD)]))
    return f"{how} {'.'.join(map(str, path))}"


def edit_file(name: str, told: tuple[str, ...] = ()) -> Callable:
    def mutate(rng: random.Random, folder: Path, bases: list[Path]) -> str:
        document = read(folder / name)
        others = [read(base / name) for base in rng.sample(bases, min(6, len(bases))) if (base / name).is_file()]
        what = edit(rng, document, others, told)
        write(folder / name, document)
        return f"{name}: {what}"

    return mutate


def graft_told(rng: random.Random, folder: Path, bases: list[Path]) -> str:
    """What config.json says of the model, from another folder."""
    document, base = read(folder / CONFIG), rng.choice(bases)
    other = read(base / CONFIG)
    keys = rng.sample(TOLD, rng.choice((1, 1, 2, 3)))
    for key in keys:
        if key in other:
            document[key] = other[key]
        else:
            document.pop(key, None)
    write(folder / CONFIG, document)
    return f"{CONFIG}: {', '.join(keys)} of {base.name}"


def forget_told(rng: random.Random, folder: Path, bases: list[Path]) -> str:
    """What config.json says of the erasure is taken out, in part or whole."""
    document = read(folder / CONFIG)
    keys = rng.sample(TOLD[:9], rng.choice((1, 2, 4, 6, 9)))
    for key in keys:
        if rng.random() < 0.5:
            document.pop(key, None)
        else:
            document[key] = type(document.get(key))() if document.get(key) is not None else None
    write(folder / CONFIG, document)
    return f"{CONFIG}: without {', '.join(keys)}"


def only_inner(rng: random.Random, folder: Path, bases: list[Path]) -> str:
    """The configuration of the model inside takes the place of the whole."""
    document = read(folder / CONFIG)
    if not isinstance(document, dict) or not isinstance(document.get("inner"), dict):
        raise Skip
    inner = document["inner"]
    if rng.random() < 0.5:
        inner["architectures"] = [document.get("inner_class")]
    write(folder / CONFIG, inner)
    return f"{CONFIG}: the inner one only"


# Tensors


def shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("model*.safetensors") if path.is_file())


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except Exception:
        raise Skip from None


def value_ops(rng: random.Random) -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    ops: list[tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = [
        ("zero", torch.zeros_like),
        ("ones", torch.ones_like),
        ("identity", lambda t: torch.eye(*t.shape, dtype=t.dtype) if t.ndim == 2 else torch.ones_like(t)),
        ("times 1.001", lambda t: (t * 1.001).to(t.dtype)),
        ("halved", lambda t: (t * 0.5).to(t.dtype)),
        ("negated", lambda t: (t * -1).to(t.dtype)),
        ("flipped", lambda t: t.flip(0) if t.ndim else -t),
        ("permuted", lambda t: t[torch.randperm(t.shape[0], generator=generator)] if t.ndim else t + 1),
        ("nan", lambda t: torch.full_like(t, float("nan") if t.is_floating_point() else 0)),
        ("inf", lambda t: torch.full_like(t, float("inf") if t.is_floating_point() else 1)),
        ("one nan", _one_nan),
        ("random", lambda t: torch.randn(t.shape, generator=generator).to(t.dtype)),
        ("noise", lambda t: (t + 1e-3 * torch.randn(t.shape, generator=generator)).to(t.dtype)),
        ("orthonormal", _orthonormal),
        ("wider", lambda t: torch.cat([t, t]) if t.ndim else t.repeat(2)),
        ("narrower", lambda t: t[:-1] if t.ndim else t.repeat(0)),
        ("empty", lambda t: t[:0] if t.ndim else t.reshape(1)[:0]),
        ("transposed", lambda t: t.T if t.ndim == 2 else t[None]),
        ("flat", lambda t: t.flatten()),
        ("float16", lambda t: t.to(torch.float16)),
        ("bfloat16", lambda t: t.to(torch.bfloat16)),
        ("float64", lambda t: t.to(torch.float64)),
        ("int64", lambda t: t.nan_to_num(0, 0, 0).to(torch.int64)),
        ("bool", lambda t: t.bool()),
    ]
    return rng.choice(ops)


def _one_nan(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone().flatten()
    if changed.numel() and changed.is_floating_point():
        changed[0] = float("nan")
    return changed.reshape(tensor.shape)


def _orthonormal(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim != 2 or not tensor.is_floating_point() or tensor.shape[0] < tensor.shape[1]:
        return tensor
    generator = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(tensor.shape, generator=generator)).Q.to(tensor.dtype)


def edit_tensors(rng: random.Random, folder: Path, bases: list[Path]) -> str:
    """One tensor, of an eraser more often than not."""
    path = rng.choice(shards(folder) or [folder / "none"])
    tensors = tensors_of(path)
    own = [name for name in tensors if name.startswith(("sites.", "text_sites."))]
    name = rng.choice(own if own and rng.random() < 0.6 else sorted(tensors) or ["none"])
    if name not in tensors:
        raise Skip
    how = rng.choice(("drop", "rename", "extra", "graft", *["value"] * 5))
    if how == "drop":
        del tensors[name]
    elif how == "rename":
        new = rng.choice(
            (f"{name}_", f"inner.{name}", name.partition(".")[2] or "x", name.replace("0", "1"), "sites.9.eraser.x")
        )
        tensors[new] = tensors.pop(name)
    elif how == "extra":
        new = rng.choice(
            ("sites.0.eraser.directions", "sites.1.eraser.basis", f"{name}_more", "head.weight", "sites.0.tap")
        )
        tensors[new] = tensors[name].clone()
        how = f"extra {new} of"
    elif how == "graft":
        other = tensors_of(rng.choice(shards(rng.choice(bases)) or [folder / "none"]))
        theirs = [key for key in other if key.startswith(("sites.", "text_sites."))] if name in own else sorted(other)
        if not theirs:
            raise Skip
        tensors[name] = other[name if name in other else rng.choice(theirs)]
    else:
        how, change = value_ops(rng)
        tensors[name] = change(tensors[name]).contiguous().clone()
    save_file(tensors, path, metadata={"format": "pt"})
    return f"{path.name}: {how} {name}"


def edit_all(rng: random.Random, folder: Path, bases: list[Path]) -> str:
    """All tensors of the erasers, or all of the others."""
    which, how = rng.choice(("sites.", "text_sites.", "inner.")), rng.choice(("drop", "rename", "graft", "value"))
    op, change = value_ops(rng)
    other: dict[str, torch.Tensor] = {}
    base = rng.choice(bases)
    if how == "graft":
        for path in shards(base):
            other |= tensors_of(path)
    for path in shards(folder):
        tensors = tensors_of(path)
        for name in [name for name in tensors if name.startswith(which)]:
            if how == "drop":
                del tensors[name]
            elif how == "rename":
                tensors[name.removeprefix(which)] = tensors.pop(name)
            elif how == "graft":
                tensors[name] = other.get(name, tensors[name])
            else:
                tensors[name] = change(tensors[name]).contiguous().clone()
        save_file(tensors, path, metadata={"format": "pt"})
    return f"weights: all {which}* {op if how == 'value' else how}{f' of {base.name}' if how == 'graft' else ''}"


# Files


def swap_files(rng: random.Random, folder: Path, bases: list[Path]) -> str:
    """A whole file of another folder, the weights more often than not."""
    base = rng.choice(bases)
    names = sorted(path.name for path in base.iterdir() if path.is_file() and path.stem != "expected")
    name = WEIGHTS if WEIGHTS in names and rng.random() < 0.5 else rng.choice(names)
    replace(folder / name, (base / name).read_bytes())
    return f"{name} of {base.name}"


def replace(path: Path, content: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.is_symlink():
        path.unlink()
    path.write_bytes(content)


def damage_file(rng: random.Random, folder: Path, bases: list[Path]) -> str:
    """A file removed, cut, emptied, scrambled, or a folder or a link in its place."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if not files:
        raise Skip
    path = rng.choice(files)
    content, how = (
        path.read_bytes(),
        rng.choice(("removed", "cut", "cut", "empty", "byte", "tail", "folder", "link", "loop", "json")),
    )
    path.unlink()
    if how == "cut":
        path.write_bytes(content[: rng.randrange(len(content) + 1)])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "byte" and content:
        place = rng.randrange(len(content))
        path.write_bytes(content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :])
    elif how == "tail":
        path.write_bytes(content + rng.choice((b"\0" * 8, b"{}", b"\xff\xfe", content)))
    elif how == "folder":
        path.mkdir()
    elif how == "link":
        theirs = rng.choice(bases) / path.name
        if theirs.is_file():  # a copy, so that a second mutation does not write through the link
            shutil.copy(theirs, folder.parent / path.name)
        os.symlink(rng.choice((str(folder.parent / path.name), "/nowhere", "..")), path)
    elif how == "loop":
        os.symlink(path.name, path)
    elif how == "json":
        path.write_bytes(
            rng.choice((b"[]", b"null", b"{}", b"3", b'"x"', b"[" * 5000, b"\xff", b'{"a":1,"a":2}', b"NaN"))
        )
    return f"{path.name} {how}"


class Code:
    """Unpickled, it would leave a file behind."""

    def __init__(self, marker: str):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return open, (self.marker, "w")


def add_file(rng: random.Random, folder: Path, bases: list[Path]) -> str:
    """A file that leads to other weights or to code; where it runs, the file `marker` beside the folder says so."""
    marker = str(folder.parent / "marker")
    outside = folder.parent / "outside.safetensors"
    how = rng.choice(
        ("adapter", "bin", "bin only", "index bin", "index outside", "code", "named weights", "variant", "tf")
    )
    weights = folder / WEIGHTS
    if how == "adapter":
        adapter = {
            "peft_type": "LORA",
            "base_model_name_or_path": str(rng.choice(bases)),
            "r": 2,
            "target_modules": ["q_proj"],
        }
        write(folder / "adapter_config.json", adapter)
        torch.save({"x": Code(marker)}, folder / "adapter_model.bin")
        if rng.random() < 0.3 and (folder / CONFIG).is_file():
            (folder / CONFIG).unlink()
            how = "adapter only"
    elif how in ("bin", "bin only"):
        torch.save({"x": Code(marker)}, folder / "pytorch_model.bin")
        if how == "bin only":
            for path in [*folder.glob("model*.safetensors"), folder / INDEX]:
                path.unlink(missing_ok=True)
    elif how in ("index bin", "index outside", "named weights"):
        if not weights.is_file():
            raise Skip
        names = tensors_of(weights)
        os.replace(weights, outside)
        torch.save({"x": Code(marker)}, folder / "pytorch_model.bin")
        target = "pytorch_model.bin" if how == "index bin" else rng.choice(("../outside.safetensors", str(outside)))
        index = rng.choice((INDEX, "pytorch_model.bin.index.json"))
        if how == "named weights":
            document = read(folder / CONFIG)
            document["transformers_weights"] = rng.choice((target, "pytorch_model.bin", index))
            write(folder / CONFIG, document)
        write(folder / index, {"metadata": {}, "weight_map": dict.fromkeys(names, target)})
    elif how == "code":
        document = read(folder / CONFIG)
        (folder / "modeling_x.py").write_text(f"open({marker!r}, 'w')\nclass X: pass\n", encoding="utf-8")
        classes = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoImageProcessor")
        autos = dict.fromkeys(classes, "modeling_x.X")
        document["auto_map"] = autos
        if rng.random() < 0.3:
            document["model_type"] = "x"
        if rng.random() < 0.3 and isinstance(document.get("inner"), dict):
            document["inner"]["auto_map"] = autos
        write(folder / CONFIG, document)
    elif how == "variant":
        source = rng.choice(shards(rng.choice(bases)) or [weights])
        shutil.copy(source, folder / rng.choice(("model.fp16.safetensors", "model-00001-of-00001.safetensors")))
    else:
        (
            folder
            / rng.choice(
                (
                    "tf_model.h5",
                    "flax_model.msgpack",
                    "tokenizer.json",
                    "processor_config.json",
                    "video_preprocessor_config.json",
                )
            )
        ).write_bytes(b"{}")
    return f"added: {how}"


MUTATIONS: tuple[tuple[int, Callable], ...] = (
    (30, edit_file(CONFIG, tuple(TOLD))),
    (6, graft_told),
    (6, forget_told),
    (2, only_inner),
    (5, edit_file(RECEIPT)),
    (5, edit_file(PROCESSOR)),
    (3, edit_file(INDEX)),
    (22, edit_tensors),
    (6, edit_all),
    (6, swap_files),
    (9, damage_file),
    (6, add_file),
)


def mutate(rng: random.Random, folder: Path, bases: list[Path]) -> str:
    """Change a folder once, one time in four twice, and say how."""
    told: list[str] = []
    wanted = 2 if rng.random() < 0.25 else 1
    weights, kinds = zip(*MUTATIONS, strict=True)
    while len(told) < wanted:
        try:
            told.append(rng.choices(kinds, weights)[0](rng, folder, bases))
        except Skip:
            if rng.random() < 0.02:
                break
    return "; ".join(told)
