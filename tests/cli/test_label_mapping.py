"""One label mapping for several data sets, each of which has names that the others lack."""

from __future__ import annotations

import json
import shlex

import pytest

from tests.cli.runner import hf_kd
from tests.helpers.small import make_dataset, picture

WORDS = {"affe": "ape", "biene": "bee", "katze": "cat", "hund": "dog", "chien": "dog"}
MAPPING = [word for pair in WORDS.items() for word in ("--label-mapping", "=".join(pair))]
FORGET = ["--forget-labels", "katze", "--allow-unrecognised"]
FINETUNE = ["--method", "finetune", "--option", "epochs=1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folders of images: two names of the training images alone, and one of the test images alone, for a class of both."""
    folder = tmp_path_factory.mktemp("images")
    for split, names in {"train": ("affe", "biene", "katze", "hund"), "test": ("affe", "chien", "katze")}.items():
        for name in names:
            (folder / split / name).mkdir(parents=True)
            for number in range(8):
                picture([*WORDS.values()].index(WORDS[name]), number).save(folder / split / name / f"{number}.png")
    return folder


def test_erasing_takes_names_of_the_test_images_alone(place, images, tmp_path):
    given = ["--dataset", images, "--test-split", "test", *FORGET, *MAPPING]
    done = hf_kd("erase", place / "model", *given, "--method", "cover", "--output", tmp_path / "out", "--json")
    result = json.loads(done.stdout)
    assert (result["erasure"]["classes"], result["accuracy"]["classes"]) == ([2], [2])
    hf_kd(*shlex.split(result["next"])[1:], "--attacks", "linear", "--quiet")


def test_another_label_of_the_forgotten_class_is_named_with_what_can_be_typed(place, images, tmp_path):
    words = {**WORDS, "hund": "cat"}
    given = ["--dataset", images, *(word for pair in words.items() for word in ("--label-mapping", "=".join(pair)))]
    given = [*given[:-2], *FORGET, "--method", "leace", "--output", tmp_path / "out"]
    told = " ".join(hf_kd("erase", place / "model", *given, code=1).stderr.split())
    assert "labels of the forgotten classes [2]: 'hund'" in told
    assert told.endswith("without them: --forget-labels hund, which forgets them too."), told
    hf_kd("erase", place / "model", *given, "--forget-labels", "hund")


@pytest.mark.usefixtures("no_figures")
def test_an_audit_and_its_class_maps_take_names_of_either_split_alone(place, images, tmp_path):
    given = ["--dataset", images, "--forget-labels", "katze", "--attacks", "linear", *MAPPING]
    hf_kd("audit", place / "model", *given, "--grad-cam", "2", "--output", tmp_path / "out", "--quiet")
    assert (tmp_path / "out" / "grad_cam.png").is_file()
    refused = hf_kd("audit", place / "model", *given, "--label-mapping", "cheval=dog", code=1)
    assert "No label is called 'cheval'" in refused.stderr


def test_unlearning_takes_names_of_any_of_the_three_and_the_audit_those_of_its_two(place, images, tmp_path):
    (tmp_path / "others").mkdir()
    others = make_dataset([0, 1, 2] * 4, seed=3, names=["affe", "abeille", "chien"])
    others.to_parquet(tmp_path / "others" / "train.parquet")
    given = ["--dataset", images, "--test-split", "test", *FORGET, *MAPPING, *FINETUNE]
    more = ["--retain", tmp_path / "others", "--label-mapping", "abeille=bee", "--output", tmp_path / "out", "--json"]
    record = json.loads(hf_kd("unlearn", place / "model", *given, *more).stdout)
    assert (record["classes"], record["n_retain"]) == ([2], 12)
    assert "chien=dog" in record["next"], "which the test images have too"
    assert "abeille" not in record["next"]
    hf_kd(*shlex.split(record["next"])[1:], "--attacks", "linear", "--quiet")
    hf_kd("unlearn", place / "model", *given, "--output", tmp_path / "two")


def test_training_takes_names_of_the_test_images_alone(place, images, tmp_path):
    given = ["--dataset", images, "--test-split", "test", *MAPPING, "--recipe", "resnet18-cifar10"]
    hf_kd("train-original", place / "model", *given, "--option", "epochs=1", "--output", tmp_path / "out")
    refused = [*given, "--label-mapping", "cheval=dog", "--output", tmp_path / "two"]
    assert "'cheval'" in hf_kd("train-original", place / "model", *refused, code=1).stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["affe=ape", "affe=bee"], "--label-mapping says affe=ape and affe=bee"),
        (["affe=ape", "0=bee"], "label 0 ('affe') is 'ape' and 'bee'"),
        (["affe=cow"], "No label is called 'cow'"),
        (["cheval=ape"], "No label is called 'cheval'"),
    ],
)
def test_a_mapping_that_is_wrong_or_says_two_things_is_refused_where_no_label_is_needed_too(
    place, images, tmp_path, words, told
):
    given = [word for pair in words for word in ("--label-mapping", pair)]
    arguments = [place / "model", "--dataset", images, "--forget-labels", "affe", *given, "--output", tmp_path / "out"]
    refused = hf_kd("erase", *arguments, "--method", "esc", code=1)
    assert told in " ".join(refused.stderr.split())
    assert not (tmp_path / "out").exists()
