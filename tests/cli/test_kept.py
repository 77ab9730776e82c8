"""What a command line leaves for whoever comes later: records, receipts, cards, and the commands that they name."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from transformers import ViTImageProcessorPil

from hf_kd.audit.verdict import NOT_AUDITED
from hf_kd.cli._options import Shared
from hf_kd.cli._verdict import card_command
from hf_kd.hub.receipt import RECEIPT
from tests.helpers.small import NAMES, make_dataset, randomise

from .runner import hf_kd

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cifar_resnet20.py"


@pytest.fixture
def own(place, tmp_path, monkeypatch):
    """A folder with a network of a class of one's own."""
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    import cifar_resnet20 as example

    labels = dict(enumerate(NAMES))
    config = example.CifarResNetConfig(blocks=1, id2label=labels, label2id={name: n for n, name in labels.items()})
    config.image_size = 16
    model, processor = randomise(example.CifarResNet(config)), ViTImageProcessorPil(do_resize=False)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "own")
    yield tmp_path / "own"
    sys.modules.pop("cifar_resnet20")


def receipt(folder) -> dict:
    return json.loads((folder / RECEIPT).read_text())


@pytest.mark.parametrize("command", ["erase", "unlearn"])
def test_of_a_class_of_ones_own_every_command_that_is_named_registers_it(place, own, tmp_path, command):
    method = {"erase": ["--k", "2"], "unlearn": ["--method", "head-surgery"]}[command]
    given = ["--dataset", place / "data", "--forget-labels", "cat", "--allow-unrecognised", "--import", EXAMPLE]
    out = tmp_path / "out"
    done = hf_kd(command, own, *given, *method, "--output", out)
    (typed,) = receipt(out)["commands"]
    card = (out / "README.md").read_text()
    assert typed in card
    assert "import MODULE" in card
    assert "--import FILE" in typed
    places = {"BASE_MODEL": own, "DATASET": place / "data", "LABEL": "cat", "FILE": EXAMPLE, "erased": tmp_path / "again",
              "changed": tmp_path / "again"}  # fmt: skip
    hf_kd(*(places.get(word, word) for word in shlex.split(typed)[1:]), "--allow-unrecognised")
    assert receipt(tmp_path / "again")["weights"] == receipt(out)["weights"]
    for shown in (done, hf_kd("verify", out, "--import", EXAMPLE)):
        (named,) = re.findall(r"hf-kd (?:audit|card) .*", " ".join(shown.stdout.split()))
        assert f"--import{EXAMPLE}" in named.replace(" ", ""), "which may be broken between lines"
    assert (
        card_command(out, "report", Shared(imports=[Path("a.py")])) == f"hf-kd card {out} --report report --import a.py"
    )


def test_records_say_which_files_were_read_and_no_place_of_this_machine(place, tmp_path):
    (tmp_path / "pets").mkdir()
    for number in range(2):
        rows = make_dataset([0, 1, 2, 3, 4] * 12, seed=number)
        rows.to_parquet(tmp_path / "pets" / f"train-{number:05d}-of-00002.parquet")
    shards = {"count": 2, "names": ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]}
    given = ["--dataset", tmp_path / "pets", "--forget-labels", "cat"]
    hf_kd("erase", place / "model", *given, "--method", "leace", "--output", tmp_path / "out")
    hf_kd("unlearn", place / "model", *given, "--method", "head-surgery", "--output", tmp_path / "changed")
    assert receipt(tmp_path / "out")["erasures"][0]["files"] == {"forget": shards, "retain": shards}
    assert receipt(tmp_path / "changed")["changes"][0]["files"] == {"forget": shards}
    for folder in ("out", "changed"):
        stored = "".join(path.read_text() for path in (tmp_path / folder).iterdir() if path.suffix in (".json", ".md"))
        assert str(tmp_path) not in stored
        hf_kd("verify", tmp_path / folder)


@pytest.mark.usefixtures("few_draws", "no_figures")
def test_a_report_kept_elsewhere_is_told_how_to_come_to_the_model(place, tmp_path):
    out, report = tmp_path / "out", tmp_path / "report"
    hf_kd("erase", place / "model", "--dataset", place / "data", "--forget-labels", "cat", "--k", "2", "--output", out)
    done = hf_kd("audit", out, "--dataset", place / "data", "--attacks", "linear", "--output", report)
    assert re.search(r"; \d+ s in all\.", " ".join(done.stdout.split()))
    files = json.loads((report / "report.json").read_text())["context"]["files"]
    assert files == {part: {"count": 1, "names": [f"{part}.parquet"]} for part in ("train", "test")}
    assert "loading and drawing not counted" in (report / "report.md").read_text()
    told = " ".join(hf_kd("verify", out).stdout.split())
    assert "A report kept elsewhere is not seen here" in told
    words = shlex.split(told[told.index("hf-kd card") :].replace("REPORT_FOLDER", str(report)))[1:]
    before = json.loads(hf_kd("card", out, "--json").stdout)
    assert before["verdict"] == NOT_AUDITED
    facts = json.loads(hf_kd(*words, "--json").stdout)
    assert facts["verdict"] == json.loads((report / "report.json").read_text())["verdict"]
    assert Path(facts["folder"]) == out
    assert {"README.md", RECEIPT, "retention_report.json"} <= set(facts["written"])
    assert all((out / name).is_file() for name in facts["written"])
    assert facts["verdict"].removeprefix("cat")[:60] in " ".join(hf_kd("verify", out).stdout.split())


def test_what_a_limit_drew_is_what_verify_and_inspect_speak_of(place, tmp_path):
    given = ["--dataset", place / "data", "--forget-labels", "cat"]
    hf_kd("erase", place / "model", *given, "--limit", "5", "--output", tmp_path / "out")
    told = " ".join(hf_kd("verify", tmp_path / "out", "--dataset", place / "data", code=3).stdout.split())
    assert "60 were given, the receipt says 5 drawn of 12" in told
    hf_kd("unlearn", place / "model", *given, "--method", "regrow", "--epochs", "1", "--limit", "20", "--keep",
          "vit.layers.0", "--output", tmp_path / "changed")  # fmt: skip
    shown = " ".join(hf_kd("inspect", tmp_path / "changed").stdout.split())
    assert "by regrow, to forget cat (20 retained images (a sample of 48))" in shown
    card = " ".join((tmp_path / "changed" / "README.md").read_text().split())
    assert "with 20 retained images alone; the 12 forgotten ones were not trained on" in card
