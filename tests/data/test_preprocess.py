"""The shortcuts change no bit: the preprocessor gives what the processor gives, whatever the images and settings."""

from __future__ import annotations

import functools
import pickle  # noqa: TID251 - workers of a DataLoader receive their objects so
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.efficientnet.image_processing_pil_efficientnet import EfficientNetImageProcessorPil
from transformers.models.levit.image_processing_pil_levit import LevitImageProcessorPil
from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import MobileNetV2ImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_kd.data import _fast_preprocess as resize
from hf_kd.data import preprocess
from hf_kd.data.preprocess import ImagePreprocessor
from hf_kd.errors import UnreadableImageError

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
RNG = np.random.default_rng(0)
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def noise(height: int, width: int, count: int = 5) -> list[Image.Image]:
    return [Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)) for _ in range(count)]


def assert_same(processor, images, **options):
    ours = ImagePreprocessor(processor, **options)
    for _ in range(2):
        batch, expected = ours(images), processor(images, return_tensors="pt")
        assert set(batch) == set(expected)
        for name in batch:
            wanted = expected[name]
            if name == "pixel_values" and not wanted.is_floating_point():
                wanted = wanted.float()  # bytes, where nothing is rescaled: models take floats
            assert batch[name].dtype == wanted.dtype
            assert torch.equal(batch[name], wanted), name
    return ours


@pytest.fixture(params=[False, True], ids=["first images", "after many images"])
def torch_kernel(request, monkeypatch):
    """Whether torch's kernel may be used from the first image on."""
    monkeypatch.setattr(preprocess, "WORTH_PROVING", 0 if request.param else 10**9)
    return request.param


@pytest.mark.parametrize("resample", range(6))
@pytest.mark.parametrize(
    ("old", "new"), [((8, 8), (32, 32)), ((12, 9), (24, 18)), ((30, 20), (11, 13)), ((16, 16), 16)]
)
def test_equal_for_every_filter_and_size(old, new, resample, torch_kernel):
    size = {"height": new[0], "width": new[1]} if isinstance(new, tuple) else new
    ours = assert_same(ViTImageProcessorPil(size=size, resample=resample, **IMAGENET), noise(*old))
    assert ours.uses_shortcuts or resample == Image.Resampling.NEAREST


@pytest.mark.parametrize(
    "processor",
    [
        ViTImageProcessorPil(size=24, do_normalize=False),
        ViTImageProcessorPil(size=24, do_normalize=False, do_rescale=False),
        ViTImageProcessorPil(size=24, do_rescale=False),
        ViTImageProcessorPil(do_resize=False),
        ViTImageProcessorPil(size=24, rescale_factor=1 / 127.5, image_mean=[1.0, 1.0, 1.0]),
        MobileNetV2ImageProcessorPil(size={"shortest_edge": 32}, crop_size=28, **IMAGENET),
        MobileNetV2ImageProcessorPil(size={"shortest_edge": 16}, crop_size=28),
        MobileNetV2ImageProcessorPil(size={"shortest_edge": 31}, crop_size={"height": 24, "width": 17}),
        CLIPImageProcessorPil(size={"shortest_edge": 29}, crop_size=24),
        LevitImageProcessorPil(size={"shortest_edge": 24}, crop_size=24),
        ConvNextImageProcessorPil(size={"shortest_edge": 24}),
        EfficientNetImageProcessorPil(size={"height": 24, "width": 24}),
        Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16),
    ],
    ids=lambda processor: type(processor).__name__,
)
@pytest.mark.parametrize("shape", [(16, 16), (20, 27), (40, 33)])
def test_equal_for_every_processor(processor, shape, torch_kernel):
    assert_same(processor, noise(*shape))


def test_equal_for_a_batch_of_mixed_sizes_in_its_order(torch_kernel):
    images = [image for size in ((8, 8), (9, 20), (30, 16)) for image in noise(*size, 3)]
    images = [images[i] for i in RNG.permutation(len(images))]
    assert_same(ViTImageProcessorPil(size=16), images)
    assert_same(MobileNetV2ImageProcessorPil(size={"shortest_edge": 16}, crop_size=16), images)


@pytest.mark.parametrize("old", [5, 8, 16])
@pytest.mark.parametrize("new", [16, 17, 24, 31, 40])
@pytest.mark.parametrize("axis", [0, 1])
def test_where_equality_is_proven_no_image_differs(old, new, axis):
    proven = resize._axis_equal(old, new, axis)
    images = noise(23, old, 40) if axis == 1 else noise(old, 23, 40)
    size = (23, new) if axis == 1 else (new, 23)
    by_pillow = resize.resize_batch(images, *size, Image.Resampling.BILINEAR, fast=False)
    by_torch = resize.resize_batch(images, *size, Image.Resampling.BILINEAR, fast=True)
    if proven:
        assert torch.equal(by_pillow, by_torch)
    assert (by_pillow.int() - by_torch.int()).abs().max() <= 2  # the same picture all the same


def test_torch_kernel_is_never_taken_without_a_proof():
    assert not resize.equal_to_pillow((32, 32), (16, 16), Image.Resampling.BILINEAR)
    assert not resize.equal_to_pillow((16, 16), (32, 32), Image.Resampling.BICUBIC)
    assert not resize.equal_to_pillow((16, 32), (32, 16), Image.Resampling.BILINEAR)


class Flipping(ViTImageProcessorPil):
    """Does something that no setting tells."""

    def _preprocess(self, images, *args, **kwargs):
        return super()._preprocess([image[:, :, ::-1] for image in images], *args, **kwargs)


class Listing(ViTImageProcessorPil):
    """Returns lists, whatever is asked for."""

    def _preprocess(self, images, *args, **kwargs):
        outputs = super()._preprocess(images, *args, **kwargs)
        return {name: list(value) for name, value in outputs.items()}


def test_one_differing_bit_ends_the_shortcuts_and_is_logged_once(caplog):
    ours = assert_same(Flipping(size=16), noise(8, 8))
    assert not ours.uses_shortcuts
    assert len([record for record in caplog.records if "does more than its settings say" in record.message]) == 1


def test_shortcuts_can_be_declined():
    assert not assert_same(ViTImageProcessorPil(size=16), noise(8, 8), exact_shortcuts=False).uses_shortcuts


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255


def to_mapping(image: Image.Image) -> dict[str, torch.Tensor]:
    return {"pixel_values": to_tensor(image), "mask": torch.ones(3)}


def test_callables_on_one_image():
    images = noise(8, 6, 4)
    expected = torch.stack([to_tensor(image) for image in images])
    processor = ViTImageProcessorPil(size=16)
    assert torch.equal(ImagePreprocessor(to_tensor)(images)["pixel_values"], expected)
    batch = ImagePreprocessor(to_mapping)(images)
    assert torch.equal(batch["pixel_values"], expected)
    assert batch["mask"].shape == (4, 3)
    for options in ({"return_tensors": "pt"}, {"return_tensors": "np"}, {}):
        batch = ImagePreprocessor(functools.partial(processor, **options))(images)
        assert torch.equal(batch["pixel_values"], processor(images, return_tensors="pt")["pixel_values"])
    mirrored = ImagePreprocessor(lambda image: to_tensor(image).numpy()[:, :, ::-1])(images)
    assert torch.equal(mirrored["pixel_values"], expected.flip(-1)), "a view with a negative stride"


@pytest.mark.parametrize("mean", [[0.4], 0.4])
def test_a_model_of_one_channel_gets_grey_images(mean):
    processor = ViTImageProcessorPil(size=16, image_mean=mean, image_std=mean)
    images = noise(8, 8)
    pixels = ImagePreprocessor(processor, channels=1)(images)["pixel_values"]
    grey = [image.convert("L") for image in images]
    assert pixels.shape == (len(images), 1, 16, 16)
    assert torch.equal(pixels, processor(grey, return_tensors="pt")["pixel_values"])
    assert torch.equal(
        pixels, ImagePreprocessor(processor, channels=1)([g.convert("RGB") for g in grey])["pixel_values"]
    )


def test_a_callable_may_return_patches_of_one_image():
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    images = noise(20, 27, 3)
    batch = ImagePreprocessor(lambda image: processor([image], return_tensors="pt"))(images)
    for name, expected in processor(images, return_tensors="pt").items():
        assert torch.equal(batch[name], expected), name


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1)])
def test_a_strip_that_its_short_side_would_make_huge_is_refused(size):
    images = [*noise(8, 8, 1), Image.new("RGB", size)]
    by_short_side = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size=24)
    with pytest.raises(UnreadableImageError, match=f"{size[0]} x {size[1]} .*at most 50,000,000"):
        ImagePreprocessor(by_short_side)(images)
    assert ImagePreprocessor(ViTImageProcessorPil(size=16))(images)["pixel_values"].shape == (2, 3, 16, 16)


def test_image_processor_of_a_whole_processor_is_used():
    whole = object.__new__(CLIPProcessor)
    whole.image_processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)
    assert ImagePreprocessor(whole)(noise(20, 30, 2))["pixel_values"].shape == (2, 3, 16, 16)


def test_survives_pickling():
    images = noise(8, 8)
    for processor in (ViTImageProcessorPil(size=16), to_tensor):
        ours = ImagePreprocessor(processor)
        again = pickle.loads(pickle.dumps(ours))
        assert torch.equal(again(images)["pixel_values"], ours(images)["pixel_values"])


def test_bad_use_says_what_to_do():
    with pytest.raises(ValueError, match="empty"):
        ImagePreprocessor(ViTImageProcessorPil())([])
    for useless in (None, 7, "google/vit"):
        with pytest.raises(TypeError, match="is no image processor"):
            ImagePreprocessor(useless)
    with pytest.raises(TypeError, match="has to return a tensor"):
        ImagePreprocessor(lambda image: image)(noise(4, 4))
    with pytest.raises(ValueError, match=r"different shapes.*batch_size=1"):
        ImagePreprocessor(to_tensor)(noise(4, 4) + noise(5, 5))
    with pytest.raises(ValueError, match=r"no batch of 2 images.*batch_size=1"):
        ImagePreprocessor(ViTImageProcessorPil(do_resize=False))(noise(4, 4, 1) + noise(5, 5, 1))
    with pytest.raises(ValueError, match="mean must have 3 elements.*Correct its settings"):
        ImagePreprocessor(ViTImageProcessorPil(image_mean=[0.5], image_std=[0.5]))(noise(4, 4))
    with pytest.raises(TypeError, match=r"returned pixel_values \(list\) and no tensor"):
        ImagePreprocessor(Listing(size=16))(noise(4, 4))


@pytest.mark.parametrize(
    ("name", "processor"),
    [
        ("cifar10", ViTImageProcessorPil(size=224, **IMAGENET)),
        ("cifar10", ViTImageProcessorPil(size=32, resample=3, **IMAGENET)),
        ("imagenette", MobileNetV2ImageProcessorPil(size={"shortest_edge": 256}, crop_size=224)),
        ("imagenette", ViTImageProcessorPil(size=192, resample=3)),
    ],
)
def test_equal_on_real_images(name, processor, torch_kernel):
    path = SHARED / "data" / name / "test.parquet"
    if not path.exists():
        pytest.skip(f"needs {name} in the shared folder beside the repository")
    from datasets import Dataset

    rows = Dataset.from_parquet(str(path)).select(range(0, 500, 50))
    ours = assert_same(processor, [row["image"].convert("RGB") for row in rows])
    assert ours.uses_shortcuts
