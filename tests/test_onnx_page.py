"""The page on ONNX and Inference Endpoints holds: its Python runs as it stands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from hf_kd import ErasedModel
from hf_kd.hub.endpoint import FILES
from tests.helpers.small import picture

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "onnx.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def block(holding: str) -> str:
    (found,) = (text for text in BLOCKS if holding in text)
    return found


@pytest.fixture(autouse=True)
def photo(tmp_path, monkeypatch):
    """In the working directory."""
    monkeypatch.chdir(tmp_path)
    picture(3, 5, (40, 30)).save("photo.png")


def scores_of(model, processor):
    with torch.no_grad():
        scores = model(**processor([picture(3, 5, (40, 30))], return_tensors="pt")).logits.softmax(dim=1)[0]
    return {name: float(scores[c]) for name, c in model.config.label2id.items()}


def test_onnxruntime_reads_the_labels_of_the_model(exported, processor):
    erased, file = exported
    shutil.copy(file.path, "model.onnx")
    ran: dict[str, object] = {}
    exec(compile(block("InferenceSession"), "onnx.md", "exec"), ran)
    expected = scores_of(erased, processor)
    assert dict(ran["answers"]) == pytest.approx({name: expected[name] for name, _ in ran["answers"]}, abs=1e-4)
    assert {name for name, _ in ran["answers"]} == {"ape", "bee", "dog", "elk"}


def test_the_handler_that_is_shown_is_the_one_that_is_written():
    assert block("__all__") == FILES["handler.py"]


def test_requests_are_answered_in_the_shapes_that_are_shown(vit, processor, forget):
    erased = ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False, mask_head=True).eval()
    erased.save_pretrained("erased")
    ran: dict[str, object] = {}
    exec(compile(block("handler({"), "onnx.md", "exec"), ran)
    expected = scores_of(erased, processor)
    assert {each["label"]: each["score"] for each in ran["one"]} == pytest.approx(
        {each["label"]: expected[each["label"]] for each in ran["one"]}, abs=1e-5
    )
    assert [[each["label"] for each in answer] for answer in ran["several"]] == [[ran["one"][0]["label"]]] * 2
    assert len(ran["embedding"]) == erased.sites[0].tap.dim
    assert ran["refused"]["error"].startswith("The image is none of PNG, ")
