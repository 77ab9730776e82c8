"""The record of a carried-out request, as it stands in a configuration, a receipt and a report."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.metadata import version
from typing import Any, cast

from hf_kd.errors import InvalidValueError


def _finite(value: Any) -> Any:
    """Plain values, with None for numbers that are not finite: a receipt that cannot be written would cost the model."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return type(value)(map(_finite, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True, repr=False)
class Erasure:
    """The record of one carried-out request. Holds no image data and no paths; classes are the model's own ids."""

    method: str
    settings: dict[str, Any]
    """Hyper-parameters of the method."""
    taps: tuple[str, ...]
    n_forget: int
    classes: tuple[int, ...] | None
    """Ids of the forgotten classes in the `class_names` of the model; None for samples of classes that stay, and where the
    model does not know the labels."""
    measured: tuple[dict[str, Any], ...]
    """What was measured while fitting, for each tap: k, share of forget energy removed, hits before and after, ..."""
    rank_removed: tuple[int, ...]
    condition_number: tuple[float | None, ...]
    """Of each fitted eraser; None when it has a null space, so that no inverse exists."""
    sha256: tuple[str, ...]
    """Of the buffers of each fitted eraser, little-endian, in order of their names."""
    dtype: str
    """In which the features were computed."""
    feature_seconds: float
    fit_seconds: float
    """That the method took; of a training that was gone on with, with those of earlier calls up to what was kept of them."""
    processes: int = 1
    versions: dict[str, str] = field(default_factory=dict)
    n_retain: int | None = None
    """Images of D_r that were read; None where the method needs none."""
    masked: bool | None = None
    """Whether the head never answers the forgotten classes any more; None where neither method nor user asked for it."""
    erased_label: str | None = None
    """What masked classes are called; None where they were dropped from labels and logits."""
    needs: str | None = None
    """What the method reads, as in its `MethodInfo`; None in records of 0.1.0."""
    source: str | None = None
    """Where the method and its defaults come from; None in records of 0.1.0."""
    warnings: tuple[str, ...] = ()
    """What was noticed and may not be meant, such as labels that the head does not agree with; without names of classes."""
    withheld: tuple[str, ...] | None = None
    """Fields of the output that bypass the erasers and are not returned; None in records of 0.1.0."""
    dataset_classes: tuple[str, ...] | None = None
    """The data set's names of the forgotten labels, or those of a head that was replaced since, where the model has no such
    labels and `classes` is None for that.

    They stand in the config.json of a saved model, as the model's own labels do; cards, receipts, and what is pushed to
    the Hub have them only where names of classes are asked for (`show_class_names`)."""
    sampled: dict[str, dict[str, int]] | None = None
    """Of the sets ("forget", "retain"; by name, where one set holds both, "images") that were not read as a whole: how many
    were drawn, of how many, by which seed where `ReadOptions.limit` drew them. None where everything was read."""
    files: dict[str, dict[str, Any]] | None = None
    """By the same names the files that were read, as `hf_kd.data.read_files.files_of` tells them; None where that is not
    known. They stand in the config.json and the receipt of a saved model, and in what is pushed to the Hub only where names
    of classes are asked for: a file may be called as what is in it."""
    n_texts: int | None = None
    """Texts that were forgotten by name; None for a request by images alone."""
    texts_sha256: str | None = None
    """Salt and digest of these texts, as `hf_kd.methods.records.texts_digest` makes it."""
    texts: tuple[str, ...] | None = None
    """The texts themselves, only where the user asked for them to be published."""

    @property
    def k(self) -> int:
        """Directions removed, over all taps."""
        return sum(self.rank_removed)

    @property
    def n_read_forget(self) -> int:
        """Images of D_f that the method read, where that is a part of those that it was given; else all of them."""
        return next((part["n_forget"] for part in self.measured if "n_forget" in part), self.n_forget)

    @property
    def n_read_retain(self) -> int | None:
        """Images of D_r that the method read, where that is a part of those that it was given; else all of them."""
        return next((part["n_retain"] for part in self.measured if "n_retain" in part), self.n_retain)

    @property
    def energy_removed(self) -> float | None:
        """Share of sum ||h||^2 of D_f that was removed (first tap); None for methods that do not remove a subspace."""
        return self.measured[0].get("energy_removed")

    @property
    def weights_dtype(self) -> str:
        """Of the weights at the time: those of passes in fp16 or bf16 stay in float32."""
        return "float32" if self.dtype in ("fp16", "bf16") else self.dtype

    @property
    def summary(self) -> str:
        """One line: what was forgotten, by which method, from how many images, and what that took."""
        what = "samples" if self.classes is None else class_list([str(label) for label in self.classes])
        if self.n_texts:
            what = "a concept"
        from hf_kd.data.text import one_line  # records are read while transformers is still being imported

        return one_line(f"{what} forgotten by {self.method} from {self.read_from}; {self._what_changed()}")

    @property
    def read_from(self) -> str:
        """Images and texts that the method read, in words."""
        of = {name: f" (a sample of {each['of']:,})" for name, each in (self.sampled or {}).items()}
        if self.needs == "D_r":
            return f"{self.n_read_retain or 0:,} retained images{of.get('retain', '')}"
        images = f"{self.n_read_forget:,} images{of.get('forget', '')}"
        if self.n_read_retain:
            images += f" and {self.n_read_retain:,} retained ones{of.get('retain', '')}"
        return fitted_from(self.n_forget, self.n_texts, images)

    def _what_changed(self) -> str:
        energy = self.energy_removed if self.measured else None
        share = "" if energy is None else f", {100 * energy:.1f} % of the energy of D_f removed"
        return f"k = {self.k} at {', '.join(self.taps)}{share}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.summary}>"

    def __rich__(self) -> Any:
        from rich.text import Text

        return Text(self.summary)

    def _repr_markdown_(self) -> str:
        from hf_kd.data.text import escape_markdown

        return f"**{type(self).__name__}**: {escape_markdown(self.summary, 300)}"

    def to_dict(self, names: bool = False, files: bool | None = None) -> dict[str, Any]:
        """All fields, as plain values. What was measured and is no finite number is None: JSON has no such numbers.

        Args:
            names: Whether `dataset_classes` is among them: for a configuration, and where names of classes are asked for.
            files: Whether `files` is; by default where `names` are.
        """
        values = asdict(self) | {"measured": _finite(self.measured)}
        if not names or self.dataset_classes is None:
            del values["dataset_classes"]
        if not (names if files is None else files) or self.files is None:
            del values["files"]
        if self.sampled is None:
            del values["sampled"]
        if self.n_texts is None:
            values = {key: value for key, value in values.items() if key not in ("n_texts", "texts_sha256", "texts")}
        return values

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Erasure:
        """Inverse of `to_dict`.

        Args:
            data: What `to_dict` gave, also after JSON. Keys of a later version are ignored.
        """
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in data.items() if key in known}
        tuples = ("taps", "classes", "measured", "rank_removed", "condition_number", "sha256", "warnings", "withheld",
                  "dataset_classes", "texts")  # fmt: skip
        for name in tuples:
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        return cls(**values)


@dataclass(frozen=True, repr=False)
class WeightChange(Erasure):
    """The record of one request that changed weights (`hf_kd.unlearn`). No eraser stands for it: `taps` and the rest are
    empty. Kept by the changed model's own configuration as `hf_kd_unlearned`.
    """

    base_model: str | None = None
    """Hub id of the model before the change; None where it came from somewhere else."""
    base_commit: str | None = None
    weights_before: str | None = None
    """Digest of its weights, as in the receipt."""
    weights_after: str | None = None
    """Digest of the weights that it left; None in records of 0.1.0."""
    folded_before: int = 0
    """How many erasers had been folded into the weights before it; 0 too in records of versions that did not count them."""

    def __post_init__(self) -> None:
        if type(self.folded_before) is not int or self.folded_before < 0:
            raise InvalidValueError(f"folded_before={self.folded_before!r} is no number of erasers.")

    def _what_changed(self) -> str:
        return f"weights of {self.base_model} changed" if self.base_model else "weights changed"


def fitted_from(n_images: int, n_texts: int | None = None, images: str = "") -> str:
    """What an eraser was fitted from: images, texts, or both; `images`: other words for the images."""
    told = images or f"{n_images:,} images"
    if not n_texts:
        return told
    return f"{n_texts} text{'s' * (n_texts > 1)}" + (f" and {told}" if n_images else "")


def texts_digest(texts: Sequence[str], salt: str) -> str:
    """`SALT:SHA256` of texts, in any order and case: says whether words are these, and does not say which they are."""
    words = "\n".join([salt, *sorted(text.casefold() for text in texts)])
    return f"{salt}:{hashlib.sha256(words.encode()).hexdigest()}"


def class_list(labels: Sequence[str]) -> str:
    """Up to three classes by their labels, of more the number."""
    if len(labels) > 3:
        return f"{len(labels)} classes"
    return f"class {labels[0]}" if len(labels) == 1 else f"classes {', '.join(labels)}"


def weight_changes(config: Any) -> tuple[WeightChange, ...]:
    """What `hf_kd.unlearn` did to the weights of the model of this configuration (an erased model's: of the one inside).

    Oldest first; empty where nothing was done. Raises ValueError for records that cannot be read.
    """
    stored = getattr(getattr(config, "inner", None) or config, "hf_kd_unlearned", None) or []
    with config_errors("hf_kd_unlearned", stored):
        return tuple(cast(WeightChange, WeightChange.from_dict(record)) for record in stored)


def folded_erasures(config: Any) -> tuple[Erasure, ...]:
    """The requests whose erasers were folded into the head of the model of this configuration, as `weight_changes`."""
    stored = getattr(getattr(config, "inner", None) or config, "hf_kd_folded", None) or []
    with config_errors("hf_kd_folded", stored):
        return tuple(Erasure.from_dict(record) for record in stored)


def changes_of(config: Any) -> tuple[Erasure, ...]:
    """All that the weights of a model with this configuration were changed for: by unlearning, and by a fold."""
    return (*weight_changes(config), *folded_erasures(config))


def all_records(model: Any) -> tuple[Erasure, ...]:
    """All that a model was made to forget: by changed weights, by erasers folded into them, by those that stand in it."""
    return (*changes_of(model.config), *model.erasures)


def carried_out(model: Any) -> list[tuple[Erasure, bool]]:
    """`all_records` in the order in which they were carried out, each with whether its eraser was folded in since."""
    found: list[tuple[Erasure, bool]] = []
    folded, done = folded_erasures(model.config), 0
    for change in weight_changes(model.config):
        found += [*((one, True) for one in folded[done : change.folded_before]), (change, False)]
        done = max(done, change.folded_before)
    return [*found, *((one, True) for one in folded[done:]), *((one, False) for one in model.erasures)]


def classes_in(records: Iterable[Erasure]) -> set[int]:
    """Ids of all classes that these requests name."""
    return {label for record in records for label in record.classes or ()}


def forgotten_classes(model: Any) -> set[int]:
    """Ids of the classes that `all_records` name. Changed weights that name every class were changed for samples."""
    return classes_in(r for r in all_records(model) if len(r.classes or ()) < len(model.class_names))


def treatment(changes: Any, erasures: Any) -> str:
    """What was done to a model, in a word: "erased" where erasers stand in it, else "changed" where its weights were, else
    "audited".

    Args:
        changes: As of `changes_of`, or whether there are any.
        erasures: Of the erasers, likewise.
    """
    return "erased" if erasures else "changed" if changes else "audited"


@contextlib.contextmanager
def config_errors(what: str, value: Any) -> Iterator[None]:
    """What a config.json says wrongly is a ValueError, whatever it trips over."""
    from huggingface_hub.errors import StrictDataclassError  # configurations of transformers check their fields by it

    try:
        yield
    except (TypeError, LookupError, AttributeError, ValueError, ArithmeticError, StrictDataclassError) as error:
        raise InvalidValueError(
            f"config.json describes {what} as {str(value)[:200]!r}, which cannot be read ({type(error).__name__}: {error}). "
            "It is damaged, or of a later hf_kd: save the model again, or install a later version."
        ) from error


def versions() -> dict[str, str]:
    """Of what decides about the numbers."""
    return {name: installed(name) for name in ("hf-kd", "torch", "transformers", "datasets", "accelerate")}


@cache
def installed(package: str) -> str:
    """Its version, read once: a file of metadata is parsed whole for it, for every record, receipt and report."""
    return version(package)
