"""`access="weights"`: the white-box battery on the model of an audit, its original and its references, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from hf_kd.data.devices import refuse_unreachable_weights
from hf_kd.errors import LabelMismatchError
from hf_kd.features.heads import several_labels
from hf_kd.features.protocol import TappedModel
from hf_kd.features.reader import ReadOptions
from hf_kd.methods.records import treatment, weight_changes
from hf_kd.methods.unlearning.retrain import Retrain
from hf_kd.metrics.weight_signature import PartSignature, weight_signature

from .downloader import VERSIONS
from .hidden_states import blocks_read
from .schema import Section
from .sections.reference_level import ReadLevel
from .sections.weight_access import left_out_notes, weight_access_data, weight_access_section
from .whitebox.battery import READ, run_battery
from .whitebox.findings import NetworkFindings
from .whitebox.images import most_images, rows_of_fewer_classes, white_box_images
from .whitebox.network import Network, WhiteBoxData

NAMED = 3
"""Classes that a refusal names, at most."""

SHOWN = ("erased", "original", "reference")
"""Networks that have a column; of further references only the converged probe is used."""


@dataclass(frozen=True, eq=False)
class AuditImages:
    """The data of an audit, as the model's class ids number it."""

    images: Mapping[str, Any]
    """The splits "train" and "test"."""
    labels: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    forget: Sequence[int]
    reading: ReadOptions
    numbers: Mapping[str, Tensor] | None = None
    """Row number of each sample, where that is not its place."""
    names: Mapping[int, str] | None = None
    """Of the class ids, where they are not the model's."""


@dataclass(frozen=True, eq=False)
class WeightAccess:
    """What the battery found in all networks, the section about it, and the data of verdict and figures."""

    found: Mapping[str, NetworkFindings]
    section: Section
    data: Mapping[str, Any]
    n_forget: int
    """Forgotten test images that the probes were read on; attacks that train read fewer."""

    @property
    def levels(self) -> list[ReadLevel]:
        """What the converged probe reads in the bare networks, for the level of references at equal accuracy."""
        points = {name: own.level() for name, own in self.found.items()}
        others = [point for name, point in points.items() if name.startswith("reference") and point is not None]
        own = points["erased"]
        return [ReadLevel("bare network", own, tuple(others), self.n_forget)] if own is not None and others else []


def measure_weight_access(
    model: TappedModel,
    data: AuditImages,
    original: TappedModel | None = None,
    references: Sequence[TappedModel] = (),
    budget: float | None = None,
    seed: int = 0,
    changed: bool = False,
) -> WeightAccess:
    """Run the battery on a model beside its original and references.

    Args:
        model: The audited model. Where no original is given and its weights were not changed, they are the original's, and
            are attacked once for both.
        data: Images and labels.
        original: The model before its weights were changed.
        references: Models that never saw the forgotten classes; the first stands in the column of the reference.
        budget: Minutes; None for all attacks, as long as they take.
        seed: Of all that is random.
        changed: Whether its weights were changed: without an original nothing of before stands beside it then.

    Raises:
        InvalidValueError: For weights that are offloaded or quantised.
        LabelMismatchError: For an original or a reference that lacks a retained class by its name.
    """
    for one in (model, *([] if original is None else [original]), *references):
        refuse_unreachable_weights(one.inner, "access='weights'")
    kept = rows_of_fewer_classes(data.labels, data.kept, data.forget)
    data = replace(data, kept=kept)
    models: dict[str, TappedModel] = {"erased": model}
    if original is not None:
        models["original"] = original
    models |= {"reference" if n == 0 else f"reference {n + 1}": other for n, other in enumerate(references)}
    names = dict(data.names or model.class_names)
    cut = last_kept(model)
    networks = {name: Network.of(other, names, cut) for name, other in models.items()}
    _refuse_other_classes(networks, names, data)
    images = _images_of(models, data)
    found = run_battery(
        networks,
        images,
        budget=budget,
        seed=seed,
        together=SHOWN,
        called={"erased": treatment(changed, model.erasures)},
        progress=data.reading.progress,
    )
    notes = [_sampled(images["erased"], data, blocks_read(model, networks["erased"].blocks))]
    if original is None and changed:
        notes.append("The weights were changed and no original was given: nothing of before stands beside them.")
    elif original is None:
        found["original"] = found["erased"]
        own = "whoever takes the eraser off has it back" if model.erasures else "nothing was done to them"
        notes.append(
            f"No other original was given: the weights are those of the original, and {own}. Both columns are one and the "
            "same network."
        )
    classes = len(data.labels["train"][data.kept["train"]].unique())
    shown = {version: found[version] for version in SHOWN if version in found}
    notes += left_out_notes(found)
    notes += _among(networks["erased"], classes)
    if several_labels(model):
        notes.append(
            "The head may give an image several labels. Here it answers the one with the largest logit among the classes "
            "that were read, and attacks train it so: its F and R are not those by which it answers itself (D_ft and D_rt)."
        )
    notes += _kept_to(
        shown, "the lower third" if cut is None else "the last block that was kept when the weights were changed"
    )
    section = weight_access_section(shown, classes, len(data.forget), _signatures(networks), notes)
    return WeightAccess(found, section, weight_access_data(found), int(images["erased"].test_forget.sum()))


def _kept_to(found: Mapping[str, NetworkFindings], which: str) -> list[str]:
    """Up to which block who regrows keeps each network: those of another architecture have blocks of other names."""
    kept = {version: own.regrown.settings["kept_to"] for version, own in found.items() if own.regrown is not None}
    if len(set(kept.values())) > 1:
        named = ", ".join(f"{VERSIONS[version]} up to {block}" for version, block in kept.items())
        return [f"Who regrows keeps {named}, {which} each."]
    return [
        f"Who regrows keeps every network up to {block}, {which}: where two have the same weights there, they have the "
        "same number."
        for block in set(kept.values())
    ]


def last_kept(model: TappedModel) -> str | None:
    """Up to which block a model was kept when the part above was drawn anew, by its records; None where it was not."""
    for change in reversed(weight_changes(model.config)):
        block = next((part["block"] for part in change.measured if "block" in part), None)
        if block is not None or change.method == Retrain.name:  # which draws everything anew
            return block
    return None


def _refuse_other_classes(networks: Mapping[str, Network], names: Mapping[int, str], data: AuditImages) -> None:
    """A network whose head has no row for a retained class would be given one, and its answers be those of the attacker."""
    shown = data.labels["train"][data.kept["train"]].unique().tolist()
    retained = [label for label in shown if label not in data.forget]
    for name, network in networks.items():
        missing = [label for label in retained if network.columns is not None and label not in network.columns]
        if missing and network.heads:
            told = ", ".join(repr(names.get(label, label)) for label in missing[:NAMED])
            raise LabelMismatchError(
                f"The {name} ({type(network.model).__name__}) has no class called {told}, {len(missing)} of the "
                f"{len(retained)} retained ones that the images show: its answers cannot be read by the audited model's "
                "classes. Name its classes as there (id2label and label2id of its config), or audit without it."
            )


def _images_of(models: Mapping[str, TappedModel], data: AuditImages) -> dict[str, WhiteBoxData]:
    """The same images as each model wants them; models that preprocess alike share them."""
    keys: dict[str, str] = {}
    unlike: dict[str, TappedModel] = {}
    for name, model in models.items():
        processor = model.processor
        key = str(processor.to_dict()) if hasattr(processor, "to_dict") else str(id(processor))
        keys[name] = key + str(next(model.inner.parameters()).device)
        unlike.setdefault(keys[name], model)
    most = most_images(unlike.values(), data.images, data.reading)
    made = {
        key: white_box_images(model, data.images, data.labels, data.kept, data.forget, data.reading, most, data.numbers)
        for key, model in unlike.items()
    }
    return {name: made[key] for name, key in keys.items()}


def _sampled(images: WhiteBoxData, data: AuditImages, blocks: str) -> str:
    """Of how much everything here was measured."""
    counts = []
    for split, own in (("training", images.train), ("test", images.test)):
        whole = int(data.kept["train" if split == "training" else "test"].sum())
        counts.append(f"{len(own):,} of {whole:,} {split} images")
    classes = int((~images.forget_columns).sum())
    return (
        f"Read from {' and '.join(counts)}, of the forgotten and {classes} retained classes and drawn by a fixed seed. "
        f"Features of {blocks} come from one pass, pooled and as 4x4 maps of at most 64 principal channels; networks in "
        f"training are read on {min(READ, len(images.test))} test images."
    )


def _among(network: Network, classes: int) -> list[str]:
    """Among how many classes the head answers here, where it has more: its R is then not the accuracy of all answers."""
    answers = max((head.out_features for head in network.linear_heads()), default=0)
    if answers <= classes:
        return []
    return [
        f"Here the answers of the head are those among the {classes} classes that were read: its F and R are higher than "
        f"D_ft and D_rt of the model's own head, which may give any of its {answers:,} answers."
    ]


def _signatures(networks: Mapping[str, Network]) -> dict[str, tuple[PartSignature, ...]]:
    """Change of the weights less the original's, of the audited network and the reference."""
    if "original" not in networks:
        return {}
    original = networks["original"]
    before = original.model.state_dict()
    parts = [*original.blocks, *original.heads]
    return {
        name: weight_signature(before, networks[name].model.state_dict(), parts)
        for name in ("erased", "reference")
        if name in networks
    }
