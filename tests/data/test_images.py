"""Whatever an image is stored as, it comes out upright, RGB and 8-bit, or as an error that names its row."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image, features
from torch.utils.data import DataLoader

from hf_kd.data.image_source import inspect_images
from hf_kd.data.images import to_rgb
from hf_kd.errors import UnreadableImageError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
PNG = io.BytesIO()
Image.fromarray(RGB).save(PNG, "PNG")


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def test_every_container_of_the_same_pixels_gives_the_same_image(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG.getvalue())
    path = str(tmp_path / "a.png")
    values = [
        Image.fromarray(RGB),
        PNG.getvalue(),
        {"bytes": PNG.getvalue(), "path": None},
        {"bytes": None, "path": path},
        path,
        tmp_path / "a.png",
        RGB,
        RGB.transpose(2, 0, 1),
        torch.from_numpy(RGB),
        torch.from_numpy(RGB).permute(2, 0, 1),
        torch.from_numpy(RGB).permute(2, 0, 1) / 255,
        RGB.astype(np.float64) / 255,
        RGB.astype(np.uint16) * 257,
        RGB.astype(np.int64),
    ]
    for value in values:
        image = to_rgb(value, 0)
        assert image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image), RGB)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F", "La", "RGBa"])
def test_every_mode_becomes_rgb_of_the_same_size(mode):
    image = Image.new(mode, (7, 5))
    assert (to_rgb(image, 0).mode, to_rgb(image, 0).size) == ("RGB", (7, 5))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(GREY),
        Image.fromarray(GREY[:, :, None].repeat(3, 2)),
        Image.fromarray(GREY.astype(np.uint16) * 257),
        Image.fromarray(GREY.astype(np.int32) * 257),
        Image.fromarray((GREY / np.float32(255)).astype(np.float32)),
    ],
    ids=lambda image: image.mode,
)
def test_grey_values_survive_every_bit_depth(image):
    np.testing.assert_array_equal(np.asarray(to_rgb(image, 0)), GREY[:, :, None].repeat(3, 2))


def test_sixteen_bit_png_uses_the_full_range():
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    image = to_rgb(encoded(Image.fromarray(ramp)), 0)
    np.testing.assert_array_equal(np.asarray(image)[:, :, 0], np.rint(ramp / 257).astype(np.uint8))


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint32, np.int64])
def test_bytes_in_wider_integers_are_bytes(kind):
    np.testing.assert_array_equal(np.asarray(to_rgb(RGB.astype(kind), 0)), RGB)
    np.testing.assert_array_equal(np.asarray(to_rgb((GREY // 2).astype(kind) * 257, 0))[:, :, 0], GREY // 2)


def test_bfloat16_has_the_values_that_it_can_hold():
    halves = torch.tensor([0.0, 0.5, 1.0], dtype=torch.bfloat16).repeat(3, 4, 1)
    assert np.asarray(to_rgb(halves, 0))[0, :, 0].tolist() == [0, 128, 255]


def test_transparency_is_white():
    alpha = np.dstack([RGB, np.zeros((5, 7), np.uint8)])
    opaque = np.dstack([RGB, np.full((5, 7), 255, np.uint8)])
    assert np.asarray(to_rgb(Image.fromarray(alpha), 0)).min() == 255
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(opaque), 0)), RGB)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert to_rgb(encoded(palette, "PNG", transparency=1), 0).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(encoded(palette, "PNG", transparency=0), 0).getpixel((0, 0)) == (40, 50, 60)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    upright = Image.fromarray(np.kron(np.array([[0, 255], [90, 180]], np.uint8), np.ones((16, 24), np.uint8)))
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # how a camera would have stored it
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = to_rgb(encoded(stored, "PNG", exif=exif), 0)
    np.testing.assert_array_equal(np.asarray(image.convert("L")), np.asarray(upright))


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"no image at all",
        PNG.getvalue()[:40],
        PNG.getvalue()[:-30],
        {"bytes": None, "path": None},
        {"bytes": None, "path": "/no/such/image.png"},
        {},
        7,
        ["list"],
        np.zeros((5, 7, 9), np.uint8),
        np.zeros((0, 7, 3), np.uint8),
        np.full((5, 7), np.nan),
        np.full((5, 7), 2.5),
        np.full((5, 7), -1),
        torch.zeros(2, 3, 5, 7),
    ],
    ids=str,
)
def test_what_cannot_be_read_names_its_row(value):
    with pytest.raises(UnreadableImageError, match="row 17 ") as caught:
        to_rgb(value, 17)
    assert caught.value.row == 17
    assert isinstance(caught.value, ValueError)
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_file_that_is_no_image_is_named(tmp_path, wrapped):
    (file := tmp_path / "notes.png").write_text("no image")
    with pytest.raises(UnreadableImageError, match="row 17 ") as caught:
        to_rgb({"bytes": None, "path": str(file)} if wrapped else file, 17)
    assert str(file) in str(caught.value)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow decodes no AVIF")
def test_a_damaged_avif_names_its_row():
    file = bytearray(encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "AVIF"))
    start = file.index(b"mdat") + 4
    file[start:] = b"\xff" * (len(file) - start)
    with pytest.raises(UnreadableImageError, match="row 17 "):
        to_rgb(bytes(file), 17)


def test_messages_are_short_however_long_the_value_is():
    for value in ("iVBORw0KGgo" * 10_000, "a/" * 300, [["x" * 1000]], b"\0" * 10_000):
        with pytest.raises(UnreadableImageError) as refused:
            to_rgb(value, 7)
        assert "row 7" in str(refused.value)
        assert len(str(refused.value)) < 600


@pytest.mark.parametrize("pixel", [1e30, float("inf"), float("nan"), -1e30])
def test_pixels_out_of_range_are_refused_without_a_warning(pixel, recwarn):
    for array in (np.full((4, 4, 3), pixel), np.full((4, 4), pixel, dtype=np.float32)):
        with pytest.raises(UnreadableImageError, match=r"lie in \[0, 1\]"):
            to_rgb(array, 0)
    assert not recwarn


def test_of_an_encoded_animation_the_first_frame_is_taken_and_of_an_open_one_where_it_stands():
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    file = io.BytesIO()
    red.save(file, "GIF", save_all=True, append_images=[blue])
    assert to_rgb(file.getvalue(), 0).getpixel((4, 4)) == (255, 0, 0)
    opened = Image.open(file)
    opened.seek(1)
    assert to_rgb(opened, 0).getpixel((4, 4))[2] > 200
    assert opened.tell() == 1, "the frame stays the caller's"


def test_prepared_inputs_in_a_data_set_are_refused_with_what_takes_them():
    rows = [{"pixel_values": np.full((3, 8, 8), number, np.float32), "label": 0} for number in (-2.0, 2.0)]
    dataset = Dataset.from_list(rows)
    with pytest.raises(UnreadableImageError, match="lie in .0, 1.") as error:
        to_rgb(dataset[0]["pixel_values"], 0)
    given = re.search(r"DataLoader\(.*?32\)", str(error.value))[0]
    loader = eval(given, {"DataLoader": DataLoader, "dataset": dataset})
    images = inspect_images(loader)
    assert images.is_prepared
    batch = next(iter(images.source))
    assert torch.equal(batch["pixel_values"][:, 0, 0, 0], torch.tensor([-2.0, 2.0]))
