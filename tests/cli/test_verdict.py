"""The verdict stands first on the command line, and says no more than was measured."""

from __future__ import annotations

import json
import shlex

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from huggingface_hub.utils import httpx
from rich.console import Console

from hf_kd.audit.report import RetentionReport
from hf_kd.audit.verdict import NOT_AUDITED
from hf_kd.cli._options import Shared
from hf_kd.cli._tables import show_erasure
from hf_kd.cli._verdict import accuracy_verdict, audit_command, record_names, report_verdict
from hf_kd.cli.audit import _write
from hf_kd.errors import InvalidValueError
from tests.cli.runner import hf_kd
from tests.helpers.audited import LEAST, audited


@pytest.fixture(scope="module")
def erased(place, tmp_path_factory):
    """What erase printed, and where its model is."""
    out = tmp_path_factory.mktemp("verdict") / "erased"
    arguments = ["--dataset", place / "data", "--forget-labels", "cat", "--k", "2", "--test-split", "test"]
    return hf_kd("erase", place / "model", *arguments, "--output", out).stdout, out


def test_erase_says_first_what_the_head_answers_and_what_is_not_measured(erased):
    text = " ".join(erased[0].split())
    assert text.startswith("cat: the head answers "), text
    assert " of 6" in text
    assert "is not measured yet." in text
    assert shlex.split(erased[0].strip().splitlines()[-1])[:2] == ["hf-kd", "audit"], "on one line, to be copied"
    assert text.index("The other classes:") < text.index("Erased by esc")


@pytest.mark.usefixtures("few_draws")
def test_the_command_that_is_named_next_runs_and_reads_the_same_data(place, tmp_path):
    reads = ["--label-mapping", "cat=cat", "--label-column", "label", "--image-column", "image", "--split", "test"]
    arguments = ["--dataset", place / "data", "--forget-labels", "cat", "--test-split", "train", *reads]
    done = hf_kd("erase", place / "model", *arguments, "--output", tmp_path / "an erased model", "--json")
    words = shlex.split(json.loads(done.stdout)["next"])[1:]
    assert words[:2] == ["audit", str(tmp_path / "an erased model")]
    assert all(word in words for word in (*reads, "--test-split"))
    hf_kd(*words, "--attacks", "linear", "--summary")
    assert "--split" not in audit_command("m", "d", shared=Shared(), split="train", test_split="test"), "the default"


def test_a_figure_that_cannot_be_drawn_costs_no_report(tmp_path):
    class Report(RetentionReport):
        def figures(self, folder):
            raise InvalidValueError("no figure")

    report = Report.from_json(audited(**LEAST).to_json())
    with pytest.raises(InvalidValueError, match="no figure"):
        _write(report, tmp_path / "out", progress=False)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.md"}


def test_a_model_is_named_next_as_it_was_loaded(place):
    shared = Shared(revision="v1")
    assert shared.at_revision("user/m") == "user/m@v1"
    assert shared.at_revision("user/m@v1") == "user/m@v1"
    assert shared.at_revision(str(place)) == str(place), "a folder has no revision"
    assert Shared().at_revision("user/m") == "user/m"


@pytest.mark.usefixtures("few_draws", "no_figures")
def test_audit_prints_the_verdict_first_and_with_summary_ten_lines_and_nothing_else(erased, place, tmp_path):
    arguments = ["audit", erased[1], "--dataset", place / "data", "--attacks", "linear"]
    shown = hf_kd(*arguments, "--output", tmp_path / "report").stdout
    assert shown.startswith("cat: the head answers ")
    lines = hf_kd(*arguments, "--summary").stdout.splitlines()
    assert lines[0].startswith("cat: the head answers ")
    assert len(lines) <= 10
    stored = json.loads((tmp_path / "report" / "report.json").read_text())
    assert stored["verdict"] == lines[0]
    assert stored["verdict"] in (tmp_path / "report" / "report.md").read_text().replace("\\", "")


@pytest.mark.usefixtures("few_draws")
def test_of_a_file_that_is_named_audit_finds_the_other_split_or_says_what_to_type(erased, place, tmp_path, caplog):
    reads = ["audit", erased[1], "--attacks", "linear", "--summary", "--dataset"]
    whole = hf_kd(*reads, place / "data").stdout.replace(": data,", ": train.parquet,")
    assert hf_kd(*reads, place / "data" / "train.parquet").stdout == whole
    assert "Split 'test' is read from test.parquet" in caplog.text
    (tmp_path / "train.parquet").symlink_to(place / "data" / "train.parquet")
    refused = " ".join(hf_kd(*reads, tmp_path / "train.parquet", code=1).stderr.split())
    assert refused.endswith("or choose another: --test-split ...")


def test_inspect_and_verify_say_that_nobody_audited_and_what_a_report_says(erased, place):
    assert " ".join(hf_kd("inspect", erased[1]).stdout.split()).startswith(NOT_AUDITED[:60])
    done = " ".join(hf_kd("verify", erased[1]).stdout.split())
    assert done.startswith("Everything matches the receipt.")
    assert NOT_AUDITED[:60] in done
    assert "verdict" not in json.loads(hf_kd("inspect", place / "model", "--json").stdout), "nothing was erased from it"


def test_verify_of_a_repository_shows_the_verdict_of_its_report(erased, monkeypatch, tmp_path):
    asked = []

    def download(repo, name, **hub):
        asked.append((repo, hub))
        if (folder / name).is_file():
            return str(folder / name)
        raise RemoteEntryNotFoundError("no", response=httpx.Response(404, request=httpx.Request("GET", "x")))

    monkeypatch.setattr("hf_kd.cli._published.hf_hub_download", download)
    monkeypatch.setattr("hf_kd.model.verify.snapshot_download", lambda *given, **options: str(folder))
    folder = erased[1]
    done = " ".join(hf_kd("verify", "ana/m", "--revision", "v1").stdout.split())
    assert done.startswith("Everything matches the receipt.")
    assert NOT_AUDITED[:60] in done
    assert set(map(str, asked)) == {str(("ana/m", {"revision": "v1"}))}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, ""),
        (RemoteEntryNotFoundError("no", response=httpx.Response(404, request=httpx.Request("GET", "x"))), NOT_AUDITED),
        (LocalEntryNotFoundError("no"), "could not be asked (LocalEntryNotFoundError)"),
    ],
    ids=["there", "not there", "no network"],
)
def test_of_a_repository_its_own_report_is_asked_for(tmp_path, monkeypatch, answer, told):
    report = audited(**LEAST)
    report.to_json(tmp_path / "retention_report.json")
    asked = []

    def download(repo, name, **hub):
        asked.append((repo, name, hub))
        if answer is not None:
            raise answer
        return str(tmp_path / name)

    monkeypatch.setattr("hf_kd.cli._published.hf_hub_download", download)
    shared = Shared(revision="v1")
    text = report_verdict(shared.documented("ana/m"), report.context.get("erasures") or (), shared)
    assert (report.verdict if answer is None else told) in text
    assert asked == [("ana/m", "retention_report.json", {"revision": "v1"})]


def test_of_an_eraser_on_a_base_its_own_report_is_shown_and_of_several_none(tmp_path):
    report = audited(**LEAST)
    report.to_json(tmp_path / "retention_report.json")
    shared = Shared(eraser=[str(tmp_path)])
    assert report_verdict(shared.documented("ana/base"), (), shared) == report.verdict
    shared = Shared(eraser=[str(tmp_path), "ana/other"])
    assert report_verdict(shared.documented("ana/base"), (), shared).startswith("No report of an audit was looked for")


def test_a_record_without_classes_has_the_names_of_the_data_set():
    assert record_names({"classes": [3]}, {3: "cat"}) == ["cat"]
    assert record_names({"classes": [3]}, {}) == ["class 3"]
    assert record_names({"classes": None, "dataset_classes": ["ann"]}, {}) == ["ann"]
    assert accuracy_verdict(None, {}, {}).text.startswith("The images to forget: not measured on test images.")


def test_a_forgotten_class_that_is_answered_more_often_is_said_in_capitals():
    accuracy = {
        "classes": [3],
        "original": {"forget": 20.0, "retain": 50.0},
        "erased": {"forget": 80.0, "retain": 50.0},
        "changes": {
            "forget": {"samples": 20, "lost": 0, "gained": 12},
            "retain": {"samples": 80, "lost": 0, "gained": 0},
        },
    }
    record = {"classes": [3], "sampled": {"forget": {"drawn": 20, "of": 90, "seed": 0}}}
    names = {label: str(label) for label in range(10)} | {3: "cat, Felis catus"}
    text = accuracy_verdict(accuracy, record, names).text
    assert text.startswith("cat: the head answers 16 of 20, MORE than before (4)")
    assert "A sample, not everything: forget 20 of 90." in text
    both = accuracy_verdict(accuracy | {"classes": [2, 3]}, record, names).text
    assert both.startswith("2 and cat: the head answers 16 of 20"), "images of an earlier request count among them"


@pytest.mark.parametrize("hit", [True, False])
def test_what_to_try_is_said_where_another_class_lost_more_than_chance(place, tmp_path, capsys, hit):
    arguments = ["--dataset", place / "data", "--forget-labels", "cat", "--test-split", "test", "--output", tmp_path]
    result = json.loads(hf_kd("erase", place / "model", *arguments, "--json").stdout)
    hardest = {"label": 0, "now": 0.0, "before": 100.0, "samples": 6, "lost": 6, "gained": 0, "among": 4}
    result["accuracy"]["hardest_hit"] = hardest if hit else None
    show_erasure(Console(), result)
    assert ("--method retained-span" in capsys.readouterr().out) == hit
