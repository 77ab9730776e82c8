"""A model whose weights `unlearn` changed: its card, receipt and audit tell that, and no eraser is pretended."""

from __future__ import annotations

import copy
import json

import pytest
from transformers import AutoModelForImageClassification

from hf_kd import AuditOptions, ErasedModel, unlearn, unlearning_methods
from hf_kd.data.text import escape_markdown
from hf_kd.hub.document import document
from hf_kd.hub.publish import publishable
from hf_kd.hub.receipt import RECEIPT, read_receipt
from hf_kd.methods.records import weight_changes
from hf_kd.model.verify import verify
from tests.helpers.small import make_dataset
from tests.model.test_verify import train

QUICK = {"options": AuditOptions(attacks=["linear"], draws=1, shots=[1, 5]), "progress": False}


@pytest.fixture
def changed(vit, processor, forget, tmp_path):
    """(original, changed) as loaded from their folders."""
    places = {"original": vit, "changed": unlearn(vit, forget, "delete", processor=processor, epochs=2, lr=0.05,
                                                  progress=False)}  # fmt: skip
    for name, model in places.items():
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    return tuple(ErasedModel.from_pretrained(tmp_path / name) for name in places)


def test_the_card_says_what_was_done_and_where_it_comes_from(changed, tmp_path):
    _, model = changed
    document(model, tmp_path / "changed", show_class_names=True)
    text = (tmp_path / "changed" / "README.md").read_text()
    told = " ".join(text.split())
    source = escape_markdown(unlearning_methods()["delete"].source, 200)
    for words in ("made to forget cat", "by changing its weights (`delete`)", "No eraser stands in it", "used D\\_f",
                  source, "20 images", "hf-kd unlearn BASE_MODEL", "--method delete",
                  "library_name: transformers", "Not audited"):  # fmt: skip
        assert words in told, words
    for words in ("take the eraser away", "The eraser stands at", "weights of the base model are unchanged",
                  "import hf_kd", "concept-erasure", "directions removed"):  # fmt: skip
        assert words not in told, words


def test_the_receipt_checks_weights_before_and_after(changed, tmp_path):
    _, model = changed
    document(model, tmp_path / "changed")
    content = read_receipt(tmp_path / "changed" / RECEIPT)
    assert (content["erasures"], content["erasers"], content["weights"]["unchanged"]) == ([], None, False)
    assert content["changes"][0]["method"] == "delete"
    found = verify(tmp_path / "changed", base=str(tmp_path / "original"))
    assert found.ok
    assert not found.repeatable
    given = verify(tmp_path / "changed", make_dataset([2] * 4))
    assert given.undecided, "images alone do not change weights again, which is nobody's fault"
    assert "What changed the weights was not carried out again: only the command in the receipt" in given.headline
    config = tmp_path / "changed" / "config.json"
    config.write_text(config.read_text().replace('"delete"', '"scrub"'))
    assert not verify(tmp_path / "changed").ok


def test_training_after_unlearning_is_told_by_receipt_card_and_verify(changed, pixels, tmp_path):
    """Whoever trains a stock model and saves it writes no receipt; the records know what weights they left."""
    folder = tmp_path / "changed"

    def told():
        model = ErasedModel.from_pretrained(folder)
        (folder / RECEIPT).unlink(missing_ok=True)
        document(model, folder)
        checked = verify(folder)
        assert checked.ok
        since = read_receipt(folder / RECEIPT)["weights"]["since"]
        for text in ((folder / "README.md").read_text(), " ".join(check.found for check in checked.checks)):
            assert ("trained since" in text.lower()) == (since == "trained")
        return since

    assert told() == "unchanged"
    stock = AutoModelForImageClassification.from_pretrained(folder)
    stock.half().save_pretrained(folder)
    assert told() == "converted"
    stock = train(changed[1], pixels).inner
    stock.save_pretrained(folder)
    assert told() == "trained"
    again = unlearn(stock, make_dataset([1] * 10), "delete", epochs=1, lr=0.05, allow_unrecognised=True,
                    processor=changed[1].processor, progress=False)  # fmt: skip
    again.save_pretrained(folder)
    assert told() == "trained", "between two requests counts as well"


def test_an_eraser_on_weights_that_were_trained_after_unlearning(changed, pixels, forget, tmp_path):
    erased = ErasedModel.from_model(copy.deepcopy(changed[1].inner), changed[1].processor)
    erased.erase(forget, k=1, progress=False).save_pretrained(tmp_path / "erased")
    assert read_receipt(tmp_path / "erased" / RECEIPT)["weights"]["since"] == "unchanged"
    trained = ErasedModel.from_model(train(changed[1], pixels).inner, changed[1].processor)
    trained.erase(forget, k=1, progress=False).save_pretrained(tmp_path / "trained")
    assert read_receipt(tmp_path / "trained" / RECEIPT)["weights"]["since"] == "trained"


def test_an_audit_finds_the_classes_and_warns_without_the_original(changed, caplog):
    original, model = changed
    splits = make_dataset([0, 1, 2, 3, 4] * 12), make_dataset([0, 1, 2, 3, 4] * 8, seed=9)
    report = model.audit(*splits, original=original, **QUICK)
    assert report.samples["D_f"] == 12
    assert report.section("weights").scores
    assert not caplog.records
    assert report.context["changes"][0]["method"] == "delete"
    assert "Cells: changed / original" in report.to_markdown()
    assert "| erased |" not in report.to_markdown()
    model.erase(make_dataset([3] * 8), k=2, progress=False)
    assert "Cells: erased / original" in model.audit(*splits, original=original, **QUICK).to_markdown()
    model.reset()
    model.audit(*splits, **QUICK)
    assert "nothing of before stands in the report" in caplog.text
    with pytest.raises(ValueError, match="Nothing was erased"):
        original.audit(*splits, **QUICK)


def test_an_eraser_on_changed_weights_is_told_as_both(changed, forget, tmp_path):
    original, model = changed
    model.erase(make_dataset([3] * 8), k=2, progress=False)
    model.save_pretrained(tmp_path / "both")
    told = " ".join((tmp_path / "both" / "README.md").read_text().split())
    assert "its weights were changed (`delete`), then an eraser was put where its pooled features pass" in told
    assert "made to forget 2 classes" in told
    assert "the weights of the base model are unchanged" not in told
    assert "has the model as its weights were changed" in told
    content = read_receipt(tmp_path / "both" / RECEIPT)
    assert [line.split()[1] for line in content["commands"]] == ["unlearn", "erase"]
    assert content["commands"][1].split()[2] == "changed"
    again = verify(tmp_path / "both", make_dataset([3] * 8), base=str(tmp_path / "original"))
    assert again.ok, again
    assert publishable(ErasedModel.from_pretrained(tmp_path / "both"))
    assert not publishable(ErasedModel.from_model(model.fold(), model.processor)), "a fold leaves no receipt"
    assert not publishable(original)


def test_records_that_cannot_be_read_are_damage(changed, tmp_path):
    config = tmp_path / "changed" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"hf_kd_unlearned": ["delete"]}))
    with pytest.raises(ValueError, match="hf_kd_unlearned"):
        weight_changes(ErasedModel.from_pretrained(tmp_path / "changed").config)


def test_push_publishes_a_stock_checkpoint_and_loads_it_back(changed, hub, run_client, tmp_path):
    done = run_client(["push", "changed", "ana/forgetful", "--json"])
    assert json.loads(done.out)["verified"]
    done = run_client("""
from pathlib import Path
from transformers import AutoModelForImageClassification
from hf_kd.cli._published import erased_in
from hf_kd.model.verify import verify
model = AutoModelForImageClassification.from_pretrained("ana/forgetful")
print(type(model).__name__, model.config.hf_kd_unlearned[0]["method"], verify("ana/forgetful").ok)
for folder, options in (("original", {}), ("changed", {"folded": True})):
    try:
        erased_in(Path(folder)).push_to_hub("ana/other", **options)
    except ValueError as error:
        print(error)
""")
    assert done.out.split()[:3] == ["ViTForImageClassification", "delete", "True"]
    assert "no weights changed by hf_kd" in done.out
    assert "no eraser to fold" in done.out
