"""Models saved by 0.1.0 still load and act as they did. `saved_0_1_0/make.py` describes how its folders were written."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import hf_kd
from hf_kd import ErasedModel

FOLDERS = sorted(path.parent for path in (Path(__file__).parent / "saved_0_1_0").glob("*/config.json"))
STOCK = {"folded": "hf_kd_folded", "unlearned": "hf_kd_unlearned", "trained": "hf_kd_trained"}
"""Checkpoints that transformers loads by itself, and where their configuration says what was done."""
ERASED = [folder for folder in FOLDERS if folder.name not in STOCK]
KINDS = {
    "composition",
    "cover",
    "kept-span",
    "masked-projection",
    "normed-projection",
    "oblique-projection",
    "projection",
}

named = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
erased = pytest.mark.parametrize("folder", ERASED, ids=lambda folder: folder.name)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def said(folder: Path) -> dict:
    return json.loads((folder / "expected.json").read_text(encoding="utf-8"))


def configured(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def load(folder: Path, like: Path | None = None, cls=ErasedModel):
    return cls.from_pretrained(
        folder, dtype=getattr(torch, said(like or folder).get("load", {}).get("dtype", "float32"))
    )


def plain(value):
    return json.loads(json.dumps(value))


@torch.no_grad()
def answers(model, saved: dict) -> dict[str, torch.Tensor]:
    inputs = {name: saved[name] for name in ("pixel_values", "input_ids") if name in saved}
    return {name: value for name, value in model.eval()(**inputs).items() if isinstance(value, torch.Tensor)}


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Within 1e-5 of the largest value: kernels differ between processors."""
    return found.shape == expected.shape and bool(
        (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(1)
    )


def features(rows) -> tuple[torch.Tensor, ...]:
    return rows if isinstance(rows, tuple) else (rows,)


def holds(record: dict, stored: dict) -> bool:
    """Whether everything stored is in the record; a later version may say more."""
    return {name: record.get(name, "missing") for name in stored} == stored


def test_every_kind_of_eraser_of_0_1_0_is_here():
    saved = [said(folder) for folder in ERASED]
    assert {kind for says in saved for kind in says["kinds"]} == KINDS
    assert len(FOLDERS) == len(ERASED) + len(STOCK)


@named
def test_answers_are_those_of_0_1_0(folder):
    says, saved = said(folder), load_file(folder / "expected.safetensors")
    model = load(folder)
    assert isinstance(model, ErasedModel)
    found = answers(model, saved)
    assert sorted(found) == sorted(says["outputs"]), "nothing is withheld that was answered, and nothing else answered"
    for name in says["outputs"]:
        assert close(found[name], saved[name]), name
    pictures = [Image.fromarray(pixels.numpy()) for pixels in saved["images"]]
    assert close(model.processor(pictures, return_tensors="pt")["pixel_values"], saved["pixel_values"])


@named
def test_the_auto_class_gives_the_same_model(folder):
    says, saved = said(folder), load_file(folder / "expected.safetensors")
    model = load(folder, cls=getattr(transformers, says["auto"]))
    features = says["type"] == "ErasedModel" and says["auto"] == "AutoModel"  # a class that 0.1.0 did not have
    assert type(model).__name__ == ("ErasedFeatureModel" if features else says["type"])
    if says["id2label"] is not None:
        assert {str(c): name for c, name in model.config.id2label.items()} == says["id2label"]
    for name, value in answers(model, saved).items():
        assert close(value, saved[name]), name


@erased
def test_it_says_of_itself_what_it_said(folder):
    says, model = said(folder), load(folder)
    assert model.is_erased == says["is_erased"] is True
    assert type(model.inner).__name__ == says["inner"]
    assert [erasure.method for erasure in model.erasures] == says["methods"]
    assert plain([erasure.classes for erasure in model.erasures]) == says["classes"]
    assert [erasure.k for erasure in model.erasures] == says["k"]
    assert [site.eraser.kind for site in model.sites] == says["kinds"]
    stages = [[stage["kind"] for stage in site.eraser.spec().get("stages", [])] for site in model.sites]
    assert stages == says["stages"]
    assert (list(model.config.masked), model.config.dropped) == (says["masked"], says["dropped"])
    assert {str(c): name for c, name in model.class_names.items()} == says["class_names"]
    assert len(model.taps) == len(says["taps"])
    stored = configured(folder)
    for erasure, record in zip(model.erasures, stored["erasures"], strict=True):
        assert erasure.versions["hf-kd"] == "0.1.0"
        assert holds(plain(erasure.to_dict()), record)
    for tap, record in zip(model.taps, stored["taps"], strict=True):
        assert holds(plain(tap.to_dict()), record)
    assert list(model.config.leaking) == stored["leaking"]


@pytest.mark.parametrize(("name", "key"), STOCK.items())
def test_a_stock_checkpoint_keeps_its_records(name, key):
    folder = next(folder for folder in FOLDERS if folder.name == name)
    model, stored = load(folder), configured(folder)
    assert not model.is_erased
    assert model.erasures == ()
    assert plain(getattr(model.inner.config, key)) == stored[key]
    assert type(model.inner).__name__ == said(folder)["type"]


def test_a_changed_and_then_erased_model_keeps_both_records():
    folder = next(folder for folder in ERASED if folder.name == "unlearned-then-erased")
    model = load(folder)
    assert plain(model.inner.config.hf_kd_unlearned) == configured(folder)["inner"]["hf_kd_unlearned"]
    assert model.inner.config.hf_kd_unlearned[0]["method"] == "scrub"
    assert [erasure.method for erasure in model.erasures] == ["esc"]


# Saving what was loaded


@named
def test_saved_again_it_answers_bit_for_bit_the_same(folder, tmp_path):
    says, saved = said(folder), load_file(folder / "expected.safetensors")
    model = load(folder)
    model.save_pretrained(tmp_path)
    again = load(tmp_path, like=folder)
    before, after = answers(model, saved), answers(again, saved)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert again.erasures == model.erasures
    assert again.is_erased == says.get("is_erased", False)
    assert again.config.id2label == model.config.id2label


def test_erasers_of_a_bfloat16_model_kept_their_precision():
    folder = next(folder for folder in ERASED if folder.name == "bfloat16")
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        stored = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118  (not a dict)
    assert {dtype for name, dtype in stored.items() if name.startswith("sites.")} == {torch.float32}
    assert {dtype for name, dtype in stored.items() if not name.startswith("sites.")} == {torch.bfloat16}
    model = ErasedModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert model.inner.dtype == torch.bfloat16
    assert {buffer.dtype for site in model.sites for buffer in site.eraser.buffers()} == {torch.float32}


# What the erasers do


@erased
@torch.no_grad()
def test_features_behind_the_eraser_are_those_of_0_1_0(folder):
    saved, model = load_file(folder / "expected.safetensors"), load(folder)
    behind = features(model.pooled_features(saved["pixel_values"]))
    for i, (site, rows) in enumerate(zip(model.sites, behind, strict=True)):
        assert close(rows, saved[f"pooled.{i}"])
        forget = saved[f"forget.{i}"]
        assert close(site.eraser(forget), saved[f"forget_erased.{i}"])
        assert not close(forget, saved[f"forget_erased.{i}"]), "it does something"


@erased
@torch.no_grad()
def test_without_its_eraser_it_is_the_model_from_before(folder):
    saved, model = load_file(folder / "expected.safetensors"), load(folder)
    front = features(model.pooled_features(saved["pixel_values"], stage="before"))
    erased_answers = answers(model, saved)
    model.reset()
    assert not model.is_erased
    behind = features(model.pooled_features(saved["pixel_values"]))
    assert all(torch.equal(a, b) for a, b in zip(front, behind, strict=True))
    assert model.config.id2label == model.class_names
    name = next(name for name in ("logits", "image_embeds", "pooler_output") if name in erased_answers)
    whole = answers(model, saved)[name]
    assert whole.shape != erased_answers[name].shape or not close(whole, erased_answers[name])


def plain_head(model):
    """The head of a classifier as a function, without the site in front of it."""
    head = getattr(model.inner, "classifier", None)
    linear = head[-1] if isinstance(head, torch.nn.Sequential) else head
    return None if linear is None else lambda rows: torch.nn.functional.linear(rows, linear.weight, linear.bias)


def removes_directions(eraser, forget):
    directions, left = eraser.directions.double(), eraser.erase(forget.double())
    assert float((left @ directions).abs().max()) < 1e-5 * float(forget.abs().max())
    return left


def projection(eraser, forget, measured, **_):
    left = removes_directions(eraser, forget)
    share = 1 - float((left**2).sum() / (forget.double() ** 2).sum())
    assert share == pytest.approx(
        measured["energy_removed"], abs=1e-3
    )  # one was fitted before its model became bfloat16


def normed_projection(eraser, forget, **_):
    left = removes_directions(eraser, forget)
    assert torch.allclose(left.norm(dim=1), forget.double().norm(dim=1))


def masked_projection(eraser, forget, measured, head, label, **_):
    left = eraser.erase(forget)
    assert 100 * float((head(forget).argmax(dim=1) == label).double().mean()) == measured["forget_hits_before"]
    assert 100 * float((head(left).argmax(dim=1) == label).double().mean()) == measured["forget_hits_hard"]


def oblique_projection(eraser, forget, retain, method, measured, **_):
    left, others = eraser.erase(forget.double()), eraser.erase(retain.double())
    assert len(forget) == measured["n_forget"]
    scale = float(forget.abs().max())
    if method == "leace":  # nothing linear tells both apart: their means are equal
        assert float((left.mean(dim=0) - others.mean(dim=0)).abs().max()) < 1e-5 * scale
    else:  # with remap=True the forget mean lies where a retained prototype is, which stays
        assert method == "prototype-orthogonal"
        rows = others.split(12)
        assert (
            float((others.reshape(-1, 12, 8).mean(1) - retain.double().reshape(-1, 12, 8).mean(1)).abs().max()) < 1e-4
        )
        nearest = min(float((left.mean(dim=0) - row.mean(dim=0)).abs().max()) for row in rows)
        assert nearest < 1e-4 * scale


def cover(eraser, forget, measured, head, label, **_):
    left = eraser.erase(forget)
    points = left.unique(dim=0)
    assert len(points) <= len(measured["cover_classes"])
    assert set(head(points).argmax(dim=1).tolist()) <= set(measured["cover_classes"])
    assert measured["share_of_forget_replaced"] == 1
    assert torch.equal(eraser.erase(left), left)


def kept_span(eraser, forget, head, label, **_):
    left, retained = eraser.erase(forget), [c for c in range(5) if c != label]
    before, after = head(forget)[:, retained], head(left)[:, retained]
    gaps = (before - before[:, :1]) - (after - after[:, :1])
    assert float(gaps.abs().max()) < 1e-4, "retained classes keep the differences of their logits"
    outside = torch.eye(8) - eraser.basis @ eraser.basis.T
    assert float(((left - left[0]) @ outside).abs().max()) < 1e-4 * float(forget.abs().max())


CHECKS = {
    "projection": projection,
    "normed-projection": normed_projection,
    "masked-projection": masked_projection,
    "oblique-projection": oblique_projection,
    "cover": cover,
    "kept-span": kept_span,
}


@pytest.mark.parametrize(
    "folder",
    [folder for folder in ERASED if len(said(folder)["methods"]) == 1 and len(said(folder)["taps"]) == 1],
    ids=lambda folder: folder.name,
)
@torch.no_grad()
def test_the_eraser_removes_what_it_removed(folder):
    """Of one request: what its record measured, and what its kind promises, on features it was fitted on."""
    saved, model = load_file(folder / "expected.safetensors"), load(folder)
    eraser, erasure = model.sites[0].eraser, model.erasures[0]
    CHECKS[eraser.kind](
        eraser,
        saved["forget.0"],
        retain=saved.get("retain.0"),
        head=plain_head(model),
        label=erasure.classes[0] if erasure.classes else None,
        method=erasure.method,
        measured=erasure.measured[0],
    )
    assert eraser.rank_removed == erasure.rank_removed[0]
    assert erasure.condition_number[0] in (None, pytest.approx(eraser.condition_number, rel=1e-3))


@torch.no_grad()
def test_compositions_do_one_stage_after_the_other():
    for folder in ERASED:
        saved, model = load_file(folder / "expected.safetensors"), load(folder)
        eraser = model.sites[0].eraser
        if eraser.kind == "composition":
            rows = saved["forget.0"]
            for stage in eraser.stages:
                rows = stage(rows)
            assert close(rows, saved["forget_erased.0"]), folder.name
            assert eraser.is_linear == (folder.name == "composition")


@torch.no_grad()
def test_both_requests_of_one_kind_are_one_projection():
    folder = next(folder for folder in ERASED if folder.name == "two-requests-one-kind")
    eraser = load(folder).sites[0].eraser
    assert eraser.directions.shape == (8, 2)
    assert float((eraser.directions.T @ eraser.directions - torch.eye(2)).abs().max()) < 1e-5


def test_masked_and_dropped_classes_are_not_answered():
    by_name = {folder.name: (load_file(folder / "expected.safetensors"), load(folder)) for folder in ERASED}
    saved, model = by_name["masked"]
    logits = answers(model, saved)["logits"]
    assert logits.shape == (4, 5)
    assert (logits[:, 2] == -1e4).all()
    assert model.config.id2label[2] == "(erased)"
    saved, model = by_name["dropped"]
    assert answers(model, saved)["logits"].shape == (4, 4)
    assert list(model.config.id2label.values()) == ["ape", "bee", "dog", "elk"]
    assert close(answers(model, saved)["logits"], logits[:, [0, 1, 3, 4]])
    folded = next(folder for folder in FOLDERS if folder.name == "folded")
    stock = answers(load(folded), load_file(folded / "expected.safetensors"))["logits"]
    assert torch.allclose(stock, logits, atol=1e-3), "folded into a head, the same eraser and mask"


def test_a_loaded_model_can_be_asked_again():
    """A second request on a model of 0.1.0 composes with the first."""
    folder = next(folder for folder in ERASED if folder.name == "projection")
    saved, model = load_file(folder / "expected.safetensors"), load(folder)
    pictures = [Image.fromarray(pixels.numpy()) for pixels in saved["images"]]
    model.erase(pictures, k=1, whole_classes=False, progress=False)
    assert [erasure.method for erasure in model.erasures] == ["esc", "esc"]
    assert model.sites[0].eraser.rank_removed == 3


# Receipts, report and card


@pytest.mark.parametrize(
    "folder", [f for f in FOLDERS if (f / "erasures.json").exists()], ids=lambda folder: folder.name
)
def test_the_receipt_is_still_that_of_the_files(folder, tmp_path, monkeypatch, capsys):
    for path in folder.iterdir():
        if path.stem != "expected":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    command = next(iter(entry_points(group="console_scripts", name="hf-kd"))).load()
    monkeypatch.setattr(sys, "argv", ["hf-kd", "verify", str(tmp_path), "--json"])
    with pytest.raises(SystemExit) as left:
        command()
    result = json.loads(capsys.readouterr().out)
    assert left.value.code in (None, 0), result
    assert result["ok"]
    assert len(result["checks"]) >= 3


def test_the_report_is_read_and_the_card_refreshed(tmp_path):
    folder = next(folder for folder in ERASED if folder.name == "with-report")
    report = hf_kd.RetentionReport.from_json(folder / "retention_report.json")
    stored = json.loads((folder / "retention_report.json").read_text(encoding="utf-8"))
    assert list(report.forget_labels) == stored["forget_labels"] == [2]
    assert len(report.sections) == len(stored["sections"])
    assert "linear" in report.to_markdown()
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    person = "\n## Words of a person\n\nStays.\n"
    readme = tmp_path / "README.md"
    readme.write_text(readme.read_text(encoding="utf-8") + person, encoding="utf-8")
    load(tmp_path).save_pretrained(tmp_path)
    assert readme.read_text(encoding="utf-8").endswith(person)
    assert readme.read_text(encoding="utf-8").count("# ViTForImageClassification, erased") == 1


def test_nothing_of_the_machine_that_wrote_them_is_in_them():
    for path in [path for folder in FOLDERS for path in folder.iterdir() if path.suffix in (".json", ".md")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(tmp|home|root|work|Users)\b|[A-Z]:\\\\", text), path
        for name in re.findall(r'"_?name_or_path": "([^"]*)"', text):
            assert not name, path
        for name in re.findall(r'"base_model": ([^,\n]*)', text):
            assert name == "null", path
