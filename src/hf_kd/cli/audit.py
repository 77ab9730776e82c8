"""`hf-kd audit`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_kd.data.progress import at_work, working
from hf_kd.data.text import terminal
from hf_kd.errors import InvalidValueError, has_package

from . import _inputs
from ._app import command, console, elapsed
from ._choices import with_commas
from ._options import LIMITS, READING, ModelArgument, Shared
from ._verdict import card_command

if TYPE_CHECKING:
    from hf_kd.audit.report import RetentionReport
    from hf_kd.features.reader import ReadOptions
    from hf_kd.model.erased_model import ErasedModel


@command("eraser", "tap", "processor", *READING, *LIMITS, "batch_size", "mixed_precision", "overwrite", "device", "revision",
         "as_json")  # fmt: skip
def audit(
    model: ModelArgument,
    dataset: Annotated[str, typer.Option(help="Labelled images, as for erase: Hub id, folder or file.")],
    forget_labels: Annotated[
        list[str] | None,
        typer.Option(help="Forgotten label, by name or id; repeat it. Without it: those of the erasure records."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split that attackers train on.")] = "train",
    test_split: Annotated[str, typer.Option(help="Split that they are scored on.")] = "test",
    attacks: Annotated[str, typer.Option(help="standard, full, or names of attacks with commas.")] = "standard",
    seeds: Annotated[int, typer.Option(min=1, help="Repeat what depends on chance, for mean and sd.")] = 1,
    retain_labels: Annotated[
        list[str] | None,
        typer.Option(help="Label of --dataset that counts as retained; repeat it. Without it: all others."),
    ] = None,
    original: Annotated[
        str | None,
        typer.Option(
            "--original",
            "--original-model",
            help="The model before unlearning, where that changed its weights: folder, or USER/NAME[@REVISION].",
        ),
    ] = None,
    retrained: Annotated[
        list[str] | None,
        typer.Option(
            "--retrained",
            "--reference-model",
            help="A model retrained without the forgotten classes, to compare with; repeat it to compare at equal accuracy.",
        ),
    ] = None,
    unseen: Annotated[
        str | None, typer.Option(help="Data set of classes the model was never trained on, to compare with.")
    ] = None,
    membership_references: Annotated[
        list[str] | None, typer.Option(help="A model that never saw the forgotten images, for RMIA; repeat it.")
    ] = None,
    texts: Annotated[
        list[str] | None,
        typer.Option(help="Ask a two-tower model for the forgotten label by this text; repeat it for other wordings."),
    ] = None,
    identities: Annotated[bool | None, typer.Option(help="Ask for labels as identities, as for faces.")] = None,
    layer_profile: Annotated[
        bool, typer.Option("--layer-profile", help="Also probe every block of the backbone below the tap.")
    ] = False,
    access: Annotated[
        str, typer.Option(help="features, or weights: also attack the bare network, as who downloads it can.")
    ] = "features",
    budget: Annotated[
        float | None, typer.Option(help="Minutes for --access weights; what had no time is named.")
    ] = None,
    max_classes: Annotated[
        int,
        typer.Option(min=0, help="Of more retained classes so many are drawn: attacks cost samples x classes. 0: all."),
    ] = 200,
    grad_cam: Annotated[
        int,
        typer.Option(min=0, help="Draw grad_cam.png with so many forgotten test images into --output. It SHOWS them."),
    ] = 0,
    summary: Annotated[
        bool, typer.Option("--summary", help="Print the verdict and at most nine points to hand on, and no tables.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Folder for report.json, report.md and figures.")] = None,
    *,
    shared: Shared,
) -> None:
    """Measure what the features of MODEL still reveal of forgotten labels, by attackers that try.

    **Example:** `hf-kd audit erased --dataset user/pets --output report`
    """
    if grad_cam and output is None:
        raise InvalidValueError("--grad-cam draws into a folder; name it with --output.")
    if retrained and unseen is not None:
        raise InvalidValueError("--retrained and --unseen were both given; a report has one reference.")
    _inputs.check_output(output, shared.overwrite)
    _inputs.load_libraries(shared)
    from hf_kd.audit.options import AuditOptions, Retrained, Unseen
    from hf_kd.data.devices import moved
    from hf_kd.data.distributed import process_state
    from hf_kd.features.readers import options_of

    options = AuditOptions(
        attacks=attacks if attacks in ("standard", "full") else with_commas(attacks),
        seeds=seeds,
        membership_references=membership_references or (),
        identities=identities,
        layer_profile=layer_profile,
        max_classes=max_classes or None,
        access=access,
        texts=texts or None,
        budget=budget,
    )
    reading = _inputs.read_options(shared)
    audited = moved(_inputs.load_model(model, shared), _inputs.device_of(shared))
    train = _inputs.load_data(dataset, split, shared)
    test = _inputs.load_data(dataset, test_split, shared, "test_split")
    of_train = options_of([train], [test], audited, reading)
    forgotten, retained = (
        _inputs.by_labels(train, labels, reading).in_model(audited, of_train) or None
        for labels in (forget_labels, retain_labels)
    )
    reference = Retrained(retrained) if retrained else None
    if unseen is not None:
        reference = Unseen(_inputs.load_data(unseen, split, replace(shared, config_name=None)))
    with at_work("auditing", reading.progress and process_state().is_main_process):
        report = audited.audit(
            train,
            test,
            forgotten,
            retain_labels=retained,
            original=original,
            reference=reference,
            options=options,
            reading=reading,
        )
    if not process_state().is_main_process:
        return
    report = _of_data(report, dataset, {split: train, test_split: test})
    written: Path | None = None
    try:  # before it is shown, which whoever reads through a pipe may end
        if output is not None:
            _write(report, output, reading.progress)
            if grad_cam:
                of_test = options_of([test], [train], audited, reading)
                _draw_grad_cam(audited, test, output, forgotten, original, grad_cam, of_test)
        written = output
    finally:  # what took minutes is shown, whatever came of the files
        if shared.as_json:
            print(report.to_json(indent=None))
        elif summary:
            console.print(report.summary(), markup=False, highlight=False, soft_wrap=True)
        else:
            _show(report, original, model, written, shared)
    if grad_cam and not (shared.as_json or summary):
        console.print(
            "grad_cam.png shows images of the forgotten class: do not publish it with the model.", style="bold"
        )


def _of_data(report: RetentionReport, dataset: str, splits: dict[str, Any]) -> RetentionReport:
    """The report with what it was measured on."""
    from hf_kd.data.read_files import files_of

    # a folder by its name: where it lies is nobody's business whom a report is handed to
    name = Path(dataset).resolve().name if Path(dataset).exists() else dataset
    files = {split: read for split, data in splits.items() if (read := files_of(data))}
    return replace(report, context={**report.context, "dataset": name, **({"files": files} if files else {})})


def _show(report: RetentionReport, original: str | None, model: str, output: Path | None, shared: Shared) -> None:
    console.print(report)
    if original is None and report.context.get("changes"):
        console.print(
            "Warning: the weights of this model were changed, and no --original was given: nothing of before stands "
            "beside these numbers, and this report cannot tell what was forgotten.",
            style="yellow",
            highlight=False,
        )
    if output is not None:
        console.print(f"Written to [bold]{terminal(str(output))}[/]; {elapsed():.0f} s in all.", highlight=False)
        owner, base = shared.documented(model), shared.at_revision(model) if shared.eraser else None
        if owner and Path(owner).is_dir() and (into := card_command(owner, output / "report.json", shared, base)):
            console.print(f"Into the model's card: {into}", markup=False, highlight=False)


def _write(report: RetentionReport, output: Path, progress: bool) -> None:
    from hf_kd.model.saving import atomic_directory

    with atomic_directory(output) as folder:
        report.to_json(folder / "report.json")
        (folder / "report.md").write_text(report.to_markdown(1), encoding="utf-8")
    if has_package("matplotlib"):
        with working("drawing figures", progress), atomic_directory(output) as folder:
            report.figures(folder)


def _draw_grad_cam(
    model: ErasedModel,
    test: Any,
    output: Path,
    forgotten: list[int] | None,
    original: str | None,
    most: int,
    reading: ReadOptions,
) -> None:
    from hf_kd.audit.hidden_states import grad_cam
    from hf_kd.model.saving import atomic_directory

    with atomic_directory(output) as folder:
        label = forgotten[0] if forgotten else None
        grad_cam(model, test, folder / "grad_cam.png", label, original=original, most=most, reading=reading)
