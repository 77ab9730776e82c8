"""`hf-kd erase`."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_kd.data.text import shell_word
from hf_kd.errors import InvalidValueError, check_choice
from hf_kd.methods.registry import built_in_infos, by_name_infos, refuse_method

from . import _inputs
from ._accuracy import HeadAccuracy
from ._app import command, console, refuse_unused, refuse_without_data, refuse_without_test
from ._by_name import ByName
from ._options import LIMITS, READING, ModelArgument, Shared, method_names
from ._tables import show_erasure
from ._verdict import accuracy_verdict, audit_command, audit_lacks

if TYPE_CHECKING:
    from hf_kd.features.reader import ReadOptions
    from hf_kd.methods.erasers.base import Method
    from hf_kd.model.erased_model import ErasedModel

logger = logging.getLogger(__name__)


@command("eraser", "tap", "processor", *READING, *LIMITS, "batch_size", "mixed_precision", "allow_unrecognised", "overwrite",
         "device", "revision", "as_json", methods=built_in_infos("eraser"))  # fmt: skip
def erase(
    model: ModelArgument,
    output: Annotated[Path, typer.Option(help="Folder for the erased model.")],
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Hub id, folder of parquet files, single .parquet, image folder, or a data set saved to disk."
        ),
    ] = None,
    forget_labels: Annotated[
        list[str] | None,
        typer.Option(
            help="Label of the data set to forget, name or id; repeat for several. Without it: the whole split."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split that holds the images to forget.")] = "train",
    test_split: Annotated[
        str | None, typer.Option(help="Labelled split to measure the head's accuracy on, before and after.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="esc (no training; the default), esc-t (trained mask), cover, or another of `hf-kd methods`. With --text: "
            "oblique (the default) or esc.",
            autocompletion=method_names("eraser", "by name"),
        ),
    ] = None,
    retain_limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Methods that read D_r get the images of all other labels of --split: at most so many of them, whatever "
            "--limit says.",
        ),
    ] = None,
    fold: Annotated[
        bool,
        typer.Option(
            "--fold", help="Save a stock checkpoint with the eraser in its head: logits erased, features not."
        ),
    ] = False,
    eraser_only: Annotated[
        bool,
        typer.Option(
            "--eraser-only",
            help="Save the eraser alone, kilobytes, for --eraser beside a base with the same weights.",
        ),
    ] = False,
    mask_head: Annotated[
        bool | None,
        typer.Option(help="Never answer the forgotten classes again; by default so for cover and retained-span."),
    ] = None,
    erased_label: Annotated[str | None, typer.Option(help="What they are called then (default '(erased)').")] = None,
    drop_label: Annotated[
        bool,
        typer.Option("--drop-label", help="Take them out of labels and logits; the others are renumbered."),
    ] = False,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="Forget a concept of CLIP, SigLIP and the like by this name; repeat it for synonyms. --dataset then only "
            "helps; its images of the concept are those whose label is called like it, or --forget-labels."
        ),
    ] = None,
    retain_text: Annotated[
        list[str] | None,
        typer.Option(help="Name that stays; repeat it. Without it: common objects."),
    ] = None,
    language: Annotated[
        list[str] | None,
        typer.Option(
            help="Language of the sentences that a --text is put into: en (the default), de, es, fr, it, ja, nl, pt or zh; "
            "repeat it, and give a --text in each."
        ),
    ] = None,
    publish_texts: Annotated[
        bool, typer.Option("--publish-texts", help="Write the words into record and card.")
    ] = False,
    ask: Annotated[
        bool,
        typer.Option("--ask", help="On a terminal, ask about names that lie close before anything."),
    ] = False,
    *,
    shared: Shared,
) -> None:
    """Make MODEL forget the images of --dataset with the labels of --forget-labels, and save it to --output.

    **Example:** `hf-kd erase user/pets-classifier --dataset user/pets --forget-labels tabby --output erased`

    **By name:** `hf-kd erase openai/clip-vit-base-patch32 --text "tabby cat" --text tabby --output erased`
    """
    if fold and eraser_only:
        raise InvalidValueError("Give --fold or --eraser-only, not both: what is folded has no eraser to save.")
    refuse_without_test(test_split)
    named = ByName.given(text, retain_text, publish_texts, ask, language)
    data = (dataset, split, test_split, forget_labels, retain_limit)
    request = Request(model, output, *data, mask_head, erased_label, drop_label, fold, eraser_only, shared)
    if named is not None:
        check_choice("method", method or "esc", [*(info.name for info in by_name_infos()), "esc"])
        _refuse_with_text(dataset, forget_labels, test_split)
        _erase_by_name(request, method, named)
        return
    if dataset is None:
        raise InvalidValueError("Give the images to forget with --dataset, or a concept by its name with --text.")
    if drop_label and erased_label is not None:
        raise InvalidValueError(f"Give --drop-label or --erased-label {erased_label!r}, not both.")
    _inputs.check_output(output, shared.overwrite, model, *(shared.eraser or ()))
    refuse_method(method or "esc", "eraser", shared.settings)
    _inputs.load_libraries(shared)
    from hf_kd.methods.registry import make_method

    chosen = make_method(method or "esc", **shared.settings)  # refused before anything is loaded
    _refuse_at_odds(request, chosen)
    _erase_by_images(request, dataset, chosen)


@dataclass(frozen=True)
class Request:
    """What the options say of one run but for method and names: the images, the labels of the result, how it is saved."""

    model: str
    output: Path
    dataset: str | None
    split: str
    test_split: str | None
    forget_labels: list[str] | None
    retain_limit: int | None
    mask_head: bool | None
    erased_label: str | None
    drop_label: bool
    fold: bool
    eraser_only: bool
    shared: Shared

    @property
    def masked_label(self) -> str | None:
        """What masked classes are called; None where they are dropped."""
        from hf_kd.model.label_mask import ERASED

        return None if self.drop_label else ERASED if self.erased_label is None else self.erased_label


def _erase_by_images(request: Request, dataset: str, method: Method) -> None:
    from hf_kd.features.readers import options_of

    shared, reading = request.shared, _inputs.read_options(request.shared)
    data = _inputs.load_data(dataset, request.split, shared)
    test = _inputs.load_data(dataset, request.test_split, shared, "test_split") if request.test_split else None
    parts = _inputs.by_labels(data, request.forget_labels, reading, method.needs_retain, request.retain_limit)
    erased = _loaded(request)
    _refuse_folded_labels(request, erased)
    of_test = options_of([test], [data], erased, reading)
    reading = options_of([data], [test], erased, reading)
    accuracy = None
    if request.test_split:
        accuracy = HeadAccuracy(erased, test, request.test_split, parts.in_model(erased, reading), of_test)
    erased.erase(
        parts.forget,
        method,
        reading=reading,
        retain=parts.retain,
        mask_head=request.mask_head,
        erased_label=request.masked_label,
        allow_unrecognised=shared.allow_unrecognised,
    )
    classes = erased.erasures[-1].classes or ()
    if not request.forget_labels and len(classes) > 1:
        logger.warning(
            "Every label of the data set was forgotten, %d in all: --forget-labels was not given.", len(classes)
        )
    if not _save(request, erased):
        return  # another process of the same launch reports
    measured = None if accuracy is None else accuracy.measured(request.output)
    _report(request, erased, measured, _missing_covers(parts, erased, reading))


def _erase_by_name(request: Request, method: str | None, named: ByName) -> None:
    shared = request.shared
    _inputs.check_output(request.output, shared.overwrite, request.model, *(shared.eraser or ()))
    _inputs.load_libraries(shared)
    reading = _inputs.read_options(shared)
    images = retain = None
    if request.dataset is not None:
        data = _inputs.load_data(request.dataset, request.split, shared)
        labels = request.forget_labels
        parts = _inputs.by_labels(data, labels, reading, bool(labels), request.retain_limit)
        images, retain = parts.forget, parts.retain
    erased = _loaded(request)
    named.erase(erased, images, retain, method, shared.settings, reading)
    if _save(request, erased):
        _report(request, erased, texts=named.texts)


def _report(
    request: Request,
    model: ErasedModel,
    accuracy: dict[str, Any] | None = None,
    missing: Sequence[int] = (),
    texts: Sequence[str] = (),
) -> None:
    """Print what was done last; `missing`: cover classes without an image, `texts`: what was forgotten by name."""
    erasure, shared = model.erasures[-1], request.shared
    given = shared.at_revision(request.model)
    audited, eraser = (given, ["--eraser", str(request.output)]) if request.eraser_only else (str(request.output), [])
    # labels that the model does not know stand in no record: the audit has to be told
    unknown = (request.forget_labels or ["LABEL"]) if erasure.classes is None else ()
    options = [*eraser, *(["--original", given] if request.fold else [])]
    options += [word for label in unknown for word in ("--forget-labels", label)]
    options += [word for text in texts for word in ("--texts", text)]
    # of a split that was forgotten as a whole nothing stays to compare with
    known = request.dataset if request.forget_labels or texts else None
    record, covers = erasure.to_dict(names=True), _cover_classes(model)
    if texts and not shared.as_json:
        record["texts"] = list(texts)  # to who typed them; they go into no file
    shown = {*covers, *(erasure.classes or ())}
    result = {
        "model": request.model,
        "output": str(request.output),
        "folded": request.fold,
        "classifies": not texts and all(tap.heads for tap in model.taps),
        "earlier_erasures": len(model.erasures) - 1,
        "erasure": record,
        "class_names": {c: name for c, name in model.class_names.items() if c in shown},
        "accuracy": accuracy,
        "cover_missing": list(missing),
        "cover_names": {c: model.class_names.get(c, str(c)) for c in covers},
        "next": audit_command(
            audited, known, *options, shared=shared, split=request.split, test_split=request.test_split
        ),
        "next_lacks": audit_lacks(known, shared, request.test_split),
        "verdict": accuracy_verdict(accuracy, record, {} if texts else model.class_names).text,
    }
    if shared.as_json:
        print(json.dumps(result))
    else:
        show_erasure(console, result)


def _refuse_with_text(dataset: str | None, labels: Any, test_split: Any) -> None:
    if test_split is not None:
        raise InvalidValueError(
            f"--test-split {test_split}: it measures the answers of a head, and --text forgets by name, for which none "
            "answers: leave it out. hf-kd audit --texts measures what the name still finds; its command is said in the end."
        )
    of_labels = ("mask_head", "erased_label", "drop_label", "allow_unrecognised", "label_mapping")
    refuse_unused(
        (*of_labels, *(() if labels else ("retain_limit",))),
        "says something of labels, and --text forgets by name, whatever labels there are: leave one out.",
    )
    refuse_without_data(dataset)


def _refuse_at_odds(request: Request, method: Method) -> None:
    if method.needs_retain and not request.forget_labels:
        raise InvalidValueError(
            f"Method {method.name!r} reads the images of all other labels as D_r, and without --forget-labels the whole "
            "split is D_f. Name the labels to forget with --forget-labels, or use --method esc or mean-projection, which "
            "read D_f alone."
        )
    if request.retain_limit is not None and not method.needs_retain:
        raise InvalidValueError(
            f"--retain-limit {request.retain_limit}: method {method.name!r} reads no images of other labels."
        )
    from hf_kd.model.label_mask import ERASED

    masks = method.masks_head if request.mask_head is None else request.mask_head
    if request.masked_label != ERASED and not masks:
        raise InvalidValueError(
            "--erased-label and --drop-label say what becomes of the labels of masked classes, and none are masked here: "
            "add --mask-head, or leave them out."
        )


def _refuse_folded_labels(request: Request, model: ErasedModel) -> None:
    """Of labels that a stock checkpoint would have to go on with."""
    if request.fold and (request.erased_label is not None or (request.drop_label and not model.config.dropped)):
        given = "--drop-label" if request.drop_label else f"--erased-label {shell_word(request.erased_label)}"
        raise InvalidValueError(
            f"{given}: --fold writes a stock checkpoint, which keeps its labels. With --mask-head alone the class is never "
            "answered, and still named there. Leave one of both out."
        )


def _loaded(request: Request) -> ErasedModel:
    """The model, on its device; refused before the work where its eraser could not be saved alone."""
    from hf_kd.data.devices import moved
    from hf_kd.model.stored_eraser import refuse_changed_weights

    loaded = _inputs.load_model(request.model, request.shared)
    if request.eraser_only:
        refuse_changed_weights(loaded)
    return moved(loaded, _inputs.device_of(request.shared))


def _save(request: Request, model: ErasedModel) -> bool:
    """Save on the main process; returns whether this is it."""

    def write() -> None:
        if request.fold:
            _save_folded(model.cpu(), request.output)
        elif request.eraser_only:
            model.save_eraser(request.output)
        else:
            model.save_pretrained(request.output)

    return _inputs.save_once(write)


def _save_folded(model: ErasedModel, output: Path) -> None:
    """A stock checkpoint, with the receipt and the card that are made from the eraser, which is not in it."""
    from hf_kd.hub.document import document
    from hf_kd.model.saving import atomic_directory

    stock = model.fold()
    with atomic_directory(output) as folder:
        stock.save_pretrained(folder)
        document(model, folder, folded=True, beside=output)


def _cover_classes(model: ErasedModel) -> list[int]:
    """Of the last erasure."""
    return sorted({c for measured in model.erasures[-1].measured for c in measured.get("cover_classes", ())})


def _missing_covers(parts: _inputs.Parts, model: ErasedModel, reading: ReadOptions) -> list[int]:
    """Cover classes of the last erasure that the data set has no image of."""
    cover = _cover_classes(model)
    present = parts.classes(model, reading) if cover else None
    return [] if present is None else [c for c in cover if c not in present]
