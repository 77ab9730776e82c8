"""`hf-kd erase`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_kd.data.progress import working
from hf_kd.data.text import shell_word
from hf_kd.errors import InvalidValueError, check_choice
from hf_kd.methods.registry import built_in_infos, by_name_infos, refuse_method

from . import _inputs
from ._accuracy import HeadAccuracy
from ._app import command, console, refuse_unused, refuse_without_data, refuse_without_test
from ._by_name import ByName
from ._options import LIMITS, READING, ModelArgument, Shared
from ._tables import show_erasure
from ._verdict import accuracy_verdict, audit_command

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
            "oblique (the default) or esc."
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
    if named is not None:
        check_choice("method", method or "esc", [*(info.name for info in by_name_infos()), "esc"])
        _refuse_with_text(dataset, forget_labels, test_split)
        of_concept = forget_labels, retain_limit
        _erase_by_name(model, output, dataset, split, of_concept, method, (fold, eraser_only), named, shared)
        return
    if dataset is None:
        raise InvalidValueError("Give the images to forget with --dataset, or a concept by its name with --text.")
    if drop_label and erased_label is not None:
        raise InvalidValueError(f"Give --drop-label or --erased-label {erased_label!r}, not both.")
    _inputs.check_output(output, shared.overwrite)
    refuse_method(method or "esc", "eraser", shared.settings)
    _inputs.load_libraries(shared)
    from hf_kd.features.readers import options_beside
    from hf_kd.methods.registry import make_method
    from hf_kd.model.label_mask import ERASED

    label = None if drop_label else ERASED if erased_label is None else erased_label
    chosen = make_method(method or "esc", **shared.settings)  # refused before anything is loaded
    _refuse_at_odds(chosen, forget_labels, retain_limit, mask_head, label != ERASED)
    reading = _inputs.read_options(shared)
    data = _inputs.load_data(dataset, split, shared)
    test = _inputs.load_data(dataset, test_split, shared, "test_split") if test_split else None
    parts = _inputs.by_labels(data, forget_labels, reading, chosen.needs_retain, retain_limit)
    erased = _loaded(model, eraser_only, shared)
    if fold and (erased_label is not None or (drop_label and not erased.config.dropped)):  # which has to go on so
        given = "--drop-label" if drop_label else f"--erased-label {shell_word(erased_label)}"
        raise InvalidValueError(
            f"{given}: --fold writes a stock checkpoint, which keeps its labels. With --mask-head alone the class is never "
            "answered, and still named there. Leave one of both out."
        )
    accuracy = None
    if test is not None:
        of_test = options_beside(erased, reading, test, data)
        accuracy = HeadAccuracy(erased, test, test_split, parts.in_model(erased, reading), of_test)
    earlier = len(erased.erasures)
    erased.erase(
        parts.forget,
        chosen,
        reading=reading,
        retain=parts.retain,
        mask_head=mask_head,
        erased_label=label,
        allow_unrecognised=shared.allow_unrecognised,
    )
    classes = erased.erasures[-1].classes or ()
    if not forget_labels and len(classes) > 1:
        logger.warning(
            "Every label of the data set was forgotten, %d in all: --forget-labels was not given.", len(classes)
        )
    if not _save(erased, output, fold, eraser_only):
        return  # another process of the same launch reports
    measured = None if accuracy is None else accuracy.measured(output)
    result = {
        "model": model,
        "output": str(output),
        "folded": fold,
        "classifies": all(tap.heads for tap in erased.taps),
        "earlier_erasures": earlier,
        "erasure": erased.erasures[-1].to_dict(names=True),
        "class_names": _names_in(erased),
        "accuracy": measured,
        **_cover_in(parts, erased, reading),
    }
    given = shared.at_revision(model)
    audited, eraser = (given, ["--eraser", str(output)]) if eraser_only else (str(output), [])
    # labels that the model does not know stand in no record: the audit has to be told
    unknown = (forget_labels or ["LABEL"]) if erased.erasures[-1].classes is None else ()
    options = [*eraser, *(["--original", given] if fold else []), *(w for f in unknown for w in ("--forget-labels", f))]
    known = dataset if forget_labels else None  # of a split that was forgotten as a whole nothing stays to compare with
    result["next"] = audit_command(audited, known, *options, shared=shared, split=split, test_split=test_split)
    result["verdict"] = accuracy_verdict(measured, result["erasure"], erased.class_names).text
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


def _erase_by_name(
    model: str,
    output: Path,
    dataset: str | None,
    split: str,
    of_concept: tuple[list[str] | None, int | None],
    method: str | None,
    saving: tuple[bool, bool],
    named: ByName,
    shared: Shared,
) -> None:
    fold, eraser_only = saving
    _inputs.check_output(output, shared.overwrite)
    _inputs.load_libraries(shared)
    reading = _inputs.read_options(shared)
    labels, limit = of_concept
    images = retain = None
    if dataset is not None:
        parts = _inputs.by_labels(_inputs.load_data(dataset, split, shared), labels, reading, bool(labels), limit)
        images, retain = parts.forget, parts.retain if labels else None
    erased = _loaded(model, eraser_only, shared)
    result = {"model": model, "output": str(output), "folded": fold, "classifies": False}
    result |= {"earlier_erasures": len(erased.erasures)}
    named.erase(erased, images, retain, method, shared.settings, reading)
    result |= {"erasure": erased.erasures[-1].to_dict(names=True), "class_names": {}, "accuracy": None}
    result |= {"cover_missing": [], "cover_names": {}}
    given = shared.at_revision(model)
    audited, eraser = (given, ["--eraser", str(output)]) if eraser_only else (str(output), [])
    options = [*eraser, *(["--original", given] if fold else [])]
    options += [word for label in labels or ["LABEL"] for word in ("--forget-labels", label)]
    options += [word for text in named.texts for word in ("--texts", text)]
    result["next"] = audit_command(audited, dataset, *options, shared=shared, split=split)
    result["verdict"] = accuracy_verdict(None, result["erasure"], {}).text
    if not _save(erased, output, fold, eraser_only):
        return
    if shared.as_json:
        print(json.dumps(result))
        return
    known = result["erasure"] | {"texts": list(named.texts)}  # to who typed them; they go into no file
    show_erasure(console, result | {"erasure": known, "verdict": accuracy_verdict(None, known, {}).text})


def _refuse_at_odds(
    method: Method, labels: list[str] | None, limit: int | None, mask_head: bool | None, renames: bool
) -> None:
    if method.needs_retain and not labels:
        raise InvalidValueError(
            f"Method {method.name!r} reads the images of all other labels as D_r, and without --forget-labels the whole "
            "split is D_f. Name the labels to forget with --forget-labels, or use --method esc or mean-projection, which "
            "read D_f alone."
        )
    if limit is not None and not method.needs_retain:
        raise InvalidValueError(f"--retain-limit {limit}: method {method.name!r} reads no images of other labels.")
    if renames and not (method.masks_head if mask_head is None else mask_head):
        raise InvalidValueError(
            "--erased-label and --drop-label say what becomes of the labels of masked classes, and none are masked here: "
            "add --mask-head, or leave them out."
        )


def _loaded(model: str, eraser_only: bool, shared: Shared) -> ErasedModel:
    """The model, on its device; refused before the work where its eraser could not be saved alone."""
    from hf_kd.model.stored_eraser import refuse_changed_weights

    loaded = _inputs.load_model(model, shared)
    if eraser_only:
        refuse_changed_weights(loaded)
    return loaded.to(_inputs.device_of(shared))


def _save(model: ErasedModel, output: Path, fold: bool, eraser_only: bool) -> bool:
    """Save on the main process; returns whether this is it."""
    from hf_kd.data.distributed import process_state

    state = process_state()
    if state.is_main_process:
        with working("saving"):
            if fold:
                _save_folded(model.cpu(), output)
            elif eraser_only:
                model.save_eraser(output)
            else:
                model.save_pretrained(output)
    state.wait_for_everyone()
    return state.is_main_process


def _save_folded(model: ErasedModel, output: Path) -> None:
    """A stock checkpoint, with the receipt and the card that are made from the eraser, which is not in it."""
    from hf_kd.hub.document import document
    from hf_kd.model.saving import atomic_directory

    stock = model.fold()
    with atomic_directory(output) as folder:
        stock.save_pretrained(folder)
        document(model, folder, folded=True, beside=output)


def _names_in(model: ErasedModel) -> dict[int, str]:
    """Names of the classes that the last record speaks of: forgotten ones and cover classes."""
    erasure = model.erasures[-1]
    covers = {c for measured in erasure.measured for c in measured.get("cover_classes", ())}
    return {c: name for c, name in model.class_names.items() if c in covers | set(erasure.classes or ())}


def _cover_in(parts: _inputs.Parts, model: ErasedModel, reading: ReadOptions) -> dict[str, Any]:
    """Cover classes of the last erasure that the data set has no image of, and the names of all of them."""
    cover = sorted({c for measured in model.erasures[-1].measured for c in measured.get("cover_classes", ())})
    present = parts.classes(model, reading) if cover else None
    missing = [] if present is None else [c for c in cover if c not in present]
    return {"cover_missing": missing, "cover_names": {c: model.class_names.get(c, str(c)) for c in cover}}
