"""The scripts of `benchmarks/` that a release is measured with run to their end on the smallest input."""

import importlib
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch

from hf_kd.bench import Store, read_config
from hf_kd.bench.protocols import random_rows
from hf_kd.bench.store import cell_settings, key_of
from tests.helpers import processes
from tests.test_project_files import ROOT


@pytest.mark.slow
def test_what_an_accelerator_is_asked_runs_on_the_cpu(tmp_path):
    numbers = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 40), ("test", 20)):
        arrays[f"{split}_x"] = numbers.integers(256, size=(count, 32, 32, 3), dtype=np.uint8)
        arrays[f"{split}_y"] = np.arange(count) % 10
    np.savez(tmp_path / "cifar.npz", **arrays)

    out = tmp_path / "out"
    command = [ROOT / "benchmarks" / "gpu.sh", tmp_path / "cifar.npz", out, "--small"]
    told = subprocess.run(command, env=os.environ | {"PYTHON": "echo"}, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert (out / "gpu.md").read_text() == told.stdout.splitlines(keepends=True)[0], "what the first one prints is kept"
    scripts = [shlex.split(line) for line in told.stdout.splitlines()]
    assert [script[0] for script in scripts] == ["benchmarks/gpu.py", "benchmarks/cifar/train.py"]
    given = processes.surroundings(PYTHONPATH=str(ROOT / "benchmarks" / "cifar"))
    ran = processes.run(*scripts, environments=[given] * len(scripts), folder=ROOT)

    assert [done.code for done in ran] == [0, 0], [done.err[-3000:] for done in ran]
    for part in ("Forward pass", "Erasing", "Audit of", "CPU and device"):
        assert f"### {part}" in ran[0].out
    assert {"allcnn-1-0", "allcnn-deer-1-0"} <= {path.name for path in (out / "networks").iterdir()}


@pytest.fixture
def papers_table(monkeypatch):
    """The script `benchmarks/paper/table.py` as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "paper"))
    yield importlib.import_module("table")
    del sys.modules["table"]


CONFIG = """
model: m
dataset: d
seeds: [0, 1]
experiments:
  - name: table-1
    protocol: {kind: class, forget: [deer]}
    methods: [original, {method: esc, label: esc}, {method: esc-t, label: esc-t}, leace, delete]
  - name: table-2
    protocol: {kind: class, forget: [deer]}
    methods: [{method: esc, p: 1.5, label: "p = 1.5 (k = 1)"}, {method: esc, p: 50}]
"""
KEYS = ("HM", "HM_t", "KR_paper HM", "KR_paper HM_t", "KR D_ft", "KR D_rt", "D_ft", "D_rt", "MIA")


def test_the_papers_tables_have_every_row_of_the_file_once_a_seed(papers_table, tmp_path, capsys):
    """A row that shares its cell with one of an earlier table; a cell that was made twice; other settings in the same
    folder; a row that failed; a number that was not measured."""
    config = tmp_path / "tables.yaml"
    config.write_text(CONFIG)
    store, (first, _), (small, _) = Store(tmp_path), read_config(config), read_config(config, limit=60)
    esc, esct, leace, delete = first.rows[1:]
    for experiment, row, seed, value, changes in (
        (first, esc, 0, 50.0, {}),
        (small, esc, 0, 1.0, {}),
        (first, esc, 0, 90.0, {}),
        (first, esct, 0, 70.0, {}),
        (first, esct, 1, 72.0, {}),
        (first, leace, 0, 80.0, {"scores": dict.fromkeys(KEYS[:-1], 80.0) | {"HM": None}}),
        (first, delete, 0, 1.0, {"status": "failed", "error": "ValueError: no"}),
    ):
        key = key_of(cell_settings(experiment, row, seed))
        record = {"key": key, "experiment": experiment.name, "row": row.label, "seed": seed, "status": "ok",
                  "seconds": {"features": 0.0, "fit": 0.0}, "scores": dict.fromkeys(KEYS, value)}  # fmt: skip
        store.add(record | changes)

    papers_table.main(str(config), str(tmp_path))
    first, second = capsys.readouterr().out.split("### table-2")
    same = "90.0 / 90.0"
    assert f"| esc | 93.4 / 87.4 | {same} | 94.4 / 89.1 | {same} | {same} | {same} | 90.0 | 1 |" in first
    assert "| esc-t | 98.6 / 92.5 | 71.0 ± 1.4 / 71.0 ± 1.4 |" in first
    assert "| 71.0 ± 1.4 | 2 |" in first
    assert "| leace | - | - / 80.0 | - | 80.0 / 80.0 | 80.0 / 80.0 | 80.0 / 80.0 | - | 1 |" in first
    assert f"| p = 1.5 (k = 1) | {same} | {same} | {same} | {same} | 90.0 | 1 |" in second
    assert not {name for name in ("original", "delete", "p=50") if name in first + second}


def test_random_samples_get_the_gaps_of_the_papers_table_5(papers_table, tmp_path, capsys):
    config = tmp_path / "random.yaml"
    config.write_text(
        "model: m\ndataset: d\nprotocol: random\nmethods: [original, retrain, {method: esc, label: esc}]\n"
    )
    store, (experiment,) = Store(tmp_path), read_config(config)
    for row, value, took in zip(experiment.rows, (90.0, 70.0, 74.0), ({}, {}, {"bare pass": 2.0}), strict=True):
        scores = dict.fromkeys(("D_f", "D_r", "D_t", "MIA"), value)
        record = {"key": key_of(cell_settings(experiment, row, 0)), "experiment": experiment.name, "row": row.label,
                  "seed": 0, "status": "ok", "seconds": {"features": 2.0, "fit": 1.0} | took, "scores": scores}  # fmt: skip
        store.add(record)
    papers_table.main(str(config), str(tmp_path))
    printed = capsys.readouterr().out
    assert "| original | 90.0 / 90.0 | 90.0 | 90.0 | - | 20.00 | - | 1 |" in printed
    assert "| retrain | 70.0 / 70.0 | 70.0 | 70.0 | 0.00 | 0.00 | - | 1 |" in printed
    assert "| esc | 74.0 / 74.0 | 74.0 | 74.0 | 1.45 | 4.00 | 1.50 | 1 |" in printed


def test_the_papers_table_of_another_file_says_that_nothing_is_there(papers_table, tmp_path):
    (tmp_path / "tables.yaml").write_text(CONFIG)
    with pytest.raises(SystemExit, match="has no result of"):
        papers_table.main(str(tmp_path / "tables.yaml"), str(tmp_path))


def test_a_network_without_random_samples_never_saw_what_the_bench_forgets(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "cifar"))
    train = importlib.import_module("train")
    labels = torch.arange(200).remainder(10)[torch.randperm(200, generator=torch.Generator().manual_seed(3))]
    run = train.Run(
        train.Job.parse("resnet20-random:1"), torch.zeros(200, 40, 40, 3, dtype=torch.uint8), labels, tmp_path
    )
    forgotten = random_rows(labels, 0.1)
    assert labels[forgotten].bincount().tolist() == [2] * 10
    assert sorted([*run.members.tolist(), *forgotten.tolist()]) == list(range(200))
    for name in ("train", "images", "networks"):
        del sys.modules[name]
