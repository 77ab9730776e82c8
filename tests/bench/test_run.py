"""Cells: measured, kept, never run twice, and what of one fails costs the others nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import textwrap
from pathlib import Path

import pytest
import torch

from hf_kd import AuditOptions, ErasedModel, RetentionReport
from hf_kd.bench import write_tables
from hf_kd.bench.build import make
from hf_kd.bench.config import Measures
from hf_kd.bench.measure import measure, read_both
from hf_kd.bench.memory import PeakMemory, _give_back
from hf_kd.bench.protocols import make_problem
from hf_kd.bench.run import bench
from hf_kd.bench.store import Store, cell_settings, key_of, only_bench_in
from hf_kd.bench.tables import markdown
from hf_kd.errors import OutputError
from hf_kd.features.reader import ReadOptions
from hf_kd.methods.registry import available_methods, get_method, make_unlearning_method
from tests.helpers import processes
from tests.helpers.small import picture

QUICK = {"epochs": 1, "batch_size": 16}


def run(experiment, output, **options):
    """The store, and what was told of it."""
    told: list[str] = []
    experiments = experiment if isinstance(experiment, list) else [experiment]
    return bench(experiments, output, progress=False, log=told.append, **options), told


def by_row(store) -> dict:
    return {(record["row"], record["seed"]): record for record in store.records.values()}


def started(told) -> list[str]:
    return [line.split(": ", 1)[1].removesuffix(" ...") for line in told if line.endswith("...")]


def test_a_label_mapping_names_labels_of_either_split_alone(one, tmp_path):
    for split, names in {"train": "ape bee katze hund elk", "test": "ape bee cat chien elk"}.items():
        for label, name in enumerate(names.split()):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(12):
                picture(label, number + 100 * (split == "test")).save(
                    tmp_path / "data" / split / name / f"{number}.png"
                )
    mapping = {"katze": "cat", "hund": "dog", "chien": "dog"}
    experiment = one(
        dataset={"name": str(tmp_path / "data"), "label_mapping": mapping},
        protocol={"kind": "class", "forget": ["katze"]},
        methods=["leace", {"method": "finetune", **QUICK}],
        measure={"knowledge_retention": False, "membership": False, "bare_pass": True},
    )
    found = by_row(run(experiment, tmp_path / "out")[0])
    assert [record.get("error") for record in found.values()] == [None, None]
    assert found["leace", 0]["records"][0]["classes"] == [2]
    unknown = one(dataset={"name": str(tmp_path / "data"), "label_mapping": mapping | {"cheval": "dog"}})
    with pytest.raises(ValueError, match="No label is called 'cheval'"):
        run(unknown, tmp_path / "unknown")


def test_erasers_and_weights_on_one_table(one, tmp_path):
    experiment = one(
        methods=[
            "original",
            {"method": "esc", "k": 1},
            {"method": "esc-t", "epochs": 5, "threshold": 0.99},
            "head-surgery",
            {"method": "retrain", **QUICK},
        ],
        measure={"attacks": ["norm"]},
        train_precision="bf16",
    )
    store, told = run(experiment, tmp_path)
    found = by_row(store)
    assert len(found) == len(started(told)) == 5
    assert [record.get("error") for record in found.values() if record["status"] != "ok"] == []
    for (row, _), record in found.items():
        scores = record["scores"]
        for prefix in ("", "KR ", "KR_paper "):
            a, b = scores[f"{prefix}D_f"], scores[f"{prefix}D_r"]
            assert scores[f"{prefix}HM"] == pytest.approx(2 * (100 - a) * b / (100 - a + b) if 100 - a + b else 0)
        assert {"MIA", "CKA", "cosine", "weights head", "weights other"} <= set(scores)
        assert 0 <= scores["attacks"]["norm"]["recall"] <= 100
        if row != "original":
            assert record["records"][0]["n_forget"] == 12
            assert record["memory_mib"]["method"] >= 0
            assert record["seconds"]["fit"] <= record["seconds"]["cell"]
    esc, head = found["esc (k=1)", 0], found["head-surgery", 0]
    assert esc["scores"]["rank removed"] == 1
    assert esc["scores"]["weights other"] == esc["scores"]["weights head"] == 0
    assert not any(esc["scores"]["weights by layer"].values())
    assert head["scores"]["weights head"] > 0 == head["scores"]["weights other"]
    assert head["scores"]["KR D_ft"] == found["original", 0]["scores"]["KR D_ft"], "features are the original's"
    moved = next(record for (row, _), record in found.items() if row.startswith("retrain"))
    assert all(value > 0 for value in moved["scores"]["weights by layer"].values())
    assert moved["records"][0]["dtype"] == "bf16"
    assert moved["settings"]["train_precision"] == "bf16"
    again, told = run(experiment, tmp_path)
    assert told == []
    assert again.records == store.records
    assert (tmp_path / "results.jsonl").read_text().count("\n") == 5


def test_a_changed_setting_runs_again_and_only_what_it_concerns(one, tmp_path):
    methods = ["original", {"method": "esc", "k": 1, "label": "ESC"}, {"method": "finetune", **QUICK, "label": "tune"}]
    run(one(methods=methods), tmp_path)
    _, told = run(one(methods=[methods[0], methods[1] | {"label": "renamed"}, methods[2]]), tmp_path)
    assert told == []
    _, told = run(one(methods=[methods[0], methods[1] | {"k": 2}, methods[2]]), tmp_path)
    assert started(told) == ["ESC, seed 0"]
    _, told = run(one(methods=methods, train_precision="bf16"), tmp_path)
    assert started(told) == ["tune, seed 0"]
    _, told = run(one(methods=methods, limit=30), tmp_path)
    assert started(told) == ["original, seed 0", "ESC, seed 0", "tune, seed 0"]


KILLED = """
    import os, signal, sys
    from hf_kd.bench import bench, read_config

    def tell(text):
        if text.startswith("[3/4]"):
            os.kill(os.getpid(), signal.SIGKILL)

    bench(read_config(sys.argv[1]), sys.argv[2], progress=False, log=tell)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
def test_a_killed_run_continues_where_it_stopped(one, place, tmp_path):
    config = place / "killed.yaml"
    config.write_text(
        "model: model\ndataset: {name: data, label_column: label}\nprotocol: {kind: class, forget: [cat]}\n"
        "measure: {knowledge_retention: false, membership: false}\n"
        "seeds: [0, 1, 2]\nmethods: [original, {method: esc-t, epochs: 1}]\n"
    )
    script = ["-c", textwrap.dedent(KILLED), config, tmp_path]
    (done,) = processes.run(script, environments=[processes.surroundings()])
    assert done.code == -signal.SIGKILL, done.text[-2000:]
    results = tmp_path / "results.jsonl"
    finished = results.read_bytes()
    assert [json.loads(line)["seed"] for line in finished.splitlines()] == [0, 0], "two of four"
    with results.open("ab") as file:  # and as if the third had been cut short while it was written
        file.write(finished.splitlines()[-1][:200])
    from hf_kd.bench.config import read_config

    (experiment,) = read_config(config)
    assert "Not run yet: esc-t (epochs=1) (2)" in markdown(experiment, Store(tmp_path))
    store, told = run(experiment, tmp_path)
    assert started(told) == ["esc-t (epochs=1), seed 1", "esc-t (epochs=1), seed 2"]
    assert results.read_bytes().startswith(finished), "what was there stays as it was"
    assert len(results.read_bytes().splitlines()) == len(store.records) == 4


def test_a_line_without_its_end_is_whole_and_gets_one(tmp_path):
    record = {"key": "a", "status": "ok", "seconds": {}, "scores": {}}
    (tmp_path / "results.jsonl").write_text(json.dumps(record))
    store = Store(tmp_path)
    store.add(record | {"key": "b", "value": float("nan"), "list": [float("inf"), 1.5]})
    again = Store(tmp_path)
    assert set(again.records) == {"a", "b"}
    assert (again.records["b"]["value"], again.records["b"]["list"]) == (None, [None, 1.5])


def test_what_is_no_result_is_refused(tmp_path):
    path = tmp_path / "results.jsonl"
    good = {"key": "b", "status": "ok", "seconds": {}, "scores": {}}
    whole = json.dumps(good)
    for content, number in ((f'{{"key": "a", "sta\n{whole}\n', 1), (f'{whole}\n\n{{"key": "a", "sta\n', 3)):
        path.write_text(content)
        with pytest.raises(ValueError, match=f"Line {number} of .* is not JSON"):
            Store(tmp_path)
        assert path.read_text() == content, "only what has no end was cut short by an interruption"
    for lacking in (
        {"loss": 1},
        {**good, "scores": None},
        {**good, "key": ["b"]},
        {**good, "status": "failed"},
        [good],
    ):
        path.write_text(json.dumps(lacking) + "\n")
        with pytest.raises(ValueError, match="Line 1 of .* no result of a bench"):
            Store(tmp_path)


def test_a_line_that_was_cut_short_is_gone_and_empty_ones_are_none(tmp_path):
    path = tmp_path / "results.jsonl"
    whole = json.dumps({"key": "b", "status": "ok", "seconds": {}, "scores": {}})
    for content in (f"{whole}\n{whole[:20]}", f"{whole}\n\n", whole):
        path.write_text(content)
        store = Store(tmp_path)
        store.add(json.loads(whole) | {"key": "c"})
        assert set(Store(tmp_path).records) == {"b", "c"}


def test_a_process_that_only_reads_writes_nothing(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"key": "a", "status": "ok", "seconds": {}, "scores": {}}\n{"key": "b"')
    before = path.read_bytes()
    store = Store(tmp_path, writes=False)
    store.add({"key": "c", "status": "ok", "seconds": {}})
    assert set(store.records) == {"a", "c"}
    assert path.read_bytes() == before


def test_one_failing_method_stops_no_other_and_is_shown(one, tmp_path):
    methods = ["original", {"method": "neggrad", "lr": 1e30, **QUICK, "label": "far"}, {"method": "esc", "k": 1}]
    experiment = one(methods=methods)
    store, _ = run(experiment, tmp_path)
    found = by_row(store)
    assert [found[row, 0]["status"] for row in ("original", "far", "esc (k=1)")] == ["ok", "failed", "ok"]
    text = markdown(experiment, store)
    assert f"- far, seed 0: {found['far', 0]['error'].split(':')[0]}" in text
    assert "| far | failed |" in text
    assert run(experiment, tmp_path)[1] == [], "a failure is a result"
    _, told = run(experiment, tmp_path, retry_failed=True)
    assert started(told) == ["far, seed 0"]


def test_a_refused_row_stops_no_other_and_says_why(one, tmp_path):
    experiment = one(methods=["original", {"method": "esc", "kk": 1, "label": "typo"}, {"method": "esc", "k": 1}])
    store, told = run(experiment, tmp_path)
    assert "typo is refused" in told[0]
    assert "has no option kk" in told[0], "said before anything is opened"
    found = by_row(store)
    assert [found[row, 0]["status"] for row in ("original", "typo", "esc (k=1)")] == ["ok", "failed", "ok"]
    assert "has no option kk" in found["typo", 0]["error"]
    assert "has no option kk" in markdown(experiment, store)


def test_the_whole_message_of_a_row_that_failed_stands_in_the_tables_alone(one, tmp_path):
    experiment = one(methods=["original", "head-surgry"])
    store, told = run(experiment, tmp_path)
    about = [line for line in told if "head-surgry" in line and not line.endswith("...")]
    assert len(about) == 2
    for line in about:
        assert line.endswith("Unknown method 'head-surgry'. Did you mean 'head-surgery'?")
    assert markdown(experiment, store).count("Choose original") == 1


def test_data_that_cannot_be_opened_stops_no_other_experiment_and_fails_no_method(one, tmp_path):
    bad = one(name="bad", protocol={"kind": "class", "forget": ["zebra"]})
    with pytest.raises(ValueError, match="bad: .*zebra"):
        run([bad, one(name="good")], tmp_path)
    (record,) = Store(tmp_path).records.values()
    assert (record["experiment"], record["status"]) == ("good", "ok")


def test_only_some_rows(one, tmp_path):
    experiment = one(methods=["original", {"method": "esc", "k": 1, "label": "first"}, {"method": "esc", "k": 2}])
    _, told = run(experiment, tmp_path, only=["first"])
    assert started(told) == ["first, seed 0"]
    _, told = run(experiment, tmp_path, only=["esc"])
    assert started(told) == ["esc (k=2), seed 0"]
    with pytest.raises(ValueError, match=r"No row is called esx\. Did you mean 'esc'\? The rows are esc, "):
        run(experiment, tmp_path, only=["esx"])


def test_random_samples(one, tmp_path):
    experiment = one(
        protocol={"kind": "random", "share": 0.2},
        measure={},
        methods=["original", {"method": "esc", "k": 1}, {"method": "retrain", **QUICK}],
    )
    store, _ = run(experiment, tmp_path)
    for record in store.records.values():
        assert record["status"] == "ok", record
        assert {"D_f", "D_r", "D_t", "MIA", "MIA level"} <= set(record["scores"])
        assert not {"D_ft", "KR D_f", "HM"} & set(record["scores"])
    assert by_row(store)["esc (k=1)", 0]["records"][0]["classes"] is None, "samples, not classes"
    table = markdown(experiment, store)
    assert "Avg Gap" in table
    assert "RTE, s" in table


def test_requests_one_after_another_and_all_at_once(one, tmp_path):
    methods = ["original", {"method": "esc", "k": 1}, {"method": "finetune", **QUICK}]
    experiment = one(protocol={"kind": "incremental", "forget": ["dog", "ape"]}, methods=methods)
    store, _ = run(experiment, tmp_path)
    esc, tuned, original = (by_row(store)[row.label, 0] for row in (experiment.rows[i] for i in (1, 2, 0)))
    assert [stage["rank removed"] for stage in esc["stages"]] == [1, 2]
    assert esc["joint"]["rank removed"] == 1, "both classes in one decomposition"
    assert "joint" not in original
    assert [record["n_forget"] for record in esc["records"]] == [12, 12]
    assert len(tuned["records"]) == 2
    assert tuned["joint"]["weights other"] > 0
    text = markdown(experiment, store)
    assert "**esc (k=1)**, request after request" in text
    assert "| all at once |" in text
    alone = one(protocol={"kind": "incremental", "forget": ["dog", "ape"], "joint": False}, methods=methods[1:2])
    store, _ = run(alone, tmp_path / "alone")
    assert "joint" not in by_row(store)["esc (k=1)", 0]


def test_a_fine_class_and_its_siblings(one, tmp_path):
    protocol = {"kind": "subclass", "forget": ["tabby"], "fine_column": "fine"}
    experiment = one(protocol=protocol, methods=["original", {"method": "esc", "k": 1}])
    store, _ = run(experiment, tmp_path)
    assert all("siblings" in record["scores"] for record in store.records.values())
    assert "| siblings |" in markdown(experiment, store)
    assert "siblings: the other test images of the classes" in markdown(experiment, store)


def test_a_class_that_is_forgotten_in_part_is_not_recorded_as_forgotten(one, tmp_path):
    """Methods that read retained images fit the part against all others; those that mask a class have none to mask."""
    fitted, masking = ["esc", "mean-difference", "leace", "prototype-orthogonal"], ["cover", "retained-span"]
    protocol = {"kind": "subclass", "forget": ["tabby"], "fine_column": "fine"}
    quick = {"knowledge_retention": False, "membership": False}
    found = by_row(run(one(protocol=protocol, methods=fitted + masking, measure=quick), tmp_path)[0])
    for name in fitted:
        assert found[name, 0]["status"] == "ok", found[name, 0]
        assert found[name, 0]["records"][0]["classes"] is None
    for name in masking:
        assert "takes whole classes out" in found[name, 0]["error"]


def test_a_checkpoint_made_elsewhere_is_a_row(one, place, tmp_path):
    model = ErasedModel.from_pretrained(place / "model")
    problem = make_problem(one(), model.config.id2label)
    model.erase(
        problem.train.select(problem.stages[0].tolist()), k=1, reading=ReadOptions(label_column="label", progress=False)
    )
    model.save_pretrained(tmp_path / "erased")
    methods = [{"method": "esc", "k": 1}, {"checkpoint": str(tmp_path / "erased"), "label": "made elsewhere"}]
    store, _ = run(one(methods=methods), tmp_path)
    here, elsewhere = (by_row(store)[row, 0]["scores"] for row in ("esc (k=1)", "made elsewhere"))
    assert here == elsewhere


def making(experiment, row, seed=0):
    """The original as it was before and after, and what a row makes of it."""
    original = ErasedModel.from_pretrained(experiment.model)
    problem = make_problem(experiment, original.config.id2label)
    settings = ReadOptions(label_column="label", batch_size=experiment.batch_size, progress=False)
    original.find_taps()
    before = {name: tensor.clone() for name, tensor in original.inner.state_dict().items()}
    made, _ = make(row, seed, experiment, problem, original, settings, 0)
    after = original.inner.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the original belongs to all rows"
    assert not original.is_erased
    assert not original.inner.training
    return before, made


def test_a_head_of_several_labels_answers_each_where_its_own_probability_is_above_one_half(one):
    """As reports count; the largest logit is one of several right answers."""
    experiment = one(methods=["original"])
    original = ErasedModel.from_pretrained(experiment.model)
    problem = make_problem(experiment, original.config.id2label)
    settings = ReadOptions(label_column="label", batch_size=experiment.batch_size, progress=False)
    original.find_taps()
    with torch.no_grad():
        original.inner.classifier[-1].bias += torch.tensor([2000.0, *[1000.0] * 4])
    for problem_type, right in (("multi_label_classification", True), ("single_label_classification", False)):
        original.config.problem_type = problem_type
        features = read_both(original, problem, settings, ())
        measures = Measures(attacks=(), knowledge_retention=False, membership=False)
        scores = measure(original, features, problem, 0, measures)
        assert all((scores[name] == 100.0) == right for name in ("D_r", "D_rt"))


def test_features_read_in_train_mode_overwrite_the_statistics_of_the_cells_own_model(one):
    experiment = one(
        methods=[{"method": "esc", "k": 1}, {"method": "esc", "k": 1, "collect_in": "train"}], batch_size=6
    )
    before, plain = making(experiment, experiment.rows[0])
    assert all(torch.equal(before[name], tensor) for name, tensor in plain.inner.state_dict().items())
    before, model = making(experiment, experiment.rows[1])
    after = model.inner.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "running_" in name or "num_batches" in name}
    assert all(int(after[name]) == int(before[name]) + 2 for name in changed if "num_batches" in name), "12 images"
    assert not model.inner.training
    assert not model.inner._forward_pre_hooks or len(model.inner._forward_pre_hooks) == len(
        plain.inner._forward_pre_hooks
    )
    one_u, other_u = plain.sites[0].eraser.directions, model.sites[0].eraser.directions
    assert abs(float((one_u.T @ other_u).squeeze())) < 0.9999, "the eraser is fitted on what that pass read"


def test_train_mode_rows_are_measured_on_features_read_again(one, tmp_path):
    rows = [{"method": "esc", "k": 1}, {"method": "esc", "k": 1, "collect_in": "train"}]
    store, _ = run(one(methods=rows, batch_size=6), tmp_path)
    found = {record["row"]: record for record in store.records.values()}
    train = found["esc (k=1, collect_in=train)"]
    assert train["settings"]["collect_in"] == "train"
    assert train["settings"]["batch_size"] == 6, "which decides about a batch's statistics"
    assert train["scores"]["weights other"] > 0 == found["esc (k=1)"]["scores"]["weights other"]
    assert train["scores"]["CKA"] != found["esc (k=1)"]["scores"]["CKA"]
    _, told = run(one(methods=rows, batch_size=10), tmp_path)
    assert len(started(told)) == 1, "of the other row the batch size decides nothing"


def test_a_forget_limit_reaches_methods_of_both_kinds(one, tmp_path):
    methods = [{"method": "esc", "k": 1, "forget_limit": 5}, {"method": "finetune", "forget_limit": 5, **QUICK}]
    store, _ = run(one(methods=methods, seeds=[0, 1]), tmp_path)
    assert len(store.records) == 4
    for record in store.records.values():
        assert record["settings"]["forget_limit"] == 5
        assert record["records"][0]["n_forget"] == 5
    first, second = (by_row(store)["esc (k=1, forget_limit=5)", seed]["records"][0]["sha256"] for seed in (0, 1))
    assert first != second, "other images with another seed"


def test_methods_never_get_forgotten_images_to_keep(one, tmp_path, monkeypatch):
    seen = {}

    def change(self, task):
        seen["forget"], seen["retain"] = task.forget, task.retain
        next(task.model.parameters()).data.mul_(0.5)  # a method that changes nothing is refused
        return {}

    monkeypatch.setattr(type(make_unlearning_method("neggrad+")), "change", change)
    methods = ["neggrad+", *(name for name in available_methods() if get_method(name).needs_retain)]
    assert len(methods) > 1
    erase = ErasedModel.erase

    def watched(model, forget, method, *, retain=None, **options):
        seen[method] = (forget, retain)
        return erase(model, forget, method, retain=retain, **options)

    monkeypatch.setattr(ErasedModel, "erase", watched)
    experiment = one(methods=methods, retain_limit=25)
    store, _ = run(experiment, tmp_path)
    assert all(record["status"] == "ok" for record in store.records.values()), store.records
    assert (len(seen["forget"]), len(seen["retain"])) == (12, 25)
    assert seen["forget"].labels.unique().tolist() == [2]
    assert 2 not in seen["retain"].labels
    for name in methods[1:]:
        forget, retain = seen[name]
        assert set(forget["label"]) == {2}
        assert (len(retain), 2 in retain["label"]) == (25, False)


def test_panels_and_reports_are_drawn_while_the_model_is_at_hand(one, tmp_path):
    pytest.importorskip("matplotlib")
    methods = [
        "original",
        {"method": "esc", "k": 1, "label": "esc, k=1"},
        {"method": "finetune", **QUICK, "label": "tune"},
    ]
    store, _ = run(one(methods=methods), tmp_path)
    asked = one(
        methods=methods, measure={"knowledge_retention": False, "membership": False, "panels": ["original", "esc, k=1"]}
    )
    again, told = run(asked, tmp_path)
    assert started(told) == ["esc, k=1, seed 0"], "a result is kept, but no model: it is made again to be drawn"
    assert by_row(again)["esc, k=1", 0]["scores"] == by_row(store)["esc, k=1", 0]["scores"]
    drawn = {path.relative_to(tmp_path / "panels").as_posix() for path in (tmp_path / "panels").rglob("*.png")}
    assert drawn == {"bench/esc--k=1/class_means.png", "bench/esc--k=1/tsne.png"}, "no image unless asked for"
    assert run(asked, tmp_path)[1] == []
    shown = one(
        methods=methods,
        measure={"knowledge_retention": False, "membership": False, "panels": ["tune"], "grad_cam": True},
    )
    final, told = run(shown, tmp_path)
    assert started(told) == ["tune, seed 0"]
    assert by_row(final)["tune", 0]["panels"]["grad_cam"] == "grad_cam.png"
    assert (tmp_path / "panels" / "bench" / "tune" / "grad_cam.png").stat().st_size > 1000


def test_what_is_asked_for_later_is_as_if_it_had_been_asked_for_at_once(one, tmp_path, monkeypatch):
    """A bare pass and the report of the first seed, of cells that have their result; once, and at no risk for it."""
    import hf_kd.bench.run as running

    def report(shared, model, row, place, key):
        reports.append(row.label)
        place.mkdir(parents=True)
        (place / "report.json").touch()
        return "report.json"

    monkeypatch.setattr(running, "_report", report)
    reports: list[str] = []
    methods = ["original", {"method": "esc", "k": 1, "label": "esc"}]
    quick = {"knowledge_retention": False, "membership": False}
    rows = [*methods, {"method": "esc-t", "epochs": 1, "threshold": None, "label": "esc-t", "seeds": [0, 1]}]
    later = one(methods=rows, measure=quick | {"report": True, "bare_pass": True})
    plain, _ = run(one(methods=rows, measure=quick), tmp_path)
    store, told = run(later, tmp_path)
    assert [line.split("since: ")[1] for line in told if "since: " in line] == [
        "report", "bare pass, report", "bare pass, report", "bare pass"
    ]  # fmt: skip
    assert reports == ["original", "esc", "esc-t"]
    for cell, record in by_row(store).items():
        assert record["scores"] == by_row(plain)[cell]["scores"]
    assert "**Not drawn**" not in markdown(later, store)
    assert run(later, tmp_path)[1] == []
    at_once, _ = run(later, tmp_path / "at once")
    for cell, record in by_row(at_once).items():
        assert set(record) == set(by_row(store)[cell])
        assert set(record["seconds"]) == set(by_row(store)[cell]["seconds"])

    def refuse(*arguments):
        raise RuntimeError("no memory for it")

    run(one(methods=methods, measure=quick), tmp_path / "kept")
    before = (tmp_path / "kept" / "results.jsonl").read_bytes()
    monkeypatch.setattr(running, "bare_pass", refuse)
    _, told = run(one(methods=methods, measure=quick | {"bare_pass": True}), tmp_path / "kept")
    assert told[-1].endswith("keeps the result that it had - RuntimeError: no memory for it")
    assert (tmp_path / "kept" / "results.jsonl").read_bytes() == before


def test_experiments_that_share_a_cell_have_reports_and_panels_of_their_own(one, tmp_path, monkeypatch):
    """Of one cell that several ask about; and what one of them lacks takes from no other what it has."""
    import hf_kd.bench.run as running

    def draw(model, features, problem, original, settings, label, place, **options):
        place.mkdir(parents=True, exist_ok=True)
        (place / "tsne.png").touch()
        return {"tsne": "tsne.png", "class_means": "ValueError: nothing to draw"}

    monkeypatch.setattr(running, "draw_panels", draw)
    esc, quick = {"method": "esc", "k": 1}, {"knowledge_retention": False, "membership": False}
    a = one(name="a", methods=[esc | {"label": "esc"}], measure=quick | {"panels": ["esc"], "bare_pass": True})
    b = one(name="b", methods=[esc | {"label": "k = 1"}], measure=quick | {"panels": ["k = 1"]})
    store, told = run([a, b], tmp_path)
    assert started(told) == ["esc, seed 0", "k = 1, seed 0"]
    drawn = {path.relative_to(tmp_path / "panels").as_posix() for path in (tmp_path / "panels").rglob("*.png")}
    assert drawn == {"a/esc/tsne.png", "b/k-=-1/tsne.png"}
    (record,) = store.records.values()
    assert (record["experiment"], record["row"]) == ("a", "esc"), "where it was first asked for"
    assert record["seconds"]["bare pass"] > 0
    assert run([a, b], tmp_path)[1] == [], "what failed is not tried again"


def test_what_could_not_be_drawn_is_tried_again_with_what_failed(one, tmp_path, monkeypatch):
    """A full disk is no property of the cell; and a part of a figure is none."""
    import hf_kd.bench.row_figures as panels

    pytest.importorskip("matplotlib")
    quick = {"knowledge_retention": False, "membership": False}
    asked = one(methods=["esc"], measure=quick | {"panels": ["esc"]})
    place = tmp_path / "panels" / "bench" / "esc"

    def fills_up(drawer, model, features, problem, original, titles, path):
        path.write_bytes(b"a part")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(panels, "_save", fills_up)
        run(asked, tmp_path)
        assert run(asked, tmp_path)[1] == []
    assert not list(place.glob("*.png"))
    store, told = run(asked, tmp_path, retry_failed=True)
    assert started(told) == ["esc, seed 0"]
    assert {path.stem for path in place.glob("*.png")} == {"class_means", "tsne"}
    (record,) = store.records.values()
    assert record["panels"] == {"class_means": "class_means.png", "tsne": "tsne.png"}
    assert run(asked, tmp_path, retry_failed=True)[1] == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device here that is always full")
def test_a_full_disk_is_said_with_what_is_kept_and_the_way_on(one, tmp_path):
    (tmp_path / "results.jsonl").symlink_to("/dev/full")
    store = Store(tmp_path)
    with pytest.raises(OutputError, match=r"results\.jsonl \(No space left.*Those before it are there"):
        store.add({"key": "a", "status": "ok", "seconds": {}, "scores": {}})
    assert not store.records, "what is not on disk is no result"
    (tmp_path / "tables.md").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left.*--tables-only"):
        write_tables([one()], store, tmp_path, figures=False)


def test_an_interruption_while_memory_is_given_back_is_not_lost():
    """Python goes on behind what a finalizer raises. What a shell starts in the background ignores interruptions."""

    class Last:
        def __init__(self):
            self.own = self

        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            [None for _ in range(1000)]

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        Last()
        with pytest.raises(KeyboardInterrupt):
            _give_back()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        _give_back()
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_lies_in_the_folder_of_a_row_is_of_its_cell(one, tmp_path, monkeypatch):
    """A label may come to stand for other settings, and two labels may differ in signs that no folder has."""
    import hf_kd.bench.run as running

    def draw(model, features, problem, original, settings, label, place, **options):
        if not drawable:
            return dict.fromkeys(("tsne", "class_means"), "ValueError: nothing to draw")
        (place / "tsne.png").write_text(f"{label}: {model.sites[0].eraser.rank_removed}")
        (place / "class_means.png").touch()
        return {"tsne": "tsne.png", "class_means": "class_means.png"}

    def asked(*rows):
        quick = {"knowledge_retention": False, "membership": False}
        rows = [{"method": "esc", "k": k, "label": label} for label, k in rows]
        return one(methods=["original", *rows], measure=quick | {"panels": [row["label"] for row in rows]})

    monkeypatch.setattr(running, "draw_panels", draw)
    drawable = True
    panels = tmp_path / "panels" / "bench"
    for k in (1, 2, 1, 1):
        _, told = run(asked(("esc", k)), tmp_path)
        assert (panels / "esc" / "tsne.png").read_text() == f"esc: {k}"
    assert told == [], "what is there is its own"
    drawable = False
    run(asked(("esc", 3)), tmp_path)
    assert not (panels / "esc" / "tsne.png").exists(), "another cell's would be taken for this one's"
    drawable = True
    both = asked(("k < 2", 1), ("k > 2", 4))
    run(both, tmp_path)
    assert run(both, tmp_path)[1] == []
    assert {path.read_text() for path in panels.glob("k-*/tsne.png")} == {"k < 2: 1", "k > 2: 4"}
    for label in ("..", "x" * 300):
        run(asked((label, 1)), tmp_path)
    assert {path.name for path in panels.parent.iterdir()} == {"bench"}
    assert any(path.name.startswith("x" * 80) for path in panels.iterdir())


def test_a_folder_that_cannot_be_made_costs_no_result(one, tmp_path, monkeypatch):
    """Nor do other processes wait: the first one finds out behind the audit, in which they all take part."""
    audits: list[ErasedModel] = []
    monkeypatch.setattr(ErasedModel, "audit", lambda model, *given, **named: audits.append(model))
    measure = {"knowledge_retention": False, "membership": False, "report": True, "panels": ["esc"]}
    for name in ("panels", "reports"):
        (tmp_path / name).write_text("a file in the way")
    store, _ = run(one(methods=["esc"], measure=measure), tmp_path)
    (record,) = store.records.values()
    assert record["status"] == "ok"
    assert len(audits) == 1
    assert len(record["panels"]) == 2
    assert all(said.startswith("NotADirectoryError") for said in (record["report"], *record["panels"].values()))


def test_a_report_that_fails_leaves_none_of_another_cell_under_its_label(one, tmp_path, monkeypatch):
    def fails(*given, **options):
        raise ValueError("nothing to audit")

    monkeypatch.setattr(ErasedModel, "audit", fails)
    place = tmp_path / "reports" / "bench" / "esc"
    place.mkdir(parents=True)
    (place / "cell.txt").write_text("another")
    (place / "report.json").touch()
    measure = {"knowledge_retention": False, "membership": False, "report": True}
    store, _ = run(one(methods=["esc"], measure=measure), tmp_path)
    (record,) = store.records.values()
    assert record["report"] == "ValueError: nothing to audit"
    assert [path.name for path in place.iterdir()] == ["cell.txt"]


def test_what_failed_for_each_of_two_experiments_is_tried_once_by_each(one, tmp_path, monkeypatch):
    """One report and one panel that cannot be drawn, of one cell: neither makes the other forgotten."""
    import hf_kd.bench.run as running

    def fails(*given, **options):
        raise ValueError("nothing to draw")

    monkeypatch.setattr(running, "_report", fails)
    monkeypatch.setattr(
        running, "draw_panels", lambda *given, **options: dict.fromkeys(("tsne", "class_means"), "ValueError: nothing")
    )
    esc, quick = {"method": "esc", "k": 1}, {"knowledge_retention": False, "membership": False}
    a = one(name="a", methods=[esc | {"label": "esc"}], measure=quick | {"report": True})
    b = one(name="b", methods=[esc | {"label": "k = 1"}], measure=quick | {"panels": ["k = 1"]})
    store, _ = run([a, b], tmp_path)
    (record,) = store.records.values()
    assert record["report"] == "ValueError: nothing to draw"
    assert set(record["panels"]) == {"tsne", "class_means"}
    assert run([a, b], tmp_path)[1] == []


@pytest.mark.parametrize(
    "protocol", [{"kind": "random"}, {"kind": "subclass", "forget": ["tabby"], "fine_column": "fine"}]
)
def test_what_a_protocol_does_not_have_is_said_and_no_reason_to_run_again(one, tmp_path, protocol):
    quick = {"knowledge_retention": False, "membership": False}
    run(one(protocol=protocol, measure=quick), tmp_path)
    asked = one(protocol=protocol, measure=quick | {"report": True})
    store, told = run(asked, tmp_path)
    assert started(told) == []
    (said,) = told
    assert "no report: an audit is about" in said
    assert said.split(": ", 1)[1] in markdown(asked, store)
    attacked = one(protocol=protocol, measure=quick | {"attacks": ["linear"]})
    assert ("no attacks: " in markdown(attacked, store)) == (protocol["kind"] == "random")


def test_the_report_of_a_row(one, tmp_path, monkeypatch):
    audit, few = ErasedModel.audit, AuditOptions(attacks=["linear"], draws=1, shots=[1])
    monkeypatch.setattr(ErasedModel, "audit", lambda *given, **named: audit(*given, **named, options=few))
    monkeypatch.setattr(RetentionReport, "figures", lambda report, place: (place / "drawn").touch())
    asked = one(measure={"knowledge_retention": False, "membership": False, "report": True})
    store, _ = run(asked, tmp_path)
    assert by_row(store)["original", 0]["report"] == "report.json"
    assert {"report.json", "report.md", "drawn", "cell.txt"} == {
        path.name for path in (tmp_path / "reports" / "bench" / "original").iterdir()
    }


@pytest.fixture
def no_files(monkeypatch) -> None:
    """Figures are made and not written: that they become files is asked above, of panels and reports."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path: None)


@pytest.mark.usefixtures("no_files")
def test_panels_say_what_probe_and_head_still_tell_of_the_forgotten(one, tmp_path, monkeypatch):
    import hf_kd.audit.class_maps as maps
    import hf_kd.bench.row_figures as panels

    titles = []
    for drawn in (panels, maps):
        monkeypatch.setattr(drawn, "add_title", lambda figure, text: titles.append(text))
    store, _ = run(one(methods=["esc"], measure={"panels": ["esc"], "grad_cam": True}), tmp_path)
    (record,) = store.records.values()
    probe, head = record["scores"]["KR D_ft"], record["scores"]["D_ft"]
    told = f"esc: a converged probe reads {probe:.0f} % of the forgotten, the head answers {head:.0f} %"
    assert titles == [told] * 3
    seeds = one(methods=[{"method": "esc-t", "epochs": 1, "threshold": None, "seeds": [3, 4], "label": "esc-t"}])
    shown = dataclasses.replace(
        seeds, measures=Measures(knowledge_retention=False, membership=False, panels=("esc-t",))
    )
    run(shown, tmp_path / "seeds")
    assert len(titles) == 5
    assert all(title.startswith("esc-t, seed 3: the head answers ") for title in titles[3:]), (
        "it is one seed's, no mean"
    )
    assert panels.row_in_short("esc", {}) == "esc"


@pytest.mark.usefixtures("no_files")
def test_a_figure_that_fails_costs_no_result(one, tmp_path, monkeypatch):
    import hf_kd.bench.row_figures as panels

    def refuse(*arguments):
        raise ValueError("nothing to draw")

    monkeypatch.setattr(panels, "class_maps", refuse)
    experiment = one(
        methods=["esc"],
        measure={"knowledge_retention": False, "membership": False, "panels": ["esc"], "grad_cam": True},
    )
    store, _ = run(experiment, tmp_path)
    (record,) = store.records.values()
    assert record["status"] == "ok"
    assert record["panels"]["grad_cam"] == "ValueError: nothing to draw"
    assert record["panels"]["tsne"] == "tsne.png"
    assert "nothing to draw" in markdown(experiment, store)


def test_everything_is_written(one, tmp_path):
    pytest.importorskip("matplotlib")
    experiment = one(methods=["original", {"method": "esc", "k": 1}, {"method": "finetune", **QUICK}])
    store, _ = run(experiment, tmp_path)
    written = {path.relative_to(tmp_path).as_posix() for path in write_tables([experiment], store, tmp_path)}
    assert written >= {"tables.md", "bench.tex", "figures/bench/time.png", "figures/bench/weights_by_layer.png"}
    assert all((tmp_path / name).is_file() for name in written)


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("model", "preprocessor_config.json"),
        ("model", "pytorch_model.bin"),
        ("data", "metadata.csv"),
        ("data", "dataset_info.json"),
        ("data/train.parquet", "test.parquet"),
    ],
)
def test_whatever_decides_about_the_answers_makes_another_cell(one, place, tmp_path, where, name):
    """Contents of the same size, so that only reading them tells."""
    folder = tmp_path / "moved"
    for part in ("model", "data"):
        (folder / part).mkdir(parents=True)
    beside = folder / where if (folder / where).is_dir() else (folder / where).parent
    (folder / "data" / "train.parquet").write_bytes(b"rows")
    (folder / "model" / "README.md").write_text("a card is no part of a model")
    keys = []
    for content in (b"one", b"two", b"two"):
        (beside / name).write_bytes(content)
        asked = {where.split("/")[0]: str(folder / where)}
        experiment = one(**(asked if "model" in asked else {"dataset": asked["data"]}))
        keys.append(key_of(cell_settings(experiment, experiment.rows[0], 0)))
        (folder / "model" / "README.md").write_text(f"{content}: another card")
        if where.endswith(".parquet"):
            (beside / "svhn.parquet").write_bytes(content)  # another data set in the folder
    assert keys[0] != keys[1] == keys[2]


def test_where_a_retraining_starts_is_known_by_its_files(one, tmp_path):
    (tmp_path / "start").mkdir()
    keys = []
    for content in ("{}", "[]"):
        (tmp_path / "start" / "config.json").write_text(content)
        experiment = one(methods=[{"method": "retrain", "init": str(tmp_path / "start")}])
        keys.append(key_of(cell_settings(experiment, experiment.rows[0], 0)))
    assert len(set(keys)) == 2


def test_results_with_other_settings_stay_and_are_spoken_of(one, tmp_path):
    run(one(), tmp_path)
    changed = one(limit=20)
    text = markdown(changed, Store(tmp_path))
    assert "Not run yet: original (1)" in text
    assert (
        "has results with other settings, which do not belong here: original (another least of a class, limit)" in text
    )
    store, told = run(changed, tmp_path)
    assert [line for line in told if "a result with another least of a class, limit stays in" in line]
    assert len(store.records) == 2
    assert "other settings" not in markdown(changed, store)
    assert "other settings" not in markdown(one(), store)


def test_another_data_set_under_the_same_name_is_another_cell(one, place, tmp_path):
    """Results are found again when a folder moved, and not when it holds something else."""
    import shutil

    moved, changed = tmp_path / "a" / "data", tmp_path / "b" / "data"
    shutil.copytree(place / "data", moved)
    shutil.copytree(place / "data", changed)
    shutil.copyfile(place / "data" / "test.parquet", changed / "train.parquet")
    started_cells = [started(run(one(dataset={"name": str(folder), "label_column": "label"}), tmp_path / "out")[1])
                     for folder in (place / "data", moved, changed)]  # fmt: skip
    assert [len(cells) for cells in started_cells] == [1, 0, 1]


def test_data_behind_a_link_is_read_for_the_key_and_what_is_hidden_is_not(one, tmp_path):
    """Links are followed when images are read; hidden files are what systems and downloads leave."""
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.parquet").write_text(name)
    keys = []
    for target in ("a", "b", "b"):
        (tmp_path / "data" / "train").unlink(missing_ok=True)
        (tmp_path / "data" / "train").symlink_to(tmp_path / target)
        experiment = one(dataset=str(tmp_path / "data"))
        keys.append(key_of(cell_settings(experiment, experiment.rows[0], 0)))
        (tmp_path / "data" / ".DS_Store").write_text(str(keys))
        (tmp_path / "data" / "train" / ".cache").mkdir(exist_ok=True)
    assert keys[0] != keys[1] == keys[2]


@pytest.mark.parametrize("beside", ["", "below"])
def test_a_place_that_is_no_folder_is_refused_before_anything_is_opened(one, tmp_path, beside):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="Results cannot be written to .*taken"):
        run(one(model="not opened"), tmp_path / "taken" / beside)


def test_a_second_bench_in_the_same_folder_is_refused_and_the_first_goes_on(one, tmp_path):
    experiment = one(methods=["esc"], measure={"knowledge_retention": False, "membership": False})
    with only_bench_in(tmp_path), pytest.raises(ValueError, match="Another bench is writing"):
        run(experiment, tmp_path)
    assert not (tmp_path / "results.jsonl").exists()
    store, _ = run(experiment, tmp_path)
    assert [record["status"] for record in store.records.values()] == ["ok"]


def test_memory_of_a_method_is_what_it_took_above_what_was_held():
    _give_back()  # what other tests left, which would go while this one watches
    with PeakMemory(torch.device("cpu")) as memory:
        before = torch.zeros(30 << 18)  # 30 MiB, held all the time
        with memory.of_method():
            torch.zeros(50 << 18)
        torch.zeros(100 << 18)  # of no method
    found = memory.mib()
    if not found:
        pytest.skip("this system does not let the peak of a process be cleared")
    assert 45 <= found["method"] <= 60
    assert found["process_peak"] - found["process_before"] >= 125
    assert len(before)


def test_only_memory_of_the_device_that_is_computed_on_is_known(monkeypatch):
    """A GPU that is there and not used would stand in the table with 0, in the place of what the process took."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device=None: asked.append(device) or 0)
    found = {}
    for device in (torch.device("cpu"), torch.device("cuda", 1)):
        with PeakMemory(device) as memory, memory.of_method():
            pass
        found[device.type] = {name for name in memory.mib() if name.startswith("gpu")}
    assert found == {"cpu": set(), "cuda": {"gpu_peak", "gpu_method"}}
    assert set(asked) == {torch.device("cuda", 1)}


def test_mirrored_views_and_rounding_down_are_a_rows_own(one):
    rows = [{"method": "esc", "k": 1}, {"method": "esc", "k": 1, "collect_views": "mirrored"}]
    experiment = one(methods=rows)
    before, plain = making(experiment, experiment.rows[0])
    _, mirrored = making(experiment, experiment.rows[1])
    _, other = making(experiment, experiment.rows[1], seed=1)
    assert all(torch.equal(before[name], tensor) for name, tensor in mirrored.inner.state_dict().items())
    directions = [model.sites[0].eraser.directions for model in (plain, mirrored, other)]
    assert not torch.equal(directions[0], directions[1])
    assert not torch.equal(directions[1], directions[2]), "drawn by the seed"
    assert experiment.rows[1].varies

    dim = plain.taps[0].dim
    nearest, down = ({"method": "esc", "p": 190 / dim, **more} for more in ({}, {"k_rounding": "down"}))
    experiment = one(methods=[nearest, down])
    assert [making(experiment, row)[1].sites[0].eraser.rank_removed for row in experiment.rows] == [2, 1]
    experiment = one(methods=[{"method": "esc", "p": 50 / dim, "k_rounding": "down"}])
    with pytest.raises(ValueError, match="removes nothing"):
        making(experiment, experiment.rows[0])


@pytest.mark.parametrize(
    "row", [{"method": "finetune", "collect_views": "mirrored"}, {"method": "leace", "k_rounding": "down"},
            {"method": "esc", "k_rounding": "up"}]
)  # fmt: skip
def test_what_has_no_such_defect_refuses_it(one, row):
    experiment = one(methods=["original", row])
    assert experiment.rows[1].kind == "refused"
    assert next(key for key in row if key != "method") in experiment.rows[1].refused


def test_the_cost_of_a_method_over_a_bare_pass_stands_in_the_table(one, tmp_path):
    rows = ["original", {"method": "esc", "k": 1}]
    experiment = one(methods=rows, measure={"bare_pass": True})
    store, _ = run(experiment, tmp_path)
    took = by_row(store)["esc (k=1)", 0]["seconds"]
    assert took["bare pass"] > 0
    assert "bare pass" not in by_row(store)["original", 0]["seconds"]
    table = markdown(experiment, store)
    assert "| x bare pass |" in table
    assert f"| {(took['features'] + took['fit']) / took['bare pass']:.2f} |" in table
    assert "x bare pass" not in markdown(one(methods=rows), run(one(methods=rows), tmp_path / "other")[0])


def test_a_method_that_ended_before_it_was_done_is_named_below_the_tables(one, tmp_path):
    experiment = one(methods=["original", {"method": "finetune", "label": "too fast", **QUICK, "lr": 3e3, "epochs": 3}])
    store, _ = run(experiment, tmp_path)
    ended = markdown(experiment, store).split("**Ended before it was done**")[1].split("**")[0]
    assert re.search(r"- too fast, seed 0: the loss became \w+ in step \d+; ", ended)
