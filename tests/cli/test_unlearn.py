"""The commands that change weights, run as a user runs them: what they print, what they leave, how they refuse."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil

import pytest
import torch
from datasets import Dataset, Value, load_dataset
from rich.console import Console
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTForImageClassification

from hf_kd import ErasedModel, ReadOptions, unlearn, unlearning_methods
from hf_kd.cli._inputs import by_labels, without_classes
from hf_kd.cli._tables import show_measured
from hf_kd.methods.attribute_texts import typed_texts
from hf_kd.methods.unlearning import cut_scan
from tests.cli.runner import hf_kd
from tests.helpers.small import NAMES, make_dataset


@pytest.mark.usefixtures("few_draws", "no_figures")
def test_unlearn_then_audit_then_card(place, tmp_path):
    out, report = tmp_path / "out", tmp_path / "report"
    arguments = ["--dataset", place / "data", "--forget-labels", "cat", "--output", out]
    options = ["--method", "finetune", "--option", "epochs=2", "--option", "batch_size=16", "--option", "lr=0.05"]
    done = hf_kd("unlearn", place / "model", *arguments, *options, "--device", "cpu")
    assert "finetune was asked to forget cat" in " ".join(done.stdout.split())
    assert "gradient steps" in done.stdout.lower()
    assert "last_loss" not in done.stdout, "words, not keys"
    first = AutoModelForImageClassification.from_pretrained(place / "model")
    changed = AutoModelForImageClassification.from_pretrained(out)
    assert type(changed) is ViTForImageClassification
    assert not torch.equal(changed.classifier.weight, first.classifier.weight)
    assert AutoImageProcessor.from_pretrained(out, use_fast=False).size == {"height": 16, "width": 16}

    assert "missing" not in done.stdout, "the audit has all it needs"
    words = shlex.split(done.stdout.strip().splitlines()[-1])  # what it says to run next
    assert words[:2] == ["hf-kd", "audit"]
    hf_kd(*words[1:], "--attacks", "linear", "--output", report)
    content = json.loads((report / "report.json").read_text())
    assert content["forget_labels"] == [2]
    assert "weights" in {section["key"] for section in content["sections"]}
    assert "Everything matches" in hf_kd("verify", out).stdout, "a receipt lies beside it"
    hf_kd("card", out, "--report", report / "report.json")
    text = (out / "README.md").read_text()
    assert "by changing its weights (`finetune`)" in text
    assert "take the eraser away** and has" not in text
    assert "Everything matches" in hf_kd("verify", out, "--base", place / "model").stdout
    assert "Its weights were changed by finetune, to forget cat" in hf_kd("inspect", out).stdout


def test_json_is_one_object_and_the_model_that_of_python(place, tmp_path):
    arguments = [
        "--dataset",
        place / "data",
        "--forget-labels",
        "cat",
        "--forget-labels",
        "4",
        "--method",
        "random-label",
    ]
    settings = ["--option", "epochs=2", "--option", "lr=0.05", "--option", "seed=3"]
    done = hf_kd("unlearn", place / "model", *arguments, *settings, "--output", tmp_path / "out", "--json")
    record = json.loads(done.stdout)
    assert (record["method"], record["classes"], record["n_forget"]) == ("random-label", [2, 4], 24)
    said = [record[name] for name in ("model", "output", "class_names")]  # as erase says it
    assert said == [str(place / "model"), str(tmp_path / "out"), {"2": NAMES[2], "4": NAMES[4]}]
    assert record["settings"]["seed"] == 3
    from hf_kd import unlearn

    data = load_dataset("parquet", data_files=str(place / "data" / "train.parquet"), split="train")
    forget = data.filter(lambda label: label in (2, 4), input_columns="label")
    model = ErasedModel.from_pretrained(place / "model")
    alone = unlearn(model, forget, "random-label", epochs=2, lr=0.05, seed=3, progress=False).state_dict()
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[name], alone[name]) for name in alone)


def test_retain_limit_bounds_what_is_read_of_the_others(place, tmp_path):
    arguments = [
        "--dataset",
        place / "data",
        "--forget-labels",
        "cat",
        "--method",
        "finetune",
        "--option",
        "epochs=1",
        "--json",
    ]
    measured = []
    for limit in ([], ["--retain-limit", "10"]):
        done = hf_kd("unlearn", place / "model", *arguments, *limit, "--output", tmp_path / f"out{len(limit)}")
        measured.append(json.loads(done.stdout)["measured"][0]["n_retain"])
    assert measured == [48, 10]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--forget-labels", "cta"], "Did you mean 'cat'"),
        (["--forget-labels", "cat", "--method", "forget-me"], "Unknown method 'forget-me'"),
        (["--forget-labels", "cat", "--method", "esc"], "hf-kd erase"),
        (["--forget-labels", "cat", "--option", "strength=3"], "has no option --strength"),
        (["--forget-labels", "cat", "--option", "epochs"], "NAME=VALUE"),
        (["--forget-labels", "cat", "--option", "epochs=0"], "--epochs 0"),
        (["--forget-labels", "cat", "--split", "validation"], "validation"),
        (["--forget-labels", "fox", "--dataset", "{place}/other"], "do not match the model's"),
        (["--forget-labels", "cat", "--label-column", "image"], "image"),
        (["--forget-labels", "cat", "--import", "{place}/nowhere.py"], "there is no such file"),
        (["--forget-labels", "cat", "--import", "{place}/model/config.json"], "give one that ends in .py"),
        (["--forget-labels", "cat", "--mixed-precision", "fp8"], "fp8"),
    ],
)
def test_refusals_leave_nothing(place, tmp_path, arguments, message):
    given = [argument.format(place=place) for argument in arguments]
    given += [] if "--dataset" in given else ["--dataset", str(place / "data")]
    done = hf_kd("unlearn", place / "model", *given, "--output", tmp_path / "out", code=1)
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_block_that_is_not_there_is_refused_before_an_image_is_read(place, tmp_path):
    whole = make_dataset([0, 2] * 10)
    unreadable = [{"bytes": b"no image", "path": None}] * len(whole)
    Dataset.from_dict({"image": unreadable, "label": whole["label"]}, features=whole.features).to_parquet(
        tmp_path / "train.parquet"
    )
    given = ["--dataset", tmp_path / "train.parquet", "--forget-labels", "cat", "--test-split", "train"]
    regrow = ["--method", "regrow", "--keep", "nowhere"]
    done = hf_kd("unlearn", place / "model", *given, *regrow, "--output", tmp_path / "out", code=1)
    assert "nowhere is no block of this" in " ".join(done.stderr.split())


def test_images_without_labels_are_refused(place, tmp_path):
    make_dataset([0, 1]).remove_columns("label").to_parquet(tmp_path / "train.parquet")
    arguments = ["--dataset", tmp_path / "train.parquet", "--forget-labels", "cat", "--output", tmp_path / "out"]
    assert "--label-column" in hf_kd("unlearn", place / "model", *arguments, code=1).stderr
    training = ["--dataset", tmp_path / "train.parquet", "--recipe", "vit-pretrained", "--output", tmp_path / "out"]
    assert "--label-column" in hf_kd("train-original", place / "model", *training, code=1).stderr
    assert "Missing option" in hf_kd("unlearn", place / "model", "--dataset", place / "data", code=2).stderr


def test_accuracy_of_the_head_before_and_after(place, tmp_path):
    arguments = [
        "--dataset",
        place / "data",
        "--forget-labels",
        "dog",
        "--test-split",
        "test",
        "--output",
        tmp_path / "out",
    ]
    record = json.loads(hf_kd("unlearn", place / "model", *arguments, "--method", "head-surgery", "--json").stdout)
    accuracy = record["accuracy"]
    assert accuracy["classes"] == [3]
    assert accuracy["erased"]["forget"] == 0, "the changed model's answers, not the original's"
    assert accuracy["original"]["forget"] > 0, "this head answers dog; of another class the test would say nothing"
    text = hf_kd("unlearn", place / "model", *arguments[:-1], tmp_path / "again", "--method", "head-surgery").stdout
    assert "before its weights were changed" in " ".join(text.split())
    arguments = [*arguments[:2], "--forget-labels", "cat", "--test-split", "test", "--output", tmp_path / "both"]
    second = hf_kd("unlearn", tmp_path / "out", *arguments, "--method", "head-surgery", "--json").stdout
    assert json.loads(second)["accuracy"]["classes"] == [2, 3], "what was forgotten before is none of the others"


@pytest.mark.usefixtures("few_draws", "no_figures")
def test_a_report_without_the_original_says_that_it_cannot_tell(place, tmp_path):
    arguments = ["--dataset", place / "data", "--forget-labels", "cat", "--output", tmp_path / "out"]
    hf_kd("unlearn", place / "model", *arguments, "--method", "head-surgery")
    audit = ["audit", tmp_path / "out", "--dataset", place / "data", "--attacks", "linear"]
    assert "cannot tell what was forgotten" in " ".join(hf_kd(*audit).stdout.split())
    told = " ".join(hf_kd(*audit, "--original-model", place / "model").stdout.split())
    assert "cannot tell what was forgotten" not in told
    assert "other weights" not in told
    told = " ".join(hf_kd(*audit, "--original", tmp_path / "out", "--output", tmp_path / "report").stdout.split())
    assert "Warning: The model given as the original has other weights" in told
    assert "given as the original has other weights" in (tmp_path / "report" / "report.md").read_text()


def test_regrow_goes_on_where_it_stood_and_takes_labels_from_the_model(place, tmp_path):
    arguments = ["--dataset", place / "data", "--forget-labels", "cat", "--method", "regrow", "--epochs", "2", "--json"]
    more = ["--labels", "teacher", "--keep", "vit.layers.0", "--checkpoint", tmp_path / "state", "--batch-size", "16"]
    first, again = (
        json.loads(hf_kd("unlearn", place / "model", *arguments, *more, "--output", tmp_path / name).stdout)
        for name in ("first", "again")
    )
    assert (first["settings"]["labels"], first["settings"]["keep"]) == ("teacher", "vit.layers.0")
    assert (tmp_path / "state").is_dir()
    assert again["measured"][0]["retained_accuracy"] == first["measured"][0]["retained_accuracy"]


@pytest.mark.parametrize("labels", ["data", "teacher"])
def test_retained_images_of_another_data_set_that_have_a_label_to_forget_are_left_out(place, tmp_path, labels):
    """Whatever their labels are needed for: the network is not to be trained on images of the class."""
    (tmp_path / "others").mkdir()
    make_dataset([0, 1, 2, 3, 4] * 6, seed=8).to_parquet(tmp_path / "others" / "train.parquet")
    arguments = ["--dataset", place / "data", "--forget-labels", "cat", "--method", "regrow", "--epochs", "1"]
    more = ["--retain", tmp_path / "others", "--keep", "vit.layers.0", "--labels", labels, "--output", tmp_path / "out"]
    done = hf_kd("unlearn", place / "model", *arguments, *(more if labels == "teacher" else [*more[:4], *more[6:]]))
    assert "6 retained images had a label to forget" in " ".join(done.stdout.split())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["hf_kd_unlearned"][-1]["measured"][0]["n_retain"] == 24


CALLED = {
    "synonyms": (["ape", "bee", "cat, Felis catus", "dog", "elk"], {}),
    "underscores": (["ape", "bee", "CAT_", "dog", "elk"], {}),
    "among others": (["fox", "gnu", "felis catus, cat", "hen", "ibex"], {}),
    "by a mapping": (["ape", "bee", "katze", "dog", "elk"], {"label_mapping": {"katze": "cat"}}),
    "by names given": (None, {"labels": ["elk", "dog", "cat", "bee", "ape"]}),
    "by ids of the model": (None, {}),
}


@pytest.mark.parametrize("kind", CALLED)
def test_a_label_to_forget_is_known_however_the_retained_data_set_calls_it(place, kind):
    names, reads = CALLED[kind]
    given = make_dataset([0, 1, 2, 3, 4] * 2, **({} if names is None else {"names": names}))
    if names is None:
        given = given.cast_column("label", Value("int64"))
    reading, model = ReadOptions(**reads), ErasedModel.from_pretrained(place / "model")
    data = given if kind == "by a mapping" else make_dataset([0, 1, 2, 3, 4])
    parts = by_labels(data, ["katze" if kind == "by a mapping" else "cat"], reading)
    left, count = without_classes(given, parts.in_model(model, reading), parts, model, reading)
    assert (left["label"][:], count) == ([0, 1, 3, 4] * 2, 2)


def test_a_label_mapping_names_labels_of_the_split_the_retained_images_and_the_test_images(place, tmp_path):
    """Each data set has its own names, and there is one mapping."""
    names = ["ape", "bee", "katze", "hund", "elk"]
    for folder, split, labels, of in (
        ("data", "train", [0, 1, 2, 3, 4] * 6, names),
        ("data", "test", [0, 1, 2] * 4, names[:3]),
        ("others", "train", [0, 1, 2, 3, 4] * 3, ["ape", "abeille", "katze", "chien", "elk"]),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        make_dataset(labels, seed=8, names=of).to_parquet(tmp_path / folder / f"{split}.parquet")
    words = {"katze": "cat", "hund": "dog", "chien": "dog", "abeille": "bee"}
    given = [word for pair in words.items() for word in ("--label-mapping", "=".join(pair))]
    arguments = ["--dataset", tmp_path / "data", "--forget-labels", "katze", "--test-split", "test", *given]
    more = ["--method", "finetune", "--option", "epochs=1", "--allow-unrecognised"]
    retain = ["--retain", tmp_path / "others"]
    done = hf_kd("unlearn", place / "model", *arguments, *more, *retain, "--output", tmp_path / "out", "--json")
    record = json.loads(done.stdout)
    assert record["n_retain"] == 12
    assert record["classes"] == [2]
    assert "katze=cat" in record["next"]
    assert "chien" not in record["next"], "a label that the audited images do not have"
    del given[-2:]
    audit = ["--dataset", tmp_path / "data", "--attacks", "linear", *given[:4], "--json"]
    hf_kd("audit", tmp_path / "out", *audit)
    wrong = ["--label-mapping", "cheval=dog", *retain]
    refused = hf_kd("unlearn", place / "model", *arguments, *more, *wrong, "--output", tmp_path / "two", code=1)
    assert "No label is called 'cheval'" in refused.stderr, "what none has"
    hf_kd("erase", place / "model", *arguments[:-4], "--output", tmp_path / "three", "--allow-unrecognised")


def test_retained_images_of_another_data_set_need_no_labels(place, tmp_path):
    (tmp_path / "others").mkdir()
    make_dataset([0, 1, 3, 4] * 6, seed=8).remove_columns("label").to_parquet(tmp_path / "others" / "train.parquet")
    arguments = ["--dataset", place / "data", "--forget-labels", "cat", "--method", "regrow", "--epochs", "1", "--json"]
    more = ["--retain", tmp_path / "others", "--keep", "vit.layers.0"]
    teacher = ["--labels", "teacher", "--output", tmp_path / "out"]
    record = json.loads(hf_kd("unlearn", place / "model", *arguments, *more, *teacher).stdout)
    assert record["measured"][0]["n_retain"] == 24
    refused = hf_kd("unlearn", place / "model", *arguments, *more, "--output", tmp_path / "other", code=1)
    assert "--labels teacher" in " ".join(refused.stderr.split()), "the way out"


@pytest.mark.parametrize("method", ["scrub", "regrow"])
def test_a_data_set_of_the_forgotten_label_alone_is_told_how_to_name_images_that_stay(place, tmp_path, method):
    make_dataset([2] * 12).to_parquet(tmp_path / "train.parquet")
    arguments = ["--dataset", tmp_path, "--forget-labels", "cat", "--method", method, "--output", tmp_path / "out"]
    told = " ".join(hf_kd("unlearn", place / "model", *arguments, code=1).stderr.split())
    assert "none were given: pass labelled images" in told
    assert "--retain DATASET" in told
    assert "--forget-labels" not in told, "which was given"


@pytest.mark.parametrize("command", ["unlearn", "erase", "audit"])
def test_a_label_without_an_image_is_named_also_beside_one_that_has_some(place, tmp_path, command):
    make_dataset([0, 2] * 6).to_parquet(tmp_path / "train.parquet")
    arguments = ["--dataset", tmp_path, "--forget-labels", "cat", "--forget-labels", "dog"]
    arguments += ["--test-split", "train"] if command == "audit" else []
    told = hf_kd(command, place / "model", *arguments, "--output", tmp_path / "out", code=1).stderr
    assert "No image of the split has the label 'dog'." in " ".join(told.split())


@pytest.mark.parametrize("others", [[], ["--retain"]])
def test_a_second_request_does_not_train_on_what_the_first_was_to_forget(place, tmp_path, caplog, others):
    arguments = ["--dataset", place / "data", "--forget-labels"]
    hf_kd("unlearn", place / "model", *arguments, "cat", "--method", "head-surgery", "--output", tmp_path / "one")
    more = ["--method", "finetune", "--option", "epochs=1", "--output", tmp_path / "two"]
    others = [*others, place / "data"] if others else []
    told = " ".join(hf_kd("unlearn", tmp_path / "one", *arguments, "dog", *more, *others).stdout.split())
    left_out = "12 retained images are of classes that an earlier request was to forget, and were left out."
    assert caplog.messages.count(left_out) == 1
    assert ("12 retained images had a label to forget, and were left out." in told) == bool(others)
    record = json.loads((tmp_path / "two" / "config.json").read_text())["hf_kd_unlearned"][-1]
    assert record["n_retain"] == 36
    assert record["warnings"].count(left_out) == 1
    for limit in ("--retain-limit", "--limit"):
        drawn = [*more[:4], limit, "30", *others, "--output", tmp_path / limit]
        hf_kd("unlearn", tmp_path / "one", *arguments, "dog", *drawn)
        record = json.loads((tmp_path / limit / "config.json").read_text())["hf_kd_unlearned"][-1]
        assert (record["n_retain"], record["sampled"]["retain"]["of"]) == (30, 36), "drawn of those that stay"
    rest = [word for name in ("bee", "elk", "ape") for word in ("--forget-labels", name)]
    output = ["--output", tmp_path / "three"]
    done = hf_kd("unlearn", tmp_path / "two", *arguments, "dog", *rest, *more[:4], *others, *output, code=1)
    told = " ".join(done.stderr.split())
    assert "No retained image is left: " in told
    assert "12 retained images are of classes that an earlier request was to forget" in told
    assert "none were given" not in told


@pytest.mark.parametrize(
    ("command", "arguments", "told"),
    [
        (
            "unlearn",
            ["--forget-labels", "cat", "--limit-test", "5"],
            "--limit-test 5 says how many images of --test-split",
        ),
        ("unlearn", ["--forget-labels", "cat", "--method", "neggrad", "--retain-limit", "5"], "neggrad reads none"),
        (
            "unlearn",
            ["--forget-labels", "cat", "--method", "neggrad", "--retain", "{place}/data"],
            "neggrad reads none",
        ),
        (
            "erase",
            ["--forget-labels", "cat", "--limit-test", "5"],
            "--limit-test 5 says how many images of --test-split",
        ),
        ("verify", ["--retain-limit", "5"], "name the forgotten ones with --forget-labels"),
        ("train-original", ["--recipe", "vit-pretrained", "--limit-test", "5"], "--limit-test 5 says how many"),
    ],
)
def test_options_that_nothing_would_read_are_refused(place, tmp_path, command, arguments, told):
    given = [word.format(place=place) for word in arguments] + ["--dataset", str(place / "data")]
    given += [] if command == "verify" else ["--output", str(tmp_path / "out")]
    done = hf_kd(command, place / "model", *given, code=1)
    assert told in " ".join(done.stderr.split())
    assert not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize("command", ["verify", "export"])
@pytest.mark.parametrize("option", ["--forget-labels", "--split", "--label-column"])
def test_what_is_said_of_a_data_set_needs_one(place, command, option):
    done = hf_kd(command, place / "model", option, "cat", code=1)
    assert f"{option} cat says something of --dataset, and no data set is given" in " ".join(done.stderr.split())


def test_a_label_given_as_the_retained_data_set_and_the_other_way_round_are_told_apart(place, tmp_path):
    arguments = ["--dataset", place / "data", "--forget-labels", "cat", "--output", tmp_path / "out"]
    refused = " ".join(hf_kd("unlearn", place / "model", *arguments, "--retain", "dog", code=1).stderr.split())
    assert "--retain names a data set" in refused
    auto = ["--method", "regrow", "--keep", "auto", "--retain", place / "data"]
    refused = " ".join(hf_kd("unlearn", place / "model", *arguments, *auto, code=1).stderr.split())
    assert "--keep 0.33" in refused, "a probe tells where images come from"
    refused = hf_kd("audit", place / "model", *arguments[:4], "--retain", place / "other", code=2).stderr
    assert "--retain-labels" in refused


def test_a_network_that_never_saw_the_class_says_where_to_cut(place, tmp_path, monkeypatch):
    monkeypatch.setattr(cut_scan, "FEWEST", 20)
    (tmp_path / "data").mkdir()
    make_dataset([0, 1, 2, 3, 4] * 24).to_parquet(tmp_path / "data" / "train.parquet")
    arguments = ["--dataset", tmp_path / "data", "--forget-labels", "cat", "--output", tmp_path / "out"]
    reads = ["--method", "regrow", "--keep", "auto", "--epochs", "1", "--reference-model"]
    record = json.loads(hf_kd("unlearn", place / "model", *arguments, *reads, place / "model", "--json").stdout)
    assert any("do not part" in text for text in record["warnings"]), "a network does not differ from itself"
    done = hf_kd("unlearn", place / "model", *arguments, *reads, tmp_path / "nowhere", code=1)
    assert "nowhere" in done.stderr.replace("\n", "")
    arguments = [*arguments[:-1], tmp_path / "again", "--method", "regrow", "--reference-model", place / "model"]
    done = hf_kd("unlearn", place / "model", *arguments, code=1)
    assert "--reference-model says where to cut" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("limits", "sampled"),
    [
        ({"--limit": 5}, {"forget": (5, 12), "retain": (5, 48)}),
        ({"--limit": 5, "--retain-limit": 20}, {"forget": (5, 12), "retain": (20, 48)}),
        ({"--limit": 20, "--retain-limit": 7}, {"retain": (7, 48)}),
        ({"--limit": 5, "--retain-limit": 100}, {"forget": (5, 12)}),
        ({"--retain-limit": 20}, {"retain": (20, 48)}),
    ],
)
def test_of_two_limits_that_of_the_retained_images_is_theirs_and_records_say_of_how_many(
    place, tmp_path, limits, sampled
):
    given = [str(part) for pair in limits.items() for part in pair]
    arguments = ["--dataset", place / "data", "--forget-labels", "cat", "--method", "finetune", "--option", "epochs=1"]
    done = hf_kd("unlearn", place / "model", *arguments, *given, "--json", "--output", tmp_path / "out")
    record = json.loads(done.stdout)
    assert {name: (part["drawn"], part["of"]) for name, part in record["sampled"].items()} == sampled
    assert record["measured"][0]["n_retain"] == sampled.get("retain", (48,))[0]

    typed = shlex.split(json.loads((tmp_path / "out" / "erasures.json").read_text())["commands"][0])[3:]
    places = {"DATASET": place / "data", "LABEL": "cat", "changed": tmp_path / "again"}
    again = json.loads(hf_kd("unlearn", place / "model", *(places.get(word, word) for word in typed), "--json").stdout)
    for told in ("sampled", "n_forget", "n_retain", "weights_after"):
        assert again.get(told) == record.get(told), typed
    assert ("--limit" in typed) == ("seed" in record["sampled"].get("forget", {}))
    assert ("--retain-limit" in typed) == ("seed" not in record["sampled"].get("retain", {}))


TO_TEST = {
    "no image of the class": [0, 1, 3, 4] * 3,
    "only images of the class": [2] * 6,
    "images without a label": [0, 1, 2, 3, -1] * 3,
}


@pytest.mark.parametrize("kind", TO_TEST)
@pytest.mark.parametrize("command", ["unlearn", "erase"])
def test_a_split_that_cannot_be_measured_is_refused_before_the_work(place, tmp_path, monkeypatch, command, kind):
    labels = TO_TEST[kind]
    shutil.copytree(place / "data", tmp_path / "data")
    images = make_dataset([max(label, 0) for label in labels]).remove_columns("label")
    data = images.add_column("label", labels).cast_column("label", make_dataset([0]).features["label"])
    data.to_parquet(tmp_path / "data" / "test.parquet")
    worker = {"unlearn": "hf_kd.model.unlearn.unlearn", "erase": "hf_kd.model.erased_model.ErasedModel.erase"}[command]
    monkeypatch.setattr(worker, lambda *given, **named: pytest.fail("the work began"))
    arguments = ["--dataset", tmp_path / "data", "--forget-labels", "cat", "--test-split", "test"]
    refused = hf_kd(command, place / "model", *arguments, "--output", tmp_path / "out", code=1).stderr
    assert "--test-split test: " in " ".join(refused.split())


def test_what_cannot_be_measured_afterwards_costs_no_model(place, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_kd.metrics.scores.forget_retain_accuracy", fails_the_second_time())
    arguments = ["--dataset", place / "data", "--forget-labels", "cat", "--method", "head-surgery"]
    arguments += ["--test-split", "test", "--output", tmp_path / "out"]
    refused = " ".join(hf_kd("unlearn", place / "model", *arguments, code=1).stderr.split())
    assert "answers are not finite" in refused
    assert "The model is saved in" in refused
    assert "Everything matches" in hf_kd("verify", tmp_path / "out").stdout


def fails_the_second_time():
    from hf_kd.errors import InvalidValueError
    from hf_kd.metrics.scores import forget_retain_accuracy

    calls = []

    def measure(*given, **named):
        calls.append(given)
        if len(calls) == 2:
            raise InvalidValueError("The answers are not finite.")
        return forget_retain_accuracy(*given, **named)

    return measure


def test_what_was_unlearned_in_python_gets_its_receipt_by_card(place, tmp_path):
    """As docs/what_to_tell.md says; what `save_pretrained` of transformers leaves is a model and nothing more."""
    original = ErasedModel.from_pretrained(place / "model")
    unlearn(original, make_dataset([2] * 8), "head-surgery", progress=False).save_pretrained(tmp_path)
    original.processor.save_pretrained(tmp_path)
    assert not (tmp_path / "erasures.json").exists()
    assert "`hf-kd card` writes one" in " ".join(hf_kd("verify", tmp_path, code=1).stderr.split())
    hf_kd("card", tmp_path)
    assert "matches the receipt" in " ".join(hf_kd("verify", tmp_path).stdout.split())


def test_what_was_not_counted_says_why_and_words_hold_for_every_method(place, tmp_path):
    """A module that is no counted block, as a stage, is named, and no row says that a number is None."""
    arguments = ["--dataset", place / "data", "--forget-labels", "cat", "--output", tmp_path / "out"]
    more = ["--method", "regrow", "--keep", "vit.embeddings", "--epochs", "1"]
    told = " ".join(re.sub("│", " ", hf_kd("unlearn", place / "model", *arguments, *more).stdout).split())
    assert "None" not in told
    assert "vit.embeddings" in told
    assert "is not counted as" in told, "between columns"
    for name, method in unlearning_methods().items():
        shown = Console(width=400, record=True, file=io.StringIO())
        show_measured(shown, dict.fromkeys(typed_texts(method.measures)), method.measures)
        text = shown.export_text()
        assert not re.search(r"`|None|_", text), f"{name}: words, not keys"


def test_blocks_are_called_by_their_names_in_a_table_of_what_was_measured():
    scan = [
        {"block": "none", "above": {"mobilenet_v2.layer.3": [71.5, 0.7]}, "retained": 80.0},
        {"block": "mobilenet_v2.layer.3", "blocks_kept": 4, "above": {}, "excess": 1.0},
    ]
    shown = Console(width=400, record=True, file=io.StringIO())
    show_measured(shown, {"scan": scan}, unlearning_methods()["regrow"].measures)
    told = shown.export_text()
    assert "block none, above mobilenet_v2.layer.3 71.5, 0.7, retained 80" in told
    assert "block mobilenet_v2.layer.3, blocks kept 4, excess 1" in told
