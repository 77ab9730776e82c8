"""`hf-kd erase`, run as a user runs it: what it prints, what it leaves behind, how it refuses."""

from __future__ import annotations

import json
import shlex
import shutil

import pytest
import torch
from datasets import DatasetDict, Value
from transformers import AutoModelForImageClassification

from hf_kd import ErasedModel
from hf_kd.data.draw import Limited
from hf_kd.data.load import filter_by_labels, load_source
from hf_kd.model.verify import verify
from tests.cli.runner import hf_kd
from tests.helpers.small import make_dataset
from tests.helpers.taught import taught


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint and the same images as parquet files, saved data set and image folder."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    from tests.helpers.small import labelled, randomise

    folder = tmp_path_factory.mktemp("cli")
    config = labelled(
        ViTConfig,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
    )
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    model = randomise(ViTForImageClassification(config))
    for name in ("model", "taught"):
        (model if name == "model" else taught(model, processor)).save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    train, test = make_dataset([0, 1, 2, 3, 4] * 12), make_dataset([0, 1, 2, 3, 4] * 4, seed=9)
    (folder / "parquet").mkdir()
    train.to_parquet(folder / "parquet" / "train.parquet")
    test.to_parquet(folder / "parquet" / "test.parquet")
    DatasetDict(train=train, test=test).save_to_disk(folder / "saved")
    for i, row in enumerate(train):
        name = train.features["label"].int2str(row["label"])
        (folder / "images" / "train" / name).mkdir(parents=True, exist_ok=True)
        row["image"].save(folder / "images" / "train" / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("source", ["parquet", "saved", "images"])
def test_every_local_source_gives_the_same_model(place, tmp_path, source):
    out = tmp_path / "out"
    arguments = ["--dataset", place / source, "--forget-labels", "cat", "--k", "2", "--output", out, "--json"]
    result = json.loads(hf_kd("erase", place / "model", *arguments).stdout)
    assert result["erasure"]["n_forget"] == 12
    assert result["erasure"]["classes"] == [2]
    erased = ErasedModel.from_pretrained(out)
    reference = ErasedModel.from_pretrained(place / "model")
    reference.erase(make_dataset([0, 1, 2, 3, 4] * 12).filter(lambda row: row["label"] == 2), k=2, progress=False)
    a, b = (m.sites[0].eraser.directions for m in (erased, reference))
    assert torch.allclose(a @ a.T, b @ b.T, atol=1e-5)


def test_accuracy_before_and_after_and_several_labels(place, tmp_path):
    arguments = [
        "--dataset",
        place / "parquet",
        "--forget-labels",
        "cat",
        "--forget-labels",
        "0",
        "--method",
        "esc-t",
        "--epochs",
        "2",
        "--lr",
        "100",
    ]
    done = hf_kd("erase", place / "taught", *arguments, "--test-split", "test", "--output", tmp_path / "out")
    assert "forget samples" in done.stdout
    assert "original" in done.stdout
    assert "erased" in done.stdout
    shown = hf_kd("inspect", tmp_path / "out")
    assert "classifier" in shown.stdout
    facts = json.loads(hf_kd("inspect", tmp_path / "out", "--json").stdout)
    assert facts["taps"][0]["d"] == 32
    assert facts["erasures"][0]["classes"] == [0, 2]
    assert facts["erasures"][0]["settings"]["epochs"] == 2


def test_labels_that_are_words(place, tmp_path):
    data = make_dataset([0, 1, 2, 3, 4] * 4)
    names = data.features["label"].int2str(data["label"])
    (tmp_path / "data").mkdir()
    rows = ["file_name,label"]
    for number, (image, name) in enumerate(zip(data["image"], names, strict=True)):
        image.save(tmp_path / "data" / f"{number}.png")
        rows.append(f"{number}.png,{name}")
    (tmp_path / "data" / "metadata.csv").write_text("\n".join(rows))
    for column in ([], ["--label-column", "label"]):
        arguments = ["--dataset", tmp_path / "data", "--forget-labels", "cat", *column, "--k", "1", "--json"]
        arguments += ["--allow-unrecognised", "--overwrite", "--output", tmp_path / "out"]
        done = hf_kd("erase", place / "taught", *arguments)
        record = json.loads(done.stdout)["erasure"]
        assert (record["classes"], record["n_forget"]) == ([2], 4)


def test_a_processor_from_elsewhere(place, tmp_path):
    bare = shutil.copytree(place / "model", tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    arguments = ["--dataset", place / "parquet", "--forget-labels", "cat", "--k", "1", "--output", tmp_path / "out"]
    refused = hf_kd("erase", bare, *arguments, "--processor", bare, code=1)
    assert "there is no image processor" in " ".join(refused.stderr.split())
    hf_kd("erase", bare, *arguments, "--processor", place / "model")
    assert ErasedModel.from_pretrained(tmp_path / "out").processor.size == {"height": 16, "width": 16}


def test_whose_ids_labels_without_names_are(place, tmp_path):
    data = make_dataset([0, 1, 2, 3, 4] * 4).cast_column("label", Value("int64"))
    data = data.map(lambda row: {"label": row["label"] + 10})
    data.to_parquet(tmp_path / "train.parquet")
    arguments = ["--dataset", tmp_path / "train.parquet", "--forget-labels", "12", "--k", "1", "--json"]
    arguments += ["--label-mapping", "12=cat", "--labels"]
    done = hf_kd("erase", place / "model", *arguments, "dataset", "--output", tmp_path / "out")
    assert json.loads(done.stdout)["erasure"]["classes"] == [2]
    refused = hf_kd("erase", place / "model", *arguments, "theirs", "--output", tmp_path / "no", code=1)
    assert "--labels theirs" in refused.stderr


def test_a_configuration_of_a_data_set(place, tmp_path):
    lines = ["---", "configs:"]
    for name, labels in (("few", [2] * 6), ("many", [2] * 12)):
        (tmp_path / "data" / name).mkdir(parents=True)
        make_dataset(labels).to_parquet(tmp_path / "data" / name / "train.parquet")
        lines += [f"- config_name: {name}", f"  data_files: {name}/*.parquet"]
    (tmp_path / "data" / "README.md").write_text("\n".join([*lines, "---", ""]))
    arguments = ["--dataset", tmp_path / "data", "--k", "1", "--output", tmp_path / "out", "--json"]
    assert "--config-name" in hf_kd("erase", place / "model", *arguments, code=1).stderr
    done = hf_kd("erase", place / "model", *arguments, "--config-name", "few")
    assert json.loads(done.stdout)["erasure"]["n_forget"] == 6


def test_a_folder_with_something_in_it_is_no_output(place, tmp_path):
    (tmp_path / "out").mkdir()
    arguments = ["--dataset", place / "parquet", "--forget-labels", "cat", "--k", "1", "--output", tmp_path / "out"]
    hf_kd("erase", place / "model", *arguments)  # an empty one is
    refused = " ".join(hf_kd("erase", place / "model", *arguments, code=1).stderr.split())
    assert "has something in it already" in refused
    assert "--overwrite" in refused
    hf_kd("erase", place / "model", *arguments, "--overwrite")


IMAGES = ["--dataset", "DATA", "--forget-labels", "cat"]


@pytest.mark.parametrize(
    "words",
    [
        ["erase", "HERE", *IMAGES],
        ["erase", "HERE", "--text", "cat"],
        ["erase", "MODEL", "--eraser", "HERE", *IMAGES],
        ["erase", "MODEL", "--eraser", "HERE", "--text", "cat"],
        ["unlearn", "HERE", *IMAGES],
        ["unlearn", "MODEL", "--method", "regrow", "--keep", "auto", "--reference-model", "HERE", *IMAGES],
        ["train-original", "HERE", "--recipe", "vit-pretrained", "--dataset", "DATA"],
    ],
)
def test_a_folder_that_the_command_reads_is_no_output(place, tmp_path, words):
    read = shutil.copytree(place / "model", tmp_path / "model")
    (tmp_path / "link").symlink_to(read)
    before = {path.name: path.read_bytes() for path in read.iterdir()}
    places = {"HERE": read, "MODEL": place / "model", "DATA": place / "parquet"}
    arguments = [places.get(word, word) for word in [*words, "--overwrite", "--output", tmp_path / "link"]]
    assert "that this command reads" in " ".join(hf_kd(*arguments, code=1).stderr.split())
    assert {path.name: path.read_bytes() for path in read.iterdir()} == before


@pytest.mark.parametrize("name", ["./erasd", "weights/erasd", "erasd"])
def test_a_mistyped_folder_is_refused_before_a_network_is_asked(place, tmp_path, monkeypatch, name):
    for folder in (tmp_path, tmp_path / "weights"):
        (folder / "erased").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("socket.socket.connect", lambda *to: pytest.fail(f"asked {to}"))
    arguments = ["--dataset", place / "parquet", "--forget-labels", "cat", "--output", tmp_path / "out"]
    told = " ".join(hf_kd("erase", name, *arguments, code=1).stderr.split())
    meant = name.removeprefix("./").replace("erasd", "erased")
    assert f"There is no folder '{name}'. Did you mean '{meant}'?" in told


def test_a_first_look_at_fewer_images_says_so(place, tmp_path):
    arguments = ["--dataset", place / "parquet", "--forget-labels", "cat", "--k", "1", "--output", tmp_path / "out"]
    limits = ["--limit", "6", "--limit-test", "10", "--test-split", "test", "--allow-unrecognised"]
    result = json.loads(hf_kd("erase", place / "taught", *arguments, *limits, "--json").stdout)
    assert result["erasure"]["n_forget"] == 6
    assert result["erasure"]["sampled"] == {"forget": {"drawn": 6, "of": 12, "seed": 0}}
    assert result["accuracy"]["sampled"] == {"drawn": 10, "of": 20, "seed": 0}
    assert "a sample of 12" in ErasedModel.from_pretrained(tmp_path / "out").erasures[0].summary
    images = filter_by_labels(load_source(place / "parquet", "train"), "label", [2])
    assert verify(tmp_path / "out", images).ok, "and it can be carried out again"


def test_folded_output_is_a_stock_checkpoint(place, tmp_path):
    arguments = ["--dataset", place / "parquet", "--forget-labels", "cat", "--output", tmp_path / "out", "--fold"]
    hf_kd("erase", place / "model", *arguments)
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == "ViTForImageClassification"
    assert (tmp_path / "out" / "preprocessor_config.json").exists()


def test_what_is_said_of_a_folded_class_is_what_the_checkpoint_does(place, tmp_path):
    arguments = ["--dataset", place / "parquet", "--k", "1", "--mask-head", "--fold", "--forget-labels"]
    shown = hf_kd("erase", place / "model", *arguments, "cat", "--output", tmp_path / "out").stdout
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "out").config.id2label[2] == "cat"
    for told in (shown, hf_kd("inspect", tmp_path / "out").stdout):
        assert "never answered; the label stays" in told
        assert "(erased)" not in told
    for option in (["--drop-label"], ["--erased-label", "x"]):
        done = hf_kd("erase", place / "model", *arguments, "cat", *option, "--output", tmp_path / "no", code=1)
        assert f"{' '.join(option)}: --fold writes a stock checkpoint" in " ".join(done.stderr.split())
    (typed,) = json.loads((tmp_path / "out" / "erasures.json").read_text())["commands"]
    assert "--erased-label" not in typed
    without = [word for word in arguments if word != "--fold"]
    hf_kd("erase", place / "model", *without, "cat", "--drop-label", "--output", tmp_path / "dropped")
    done = hf_kd("erase", tmp_path / "dropped", *arguments, "dog", "--output", tmp_path / "no", code=1)
    assert done.stderr.split()[-2:] == ["Pass", "--drop-label."], "which is the way out here"
    hf_kd("erase", tmp_path / "dropped", *arguments, "dog", "--drop-label", "--output", tmp_path / "both")
    typed = json.loads((tmp_path / "both" / "erasures.json").read_text())["commands"]
    assert all("--drop-label" in command for command in typed), "which goes on as it began"


def test_the_audit_of_a_data_set_without_test_images_is_named_with_what_it_lacks(place, tmp_path):
    given = ["--dataset", place / "images", "--forget-labels", "cat", "--k", "1", "--output", tmp_path / "out"]
    shown = hf_kd("erase", place / "taught", *given).stdout
    refused = hf_kd(*shlex.split(shown.splitlines()[-1])[1:], code=1).stderr
    told = " ".join(refused.split()).removeprefix("InvalidValueError: ")
    assert "has no split 'test'. There is only 'train'. Choose it: --test-split train, or lay the other beside" in told
    assert told in " ".join(shown.split()), "as the audit says it"
    result = json.loads(hf_kd("erase", place / "taught", *given, "--overwrite", "--json").stdout)
    assert " ".join(result["next_lacks"].split()) == told


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.usefixtures("few_draws")
def test_the_audit_named_after_a_whole_split_asks_for_what_it_lacks(place, tmp_path, labelled):
    images = make_dataset([2] * 12)
    (images if labelled else images.remove_columns("label")).to_parquet(tmp_path / "train.parquet")
    arguments = ["--dataset", tmp_path / "train.parquet", "--k", "1", "--output", tmp_path / "out", "--json"]
    reads = ["--image-column", "image", "--allow-unrecognised"]
    words = shlex.split(json.loads(hf_kd("erase", place / "taught", *arguments, *reads).stdout)["next"])[1:]
    unknown = [] if labelled else ["--forget-labels", "LABEL"]
    assert words == ["audit", str(tmp_path / "out"), "--dataset", "DATASET", *unknown]
    given = {"DATASET": place / "parquet", "LABEL": "cat"}
    hf_kd(*(given.get(word, word) for word in words), "--attacks", "linear", "--summary")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "{place}/parquet", "--forget-labels", "cta"], "Did you mean 'cat'"),
        (["--dataset", "{place}/parquet", "--forget-labels", "9"], "Label id 9 does not exist"),
        (["--dataset", "{place}/nowhere"], "no file or folder"),
        (["--dataset", "{place}/parquet", "--split", "validation"], "validation"),
        (["--dataset", "{place}/parquet", "--forget-labels", "cat", "--k", "99"], "k has to be below"),
        (["--dataset", "{place}/parquet", "--forget-labels", "cat", "--p", "120"], "--p 120"),
        (["--dataset", "{place}/parquet", "--forget-labels", "cat", "--method", "foo"], "Unknown method 'foo'"),
        (["--dataset", "{place}/parquet", "--forget-labels", "cat", "--option", "k"], "NAME=VALUE"),
        (["--dataset", "{place}/parquet", "--forget-labels", "cat", "--tap", "head"], "--tap head"),
        (["--dataset", "{place}/parquet", "--method", "leace"], "reads the images of all other labels"),
        (["--dataset", "{place}/parquet", "--forget-labels", "cat", "--retain-limit", "5"], "--retain-limit 5"),
        (["--dataset", "{place}/parquet", "--forget-labels", "cat", "--drop-label"], "add --mask-head"),
        (["--dataset", "{place}/parquet", "--forget-labels", "cat", "--drop-label", "--erased-label", "x"], "not both"),
        (["--dataset", "{place}/parquet", "--forget-labels", "cat", "--method", "cover", "--guard", "x"], "--guard x"),
        (
            [
                "--dataset",
                "{place}/parquet",
                "--forget-labels",
                "cat",
                "--method",
                "cover",
                "--m",
                "9",
                "--allow-unrecognised",
            ],
            "9 cover classes of 4",
        ),
    ],
)
def test_refusals_are_one_message_and_exit_code_1(place, tmp_path, arguments, message):
    arguments = [argument.format(place=place) for argument in arguments]
    done = hf_kd("erase", place / "model", *arguments, "--output", tmp_path / "out", code=1)
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "out" / "config.json").exists(), "nothing is left half done"


def test_cover_erasure_says_what_it_costs_and_what_gets_through(place, tmp_path):
    arguments = ["--dataset", place / "parquet", "--forget-labels", "cat", "--method", "cover", "--guard", "auto",
                 "--option", "cover_classes=4;1", "--option", 'class_sizes={"0": 9, "1": 20, "2": 10, "3": 9, "4": 20}',
                 "--test-split", "test", "--output", tmp_path / "out"]  # fmt: skip
    shown = hf_kd("erase", place / "taught", *arguments)
    record = ErasedModel.from_pretrained(tmp_path / "out").erasures[0]
    assert record.settings["cover_classes"] == [4, 1]
    assert record.settings["class_sizes"] == {"0": 9, "1": 20, "2": 10, "3": 9, "4": 20}
    measured = record.measured[0]
    told = " ".join(shown.stdout.replace("│", " ").split())
    for words in ("4 (elk), 1 (bee)", "keep their label and lose all detail", "What gets through",
                  "whoever holds the weights", f"{measured['share_of_forget_replaced']:.1%}",
                  f"{measured['share_of_inputs_expected']:.1%}",
                  "class sizes given", f"{measured['shares'][0]:.1%} / {measured['shares'][1]:.1%}, by views",
                  f"quantile {measured['guard_quantile']:.3f}", "never answered, called (erased)"):  # fmt: skip
        assert words in told, words
    assert "condition number" not in told
    rows = [line.split() for line in shown.stdout.splitlines() if line.startswith(("│ original", "│ erased"))]
    assert float(rows[0][3]) > 50, "the original's head was not masked"
    assert float(rows[1][3]) == 0
    again = " ".join(hf_kd("inspect", tmp_path / "out").stdout.replace("│", " ").split())
    assert "4 (elk), 1 (bee)" in again
    assert "Masked, so never answered: 2 (cat); called (erased)." in again


def test_cover_classes_that_the_data_lacks_are_warned_about(place, tmp_path):
    (tmp_path / "few").mkdir()
    make_dataset([0, 2] * 12).to_parquet(tmp_path / "few" / "train.parquet")
    for data, warned in ((tmp_path / "few", True), (place / "parquet", False)):
        arguments = ["--dataset", data, "--forget-labels", "cat", "--method", "cover", "--option", "cover_classes=4;1"]
        shown = hf_kd("erase", place / "taught", *arguments, "--output", tmp_path / f"out-{warned}").stdout
        assert ("there is no image of cover class 1 (bee), 4 (elk)" in " ".join(shown.split())) == warned


@pytest.mark.parametrize("method", ["esc", "cover"])
def test_labels_that_nobody_asked_to_forget_may_be_unknown_to_the_model(place, tmp_path, method):
    """Whatever the method has to say of other classes of the data in the end."""
    (tmp_path / "data").mkdir()
    data = make_dataset([0, 1, 2, 3, 4] * 12, names=["ape", "bee", "tabby", "dog", "yeti"])
    data.to_parquet(tmp_path / "data" / "train.parquet")
    arguments = ["--dataset", tmp_path / "data", "--forget-labels", "tabby", "--label-mapping", "tabby=cat"]
    arguments += ["--method", method, "--json", "--output", tmp_path / "out"]
    result = json.loads(hf_kd("erase", place / "taught", *arguments).stdout)
    assert result["erasure"]["classes"] == [2]
    covered = result["erasure"]["measured"][0].get("cover_classes", [])
    assert result["cover_missing"] == [c for c in covered if c == 4], "no image is known to be one of elk"


@pytest.mark.parametrize("saved", ["--fold", "--eraser-only", None])
def test_the_accuracy_is_the_same_however_the_result_is_saved(place, tmp_path, saved):
    arguments = ["--dataset", place / "parquet", "--forget-labels", "cat", "--test-split", "test", "--json"]
    arguments += [*([saved] if saved else []), "--output", tmp_path / "out"]
    accuracy = json.loads(hf_kd("erase", place / "taught", *arguments).stdout)["accuracy"]
    assert accuracy["original"]["forget"] > 50
    assert accuracy["erased"]["forget"] < accuracy["original"]["forget"]
    assert accuracy["changes"]["forget"]["samples"] == 4


def test_masked_classes_by_option(place, tmp_path):
    arguments = ["--dataset", place / "parquet", "--forget-labels", "cat", "--method", "cover", "--m", "1", "--json"]
    result = hf_kd("erase", place / "taught", *arguments, "--drop-label", "--output", tmp_path / "dropped")
    assert json.loads(result.stdout)["class_names"]["2"] == "cat"
    facts = json.loads(hf_kd("inspect", tmp_path / "dropped", "--json").stdout)
    assert facts["masked"] == {"classes": [2], "dropped": True, "labels": []}
    assert facts["num_labels"] == 4
    hf_kd("erase", place / "taught", *arguments, "--no-mask-head", "--output", tmp_path / "open")
    assert json.loads(hf_kd("inspect", tmp_path / "open", "--json").stdout)["masked"]["classes"] == []
    assert "--no-mask-head" in json.loads((tmp_path / "open" / "erasures.json").read_text())["commands"][0]
    arguments = [
        "--dataset",
        place / "parquet",
        "--forget-labels",
        "cat",
        "--k",
        "2",
        "--renorm",
        "--mask-head",
        "--json",
    ]
    hf_kd("erase", place / "model", *arguments, "--erased-label", "gone", "--output", tmp_path / "gone")
    model = ErasedModel.from_pretrained(tmp_path / "gone")
    assert model.config.id2label[2] == "gone"
    assert model.erasures[0].settings["renorm"] is True


def test_methods_that_read_the_other_labels_and_their_verification(place, tmp_path):
    arguments = ["--dataset", place / "parquet", "--forget-labels", "cat"]
    more = ["--method", "leace", "--retain-limit", "40", "--output", tmp_path / "out"]
    assert "images of other labels" in hf_kd("erase", place / "model", *arguments, *more).stdout
    record = ErasedModel.from_pretrained(tmp_path / "out").erasures[0]
    assert (record.n_forget, record.n_retain) == (12, 40)
    assert "12 images and 40 retained ones (a sample of 48);" in record.summary
    command = json.loads((tmp_path / "out" / "erasures.json").read_text())["commands"][0]
    assert "--retain-limit 40" in command
    hf_kd("verify", tmp_path / "out", *arguments, "--retain-limit", "40")
    assert "retained images" in hf_kd("verify", tmp_path / "out", *arguments, code=3).stdout
    done = hf_kd("verify", tmp_path / "out", "--dataset", place / "parquet", code=3)
    assert "--forget-labels" in " ".join(done.stdout.split())


@pytest.mark.parametrize("limit", ["--retain-limit", "--limit"])
def test_retained_images_are_drawn_of_those_that_no_earlier_request_was_to_forget(place, tmp_path, limit):
    """As many as were asked for, of 36: 12 of the 48 others are of the first request."""
    data, more = ["--dataset", place / "parquet"], ["--method", "leace", limit, "30", "--output", tmp_path / "two"]
    hf_kd("erase", place / "model", *data, "--forget-labels", "cat", "--output", tmp_path / "one")
    arguments = [*data, "--forget-labels", "dog"]
    hf_kd("erase", tmp_path / "one", *arguments, *more)
    record = ErasedModel.from_pretrained(tmp_path / "two").erasures[1]
    assert (record.n_retain, record.sampled["retain"]["drawn"], record.sampled["retain"]["of"]) == (30, 30, 36)
    images = load_source(place / "parquet", split="train")
    cats, dogs, others = (filter_by_labels(images, "label", labels) for labels in ([2], [3], [0, 1, 2, 4]))
    retained = Limited(others, 30) if limit == "--retain-limit" else others
    assert verify(tmp_path / "two", [cats, dogs], retain=retained).repeated


def test_wrong_usage_is_exit_code_2_and_help_shows_the_limits(place):
    assert "Missing option" in hf_kd("erase", place / "model", code=2).stderr
    text = " ".join(hf_kd("--help").stdout.split())
    assert "can take the eraser away" in text


def test_without_forget_labels_it_says_that_all_were_forgotten(place, tmp_path, caplog):
    make_dataset([0, 1] * 12).to_parquet(tmp_path / "train.parquet")
    hf_kd("erase", place / "model", "--dataset", tmp_path / "train.parquet", "--k", "2", "--output", tmp_path / "out")
    assert "Every label of the data set was forgotten, 2 in all" in caplog.text


@pytest.mark.usefixtures("few_draws")
def test_what_is_left_of_a_folded_model_is_measured_beside_the_original(place, tmp_path):
    arguments = ["--dataset", place / "parquet", "--forget-labels", "cat", "--k", "2", "--output", tmp_path / "out"]
    told = "".join(hf_kd("erase", place / "model", *arguments, "--fold").stdout.split())
    assert f"--original{place / 'model'}" in told
    assert "taketheeraseraway" not in told
    done = hf_kd("audit", tmp_path / "out", "--dataset", place / "parquet", "--attacks", "linear", "--summary")
    assert "What it was before is not known" in " ".join(done.stdout.split())


def test_a_test_split_that_is_not_there_is_refused_before_anything_is_read(place, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_kd.features.reader.ImageReader.run", None)
    arguments = ["erase", place / "taught", "--dataset", place / "parquet", "--forget-labels", "cat"]
    done = hf_kd(*arguments, "--test-split", "nope", "--output", tmp_path / "out", code=1)
    assert "no split 'nope'" in " ".join(done.stderr.split())
