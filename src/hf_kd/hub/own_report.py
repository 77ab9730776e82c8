"""Which model a report is of: a folder may hold that of the model before, and a person may name that of another."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_kd.audit.report import RetentionReport
from hf_kd.errors import InvalidValueError
from hf_kd.features.protocol import TappedModel
from hf_kd.methods.records import all_records

logger = logging.getLogger(__name__)

AUDIT_IT = "Audit this model (hf-kd audit, or model.audit), and give the report of that."


def refuse_other_report(report: RetentionReport | None, model: TappedModel) -> None:
    """Refuse a report of another model than this one, whose numbers would stand in its card.

    Args:
        report: What `audit` gave; None for no report.
        model: Which is documented.

    Raises:
        InvalidValueError: With what both were made to forget.
    """
    if report is not None and (other := _other_records(report, records_told(model))):
        raise InvalidValueError(f"The report is of another model: {other}. {AUDIT_IT}")


def report_beside(path: Path, records: Iterable[Mapping[str, Any]]) -> RetentionReport | None:
    """The report that lies beside a model, where it is of that model.

    Args:
        path: Of the report.
        records: Of all that the model was made to forget, as `records_told` gives them.

    Returns:
        None where there is none, or one of another model, such as that which lay in the folder before; the log says so.

    Raises:
        InvalidValueError: It cannot be read.
    """
    if not path.is_file():
        return None
    report = RetentionReport.from_json(path)
    if other := _other_records(report, records):
        logger.warning(f"{path.name} beside the model is of another one and is not used: {other}. {AUDIT_IT}")
        return None
    return report


def records_told(model: TappedModel) -> list[dict[str, Any]]:
    """All records of a model in the order and form that a report has them in."""
    return [record.to_dict() for record in all_records(model)]


def _other_records(report: RetentionReport, records: Iterable[Mapping[str, Any]]) -> str:
    """How the requests that a report is of differ from a model's; empty where they are the same, or it does not say."""
    audited = [record for key in ("changes", "erasures") for record in report.context.get(key) or ()]
    if not audited and "original_given" not in report.context:
        return ""  # of `audit_features`, or of 0.1.0, which kept nothing of what was folded
    told, own = list(map(_mark, audited)), list(map(_mark, records))
    return "" if told == own else f"it was made for {_in_words(told)}, and this model has {_in_words(own)}"


def _mark(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """Method, classes and what came out of a request: the digests of its erasers, or of the weights that it left."""
    came_out = record.get("weights_after") or "".join(record.get("sha256") or ())
    return record.get("method"), tuple(record.get("classes") or ()), came_out


def _in_words(marks: Iterable[tuple[Any, ...]]) -> str:
    words = [f"{method} of classes {list(classes)} ({came_out[:8]})" for method, classes, came_out in marks]
    return ", then ".join(words) or "no request"
