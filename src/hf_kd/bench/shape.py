"""What a bench file is made of: of which kind each setting is, the shape and the line that an error about one shows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
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

Check = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_name(value: Any) -> bool:
    """Whether it is one: also as YAML reads 2024, 1.5 and 2024-01-01, and a path of Python."""
    return not isinstance(value, bool | list | tuple | dict | None) and str(value).strip() != ""


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


KINDS: dict[str, tuple[Check, str]] = {
    **dict.fromkeys(("model", "name", "checkpoint", "init"), (_is_name, "a name or a path")),
    **dict.fromkeys(
        ("train", "test", "image_column", "label_column", "fine_column", "revision"),
        (_is_text, "a name; one that YAML reads as something else stands in quotes"),
    ),
    "label_mapping": (lambda value: isinstance(value, dict), "a mapping, as in {katze: cat}"),
    "classes": (lambda value: not isinstance(value, bool | dict), "a list of labels"),
    "share": (
        lambda value: isinstance(value, int | float) and 0 < value < 1,
        "a number between 0 and 1, without quotes",
    ),
    "seed": (lambda value: type(value) is int and value >= 0, "a whole number from 0 on"),
    **dict.fromkeys(("people", "train_images", "test_images"), (_is_count, "a whole number above 0")),
    **dict.fromkeys(
        ("stratified", "joint", "knowledge_retention", "membership", "bare_pass", "report", "grad_cam", "reference"),
        (lambda value: isinstance(value, bool), "true or false, without quotes"),
    ),
}
"""What a setting has to be, in code and in words; of others it is said where they are read."""

MAY_BE_NULL = frozenset(
    {"train", "test", "revision", "label_mapping", "image_column", "label_column", "classes", "init"}
)
"""A split that is null is the only one there is."""

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


def refuse_other_kinds(settings: Mapping[str, Any], key: str, name: str) -> None:
    """Refuse values that are no such thing: "no" in quotes is true where it is asked for yes or no.

    Args:
        settings: Of one part of the file.
        key: The part, as `ConfigError` names it.
        name: Of the experiment.

    Raises:
        ConfigError: Naming the first.
    """
    for setting, value in settings.items():
        fits, words = KINDS.get(setting, (None, ""))
        if fits is not None and not fits(value) and not (value is None and setting in MAY_BE_NULL):
            raise ConfigError(f"{setting}={value!r} of {name!r} has to be {words}.", key)


def with_text_keys(content: Any) -> Any:
    """The same with text for every key, since YAML reads a bare on, no or 3 as something else; label mappings stay."""
    if isinstance(content, list):
        return [with_text_keys(part) for part in content]
    if not isinstance(content, dict):
        return content
    return {str(key): part if key == "label_mapping" else with_text_keys(part) for key, part in content.items()}


def stands_twice(text: str) -> tuple[str, int, int] | None:
    """A key that stands twice in one mapping of a file, and the lines, from 1, of both; None where none does.

    YAML takes the last of them, and says nothing of the other.

    Args:
        text: The file, which is YAML.

    Example:
        >>> stands_twice("seeds: [0]\nmodel: a\nseeds: [1]")
        ('seeds', 1, 3)
    """
    for mapping in _mappings(yaml.compose(text, Loader=yaml.SafeLoader), set()):
        lines: dict[str, int] = {}
        for key, _ in mapping.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in lines:
                    return key.value, lines[key.value], line
                lines[key.value] = line
    return None


def _mappings(node: Any, seen: set[int]) -> Iterator[yaml.MappingNode]:
    """All mappings in a node, each once: another may be named by an alias, or by itself."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        yield node
    for part in node.value:
        for inner in part if isinstance(part, tuple) else (part,):
            yield from _mappings(inner, seen)


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


def seeds_of(given: Any, name: str) -> tuple[int, ...]:
    """Different whole numbers, one or more.

    Args:
        given: A list of them, or one.
        name: Of the experiment.

    Raises:
        ConfigError: For anything else.
    """
    seeds = listed(given)
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"seeds of {name!r} are {given!r}: give a list of different whole numbers, as in [0, 1, 2].", "seeds"
        )
    return seeds


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


def default_label(name: str, options: Mapping[str, Any]) -> str:
    """What a row is called that has no label.

    Args:
        name: Of its method.
        options: Those that it gives.
    """
    return name if not options else f"{name} ({', '.join(f'{key}={value}' for key, value in options.items())})"


def place_beside(value: Any, folder: Path) -> str:
    """A path relative to the file, where there is one; anything else is a Hub id or a path as it stands.

    Args:
        value: What the file says.
        folder: Where the file is.
    """
    text = str(value)
    place = os.path.join(folder, os.path.expanduser(text))  # what is absolute stays
    return place if os.path.exists(place) else text
