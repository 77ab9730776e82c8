"""`hf-kd card`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hf_kd.data.progress import working
from hf_kd.data.text import terminal

from . import _inputs
from ._app import command, console
from ._options import BaseOption, Shared
from ._published import erased_in, refuse_unpublishable, report_of


@command("as_json")
def card(
    folder: Annotated[Path, typer.Argument(help="Folder of an erased or unlearned model, or of an eraser.")],
    report: Annotated[
        Path | None, typer.Option(help="Folder or report.json of hf-kd audit. Without it: the one in the folder.")
    ] = None,
    repo_id: Annotated[str | None, typer.Option(help="USER/NAME under which it will be published.")] = None,
    datasets: Annotated[list[str] | None, typer.Option(help="Hub id of the data set; repeat it.")] = None,
    show_class_names: Annotated[
        bool, typer.Option("--show-class-names", help="Name the forgotten classes in card, report and figures.")
    ] = False,
    base: BaseOption = None,
    *,
    shared: Shared,
) -> None:
    """Write model card, receipt, report and figures into FOLDER. Text of your own in README.md stays.

    `hf-kd push` makes them anew, and takes that text along where the README of the repository has none.
    """
    refuse_unpublishable(folder, base)
    _inputs.load_libraries(shared)
    from hf_kd.audit.verdict import NOT_AUDITED
    from hf_kd.hub.document import base_of, document
    from hf_kd.hub.own_report import records_told
    from hf_kd.hub.publish import base_license
    from hf_kd.model.saving import atomic_directory

    model = erased_in(folder, base)
    found, licence = report_of(folder, report, records_told(model)), base_license(base_of(model)[0])
    with working("writing card and figures"), atomic_directory(folder) as temporary:
        document(
            model,
            temporary,
            report=found,
            beside=folder,
            license=licence,
            repo_id=repo_id,
            datasets=datasets or (),
            show_class_names=show_class_names,
        )
        written = sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file())
    if shared.as_json:
        verdict = NOT_AUDITED if found is None else found.verdict
        print(json.dumps({"folder": str(folder), "written": written, "verdict": verdict}))
        return
    console.print(f"Written to [bold]{terminal(str(folder))}[/]: {', '.join(written)}.", highlight=False)
