"""The shape of a bench file, part by part, and where in a file a part stands: what an error about it shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from hf_kd.errors import InvalidValueError, did_you_mean
from hf_kd.methods.choices import NO_FP16

PRECISIONS = ("no", "bf16", "fp16")

SHAPES = {
    "": "{model: FOLDER or USER/NAME, dataset: ..., protocol: ..., methods: [...], seeds: [0, 1, 2], measure: {...}}",
    "dataset": "dataset: {name: FOLDER or USER/NAME, train: train, test: test, label_column: label}",
    "protocol": "protocol: {kind: class, forget: [deer]}",
    "methods": "methods: [original, head-surgery, {method: esc, k: 1}, {method: finetune, epochs: 2, seeds: [0]}, "
    "{checkpoint: FOLDER, label: mine}]",
    "seeds": "seeds: [0, 1, 2]",
    "measure": "measure: {attacks: [linear, norm], report: true, panels: [esc], unseen: {name: USER/NAME}}",
    "experiments": "experiments: [{name: deer}, {name: horse, protocol: {kind: class, forget: [horse]}}]",
    "limit": "limit: 500",
    "mixed_precision": "mixed_precision: bf16",
}
"""What is wanted, by the setting; the whole file under ""."""

LIKE = {"retain_limit": "limit", "batch_size": "limit", "train_precision": "mixed_precision"}


class ConfigError(InvalidValueError):
    """What a bench file says wrongly.

    Attributes:
        key: The setting; "" for the file as a whole.
        of_file: That it is said in words of the file, which are no options of the command line.
    """

    of_file = True

    def __init__(self, text: str, key: str = "") -> None:
        self.text, self.key = text, key
        shape = SHAPES.get(LIKE.get(key, key), SHAPES[""]).replace(f"{LIKE.get(key)}:", f"{key}:")
        super().__init__(f"{text} The shape that is wanted: {shape}")


def choices(wrong: object, known: Iterable[str], told: str = "It takes") -> str:
    """What a message about a wrong word goes on with: the one that was probably meant, and all that there are.

    Args:
        wrong: The word, or a mapping in which one of the keys may be.
        known: All that there are.
        told: What introduces them.
    """
    known = list(known)
    strange = [str(key) for key in wrong if key not in known] if isinstance(wrong, Mapping) else [str(wrong)]
    return f"{did_you_mean(strange[0], known) if strange else ''} {told} {', '.join(known)}."


def line_of(text: str, key: str, among: Sequence[str] = ()) -> int | None:
    """The line, from 1, on which a setting stands in a file; None where it does not.

    Args:
        text: The file, which is YAML.
        key: The setting; "" for the first of `among` that is there.
        among: Names of settings.

    Example:
        >>> line_of("model: a\\nseeds: [1, 1]", "seeds")
        2
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    nodes = [root] if root is not None else []
    while nodes:
        node = nodes.pop(0)
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                if name.value == key or (not key and name.value in among):
                    return name.start_mark.line + 1
                if name.value == "experiments" and isinstance(value, yaml.SequenceNode):
                    nodes += value.value
    return None


def listed(value: Any) -> tuple[Any, ...]:
    """A setting that may be a list, one value of it, or missing."""
    return tuple(value) if isinstance(value, list | tuple) else () if value is None else (value,)


def count_of(content: Mapping[str, Any], key: str, name: str) -> int | None:
    """A setting that counts something, None where it is missing.

    Args:
        content: The settings.
        key: Name of this one.
        name: Of the experiment, for the message.

    Raises:
        ConfigError: Where it is no whole number above 0.
    """
    value = content.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ConfigError(f"{key}={value!r} of {name!r} has to be a whole number above 0.", key)
    return value


def precisions_of(content: Mapping[str, Any], name: str, trains: bool) -> list[str | None]:
    """`mixed_precision` and `train_precision`; None where they are not given.

    Args:
        content: Where they may be.
        name: Of the experiment.
        trains: Whether a row changes weights.

    Raises:
        ConfigError: For an unknown one, and for "fp16" where a row changes weights in it.
    """
    found = []
    for key in ("mixed_precision", "train_precision"):
        value = "no" if content.get(key) is False else content.get(key)  # what YAML makes of a bare no
        if value is not None and value not in PRECISIONS:
            raise ConfigError(f"{key}={value!r} of {name!r} is unknown.{choices(value, PRECISIONS, 'Choose')}", key)
        found.append(value)
    key = "mixed_precision" if found[1] is None else "train_precision"
    if trains and (found[1] or found[0]) == "fp16":
        raise ConfigError(f"{key}='fp16' of {name!r} {NO_FP16} Give train_precision.", key)
    return found
