"""Whether an erased model is what its configuration and records say: they are compared, never believed.

Hashes of a checkpoint are not signed: who edits records, configuration and weights alike is found out by the receipt
(`model.verify`), or by carrying the erasure out again.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from torch import Tensor

from hf_kd.errors import HfKdError, InvalidValueError, out_of_memory
from hf_kd.features.reader import probe_batch
from hf_kd.features.taps.inputs import declared_size, probe_inputs, reduced
from hf_kd.features.taps.intervention import check_taps
from hf_kd.features.taps.text import check_text_tap
from hf_kd.methods.erasers.base import Eraser, describe
from hf_kd.methods.erasers.esc import NormedProjection

from .configuration import ErasedConfig, label_names
from .erase import fingerprint
from .loading import FRESH_HEAD


def eraser_digest(eraser: Eraser | None) -> str | None:
    """sha256 of what stands at a tap: kind and settings of the eraser, and its buffers as `fingerprint` has them."""
    if eraser is None:
        return None
    plain = json.loads(json.dumps(describe(eraser)))  # as it comes back from a file
    return hashlib.sha256(f"{json.dumps(plain, sort_keys=True)}{fingerprint(eraser)}".encode()).hexdigest()


def refuse_contradictions(config: ErasedConfig) -> None:
    """Raise ValueError where a configuration says of taps, erasers, masks or labels what its records contradict."""
    records = config.records
    taps = tuple(map(str, config.tap_list))
    if len(config.erasers) != len(taps):
        _refuse(f"{len(config.erasers)} erasers at {len(taps)} taps")
    if config.eraser_sha256 and len(config.eraser_sha256) != len(taps):
        _refuse(f"{len(config.eraser_sha256)} digests of erasers at {len(taps)} taps")
    if bool(records) != bool(config.erasers and all(config.erasers)) or (not records and any(config.erasers)):
        _refuse("it records erasures, but its configuration does not describe the erasers they made, or the reverse")
    for record in records:
        if record.taps != taps:
            _refuse(f"it was erased at {'; '.join(record.taps)}, and the configuration names {'; '.join(taps)}")
        if record.withheld is not None and set(record.withheld) != set(config.leaking):
            _refuse(f"{list(record.withheld)} are withheld, and the configuration names {config.leaking}")
    if bool(config.text_tower) != any(record.n_texts for record in records):
        _refuse(
            "it records texts that were forgotten, and its configuration has no eraser of the text tower, or the reverse"
        )
    masked = [record for record in records if record.masked]
    classes = sorted({c for record in masked for c in record.classes or ()})
    if classes != sorted(config.masked):
        _refuse(f"classes {classes} are never answered, and the configuration masks {sorted(config.masked)}")
    if masked and not all(tap.heads for tap in config.tap_list):
        _refuse(f"classes {classes} are never answered, and a tap names no head that could leave them out")
    if any((record.erased_label is None) != config.dropped for record in masked) or (config.dropped and not masked):
        _refuse(f"dropped is {config.dropped}, and the records say otherwise")
    _refuse_labels(config, masked)


def _refuse_labels(config: ErasedConfig, masked: Sequence[Any]) -> None:
    names = label_names(config.inner)
    wanted = len(names) - (len(config.masked) if config.dropped else 0)
    shown = config.id2label or {}
    if config.taps and len(shown) != wanted:
        raise InvalidValueError(
            f"The configuration has {len(shown)} labels, and the model answers {wanted}: an erased model keeps its labels: "
            f"its records speak of them. {FRESH_HEAD}"
        )
    for record in masked:
        for c in record.classes or ():
            if not config.dropped and shown.get(c) == names.get(c) != record.erased_label:
                _refuse(f"class {c} is called {record.erased_label!r}, and the configuration calls it {names[c]!r}")


def check_loaded(model: Any) -> None:
    """What is compared once the values are there. Raises ValueError where they are not those of the records."""
    for site in [*model.sites, *model.text_sites]:
        if site.eraser is not None:
            site.eraser.check()
    refuse_other_erasers(model)
    refuse_other_answers(model)


def refuse_other_erasers(model: Any) -> None:
    """Raise ValueError where what stands at a tap is not what was fitted: by digests, and for one request by its record."""
    told_of_text = [model.config.text_tower.get("sha256")] if model.config.text_tower else []
    if told_of_text != [eraser_digest(site.eraser) for site in model.text_sites if site.eraser is not None]:
        _refuse("the values of the eraser of the text tower are others than those that were saved")
    erasers = [site.eraser for site in model.sites]
    told = model.config.eraser_sha256
    records = model.erasures
    if told and told != [eraser_digest(eraser) for eraser in erasers]:
        _refuse("the values of an eraser are others than those that were saved")
    if len(records) == 1:
        if records[0].sha256 and records[0].sha256 != tuple(map(fingerprint, erasers)):
            _refuse("the values of an eraser are others than those that were fitted, by the sha256 of its record")
        if records[0].rank_removed and records[0].rank_removed != tuple(e.rank_removed for e in erasers):
            _refuse("an eraser removes another number of directions than its record says")
        renorm = records[0].settings.get("renorm")  # a digest of 0.1.0 is of the buffers, which both kinds share
        if renorm is not None and any(isinstance(e, NormedProjection) != bool(renorm) for e in erasers):
            _refuse("an eraser is of another kind than its record says")
    if not told and any(record.withheld is not None for record in records):  # which 0.1.0 did not write
        _refuse("its configuration lacks the digests of its erasers")


def refuse_other_state(model: Any, state: Mapping[str, Tensor], prefix: str) -> None:
    """Raise ValueError for tensors of erasers that a model does not have, or with other values than its records know."""
    text_tower = model.config.text_tower
    digests = {"sites": model.config.eraser_sha256, "text_sites": [text_tower.get("sha256")] if text_tower else []}
    starts = tuple(f"{prefix}{part}." for part in digests)
    given = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(starts)}
    own = {f"{part}.{name}" for part in digests for name in getattr(model, part).state_dict()}
    if set(given) - own:
        raise InvalidValueError(
            f"These weights are of an erased model ({sorted(set(given) - own)[0]}) and this one has no such eraser: it "
            "would go on with them as if nothing had been erased. Load the checkpoint with ErasedModel.from_pretrained, and "
            "train that."
        )
    for part, told in digests.items():
        for number, site in enumerate(getattr(model, part) if told else ()):
            start = f"{part}.{number}.eraser."
            values = {name.removeprefix(start): value for name, value in given.items() if name.startswith(start)}
            if not values:
                continue
            other = copy.deepcopy(site.eraser)
            other.load_state_dict(values, strict=False)
            if eraser_digest(other) != told[number]:
                _refuse("these weights bring an eraser of other values than this model was erased with")


def refuse_other_answers(model: Any) -> None:
    """Look by two forwards whether the model answers as its configuration says: behind the taps, and no masked class.

    What leaks is withheld, also where the records do not know of it: of models of 0.1.0 it becomes part of the
    configuration, and a field that a later version of transformers returns is withheld beside it; of texts, which no
    record speaks of, both become part of it. Raises ValueError where answers go around the taps.
    """
    if not model.erasures:
        return
    try:
        probe = probe_inputs(model.inner)
    except ValueError:  # a model whose configuration does not say what it takes: what was written down has to do
        return
    try:
        found, of_texts = _around(model, reduced(model.inner, probe))
    except (ValueError, RuntimeError, TypeError) as error:  # only images of the model's own size say that it is wrong
        if out_of_memory(error):
            raise
        if declared_size(model.inner.config) is None and not isinstance(error, HfKdError):
            if model.processor is None:
                raise InvalidValueError(
                    f"{type(model.inner).__name__} takes images of a size that its configuration does not state, and there "
                    "is no image processor with it, so nothing shows that it answers behind its eraser. Give one: "
                    "from_pretrained(..., processor=...)."
                ) from error
            probe = probe_batch(model)  # as when it was erased: of the size that the processor makes
        try:
            found, of_texts = _around(model, probe)
        except HfKdError as error:
            _refuse(str(error).rstrip("."))
    if tower := model.config.text_tower:
        withheld = list(dict.fromkeys([*tower.get("withheld", ()), *of_texts]))
        model.config.text_tower = {**tower, "withheld": withheld}
    if any(record.withheld is not None for record in model.erasures):
        model.also_leaking = tuple(name for name in found if name not in model.config.leaking)
    else:
        model.config.leaking = list(dict.fromkeys([*model.config.leaking, *found]))


def _around(model: Any, probe: Mapping[str, Tensor]) -> tuple[list[str], tuple[str, ...]]:
    """Fields that go around the taps of images, and around that of texts where something stands there."""
    found = check_taps(model.inner, probe, model.taps, model.config.masked)
    of_texts = check_text_tap(model.inner, probe, model.text_sites[0].tap) if model.config.text_tower else ()
    return found, of_texts


def _refuse(what: str) -> NoReturn:
    raise InvalidValueError(
        f"What this erased model is contradicts what its records say: {what}. It was damaged on its way, edited, or put "
        "together from several models; it is refused. Download or save it again, or erase the original."
    )
