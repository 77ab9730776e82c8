"""Put an eraser that was stored on its own on a model: on the base it was fitted on, or behind what was erased before."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any, NoReturn

from hf_kd.data.digest import inner_digest
from hf_kd.data.text import one_line
from hf_kd.errors import InvalidValueError, OtherBaseError
from hf_kd.features.taps.inputs import input_device
from hf_kd.methods.erasers.base import Composition

from . import consistency
from . import label_mask as masking
from .checkpoint_files import checkpoint_errors
from .configuration import ATTENTION, without_settings
from .erase import leave_checkpoint
from .stored_eraser import StoredEraser

logger = logging.getLogger(__name__)

BESIDE_ANSWERS = (
    *ATTENTION,
    *(
        "dtype",
        "torch_dtype",
        "_name_or_path",
        "transformers_version",
        "architectures",
        "quantization_config",
        "_commit_hash",
    ),
    *("return_dict", "output_hidden_states", "output_attentions", "use_cache"),
)
"""Settings of a base that say how it was loaded, and not which model it is."""

TAKEN = ("taps", "leaking", "erasures", "masked", "dropped", "weights_erased", "text_tower")
LABELS = ("id2label", "label2id")
CHANGED = (*TAKEN, *LABELS, "erasers", "eraser_sha256", "base_model", "base_commit")
"""What of a model's configuration an eraser brings, and what else changes with it."""


def put_on(model: Any, stored: StoredEraser, same_weights: bool = False) -> None:
    """Put a stored eraser on a model; where it fails, the model stays as it was.

    Args:
        model: An ErasedModel.
        stored: What `read_eraser` read.
        same_weights: Whether it is known that these are the weights of the base, in another precision.

    Raises:
        InvalidValueError: The model is not its base, holds a record of it already, or does not answer behind its taps.
    """
    refuse_other_base(model, stored, same_weights)
    stored = stored.to(input_device(model.inner))
    with model._swap.change(), _as_it_was_on_error(model), checkpoint_errors(stored.name):
        if model.is_erased:
            _put_behind(model, stored)
        else:
            _put_first(model, stored)
        model.config.base_model, model.config.base_commit = (
            (model.config.base_model, model.config.base_commit) if model.config.base_model else stored.base
        )
        consistency.refuse_contradictions(model.config)
        consistency.refuse_other_answers(model)
        leave_checkpoint(model)


def refuse_other_base(model: Any, stored: StoredEraser, same_weights: bool = False) -> None:
    """Raise InvalidValueError where a model is not the one that an eraser was fitted on: class, settings or weights."""
    found = type(model.inner).__name__
    if found != stored.config.inner_class:
        _refuse(stored, f"it is a {found}")
    given, told = _settings(model.inner.config), _settings(stored.config.inner)
    other = [name for name in sorted(given.keys() | told.keys()) if not _same(given.get(name), told.get(name))]
    if other:
        ours, theirs = (one_line(json.dumps(settings.get(other[0])), 60) for settings in (given, told))
        _refuse(stored, f"its {one_line(other[0], 60)} is {ours}, where the base of the eraser has {theirs}")
    if same_weights:
        return
    digest = inner_digest(model)
    if digest is None:
        _refuse(stored, "its weights cannot be hashed here, as those of the base are")
    if digest != stored.base_weights:
        _refuse(
            stored,
            f"its weights have the digest {digest[:12]}: other weights, another revision, another precision, or trained "
            "since",
        )


def _settings(config: Any) -> dict[str, Any]:
    """What a configuration says of the model, as it comes back from a file."""
    return without_settings(json.loads(json.dumps(config.to_dict(), default=str)), BESIDE_ANSWERS)


def _same(ours: Any, theirs: Any) -> bool:
    """Whether two settings are equal; of lists the common part, for LeViT appends to its own as it is built."""
    if isinstance(ours, list) and isinstance(theirs, list):
        return all(a == b for a, b in zip(ours, theirs))  # noqa: B905
    return ours == theirs


def _refuse(stored: StoredEraser, what: str) -> NoReturn:
    name, commit = stored.base
    base = f" ({name!r} at commit {commit})" if name and commit else f" ({name!r})" if name else ""
    raise OtherBaseError(
        f"The eraser {stored.name} stands on {stored.base_in_words}, and this is another model: {what}. An eraser acts on "
        "features of the base it was fitted on, and of no other. Put it on "
        f"that base{base}, or erase this model itself."
    )


def _put_first(model: Any, stored: StoredEraser) -> None:
    model._hook_into(stored.config.tap_list)
    model.search = None
    for site, own in zip(model.sites, stored.sites, strict=True):
        site.eraser = own.eraser
    for name in (*TAKEN, *LABELS):
        setattr(model.config, name, getattr(stored.config, name))
    masking.sync_masks(model)
    _put_in_text_tower(model, stored)
    model._describe_erasers()


def _put_behind(model: Any, stored: StoredEraser) -> None:
    config = model.config
    for what, ours, theirs in (
        ("taps", model.taps, stored.config.tap_list),
        ("withheld fields", sorted(config.leaking), sorted(stored.config.leaking)),
    ):
        if ours != theirs:
            here, there = ("; ".join(one_line(each, 100) for each in each_side) for each_side in (ours, theirs))
            raise InvalidValueError(
                f"This model was erased with other {what} ({here}) than the eraser {stored.name} has ({there}), so they do "
                "not compose. Carry one of the requests out again on the model with the other."
            )
    known = [record.to_dict() for record in model.erasures]
    if any(record.to_dict() in known for record in stored.erasures):
        raise InvalidValueError(
            f"The eraser {stored.name} has a request that is in this model already: it would act twice. Load it alone, or "
            "leave it out."
        )
    for site, own in zip(model.sites, stored.sites, strict=True):
        site.eraser = site.eraser.then(own.eraser)
    if any(isinstance(site.eraser, Composition) for site in model.sites):
        logger.warning(
            f"The eraser {stored.name} comes behind another one. What it sees there is not what it was fitted on, and only "
            "orthogonal projections compose to the union of what they remove: audit it, or carry its request out again."
        )
    config.erasures = [*config.erasures, *stored.config.erasures]
    config.weights_erased = config.weights_erased or stored.config.weights_erased
    for record in stored.erasures:
        if record.masked:
            masking.mask_classes(model, record.classes, record.erased_label)
    _put_in_text_tower(model, stored)
    model._describe_erasers()


def _put_in_text_tower(model: Any, stored: StoredEraser) -> None:
    if not stored.text_sites:
        return
    (own,) = stored.text_sites
    before = model.text_sites[0].eraser if model.text_sites else None
    if before is not None and model.text_sites[0].tap != own.tap:
        here, there = (one_line(tap, 100) for tap in (model.text_sites[0].tap, own.tap))
        raise InvalidValueError(
            f"The text tower of this model was erased at the {here}, and the eraser {stored.name} at the {there}: they "
            "do not compose. Carry one of the requests out again on the model with the other."
        )
    withheld = [*model.text_withheld, *(stored.config.text_tower or {}).get("withheld", ())]
    model._hook_into_text(own.tap)
    model.text_sites[0].eraser = own.eraser if before is None else before.then(own.eraser)
    model.config.text_tower = {**stored.config.text_tower, "withheld": list(dict.fromkeys(withheld))}


@contextlib.contextmanager
def _as_it_was_on_error(model: Any) -> Iterator[None]:
    """Sites, erasers, masks and configuration as they were, where what happens inside fails."""
    parts = {name: getattr(model, name) for name in ("sites", "text_sites", "search", "also_leaking")}
    erasers = [(site, site.eraser, site.masked) for site in [*model.sites, *model.text_sites]]
    config = {name: getattr(model.config, name) for name in CHANGED}
    try:
        yield
    except BaseException:
        for site in [*model.sites, *model.text_sites]:
            site.detach()
        for name, value in parts.items():
            setattr(model, name, value)
        for site, eraser, masked in erasers:
            site.detach()
            site.eraser, site.masked = eraser, masked
            site.attach(model.inner)
        for name, value in config.items():
            setattr(model.config, name, value)
        raise
