"""What push and card start from: the model in a folder, and the report that goes with it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError

from hf_kd.data.paths import folder_meant, with_revision
from hf_kd.data.progress import working
from hf_kd.errors import InvalidValueError, MissingFileError
from hf_kd.hub.files import RECEIPT, is_eraser, outcome_in

if TYPE_CHECKING:
    from hf_kd.audit.report import RetentionReport
    from hf_kd.model.erased_model import ErasedModel

logger = logging.getLogger(__name__)


def refuse_unpublishable(folder: Path, base: str | None = None, erasers: Sequence[str] | None = None) -> None:
    """Refuse a folder without an erased or unlearned model or an eraser, before seconds go into imports.

    Args:
        folder: What is to be published.
        base: What the eraser in it stands on, if that was said.
        erasers: Those to be put on the model in it.

    Raises:
        MissingFileError: Where there is no such folder.
        InvalidValueError: For a model that was made to forget nothing or whose eraser is folded in, and for a base of a
            model that is whole.
    """
    if not folder.is_dir():
        raise MissingFileError(
            f"{folder} is not a folder.{folder_meant(str(folder))} Give the one that hf-kd erase or unlearn wrote."
        )
    if base is not None and not holds_eraser(folder):
        raise InvalidValueError(
            f"--base {base}: {folder} holds a model, and only an eraser stands on another one: leave it out."
        )
    outcome = outcome_in(folder)
    if outcome == "folded":
        raise InvalidValueError(
            f"The erasure of {folder} is folded into its weights; card and receipt are made from the eraser, which is not "
            "in it any more. `hf-kd erase --fold` writes both with the checkpoint, and `hf-kd push ERASED_FOLDER USER/NAME "
            "--folded` publishes an erased model so, with the report of its audit."
        )
    if not outcome and not erasers:
        raise _nothing_forgotten(folder)


def _nothing_forgotten(folder: Path) -> InvalidValueError:
    return InvalidValueError(
        f"{folder} holds no eraser, and no weights changed by hf_kd, so there is nothing to publish. Make it forget "
        "something first: hf-kd erase or hf-kd unlearn."
    )


def erased_in(folder: Path, base: str | None = None, erasers: Sequence[str] | None = None) -> ErasedModel:
    """The erased or unlearned model in a folder, with these erasers put on it; of an eraser in it, its base with it.

    Raises:
        InvalidValueError: For what `refuse_unpublishable` refuses, and for a model that is another than its receipt says.
    """
    from hf_kd.hub.publish import publishable
    from hf_kd.model.erased_model import ErasedModel
    from hf_kd.model.stored_eraser import read_eraser

    refuse_unpublishable(folder, base, erasers)
    refuse_contradicted(folder, base)
    if holds_eraser(folder) and base is None and (stored := read_eraser(folder)).base[0] is None:
        raise InvalidValueError(
            f"{folder} is an eraser, and stands on {stored.base_in_words}. Say where that lies: --base BASE."
        )
    with working("loading the model"):
        model = (
            ErasedModel.from_pretrained(folder) if base is None else ErasedModel.from_pretrained(base, eraser=folder)
        )
        for eraser in erasers or ():
            model.load_eraser(eraser)
    if not publishable(model):  # reset, or its erasers taken away, and saved with the records of it
        raise _nothing_forgotten(folder)
    return model


def holds_eraser(folder: Path) -> bool:
    """Whether a folder holds an eraser on its own."""
    return folder.is_dir() and is_eraser(path.name for path in folder.iterdir())


def refuse_contradicted(folder: Path, base: str | None = None) -> None:
    """Raise InvalidValueError where the receipt in a folder is not of the files beside it: a new one would hide that.

    A receipt that cannot be read contradicts nothing, which is logged. Neither does what cannot be told here, or differs in
    the base that was given: to load the model says that.
    """
    from hf_kd.hub.receipt import read_receipt
    from hf_kd.model.verify import verify

    if not (folder / RECEIPT).is_file():
        return
    try:
        read_receipt(folder / RECEIPT)
    except InvalidValueError as error:
        logger.warning(f"{error} It is replaced.")
        return
    with working("comparing with the receipt"):
        checks = verify(folder, base=base).checks
    wrong = [f"{check.what}: {check.found}" for check in checks if check.ok is False and not check.of_given]
    if wrong:
        raise InvalidValueError(
            f"{RECEIPT} in {folder} is of other files than lie beside it ({'; '.join(wrong[:5])}), and a new one would hide "
            f"that. Save the model again, or, where you made the change and mean it, delete {RECEIPT} first."
        )


def beside(source: str | Path, name: str) -> Path | None:
    """A file that lies with a model, in a folder or a repository USER/NAME[@REVISION]; None where there is none.

    Raises:
        OSError: The Hub could not be asked.
    """
    if Path(source).is_dir():
        return path if (path := Path(source) / name).is_file() else None
    repo, hub = with_revision(str(source), {})
    try:
        return Path(hf_hub_download(repo, name, **hub))
    except RemoteEntryNotFoundError:
        return None


def report_of(folder: Path, report: Path | None, records: Iterable[Mapping[str, Any]]) -> RetentionReport | None:
    """The report at this path, or in this folder of `hf-kd audit`; else the one beside the model, if it is of it.

    Args:
        folder: Of the model.
        report: What was named.
        records: Of the model, as `hf_kd.hub.own_report.records_told` gives them.
    """
    from hf_kd.audit.report import RetentionReport
    from hf_kd.hub.document import REPORT
    from hf_kd.hub.own_report import report_beside

    if report is None:
        return report_beside(folder / REPORT, records)
    return RetentionReport.from_json(report / "report.json" if report.is_dir() else report)
