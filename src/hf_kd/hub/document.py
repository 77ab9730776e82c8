"""Put card, receipt, report and figures beside a saved model. From a model to what `hub` prints.

A card that fails never costs the model: it is logged, and a short one is written instead.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from yaml import YAMLError

from hf_kd.audit.cut_scan import draw_cut_scan, scan_of
from hf_kd.audit.report import RetentionReport
from hf_kd.data.digest import inner_digest
from hf_kd.errors import has_package
from hf_kd.features.heads import has_head
from hf_kd.features.protocol import TappedModel
from hf_kd.methods.records import (
    Erasure,
    WeightChange,
    all_records,
    carried_out,
    folded_erasures,
    versions,
    weight_changes,
)
from hf_kd.methods.registry import available_methods, method_info

from .card import BEGIN, END, CardValues, render
from .files import RECEIPT, checkpoint_files, is_eraser
from .own_report import refuse_other_report
from .readme import withdrawn
from .receipt import commands_of, receipt, write_receipt
from .wording import Request

logger = logging.getLogger(__name__)

REPORT = "retention_report.json"
CARD = "README.md"


def document(
    model: TappedModel,
    folder: Path,
    *,
    report: RetentionReport | None = None,
    repo_id: str | None = None,
    folded: bool = False,
    show_class_names: bool = False,
    beside: str | os.PathLike[str] | None = None,
    add_card: bool = True,
    datasets: Sequence[str] = (),
    license: str | None = None,
) -> None:
    """Write README.md, erasures.json, retention_report.json and figures/ into `folder`, which holds the saved model.

    A README that lies in `folder`, or else in `beside`, keeps all of a person's text; one that is not UTF-8 is left alone.

    Args:
        model: What was saved.
        folder: Where it was saved, whole or the eraser on its own.
        report: What `audit` gave, for the card.
        repo_id: Where the model goes, for the snippets of the card.
        folded: Whether `folder` holds the stock checkpoint of `fold`.
        show_class_names: Name the forgotten classes in card, report and figures. Their ids are in the records either way.
        beside: The folder these files are about to be put into; what stays there is part of the receipt.
        add_card: False leaves a README alone that has no section of ours.
        datasets: Hub ids, for the card.
        license: For a card that has none.

    Raises:
        InvalidValueError: The report is of another model.
    """
    refuse_other_report(report, model)
    folder, beside = Path(folder), None if beside is None else Path(beside)
    existing, changeable = read_card([folder] if beside is None else [folder, beside])
    audited = () if report is None else report.forget_labels
    shown = model.class_names if show_class_names else _retained_names(model, model.class_names, audited)
    if report is not None:
        report = _as_told(report, model, datasets, show_class_names)
    figures = (*(() if report is None else _write_report(report, folder)), *_draw_scan(model, folder))
    alone = is_eraser(checkpoint_files(folder, beside))
    model.find_taps()
    base, commit = base_of(model)
    saved_by = ["--fold"] if folded else ["--eraser-only"] if alone else []
    values = CardValues(
        requests=tuple(_request(record, shown, show_class_names, gone) for record, gone in carried_out(model)),
        architecture=type(model.inner).__name__,
        own_class=has_own_class(model),
        taps=tuple(str(tap) for tap in model.taps),
        dimension=sum(tap.dim for tap in model.taps),
        withheld=tuple(model.config.leaking),
        repo_id=repo_id,
        base_model=base,
        base_commit=commit,
        folded=folded,
        eraser_only=alone,
        since=weights_since(model),
        classifies=has_head(model),
        datasets=tuple(datasets),
        license=license,
        report=report,
        figures=figures,
        commands=tuple(_commands(model, base, show_class_names, saved_by)),
        versions=versions(),
    )
    write_receipt(folder, _receipt(values, model, folder, beside, show_class_names))
    if changeable and (existing is None or BEGIN in existing or add_card):
        (folder / CARD).write_bytes(_written(lambda: render(values, existing), existing).encode("utf-8"))


def _as_told(report: RetentionReport, model: TappedModel, datasets: Sequence[str], named: bool) -> RetentionReport:
    """The report without what is not told: names of forgotten classes, and the data where it was not said to be public."""
    if not named:
        report = replace(report, class_names=_retained_names(model, report.class_names, report.forget_labels))
    if report.context.get("dataset") in datasets:
        return report
    # by the names of a folder and its files only whom it was handed to knows the data
    known = {key: value for key, value in report.context.items() if key not in ("dataset", "files")}
    return replace(report, context=known)


def _commands(model: TappedModel, base: str | None, named: bool, saved_by: Sequence[str]) -> list[str]:
    records, names = carried_out(model), model.class_names
    asked = [record.classes or record.dataset_classes or ("LABEL",) for record, _ in records]
    return commands_of(
        [record.to_dict(names=True) for record, _ in records],
        base,
        [[names[label] if label in names else str(label) for label in own] for own in asked] if named else None,
        own_class=has_own_class(model),
        saved_by=saved_by,
        folded=[gone for _, gone in records],
    )


def _receipt(values: CardValues, model: TappedModel, folder: Path, beside: Path | None, named: bool) -> dict[str, Any]:
    """The receipt that says what the card does; what is published without names of classes has none of files either."""
    changes, folded_before = weight_changes(model.config), folded_erasures(model.config)
    kinds = {"changes": changes, "folded_before": folded_before, "erasures": model.erasures}
    published = values.repo_id is not None and not named
    return receipt(
        folder,
        {kind: [one.to_dict(named, not published) for one in own] for kind, own in kinds.items()},
        _before(model),
        since=values.since,
        beside=beside,
        folded=values.folded,
        base=(values.base_model, values.base_commit),
        commands=values.commands,
        weights=inner_digest(model) if values.eraser_only else None,
    )


def withdraw_card(folder: Path, beside: str | os.PathLike[str]) -> None:
    """Write README.md into `folder` where that in `beside` has a section of ours, without it.

    Args:
        folder: Where a model was saved that forgot nothing.
        beside: The folder it is about to be put into.
    """
    existing, _ = read_card([Path(beside)])
    if existing is not None and BEGIN in existing:
        (folder / CARD).write_bytes(_written(lambda: withdrawn(existing), existing).encode("utf-8"))


def _write_report(report: RetentionReport, folder: Path) -> tuple[str, ...]:
    """The report and its figures, whose paths in `folder` are returned."""
    report.to_json(folder / REPORT)
    if has_package("matplotlib"):
        return tuple(path.relative_to(folder).as_posix() for path in report.figures(folder / "figures"))
    logger.warning("The card has no figures: matplotlib is not installed. Install it: pip install 'hf-kd[figures]'.")
    return ()


def _draw_scan(model: TappedModel, folder: Path) -> tuple[str, ...]:
    """The figure of the scan that says where the model was cut, where there was one and it can be drawn."""
    if not scan_of(model) or not has_package("matplotlib"):
        return ()
    (folder / "figures").mkdir(exist_ok=True)
    try:
        return (draw_cut_scan(model, folder / "figures" / "cut_scan.png").relative_to(folder).as_posix(),)
    except (KeyError, TypeError, ValueError) as error:
        logger.warning(f"The scan in the record could not be drawn ({type(error).__name__}: {error}).")
        return ()


def read_card(places: Sequence[Path]) -> tuple[str | None, bool]:
    """The first README there is, with the line endings it has, and whether it may be written anew.

    A byte order mark is taken off: it would hide the metadata. What is no UTF-8 text is nobody's to change: that is logged.
    """
    for path in (place / CARD for place in places if os.path.lexists(place / CARD)):
        try:
            return path.read_bytes().decode("utf-8-sig"), True
        except (OSError, UnicodeDecodeError) as error:
            logger.warning(f"{CARD} is left as it is, without a card: it cannot be read as UTF-8 text ({error}).")
            return None, False
    return None, True


def has_own_class(model: TappedModel) -> bool:
    """Whether the class of the model inside is none of transformers, so that whoever loads it has to register it first."""
    return type(model.inner).__module__.partition(".")[0] != "transformers"


def _folded_first(model: TappedModel) -> bool:
    return any(gone for _, gone in carried_out(model)[:1])


def base_of(model: TappedModel) -> tuple[str | None, str | None]:
    """Hub id and commit of the model before the first request; None for one that came from somewhere else.

    So too where a fold was the first, which keeps neither: the model that this one was loaded from is the folded one.
    """
    if _folded_first(model):
        return None, None
    changed = weight_changes(model.config)
    first = changed[0] if changed else model.config
    return first.base_model, first.base_commit


def _written(write: Callable[[], str], existing: str | None) -> str:
    """The card, or where it cannot be written the one that is there: a card never costs the model."""
    try:
        return write()
    except (ValueError, TypeError, KeyError, AttributeError, OSError, TemplateError, YAMLError) as error:
        logger.warning(
            f"The model card could not be written ({type(error).__name__}: {error}); the model is not affected."
        )
        if existing:
            return existing
        return (
            f"---\nlibrary_name: hf-kd\n---\n\n{BEGIN}\nMade to forget with hf_kd; see {RECEIPT}. Its card could not be "
            f"written: `hf-kd card FOLDER` tries again.\n{END}\n"
        )


def _retained_names(model: TappedModel, names: Mapping[int, str], audited: Iterable[int]) -> dict[int, str]:
    """Names of classes without those that any request was to forget, or that an audit takes for forgotten."""
    records = all_records(model)
    secret = {*audited, *(label for record in records for label in record.classes or ())}
    told = {name for record in records for name in record.dataset_classes or ()}
    return {label: name for label, name in names.items() if label not in secret and name not in told}


def _request(erasure: Erasure, shown: Mapping[int, str], named: bool, folded: bool) -> Request:
    """A record as the card tells it; `shown`: the names of classes that may stand in it."""
    return Request(
        images=erasure.n_read_forget,
        classes=None if erasure.classes is None else len(erasure.classes),
        names=tuple(str(shown.get(label, label)) for label in erasure.classes or ()) if named else None,
        method=erasure.method,
        settings=erasure.settings,
        rank_removed=erasure.k,
        energy_removed=erasure.energy_removed,
        condition_number=max((c for c in erasure.condition_number if c is not None), default=None)
        if None not in erasure.condition_number
        else None,
        source=source_of(erasure) if isinstance(erasure, WeightChange) else None,
        stopped=next((part["stopped"] for part in erasure.measured if "stopped" in part), None),
        needs=_needs(erasure),
        retained=erasure.n_read_retain,
        masked=erasure.masked,
        erased_label=erasure.erased_label,
        measured=erasure.measured,
        warnings=erasure.warnings,
        cover_names=shown,
        texts=erasure.n_texts,
        words=erasure.texts,
        folded=folded,
    )


def source_of(change: WeightChange) -> str:
    """Where the method of a change comes from, and what data it used; the method may be of a package not installed here."""
    needs, source = _needs(change), change.source
    if change.needs is None:  # 0.1.0 kept no source
        source = method_info(change.method).source if change.method in available_methods("weights") else None
    return "; ".join([*([f"used {needs}"] if needs else []), source or "source unknown"])


def _needs(record: Erasure) -> str | None:
    """What the method read; 0.1.0 kept it among what was measured."""
    return record.needs or next((str(part["needs"]) for part in record.measured if "needs" in part), None)


def _before(model: TappedModel) -> str | None:
    """Digest of the weights before the first of all requests; None where nobody took it then, or a fold did not keep it."""
    if _folded_first(model):
        return None
    changed = weight_changes(model.config)
    return changed[0].weights_before if changed else model.config.weights_erased


def weights_since(model: TappedModel) -> str:
    """What became of the weights since the first request: one of `receipt.SINCE`.

    Each request knows the digest of the weights that it found, and one that changes weights that of those it left.
    """
    if folded_erasures(model.config):  # the fold wrote into the head, and no digest is of that
        return "unknown"
    changes = weight_changes(model.config)
    found, left = [change.weights_before for change in changes], [change.weights_after for change in changes]
    if model.erasures:  # which leave the weights as the first of them finds them
        found, left = [*found, model.config.weights_erased], [*left, model.config.weights_erased]
    if not left or None in (*left, *found[1:]):
        return "unknown"
    if left == [*found[1:], inner_digest(model)]:
        return "unchanged"
    dtype = str(next(model.inner.parameters()).dtype).removeprefix("torch.")
    asked = {record.weights_dtype for record in all_records(model)}
    return "trained" if dtype in asked else "converted"
