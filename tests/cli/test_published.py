"""`hf-kd verify` and `hf-kd card`, in any order: where one of them sends a user to the other, that works."""

from __future__ import annotations

import shutil

import pytest
from transformers import AutoImageProcessor

from hf_kd import ErasedModel
from hf_kd.cli._options import Shared
from hf_kd.cli._verdict import card_command
from hf_kd.data.load import load_source
from tests.cli.runner import hf_kd


@pytest.fixture(scope="module")
def folders(place, tmp_path_factory):
    """A folder of each kind that the commands and `fold` leave."""
    out = tmp_path_factory.mktemp("published")
    given = [place / "model", "--dataset", place / "data", "--forget-labels", "cat"]
    hf_kd("erase", *given, "--k", "1", "--output", out / "erased")
    hf_kd("erase", *given, "--k", "1", "--output", out / "folded", "--fold")
    hf_kd("unlearn", *given, "--method", "head-surgery", "--output", out / "unlearned")
    ErasedModel.from_pretrained(out / "erased").fold().save_pretrained(out / "folded by hand")
    hf_kd("erase", out / "folded", *given[1:3], "--forget-labels", "dog", "--k", "1", "--output", out / "erased again")
    return out


CODES = {
    "erased": (0, 0),
    "folded": (0, 1),
    "unlearned": (0, 0),
    "folded by hand": (1, 1),
    "erased again": (0, 0),
    "model": (1, 1),
}
"""What verify and card exit with: what has an eraser, or changed weights, has both."""


@pytest.mark.parametrize("kind", CODES)
def test_nobody_is_sent_round(folders, place, tmp_path, kind):
    folder = shutil.copytree(place / "model" if kind == "model" else folders / kind, tmp_path / "model")
    codes = dict(zip(("verify", "card"), CODES[kind], strict=True))
    for command, other in (("verify", "card"), ("card", "verify"), ("verify", "card")):
        done = hf_kd(command, folder, code=codes[command])
        assert not codes[other] or f"hf-kd {other}" not in done.stderr, "what is named works"
    for shown in (done.stdout, hf_kd("inspect", folder).stdout):
        named = [word for word in ("hf-kd card", "hf-kd push ERASED_FOLDER") if word in " ".join(shown.split())]
        assert not codes["card"] or "hf-kd card" not in named
        assert named or kind == "model" or not shown
    into = card_command(folder, "report", Shared())
    assert into[:10] == {"model": "", "folded": "hf-kd push", "folded by hand": "hf-kd push"}.get(kind, "hf-kd card")


def test_a_folded_checkpoint_has_receipt_card_and_processor(folders):
    folder = folders / "folded"
    assert {"erasures.json", "README.md", "preprocessor_config.json"} <= {path.name for path in folder.iterdir()}
    assert "folded into the head" in (folder / "README.md").read_text()
    assert "Everything matches the receipt" in hf_kd("verify", folder).stdout
    assert AutoImageProcessor.from_pretrained(folders / "folded by hand", use_fast=False).size["height"] == 16
    refused = " ".join(hf_kd("card", folder, code=1).stderr.split())
    assert "`hf-kd erase --fold` writes both with the checkpoint" in refused
    refused = " ".join(hf_kd("verify", folders / "folded by hand", code=1).stderr.split())
    assert "`hf-kd erase --fold`" in refused


def test_what_is_too_little_to_carry_it_out_again_is_no_difference(folders, place, tmp_path):
    """One forget set of two requests, and no image of the classes that stay: what hashes say is said."""
    given = ["--dataset", place / "data", "--forget-labels", "dog", "--method", "mean-difference"]
    hf_kd("erase", place / "model", *given, "--output", tmp_path / "reads")
    hf_kd("erase", folders / "erased", *given, "--output", tmp_path / "two")
    without = tmp_path / "dogs.parquet"
    load_source(place / "data", "train").filter(lambda row: row["label"] == 3).to_parquet(without)
    for arguments, why in (
        ([tmp_path / "two", *given[:4]], "2 requests that build on each other, and 1 forget set was given"),
        ([tmp_path / "reads", "--dataset", without], "none were given: pass --forget-labels LABEL"),
        ([folders / "folded", "--dataset", place / "data", "--forget-labels", "cat"], "before erasing, --base"),
    ):
        shown = " ".join(hf_kd("verify", *arguments, code=3).stdout.split())
        assert why in shown
        assert "matches" in shown
        assert "DIFFERS" not in shown
