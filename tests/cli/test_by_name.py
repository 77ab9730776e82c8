"""`hf-kd erase --text` and `hf-kd audit --texts`."""

from __future__ import annotations

import json
import shlex

import pytest
from datasets import load_dataset

from hf_kd import ErasedModel
from hf_kd.data.vocabulary import templates
from hf_kd.errors import GIVE_RETAIN
from tests.audit.test_by_name import data
from tests.helpers.two_towers import NAMES, two_towers

from .runner import hf_kd


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny CLIP and labelled images."""
    place = tmp_path_factory.mktemp("by_name")
    model, processor = two_towers("CLIPModel")
    model.save_pretrained(place / "clip")
    processor.save_pretrained(place / "clip")
    (place / "data").mkdir()
    for split, count in (("train", 48), ("test", 30)):
        data(count, count).to_parquet(place / "data" / f"{split}.parquet")
    return place


def stay() -> list[str]:
    return [word for name in NAMES for word in ("--retain-text", name)]


@pytest.mark.usefixtures("few_draws")
def test_a_concept_is_forgotten_by_name_and_asked_for_by_name(folder):
    done = hf_kd("erase", folder / "clip", "--text", "tabby cat", "--text", "cat", *stay(), "--output", folder / "out",
                 "--option", "k=1", "--ask", "--json")  # fmt: skip
    record = json.loads(done.stdout)["erasure"]
    assert (record["method"], record["n_texts"], record.get("texts")) == ("oblique", 2, None)
    assert ErasedModel.from_pretrained(folder / "out").is_erased
    hf_kd("verify", folder / "out", "--texts", "cat", "--texts", "tabby cat")
    assert "2 given" not in hf_kd("verify", folder / "out", "--texts", "a dog", "--texts", "dog", code=1).stdout
    some = " ".join(hf_kd("verify", folder / "out", "--texts", "cat", code=1).stdout.split())
    assert "1 given, and a request has 2: give all texts of one" in some, "who left one out is told so"
    report = hf_kd("audit", folder / "out", "--dataset", folder / "data", "--forget-labels", "cat", "--texts", "cat",
                   "--attacks", "linear", "--json")  # fmt: skip
    assert "concepts" in [section["key"] for section in json.loads(report.stdout)["sections"]]


def test_a_data_set_helps_and_words_are_published_only_when_asked_for(folder):
    done = hf_kd("erase", folder / "clip", "--text", "cat", *stay(), "--dataset", folder / "data", "--publish-texts",
                 "--method", "esc", "--output", folder / "both")  # fmt: skip
    assert "texts" in done.stdout
    assert "cat" in (folder / "both" / "erasures.json").read_text()


def test_sentences_of_other_languages(folder, monkeypatch):
    erase, given = ErasedModel.erase, {}
    monkeypatch.setattr(ErasedModel, "erase", lambda *args, **options: given.update(options) or erase(*args, **options))
    hf_kd("erase", folder / "clip", "--text", "Katze", "--text", "cat", "--language", "de", "--language", "en", *stay(),
          "--output", folder / "german", "--option", "k=1")  # fmt: skip
    assert given["templates"] == templates("de", "en")


def test_images_that_are_not_told_apart_are_said_in_the_words_of_the_command(folder, caplog):
    alike = folder / "alike"
    alike.mkdir()
    cats = data(24, 24).filter(lambda row: row["label"] == 0)
    cats.to_parquet(alike / "train.parquet")
    name = cats.features["label"].int2str(0)
    hf_kd("erase", folder / "clip", "--text", name, *stay(), "--dataset", alike, "--output", folder / "told", "--quiet")
    (told,) = (text for text in caplog.messages if "sets them apart" in text)
    assert told.endswith("Give images of other things: --forget-labels LABEL, which reads those of all other labels.")
    record = ErasedModel.from_pretrained(folder / "told").erasures[0]
    assert any(f"Give images of other things: {GIVE_RETAIN}." in warning for warning in record.warnings)


def test_labels_to_forget_say_which_images_show_the_concept(folder):
    given = ["--text", "tabby", *stay(), "--dataset", folder / "data", "--forget-labels", "cat", "--json"]
    record = json.loads(hf_kd("erase", folder / "clip", *given, "--output", folder / "labelled").stdout)["erasure"]
    images = load_dataset("parquet", data_files=str(folder / "data" / "train.parquet"), split="train")
    cats = images["label"].count(images.features["label"].str2int("cat"))
    assert (record["n_forget"], record["n_retain"]) == (cats, len(images) - cats)


@pytest.mark.parametrize("labels", [[], ["--forget-labels", "cat"]])
def test_the_command_of_a_receipt_is_the_one_that_was_typed(folder, tmp_path, labels):
    typed = ["--text", "cat", "--text", "tabby", "--option", "k=1", "--limit", "20", *labels]
    hf_kd("erase", folder / "clip", *typed, *stay(), "--dataset", folder / "data", "--output", tmp_path / "out")
    content = json.loads((tmp_path / "out" / "erasures.json").read_text())
    drawn = content["erasures"][0]["sampled"]
    (part,) = drawn.values()
    assert part["drawn"] == 20
    assert set(drawn) == ({"retain"} if labels else {"images"}), "those to forget are fewer than 20"
    named = ["--forget-labels", "LABEL"] if labels else []
    words = [
        "--dataset",
        "DATASET",
        "--text",
        "TEXT",
        "--text",
        "TEXT",
        *named,
        "--method",
        "oblique",
        "--option",
        "k=1",
    ]
    assert shlex.split(content["commands"][0])[3:] == [*words, "--limit", "20", "--output", "erased"]


def test_words_are_said_to_who_typed_them_and_to_nobody_else(folder):
    words = (folder / "clip", "--text", "cat", *stay(), "--output", folder / "typed", "--overwrite")
    shown = hf_kd("erase", *words).stdout
    assert shown.startswith("cat: not measured yet: an audit with these texts says what they still find.")
    refused = " ".join(hf_kd("erase", *words, "--test-split", "test", code=1).stderr.split())
    assert "hf-kd audit --texts" in refused, "which the headline asks for too"
    assert "--texts cat" in shown, "and the command at the end is it"
    assert "cat" not in json.dumps(json.loads(hf_kd("erase", *words, "--json").stdout)["erasure"])
    said = " ".join(hf_kd("audit", folder / "typed", "--dataset", folder / "data", code=1).stderr.split())
    assert "--forget-labels LABEL" in said
    assert "--texts TEXT" in said


def test_verify_says_of_a_request_by_name_what_it_can_do(folder):
    hf_kd("erase", folder / "clip", "--text", "cat", *stay(), "--output", folder / "checked")
    assert "--texts TEXT" in " ".join(hf_kd("verify", folder / "checked").stdout.split())
    given = ("verify", folder / "checked", "--dataset", folder / "data", "--forget-labels", "cat")
    told = " ".join(hf_kd(*given, code=3).stdout.split())
    found = json.loads(hf_kd(*given, "--json", code=3).stdout)
    assert not found["repeated"]
    files = sum(check["what"].startswith("file ") for check in found["checks"])
    matching = sum(check["ok"] is True for check in found["checks"]) - files
    assert told.startswith(
        f"{files} files and {matching} other checks match the receipt. Whether the erasure gives the same eraser again "
        "could not be verified: no file holds the retained names of a request by name; --texts TEXT tells whether"
    )
    told = " ".join(hf_kd(*given, "--texts", "cat", code=3).stdout.split())
    assert f"{files} files and {matching + 1} other checks match" in told
    assert "--texts TEXT" not in told, "nobody is told to give what was given"
    assert "not carried out again: no file holds its retained names. " in " ".join(
        hf_kd("verify", folder / "checked", "--texts", "cat").stdout.split()
    )
    card = " ".join((folder / "checked" / "README.md").read_text().split())
    assert "about the forgotten concept:** it is fitted on its names" in card
    assert "carries the erasure out again" not in card


def test_a_folded_model_of_two_towers_says_that_its_embeddings_are_erased(folder):
    hf_kd("erase", folder / "clip", "--text", "cat", *stay(), "--output", folder / "folded", "--fold")
    shown = " ".join(hf_kd("inspect", folder / "folded").stdout.split())
    card = " ".join((folder / "folded" / "README.md").read_text().split())
    for text in (shown, card):
        assert "folded into both projections" in text
        assert "embeddings are erased" in text
        assert "features are not" not in text


def test_close_names_are_one_message_that_names_them_and_the_option(folder, caplog):
    done = hf_kd("erase", folder / "clip", "--text", "cat", "--retain-text", "tabby cat", *stay(), "--output",
                 folder / "near")  # fmt: skip
    assert "--text NAME" in caplog.text
    assert "tabby cat" in caplog.text
    assert "lie close" not in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--dataset"),
        (["--publish-texts"], "add --text"),
        (["--language", "de"], "add --text"),
        (["--text", "cat", "--language", "xx"], "no templates in 'xx'; there are en, de"),
        (["--text", "cat", "--forget-labels", "cat"], "no data set is given"),
        (["--text", "cat", "--retain-limit", "5"], "--retain-limit 5 says something of labels"),
        (["--text", "cat", "--erased-label", "gone"], "--erased-label gone says something of labels"),
        (["--text", "cat", "--drop-label"], "--drop-label says something of labels"),
        (["--text", "cat", "--no-mask-head"], "--no-mask-head says something of labels"),
        (["--text", "cat", "--allow-unrecognised"], "--allow-unrecognised says something of labels"),
        (["--text", "cat", "--split", "train"], "--split train says something of --dataset"),
        (["--text", "cat", "--limit", "5"], "--limit 5 says something of --dataset"),
        (["--text", "cat", "--limit-test", "5"], "--limit-test 5 says how many images of --test-split"),
    ],
)
def test_options_at_odds_are_refused(folder, words, said):
    done = hf_kd("erase", folder / "clip", *words, "--output", folder / "no", code=1)
    assert said in " ".join(done.stderr.split())
    assert not (folder / "no").exists()
