"""An erased model as ONNX files, the erasers inside: written only once onnxruntime answers there what the model answers."""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hf_kd.data.devices import refuse_unreachable_weights
from hf_kd.data.modes import drop_caches
from hf_kd.data.paths import local_path, refuse_other_suffix, replace_file
from hf_kd.errors import InvalidValueError, OutputError, out_of_memory, require
from hf_kd.features.reader import ReadOptions
from hf_kd.hub.document import base_of
from hf_kd.hub.publish import publishable
from hf_kd.methods.records import weight_changes

from .graph import TowerGraph, first_line, towers
from .graph_check import BATCHES, GraphReference

logger = logging.getLogger(__name__)

OPSET = 20
"""Of ONNX; onnxruntime knows it since 1.17."""
TOLERANCE = {"float32": 1e-3, "float16": 3e-2}
"""How far an output may be from the model's in float32, in its root mean square, by the precision of the file."""
MOST_BYTES = 2**31 - 2**26
"""Of weights: one ONNX file holds 2 GiB."""
PREFIX = "hf_kd."
"""Of the metadata's keys."""

Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class ExportedFile:
    """One file and what was compared before it was written.

    Attributes:
        path: Where it lies.
        tower: "image" or "text".
        opset: Of ONNX.
        dtype: Precision of the weights. Inputs and outputs are float32, and the eraser computes in float32.
        inputs: Shape of each input; a name where any size goes.
        outputs: The same of the outputs.
        batch_sizes: Of the batches that were compared.
        tolerance: The largest accepted deviation, in units of an output's root mean square (of features before the eraser).
        deviation: The largest one found, by output.
        erased: Whether an eraser stands in this tower.
    """

    path: Path
    tower: str
    opset: int
    dtype: str
    inputs: dict[str, list[int | str]]
    outputs: dict[str, list[int | str]]
    batch_sizes: tuple[int, ...]
    tolerance: float
    deviation: dict[str, float]
    erased: bool

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


def export_onnx(
    model: Any,
    output: str | os.PathLike[str],
    *,
    dtype: Precision = "float32",
    images: Any = None,
    reading: ReadOptions | None = None,
    tolerance: float | None = None,
    overwrite: bool = False,
) -> list[ExportedFile]:
    """Write an erased model as ONNX: compared with the model in onnxruntime first, and put in place only then.

    A classifier gives "logits" and erased "features", an embedding model "features". Of a two-tower model each tower is a
    file: `out.image.onnx` gives "image_embeds", `out.text.onnx` "text_embeds", not normalised. Any number of rows goes in.
    Label names, settings of the image processor and the records of the erasures are in the metadata of each file, as JSON
    under keys that begin with "hf_kd.".

    Args:
        model: An `ErasedModel`, erased or with changed weights; it stays as it is.
        output: File name that ends in .onnx.
        dtype: Precision of the weights. Inputs and outputs are float32.
        images: Images to compare on, anything that `erase` takes; random ones through the processor without them. Give
            images of forgotten classes: on others an eraser may have nothing to do. The file takes images of their size,
            as the processor leaves it.
        reading: How they are read.
        tolerance: How far an output may be from the model's in float32, in its root mean square (of features: before the
            eraser); by default `TOLERANCE` of the precision. It is written into the file.
        overwrite: Replace files that are there.

    Returns:
        What was written, and how far it is from the model.

    Raises:
        InvalidValueError: Nothing was erased, a file is there already, the architecture cannot be captured, or onnxruntime
            answers something else. Nothing is written then.
        MissingPackageError: Without the extra `hf-kd[onnx]`.
        OutputError: The place cannot be written to.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(package, "onnx")
    _refuse(model, dtype)
    refuse_unreachable_weights(model, "ONNX")
    places = dict(zip(towers(model), _places(model, local_path(output), overwrite), strict=True))
    drop_caches(model.inner)
    clone = copy.deepcopy(model).cpu().float().eval()
    graphs = {tower: TowerGraph(clone, tower, images, reading) for tower in places}
    references = {tower: GraphReference.of(graph) for tower, graph in graphs.items()}
    for tower, reference in references.items():
        _note_idle_eraser(graphs[tower], reference)
    if dtype == "float16":
        clone.half()
    most = TOLERANCE[dtype] if tolerance is None else tolerance
    made = [_compared(graphs[tower], references[tower], place, dtype, most) for tower, place in places.items()]
    for data, file in made:
        _write(data, file.path)
    return [file for _, file in made]


def _refuse(model: Any, dtype: str) -> None:
    """Raise InvalidValueError for what is no erased model, no precision, or more than one file holds."""
    if dtype not in TOLERANCE:
        raise InvalidValueError(f"dtype={dtype!r} has to be one of {', '.join(map(repr, TOLERANCE))}.")
    if not publishable(model):
        raise InvalidValueError(
            "Nothing has been erased from this model, or its erasure was folded into the head of a stock model, whose "
            "features are not erased: there is nothing for hf_kd to export. Call erase first."
        )
    size = sum(p.numel() for p in model.inner.parameters()) * (2 if dtype == "float16" else 4)
    if size > MOST_BYTES:
        way_out = "Use dtype='float16'." if size // 2 < MOST_BYTES and dtype == "float32" else "Serve the saved folder."
        raise InvalidValueError(f"The weights take {size / 2**30:.1f} GiB, and one ONNX file holds 2. {way_out}")


def _places(model: Any, output: Path, overwrite: bool) -> list[Path]:
    """Where the file of each tower goes."""
    refuse_other_suffix(output, ".onnx")
    several = len(towers(model)) > 1
    places = [output.with_suffix(f".{tower}.onnx") if several else output for tower in towers(model)]
    there = next((place for place in places if os.path.lexists(place) and (place.is_dir() or not overwrite)), None)
    if there is not None:
        raise InvalidValueError(f"{there} is there already. Name another file, or replace it with overwrite=True.")
    folder = next(parent for parent in output.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):  # before the work, not after it
        raise OutputError(f"Cannot write {output}: {folder} is no folder that you may write to.")
    return places


def _note_idle_eraser(graph: TowerGraph, reference: GraphReference) -> None:
    """Say so where no eraser stands in a tower, or where it did nothing on the samples that are compared."""
    if not any(site.eraser is not None for site in graph.sites):
        if graph.two_towers:
            logger.warning(f"There is no eraser in the {graph.tower} tower: its file is the original tower.")
    elif not reference.acts:
        logger.warning(
            f"The eraser of the {graph.tower} tower changes none of the samples that are compared: it is in the graph, and "
            "the comparison does not show it at work. Give some of the forgotten classes: images=... (--dataset DATASET "
            "on the command line)."
        )


def _compared(
    graph: TowerGraph, reference: GraphReference, place: Path, dtype: Precision, tolerance: float
) -> tuple[bytes, ExportedFile]:
    """The bytes of a file and its description, once onnxruntime gives what the model gave."""
    proto = _proto(graph)
    state = require("onnxruntime.capi.onnxruntime_pybind11_state", "onnx")
    errors = tuple(e for e in vars(state).values() if isinstance(e, type) and issubclass(e, Exception))
    try:
        session = require("onnxruntime", "onnx").InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        taken = {each.name: each.shape for each in session.get_inputs()}
        given = {each.name: each.shape for each in session.get_outputs()}

        def run(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            got = session.run(list(given), {name: batch[name].numpy() for name in taken})
            return dict(zip(given, map(torch.from_numpy, got), strict=True))

        deviation = reference.deviations(run)
    except errors as error:
        raise InvalidValueError(
            f"onnxruntime does not run this {type(graph.model.inner).__name__} in {dtype}: {first_line(error)}. Nothing "
            "was written. Serve the saved folder instead."
        ) from error
    if not max(deviation.values()) <= tolerance:
        shown = ", ".join(f"{name} by {value:.2g}" for name, value in deviation.items())
        raise InvalidValueError(
            f"onnxruntime answers something else than the model: {shown} of the root mean square, where {tolerance:g} is "
            f"accepted in {dtype}. Nothing was written. "
            + ("Use dtype='float32'" if dtype == "float16" else "Serve the saved folder instead")
            + ", or accept more with tolerance=... where that is enough for what the answers are used for."
        )
    erased = any(site.eraser is not None for site in graph.sites)
    shapes = (dict(taken), dict(given))
    file = ExportedFile(place, graph.tower, OPSET, dtype, *shapes, BATCHES, tolerance, deviation, erased)
    facts = _facts(graph) | {key: value for key, value in file.to_dict().items() if key != "path"}
    stored = {PREFIX + key: json.dumps(value, default=str) for key, value in facts.items()}
    require("onnx", "onnx").helper.set_model_props(proto, stored)
    return proto.SerializeToString(), file


def _proto(graph: TowerGraph) -> Any:
    """The ONNX model of a graph."""
    program = graph.program()
    try:
        with _quiet():
            exported = torch.onnx.export(
                program,
                input_names=list(graph.example),
                output_names=list(graph.output_names),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except (RuntimeError, ValueError, TypeError) as error:  # OnnxExporterError among them
        if out_of_memory(error):
            raise
        raise InvalidValueError(
            f"{type(graph.model.inner).__name__} has no form in ONNX opset {OPSET}: {first_line(error)}. Serve the saved "
            "folder instead."
        ) from error
    proto = exported.model_proto  # type: ignore[union-attr]
    _name_sizes(proto)
    _drop_traces(proto)
    return proto


def _name_sizes(proto: Any) -> None:
    """Sizes that are open are called batch and, of texts, length, by their place in the first input."""
    values = [*proto.graph.input, *proto.graph.output, *proto.graph.value_info]
    shapes = [value.type.tensor_type.shape.dim for value in values]
    open_sizes = zip(shapes[0], ("batch", "length"), strict=False)
    names = {size.dim_param: name for size, name in open_sizes if size.dim_param}
    for size in (size for shape in shapes for size in shape):
        if size.dim_param in names:
            size.dim_param = names[size.dim_param]


def _drop_traces(proto: Any) -> None:
    """Take out what torch.onnx notes for debugging, stack traces with the paths of this machine among it."""
    graph = proto.graph
    inside = [node for function in proto.functions for node in function.node]
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for each in (proto, graph, *proto.functions, *graph.node, *inside, *values):
        del each.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch.onnx tells its own developers; some versions of onnxscript print it."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _facts(graph: TowerGraph) -> dict[str, Any]:
    """What a service and an auditor have to know of the model. Records are without names of classes, as in a receipt."""
    model = graph.model
    settings = model.processor.to_dict() if hasattr(model.processor, "to_dict") else None
    if settings is None and graph.tower == "image":
        logger.warning("The image processor has no settings that could be written down: keep it beside the file.")
    names = model.config.id2label if graph.has_logits else {}
    joint = {key: getattr(model.inner, key).detach() for key in ("logit_scale", "logit_bias")
             if graph.two_towers and isinstance(getattr(model.inner, key, None), Tensor)}  # fmt: skip
    if "logit_scale" in joint:  # the parameter is the logarithm of what similarities are multiplied by
        joint["logit_scale"] = joint["logit_scale"].exp()
    return {
        "version": version("hf-kd"),
        "model_class": type(model.inner).__name__,
        "base_model": base_of(model)[0],
        "labels": [names[c] for c in sorted(names)],
        "processor": settings,
        "taps": [str(site.tap) for site in graph.sites],
        "masked": [] if model.config.dropped else list(model.config.masked),  # as columns of the logits
        "eraser_sha256": list(model.config.eraser_sha256 or []),
        "erasures": [record.to_dict() for record in model.erasures],
        "changes": [change.to_dict() for change in weight_changes(model.config)],
        **{key: value.item() for key, value in joint.items()},
    }


def _write(data: bytes, place: Path) -> None:
    """The whole file or, after an interruption, what was there before."""
    work = place.with_name(f".{place.name}-{secrets.token_hex(4)}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        work.write_bytes(data)
        replace_file(work, place)
    except OSError as error:
        raise OutputError(f"Cannot write {place} ({error.strerror}): choose a place you may write to.") from error
    finally:
        if work.exists():
            work.unlink()
