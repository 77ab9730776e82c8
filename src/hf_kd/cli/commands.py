"""What the commands do, without a terminal: strings in, plain values out. `cli` parses and prints."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageClassification

from hf_kd.audit.hidden_states import grad_cam as draw_grad_cam
from hf_kd.audit.options import AuditOptions, Retrained, Unseen
from hf_kd.audit.report import RetentionReport
from hf_kd.data.distributed import process_state
from hf_kd.data.image_source import inspect_images
from hf_kd.data.labels import match_labels, resolve_forget_labels
from hf_kd.data.load import filter_by_labels, load_source
from hf_kd.errors import InvalidValueError, MissingFileError, has_package
from hf_kd.features.heads import has_head
from hf_kd.features.reader import ReadOptions
from hf_kd.hub.document import REPORT, base_of, document
from hf_kd.hub.publish import Pushed, base_license, publishable
from hf_kd.hub.spaces import KNOWLEDGE_RETENTION
from hf_kd.hub.spaces.build import demo_space, metric_space
from hf_kd.hub.upload import Published, check_repo_id, prepare, upload
from hf_kd.methods.erasers.base import Method
from hf_kd.methods.records import Erasure
from hf_kd.methods.registry import make_method, make_unlearning_method
from hf_kd.model.erased_model import ErasedModel
from hf_kd.model.label_mask import ERASED
from hf_kd.model.loading import load_processor
from hf_kd.model.saving import atomic_directory
from hf_kd.model.train import PRETRAINED
from hf_kd.model.train import train_original as train
from hf_kd.model.unlearn import unlearn as weights_changed
from hf_kd.model.verify import Verification
from hf_kd.model.verify import verify as verify_source

from .command_facts import cover_in, head_accuracy


@dataclass(frozen=True)
class Request:
    """An erasure or an audit as the command line asks for it; see `hf-kd erase --help`."""

    output: Path | None = None
    forget: tuple[str, ...] = ()
    split: str = "train"
    test_split: str | None = None
    method: str = "esc"
    options: Mapping[str, Any] = field(default_factory=dict)
    tap: str | None = None
    fold: bool = False
    device: str | None = None
    revision: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    label_mapping: Mapping[Any, Any] | None = None
    batch_size: int = 64
    num_workers: int | None = None
    mixed_precision: str | None = None
    progress: bool = True
    mask_head: bool | None = None
    erased_label: str | None = ERASED
    retain_limit: int | None = None


def erase(model_name: str, source: str, request: Request) -> dict[str, Any] | None:
    """Load, erase, measure, save. Returns the record and the accuracies; None on all processes but the main one."""
    with atomic_directory(request.output):  # an output that cannot be written is refused before the work, not after it
        pass
    method = make_method(request.method, **request.options)  # refused before anything is loaded
    _refuse_at_odds(request, method)
    state = process_state()
    data = load_source(source, split=request.split)
    forget, ids = _forget_rows(data, request)
    retain = _retained_rows(data, request, ids, request.retain_limit) if method.needs_retain else None
    model = _load(model_name, request, state)
    settings = _settings(request)
    before = model.erasures
    model.erase(
        forget,
        method,
        retain=retain,
        mask_head=request.mask_head,
        erased_label=request.erased_label,
        reading=settings,
    )
    accuracy = head_accuracy(model, source, ids, settings, request.test_split) if request.test_split else None
    if state.is_main_process:
        if request.fold:
            with atomic_directory(request.output) as folder:
                model.cpu().fold().save_pretrained(folder)
                if hasattr(model.processor, "save_pretrained"):
                    model.processor.save_pretrained(folder)
        else:
            model.save_pretrained(request.output)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    return {
        "model": model_name,
        "output": str(request.output),
        "folded": request.fold,
        "earlier_erasures": len(before),
        "erasure": model.erasures[-1].to_dict(),
        "class_names": _names_in(model, model.erasures[-1]),
        "accuracy": accuracy,
        **cover_in(data, model, _settings(request)),
    }


def audit(
    model_name: str,
    source: str,
    request: Request,
    *,
    output: Path | None = None,
    retain: list[str] | None = None,
    original: str | None = None,
    retrained: str | None = None,
    unseen: str | None = None,
    grad_cam: int = 0,
    **options: Any,
) -> RetentionReport | None:
    """Load and audit; write report.json, report.md and the figures into `output`. None on all processes but the main one.

    `request` says how the data is read; its `forget`, where empty, leaves the classes to the erasure records. `options`
    are those of `AuditOptions`. `grad_cam` forgotten test images are drawn into `output` too.
    """
    if retrained is not None and unseen is not None:
        raise InvalidValueError("A retrained model and unseen classes were both given; a report has one reference.")
    asked = AuditOptions(**options)
    if output is not None:
        with atomic_directory(output):  # refused before the work, not after it
            pass
    state = process_state()
    model = _load(model_name, request, state)
    test, forget = load_source(source, split=request.test_split), _forget_ids(model, source, request) or None
    report = model.audit(
        load_source(source, split=request.split),
        test,
        forget,
        retain=retain,
        original=original,
        reference=Unseen(load_source(unseen, split=request.split))
        if unseen is not None
        else Retrained(retrained)
        if retrained is not None
        else None,
        options=asked,
        reading=_settings(request),
    )
    if not state.is_main_process:
        return None
    if output is not None:
        with atomic_directory(output) as folder:
            report.to_json(folder / "report.json")
            (folder / "report.md").write_text(report.to_markdown(1), encoding="utf-8")
            if has_package("matplotlib"):
                report.figures(folder)
            if grad_cam:
                label = None if forget is None else forget[0]
                draw_grad_cam(model, test, folder / "grad_cam.png", label, most=grad_cam, reading=_settings(request))
    return report


def unlearn(model_name: str, source: str, request: Request, retain_limit: int | None = None) -> dict[str, Any] | None:
    """Load, change weights, save a stock checkpoint. Returns the record; None on all processes but the main one."""
    method = make_unlearning_method(request.method, **request.options)  # refused before anything is loaded
    with atomic_directory(request.output):
        pass
    state = process_state()
    data = load_source(source, split=request.split)
    forget, ids = _forget_rows(data, request)
    retain = _retained_rows(data, request, ids, retain_limit)
    model = _load(model_name, request, state)
    changed = weights_changed(model, forget, method, retain=retain, reading=_settings(request))
    accuracy = None
    if request.test_split:
        after = ErasedModel.from_model(changed, processor=model.processor)
        accuracy = head_accuracy(model, source, ids, _settings(request), request.test_split, after)
    if state.is_main_process:
        _save_stock(changed.cpu(), model.processor, request.output)
    state.wait_for_everyone()
    return changed.config.hf_kd_unlearned[-1] | {"accuracy": accuracy} if state.is_main_process else None


def train_original(
    model_name: str, source: str, request: Request, recipe: str, from_scratch: bool | None, limit: int | None
) -> dict[str, Any] | None:
    """Train a model of the configuration of `model_name` on a labelled split; None on all processes but the main one."""
    with atomic_directory(request.output):
        pass
    state = process_state()
    data = load_source(source, split=request.split)
    described = inspect_images(data, request.image_column, request.label_column)
    if described.label_names is None:
        among = f" (candidates: {', '.join(described.label_candidates)})" if described.label_candidates else ""
        raise InvalidValueError(
            f"The data set names no labels in a single column{among}. Name it with --label-column, or cast it to ClassLabel."
        )
    if limit is not None and limit < len(data):
        data = data.shuffle(seed=0).select(range(limit))
    fresh = recipe not in PRETRAINED if from_scratch is None else from_scratch
    if fresh:
        model = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(model_name))
    else:
        model = AutoModelForImageClassification.from_pretrained(model_name)
    processor = load_processor(model_name, {})
    device = request.device or ("cuda" if torch.cuda.is_available() else "cpu")
    trained = train(
        model.to(state.device if state.num_processes > 1 else device),
        data,
        recipe,
        processor=processor,
        from_scratch=fresh,
        reading=_settings(request),
        **request.options,
    )
    if state.is_main_process:
        _save_stock(trained.cpu(), processor, request.output)
    state.wait_for_everyone()
    facts = {"model": model_name, "output": str(request.output), "labels": trained.config.num_labels}
    return facts | trained.config.hf_kd_trained if state.is_main_process else None


def _save_stock(model: Any, processor: Any, output: Path) -> None:
    with atomic_directory(output) as folder:
        model.save_pretrained(folder)
        if hasattr(processor, "save_pretrained"):
            processor.save_pretrained(folder)


def push(folder: Path, repo_id: str, report: Path | None, **options: Any) -> Pushed:
    """Load the erased model in `folder` and push it with its report."""
    return _erased_in(folder).push_to_hub(repo_id, report=_report_of(folder, report), **options)


def card(folder: Path, report: Path | None, **options: Any) -> list[str]:
    """Write card, receipt, report and figures of the erased model in `folder` beside it; returns what was written."""
    model = _erased_in(folder)
    found, licence = _report_of(folder, report), base_license(base_of(model)[0])
    with atomic_directory(folder) as temporary:
        document(model, temporary, report=found, beside=folder, license=licence, **options)
        written = sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file())
    return written


def verify(source: str, dataset: str | None, request: Request, base: str | None) -> Verification:
    """Check a folder or repository against its receipt, and with a data set carry the erasure out again."""
    if dataset is None:
        return verify_source(source, base=base, revision=request.revision)
    data = load_source(dataset, split=request.split)
    forget, ids = _forget_rows(data, request)
    retain = _retained_rows(data, request, ids, request.retain_limit) if ids else None
    return verify_source(
        source, forget, retain=retain, base=base, revision=request.revision, reading=_settings(request)
    )


def publish_metric(repo_id: str, private: bool | None = None) -> Published:
    """Create or refresh the Space of the `evaluate` metric."""
    full = prepare(repo_id, repo_type="space", private=private, space_sdk="gradio")
    with tempfile.TemporaryDirectory() as name:
        metric_space(Path(KNOWLEDGE_RETENTION), Path(name), full)
        return upload(Path(name), full, repo_type="space", message="Knowledge Retention of hf_kd")


def publish_demo(model_id: str, space: str | None = None, private: bool | None = None) -> Published:
    """Create or refresh the demo Space of an erased model that is on the Hub."""
    check_repo_id(model_id)
    full = prepare(space or f"{model_id}-demo", repo_type="space", private=private, space_sdk="gradio")
    with tempfile.TemporaryDirectory() as name:
        demo_space(model_id, Path(name))
        return upload(Path(name), full, repo_type="space", message=f"Demo of {model_id}")


def _erased_in(folder: Path) -> ErasedModel:
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is not a folder; give the one that `hf-kd erase --output` wrote.")
    model = ErasedModel.from_pretrained(folder)
    if not publishable(model):
        raise InvalidValueError(
            f"{folder} holds no eraser, and no weights changed by hf_kd, so there is nothing to publish. Make it forget "
            "something first: hf-kd erase or hf-kd unlearn."
        )
    return model


def _report_of(folder: Path, report: Path | None) -> RetentionReport | None:
    path = report or folder / REPORT
    if report is None and not path.is_file():
        return None
    return RetentionReport.from_json(path)


def _load(name: str, request: Request, state: Any) -> ErasedModel:
    options = {"tap": request.tap} | ({"revision": request.revision} if request.revision else {})
    model = ErasedModel.from_pretrained(name, **options)
    device = request.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return model.to(state.device if state.num_processes > 1 else device)


def _settings(request: Request) -> ReadOptions:
    return ReadOptions(
        request.image_column,
        request.label_column,
        request.label_mapping,
        request.batch_size,
        request.mixed_precision,
        request.num_workers,
        request.progress,
    )


def _forget_ids(model: ErasedModel, source: str, request: Request) -> list[int]:
    """Model ids of the data set's labels that --forget names; none where it names none."""
    if not request.forget:
        return []
    described = inspect_images(
        load_source(source, split=request.split), image_column=request.image_column, label_column=request.label_column
    )
    ids = resolve_forget_labels(request.forget, described.label_names)
    if not has_head(model):
        return ids
    mapping = match_labels(described.label_names, model.class_names, request.label_mapping)
    return mapping(torch.tensor(ids)).tolist()


def _forget_rows(data: Any, request: Request) -> tuple[Any, list[int]]:
    """The rows to forget and their label ids in the data set (none where no label was named)."""
    if not request.forget:
        return data, []
    described = inspect_images(data, image_column=request.image_column, label_column=request.label_column)
    if described.label_column is None:
        among = f" (candidates: {', '.join(described.label_candidates)})" if described.label_candidates else ""
        raise InvalidValueError(
            f"--forget names labels, but the data set has no single label column{among}. Name it with --label-column."
        )
    ids = resolve_forget_labels(request.forget, described.label_names)
    return filter_by_labels(data, described.label_column, ids), ids


def _refuse_at_odds(request: Request, method: Method) -> None:
    if method.needs_retain and not request.forget:
        raise InvalidValueError(
            f"Method {method.name!r} reads the images of all other labels as D_r, and without --forget the whole split is "
            "D_f. Name the labels to forget with --forget, or use --method esc or mean-projection, which read D_f alone."
        )
    if request.retain_limit is not None and not method.needs_retain:
        raise InvalidValueError(
            f"--retain-limit={request.retain_limit}: method {method.name!r} reads no images of other labels."
        )
    masks = method.masks_head if request.mask_head is None else request.mask_head
    if request.erased_label != ERASED and not masks:
        raise InvalidValueError(
            "--erased-label and --drop-label say what becomes of the labels of masked classes, and none are masked here: "
            "add --mask-head, or leave them out."
        )


def _retained_rows(data: Any, request: Request, ids: Sequence[int], limit: int | None) -> Any:
    """The rows of all other labels, at most `limit` of them, drawn by a fixed seed; None where there are none."""
    column = inspect_images(data, request.image_column, request.label_column).label_column
    rows = filter_by_labels(data, column, set(data.unique(column)) - set(ids))
    if limit is not None and limit < len(rows):
        rows = rows.shuffle(seed=0).select(range(limit))
    return rows if len(rows) else None


def _names_in(model: ErasedModel, erasure: Erasure) -> dict[int, str]:
    """Names of the classes that a record speaks of: forgotten ones and cover classes."""
    covers = {c for measured in erasure.measured for c in measured.get("cover_classes", ())}
    return {c: name for c, name in model.class_names.items() if c in covers | set(erasure.classes or ())}
