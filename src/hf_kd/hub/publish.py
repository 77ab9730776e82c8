"""Publish an erased model: save it with card, receipt, report and figures, upload in one commit, load it back and compare.

What is uploaded is complete in a temporary folder first, so a failure leaves the repository as
it was.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RemoteEntryNotFoundError
from huggingface_hub.utils import httpx
from torch import Tensor

from hf_kd.audit.report import RetentionReport
from hf_kd.data.modes import evaluating
from hf_kd.data.paths import ADAPTER_CONFIG, CONFIG_NAME, ERASER_CONFIG, local_path
from hf_kd.errors import InvalidValueError, NotVerifiedError
from hf_kd.features.protocol import TappedModel
from hf_kd.features.reader import probe_batch
from hf_kd.features.taps.inputs import run
from hf_kd.features.taps.site import record
from hf_kd.methods.records import all_records, changes_of, folded_erasures, weight_changes

from .card import ALT
from .document import CARD, REPORT, base_of, document, has_own_class, read_card
from .endpoint import write_handler
from .files import WEIGHT_PATTERNS, is_answering, save_processor, superseded
from .own_report import refuse_other_report
from .readme import joined, own_text
from .upload import Published, check_target, fetch, files_in, prepare, upload
from .wording import BASE_KNOWS, WEIGHTS_KNOW

logger = logging.getLogger(__name__)

OF_A_MODEL = (*WEIGHT_PATTERNS, "pytorch_model*.bin", "pytorch_model*.bin.index.json")
"""Weights, which would be another model's if they stayed where a push does not bring them itself."""

OF_AN_AUDIT = {REPORT, *(f"figures/{name}.png" for name in ALT)}
"""What is told of an audit; whatever else lies among the figures is a person's."""

RECORDS = ("erasures", "hf_kd_unlearned", "hf_kd_folded")
"""Where a configuration keeps records that have names of the data."""


@dataclass(frozen=True)
class UploadOptions:
    """How a folder goes to the Hub, in the words of `huggingface_hub`.

    Attributes:
        private: Whether a new repository is private; for one that is there and public, True is refused.
        token: By default that of `hf auth login`, or HF_TOKEN.
        revision: The branch; it is made where it is not there.
        create_pr: Open a pull request instead of writing.
        commit_message: By default the methods that were used.
    """

    private: bool | None = None
    token: str | None = field(default=None, repr=False)
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None


@dataclass(frozen=True)
class Pushed(Published):
    """Where a model went, and whether what loads from there answers as it did here."""

    verified: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def push(
    model: TappedModel,
    repo_id: str,
    *,
    report: RetentionReport | None = None,
    folded: bool = False,
    eraser_only: bool = False,
    verify: bool = True,
    show_class_names: bool = False,
    datasets: Sequence[str] = (),
    handler: bool = False,
    beside: str | os.PathLike[str] | None = None,
    **upload_options: Any,
) -> Pushed:
    """Publish weights, card, receipt, report and figures in one commit, load them back and compare bit for bit.

    Of a model without erasers whose weights `unlearn` changed, the stock checkpoint is published. A person's text in the
    repository's README is kept. Weights, processor, report and figures that were there go; all other files of the repository
    stay, and those that change an answer stand in the receipt.

    Args:
        model: An erased or unlearned model.
        repo_id: USER/NAME.
        report: What `audit` gave, for the card.
        folded: Publish the stock checkpoint of `fold` instead (logits erased, features not).
        eraser_only: Publish the eraser without its base instead, as `save_eraser` saves it, in a repository of its own.
        verify: Load the commit from the Hub and compare answers and features on a fixed batch.
        show_class_names: Name the forgotten classes in card, report and figures.
        datasets: Hub ids, for the card.
        handler: Add handler.py and requirements.txt, with which an Inference Endpoint serves the repository by
            `hf_kd.model.endpoint`. Nothing of hf_kd runs them.
        beside: A folder with a README whose text of a person's is published where the repository has none.
        **upload_options: `private`, `token`, `revision`, `create_pr` and `commit_message`, as in `huggingface_hub`; see
            `UploadOptions`.

    Returns:
        Where it went, and whether it was compared.

    Raises:
        ValueError: Nothing was erased, the report is of another model, the id is malformed, the repository holds an adapter,
            an eraser on its own is refused (see `save_eraser`), or a handler is asked for a folded model (whose features
            are not erased), for an eraser on its own (which serves nothing), for a class that is none of transformers, or a
            repository that has one of its own.
        PushError: The upload failed and left the repository as it was, as where somebody else wrote to it in the meantime
            (an OSError).
        NotVerifiedError: It happened and what loads back is not this model, or nothing loads back (an OSError).
        TypeError: There is no such option.
    """
    target = UploadOptions(**upload_options)
    at: dict[str, Any] = {"revision": target.revision, "token": target.token}
    _refuse_nothing_to_publish(model)
    refuse_other_report(report, model)
    _refuse_together(model, folded, eraser_only, handler)
    _warn_of_what_is_known(model, folded, eraser_only)
    check_target(repo_id, target.token)
    with tempfile.TemporaryDirectory(prefix="hf-kd-push-") as name:
        folder, there = Path(name) / "model", Path(name) / "there"
        saved = _save(model, folder, folded, eraser_only)  # what cannot be saved makes no repository
        if not show_class_names:
            _drop_names(folder / (ERASER_CONFIG if eraser_only else CONFIG_NAME))
        full = prepare(repo_id, private=target.private, **at)
        published, parent = files_in(full, **at)
        _refuse_what_stays(full, published, eraser_only)
        new = set(os.listdir(folder))
        gone = _outdated(published, new)

        def read(name: str) -> bytes | None:
            return fetch(full, name, **at) if name in published else None

        _take_kept(there, published - gone - new, read)
        if beside is not None:
            _take_text(there, local_path(beside))
        if handler:
            write_handler(folder, read)
        document(
            model,
            folder,
            report=report,
            repo_id=full,
            folded=folded,
            show_class_names=show_class_names,
            beside=there,
            datasets=datasets,
            license=base_license(base_of(model)[0], target.token),
        )
        message = target.commit_message or _message(model)
        sent = upload(folder, full, message=message, create_pr=target.create_pr, gone=gone, parent=parent, **at)
    if verify:
        _compare(model, saved, sent, target.token, eraser_only)
    return Pushed(**asdict(sent), verified=verify)


def _refuse_together(model: TappedModel, folded: bool, eraser_only: bool, handler: bool) -> None:
    """Refuse what cannot be asked for together, or of such a model."""
    if handler and (folded or eraser_only):
        raise InvalidValueError(
            "handler=True serves features too, and those of folded=True are not erased: take one of both."
            if folded
            else "handler=True serves a whole model, and eraser_only=True publishes none: take one of both."
        )
    if handler and has_own_class(model):
        raise InvalidValueError(
            f"handler=True: {type(model.inner).__name__} is no class of transformers, and nothing registers it at an "
            "endpoint. Push without, and write a handler.py that imports your file or package first, then EndpointHandler "
            "of hf_kd.model.endpoint."
        )
    if eraser_only and folded:
        raise InvalidValueError(
            "folded=True and eraser_only=True were both given: what is folded has no eraser to publish."
        )


def _warn_of_what_is_known(model: TappedModel, folded: bool, eraser_only: bool) -> None:
    if eraser_only:
        logger.warning(BASE_KNOWS)
    elif model.is_erased:
        logger.warning(WEIGHTS_KNOW["folded" if folded else "changed" if changes_of(model.config) else "original"])


def _message(model: TappedModel) -> str:
    methods = ", ".join(record.method for record in all_records(model))
    return f"{'Erased' if model.is_erased else 'Made to forget'} with hf_kd: {methods}"


def _refuse_what_stays(repo_id: str, published: Collection[str], eraser_only: bool) -> None:
    """Refuse a repository whose files would make another model of what is published, and are nobody's to delete."""
    if ADAPTER_CONFIG in published:
        own = sorted(name for name in published if name == ADAPTER_CONFIG or fnmatch(name, "adapter_model*"))
        raise InvalidValueError(
            f"{repo_id} holds an adapter ({', '.join(own)}), which whoever loads from there would get with this model: name "
            "another repository, or take these files out of it first. Nothing was sent."
        )
    if eraser_only and CONFIG_NAME in published:
        raise InvalidValueError(
            f"{repo_id} holds a model ({CONFIG_NAME}), and an eraser is kept in a repository of its own: name another one. "
            "Nothing was sent."
        )


def _outdated(published: Iterable[str], new: Iterable[str]) -> set[str]:
    """Of the files of a repository, those that would speak of another model once the `new` ones lie there.

    They are those of a save (`superseded`), of weights all variants, and of an audit what we wrote. A person's files in
    folders stay, whatever they are called.
    """
    flat = [name for name in published if "/" not in name]
    weights = {name for name in flat if any(fnmatch(name, pattern) for pattern in OF_A_MODEL)}
    return (weights | superseded(flat, new) | OF_AN_AUDIT.intersection(published)) - set(new)


def _take_kept(there: Path, kept: Iterable[str], read: Callable[[str], bytes | None]) -> None:
    """Bring the README and what changes an answer, of the files that stay: what is overwritten may be gigabytes."""
    there.mkdir()
    for name in kept:
        if name == CARD or ("/" not in name and is_answering(name)):
            (there / name).write_bytes(read(name) or b"")


def _take_text(there: Path, folder: Path) -> None:
    """A person's text in the README of a folder takes the place of none in that of the repository."""
    (published, changeable), (local, _) = read_card([there]), read_card([folder])
    if local is None or not changeable:
        return
    both = joined(published, local)
    if both == published and own_text(local) not in own_text(published or ""):
        logger.warning(
            f"{CARD} of the repository has a text of its own, which is kept: that of {folder / CARD} is not published. Put "
            "into the repository's what you want to have there."
        )
    (there / CARD).write_bytes(both.encode("utf-8"))


def _refuse_nothing_to_publish(model: TappedModel) -> None:
    if not publishable(model):
        raise InvalidValueError(
            "The erasure of this model is folded into its weights, and without the eraser no receipt can be made for it. "
            "Take the erased model it was folded from: use ErasedModel.push_to_hub(repo_id, folded=True), or hf-kd push "
            "ERASED_FOLDER USER/NAME --folded on the command line."
            if getattr(model.config.inner, "hf_kd_folded", None)
            else "Nothing has been erased from this model, so there is nothing for hf_kd to publish. Call erase first; the "
            "model itself goes to the Hub with model.inner.push_to_hub."
        )


def publishable(model: TappedModel) -> bool:
    """Whether erasers stand in a model, or its weights were changed by `unlearn` and nothing was folded into them since."""
    changes, folded = weight_changes(model.config), folded_erasures(model.config)
    return model.is_erased or (bool(changes) and changes[-1].folded_before >= len(folded))


def _save(model: Any, folder: Path, folded: bool, eraser_only: bool) -> torch.nn.Module:
    """Write the checkpoint; returns the module that was saved."""
    folder.mkdir()
    if eraser_only or (model.is_erased and not folded):
        model.write_checkpoint(folder, eraser_only)
        return model
    stock = model.fold() if folded else model.inner
    stock.save_pretrained(folder)
    save_processor(model, folder)
    return stock


def _drop_names(config: Path) -> None:
    """Take names that only the data has out of the records of a configuration: those of forgotten labels, and of files."""
    stored = json.loads(config.read_text(encoding="utf-8"))
    places = [part for part in (stored, stored.get("inner")) if part]
    records = [one for part in places for key in RECORDS for one in part.get(key) or ()]
    dropped = [one.pop(name, None) for one in records for name in ("dataset_classes", "files")]
    if any(dropped):
        config.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def base_license(base_model: str | None, token: str | None = None) -> str | None:
    """The licence that the card of the base states; None where it states none and, warned of, where it cannot be read."""
    if not base_model:
        return None
    try:
        return ModelCard.load(base_model, token=token, ignore_metadata_errors=True).data.get("license")
    except RemoteEntryNotFoundError:  # it has no card
        return None
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, OSError, ValueError) as error:
        logger.warning(
            f"The licence of {base_model} could not be read ({type(error).__name__}), so a card without one stays so. Write "
            f"`license: ...` into the metadata of {CARD}, or repeat the command when it can be read."
        )
        return None


def _load_back(saved: Any, published: Published, token: str | None, eraser_only: bool) -> Any:
    """What was published, as who downloads it has it; an eraser whose base is not on the Hub on a copy of the base here."""
    attention = getattr(saved, "inner", saved).config._attn_implementation  # another one differs in the last bits
    options = {"dtype": "auto"} | ({"attn_implementation": attention} if attention else {})
    if eraser_only and not base_of(saved)[0]:
        return copy.deepcopy(saved).reset().load_eraser(published.repo_id, revision=published.commit, token=token)
    return type(saved).from_pretrained(published.repo_id, revision=published.commit, token=token, **options)


def _compare(model: TappedModel, saved: Any, published: Published, token: str | None, eraser_only: bool) -> None:
    """Load the commit and compare answers and features on a fixed batch, bit for bit. Raises NotVerifiedError."""
    try:
        loaded = _load_back(saved, published, token, eraser_only)
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise NotVerifiedError(
            f"{published.repo_id} was published ({published.url}), but could not be loaded back to be compared: {error} Do "
            "not rely on it before it loads."
        ) from error
    loaded.to(next(saved.parameters()).device)
    here, there = _behaviour(model, saved), _behaviour(model, loaded)
    if not any(here):
        raise NotVerifiedError(
            f"{published.repo_id} was published ({published.url}), but {type(saved).__name__} answers with no tensors that "
            "could be compared. Load it and compare what matters to you."
        )
    for what, ours, theirs in zip(("answers", "features"), here, there, strict=True):
        difference = _difference(ours, theirs)
        if difference is not None:
            raise NotVerifiedError(
                f"{published.repo_id} at {published.commit[:8]} gives other {what} than the model here ({difference}): do "
                "not rely on this upload. Push again; if it happens again, saving loses something of this model."
            )


def _difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> str | None:
    """What differs between two lists of tensors; None where they are equal bit for bit."""
    kinds = [[f"{tuple(t.shape)} {t.dtype}".replace("torch.", "") for t in tensors] for tensors in (ours, theirs)]
    if kinds[0] != kinds[1]:
        return f"{', '.join(kinds[1]) or 'none'} instead of {', '.join(kinds[0]) or 'none'}"
    unequal = [(a, b) for a, b in zip(ours, theirs, strict=True) if not torch.equal(a, b)]
    if not unequal:
        return None
    return f"up to {max(float((a.double() - b.double()).abs().max()) for a, b in unequal):.1e}"


def _behaviour(model: TappedModel, module: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Tensors that `module` answers to the probe batch, and of an erased model the pooled features, else none."""
    inputs = probe_batch(model, None)
    with torch.no_grad(), evaluating(module):
        if module is model or hasattr(module, "sites"):
            with record(list(module.sites)) as take:
                output = run(module.inner, inputs)
                features = take()
        else:
            output, features = run(module, inputs), []
    answers = [value.cpu() for value in output.values() if isinstance(value, Tensor)]
    return answers, [part.cpu() for part in features]
