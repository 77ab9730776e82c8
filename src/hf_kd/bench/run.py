"""Run experiments cell by cell: one row with one seed, measured, written down, and never run twice.

A cell that fails is recorded with its message and the next one runs. What several cells share - the data, the features of
the original model - is read once.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_kd.data.devices import chosen_device, refuse_missing_device
from hf_kd.data.distributed import gather_rows, process_state
from hf_kd.data.paths import local_path
from hf_kd.data.progress import at_work, working
from hf_kd.data.text import first_sentence
from hf_kd.errors import InvalidValueError, did_you_mean
from hf_kd.methods.records import versions
from hf_kd.model.erased_model import ErasedModel

from .build import bare_pass, make, records_of
from .config import Experiment, Row
from .measure import Features, measure
from .memory import PeakMemory
from .other_data import open_other, read_other, transfer, unseen_classes
from .places import belongs, make_room, place_of
from .protocols import not_measured, without_report
from .row_figures import draw_panels, panel_names, row_in_short
from .shared import Shared
from .store import Store, cell_settings, key_of, only_bench_in

logger = logging.getLogger(__name__)

FAILURES = (
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    RuntimeError,
    ArithmeticError,
    OSError,
    ImportError,
    MemoryError,
)
"""What one method may raise without stopping the others."""


def bench(
    experiments: Sequence[Experiment],
    output: str | Path,
    *,
    only: Sequence[str] = (),
    retry_failed: bool = False,
    device: str | None = None,
    progress: bool = True,
    log: Callable[[str], None] = logger.info,
) -> Store:
    """Run every cell that `output`/results.jsonl does not have yet, and return all results.

    Args:
        experiments: As `read_config` gives them.
        output: Folder of the results; one bench at a time writes to it.
        only: Labels or methods of the rows to run.
        retry_failed: Also run those that failed before, and draw what could not be drawn.
        device: Of one process; under `accelerate launch` each process has its own.
        progress: Whether bars are shown.
        log: Gets a line for each cell when it starts and when it ends.

    Returns:
        The store of all results.

    Raises:
        InvalidValueError: For an `only` that names no row, a device that is not there, and a folder that another bench is
            writing to.
        NotOpenedError: Once everything else has run, for experiments whose model or data could not be opened.
    """
    if device is not None:
        refuse_missing_device(device)
    named = {name for experiment in experiments for row in experiment.rows for name in (row.label, row.name)}
    strange = [name for name in only if name not in named]
    if strange:
        near = did_you_mean(strange[0], named)
        raise InvalidValueError(
            f"No row is called {', '.join(strange)}.{near} The rows are {', '.join(sorted(named))}."
        )
    folder, state = local_path(output), process_state()
    log = log if state.is_main_process else _nothing
    with only_bench_in(folder) if state.is_main_process else contextlib.nullcontext():
        with state.main_process_first():  # which mends a last line that was cut short
            store = Store(folder, writes=state.is_main_process)
        state.wait_for_everyone()
        unopened = _run_experiments(experiments, store, folder, only, retry_failed, device, progress, log)
    if unopened:
        raise NotOpenedError(unopened, store)
    return store


class NotOpenedError(InvalidValueError):
    """Experiments whose model or data could not be opened; the others have run.

    Args:
        unopened: What was said of each.
        store: The results there are.

    Attributes:
        of_file: That it is said in words of the file, which are no options of the command line.
    """

    of_file = True

    def __init__(self, unopened: Sequence[str], store: Store) -> None:
        self.unopened, self.store = tuple(unopened), store
        super().__init__("Experiments that could not be opened, so no cell of them ran: " + "; ".join(unopened))


def _run_experiments(
    experiments: Sequence[Experiment],
    store: Store,
    folder: Path,
    only: Sequence[str],
    retry_failed: bool,
    device: str | None,
    progress: bool,
    log: Callable[[str], None],
) -> list[str]:
    """Run them one after the other; returns what kept some from being opened."""
    unopened = []
    for experiment in experiments:
        cells = [(r, s) for r, s in experiment.cells() if not only or r.label in only or r.name in only]
        for row in (row for row, _ in cells if row.refused):
            log(f"{experiment.name}: {row.label} is refused, the other rows run: {first_sentence(row.refused)}")
        for left in not_measured(experiment):
            log(f"{experiment.name}: {left}")
        shared = Shared(experiment, device, progress)
        try:
            _run_cells(shared, cells, store, folder, retry_failed, log)
        except _NotOpened as error:
            log(f"{experiment.name}: {error}")
            unopened.append(f"{experiment.name}: {error}")
    return unopened


class _NotOpened(Exception):
    """The model or the data of an experiment cannot be had: no row of it has failed, and none can run."""


def _run_cells(
    shared: Shared,
    cells: Sequence[tuple[Row, int]],
    store: Store,
    folder: Path,
    retry_failed: bool,
    log: Callable[[str], None],
) -> None:
    experiment = shared.experiment
    for number, (row, seed) in enumerate(cells, 1):
        settings = cell_settings(experiment, row, seed)
        key = key_of(settings)
        first = seed == row.seeds[0]
        kept = store.records[key] if store.done(key, retry_failed) else None
        lacks = [] if kept is None else _lacking(kept, row, first, experiment, folder, retry_failed)
        if kept is not None and not lacks:
            continue
        where = f"[{number}/{len(cells)}] {experiment.name}: {row.label}, seed {seed}"
        log(f"{where} ...")
        if lacks:
            log(f"{where}: it has its result, and is made again for what was asked for since: {', '.join(lacks)}")
        if key not in store.records and (others := store.other_settings(experiment.name, row.label, seed, settings)):
            log(f"{where}: a result with another {', '.join(others)} stays in {store.path} and is not of this cell")
        try:
            with at_work(f"opening {experiment.name}", shared.progress):
                _ = shared.problem, shared.features
        except FAILURES as error:
            raise _NotOpened(f"{type(error).__name__}: {error}") from error
        # one made again for another experiment stays with its first, and keeps its times and what failed of its drawings
        stays = kept or {"experiment": experiment.name, "row": row.label, "seconds": {}}
        record = {name: stays[name] for name in ("experiment", "row", "report") if name in stays}
        record |= {"key": key, "seed": seed, "settings": settings}
        timed = experiment.measures.bare_pass or "bare pass" in stays["seconds"]
        with at_work(row.label, shared.progress):
            record |= _run(shared, row, seed, folder if first else None, timed)
        record |= {"versions": versions(), "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        if kept is not None and record["status"] != "ok":
            log(f"{where}: failed when made again, and keeps the result that it had{_failure(record)}")
            continue
        record["panels"] = stays.get("panels", {}) | record.get("panels", {})
        store.add(record)
        log(f"{where}: {record['status']}, {record['seconds']['cell']:.1f} s{_failure(record)}")


def _lacking(
    record: Mapping[str, Any], row: Row, first: bool, experiment: Experiment, folder: Path, retry_failed: bool
) -> list[str]:
    """What is asked for and a cell's result does not have, for which its model has to be made again.

    Experiments share cells and have reports and panels of their own, so these are there if their files are; what failed
    stands in the record and is tried again where all failures are.
    """
    if record["status"] != "ok" or row.kind == "unseen":
        return []
    asked, drawn = experiment.measures, first and row.kind != "original"
    said = {"report": record.get("report", "report.json")} | (record.get("panels") or {})

    def has(kind: str, *names: str) -> bool:
        place = place_of(folder, kind, experiment, row)
        there = belongs(place, record["key"])
        failed = {name for name in names if said.get(Path(name).stem, name) != name}
        return all(not retry_failed if name in failed else there and (place / name).is_file() for name in names)

    panels = [f"{name}.png" for name in panel_names(asked.grad_cam)]
    lacks = {
        "bare pass": asked.bare_pass and row.is_method and "bare pass" not in record["seconds"],
        "report": asked.report and first and not without_report(experiment) and not has("reports", "report.json"),
        "panels": row.label in asked.panels and drawn and not has("panels", *panels),
    }
    return [name for name, is_lacking in lacks.items() if is_lacking]


def _run(shared: Shared, row: Row, seed: int, folder: Path | None, timed: bool) -> dict[str, Any]:
    """One cell: status, what went wrong or the scores after each stage, times and peak memory."""
    started = time.perf_counter()
    found: dict[str, Any] = {"status": "ok"}
    with PeakMemory(chosen_device(shared.device)) as memory:
        try:
            found |= _measured(shared, row, seed, folder, timed, memory)
        except FAILURES as error:
            found |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    if found["status"] == "ok" and not _everywhere(True):
        found = {"status": "failed", "error": "RuntimeError: another process failed; its output says why."}
    elif found["status"] == "failed":
        _everywhere(False)
    seconds = found.get("seconds", {}) | {"cell": round(time.perf_counter() - started, 2)}
    return found | {"seconds": seconds, "memory_mib": memory.mib()}


def _measured(
    shared: Shared, row: Row, seed: int, folder: Path | None, timed: bool, memory: PeakMemory
) -> dict[str, Any]:
    if row.refused:
        raise InvalidValueError(row.refused)
    experiment, problem = shared.experiment, shared.problem
    original = (shared.original, shared.features)
    if row.kind == "unseen":
        return {"scores": _unseen(shared, seed), "stages": [], "seconds": {"features": 0.0, "fit": 0.0}}

    def made(stage: int | None, before: ErasedModel | None) -> tuple[ErasedModel, dict[str, float]]:
        with memory.of_method():
            return make(row, seed, experiment, problem, shared.original, shared.settings, stage, before)

    stages: list[dict[str, Any]] = []
    seconds, (model, features) = {"features": 0.0, "fit": 0.0}, original
    last = len(problem.stages) - 1
    if timed and row.is_method:
        seconds["bare pass"] = round(bare_pass(row, seed, problem, shared.original, shared.settings), 3)
    for stage in range(last + 1):
        if not stage or row.is_method:
            model, took = made(stage, model if stage else None)
            seconds |= {name: round(seconds[name] + value, 3) for name, value in took.items()}
            features = shared.features if _keeps_weights(row) else shared.read(model)
        with working("measuring", shared.progress):
            scores = measure(model, features, problem, stage, experiment.measures, original, seed)
        stages.append(scores | {"stage": stage, "rank removed": _rank(model)})
    if experiment.measures.transfer:
        other = shared.elsewhere if _keeps_weights(row) else shared.read_elsewhere(model)
        stages[-1]["transfer"] = transfer(model, other)
    found = {"scores": stages[-1], "stages": stages, "seconds": seconds, "records": records_of(model)}
    if problem.kind == "incremental" and row.is_method and experiment.protocol.get("joint", True):
        joint, took = made(None, None)
        features_of_joint = shared.features if _keeps_weights(row) else shared.read(joint)
        scores = measure(joint, features_of_joint, problem, last, experiment.measures, original, seed)
        found["joint"] = scores | {"rank removed": _rank(joint)}
        found["seconds"] |= {f"joint {name}": value for name, value in took.items()}
    if folder is not None:
        label = row.label if len(row.seeds) == 1 else f"{row.label}, seed {seed}"
        found |= _drawn(shared, model, features, row, folder, row_in_short(label, found["scores"]))
    return found


def _unseen(shared: Shared, seed: int) -> dict[str, Any]:
    where = shared.experiment.measures.unseen
    unseen = read_other(shared.original, open_other(where), where, shared.settings)
    last = len(shared.problem.stages) - 1
    if not shared.problem.forget_classes(last):
        raise InvalidValueError(
            f"The {shared.problem.kind} protocol forgets no class whose place an unseen one could take."
        )
    return unseen_classes(shared.features, shared.problem, last, shared.experiment.measures, unseen, seed)


def _drawn(
    shared: Shared, model: ErasedModel, features: Features, row: Row, folder: Path, title: str
) -> dict[str, Any]:
    """The report and the panels of a row's first seed. What of it fails is said, and costs no result."""
    experiment, asked, found = shared.experiment, shared.experiment.measures, {}
    reports, panels = (place_of(folder, kind, experiment, row) for kind in ("reports", "panels"))
    key = key_of(cell_settings(experiment, row, row.seeds[0]))
    if asked.report and not without_report(experiment):
        try:
            found["report"] = _report(shared, model, row, reports, key)
        except FAILURES as error:
            found["report"] = f"{type(error).__name__}: {error}"
    if row.label in asked.panels and row.kind != "original":
        with working("drawing panels", shared.progress):
            try:
                if process_state().is_main_process:
                    make_room(panels, key)
                found["panels"] = draw_panels(
                    model, features, shared.problem, (shared.original, shared.features), shared.settings, row.label, panels,
                    title=title, grad_cam=asked.grad_cam, failures=FAILURES,
                )  # fmt: skip
            except OSError as error:
                found["panels"] = dict.fromkeys(panel_names(asked.grad_cam), f"{type(error).__name__}: {error}")
    return found


def _keeps_weights(row: Row) -> bool:
    """Whether the model of a row has the original's weights, whatever stands behind them."""
    return row.kind == "original" or (row.kind == "eraser" and not row.published.changes_weights)


def _rank(model: ErasedModel) -> int:
    """Directions that the erasers of all requests together remove, over all taps."""
    return sum(site.eraser.rank_removed for site in model.sites if site.eraser is not None)


def _report(shared: Shared, model: ErasedModel, row: Row, place: Path, key: str) -> str:
    """The whole audit of one row, with its figures; returns the name of its file."""
    name, problem, last = "report.json", shared.problem, len(shared.problem.stages) - 1
    try:
        report = model.audit(
            problem.train,
            problem.test,
            problem.forget_classes(last),
            original=None if _keeps_weights(row) else shared.original,
            reading=shared.settings,
        )
    finally:  # behind what processes do together: one that fails here keeps no other waiting
        if process_state().is_main_process:
            make_room(place, key)
    if not process_state().is_main_process:
        return name
    report.to_json(place / name)
    (place / "report.md").write_text(report.to_markdown(1), encoding="utf-8")
    with working("drawing figures", shared.progress):
        report.figures(place)
    return name


def _everywhere(ok: bool) -> bool:
    """Whether this holds in every process."""
    return bool(gather_rows(torch.tensor([int(ok)])).min())


def _nothing(text: str) -> None:
    """What processes but the first say."""


def _failure(record: Mapping[str, Any]) -> str:
    return f" - {first_sentence(record['error'])}" if record["status"] == "failed" else ""
