"""`--eraser-only` and `--eraser`: an eraser saved on its own, put on its base by every command that loads a model."""

from __future__ import annotations

import json

import pytest
import torch

from hf_kd import ErasedModel
from hf_kd.audit.report import RetentionReport
from hf_kd.cli._app import IN_PART
from hf_kd.data.paths import ERASER_CONFIG
from tests.cli.runner import hf_kd
from tests.helpers.small import make_dataset


@pytest.fixture(scope="module")
def eraser(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("eraser") / "cat"
    given = [place / "model", "--dataset", place / "data", "--forget-labels", "cat", "--k", "1"]
    done = hf_kd("erase", *given, "--eraser-only", "--output", out, "--test-split", "test")
    assert f"--eraser {out}" in " ".join(done.stdout.split()).replace(" /", " /"), "the audit it names finds it"
    return out


def test_it_holds_no_model_and_acts_on_the_one_it_was_fitted_on(place, eraser):
    assert (eraser / ERASER_CONFIG).is_file()
    assert not list(eraser.glob("model*"))
    model = ErasedModel.from_pretrained(place / "model", eraser=eraser)
    assert [record.classes for record in model.erasures] == [(2,)]


def test_a_second_request_builds_on_the_first(place, eraser, tmp_path):
    given = [place / "model", "--eraser", eraser, "--dataset", place / "data", "--forget-labels", "elk", "--k", "1"]
    hf_kd("erase", *given, "--eraser-only", "--output", tmp_path / "both")
    hf_kd("erase", *given, "--output", tmp_path / "whole")
    both = ErasedModel.from_pretrained(place / "model", eraser=tmp_path / "both")
    whole = ErasedModel.from_pretrained(tmp_path / "whole")
    assert [record.classes for record in both.erasures] == [(2,), (4,)]
    pixels = torch.randn(4, 3, 16, 16)
    assert torch.equal(both(pixels).logits, whole(pixels).logits)


def test_inspect_shows_it_without_its_base_and_on_it(place, eraser):
    alone = json.loads(hf_kd("inspect", eraser, "--json").stdout)
    on_it = json.loads(hf_kd("inspect", place / "model", "--eraser", eraser, "--json").stdout)
    assert "not on the Hub (ViTForImageClassification, weights" in alone["base"]
    for name in ("class", "taps", "erasures", "masked", "num_labels", "withheld", "erased"):
        assert alone[name] == on_it[name]
    assert "an eraser, for" in hf_kd("inspect", eraser).stdout


def test_verify_checks_hashes_alone_and_everything_on_its_base(place, eraser, tmp_path):
    alone = json.loads(hf_kd("verify", eraser, "--json").stdout)
    assert alone["ok"]
    assert next(check["found"] for check in alone["checks"] if check["what"] == "base model").startswith("not compared")
    shown = " ".join(hf_kd("verify", eraser).stdout.split())
    assert "- base model not compared: an eraser is without it; name it: --base ..." in shown
    assert "base=" not in shown
    for given in ([eraser, "--base", place / "model"], [place / "model", "--eraser", eraser]):
        found = json.loads(hf_kd("verify", *given, "--json").stdout)
        assert found["ok"]
        assert not any("--base" in check["found"] for check in found["checks"]), "what was given is not asked for"
        assert "acts as its records say" in [check["what"] for check in found["checks"]]
    other = ErasedModel.from_pretrained(place / "model").inner
    with torch.no_grad():
        other.classifier.weight.mul_(2)
    other.save_pretrained(tmp_path / "other")
    differs = hf_kd("verify", eraser, "--base", tmp_path / "other", code=1).stdout
    assert differs.startswith("It matches its receipt, and what was given to compare with it does not"), "not its fault"
    assert "stands on" in differs
    again = ["--dataset", place / "data", "--forget-labels", "cat"]
    assert "equal bit for bit" in hf_kd("verify", eraser, "--base", place / "model", *again).stdout
    refused = hf_kd("verify", eraser, *again, code=IN_PART).stdout
    assert "--base" in refused
    other = hf_kd("verify", place / "model", "--eraser", eraser, "--eraser", eraser, code=1)
    assert "one by one" in " ".join(other.stderr.split())


def test_card_and_push_take_it_and_its_base(place, eraser):
    hf_kd("card", eraser, "--base", place / "model")
    card = (eraser / "README.md").read_text()
    assert "layer for a service, not a removal" in card
    assert 'eraser="PATH_OR_REPO_ID"' in card
    assert json.loads(hf_kd("verify", eraser, "--json").stdout)["ok"]
    refused = " ".join(hf_kd("export", eraser, "--output", eraser / "x.onnx", code=1).stderr.split())
    assert f"use hf-kd export BASE --eraser {eraser}" in refused
    refused = " ".join(hf_kd("push", eraser, "ana/eraser", code=1).stderr.split())
    assert "Say where that lies" in refused
    refused = " ".join(hf_kd("push", eraser, "ana/eraser", "--base", place / "model", code=1).stderr.split())
    assert "offline mode" in refused, "all there is to refuse is the network"
    refused = " ".join(hf_kd("push", place / "model", "ana/x", "--base", place / "model", code=1).stderr.split())
    assert "leave it out" in refused


@pytest.mark.usefixtures("few_draws", "no_figures")
def test_audit_and_the_page_put_it_on_the_model(place, eraser, tmp_path):
    given = [place / "model", "--eraser", eraser, "--dataset", place / "data", "--attacks", "linear"]
    done = hf_kd("audit", *given, "--output", tmp_path / "report", "--quiet")
    assert f"hf-kd card {eraser} --base {place / 'model'}" in "".join(done.stdout.split("\n")).replace("  ", " ")
    assert RetentionReport.from_json(tmp_path / "report" / "report.json").treatment == "erased"
    assert "--model" in hf_kd("demo", "--eraser", eraser, code=2).stderr


def test_what_cannot_be_both_is_refused(place, eraser, tmp_path):
    given = [place / "model", "--dataset", place / "data", "--forget-labels", "cat", "--output", tmp_path / "out"]
    assert "not both" in hf_kd("erase", *given, "--fold", "--eraser-only", code=1).stderr
    unlearned = tmp_path / "unlearned"
    hf_kd("unlearn", *given[:-1], unlearned, "--method", "head-surgery")
    refused = " ".join(hf_kd("erase", unlearned, *given[1:], "--eraser-only", code=1).stderr.split())
    assert "were changed by head-surgery" in refused
    assert not (tmp_path / "out").exists()


def test_what_says_nothing_against_the_receipt_is_not_held_against_it(place, eraser, tmp_path):
    """A base that cannot be fetched, one that is another, a class that nobody registered: no reason to delete a receipt."""
    model = ErasedModel.from_pretrained(place / "model")
    model.config.base_model = "ana/base"
    model.erase(make_dataset([2] * 20), k=1, progress=False).save_eraser(tmp_path / "far")
    given = ["--dataset", place / "data", "--forget-labels", "cat"]
    for more in ([], given):
        shown = " ".join(hf_kd("verify", tmp_path / "far", *more, code=IN_PART).stdout.split())
        assert "could not be verified: its base ana/base cannot be loaded" in shown
        assert "DIFFERS" not in shown
    assert hf_kd("verify", tmp_path / "far", "--base", place / "model").stdout.startswith("Everything matches")
    other = ErasedModel.from_pretrained(place / "model").inner
    with torch.no_grad():
        other.classifier.weight.mul_(2)
    other.save_pretrained(tmp_path / "other")
    for arguments, told in (
        ([tmp_path / "far"], "couldn't connect"),
        ([eraser, "--base", tmp_path / "other"], "OtherBaseError"),
    ):
        for command in (["card", *arguments], ["push", arguments[0], "ana/x", *arguments[1:]]):
            refused = " ".join(hf_kd(*command, code=1).stderr.split())
            assert told in refused
            assert "delete" not in refused
