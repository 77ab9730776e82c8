"""Run experiments cell by cell: one row with one seed, measured, written down, and never run twice.

A cell that fails is recorded with its message and the next one runs. What several cells share - the data, the features of
the original model - is read once.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from ..changing import unlearn
from ..configuration import versions
from ..data import LabelMapping, match_labels, process_state
from ..erasers import get_method
from ..erasing import PassSettings
from ..measuring import model_has_head
from ..modeling import ErasedModel
from .config import Experiment, Row
from .measure import Features, measure, read_both
from .protocols import Problem, make_problem
from .store import Store, fingerprint, key_of

logger = logging.getLogger(__name__)

FAILURES = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    RuntimeError,
    ArithmeticError,
    OSError,
    ImportError,
    MemoryError,
)
"""What one method may raise without stopping the others; anything else is a bug of ours."""


@dataclass
class _Shared:
    """What the cells of one experiment share; made when the first of them needs it."""

    experiment: Experiment
    device: str | None
    progress: bool
    _original: ErasedModel | None = None
    _problem: Problem | None = None
    _features: Features | None = None
    _others: dict[str, Any] = field(default_factory=dict)

    @property
    def original(self) -> ErasedModel:
        if self._original is None:
            options = {"revision": self.experiment.revision} if self.experiment.revision else {}
            model = ErasedModel.from_pretrained(self.experiment.model, **options)
            self._original = model.to(_device(self.device))
            if not model_has_head(model):
                raise ValueError(f"{self.experiment.model} has no classification head, which a bench measures first.")
        return self._original

    def to_model_ids(self, names: Any) -> Callable[[Tensor], Tensor]:
        mapping: LabelMapping = match_labels(
            names, self.original.config.id2label, self.experiment.dataset.get("label_mapping")
        )
        return mapping

    @property
    def problem(self) -> Problem:
        if self._problem is None:
            self._problem = make_problem(self.experiment, self.to_model_ids)
        return self._problem

    @property
    def settings(self) -> PassSettings:
        where = self.experiment.dataset
        return PassSettings(
            where.get("image_column"),
            where.get("label_column"),
            where.get("label_mapping"),
            self.experiment.batch_size,
            None if self.experiment.mixed_precision == "no" else self.experiment.mixed_precision,
            None,
            self.progress,
        )

    @property
    def features(self) -> Features:
        if self._features is None:
            self._features = read_both(self.original, self.problem, self.settings, self.experiment.measures.attacks)
        return self._features


def bench(
    experiments: Sequence[Experiment],
    output: str | Path,
    *,
    only: Sequence[str] = (),
    retry_failed: bool = False,
    device: str | None = None,
    progress: bool = True,
    tell: Callable[[str], None] = logger.info,
) -> Store:
    """Run every cell that `output`/results.jsonl does not have yet, and return all results.

    only: labels or methods of the rows to run. retry_failed: also those that failed before. device: of one process; under
    `accelerate launch` each process has its own. tell: is told of each cell when it starts and ends.
    """
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    store, main = Store(folder), process_state().is_main_process
    for experiment in experiments:
        shared = _Shared(experiment, device, progress)
        cells = [(r, s) for r, s in experiment.cells() if not only or r.label in only or r.name in only]
        for number, (row, seed) in enumerate(cells, 1):
            settings = cell_settings(experiment, row, seed)
            key = key_of(settings)
            if store.done(key, retry_failed):
                continue
            where = f"[{number}/{len(cells)}] {experiment.name}: {row.label}, seed {seed}"
            tell(f"{where} ...")
            record = {"key": key, "experiment": experiment.name, "row": row.label, "seed": seed, "settings": settings}
            record |= _run(shared, row, seed, folder if seed == row.seeds[0] else None)
            record |= {"versions": versions(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
            if main:
                store.add(record)
            tell(f"{where}: {record['status']}, {record['seconds']['cell']:.1f} s{_failure(record)}")
        process_state().wait_for_everyone()
    return store


def cell_settings(experiment: Experiment, row: Row, seed: int) -> dict[str, Any]:
    """Everything that decides about a cell's result, and nothing else (the label of its row does not)."""
    about = {
        "model": fingerprint(experiment.model),
        "revision": experiment.revision,
        "dataset": dict(experiment.dataset) | {"name": Path(experiment.dataset["name"]).name},
        "protocol": dict(experiment.protocol),
        "kind": row.kind,
        "method": row.name,
        "options": row.settings(seed),
        "seed": seed,
        "limit": experiment.limit,
        "retain_limit": experiment.retain_limit if row.kind != "original" else None,
        "mixed_precision": experiment.mixed_precision,
        "measures": {
            "knowledge_retention": experiment.measures.knowledge_retention,
            "membership": experiment.measures.membership,
            "attacks": list(experiment.measures.attacks),
        },
    }
    if row.kind == "weights" and experiment.train_precision not in (None, experiment.mixed_precision):
        about["train_precision"] = experiment.train_precision
    if row.kind == "checkpoint":
        about["options"] = {"path": fingerprint(row.options["path"])}
    return about


def _run(shared: _Shared, row: Row, seed: int, folder: Path | None) -> dict[str, Any]:
    """One cell: status, what went wrong or the scores after each stage, times and peak memory."""
    started = time.perf_counter()
    found: dict[str, Any] = {"status": "ok"}
    with _peak_memory() as peak:
        try:
            found |= _measured(shared, row, seed, folder)
        except FAILURES as error:
            found |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    seconds = found.get("seconds", {}) | {"cell": round(time.perf_counter() - started, 2)}
    return found | {"seconds": seconds, "memory_mib": {name: round(value / 2**20) for name, value in peak.items()}}


def _measured(shared: _Shared, row: Row, seed: int, folder: Path | None) -> dict[str, Any]:
    experiment, problem = shared.experiment, shared.problem
    original = (shared.original, shared.features)
    stages, seconds, model = [], {"features": 0.0, "fit": 0.0}, None
    for stage in range(len(problem.stages)):
        if row.kind in ("eraser", "weights") or model is None:
            model, took = _changed(shared, row, seed, stage, model)
            seconds = {name: round(value + took[name], 3) for name, value in seconds.items()}
        features = shared.features if model.inner is shared.original.inner or row.kind == "eraser" else None
        if features is None:
            features = _again(shared, model, f"{row.label}/{seed}/{stage if row.kind == 'weights' else 0}")
        scores = measure(model, features, problem, stage, experiment.measures, original, seed)
        stages.append(scores | {"stage": stage, "rank removed": sum(r.k for r in model.erasures)})
    records = _records(model)
    found = {"scores": stages[-1], "stages": stages, "seconds": seconds, "records": records}
    if problem.kind == "incremental" and row.kind in ("eraser", "weights") and experiment.protocol.get("joint", True):
        joint, took = _changed(shared, row, seed, None, None)
        features = shared.features if row.kind == "eraser" else read_both(
            joint, problem, shared.settings, experiment.measures.attacks
        )  # fmt: skip
        last = len(problem.stages) - 1
        found["joint"] = measure(joint, features, problem, last, experiment.measures, original, seed)
        found["joint"]["rank removed"] = sum(r.k for r in joint.erasures)
        found["seconds"] |= {f"joint {name}": value for name, value in took.items()}
    if folder is not None and experiment.measures.report and problem.probe_test is problem.test_labels:
        _report(shared, model, row, folder)
    return found


def _again(shared: _Shared, model: ErasedModel, name: str) -> Features:
    """Features of a model whose weights are not the original's; of the last one they are kept."""
    if name not in shared._others:
        shared._others = {
            name: read_both(model, shared.problem, shared.settings, shared.experiment.measures.attacks)
        }  # fmt: skip
    return shared._others[name]


def _changed(
    shared: _Shared, row: Row, seed: int, stage: int | None, before: ErasedModel | None
) -> tuple[ErasedModel, dict[str, float]]:
    """The model after the request of `stage` (None: after all of them at once), and the seconds it took."""
    problem, original = shared.problem, shared.original
    took = {"features": 0.0, "fit": 0.0}
    if row.kind == "original":
        return original, took
    if row.kind == "checkpoint":
        other = ErasedModel.from_pretrained(row.options["path"], processor=original.processor)
        return other.to(_device(shared.device)), took
    last = len(problem.stages) - 1
    forget = (
        problem.images_to_forget(stage)
        if stage is not None
        else problem.train.select(problem.forget_rows(last).tolist())
    )
    retain = problem.images_to_keep(last if stage is None else stage, shared.experiment.retain_limit)
    options = row.settings(seed)
    reading = {name: value for name, value in vars(shared.settings).items() if name != "batch_size"}
    if row.kind == "eraser":
        model = before if before is not None else _same_inner(original)
        wants = {"retain": retain} if getattr(get_method(row.name), "needs_retain", False) else {}
        model.erase(
            forget,
            row.name,
            **wants,
            **vars(shared.settings),
            **_given(row, options),
            whole_classes=problem.probe_test is not None,
        )
        record = model.erasures[-1]
    else:
        start = original if before is None else before
        reading["mixed_precision"] = shared.experiment.train_precision or shared.experiment.mixed_precision
        stock = unlearn(start, forget, row.name, retain=retain, **reading, **options)
        model = ErasedModel.from_model(stock, processor=original.processor)
        record = _records(model)[-1]
        return model, {"features": record["feature_seconds"], "fit": record["fit_seconds"]}
    return model, {"features": record.feature_seconds, "fit": record.fit_seconds}


def _given(row: Row, settings: dict[str, Any]) -> dict[str, Any]:
    """Options as the row gives them, with the seed: a method may refuse two settings that exclude each other."""
    return dict(row.options) | ({"seed": settings["seed"]} if row.has_seed else {})


def _same_inner(original: ErasedModel) -> ErasedModel:
    """A wrapper of its own around a copy, so that no cell sees another's eraser."""
    return ErasedModel.from_model(copy.deepcopy(original.inner), processor=original.processor)


def _records(model: ErasedModel) -> list[dict[str, Any]]:
    own = [record.to_dict() for record in model.erasures]
    return own or list(getattr(model.inner.config, "hf_kd_unlearned", None) or [])


def _report(shared: _Shared, model: ErasedModel, row: Row, folder: Path) -> None:
    """The whole audit of one row, with its figures."""
    problem, last = shared.problem, len(shared.problem.stages) - 1
    report = model.audit(
        problem.train,
        problem.test,
        problem.forget_classes(last),
        original_model=None if row.kind in ("eraser", "original") else shared.original,
        **vars(shared.settings),
    )
    if not process_state().is_main_process:
        return
    place = (
        folder
        / "reports"
        / shared.experiment.name
        / "".join(c if c.isalnum() or c in "-_." else "-" for c in row.label)
    )
    place.mkdir(parents=True, exist_ok=True)
    report.to_json(place / "report.json")
    (place / "report.md").write_text(report.to_markdown(1), encoding="utf-8")
    report.figures(place)


@contextlib.contextmanager
def _peak_memory() -> Iterator[dict[str, float]]:
    """Bytes: the most the process held meanwhile, what it held before, and what the accelerator was asked for."""
    process, peak = psutil.Process(), {"process_before": 0.0, "process_peak": 0.0}
    peak["process_before"] = peak["process_peak"] = float(process.memory_info().rss)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            peak["process_peak"] = max(peak["process_peak"], float(process.memory_info().rss))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()
        if torch.cuda.is_available():
            peak["gpu_peak"] = float(torch.cuda.max_memory_allocated())


def _device(device: str | None) -> Any:
    state = process_state()
    if state.num_processes > 1:
        return state.device
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def _failure(record: dict[str, Any]) -> str:
    return f" - {record['error'][:300]}" if record["status"] == "failed" else ""
