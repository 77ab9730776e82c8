"""The handler of an Inference Endpoint answers as the model does, behind the eraser, and bad requests cost no other."""

from __future__ import annotations

import base64
import copy
import io
import json
import struct
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from hf_kd import ErasedModel
from hf_kd.audit.splits import untrained_logits
from hf_kd.errors import InvalidValueError
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.model import endpoint
from hf_kd.model.endpoint import EndpointHandler
from tests.conftest import image_processor, small_vit
from tests.helpers import zoo
from tests.helpers.small import NAMES, make_dataset, picture
from tests.helpers.two_towers import two_towers


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def claiming(width, height):
    """A PNG of a few bytes whose header names a size."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = ErasedModel.from_model(copy.deepcopy(small_vit()), image_processor())
    model.erase(make_dataset([2] * 20), k=2, progress=False, mask_head=True)
    folder = tmp_path_factory.mktemp("endpoint") / "erased"
    model.save_pretrained(folder)
    return model.eval(), folder


@pytest.fixture(scope="module")
def handler(saved):
    """One for all requests, as an endpoint has; a test that changes it makes its own."""
    return EndpointHandler(str(saved[1]))


def test_a_classifier_that_calls_its_logits_otherwise_answers_too(tmp_path):
    """PPLCNet's stand in a field with the name of a hidden state."""
    processor = image_processor()
    processor.size = {"height": 48, "width": 48}
    inner = zoo.build("PPLCNetForImageClassification")
    inner.config.id2label, inner.config.label2id = dict(enumerate(NAMES)), {name: n for n, name in enumerate(NAMES)}
    model = ErasedModel.from_model(inner, processor)
    model.erase(make_dataset([2] * 20), k=2, progress=False, allow_unrecognised=True)
    model.save_pretrained(tmp_path / "model")
    answers = EndpointHandler(str(tmp_path / "model"))({"inputs": encoded(picture(3, 5)), "parameters": {"top_k": 9}})
    assert {answer["label"] for answer in answers} == set(NAMES)
    reader = ImageReader(model, make_dataset([2] * 3), ReadOptions(progress=False))
    assert untrained_logits(reader, [2]).shape == (3, len(NAMES))


def test_labels_are_those_of_the_model_and_masked_ones_are_not_among_them(saved, handler, pixels):
    image = picture(3, 5)
    answer = handler({"inputs": encoded(image), "parameters": {"top_k": 9}})
    with torch.no_grad():
        inputs = saved[0].processor([image], return_tensors="pt")
        scores = saved[0](**inputs).logits.softmax(dim=1)[0]
    assert {each["label"] for each in answer} == {"ape", "bee", "dog", "elk"}
    assert [each["score"] for each in answer] == sorted((each["score"] for each in answer), reverse=True)
    for each in answer:
        assert each["score"] == pytest.approx(float(scores[saved[0].config.label2id[each["label"]]]), abs=1e-6)
    assert len(handler({"inputs": encoded(image), "parameters": {"top_k": 1}})) == 1
    assert json.loads(json.dumps(answer)) == answer


def test_every_form_of_an_image_is_the_same_image(handler):
    image = picture(1, 3)
    raw = encoded(image)
    text = base64.b64encode(raw).decode()
    forms = [raw, text, f"data:image/png;base64,{text}", image]
    answers = [handler({"inputs": form}) for form in forms]
    assert all(answer == answers[0] for answer in answers)
    together = handler({"inputs": forms})
    assert [[each["label"] for each in row] for row in together] == [[each["label"] for each in answers[0]]] * 4


def test_embeddings_are_erased(saved, handler):
    image = picture(2, 3)
    row = torch.tensor(handler({"inputs": encoded(image), "parameters": {"return": "embeddings"}}))
    inputs = saved[0].processor([image], return_tensors="pt")
    assert torch.allclose(row, saved[0].pooled_features(**inputs)[0], atol=1e-6)
    assert float((row @ saved[0].sites[0].eraser.directions).abs().max()) < 1e-4


def test_a_two_tower_model_gives_image_embeddings_alone(tmp_path):
    inner, whole = two_towers("CLIPModel")
    model = ErasedModel.from_model(inner, whole)
    model.erase(texts=["cat"], templates=["a photo of a {}"], k=1).save_pretrained(tmp_path / "erased")
    handler = EndpointHandler(str(tmp_path / "erased"))
    assert len(handler({"inputs": encoded(picture(2, 3, (32, 32)))})) == 24
    assert "returns embeddings" in handler({"inputs": b"x", "parameters": {"return": "labels"}})["error"]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({}, "A request is"),
        ("text", "A request is"),
        ({"inputs": b""}, "is none of PNG"),
        ({"inputs": b"no image"}, "is none of PNG"),
        ({"inputs": encoded(picture(1, 1))[:60]}, "cannot be read"),
        ({"inputs": claiming(40_000, 30_000)}, "pixels|none of"),
        ({"inputs": "https://example.com/cat.png"}, "addresses are not fetched"),
        ({"inputs": "/etc/passwd"}, "is none of PNG|addresses"),
        ({"inputs": 3}, "is no image"),
        ({"inputs": {"path": "/etc/passwd"}}, "is no image"),
        ({"inputs": []}, "has 0 images"),
        ({"inputs": [b""] * 33}, "has 33 images"),
        ({"inputs": b"x" * (endpoint.MOST_BYTES + 1)}, "bytes is too large"),
        ({"inputs": "x" * 2 * endpoint.MOST_BYTES}, "bytes is too large"),
        ({"inputs": b"x", "parameters": {"output_hidden_states": True}}, "there are return and top_k"),
        ({"inputs": b"x", "parameters": {"return": "hidden_states"}}, "labels or embeddings"),
        ({"inputs": b"x", "parameters": {"top_k": 0}}, "whole number above 0"),
        ({"inputs": b"x", "parameters": [1]}, "there are return and top_k"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_json(handler, request_, said):
    answer = handler(request_)
    assert list(answer) == ["error"]
    assert any(part in answer["error"] for part in said.split("|")), answer
    json.dumps(answer)


def test_an_image_that_cannot_be_read_costs_no_other(handler):
    good = encoded(picture(0, 1))
    answers = handler({"inputs": [good, b"broken", claiming(40_000, 30_000), good]})
    assert [list(answer) == ["error"] for answer in answers] == [False, True, True, False]
    assert [each["label"] for each in answers[0]] == [each["label"] for each in handler({"inputs": good})]


@pytest.mark.parametrize("bad", [b"broken", claiming(40_000, 30_000), encoded(picture(1, 1))[:60], claiming(1, 4000)])
def test_an_image_is_called_by_its_number_only_where_there_are_several(handler, bad):
    alone = handler({"inputs": bad})["error"]
    assert alone.startswith("The image ")
    second = handler({"inputs": [encoded(picture(0, 1)), bad]})[1]["error"]
    assert second == alone.replace("The image", "Image 1", 1)
    assert "row" not in alone + second


def test_a_strip_is_refused_before_it_is_resized_by_its_short_side(handler):
    good, strip = encoded(picture(3, 5)), encoded(picture(3, 5).resize((1, 4000)))
    tracemalloc.start()
    first, second = handler({"inputs": [good, strip]})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert first == handler({"inputs": good})
    assert "Image 1 is 1 x 4000" in second["error"]
    assert peak < 20e6


def test_large_images_are_decoded_one_after_the_other(handler):
    large = encoded(Image.new("L", (2000, 2000)), "PNG")
    peaks = []
    for count in (1, 8):
        tracemalloc.start()
        answers = handler({"inputs": [large] * count})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert all(isinstance(answer, list) for answer in answers)
    assert peaks[1] < 1.5 * peaks[0]


def test_images_that_the_processor_makes_no_batch_of_are_answered_alone(saved):
    handler = EndpointHandler(str(saved[1]))
    handler._prepare.processor.do_resize = False  # sizes differ, and one of them is not the model's
    good, other = picture(3, 5).resize((32, 32)), picture(3, 5).resize((40, 32))
    first, second = handler({"inputs": [encoded(good), encoded(other)]})
    assert first == handler({"inputs": encoded(good)})
    assert set(second) == {"error"}


def test_in_half_precision_it_answers_as_in_full(resnet, processor, forget, pixels, tmp_path):
    model = ErasedModel.from_model(resnet, processor).erase(forget, k=1, progress=False)
    model.bfloat16().save_pretrained(tmp_path / "half")
    answer = EndpointHandler(str(tmp_path / "half"))({"inputs": encoded(picture(3, 5)), "parameters": {"top_k": 1}})
    inputs = processor([picture(3, 5)], return_tensors="pt")["pixel_values"].bfloat16()
    with torch.no_grad():
        score = model.eval()(pixel_values=inputs).logits.float().softmax(dim=1).max()
    assert answer[0]["score"] == pytest.approx(float(score), abs=1e-3)


def test_an_answer_that_is_not_finite_is_an_error_and_no_nan(saved):
    handler = EndpointHandler(str(saved[1]))
    handler.model.inner.classifier.weight.data[0] = float("inf")
    answers = handler({"inputs": [encoded(picture(3, 5))] * 2})
    assert all("not finite" in answer["error"] for answer in answers)


def test_a_model_of_grey_images_is_served_pictures_of_any_kind(tmp_path):
    config = ViTConfig(image_size=16, patch_size=8, num_channels=1, hidden_size=16, num_hidden_layers=1,
                       num_attention_heads=2, intermediate_size=16, num_labels=3)  # fmt: skip
    grey = ViTImageProcessorPil(size=16, image_mean=[0.5], image_std=[0.5])
    model = ErasedModel.from_model(ViTForImageClassification(config).eval(), grey)
    model.erase([picture(2, i) for i in range(6)], k=1, progress=False)
    model.save_pretrained(tmp_path / "grey")
    image = picture(3, 5)
    with torch.no_grad():
        scores = model(**grey([image.convert("L")], return_tensors="pt")).logits.softmax(dim=1)[0]
    answer = EndpointHandler(str(tmp_path / "grey"))({"inputs": encoded(image)})
    assert answer[0]["score"] == pytest.approx(float(scores.max()), abs=1e-5)


def test_nothing_unerased_is_served(vit, processor, forget, tmp_path):
    vit.save_pretrained(tmp_path / "bare")
    processor.save_pretrained(tmp_path / "bare")
    with pytest.raises(InvalidValueError, match="of which nothing was erased"):
        EndpointHandler(str(tmp_path / "bare"))
    erased = ErasedModel.from_model(vit, processor).erase(forget, k=1, progress=False)
    erased.fold().save_pretrained(tmp_path / "folded")
    processor.save_pretrained(tmp_path / "folded")
    with pytest.raises(InvalidValueError, match="or whose features are not"):
        EndpointHandler(str(tmp_path / "folded"))
    erased.save_pretrained(tmp_path / "none")
    (tmp_path / "none" / "preprocessor_config.json").unlink()
    with pytest.raises(InvalidValueError, match="no image processor"):
        EndpointHandler(str(tmp_path / "none"))


def test_eight_threads_get_their_own_answers_and_memory_stays(handler):
    images = [encoded(image) for image in make_dataset([0, 1, 3, 4], seed=3)["image"]]
    alone = [handler({"inputs": image}) for image in images]
    bad = [b"broken", claiming(40_000, 30_000), encoded(picture(1, 1))[:60]]

    def ask(number):
        if number % 3 == 2:
            return list(handler({"inputs": bad[number // 3 % 3]})) == ["error"]
        return handler({"inputs": images[number % 4]}) == alone[number % 4]

    with ThreadPoolExecutor(8) as threads:
        assert [number for number, right in enumerate(threads.map(ask, range(120))) if not right] == []
        tracemalloc.start()
        assert all(threads.map(ask, range(60)))
        first = tracemalloc.get_traced_memory()[0]
        assert all(threads.map(ask, range(180)))
        grown = tracemalloc.get_traced_memory()[0] - first
        tracemalloc.stop()
    assert grown < 500_000, f"{grown} bytes more after 180 requests"
