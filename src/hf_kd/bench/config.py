"""What a bench is asked for: a YAML file, checked as a whole before anything runs.

A file describes one experiment, or several that share its top-level settings:

    model: user/classifier            # folder or Hub id
    dataset: {name: user/images, train: train, test: test}
    protocol: {kind: class, forget: [deer]}
    methods: [original, head-surgery, {method: esc, k: 1}, {method: finetune, epochs: 2, seeds: [0]}]
    seeds: [0, 1, 2]
    experiments: [{name: deer}, {name: horse, protocol: {kind: class, forget: [horse]}}]

Every ablation is a row: `{method: esc, p: 5}`, `{method: esc-t, threshold: 0.5}`, `{method: esc, center: true}`, with
`forget_limit: 50` for fewer forget images and `collect_in: train` for a defect of the published code (`Published`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hf_kd.data.paths import local_path
from hf_kd.errors import InvalidValueError, MissingFileError
from hf_kd.methods.registry import available_methods, make_method, make_unlearning_method, method_info
from hf_kd.metrics.attacks import ATTACKS

from .published import Published
from .shape import (
    ConfigError,
    choices,
    count_of,
    default_label,
    line_of,
    listed,
    place_beside,
    precisions_of,
    refuse_other_kinds,
    seeds_of,
    stands_twice,
    with_text_keys,
)

PROTOCOLS: dict[str, frozenset[str]] = {
    "class": frozenset({"forget"}),
    "random": frozenset({"share", "seed", "stratified"}),
    "incremental": frozenset({"forget", "joint"}),
    "subclass": frozenset({"forget", "fine_column"}),
    "identities": frozenset({"forget", "people", "train_images", "test_images", "seed"}),
}
"""Protocols and their settings; see `protocols`."""

REQUIRED: dict[str, frozenset[str]] = {"subclass": frozenset({"forget", "fine_column"})}

PLAIN_ROWS = ("original", "unseen")


@dataclass(frozen=True)
class Row:
    """One line of the table: a method with its settings, a checkpoint made elsewhere, the original, or classes that it was
    never trained on in the place of the forgotten ones (`measure: {unseen: ...}`).
    """

    kind: str
    """"original", "unseen", "eraser", "weights", "checkpoint" or "refused"."""
    name: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    reference: bool = False
    """Whether it stands for the model retrained without D_f."""
    forget_limit: int | None = None
    """N_f: how many images of each request the method sees, drawn by the cell's seed; measured is always on all."""
    published: Published = field(default_factory=Published)
    """Defects of the published code that this row has; none by default."""
    refused: str | None = None
    """Why it cannot run: its method is unknown or does not take its settings."""

    def settings(self, seed: int) -> dict[str, Any]:
        """All hyper-parameters of one cell, as plain values.

        Args:
            seed: That of the cell, for a method that has one.
        """
        if self.kind == "eraser":
            return make_method(self.name, **self._seeded(seed)).settings()
        if self.kind == "weights":
            return make_unlearning_method(self.name, **self._seeded(seed)).settings()
        return dict(self.options)

    def _seeded(self, seed: int) -> dict[str, Any]:
        return {**self.options, "seed": seed} if self.has_seed else dict(self.options)

    @property
    def has_seed(self) -> bool:
        return self.is_method and "seed" in {option.name for option in method_info(self.name).options}

    @property
    def varies(self) -> bool:
        """Whether another seed gives another result."""
        return self.has_seed or self.forget_limit is not None or self.published.draws

    @property
    def needs(self) -> str:
        """What the method reads; "" for what is no method."""
        return method_info(self.name).needs if self.is_method else ""

    @property
    def is_method(self) -> bool:
        return self.kind in ("eraser", "weights")


@dataclass(frozen=True)
class Measures:
    """What is measured of every row beside the head's answers."""

    knowledge_retention: bool = True
    """The converged probe and the paper's, on train and test."""
    membership: bool = True
    attacks: tuple[str, ...] = ()
    """Names of `hf_kd.metrics.ATTACKS`, on the features behind the eraser."""
    bare_pass: bool = False
    """Also how long a bare forward pass over D_f takes just before: the cost of a method as a ratio to it."""
    report: bool = False
    """Also the whole audit of the first seed, with its figures, in `reports/`."""
    transfer: Mapping[str, Any] = field(default_factory=dict)
    """Another labelled data set, as `dataset` and with `resize`, `classes`, `limit`: what a converged probe reads of it
    behind the eraser, for what the features are still good for."""
    unseen: Mapping[str, Any] = field(default_factory=dict)
    """One whose classes the model never saw, for the row `unseen`."""
    panels: tuple[str, ...] = ()
    """Labels of rows whose class means (Fig. 3) and t-SNE are drawn beside the original's, first seed, in `panels/`. The
    original itself stands in every one of them and gets none of its own."""
    grad_cam: bool = False
    """Also Grad-CAM (Fig. 6) for these rows. It shows test images of the forgotten classes."""


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
    """At most so many images of each split, drawn by a fixed seed: every class in its share, and two at least."""
    retain_limit: int | None = None
    """At most so many retained images for methods that train on them."""
    mixed_precision: str = "no"
    train_precision: str | None = None
    """Of the forward passes in which weights are changed, where it is another than that of the features."""
    batch_size: int = 64
    revision: str | None = None

    def cells(self) -> list[tuple[Row, int]]:
        """All pairs of a row and one of its seeds, in order."""
        return [(row, seed) for row in self.rows for seed in row.seeds]


_DATASET = {"name", "train", "test", "image_column", "label_column", "label_mapping"}
_TOP = {f.name for f in dataclasses.fields(Experiment)} - {"rows", "measures"} | {"methods", "measure", "seeds"}


def read_config(path: str | Path, limit: int | None = None, seeds: Sequence[int] | None = None) -> list[Experiment]:
    """The experiments of a YAML file. Relative paths in it start where the file is.

    Args:
        path: The file.
        limit: Overrules that of the file.
        seeds: Overrule those of the file, also of single rows.

    Returns:
        The experiments, in the order of the file.

    Raises:
        MissingFileError: There is no such file.
        InvalidValueError: Something in it is unknown, missing or out of range; the message names it.
    """
    path = local_path(path)
    if not path.is_file():
        raise MissingFileError(f"There is no file {path}; name a YAML file, such as one of benchmarks/paper/.")
    try:
        content = yaml.safe_load(text := path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidValueError(f"{path} is not YAML: {error}") from error
    if again := stands_twice(text):
        raise InvalidValueError(
            f"{path}, line {again[2]}: {again[0]} stands here again, after line {again[1]}. Only one of them would be read."
        )
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; it has to be a mapping: model, dataset, ...")
    try:
        return experiments(content, path.parent, path.stem, limit, seeds)
    except ConfigError as error:
        line = line_of(text, error.key, sorted(map(str, set(content) - _TOP)))
        raise ConfigError(f"{path}{'' if line is None else f', line {line}'}: {error.text}", error.key) from error


def experiments(
    content: Mapping[str, Any],
    folder: Path = Path(),
    stem: str = "bench",
    limit: int | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Experiment]:
    """The experiments that a mapping describes.

    Args:
        content: What a file holds.
        folder: Where relative paths start.
        stem: Name of an experiment that has none.
        limit: As in `read_config`.
        seeds: As in `read_config`.

    Raises:
        ConfigError: Something is unknown, missing or out of range; `key` is the setting.
    """
    try:
        content = with_text_keys(dict(content))
    except RecursionError:
        raise ConfigError("A part of the mapping holds itself, or nests too deeply to be one.") from None
    common = {key: value for key, value in content.items() if key != "experiments"}
    parts = content.get("experiments") or [{}]
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ConfigError(
            "experiments has to be a list of mappings, each overruling the settings above it.", "experiments"
        )
    found = [_experiment({**common, **part}, folder, stem, limit, seeds) for part in parts]
    names = [experiment.name for experiment in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"Experiments need different names, got {', '.join(names)}.", "experiments")
    return found


def _experiment(
    content: Mapping[str, Any], folder: Path, stem: str, limit: int | None, seeds: Sequence[int] | None
) -> Experiment:
    name = str(content.get("name", stem))
    unknown, missing = set(content) - _TOP, {"model", "dataset", "protocol", "methods"} - set(content)
    if unknown or missing:
        what = [f"misses {', '.join(sorted(missing))}"] if missing else []
        what += [f"has unknown settings {', '.join(sorted(unknown))}"] if unknown else []
        raise ConfigError(f"Experiment {name!r} {' and '.join(what)}.{choices(content, sorted(_TOP))}")
    dataset = content["dataset"] if isinstance(content["dataset"], dict) else {"name": content["dataset"]}
    if set(dataset) - _DATASET or "name" not in dataset:
        raise ConfigError(
            f"dataset of {name!r} is {dataset}, and needs a name.{choices(dataset, sorted(_DATASET))}", "dataset"
        )
    for part, key in ((content, ""), (dataset, "dataset")):
        refuse_other_kinds(part, key, name)
    if any(sign in name for sign in "/\\") or name.startswith(".") or not name.isprintable() or len(name) > 100:
        raise ConfigError(f"The name {name!r} becomes a file's: use letters, digits, -, _ and spaces, 100 at most.")
    default_seeds = seeds_of(seeds if seeds is not None else content.get("seeds", [0]), name)
    if not isinstance(content["methods"], list) or not content["methods"]:
        raise ConfigError(f"methods of {name!r} has to be a list of rows, got {content['methods']!r}.", "methods")
    rows = tuple(_row(entry, default_seeds, seeds is not None, folder, name) for entry in content["methods"])
    if all(row.refused for row in rows):
        raise ConfigError(
            f"No row of {name!r} can run: {'; '.join(f'{r.label}: {r.refused}' for r in rows)}", "methods"
        )
    labels = [row.label for row in rows]
    if len(set(labels)) < len(labels):
        twice = sorted({label for label in labels if labels.count(label) > 1})
        raise ConfigError(
            f"Rows of {name!r} need different labels; give label: to one of {', '.join(twice)}.", "methods"
        )
    precision, trained = precisions_of(content, name, any(row.kind == "weights" for row in rows))
    return Experiment(
        name=name,
        model=place_beside(content["model"], folder),
        dataset={"train": "train", "test": "test", **dataset, "name": place_beside(dataset["name"], folder)},
        protocol=_protocol(content["protocol"], name),
        rows=rows,
        measures=_measures(content.get("measure") or {}, rows, folder, name),
        limit=limit if limit is not None else count_of(content, "limit", name),
        retain_limit=count_of(content, "retain_limit", name),
        mixed_precision=precision or "no",
        train_precision=trained,
        batch_size=count_of(content, "batch_size", name) or 64,
        revision=content.get("revision"),
    )


def _measures(given: Any, rows: Sequence[Row], folder: Path, name: str) -> Measures:
    known = {f.name for f in dataclasses.fields(Measures)}
    if not isinstance(given, dict) or set(given) - known:
        raise ConfigError(
            f"measure of {name!r} is {given!r}, which is no mapping of these.{choices(given, sorted(known))}", "measure"
        )
    refuse_other_kinds(given, "measure", name)
    lists = {key: listed(given.get(key)) for key in ("attacks", "panels")}
    strange = [attack for attack in lists["attacks"] if not isinstance(attack, str) or attack not in ATTACKS]
    if strange:
        raise ConfigError(f"Unknown attacks {strange} in {name!r}.{choices(strange[0], ATTACKS, 'Choose')}", "measure")
    drawn = [row.label for row in rows if row.kind != "unseen"]
    strange = [label for label in lists["panels"] if label not in drawn]
    if strange:
        raise ConfigError(f"panels of {name!r} name no row: {strange}.{choices(strange[0], drawn)}", "measure")
    if given.get("grad_cam") and not lists["panels"]:
        raise ConfigError(f"grad_cam of {name!r} needs panels: [labels of the rows to draw].", "measure")
    others = {key: _other(given[key], folder, name) for key in ("transfer", "unseen") if given.get(key)}
    if "unseen" not in others and any(row.kind == "unseen" for row in rows):
        wanted = "measure: {unseen: DATA SET of classes the model never saw}"
        raise ConfigError(f"The row unseen of {name!r} needs {wanted}.", "measure")
    return Measures(**{**given, **lists, **others})


def _other(given: Any, folder: Path, name: str) -> dict[str, Any]:
    where = dict(given) if isinstance(given, dict) else {"name": given}
    known = _DATASET - {"label_mapping"} | {"resize", "classes", "limit"}
    if set(where) - known or "name" not in where:
        raise ConfigError(
            f"{where} of {name!r} is no data set, which needs a name.{choices(where, sorted(known))}", "measure"
        )
    refuse_other_kinds(where, "measure", name)
    for key in ("resize", "limit"):
        count_of(where, key, name)
    return where | {"name": place_beside(where["name"], folder)} | {"classes": list(listed(where.get("classes")))}


def _protocol(given: Any, name: str) -> dict[str, Any]:
    protocol = dict(given) if isinstance(given, dict) else {"kind": given}
    kind = protocol.get("kind")
    if not isinstance(kind, str) or kind not in PROTOCOLS:
        raise ConfigError(f"protocol of {name!r} is {kind!r}.{choices(kind, PROTOCOLS, 'Choose')}", "protocol")
    unknown = set(protocol) - {"kind"} - PROTOCOLS[kind]
    if unknown:
        raise ConfigError(
            f"The {kind} protocol of {name!r} has no {', '.join(sorted(unknown))}."
            f"{choices(min(unknown), sorted(PROTOCOLS[kind]))}",
            "protocol",
        )
    refuse_other_kinds(protocol, "protocol", name)
    missing = REQUIRED.get(kind, frozenset()) - set(protocol)
    if missing:
        raise ConfigError(f"The {kind} protocol of {name!r} needs {', '.join(sorted(missing))}.", "protocol")
    return protocol


def _row(entry: Any, seeds: tuple[int, ...], fixed: bool, folder: Path, experiment: str) -> Row:
    """A row as the file has it, but for fixed seeds. One whose method or settings are refused is kept with the reason."""
    if not isinstance(entry, str | dict):
        raise ConfigError(
            f"A row of {experiment!r} is {entry!r}: write a method's name, or {{method: NAME, ...}}.", "methods"
        )
    values: dict[str, Any] = {"method": entry} if isinstance(entry, str) else dict(entry)
    label = values.pop("label", None)
    own = {key: values[key] for key in ("checkpoint", "init", "reference") if key in values}  # others are the method's
    refuse_other_kinds(own, "methods", experiment)
    if "checkpoint" in values:
        given, reference = str(values.pop("checkpoint")), values.pop("reference", False)
        if values:
            raise ConfigError(
                f"A checkpoint row of {experiment!r} takes label and reference, not {', '.join(values)}.", "methods"
            )
        return Row(
            "checkpoint", "checkpoint", str(label or given), {"path": place_beside(given, folder)}, (0,), reference
        )
    name = values.pop("method", None)
    if name is None:
        raise ConfigError(f"A row of {experiment!r} names no method: {entry}. Write {{method: NAME, ...}}.", "methods")
    if name in PLAIN_ROWS:
        refused = f"The row {name} takes a label alone, not {', '.join(values)}." if values else None
        label = str(label or default_label(name, values))
        return Row("refused" if values else name, name, label, values, (0,), refused=refused)
    given, reference = seeds_of(values.pop("seeds", seeds), experiment), values.pop("reference", False)
    own_seeds, label = seeds if fixed else given, str(label or default_label(name, values))
    values |= {"init": place_beside(values["init"], folder)} if values.get("init") else {}
    try:
        row = _method_row(str(name), values, label, own_seeds, reference, experiment)
    except (TypeError, ValueError) as error:
        return Row("refused", str(name), label, values, (0,), refused=getattr(error, "text", str(error)))
    return row if row.varies else dataclasses.replace(row, seeds=own_seeds[:1])


def _method_row(
    name: str, values: Mapping[str, Any], label: str, seeds: tuple[int, ...], reference: bool, experiment: str
) -> Row:
    """A row with a method and its settings; TypeError or ValueError where they are refused."""
    known = available_methods(None)
    if name not in known:
        raise InvalidValueError(
            f"Unknown method {name!r}.{choices(name, ['original', *known], 'Choose')} Or give checkpoint: FOLDER for a "
            "model made elsewhere."
        )
    kind = method_info(name).kind
    limit = count_of(values, "forget_limit", f"{label} in {experiment}")
    options = {key: value for key, value in values.items() if key != "forget_limit"}
    published = Published.taken_from(options, kind, name)
    row = Row(kind, name, label, options, seeds, reference or name == "retrain", limit, published)
    row.settings(0)  # bad options are refused before the first cell runs
    return row
