"""Serve an ONNX file of `hf-kd export` without torch, transformers and hf_kd: onnxruntime, NumPy and Pillow are enough.

    hf-kd export erased --output model.onnx
    python examples/onnx_service.py model.onnx --port 8000
    curl --data-binary @photo.jpg http://127.0.0.1:8000/

The answer is JSON: labels with their scores, or the embedding where the model has no labels. What the file needs to know of
the model (label names, how images are resized and normalised, which classes are masked) is in its own metadata. The features
it gives are erased; there is no output that is not. Who gets the file gets the weights: an eraser protects this service, not
a file that is handed out.
"""

from __future__ import annotations

import argparse
import io
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

MOST_BYTES = 20 * 2**20
Image.MAX_IMAGE_PIXELS = 25_000_000  # Pillow refuses twice as many


class Service:
    """An exported image tower.

    Args:
        file: What `hf-kd export` wrote.
    """

    def __init__(self, file: str | Path) -> None:
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        stored = self.session.get_modelmeta().custom_metadata_map
        facts = {key.removeprefix("hf_kd."): json.loads(value) for key, value in stored.items()}
        self.labels, self.masked, self.processor = facts["labels"], facts["masked"], facts["processor"]
        self.outputs = [output.name for output in self.session.get_outputs()]

    def pixels(self, image: Image.Image) -> np.ndarray:
        """[1, 3, H, W] as the image processor of the model makes it: resize, crop the centre, rescale, normalise."""
        settings, image = self.processor, ImageOps.exif_transpose(image).convert("RGB")
        if settings.get("do_resize"):
            size, resample = settings["size"], settings.get("resample", Image.Resampling.BILINEAR)
            if size.get("shortest_edge"):
                width, height = image.size
                scale = size["shortest_edge"] / min(width, height)
                image = image.resize((int(width * scale), int(height * scale)), resample)
            else:
                image = image.resize((size["width"], size["height"]), resample)
        if settings.get("do_center_crop"):
            crop = settings["crop_size"]
            left, top = (image.width - crop["width"]) // 2, (image.height - crop["height"]) // 2
            image = image.crop((left, top, left + crop["width"], top + crop["height"]))
        values = np.asarray(image, dtype=np.float32)
        if settings.get("do_rescale"):
            values = values * np.float32(settings["rescale_factor"])
        if settings.get("do_normalize"):
            values = (values - np.float32(settings["image_mean"])) / np.float32(settings["image_std"])
        return np.ascontiguousarray(values.transpose(2, 0, 1)[None])

    def answer(self, data: bytes, most: int = 5) -> list:
        """Labels and scores of one encoded image, best first; without labels its embedding."""
        rows = self.session.run(self.outputs, {"pixel_values": self.pixels(Image.open(io.BytesIO(data)))})
        named = dict(zip(self.outputs, rows, strict=True))
        if not self.labels:
            return named[self.outputs[-1]][0].tolist()
        exponents = np.exp(named["logits"][0] - named["logits"][0].max())
        scores = exponents / exponents.sum()
        best = [c for c in scores.argsort()[::-1].tolist() if c not in self.masked]
        return [{"label": self.labels[c], "score": float(scores[c])} for c in best[:most]]


def handler(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 < length <= MOST_BYTES:
                return self.reply(413, {"error": f"send one image of at most {MOST_BYTES:,} bytes"})
            try:
                return self.reply(200, service.answer(self.rfile.read(length)))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                return self.reply(400, {"error": "this is no image that can be read"})

        def reply(self, code: int, answer: object) -> None:
            body = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    ThreadingHTTPServer(("127.0.0.1", options.port), handler(Service(options.file))).serve_forever()


if __name__ == "__main__":
    main()
