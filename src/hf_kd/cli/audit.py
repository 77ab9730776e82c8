"""`hf-kd audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hf_kd.errors import InvalidValueError

from ._app import (
    BatchSizeOption,
    DeviceOption,
    ImageColumnOption,
    ImportOption,
    JsonOption,
    LabelColumnOption,
    LabelMapOption,
    ModelArgument,
    RevisionOption,
    TapOption,
    WorkersOption,
    app,
    console,
    exit_on_error,
    import_files,
    name_and_value,
)


@app.command()
def audit(
    model: ModelArgument,
    dataset: Annotated[str, typer.Option(help="Labelled images, as for erase: Hub id, folder or file.")],
    forget: Annotated[
        list[str] | None,
        typer.Option(help="Forgotten label, by name or id; repeat it. Without it: those of the erasure records."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split that attackers train on.")] = "train",
    test_split: Annotated[str, typer.Option(help="Split that they are scored on.")] = "test",
    attacks: Annotated[str, typer.Option(help="standard, full, or names of attacks with commas.")] = "standard",
    seeds: Annotated[int, typer.Option(min=1, help="Repeat what depends on chance, for mean and sd.")] = 1,
    retain: Annotated[
        list[str] | None, typer.Option(help="Label that counts as retained; repeat it. Without it: all others.")
    ] = None,
    original_model: Annotated[
        str | None, typer.Option(help="The model before unlearning, where that changed weights.")
    ] = None,
    reference_model: Annotated[
        str | None, typer.Option(help="A model retrained without the forgotten classes, to compare with.")
    ] = None,
    unseen: Annotated[
        str | None, typer.Option(help="Data set of classes the model was never trained on, to compare with.")
    ] = None,
    membership_reference: Annotated[
        list[str] | None, typer.Option(help="A model that never saw the forgotten images, for RMIA; repeat it.")
    ] = None,
    identities: Annotated[
        bool | None, typer.Option("--identities/--no-identities", help="Ask for labels as identities, as for faces.")
    ] = None,
    layer_profile: Annotated[
        bool, typer.Option("--layer-profile", help="Also probe every block of the backbone below the tap.")
    ] = False,
    grad_cam: Annotated[
        int,
        typer.Option(min=0, help="Draw grad_cam.png with so many forgotten test images into --output. It SHOWS them."),
    ] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder for report.json, report.md and figures.")] = None,
    tap: TapOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    label_map: LabelMapOption = None,
    batch_size: BatchSizeOption = 64,
    num_workers: WorkersOption = None,
    device: DeviceOption = None,
    revision: RevisionOption = None,
    imports: ImportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what the features of MODEL still reveal of forgotten labels, by attackers that try.

    **Example:** `hf-kd audit erased --dataset user/pets --output report`
    """
    with exit_on_error():
        import_files(imports)
        mapping = dict(name_and_value(text, "--label-map") for text in label_map or []) or None
        from . import commands

        request = commands.Request(
            forget=tuple(forget or ()),
            split=split,
            test_split=test_split,
            tap=tap,
            device=device,
            revision=revision,
            image_column=image_column,
            label_column=label_column,
            label_mapping=mapping,
            batch_size=batch_size,
            num_workers=num_workers,
            progress=not as_json,
        )
        if grad_cam and output is None:
            raise InvalidValueError("--grad-cam draws into a folder; name it with --output.")
        names = attacks if attacks in ("standard", "full") else attacks.split(",")
        report = commands.audit(
            model,
            dataset,
            request,
            output=output,
            unseen=unseen,
            retain=retain or None,
            original=original_model,
            retrained=reference_model,
            membership_references=membership_reference or (),
            identities=identities,
            layer_profile=layer_profile,
            grad_cam=grad_cam,
            attacks=names,
            seeds=seeds,
        )
    if report is None:
        return
    if as_json:
        print(report.to_json(indent=None))
        return
    console.print(report)
    if original_model is None and report.context.get("changes"):
        console.print(
            "Warning: the weights of this model were changed, and no --original-model was given. Both columns are the "
            "changed model: this report cannot tell what was forgotten.",
            style="yellow",
            highlight=False,
        )
    if output is not None:
        console.print(f"Written to [bold]{output}[/].", highlight=False)
    if grad_cam:
        console.print(
            "grad_cam.png shows images of the forgotten class: do not publish it with the model.", style="bold"
        )
