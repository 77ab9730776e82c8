"""`hf-kd export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hf_kd.data.paths import refuse_other_suffix
from hf_kd.data.progress import working
from hf_kd.data.text import terminal

from . import _inputs
from ._app import command, console, refuse_without_data
from ._options import READING, ModelArgument, Shared

if TYPE_CHECKING:
    from hf_kd.model.onnx_export import ExportedFile


@command("eraser", "processor", *READING, "overwrite", "revision", "as_json")
def export(
    model: ModelArgument,
    to: Annotated[Literal["onnx"], typer.Option(help="Format of the file.")] = "onnx",
    output: Annotated[
        Path, typer.Option(help="File that ends in .onnx; a model of two towers gives one for each.")
    ] = Path("model.onnx"),
    dtype: Annotated[str, typer.Option(help="float32 or float16: precision of the weights.")] = "float32",
    tolerance: Annotated[
        float | None,
        typer.Option(min=0, help="How far an output may be off, in its root mean square; 0.001, in float16 0.03."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Images to compare on; random ones without it. Of the forgotten class, best.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split that holds the images.")] = "test",
    forget_labels: Annotated[
        list[str] | None,
        typer.Option(help="Only images of this label of the data set, name or id; repeat for several."),
    ] = None,
    *,
    shared: Shared,
) -> None:
    """Write an erased MODEL as ONNX, the eraser inside: logits and erased features, for batches of any size.

    onnxruntime runs the file first, and it is written only where the answers are those of the model.

    **Example:** `hf-kd export erased --to onnx --output model.onnx`
    """
    del to  # there is one
    refuse_other_suffix(output, ".onnx")
    refuse_without_data(dataset)
    _inputs.load_libraries(shared)
    reading = _inputs.read_options(shared)
    loaded = _inputs.load_model(model, shared)
    images = None
    if dataset is not None:
        images = _inputs.by_labels(_inputs.load_data(dataset, split, shared), forget_labels, reading).forget
    with working("exporting", reading.progress):
        files = loaded.export_onnx(
            output, dtype=dtype, images=images, reading=reading, tolerance=tolerance, overwrite=shared.overwrite
        )
    if shared.as_json:
        print(json.dumps([file.to_dict() for file in files]))
        return
    for file in files:
        _show(file)


def _show(file: ExportedFile) -> None:
    batches = ", ".join(map(str, file.batch_sizes))
    far = ", ".join(f"{name} {value:.1e}" for name, value in file.deviation.items())
    console.print(f"Written to [bold]{terminal(str(file.path))}[/]: opset {file.opset}, {file.dtype}.", highlight=False)
    for what, shapes in (("takes", file.inputs), ("gives", file.outputs)):
        told = "; ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in shapes.items())
        console.print(f"  {what} {told}", markup=False, highlight=False)
    console.print(
        f"  compared with the model in onnxruntime, batches of {batches}: {far} of the root mean square, {file.tolerance:g} "
        "is accepted",
        markup=False,
        highlight=False,
    )
