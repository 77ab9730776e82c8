"""What a report says of changed weights: how far they moved (Fig. 2 of the paper), and whether from the original's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_kd.audit.schema import Score, Section, none_missing
from hf_kd.data.devices import refuse_unreachable_weights
from hf_kd.data.digest import inner_digest
from hf_kd.data.labels import counterparts
from hf_kd.features.protocol import TappedModel
from hf_kd.methods.records import folded_erasures, weight_changes
from hf_kd.methods.unlearning.retrain import Retrain
from hf_kd.metrics.weights import WeightDistance, weight_distance


def of_other_weights(original: TappedModel, model: TappedModel) -> list[str]:
    """A warning where the weights were changed, and the model that was given as the original is none that a request found.

    Nothing is said where a digest of these is not known (a fold keeps none), or the weights are in another precision than
    they had then.

    Args:
        original: The model before the requests, as it was given.
        model: The model after them.
    """
    changes = weight_changes(model.config)
    known = [change.weights_before for change in changes] + [model.config.weights_erased] * bool(model.erasures)
    dtype = str(next(original.inner.parameters()).dtype).removeprefix("torch.")
    same_precision = dtype in {record.weights_dtype for record in (*changes, *model.erasures)}
    if not changes or not none_missing(known) or folded_erasures(model.config) or not same_precision:
        return []
    found = inner_digest(original)
    if found is None or found in known:
        return []
    base = f", {changes[0].base_model}" if changes[0].base_model else ""
    base += f" at {changes[0].base_commit[:12]}" if base and changes[0].base_commit else ""
    return [
        f"The model given as the original has other weights (digest {found[:12]}) than the one that the request found "
        f"({known[0][:12]}{base}): what is said of the original is said of another model. Audit again with the model before "
        "the request; one of the Hub is named with its revision, USER/NAME@REVISION."
    ]


def of_same_weights(
    references: Sequence[TappedModel], model: TappedModel, original: TappedModel | None = None
) -> list[str]:
    """A warning where a model given as one that never saw the classes has the weights of the audited one or its original.

    Args:
        references: Those that were given.
        model: The audited model.
        original: The model before the requests, where there is one.
    """
    known = {"the audited model": model} | ({} if original is None else {"the original": original})
    digests = {inner_digest(own): name for name, own in known.items()} if references else {}
    found = {digests[digest] for digest in map(inner_digest, references) if digest is not None and digest in digests}
    return [
        f"A reference has the very weights of {name}: what is said of a model that never saw the classes is said of that "
        "one. Audit again with a model trained without them (hf-kd train-original --without)."
        for name in sorted(found)
    ]


def of_taught(references: Sequence[TappedModel], names: Mapping[int, str], forget: Sequence[int]) -> list[str]:
    """A warning where a model given as one that never saw the classes did, by its own records.

    Args:
        references: Those that were given.
        names: Of the class ids of the data.
        forget: The forgotten ones among these.
    """
    seen = 0
    for other in references:
        same = dict(names) == dict(other.class_names)
        found = {label: label for label in forget} if same else counterparts(names, other.class_names)
        seen += bool({found[label] for label in forget if label in found} & _taught(other))
    if not seen:
        return []
    which = "A reference was" if len(references) == 1 else f"{seen} of {len(references)} references were"
    return [
        f"{which} trained on images of what was to be forgotten, by the records in the configuration: what is said of a "
        "model that never saw the classes is said of one that did. Audit again with a model trained without them "
        "(hf-kd train-original --without)."
    ]


def _taught(model: TappedModel) -> set[int]:
    """Ids of the classes that a model has seen images of, as far as its records say it."""
    taught: set[int] = set()
    trained = getattr(model.inner.config, "hf_kd_trained", None)  # of `train_original`, which says what it left out
    if isinstance(trained, Mapping) and isinstance(trained.get("without"), list):
        taught = set(model.class_names) - set(trained["without"])
    past: set[int] = set()
    for change in weight_changes(model.config):
        own = set(change.classes or ())
        past |= own  # a retraining leaves out what earlier requests name, too
        if change.method != Retrain.name:
            taught |= own
        else:  # from fresh weights, or from some of which nothing is known
            taught = set() if change.settings.get("init") else taught - past
    return taught


def moved_weights(original: TappedModel, model: TappedModel) -> list[Section]:
    """The section (Fig. 2), where both are the same architecture with a head.

    Args:
        original: The model before.
        model: The model after.

    Raises:
        InvalidValueError: For weights that are offloaded or quantised.
    """
    for one in (original, model):
        refuse_unreachable_weights(one.inner, "How far weights moved from the original's")
    states = original.inner.state_dict(), model.inner.state_dict()
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    heads = [head for tap in model.taps for head in tap.heads]
    return [weights_section(weight_distance(*states, head=heads))] if heads and shapes[0] == shapes[1] else []


def weights_section(distance: WeightDistance, most: int = 12) -> Section:
    """The section of a report about changed weights (Fig. 2): head, everything else, and the `most` tensors moved most."""
    moved = sorted(distance.tensors, key=lambda tensor: -(tensor.relative or 0.0))[:most]
    scores = []
    for row in (distance.head, distance.other, distance.total, *(tensor for tensor in moved if tensor.frobenius)):
        about = {"entries": row.entries, "not_finite": row.not_finite, "frobenius": row.frobenius}
        for name, value in (("relative", row.relative), ("mean_abs", row.mean_abs)):
            scores.append(
                Score(name, value, "none", row.name, unit="relative", protocol="current - original", settings=about)
            )
    notes = [
        "relative: ||change||_F / ||original||_F; mean abs: mean |change| per entry. Erasers are not weights and are not "
        "counted: ESC leaves every weight as it was, and changes the head once folded."
    ]
    if not distance.total.frobenius and not distance.total.not_finite:
        notes.append("No weight differs from the original's: everything it knew is still in them.")
    return Section("weights", "Weights moved (Fig. 2)", tuple(scores), tuple(notes))
