"""What a bench is asked for: a YAML file, checked as a whole before anything runs.

A file describes one experiment, or several that share its top-level settings:

    model: user/classifier            # folder or Hub id
    dataset: {name: user/images, train: train, test: test}
    protocol: {kind: class, forget: [deer]}
    methods: [original, head-surgery, {method: esc, k: 1}, {method: finetune, epochs: 2, seeds: [0]}]
    seeds: [0, 1, 2]
    experiments: [{name: deer}, {name: horse, protocol: {kind: class, forget: [horse]}}]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..audit import ATTACKS
from ..erasers import available_methods, get_method, make_method
from ..unlearning import make_unlearning_method, unlearning_methods

PROTOCOLS: dict[str, frozenset[str]] = {
    "class": frozenset({"forget"}),
    "random": frozenset({"share", "seed", "stratified"}),
    "incremental": frozenset({"forget", "joint"}),
    "subclass": frozenset({"forget", "fine_column"}),
    "identities": frozenset({"forget", "people", "train_images", "test_images", "seed"}),
}
"""Protocols and their settings; see `protocols`."""

PLAIN_ROWS = ("original",)


@dataclass(frozen=True)
class Row:
    """One line of the table: a method with its settings, a checkpoint made elsewhere, or the original."""

    kind: str
    """"original", "eraser", "weights" or "checkpoint"."""
    name: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    reference: bool = False
    """Whether it stands for the model retrained without D_f."""

    def settings(self, seed: int) -> dict[str, Any]:
        """All hyper-parameters with this seed, as plain values."""
        if self.kind == "eraser":
            return make_method(self.name, **self._seeded(seed)).settings()
        if self.kind == "weights":
            return make_unlearning_method(self.name, **self._seeded(seed)).settings()
        return dict(self.options)

    def _seeded(self, seed: int) -> dict[str, Any]:
        return {**self.options, "seed": seed} if self.has_seed else dict(self.options)

    @property
    def has_seed(self) -> bool:
        if self.kind == "weights":
            return True
        return self.kind == "eraser" and "seed" in {f.name for f in dataclasses.fields(get_method(self.name))}


@dataclass(frozen=True)
class Measures:
    """What is measured of every row beside the head's answers."""

    knowledge_retention: bool = True
    """The converged probe and the paper's, on train and test."""
    membership: bool = True
    attacks: tuple[str, ...] = ()
    """Names of `hf_kd.audit.ATTACKS`, on the features behind the eraser."""
    report: bool = False
    """Also the whole audit of the first seed, with its figures, in `reports/`."""


@dataclass(frozen=True)
class Experiment:
    """One model, one data set, one protocol; every row of `rows` with each of its seeds."""

    name: str
    model: str
    dataset: Mapping[str, Any]
    protocol: Mapping[str, Any]
    rows: tuple[Row, ...]
    measures: Measures = Measures()
    limit: int | None = None
    """At most so many images of each split, drawn by a fixed seed with every class in its share."""
    retain_limit: int | None = None
    """At most so many retained images for methods that train on them."""
    mixed_precision: str = "no"
    train_precision: str | None = None
    """Of the forward passes in which weights are changed, where it is another than that of the features."""
    batch_size: int = 64
    revision: str | None = None

    def cells(self) -> list[tuple[Row, int]]:
        return [(row, seed) for row in self.rows for seed in row.seeds]


_DATASET = {"name", "train", "test", "image_column", "label_column", "label_mapping"}
_TOP = {f.name for f in dataclasses.fields(Experiment)} - {"rows", "measures"} | {"methods", "measure", "seeds"}


def read_config(path: str | Path, limit: int | None = None, seeds: Sequence[int] | None = None) -> list[Experiment]:
    """The experiments of a YAML file. Relative paths in it start where the file is.

    limit, seeds: overrule those of the file. Raises FileNotFoundError, and ValueError for anything in the file that is
    unknown, missing or out of range, naming it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; name a YAML file, such as one of benchmarks/paper/.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; it has to be a mapping: model, dataset, ....")
    return experiments(content, path.parent, path.stem, limit, seeds)


def experiments(
    content: Mapping[str, Any],
    folder: Path = Path(),
    stem: str = "bench",
    limit: int | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Experiment]:
    """The experiments that a mapping describes; see `read_config`."""
    common = {key: value for key, value in content.items() if key != "experiments"}
    parts = content.get("experiments") or [{}]
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError("experiments has to be a list of mappings, each overruling the settings above it.")
    found = [_experiment({**common, **part}, folder, stem, limit, seeds) for part in parts]
    names = [experiment.name for experiment in found]
    if len(set(names)) < len(names):
        raise ValueError(f"Experiments need different names, got {', '.join(names)}.")
    return found


def _experiment(
    content: Mapping[str, Any], folder: Path, stem: str, limit: int | None, seeds: Sequence[int] | None
) -> Experiment:
    name = str(content.get("name", stem))
    unknown, missing = set(content) - _TOP, {"model", "dataset", "protocol", "methods"} - set(content)
    if unknown or missing:
        what = (
            f"misses {', '.join(sorted(missing))}" if missing else f"has unknown settings {', '.join(sorted(unknown))}"
        )
        raise ValueError(f"Experiment {name!r} {what}; it may have {', '.join(sorted(_TOP))}.")
    dataset = content["dataset"] if isinstance(content["dataset"], dict) else {"name": content["dataset"]}
    if set(dataset) - _DATASET or "name" not in dataset:
        raise ValueError(f"dataset of {name!r} is {dataset}; it takes {', '.join(sorted(_DATASET))}, and needs a name.")
    default_seeds = tuple(seeds if seeds is not None else content.get("seeds", (0,)))
    rows = tuple(_row(entry, default_seeds, folder, name) for entry in content["methods"])
    labels = [row.label for row in rows]
    if len(set(labels)) < len(labels):
        twice = sorted({label for label in labels if labels.count(label) > 1})
        raise ValueError(f"Rows of {name!r} need different labels; give label: to one of {', '.join(twice)}.")
    measure = dict(content.get("measure") or {})
    known = {f.name for f in dataclasses.fields(Measures)}
    if set(measure) - known:
        raise ValueError(f"measure of {name!r} has unknown settings; it takes {', '.join(sorted(known))}.")
    strange = [attack for attack in measure.get("attacks", ()) if attack not in ATTACKS]
    if strange:
        raise ValueError(f"Unknown attacks {strange} in {name!r}; choose among {', '.join(ATTACKS)}.")
    return Experiment(
        name=name,
        model=_place(content["model"], folder),
        dataset={"train": "train", "test": "test", **dataset, "name": _place(dataset["name"], folder)},
        protocol=_protocol(content["protocol"], name),
        rows=rows,
        measures=Measures(**{**measure, "attacks": tuple(measure.get("attacks", ()))}),
        limit=limit if limit is not None else content.get("limit"),
        retain_limit=content.get("retain_limit"),
        mixed_precision=str(content.get("mixed_precision", "no")) if content.get("mixed_precision") else "no",
        train_precision=content.get("train_precision"),
        batch_size=int(content.get("batch_size", 64)),
        revision=content.get("revision"),
    )


def _protocol(given: Any, name: str) -> dict[str, Any]:
    protocol = dict(given) if isinstance(given, dict) else {"kind": given}
    kind = protocol.get("kind")
    if kind not in PROTOCOLS:
        raise ValueError(f"protocol of {name!r} is {kind!r}; choose {', '.join(PROTOCOLS)}.")
    unknown = set(protocol) - {"kind"} - PROTOCOLS[kind]
    if unknown:
        raise ValueError(
            f"The {kind} protocol of {name!r} has no {', '.join(sorted(unknown))}; it takes "
            f"{', '.join(sorted(PROTOCOLS[kind]))}."
        )
    return protocol


def _row(entry: Any, seeds: tuple[int, ...], folder: Path, experiment: str) -> Row:
    values = {"method": entry} if isinstance(entry, str) else dict(entry) if isinstance(entry, dict) else {}
    label, reference = values.pop("label", None), bool(values.pop("reference", False))
    own_seeds = tuple(values.pop("seeds", seeds))
    if "checkpoint" in values:
        path = _place(values.pop("checkpoint"), folder)
        if values:
            raise ValueError(f"A checkpoint row of {experiment!r} takes label and reference, not {', '.join(values)}.")
        return Row("checkpoint", "checkpoint", label or path, {"path": path}, (0,), reference)
    name = values.pop("method", None)
    if name in PLAIN_ROWS:
        return Row(name, name, label or name, {}, (0,))
    erasers, others = available_methods(), unlearning_methods()
    if name not in erasers and name not in others:
        raise ValueError(
            f"Unknown method {name!r} in {experiment!r}; choose among original, {', '.join([*erasers, *others])}, or give "
            "checkpoint: FOLDER for a model made elsewhere."
        )
    kind = "eraser" if name in erasers else "weights"
    row = Row(kind, name, label or _label(name, values), values, own_seeds, reference or name == "retrain")
    try:
        row.settings(0)  # bad options are refused before the first cell runs
    except (TypeError, ValueError) as error:
        raise ValueError(f"Row {row.label!r} of {experiment!r}: {error}") from error
    return row if row.has_seed else dataclasses.replace(row, seeds=own_seeds[:1])


def _label(name: str, options: Mapping[str, Any]) -> str:
    return name if not options else f"{name} ({', '.join(f'{key}={value}' for key, value in options.items())})"


def _place(value: Any, folder: Path) -> str:
    """A path relative to the file, where there is one; anything else is a Hub id or a path as it stands."""
    text = str(value)
    beside = folder / text
    return str(beside) if not Path(text).is_absolute() and beside.exists() else text
