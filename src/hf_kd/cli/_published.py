"""What push and card start from: the model in a folder, and the report that goes with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_kd.errors import InvalidValueError, MissingFileError

if TYPE_CHECKING:
    from hf_kd.audit.report import RetentionReport
    from hf_kd.model.erased_model import ErasedModel


def erased_in(folder: Path) -> ErasedModel:
    """The erased or unlearned model in a folder.

    Raises:
        MissingFileError: Where there is no such folder.
        InvalidValueError: For a model that was made to forget nothing.
    """
    from hf_kd.hub.publish import publishable
    from hf_kd.model.erased_model import ErasedModel

    if not folder.is_dir():
        raise MissingFileError(f"{folder} is not a folder; give the one that `hf-kd erase --output` wrote.")
    model = ErasedModel.from_pretrained(folder)
    if not publishable(model):
        raise InvalidValueError(
            f"{folder} holds no eraser, and no weights changed by hf_kd, so there is nothing to publish. Make it forget "
            "something first: hf-kd erase or hf-kd unlearn."
        )
    return model


def report_of(folder: Path, report: Path | None) -> RetentionReport | None:
    """The report at this path, or else the one in the folder if there is one."""
    from hf_kd.audit.report import RetentionReport
    from hf_kd.hub.document import REPORT

    path = report or folder / REPORT
    if report is None and not path.is_file():
        return None
    return RetentionReport.from_json(path)
