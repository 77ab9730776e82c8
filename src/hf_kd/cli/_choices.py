"""Options that are one of a few names known in advance: refused before seconds go into torch.

The names of options that the library checks itself stand here a second time, since the modules that know them import torch;
tests hold both to each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_kd.errors import InvalidValueError, check_choice, check_names, did_you_mean
from hf_kd.model.recipes import RECIPES

SUITES = ("standard", "full")

FEW_SHOT = tuple(f"few-shot-{shots}-{metric}" for shots in (1, 5, 10) for metric in ("l2", "cosine"))

VIEWS = tuple(f"views-{count}-{kind}" for count in (2, 3) for kind in ("linear", "mlp"))

ATTACKS = ("linear", "linear-binary", "mlp-small", "mlp-large", "rbf-standardised", "rbf-whitened", "knn-l2", "knn-cosine",
           *FEW_SHOT, "relearn-1%", "relearn-2%", "relearn-5%", "norm", "weighted-3", "at-1%-false-alarms",
           "at-5%-false-alarms", "at-25%-false-alarms", "groups-of-5-linear", "groups-of-5-mlp", *VIEWS)  # fmt: skip
"""Of `hf_kd.metrics.ATTACKS`, in its order."""

DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "npu", "mlu", "musa", "xla")
"""Kinds of devices of torch and its extensions. Whether one is there only torch can tell."""

CALLED = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "metal": "mps", "gaudi": "hpu", "tpu": "xla"}
"""What torch calls devices that are typed by another name."""

CHOICES: dict[str, tuple[str, ...]] = {
    "access": ("features", "weights"),
    "mixed_precision": ("no", "fp16", "bf16"),
    "labels": ("model", "dataset"),
    "dtype": ("float32", "float16"),
    "recipe": tuple(RECIPES),
}
"""Names that an option of a command may be, by the argument that it fills."""


def refuse_unknown(given: Mapping[str, Any], settings: Mapping[str, Sequence[str]]) -> None:
    """Refuse arguments of a command whose names are known in advance and are others.

    Files of a user's own (`--import`) may bring attacks: with them the library checks those.

    Args:
        given: Arguments and their values.
        settings: The words that settings of the command's methods may be, some of which share an option with another
            argument.

    Raises:
        InvalidValueError: With the names, and the one that was probably meant.
    """
    for name, choices in CHOICES.items():
        if given.get(name) is not None:
            check_choice(name, given[name], (*choices, *settings.get(name, ())))
    if given.get("attacks") is not None and not given.get("imports"):
        check_names("attacks", with_commas(given["attacks"]), ATTACKS, SUITES)
    if given.get("device") is not None:
        _refuse_device(given["device"])


def with_commas(names: str) -> list[str]:
    """Names with commas between them, and spaces where somebody typed them."""
    return [name.strip() for name in names.split(",")]


def _refuse_device(name: str) -> None:
    kind, colon, number = name.partition(":")
    if kind not in DEVICES or (colon and not number.isdecimal()):
        near = did_you_mean(kind, [*DEVICES, *CALLED], most=1, called=CALLED)
        raise InvalidValueError(
            f"device={name!r} is no name of a device: expected {', '.join(DEVICES)}, with a number or without, as in "
            f"cuda:1.{near}"
        )
