"""Check an erased checkpoint against its receipt, and carry the erasure out again when the images are at hand.

Hashes say whether files are those that were published; only carrying it out again says
whether they are what the records claim.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from torch.utils.data import DataLoader

from hf_kd.data.digest import inner_digest
from hf_kd.data.paths import local_path, refuse_missing_model, with_revision
from hf_kd.data.progress import working
from hf_kd.errors import (
    GIVE_RETAIN,
    HfKdError,
    InvalidValueError,
    OtherBaseError,
    UnknownModelTypeError,
)
from hf_kd.features.reader import ReadOptions
from hf_kd.hub.document import weights_since
from hf_kd.hub.files import ANSWERING, RECEIPT, checkpoint_files, is_eraser, refuse_no_receipt
from hf_kd.hub.receipt import SINCE, erasers_digest, file_digest, read_receipt, weights_digest
from hf_kd.methods.erasers.base import Method
from hf_kd.methods.records import Erasure, WeightChange, all_records, texts_digest
from hf_kd.methods.registry import make_method

from .erased_model import ErasedModel
from .same_eraser import SAME, comparable, difference
from .stored_eraser import StoredEraser, read_eraser
from .verification import ACTS, AGAIN, FILE, NO_NAMES, TEXTS, Check, Verification

OTHER_IMAGES = "cannot be told: other images give another eraser"


def verify(
    source: str | Path,
    forget: Any = None,
    *,
    retain: Any = None,
    base: str | None = None,
    processor: Any = None,
    revision: str | None = None,
    token: str | None = None,
    reading: ReadOptions | None = None,
    texts: Sequence[str] | None = None,
) -> Verification:
    """Recompute every hash of a receipt; with the forget set, carry the erasure out again and compare the erasers.

    source: a folder, or the id of a repository on the Hub. forget: the images of the request, as for `erase`; of several
        requests a list with the forget set of each, in order. retain: the images of the classes that stay, where a
        method read them; of several such requests a list, in order. base: the model before erasing (name or folder):
        compares its weights with the receipt; needed to repeat the erasure of a folded checkpoint, and of an eraser on its
        own whose base is not on the Hub.
    processor: what makes inputs of images, where the model has no image processor of its own.
    reading: how images are read, as in `ErasedModel.erase`; by default without a bar.
    texts: words that are said to have been forgotten by name: compared with the digest of such a request.

    What is given and too little to carry the erasure out again leaves that check open, beside the others. So does the base
    of an eraser on its own that cannot be fetched; one on the Hub is, unasked.

    Raises FileNotFoundError where there is no receipt or no weights, and ValueError for a damaged one.
    """
    folder = _folder(source, revision, token)
    refuse_no_receipt(source, folder)
    content = read_receipt(folder / RECEIPT)
    stored = _read(folder) if is_eraser(checkpoint_files(folder)) else None
    if isinstance(stored, Check):
        return Verification(str(source), (*_files(folder, content), stored), False, bool(content["erasures"]))
    given_base, base = base, stored.base[0] if stored is not None and base is None else base
    with working("checking files", reading is not None and reading.progress):
        checks = [*_files(folder, content), *_weights(folder, content, stored, base)]
    original = None if base is None or stored is not None else ErasedModel.from_pretrained(base, processor=processor)
    checks += [] if original is None else [_base_weights(content, original)]
    damaged = not all(check.ok or check.of_given for check in checks)
    other_base = not damaged and not all(check.ok for check in checks)
    no_base = stored is not None and base is None
    if no_base:
        checks.append(Check("base model", True, "not compared: an eraser is without it; name it: base=...", True))
    elif not damaged and not content["folded"]:
        with working("loading the model", reading is not None and reading.progress):
            loads, model = _load(folder, base, stored, given_base is not None)
        damaged = model is None
        checks += [loads] if model is None else [loads, *_records(model, content)]
    if texts is not None:
        checks.append(_texts(content, texts))
    if forget is not None:
        if why := _why_not_again(checks, no_base, other_base and content["folded"], damaged):
            checks += _not_tried(why)
        else:
            loaded = None if content["folded"] else _loaded(folder, base, stored, processor)
            checks += _again(folder, content, loaded, original, processor, forget, retain, reading)
    by_name = any(record.get("n_texts") for record in content["erasures"])
    repeated = any(check.what == AGAIN and check.ok is not None for check in checks)
    return Verification(str(source), tuple(checks), repeated, bool(content["erasures"]), by_name)


def _folder(source: str | Path, revision: str | None, token: str | None) -> Path:
    if (folder := local_path(source)).is_dir():
        return folder
    name, hub = with_revision(str(source), {} if revision is None else {"revision": revision})
    refuse_missing_model(name)
    return Path(snapshot_download(name, **hub, token=token, allow_patterns=[*ANSWERING, RECEIPT]))


def _read(folder: Path) -> StoredEraser | Check:
    """The eraser in a folder of its own, or why it is none."""
    try:
        return read_eraser(folder)
    except (HfKdError, OSError, ValueError) as error:
        return Check(ACTS, False, f"refused: {error}")


def _loaded(folder: Path, base: str | None, stored: StoredEraser | None, processor: Any = None) -> ErasedModel:
    """The model in a folder, or an eraser in it on its base; on the base that it names, at the commit that it names."""
    if stored is None or base is None or stored.base[0] == base:
        return ErasedModel.from_pretrained(folder, processor=processor)
    return ErasedModel.from_pretrained(base, eraser=folder, processor=processor)


def _files(folder: Path, content: dict[str, Any]) -> list[Check]:
    checks = []
    for name, expected in content["files"].items():
        if Path(name).name != name:
            raise InvalidValueError(
                f"{RECEIPT} names the file {name!r}: it may only name files beside itself. Take the one that was published."
            )
        path = folder / name
        found = file_digest(path) if path.is_file() else None
        checks.append(
            Check(f"{FILE}{name}", False, "missing") if found is None else _same(f"{FILE}{name}", expected, found)
        )
    for name in checkpoint_files(folder):
        if name not in content["files"]:
            old = content["schema_version"] < 2 and not name.endswith(".safetensors")
            found = "not checked: receipts of hf_kd 0.1 leave it out; `hf-kd card` writes a new one" if old else None
            checks.append(Check(f"{FILE}{name}", old, found or "changes answers, and is not in the receipt", old))
    return checks


def _weights(folder: Path, content: dict[str, Any], stored: StoredEraser | None, base: str | None) -> list[Check]:
    weights = content["weights"]
    files = checkpoint_files(folder)
    alone = stored is not None
    found = weights_digest(files) if stored is None else stored.base_weights
    checks = [_same("digest of the base, in folder and receipt" if alone else "weights", weights["after"], found)]
    if alone != content.get("eraser_only", False):
        checks.append(Check("eraser on its own", False, "of the folder and its receipt one says so, and the other not"))
    erasers = erasers_digest(files)
    checks.append(_same("erasers", content["erasers"], erasers))
    if content["folded"] and erasers is not None:
        checks.append(Check("folded", False, "the receipt says that the erasers are folded in, and there are some"))
    told, before = weights.get("unchanged"), weights.get("before")
    really = None if before is None else before == weights["after"]
    text = {
        None: "nobody took a digest of the base model's weights",
        True: "the base model's weights are unchanged, says the receipt"
        + ("; to compare the base: base=..." if base is None else ""),
        False: "the base model's weights were changed",
    }[really]
    if weights.get("since") not in (None, "unchanged", "unknown"):
        text += f"; {SINCE[weights['since']]}"
    checks.append(Check("claim about the base model's weights", told == really, text))
    return checks


def _base_weights(content: dict[str, Any], original: ErasedModel) -> Check:
    what, before = "weights before erasing (base model)", content["weights"].get("before")
    unknown = Check(what, True, "not compared: the receipt has no digest of them")
    return replace(unknown if before is None else _same(what, before, inner_digest(original)), of_given=True)


def _load(folder: Path, base: str | None, stored: StoredEraser | None, given: bool) -> tuple[Check, ErasedModel | None]:
    """The model, which loads where it acts as its configuration says; `given`: whether the base is one that was given."""
    try:
        return Check(ACTS, True, "it loads, which it would not otherwise"), _loaded(folder, base, stored)
    except OtherBaseError as error:
        return Check("base model", False, f"another one: {error}", of_given=given), None
    except UnknownModelTypeError as error:  # the files say what is right, and who wrote the class can look
        return Check(ACTS, None, f"not tried: {error}"), None
    except (HfKdError, OSError, ValueError) as error:
        if stored is not None and isinstance(error, (OSError, ImportError)):  # the eraser was read; its base was not
            return Check(ACTS, None, f"not tried: its base {base} cannot be loaded: {error}"), None
        return Check(ACTS, False, f"refused: {error}"), None


def _records(model: ErasedModel, content: dict[str, Any]) -> list[Check]:
    told: list[Erasure] = [WeightChange.from_dict(record) for record in content.get("changes", [])]
    told += [Erasure.from_dict(record) for record in content.get("folded_before", [])]
    erasures = [Erasure.from_dict(record) for record in content["erasures"]]
    told, found = [*told, *erasures], all_records(model)
    same = [record.to_dict() for record in found] == [record.to_dict() for record in told]
    text = f"{len(found)} in config.json, {'equal' if same else 'other'} than in the receipt"
    checks = [Check("erasure records", same, text.replace("equal than", "the same as"))]
    since = weights_since(model)
    if since != "unknown":
        told_since = content["weights"].get("since")
        checks.append(Check("weights since the erasure", since == told_since, SINCE[since]))
    asked = sorted({label for record in erasures if record.masked for label in record.classes or ()})
    masked = sorted(model.config.masked)
    if asked or masked:
        text = f"{masked} are never answered, and the receipt says {asked}"
        checks.append(Check("masked classes", asked == masked, text))
    return checks


def _texts(content: dict[str, Any], texts: Sequence[str]) -> Check:
    by_name = [record for record in content["erasures"] if record.get("texts_sha256")]
    told = [str(record["texts_sha256"]) for record in by_name]
    number = next((n for n, value in enumerate(told, 1) if texts_digest(texts, value.partition(":")[0]) == value), None)
    if number is not None:
        return Check(TEXTS, True, f"those of request {number} by name", of_given=True)
    counts = [record.get("n_texts") for record in by_name]
    found = f"of none of {len(told)} requests by name"
    if counts and len(texts) not in counts:
        asked = " or ".join(str(count) for count in sorted({count for count in counts if count}))
        found += f"; {len(texts)} given, and a request has {asked}: give all texts of one, as erase got them"
    return Check(TEXTS, False, found, of_given=True)


def _same(what: str, expected: Any, found: Any) -> Check:
    if expected == found:
        return Check(what, True, "none, as the receipt says" if found is None else f"matches {str(found)[:12]}")
    return Check(what, False, f"differs: {str(found)[:12]}, the receipt says {str(expected)[:12]}")


def _again(
    folder: Path,
    content: dict[str, Any],
    loaded: ErasedModel | None,
    original: ErasedModel | None,
    processor: Any,
    forget: Any,
    retain: Any,
    reading: ReadOptions | None,
) -> list[Check]:
    """Carry all requests out again, on the same weights, and compare what comes out with what was published."""
    records = [Erasure.from_dict(record) for record in content["erasures"]]
    if not records:
        return _not_tried("only the command in the receipt, with the images of all labels, does it")
    if any(record.n_texts for record in records):
        return [Check(AGAIN, None, NO_NAMES)]
    sets = list(forget) if isinstance(forget, list) and len(records) > 1 else [forget]
    if len(sets) != len(records):
        return _not_tried(
            f"the receipt has {len(records)} requests that build on each other, and {len(sets)} forget set"
            f"{'s were' if len(sets) > 1 else ' was'} given: in Python, "
            f"hf_kd.model.verify.verify(FOLDER, [IMAGES, ...]) takes a list of their {len(records)}, in order"
        )
    others = [check for n, pair in enumerate(zip(records, sets, strict=True), 1) for check in _other_images(n, *pair)]
    if others:
        return others  # at once, not after a pass over all of them
    methods = [make_method(record.method, **record.settings) for record in records]
    readers = [n for n, method in enumerate(methods) if method.needs_retain]
    if readers and retain is None:
        return _not_tried(
            f"method {methods[readers[0]].name!r} of request {readers[0] + 1} read images of the classes that stay, and "
            f"none were given: pass {GIVE_RETAIN}"
        )
    given = list(retain) if isinstance(retain, list) and len(readers) > 1 else [retain] * len(readers)
    if len(given) != len(readers):
        return _not_tried(f"{len(readers)} requests read retained images: pass a list of their {len(readers)} sets")
    stay = dict(zip(readers, given, strict=True))
    model = original if loaded is None else loaded
    if model is None:
        return _not_tried("a folded checkpoint holds no eraser to take away: name the model before erasing, base=...")
    published, labels = [site.eraser for site in model.sites], _labels(model)
    if loaded is not None:
        model.reset()
    for n, (record, method, images) in enumerate(zip(records, methods, sets, strict=True)):
        _erase_as_recorded(model, record, method, images, stay.get(n), reading or ReadOptions(progress=False))
    checks = _counts(records, model.erasures)
    if any(check.ok is None for check in checks):
        return [*checks, Check(AGAIN, None, OTHER_IMAGES)]
    if content["folded"]:
        folded = model.fold()
        stored = type(folded).from_pretrained(folder).state_dict()
        pairs = [(value, stored[name]) for name, value in folded.state_dict().items() if value.is_floating_point()]
        return [*checks, _compared(pairs)]
    if model.config.masked or labels[0]:
        checks.append(Check("masks and labels", labels == _labels(model), _masks_in_words(model)))
    return [*checks, _same_erasers(published, [site.eraser for site in model.sites])]


def _erase_as_recorded(
    model: ErasedModel, record: Erasure, method: Method, images: Any, retain: Any, reading: ReadOptions
) -> None:
    asked = {"mask_head": record.masked, "erased_label": record.erased_label} if record.masked is not None else {}
    whole = record.classes is not None
    # a limit is the same in all sets; what has no seed was drawn beforehand, and is to be given as it was then
    limit = next((each["drawn"] for each in (record.sampled or {}).values() if "seed" in each), reading.limit)
    as_then = replace(reading, limit=limit)
    model.erase(images, method, retain=retain, whole_classes=whole, reading=as_then, allow_unrecognised=True, **asked)


def _counts(records: Sequence[Erasure], again: Sequence[Erasure]) -> list[Check]:
    """Whether each request read as many images as then."""
    return [
        _images(f"{what} of request {n}", told, found)
        for n, (old, new) in enumerate(zip(records, again, strict=True), 1)
        for what, told, found in (
            ("images", old.n_forget, new.n_forget),
            ("retained images", old.n_retain, new.n_retain or 0),
        )
        if told is not None
    ]


def _same_erasers(published: Sequence[Any], again: Sequence[Any]) -> Check:
    states = [(a.state_dict(), b.state_dict()) for a, b in zip(published, again, strict=True)]
    if all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in states):
        return Check(AGAIN, True, "the erasers are equal bit for bit")
    return _compared([pair for a, b in zip(published, again, strict=True) for pair in comparable(a, b)])


def _compared(pairs: Sequence[tuple[Tensor, Tensor]]) -> Check:
    """Of tensors that were published, and those that came out again."""
    if any(a.shape != b.shape for a, b in pairs):
        return Check(AGAIN, False, "the erasers have other shapes")
    worst = max(map(difference, *zip(*pairs, strict=True)))
    return Check(AGAIN, worst <= SAME, f"differs by {worst:.1e} of its norm (up to {SAME:.0e} is the same)")


def _why_not_again(checks: Sequence[Check], no_base: bool, other_base: bool, damaged: bool) -> str | None:
    """Why the erasure is not carried out again, although images were given."""
    if no_base:
        return "name the model it stands on: base=..."
    if other_base:
        return "the base that was given is another"
    if not damaged:
        return None
    unknown = any(check.what == ACTS and check.ok is None for check in checks)
    return "the model could not be loaded here" if unknown else "it is another model than the receipt says"


def _not_tried(why: str) -> list[Check]:
    return [Check(AGAIN, None, f"not tried: {why}")]


def _other_images(number: int, record: Erasure, images: Any) -> list[Check]:
    """What is checked where the images can be counted beforehand, and are too many or too few for those of a request."""
    told = (record.sampled or {}).get("forget", {}).get("of", record.n_forget)
    if not isinstance(images, Sized) or isinstance(images, str | DataLoader) or len(images) == told:
        return []
    drawn = "" if told == record.n_forget else f"{record.n_forget:,} drawn of "
    return [_images(f"images of request {number}", told, len(images), drawn), Check(AGAIN, None, OTHER_IMAGES)]


def _images(what: str, told: int, found: int, drawn: str = "") -> Check:
    if told == found:
        return Check(what, True, f"{found:,}, as the receipt says")
    hint = "give the images of the request, as erase got them (--forget-labels, --retain-limit)"
    return Check(what, None, f"{found:,} were given, the receipt says {drawn}{told:,}: {hint}")


def _labels(model: ErasedModel) -> tuple[list[int], dict[int, str]]:
    return sorted(model.config.masked), dict(model.config.id2label or {})


def _masks_in_words(model: ErasedModel) -> str:
    how = "dropped" if model.config.dropped else "labelled anew"
    return f"doing it again masks {sorted(model.config.masked)}, {how}"
