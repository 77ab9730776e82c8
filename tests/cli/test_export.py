"""`hf-kd export`: a file beside the model, what was compared, and refusals in the words of the command line."""

from __future__ import annotations

import json

import pytest

from hf_kd import ErasedModel
from hf_kd.model import onnx_export
from tests.cli.runner import hf_kd

onnx = pytest.importorskip("onnx", reason="needs the extra hf-kd[onnx]")
pytest.importorskip("onnxruntime", reason="needs the extra hf-kd[onnx]")
pytest.importorskip("onnxscript", reason="needs the extra hf-kd[onnx]")


def test_an_erased_model_becomes_a_file(exported, place, tmp_path, monkeypatch):
    model, graph = exported
    erased, file = tmp_path / "erased", tmp_path / "out.onnx"
    model.save_pretrained(erased)
    monkeypatch.setattr(onnx_export, "_proto", lambda _: onnx.load(graph.path))  # capturing it takes seconds
    cats = ["--dataset", place / "data", "--forget-labels", "cat"]
    done = hf_kd("export", erased, "--to", "onnx", "--output", file, *cats, "--quiet")
    said = " ".join(done.stdout.split())
    assert "opset 20, float32" in said
    assert "takes pixel_values [batch, 3, 16, 16]" in said
    assert "gives logits [batch, 5]; features [batch, 32]" in said
    before = file.read_bytes()
    done = hf_kd("export", erased, "--output", file, code=1)
    assert "or replace it with --overwrite" in " ".join(done.stderr.split())
    assert file.read_bytes() == before
    asked, export = [], ErasedModel.export_onnx
    monkeypatch.setattr(
        ErasedModel, "export_onnx", lambda *a, dtype, **more: asked.append(dtype) or export(*a, dtype="float32", **more)
    )
    done = hf_kd("export", erased, "--output", file, "--overwrite", "--dtype", "float16", "--json")
    (told,) = json.loads(done.stdout)
    assert asked == ["float16"]
    assert told["erased"]
    assert max(told["deviation"].values()) <= told["tolerance"]
    done = hf_kd("export", place / "model", "--output", tmp_path / "bare.onnx", code=1)
    assert "Nothing has been erased" in done.stderr


def test_a_file_of_another_kind_is_refused_before_anything_is_imported(place, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_kd.cli._inputs.load_libraries", lambda shared: pytest.fail("imported"))
    done = hf_kd("export", place / "model", "--output", tmp_path / "model.pt", code=1)
    assert "model.pthastoendin.onnx" in "".join(done.stderr.split()), "wherever the line is broken"
