"""What lies beside a model: a person's README is kept byte for byte, and nothing that lies there costs the model."""

from __future__ import annotations

import copy
import json
import os
import re

import pytest
from huggingface_hub import ModelCard

from hf_kd import ErasedModel, unlearn
from hf_kd.hub.card import BEGIN, END
from hf_kd.hub.document import REPORT, document
from hf_kd.hub.files import RECEIPT, outcome_in
from hf_kd.hub.publish import _drop_names, publishable
from hf_kd.hub.receipt import read_receipt, write_receipt
from hf_kd.model.verify import verify
from tests.conftest import image_processor
from tests.helpers.audited import LEAST, audited
from tests.helpers.small import NAMES, make_dataset

TEXT = "---\nlicense: mit\ntags:\n- pets\n---\n\n# Café pets\n\nMy own words.\n\n\n| a | b |\n"


@pytest.fixture
def erased(vit, processor, forget):
    return ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False)


def test_the_card_shows_the_scan_that_chose_a_cut_and_a_broken_one_does_not_cost_it(
    vit, processor, forget, tmp_path, caplog
):
    changed = unlearn(vit, forget, "head-surgery", processor=processor, progress=False)
    tried = [{"block": f"b{n}", "blocks_kept": n, "reading": 60.0, "noise": 1.0, "retained": 80.0} for n in (2, 1)]
    for name, scan in (("whole", tried), ("broken", [{"block": "b1"}])):
        changed.config.hf_kd_unlearned[-1]["measured"][0]["scan"] = scan
        changed.save_pretrained(tmp_path / name)
        document(ErasedModel.from_model(changed, processor), tmp_path / name)
        is_drawn = "](figures/cut_scan.png)" in (tmp_path / name / "README.md").read_text()
        assert is_drawn == (tmp_path / name / "figures" / "cut_scan.png").is_file() == (name == "whole")
    assert "could not be drawn" in caplog.text


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "shift-jis", "cp1252"])
def test_a_readme_in_another_encoding_is_left_alone_and_the_model_is_saved(erased, tmp_path, encoding, caplog):
    written = "\u00e9" if encoding != "shift-jis" else "\u732b"
    (tmp_path / "README.md").write_bytes(f"# {written} pets\n".encode(encoding))
    before = (tmp_path / "README.md").read_bytes()
    erased.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == before
    assert [record.message for record in caplog.records if "README.md" in record.message] != []
    assert verify(tmp_path).ok
    document(erased, tmp_path)
    assert (tmp_path / "README.md").read_bytes() == before


@pytest.mark.parametrize(
    "what", ["folder", "dangling link", "empty", "metadata that is no YAML", "metadata that is a list"]
)
def test_whatever_is_called_readme_does_not_cost_the_model(erased, tmp_path, what):
    readme = tmp_path / "README.md"
    if what == "folder":
        readme.mkdir()
    elif what == "dangling link":
        readme.symlink_to("nowhere.md")
    else:
        text = {
            "empty": "",
            "metadata that is no YAML": "---\na: [\n---\n",
            "metadata that is a list": "---\n- a\n---\n",
        }
        readme.write_text(text[what])
    erased.save_pretrained(tmp_path)
    assert verify(tmp_path).ok
    assert readme.is_dir() == (what == "folder")
    document(erased, tmp_path)
    assert ErasedModel.from_pretrained(tmp_path).is_erased


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_a_persons_text_keeps_its_line_ends_and_its_metadata(erased, tmp_path, end, mark):
    body = TEXT.split("---\n\n", 1)[1].replace("\n", end).encode()
    erased.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_bytes(mark + TEXT.replace("\n", end).encode())
    document(erased, tmp_path)
    once = (tmp_path / "README.md").read_bytes()
    assert body in once
    assert (b"\r\n" in once) == (end == "\r\n")
    if end == "\r\n":
        assert once.count(b"\n") == once.count(b"\r\n"), "one kind of line end in a file"
    card = ModelCard(once.decode("utf-8"))
    assert card.data.license == "mit"
    assert {"pets", "machine-unlearning"} <= set(card.data.tags)
    assert once.count(b"license:") == 1
    document(erased, tmp_path)
    assert (tmp_path / "README.md").read_bytes() == once, "a second time changes nothing"
    erased.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes().count(BEGIN.encode()) == 1
    assert body in (tmp_path / "README.md").read_bytes()
    assert END in once.decode()
    assert os.listdir(tmp_path).count("README.md") == 1


@pytest.mark.parametrize("kind", ["erasures", "hf_kd_unlearned", "hf_kd_folded"])
def test_what_only_the_data_calls_by_name_is_not_pushed_from_any_record(tmp_path, kind):
    config, records = (
        tmp_path / "config.json",
        {kind: [{"dataset_classes": ["cat"], "files": {"forget": {"cat.png": 1}}}]},
    )
    config.write_text(json.dumps({**records, "inner": records}))
    _drop_names(config)
    assert "cat" not in config.read_text()


@pytest.mark.parametrize("folded", [False, True])
def test_a_request_that_was_folded_in_before_is_told_beside_the_later_one(erased, tmp_path, folded):
    """The head is not the original's any more, and two classes were forgotten, not one."""
    base = ErasedModel.from_model(erased.fold(), image_processor())
    base.inner.save_pretrained(tmp_path / "base")
    dogs = make_dataset([3] * 20)
    base.config.base_model = "ana/folded"  # as if it had been loaded from there
    model = base.erase(dogs, k=1, progress=False)
    if folded:
        model.fold().save_pretrained(tmp_path / "model")
        document(model, tmp_path / "model", folded=True)
    else:
        model.save_pretrained(tmp_path / "model")
    card = " ".join((tmp_path / "model" / "README.md").read_text().split())
    content = read_receipt(tmp_path / "model" / RECEIPT)
    assert "made to forget 2 classes" in card
    assert "The weights were changed" in card
    assert "The weights are the original's" not in card
    assert "has the original model again" not in card
    assert [len(content[kind]) for kind in ("changes", "folded_before", "erasures")] == [0, 1, 1]
    assert content["weights"]["unchanged"] is None
    assert ["--fold" in line for line in content["commands"]] == [True, folded]
    assert content["base_model"] is None, "the model before the first request, and not the folded one"
    assert content["commands"][0].split()[2] == "BASE_MODEL"
    again = verify(tmp_path / "model", dogs, base=str(tmp_path / "base") if folded else None)
    assert again.ok, again
    assert again.repeated
    content["folded_before"] = []
    write_receipt(tmp_path / "model", content)
    assert folded or not verify(tmp_path / "model").ok


def test_weights_that_were_changed_after_a_fold_are_told_in_that_order_and_published(erased, tmp_path):
    """No eraser stands in such a model, and none is folded in last: it is what `unlearn` left."""
    folded = erased.fold()
    folded.save_pretrained(tmp_path / "base")
    dogs, rest = make_dataset([3] * 8), make_dataset([0, 1, 4] * 4)
    changed = unlearn(folded, dogs, "finetune", retain=rest, processor=image_processor(), epochs=1, progress=False)
    changed.save_pretrained(tmp_path / "model")
    model = ErasedModel.from_model(changed, image_processor())
    assert publishable(model)
    assert outcome_in(tmp_path / "model") == "changed"
    document(model, tmp_path / "model")
    card = " ".join((tmp_path / "model" / "README.md").read_text().split())
    assert "by folding an eraser into its head and changing its weights (`finetune`)" in card
    assert "library_name: transformers" in card
    assert "take the eraser away" not in card
    assert "ErasedModel" not in card
    assert card.index("method `esc`") < card.index("method `finetune`")
    content = read_receipt(tmp_path / "model" / RECEIPT)
    assert [line.split()[1] for line in content["commands"]] == ["erase", "unlearn"]
    assert "--fold" in content["commands"][0]
    assert (content["base_model"], content["weights"]["before"]) == (None, None), "of the folded one, not of the first"
    assert verify(tmp_path / "model").ok
    again = ErasedModel.from_model(copy.deepcopy(changed), image_processor()).erase(dogs, k=1, progress=False).fold()
    again.save_pretrained(tmp_path / "again")
    assert outcome_in(tmp_path / "again") == "folded"
    assert not publishable(ErasedModel.from_model(again, image_processor()))


@pytest.mark.parametrize("earlier", ["in the model", "folded"])
def test_an_audit_of_one_forgotten_class_names_none_that_was_forgotten_by_another_request(
    erased, tmp_path, earlier, monkeypatch
):
    """ "cat" is forgotten first, then "ape"; the audit asks for "ape", and counts "cat" among the retained classes."""
    monkeypatch.setattr("hf_kd.hub.document.has_package", lambda name: False)  # figures take seconds
    if earlier == "folded":
        erased = ErasedModel.from_model(erased.fold(), image_processor())
    erased.erase(make_dataset([0] * 20), k=1, progress=False)
    report = audited(forget=0, class_names=dict(enumerate(NAMES)), **LEAST)
    erased.save_pretrained(tmp_path)
    for named in (False, True):
        document(erased, tmp_path, report=report, show_class_names=named)
        card, told = ((tmp_path / name).read_text() for name in ("README.md", REPORT))
        assert {*re.findall(r"\b(?:ape|cat)\b", card + told)} == ({"ape", "cat"} if named else set())
        assert "bee" in told, "retained classes keep their names"
