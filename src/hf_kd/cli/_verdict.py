"""The verdict on the command line: the first thing that is printed wherever a result is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from hf_kd.data.text import one_line, shell_word
from hf_kd.errors import InvalidValueError
from hf_kd.hub.files import outcome_in

from . import _inputs
from ._app import LOGGED, in_words

if TYPE_CHECKING:
    from rich.console import Console

    from hf_kd.audit.verdict import Verdict

    from ._options import Shared


def accuracy_verdict(
    accuracy: Mapping[str, Any] | None, record: Mapping[str, Any], names: Mapping[int, str]
) -> Verdict:
    """What `HeadAccuracy` measured after the request of this record, in words.

    Args:
        accuracy: None where nothing was measured.
        record: Of erasing or unlearning.
        names: The labels of the model before it.
    """
    from hf_kd.audit.shares import Share
    from hf_kd.audit.verdict import measured_verdict, short_name

    shares: list[Share | None] = [None, None]
    hardest = None
    sampled = dict(record.get("sampled") or {})
    if accuracy:
        shares = [
            Share(accuracy["erased"][part], accuracy["original"][part], **accuracy["changes"][part])
            for part in ("forget", "retain")
        ]
        if worst := accuracy.get("hardest_hit"):
            own = {key: value for key, value in worst.items() if key != "label"}
            hardest = (short_name(names, worst["label"]), Share(**own))
        if accuracy.get("sampled"):
            sampled[accuracy["split"]] = accuracy["sampled"]
    chance = 100 / len(names) if names else None
    # what the accuracy counts is of all requests
    who = record_names(record if not accuracy else {**record, "classes": accuracy["classes"]}, names)
    by_name = bool(record.get("n_texts"))
    return measured_verdict(who, *shares, hardest=hardest, chance=chance, sampled=sampled, by_name=by_name)


def record_names(record: Mapping[str, Any], names: Mapping[int, str]) -> list[str]:
    """Names of the classes of a record: the model's, or else the data set's; of a request by name its texts, if known."""
    from hf_kd.audit.verdict import short_name

    classes = [short_name(names, label) for label in record.get("classes") or ()]
    return classes or list(record.get("dataset_classes") or record.get("texts") or ())


def audit_command(
    model: str, dataset: str | None, *options: str, shared: Shared, split: str = "train", test_split: str | None = None
) -> str:
    """The command that measures what is left: it imports and reads what the command that was run did.

    None is a data set that is yet to be named: nothing is known of how it is read.
    """
    described: dict[str, Any] = {}
    if dataset is not None:
        described |= shared.chosen("config_name", "image_column", "label_column", "label_mapping", "labels")
        described |= {"split": split} if split != "train" else {}
        described |= {"test_split": test_split} if test_split not in (None, "test") else {}
    words = list(options)
    for name, value in described.items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", str(one)]
    words += shared.import_words
    return " ".join(map(shell_word, ["hf-kd", "audit", model, "--dataset", dataset or "DATASET", *words]))


def audit_lacks(dataset: str | None, shared: Shared, test_split: str | None) -> str:
    """What `audit_command` would be refused for: that there are no images to test on. Empty where there are.

    Args:
        dataset: As there.
        shared: The options of the command that was run.
        test_split: As there; one that is named was read.
    """
    if dataset is None or test_split is not None:
        return ""
    try:
        _inputs.load_data(dataset, "test", shared, "test_split", streaming=True)
    except ValueError as error:
        return in_words(str(error))
    except (OSError, NotImplementedError):  # a Hub that does not answer, archives that are not streamed: nobody knows
        pass
    return ""


def card_command(folder: str | Path, report: str | Path, shared: Shared, base: str | None = None) -> str:
    """The command that puts a report into the card of the model, or of the eraser for a `base`, in a folder.

    Empty where nothing was forgotten, so that there is no card. That of a folded model is made from what it was folded of.
    """
    outcome = outcome_in(Path(folder))
    words = ["hf-kd", "card", str(folder), *([] if base is None else ["--base", base])]
    if outcome == "folded":
        words = ["hf-kd", "push", "ERASED_FOLDER", "USER/NAME", "--folded"]
    return " ".join(map(shell_word, [*words, "--report", str(report), *shared.import_words])) if outcome else ""


def show_verdict(console: Console, text: str, warnings: Sequence[str] = ()) -> None:
    """The verdict, and beside it the warnings of the records that were not logged on the way to it."""
    console.print(Text(one_line(text), style="bold"))
    for warning in (text for text in map(in_words, warnings) if not _said(text)):
        console.print(Text(one_line(f"Warning: {warning}"), style="yellow"))


def _said(warning: str) -> bool:
    """Whether it was logged, as it is or with names that no record has."""
    return any(text.startswith(warning.removesuffix(".")) for text in LOGGED)


def report_verdict(
    source: str | Path, records: Sequence[Mapping[str, Any]], shared: Shared, base: str | None = None
) -> str:
    """The verdict of the report beside a model, or an eraser for a `base`; where there is none, how one comes there.

    Args:
        source: Folder or repository of the model or the eraser; empty where there are several.
        records: All that it was made to forget.
        shared: The options of the command.
        base: Of an eraser.
    """
    from hf_kd.audit.verdict import ASSUME, NOT_AUDITED
    from hf_kd.hub.document import REPORT
    from hf_kd.hub.own_report import report_beside

    from ._published import beside, holds_eraser

    if not source:
        return f"No report of an audit was looked for, since several erasers have none in common: {ASSUME}"
    try:
        path = beside(source, REPORT)
        report = None if path is None else report_beside(path, records)
    except InvalidValueError as error:
        return f"The report beside this model says nothing: {error}"
    except OSError as error:
        return (
            f"Whether a report of an audit lies beside this model could not be asked ({type(error).__name__}): {ASSUME}"
        )
    if report is not None or not Path(source).is_dir():
        return NOT_AUDITED if report is None else report.verdict
    command = card_command(source, "REPORT_FOLDER", shared, (base or "BASE") if holds_eraser(Path(source)) else None)
    return f"{NOT_AUDITED} A report kept elsewhere is not seen here; to put it beside the model: {command}"
