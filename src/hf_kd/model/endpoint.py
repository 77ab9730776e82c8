"""Answer the requests of a Hugging Face Inference Endpoint: images in, labels or embeddings out, nothing un-erased."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hf_kd.data.hidden_state import logits_of
from hf_kd.data.images import DECODER_ERRORS, to_rgb
from hf_kd.data.samples import one_batch
from hf_kd.errors import HfKdError, InvalidTypeError, InvalidValueError, shortened
from hf_kd.features.heads import class_scores, has_head
from hf_kd.features.reader import preprocessor_of
from hf_kd.features.taps.inputs import explaining, in_dtype_of
from hf_kd.hub.publish import publishable

from .erased_model import ErasedModel

MOST_BYTES = 20 * 2**20
"""Of one encoded image."""
MOST_PIXELS = 50_000_000
"""Of one image, asked of its header before it is decoded."""
MOST_TIMES = 100
"""How often the short side of an image may go into its long one: a strip, resized by its short side, is huge."""
MOST_IMAGES = 32
"""Of one request."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
KINDS = ("labels", "embeddings")

Answer = list[Any] | dict[str, Any]


class EndpointHandler:
    """The custom handler of an Inference Endpoint: `hf-kd push --handler` puts a handler.py into a repository that names it.

    A request is `{"inputs": ..., "parameters": {"return": "labels" | "embeddings", "top_k": 5}}`. `inputs` is one image or a
    list of them, each raw bytes, base64 (also as a data URL) or, as the endpoint decodes `image/*` bodies, a PIL image; an
    address is not fetched. The answer for one image is a list of {"label", "score"}, best first and without masked classes,
    or the erased pooled features (of a two-tower model the image embedding) as a list of numbers; for a list of images a
    list of such. What is wrong with a request, or with one image of a list, is answered as {"error": ...} in its place.
    There is no way to hidden states and to features before the eraser. Threads may ask at once.

    Args:
        path: Folder of the repository.

    Raises:
        InvalidValueError: The model in it was neither erased nor changed, or has no image processor.
    """

    def __init__(self, path: str = "") -> None:
        model = ErasedModel.from_pretrained(path or ".")
        if not publishable(model):
            raise InvalidValueError(
                f"{path or '.'} holds a model of which nothing was erased, or whose features are not: this handler serves "
                "erased models. Serve a stock model without a handler."
            )
        if model.processor is None:
            raise InvalidValueError(f"{path or '.'} has no image processor: save the model with one.")
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
        self.model.find_taps()
        self._prepare = preprocessor_of(model, exact_shortcuts=False)  # without state, for threads

    def __call__(self, data: Mapping[str, Any]) -> Answer:
        """The answer to one request, ready for JSON."""
        try:
            kind, top_k = self._parameters(data)
            given = data["inputs"]
            if not isinstance(given, list | tuple):
                (answer,) = self._answers([given], kind, top_k)
                return answer
            if not 0 < len(given) <= MOST_IMAGES:
                raise InvalidValueError(f"inputs has {len(given)} images; a request holds 1 to {MOST_IMAGES}.")
            return self._answers(given, kind, top_k)
        except HfKdError as error:
            return _refusal(error)

    def _parameters(self, data: Any) -> tuple[str, int]:
        if not isinstance(data, Mapping) or "inputs" not in data:
            raise InvalidTypeError('A request is {"inputs": IMAGE} or {"inputs": [IMAGE, ...]}.')
        parameters = data.get("parameters") or {}
        if not isinstance(parameters, Mapping) or set(parameters) - {"return", "top_k"}:
            raise InvalidValueError(f"parameters={shortened(parameters)}: there are return and top_k.")
        kind = parameters.get("return", KINDS[0] if has_head(self.model) else KINDS[1])
        top_k = parameters.get("top_k", 5)
        if kind not in KINDS or (kind == KINDS[0] and not has_head(self.model)):
            raise InvalidValueError(f"return={shortened(kind)}: this model returns {' or '.join(self._kinds)}.")
        if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
            raise InvalidValueError(f"top_k={shortened(top_k)} has to be a whole number above 0.")
        return kind, top_k

    @property
    def _kinds(self) -> Sequence[str]:
        return KINDS if has_head(self.model) else KINDS[1:]

    def _answers(self, given: Sequence[Any], kind: str, top_k: int) -> list[Any]:
        """One answer for each image, an error in the place of one that cannot be read."""
        answers: list[Any] = [None] * len(given)
        prepared: dict[int, dict[str, Tensor]] = {}
        for number, value in enumerate(given):  # one after the other: of 32 images at once there may be gigabytes
            try:
                prepared[number] = self._prepare([_image(value, f"Image {number}" if len(given) > 1 else "The image")])
            except HfKdError as error:
                answers[number] = _refusal(error)
        for number, row in zip(prepared, self._each(list(prepared.values()), kind, top_k), strict=True):
            answers[number] = row
        return answers

    def _each(self, images: list[dict[str, Tensor]], kind: str, top_k: int) -> list[Any]:
        """One answer for the inputs of each image: in one batch, or alone where they make none."""
        if not images:
            return []
        try:
            return self._ask(images, kind, top_k)
        except (HfKdError, ValueError) as error:  # models refuse images of another size with ValueError
            if len(images) == 1:
                return [_refusal(error)]
        return [row for image in images for row in self._each([image], kind, top_k)]

    @torch.no_grad()
    def _ask(self, images: list[dict[str, Tensor]], kind: str, top_k: int) -> list[Any]:
        together = {name: one_batch([image[name] for image in images]) for name in images[0]}
        inputs = in_dtype_of(self.model.inner, together)
        if kind == "embeddings":
            features = self.model.pooled_features(**inputs)
            rows = features if isinstance(features, Tensor) else torch.cat(features, dim=1)
            return _finite(rows).tolist()
        with explaining(self.model.inner, inputs):
            logits = logits_of(self.model(**inputs))
        return [self._labels(row, top_k) for row in class_scores(self.model, _finite(logits))]

    def _labels(self, scores: Tensor, top_k: int) -> list[dict[str, Any]]:
        config = self.model.config
        hidden = set() if config.dropped else set(config.masked)
        best = [c for c in scores.argsort(descending=True).tolist() if c not in hidden][:top_k]
        return [{"label": str(config.id2label.get(c, c)), "score": float(scores[c])} for c in best]


def _image(value: Any, called: str) -> Image.Image:
    """An image of a request, upright and RGB; errors call it so.

    Raises:
        InvalidValueError: It is too large, or none.
    """
    data = None if isinstance(value, Image.Image) else _encoded(value)
    try:
        image = value if data is None else Image.open(io.BytesIO(data), formats=FORMATS)
    except DECODER_ERRORS as error:
        raise InvalidValueError(f"{called} is none of {', '.join(FORMATS)}, is damaged, or far too large.") from error
    if image.width * image.height > MOST_PIXELS:
        raise InvalidValueError(
            f"{called} has {image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are read. Send a smaller one."
        )
    if max(image.size) > MOST_TIMES * min(image.size):
        raise InvalidValueError(
            f"{called} is {image.width} x {image.height}: at most {MOST_TIMES} times as long as wide is read. Crop it."
        )
    return to_rgb(image, 0, called)


def _encoded(value: Any) -> bytes:
    """The bytes of an image file, of base64 too."""
    most = MOST_BYTES if isinstance(value, bytes | bytearray) else MOST_BYTES * 4 // 3 + 100
    if not isinstance(value, bytes | bytearray | str):
        raise InvalidTypeError(f"A {type(value).__name__} is no image: send bytes or base64.")
    if len(value) > most:
        raise InvalidValueError(
            f"An image of {len(value):,} bytes is too large: at most {MOST_BYTES:,} are read. Send a smaller one."
        )
    if not isinstance(value, str):
        return bytes(value)
    try:
        return base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidValueError(
            "A text is read as base64, and this is none; addresses are not fetched. Send the bytes."
        ) from error


def _finite(rows: Tensor) -> Tensor:
    """Rows in float32 on the CPU, as JSON takes them: it has no NaN."""
    if not bool(rows.isfinite().all()):
        raise InvalidValueError(
            f"The model's answer in {str(rows.dtype).removeprefix('torch.')} is not finite: serve it in float32 or bfloat16."
        )
    return rows.float().cpu()


def _refusal(error: Exception) -> dict[str, str]:
    return {"error": str(error)}
