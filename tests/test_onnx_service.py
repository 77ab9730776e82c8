"""The example of an ONNX service: answers of the model, from a file alone."""

from __future__ import annotations

import importlib.util
import io
import json
import threading
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from tests.helpers.processes import LONG
from tests.helpers.small import picture


def test_the_service_answers_what_the_model_answers(exported, processor):
    path = Path(__file__).resolve().parents[1] / "examples" / "onnx_service.py"
    spec = importlib.util.spec_from_file_location("onnx_service", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    model, file = exported
    image, buffer = picture(1, 3, (40, 30)), io.BytesIO()
    image.save(buffer, "PNG")
    with torch.no_grad():
        scores = model.eval()(**processor([image], return_tensors="pt")).logits.softmax(dim=1)[0]
    server = ThreadingHTTPServer(("127.0.0.1", 0), example.handler(example.Service(file.path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/"
        with urllib.request.urlopen(url, buffer.getvalue(), timeout=LONG) as reply:
            answer = json.loads(reply.read())
        assert {each["label"] for each in answer} == {"ape", "bee", "dog", "elk"}
        for each in answer:
            assert each["score"] == pytest.approx(float(scores[model.config.label2id[each["label"]]]), abs=1e-4)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(url, b"no image", timeout=LONG)
    finally:
        server.shutdown()
        server.server_close()
