"""`hf-kd train-original`."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

from hf_kd.hub.receipt import RECEIPT, file_digest
from hf_kd.model.train import RECIPES
from tests.cli.runner import hf_kd
from tests.helpers import processes

ROOT = Path(__file__).resolve().parents[2]


def test_train_original_on_other_labels_than_the_checkpoints(place, tmp_path):
    arguments = ["--dataset", place / "other", "--recipe", "vit-pretrained", "--output", tmp_path / "own"]
    settings = ["--option", "epochs=1", "--option", "batch_size=16", "--limit", "20"]
    done = hf_kd("train-original", place / "model", *arguments, *settings)
    assert "and a new head on 20 images of 3 labels" in " ".join(done.stdout.split())
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "own")
    assert list(model.config.id2label.values()) == ["fox", "gnu", "hen"]
    assert AutoImageProcessor.from_pretrained(tmp_path / "own", use_fast=False).size == {"height": 16, "width": 16}
    record = model.config.hf_kd_trained
    assert (record["recipe"], record["images"], record["settings"]["epochs"]) == ("vit-pretrained", 20, 1)
    done = hf_kd("erase", tmp_path / "own", "--dataset", place / "other", "--forget-labels", "fox", "--k", "1", "--json",
                 "--output", tmp_path / "erased")  # fmt: skip
    assert json.loads(done.stdout)["erasure"]["classes"] == [0]


def test_a_reference_that_has_never_seen_a_label(place, tmp_path, caplog):
    arguments = ["--dataset", place / "data", "--recipe", "vit-pretrained", "--output", tmp_path / "never"]
    settings = ["--epochs", "1", "--batch-size", "16", "--without", "cat", "--test-split", "test"]
    shown = " ".join(hf_kd("train-original", place / "model", *arguments, *settings, "--from-scratch").stdout.split())
    assert "on 48 images of 4 labels" in shown
    assert "Of 24 images of test" in shown
    assert "It has never seen cat" in shown
    audit = f"hf-kd audit MODEL --dataset {place / 'data'} --retrained {tmp_path / 'never'}"
    assert shown.endswith(f"forget that with it: {audit}")
    assert "began with" not in caplog.text
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "never")
    assert model.config.num_labels == 5
    assert model.config.hf_kd_trained["without"] == [2]
    assert float(model.classifier.bias[2].detach()) == -1e4
    assert not (tmp_path / "never.training").exists()


def test_what_begins_with_weights_that_may_have_seen_a_label_is_not_called_one_that_never_did(place, tmp_path, caplog):
    arguments = ["--dataset", place / "data", "--recipe", "vit-pretrained", "--output", tmp_path / "from-weights"]
    done = hf_kd("train-original", place / "model", *arguments, "--epochs", "1", "--limit", "20", "--without", "cat")
    assert "It was not trained on cat" in " ".join(done.stdout.split())
    assert "hf-kd audit" not in done.stdout, "it is no reference"
    assert "it is no reference: --from-scratch begins with fresh ones" in " ".join(caplog.text.split())
    record = AutoModelForImageClassification.from_pretrained(tmp_path / "from-weights").config.hf_kd_trained
    assert any("own weights" in warning for warning in record["warnings"])


def test_a_training_that_was_killed_goes_on_where_it_was(place, tmp_path, monkeypatch):
    from hf_kd.methods.unlearning.resume import KeptTraining

    common = [place / "model", "--dataset", place / "data", "--recipe", "vit-pretrained", "--epochs", "3", "--batch-size",
              "16", "--augment", "flip-crop"]  # fmt: skip
    hf_kd("train-original", *common, "--output", tmp_path / "whole")
    keep = KeptTraining.keep

    def killed(self, epoch, *rest):
        keep(self, epoch, *rest)
        if epoch == 2:
            raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(KeptTraining, "keep", killed)
        hf_kd("train-original", *common, "--output", tmp_path / "own", code=1)
    refused = hf_kd("train-original", *common, "--output", tmp_path / "own", code=1)
    assert "--resume" in refused.stderr
    refused = hf_kd("train-original", *common, "--lr", "1e-3", "--output", tmp_path / "own", "--resume", code=1)
    assert "is of another run" in " ".join(refused.stderr.split())
    done = hf_kd("train-original", *common, "--output", tmp_path / "own", "--resume", "--json")
    assert json.loads(done.stdout)["measured"]["epochs_run"] == 3
    whole, own = (
        AutoModelForImageClassification.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "own")
    )
    assert all(torch.equal(value, own[name]) for name, value in whole.items()), "bit for bit as in one run"
    assert "no training of" in hf_kd("train-original", *common, "--output", tmp_path / "new", "--resume", code=1).stderr


STARTS_AGAIN = """
import sys
from pathlib import Path
from hf_kd.cli.train_original import _state_folder
kept = _state_folder(Path(sys.argv[1]), resume=False, overwrite=True)
print(kept.exists())
"""


def test_of_several_processes_one_deletes_the_state_of_a_training_that_starts_again(tmp_path):
    state = tmp_path / "trained.training"
    state.mkdir()
    for number in range(10_000):  # so many that both are at it at once
        (state / str(number)).touch()
    done = processes.run(
        *[["-c", STARTS_AGAIN, tmp_path / "trained"]] * 2,
        environments=[processes.surroundings(**told) for told in processes.launched()],
    )
    assert [(one.code, one.out.strip()) for one in done] == [(0, "False")] * 2, done[0].text + done[1].text


@pytest.mark.usefixtures("few_draws")
def test_train_original_from_a_class_of_ones_own(place, tmp_path):
    """The AllCNN of the examples: a folder of fresh weights, trained, unlearned and audited from the command line."""
    example = ROOT / "examples" / "allcnn.py"
    making = [example, "--output", tmp_path / "allcnn", "--labels", "5", "--filters", "0.05"]
    (made,) = processes.run(making, environments=[processes.surroundings()])
    assert made.code == 0, made.err
    common = ["--import", example, "--dataset", place / "data"]
    trained = hf_kd("train-original", tmp_path / "allcnn", *common, "--recipe", "allcnn-cifar10", "--option", "epochs=2",
                    "--output", tmp_path / "own", "--json")  # fmt: skip
    facts = json.loads(trained.stdout)
    assert (facts["from_scratch"], facts["new_head"], facts["labels"]) == (True, False, 5)
    done = hf_kd("unlearn", tmp_path / "own", *common, "--forget-labels", "cat", "--method", "head-surgery",
                 "--output", tmp_path / "out")  # fmt: skip
    words = shlex.split(done.stdout.strip().splitlines()[-1])
    shown = json.loads(hf_kd(*words[1:], "--attacks", "linear", "--json").stdout)
    head = next(section for section in shown["sections"] if section["key"] == "head")
    assert next(score["value"] for score in head["scores"] if score["name"] == "D_ft") == 0


def test_recipes_are_named_where_they_are_asked_for(place, tmp_path):
    text = hf_kd("train-original", "--help").stdout
    assert all(recipe in text.replace("\n", " ") for recipe in RECIPES)
    arguments = ["--dataset", place / "data", "--output", tmp_path / "out", "--recipe", "resnet"]
    done = hf_kd("train-original", place / "model", *arguments, code=1)
    assert all(recipe in done.stderr for recipe in RECIPES)


@pytest.mark.parametrize("erased", [False, True])
def test_a_model_of_a_class_that_nobody_knows_says_the_way_out_first(place, tmp_path, erased):
    """As of `--import` left out."""
    folder = shutil.copytree(place / "model", tmp_path / "model")
    if erased:
        data = ["--dataset", place / "data", "--forget-labels", "cat"]
        hf_kd("erase", place / "model", *data, "--output", folder, "--overwrite")
    config = json.loads((folder / "config.json").read_text())
    (config["inner"] if erased else config)["model_type"] = "my_own"
    (folder / "config.json").write_text(json.dumps(config))
    told = " ".join(hf_kd("inspect", folder, code=1).stderr.split())
    assert "is of type 'my_own', which transformers" in told
    assert "If its class is your own, run the file that registers it first: import it, or --import FILE" in told
    assert len(told) < 400
    if erased:  # signed as it is: its receipt is right, and nothing says to delete it
        receipt = json.loads((folder / RECEIPT).read_text())
        receipt["files"]["config.json"] = file_digest(folder / "config.json")
        (folder / RECEIPT).write_text(json.dumps(receipt))
        told = " ".join(hf_kd("card", folder, code=1).stderr.split())
        assert "is of type 'my_own', which transformers" in told
        assert "delete" not in told


def test_what_is_trained_from_passes_the_checks_of_every_other_model(place, tmp_path):
    """No code of a repository, no weights from outside its folder, and what is wrong is named."""
    rest = ["--dataset", place / "data", "--recipe", "vit-pretrained", "--output", tmp_path / "own", "--epochs", "1"]

    def refused(change, *options):
        folder = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(place / "model", folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        (folder / "own.py").write_text("raise SystemExit('code of a repository was run')")
        return " ".join(hf_kd("train-original", folder, *rest, *options, code=1).stderr.split())

    remote = {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Config", "AutoModelForImageClassification": "own.Own"},
    }
    for options in ([], ["--from-scratch"]):
        assert "trust_remote_code" in refused(remote, *options)
        assert "no image classifier" in refused({"model_type": "bert"}, *options)
        assert "is of type 'my_own'" in refused({"model_type": "my_own"}, *options)
        assert "One of its settings is damaged" in refused({"num_attention_heads": 0}, *options)
    assert "safetensors" in refused({"transformers_weights": "model.bin"})
    assert "erased model" in refused({"model_type": "hf_kd_erased", "architectures": ["ErasedModel"]})
    unknown = hf_kd("train-original", "someone/nothing@main", *rest, code=1)
    assert "'someone/nothing' could not be fetched" in " ".join(unknown.stderr.split())


def test_a_checkpoint_without_a_head_is_trained_with_a_new_one(place, tmp_path):
    AutoModel.from_pretrained(place / "model").save_pretrained(tmp_path / "body")
    shutil.copy(place / "model" / "preprocessor_config.json", tmp_path / "body")
    options = ["--recipe", "vit-pretrained", "--output", tmp_path / "own", "--epochs", "1", "--limit", "20"]
    done = hf_kd("train-original", tmp_path / "body", "--dataset", place / "data", *options)
    assert "on 20 images of 5 labels" in " ".join(done.stdout.split())
