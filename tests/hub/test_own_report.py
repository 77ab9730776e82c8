"""A report says what of: its verdict and numbers stand beside no other model."""

from __future__ import annotations

import json

import pytest

from hf_kd import ErasedModel
from hf_kd.errors import InvalidValueError
from hf_kd.hub import publish
from hf_kd.hub.document import REPORT, document
from hf_kd.hub.own_report import records_told, refuse_other_report, report_beside
from hf_kd.methods.records import all_records
from tests.cli.runner import hf_kd
from tests.conftest import image_processor, small_vit
from tests.helpers.audited import LEAST, audited
from tests.helpers.small import make_dataset


def erased(base, *requests):
    """A model that forgot a class, or several, each from so many images by so many directions."""
    model = ErasedModel.from_pretrained(base)
    for label, k, count in requests:
        model.erase(make_dataset([label] * count), k=k, progress=False)
    return model


def report_of(model, **context):
    """As an audit of the model writes it, after JSON."""
    told = {
        "erasures": [record.to_dict() for record in model.erasures],
        "changes": getattr(model.config.inner, "hf_kd_folded", None) or [],
    }
    report = audited(context=told | {"original_given": False} | context, **LEAST)
    return type(report).from_json(report.to_json())


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    small_vit().save_pretrained(folder)
    image_processor().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "other",
    [
        pytest.param([(0, 2, 20)], id="another class"),
        pytest.param([(2, 1, 20)], id="another setting"),
        pytest.param([(2, 2, 8)], id="other images"),
        pytest.param([(2, 2, 20), (0, 1, 20)], id="a further request"),
        pytest.param([], id="nothing forgotten"),
    ],
)
def test_the_report_of_another_model_is_refused_before_anything_is_written_or_sent(base, tmp_path, other, monkeypatch):
    model, report = erased(base, (2, 2, 20)), report_of(erased(base, *other))
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(publish, "prepare", lambda *_, **__: pytest.fail("a repository was made"))
    for refused in (
        lambda: document(model, tmp_path, report=report),
        lambda: publish.push(model, "ana/m", report=report),
    ):
        with pytest.raises(
            InvalidValueError, match=r"of another model.*this model has esc of classes \[2\].*Audit this"
        ):
            refused()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_its_own_report_is_taken_also_of_the_folded_checkpoint_and_where_it_does_not_say_what_it_is_of(base):
    model = erased(base, (2, 2, 20))
    folded = ErasedModel.from_model(model.fold(), image_processor())
    of_0_1_0 = json.loads(report_of(folded).to_json())
    of_0_1_0["context"] = {"erasures": [], "changes": []}
    for report in (
        None,
        report_of(model),
        report_of(folded),
        audited(**LEAST),
        type(report_of(model)).from_dict(of_0_1_0),
    ):
        refuse_other_report(report, model)
    refuse_other_report(report_of(model), folded)
    again = folded.erase(make_dataset([0] * 20), k=1, progress=False)
    twice = ErasedModel.from_model(again.fold(), image_processor())
    assert [record.classes for record in all_records(twice)] == [(2,), (0,)], (
        "a second fold keeps the records of the first"
    )
    refuse_other_report(report_of(twice), again)


def test_verify_tells_the_verdict_also_where_something_was_folded_before(base, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_kd.hub.document.has_package", lambda name: False)
    folded = ErasedModel.from_model(erased(base, (2, 2, 20)).fold(), image_processor())
    again = folded.erase(make_dataset([0] * 20), k=1, progress=False)
    again.save_pretrained(tmp_path)
    document(again, tmp_path, report=report_of(again))
    assert report_of(again).verdict[:40] in " ".join(hf_kd("verify", tmp_path).stdout.split())


def test_what_lies_beside_a_model_from_the_one_before_is_told_nowhere(base, tmp_path, monkeypatch, caplog):
    """As after `erase --overwrite` into the folder of an audited model."""
    first, second = erased(base, (2, 2, 20)), erased(base, (0, 1, 20))
    monkeypatch.setattr("hf_kd.hub.document.has_package", lambda name: False)
    first.save_pretrained(tmp_path)
    document(first, tmp_path, report=report_of(first))
    verdict = report_of(first).verdict[:40]
    for command in (["inspect"], ["verify"]):
        assert verdict in " ".join(hf_kd(*command, tmp_path).stdout.split())
    second.save_pretrained(tmp_path)
    assert (tmp_path / REPORT).is_file(), "it stays: a folder's other files are a person's"
    for command in (["inspect"], ["verify"], ["card", "--json"]):
        assert verdict not in " ".join(hf_kd(*command, tmp_path).stdout.split())
    assert "Not audited" in (tmp_path / "README.md").read_text()
    caplog.clear()
    assert report_beside(tmp_path / REPORT, records_told(second)) is None
    assert "of another one and is not used: it was made for esc of classes [2]" in caplog.text
    assert report_beside(tmp_path / REPORT, records_told(first)) is not None
    refused = hf_kd("card", tmp_path, "--report", tmp_path / REPORT, code=1).stderr
    assert "of another model" in " ".join(refused.split())
