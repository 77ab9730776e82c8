"""A file is read as a whole before anything runs, and what it says wrongly is named."""

from __future__ import annotations

import re

import pytest
import yaml

from hf_kd.bench.config import experiments, read_config
from hf_kd.bench.store import cell_settings, key_of
from tests.test_project_files import ROOT

GOOD = {"model": "m", "dataset": "d", "protocol": "class", "methods": ["original", "esc"]}


def one(**changes):
    (found,) = experiments(GOOD | changes)
    return found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": "m"}, "unknown settings models"),
        ({"dataset": {"train": "train"}}, "needs a name"),
        ({"dataset": {"name": "d", "splits": 2}}, "It takes"),
        ({"name": "a/b"}, "becomes a file's"),
        ({"protocol": "classes"}, "Did you mean 'class'.*Choose class, random"),
        ({"protocol": {"kind": "class", "share": 0.1}}, "has no share"),
        ({"protocol": {"kind": "subclass", "forget": ["tabby"]}}, "needs fine_column"),
        ({"methods": "esc"}, "list of rows"),
        ({"methods": []}, "list of rows"),
        ({"methods": [3]}, "write a method's name"),
        ({"methods": [{"checkpoint": "x", "k": 1}]}, "takes label and reference, not k"),
        ({"methods": [{"checkpoint": "x", "seeds": [0, 1]}]}, "takes label and reference, not seeds"),
        ({"methods": ["esc", "unseen"], "measure": {"unseen": "d", "panels": ["unseen"]}}, "name no row.*It takes esc"),
        ({"methods": ["esc", {"method": "esc"}]}, "different labels"),
        ({"methods": [{"method": "esc-t", "seeds": [1, 1]}]}, "different whole numbers"),
        ({"seeds": []}, "different whole numbers"),
        ({"seeds": [[1]]}, "different whole numbers"),
        ({"methods": [{"checkpoint": ""}]}, "checkpoint='' .* a name or a path"),
        ({"methods": [{"checkpoint": None}]}, "checkpoint=None .* a name or a path"),
        ({"methods": [{"method": "retrain", "init": ""}]}, "init='' .* a name or a path"),
        ({"limit": 0}, "limit=0"),
        ({"retain_limit": "many"}, "retain_limit='many'"),
        ({"batch_size": 2.5}, "batch_size=2.5"),
        ({"mixed_precision": "fp8"}, "is unknown. Choose no, bf16, fp16"),
        ({"train_precision": "half"}, "train_precision='half'"),
        ({"methods": ["finetune"], "train_precision": "fp16"}, "train_precision='fp16' .* where weights are changed"),
        ({"methods": ["finetune"], "mixed_precision": "fp16"}, "mixed_precision='fp16' .* Give train_precision"),
        ({"measure": {"kr": True}}, "measure of"),
        ({"measure": {"attacks": ["guess"]}}, "Unknown attacks"),
        ({"measure": {"panels": ["esc-t"]}}, "name no row.*Did you mean 'esc'.*It takes original, esc"),
        ({"measure": {"grad_cam": True}}, "needs panels"),
        ({"experiments": [{"name": "a"}, {"name": "a"}]}, "different names"),
        ({"experiments": ["a"]}, "list of mappings"),
        ({"model": None}, "model=None .* a name or a path"),
        ({"model": ["m"]}, "a name or a path"),
        ({"name": ""}, "a name or a path"),
        ({"name": True}, "a name or a path"),
        ({"name": "a\nb"}, "becomes a file's"),
        ({"name": "a" * 101}, "becomes a file's"),
        ({"revision": 123}, "stands in quotes"),
        ({"dataset": {"name": "d", "label_mapping": ["cat"]}}, "label_mapping=.* a mapping"),
        ({"dataset": {"name": "d", True: 1}}, "It takes"),
        ({"protocol": {"kind": ["class"]}}, "Did you mean 'class'"),
        ({"protocol": {"kind": "class", 3: 1}}, "has no 3"),
        ({"protocol": {"kind": "random", "stratified": "no"}}, "stratified='no' .* true or false"),
        ({"protocol": {"kind": "random", "share": "0.1"}}, "share='0.1' .* a number"),
        ({"protocol": {"kind": "random", "seed": "a"}}, "seed='a' .* whole number"),
        ({"protocol": {"kind": "incremental", "joint": "no"}}, "joint='no' .* true or false"),
        ({"protocol": {"kind": "identities", "people": 0}}, "people=0 .* above 0"),
        ({"protocol": {"kind": "identities", "train_images": "ten"}}, "train_images='ten' .* above 0"),
        ({"measure": {"membership": "false"}}, "membership='false' .* true or false"),
        ({"measure": {"report": None}}, "report=None .* true or false"),
        ({"measure": {"attacks": [{"linear": 1}]}}, "Unknown attacks"),
        ({"measure": {"transfer": {"name": None}}}, "name=None"),
        ({"methods": [{"checkpoint": "x", "reference": "no"}]}, "reference='no' .* true or false"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(changes, said):
    with pytest.raises(ValueError, match=said):
        experiments(GOOD | changes)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("sgd", "Unknown method 'sgd'.*scrub"),
        ({"method": "esc", "kk": 1}, "no option kk"),
        ({"method": "esc", "k": 0}, "k"),
        ({"method": "original", "k": 1}, "takes a label alone"),
        ({"method": "original", "seeds": [0, 1], "reference": True}, "takes a label alone, not seeds, reference"),
        ({"method": "esc", "forget_limit": 0}, "forget_limit=0.*above 0"),
        ({"method": "esc", "collect_in": "training"}, "collect_in='training'.*eval or train"),
        ({"method": "neggrad", "collect_in": "train"}, "bn_mode"),
    ],
    ids=str,
)
def test_a_row_that_cannot_run_says_why_and_stops_no_other(row, said):
    bad, good = one(methods=[row, {"method": "esc", "label": "good"}]).rows
    assert bad.kind == "refused"
    assert re.search(said, bad.refused)
    assert good.refused is None
    with pytest.raises(ValueError, match=f"No row of 'bench' can run.*{said}"):
        one(methods=[row])


def test_an_error_names_the_line_and_shows_the_shape(tmp_path):
    lines = {"model": "model: m", "dataset": "dataset: d", "protocol": "protocol: class", "methods": "methods: [esc]"}
    for number, (key, wrong, shape) in enumerate([
        ("dataset", "dataset: {path: d}", "dataset: {name: FOLDER"),
        ("protocol", "protocol: classes", "protocol: {kind: class, forget: [deer]}"),
        ("methods", "methods: esc", "methods: [original, head-surgery, {method: esc, k: 1}"),
    ]):  # fmt: skip
        file = tmp_path / f"{number}.yaml"
        file.write_text("# a comment\n" + "\n".join((lines | {key: wrong}).values()))
        with pytest.raises(ValueError, match=f"line {list(lines).index(key) + 2}: ") as error:
            read_config(file)
        assert f"The shape that is wanted: {shape}" in str(error.value)
    file.write_text("\n".join(lines.values()) + "\nbatch_size: 0\n")
    with pytest.raises(ValueError, match="line 5: batch_size=0.*wanted: batch_size: 500"):
        read_config(file)
    file.write_text("\n".join(lines.values()) + "\nmodels: m\n")
    with pytest.raises(ValueError, match="line 5: .*unknown settings models"):
        read_config(file)


@pytest.mark.parametrize(
    ("added", "key", "lines"),
    [
        ("methods: [original]\n", "methods", (4, 5)),
        ("seeds: [0]\nmeasure: {report: true, report: false}\n", "report", (6, 6)),
        ("experiments:\n  - {name: a}\n  - name: b\n    name: c\n", "name", (7, 8)),
    ],
)
def test_what_stands_twice_is_refused(tmp_path, added, key, lines):
    """YAML takes the last and says nothing: rows that somebody wrote would not run."""
    file = tmp_path / "twice.yaml"
    file.write_text("model: m\ndataset: d\nprotocol: class\nmethods: [esc]\n" + added)
    with pytest.raises(ValueError, match=f"line {lines[1]}: {key} stands here again, after line {lines[0]}"):
        read_config(file)


def test_what_is_right_is_taken_as_it_was(tmp_path):
    """A date and a number are names, one label is a list of it, a split that is null is the only one there is."""
    file = tmp_path / "right.yaml"
    file.write_text(
        "model: m\ndataset: {name: 2024, train: null, test: null}\nprotocol: class\nmethods: [esc, unseen]\n"
        "measure: {unseen: {name: d, train: null, classes: 5}}\nexperiments: [{name: 2024-01-01}, {name: 1.5}]\n"
    )
    dated, numbered = read_config(file)
    assert (dated.name, numbered.name) == ("2024-01-01", "1.5")
    assert dated.dataset == {"name": "2024", "train": None, "test": None}
    assert dated.measures.unseen == {"name": "d", "train": None, "classes": [5]}
    assert one(model=tmp_path, dataset={"name": tmp_path}).model == str(tmp_path)


def test_an_alias_and_a_merge_stand_once(tmp_path):
    file = tmp_path / "alias.yaml"
    file.write_text(
        "model: m\ndataset: &d {name: d, train: a}\nprotocol: class\nmethods: &rows [esc, {method: esc, k: 1}]\n"
        "experiments:\n  - {name: a}\n  - {name: b, methods: *rows, dataset: {<<: *d, train: b}}\n"
    )
    first, second = read_config(file)
    assert (first.dataset["train"], second.dataset["train"]) == ("a", "b")
    assert [row.label for row in second.rows] == [row.label for row in first.rows]


def test_a_path_is_one_beside_the_file_or_below_the_home_folder(tmp_path, monkeypatch):
    """Models as well as data; what is neither may be on the Hub, and is refused when it is opened."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    for given in ("m", "~/m", str(tmp_path / "m")):
        (experiment,) = experiments(GOOD | {"model": given, "dataset": given}, tmp_path)
        assert (experiment.model, experiment.dataset["name"]) == (str(tmp_path / "m"),) * 2
    for given in ("user/m", "~/nope", "~nosuchuser/m", "a" * 300):
        (experiment,) = experiments(GOOD | {"model": given}, tmp_path)
        assert experiment.model == given


def test_a_checkpoint_without_a_label_is_called_as_the_file_calls_it(tmp_path):
    (tmp_path / "theirs").mkdir()
    (experiment,) = experiments(GOOD | {"methods": [{"checkpoint": "theirs"}]}, tmp_path)
    (row,) = experiment.rows
    assert (row.label, row.options["path"]) == ("theirs", str(tmp_path / "theirs"))


@pytest.mark.parametrize("missing", list(GOOD))
def test_what_is_missing_is_named(missing):
    with pytest.raises(ValueError, match=f"misses {missing}"):
        experiments({key: value for key, value in GOOD.items() if key != missing})


@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*/*.yaml")), ids=lambda file: file.stem)
def test_the_files_of_the_tree_are_accepted(file):
    experiments = read_config(file)
    assert all(experiment.rows for experiment in experiments)
    assert not [row.label for experiment in experiments for row in experiment.rows if row.refused]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="name a YAML file"):
        read_config(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- esc\n")
    with pytest.raises(ValueError, match="holds a list"):
        read_config(tmp_path / "list.yaml")
    (tmp_path / "torn.yaml").write_text("model: [m\n")
    (tmp_path / "latin.yaml").write_bytes("model: größe\n".encode("latin-1"))
    for name in ("torn", "latin"):
        with pytest.raises(ValueError, match=f"{name}.yaml is not YAML"):
            read_config(tmp_path / f"{name}.yaml")


def test_a_file_of_several_experiments(tmp_path):
    (tmp_path / "data").mkdir()
    text = yaml.safe_dump(
        GOOD | {"dataset": "data", "experiments": [{"name": "deer"}, {"name": "cat", "model": "other"}], "limit": 50}
    )
    (tmp_path / "two.yaml").write_text(text + "mixed_precision: no\n")
    deer, cat = read_config(tmp_path / "two.yaml", limit=20, seeds=[4])
    assert (deer.name, deer.model, cat.model) == ("deer", "m", "other")
    assert deer.dataset["name"] == str(tmp_path / "data"), "what lies beside the file is found from anywhere"
    assert (deer.limit, deer.mixed_precision) == (20, "no")
    assert [row.seeds for row in deer.rows] == [(0,), (4,)]


def test_seeds_of_the_command_overrule_those_of_single_rows_too():
    content = GOOD | {"methods": ["original", {"method": "esc-t", "seeds": [0, 1]}, "scrub"], "seeds": [2]}
    (asked,) = experiments(content, seeds=[7, 8])
    assert [row.seeds for row in asked.rows] == [(0,), (7, 8), (7, 8)]
    (of_the_file,) = experiments(content)
    assert [row.seeds for row in of_the_file.rows] == [(0,), (0, 1), (2,)]
    with pytest.raises(ValueError, match="different whole numbers"):
        experiments(GOOD | {"methods": [{"method": "esc-t", "seeds": []}]}, seeds=[7])


def test_where_a_retraining_starts_is_found_beside_the_file(tmp_path):
    (tmp_path / "start").mkdir()
    for init, found in (("start", str(tmp_path / "start")), ("user/start", "user/start")):
        (experiment,) = experiments(GOOD | {"methods": [{"method": "retrain", "init": init}]}, tmp_path)
        assert experiment.rows[0].options["init"] == found
        assert experiment.rows[0].label == f"retrain (init={init})"


def test_rows_run_with_as_many_seeds_as_can_differ():
    rows = one(
        methods=[
            "original",
            "esc",
            "esc-t",
            {"method": "esc", "forget_limit": 5},
            "scrub",
            {"method": "ssd", "seeds": [7]},
        ],
        seeds=[0, 1, 2],
    ).rows
    assert [len(row.seeds) for row in rows] == [1, 1, 3, 3, 3, 1]


def test_ablations_are_rows():
    """p, k, tau, the parts of ESC-T, centred or not, N_f, train-mode features: each is a row, and another cell."""
    ablations = [
        *({"method": "esc", "p": p} for p in (1.7, 5, 10, 50)),
        *({"method": "esc", "k": k} for k in (1, 2)),
        *({"method": "esc-t", "threshold": tau} for tau in (0.5, 0.6, 0.8)),
        *({"method": "esc-t", **part} for part in ({"loss": "ce"}, {"clip": False}, {"threshold": None})),
        {"method": "esc", "k": 1, "center": True},
        {"method": "esc", "k": 1, "forget_limit": 50},
        {"method": "esc", "k": 1, "collect_in": "train"},
    ]
    experiment = one(methods=ablations)
    labels = [row.label for row in experiment.rows]
    assert "esc (k=1, forget_limit=50)" in labels
    assert "esc (k=1, collect_in=train)" in labels
    keys = {key_of(cell_settings(experiment, row, 0)) for row in experiment.rows}
    assert len(keys) == len(ablations)


def test_settings_that_are_not_used_leave_keys_as_they_were():
    plain = one(methods=["esc", "finetune"])
    esc, finetune = (cell_settings(plain, row, 0) for row in plain.rows)
    assert not {"forget_limit", "collect_in", "train_precision", "batch_size"} & (set(esc) | set(finetune))
    trained = one(methods=["esc", "finetune"], train_precision="bf16")
    assert cell_settings(trained, trained.rows[0], 0) == esc, "an eraser trains no weights"
    assert cell_settings(trained, trained.rows[1], 0) == finetune | {"train_precision": "bf16"}
    same = one(methods=["esc", "finetune"], train_precision="bf16", mixed_precision="bf16")
    assert "train_precision" not in cell_settings(same, same.rows[1], 0)


def test_a_limit_draws_otherwise_than_it_did_and_leaves_results_of_the_former_draw_alone():
    everything, some = (one(methods=["esc"], **changes) for changes in ({}, {"limit": 500}))
    assert "least of a class" not in cell_settings(everything, everything.rows[0], 0)
    assert cell_settings(some, some.rows[0], 0)["least of a class"] == 2
    few = one(methods=["esc"], measure={"transfer": {"name": "other", "limit": 500}})
    assert cell_settings(few, few.rows[0], 0)["measures"]["transfer"]["least of a class"] == 2


def test_the_label_is_no_part_of_the_key_and_the_whole_name_on_the_hub_is():
    first, second = one(methods=[{"method": "esc", "label": "ESC"}]), one(methods=["esc"])
    assert cell_settings(first, first.rows[0], 0) == cell_settings(second, second.rows[0], 0)
    keys = {key_of(cell_settings(e, e.rows[0], 0)) for e in (one(dataset="a/cifar"), one(dataset="b/cifar"))}
    assert len(keys) == 2


@pytest.mark.parametrize(
    "text", ["model: &m {x: *m}", "model: m\nexperiments: &e [{methods: *e}]", f"model: {'[' * 2000}{']' * 2000}"]
)
def test_a_file_without_an_end_is_refused(tmp_path, text):
    (path := tmp_path / "bench.yaml").write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_config(path)
