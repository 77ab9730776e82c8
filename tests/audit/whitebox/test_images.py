"""Images of the battery: networks that stand side by side are read on the same ones."""

from __future__ import annotations

import copy

import torch
from transformers import ViTImageProcessorPil

from hf_kd import ErasedModel, ReadOptions
from hf_kd.audit.weight_access import AuditImages, _images_of
from hf_kd.audit.whitebox import images
from tests.conftest import image_processor, small_resnet
from tests.helpers.small import make_dataset


def test_networks_that_want_images_of_other_sizes_are_read_on_the_same_ones(monkeypatch):
    """Of the larger ones fewer have room: then all are read on as few, and not each on images of its own."""
    monkeypatch.setattr(images, "MOST_BYTES", 40 * 3 * 16 * 16 * 4)
    labels = {"train": torch.tensor([0, 1, 2, 3, 4] * 10), "test": torch.tensor([4, 3, 2, 1, 0] * 10)}
    pictures = {split: make_dataset(own.tolist()) for split, own in labels.items()}
    kept = {split: own >= 0 for split, own in labels.items()}
    larger = ViTImageProcessorPil(size={"height": 32, "width": 32})
    processors = {"erased": image_processor(), "original": larger, "reference": image_processor()}
    models = {name: ErasedModel.from_model(copy.deepcopy(small_resnet()), own) for name, own in processors.items()}
    found = _images_of(models, AuditImages(pictures, labels, kept, [2], ReadOptions(progress=False)))
    assert found["reference"] is found["erased"]
    assert found["original"].train.inputs["pixel_values"].shape[2:] == (32, 32)
    for split in labels:
        erased, original = getattr(found["erased"], split), getattr(found["original"], split)
        assert len(erased) == len(original) == 10
        assert torch.equal(erased.labels, original.labels)
