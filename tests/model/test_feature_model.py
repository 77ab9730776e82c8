"""Who asks an erased model for features gets erased features: `AutoModel` and the image-feature-extraction pipeline."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification, pipeline

from hf_kd import ErasedModel
from tests.helpers.small import picture
from tests.helpers.zoo import build
from tests.model.test_erase import logits_of


@pytest.fixture
def erased(model, processor, forget):
    return ErasedModel.from_model(model, processor).erase(forget, k=2, progress=False)


@pytest.fixture
def saved(erased, tmp_path):
    erased.save_pretrained(tmp_path / "erased")
    return tmp_path / "erased"


def test_automodel_answers_with_the_erased_pooled_features(erased, saved, pixels):
    loaded = AutoModel.from_pretrained(saved)
    assert isinstance(loaded, ErasedModel)
    assert loaded.erasures == erased.erasures
    answer = loaded(pixels)
    features = erased.pooled_features(pixels)
    assert list(answer) == ["pooler_output"]
    assert torch.equal(answer.pooler_output, features)
    assert torch.equal(loaded(pixels, return_dict=False)[0], features)
    assert answer.pooler_output.requires_grad, "training behind the eraser needs gradients"
    states = loaded(pixels, output_hidden_states=True).hidden_states
    assert len(states) > 1, "they come where they are asked for by name"


def test_the_pipeline_gives_erased_features(erased, saved, processor):
    image = picture(1, 1)
    expected = erased.pooled_features(**erased.processor(image, return_tensors="pt")).numpy()
    for options in ({}, {"pool": True}):
        given = np.asarray(pipeline("image-feature-extraction", model=str(saved))(image, **options))
        assert given.shape == expected.shape
        assert np.allclose(given, expected, atol=1e-6)


def test_classification_is_as_it_was(erased, saved, pixels):
    loaded = AutoModelForImageClassification.from_pretrained(saved)
    assert type(loaded) is ErasedModel
    assert torch.equal(logits_of(loaded, pixels), logits_of(erased, pixels))


def test_what_it_saves_is_the_same_erased_model(erased, saved, pixels, tmp_path):
    for name, loader in (("plain", ErasedModel), ("again", AutoModel)):
        loader.from_pretrained(saved).save_pretrained(tmp_path / name)
    first, second = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("plain", "again"))
    assert second == first
    assert second["architectures"] == ["ErasedModel"]
    assert torch.equal(logits_of(ErasedModel.from_pretrained(tmp_path / "again"), pixels), logits_of(erased, pixels))


@pytest.fixture
def larger(processor):
    """An image processor for the models of the zoo."""
    return type(processor)(size={"height": 32, "width": 32})


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_an_embedding_model_answers_as_an_erased_model_does(forget, larger, images, tmp_path):
    erased = ErasedModel.from_model(build("ViTModel"), larger).erase(forget, k=2, progress=False)
    erased.save_pretrained(tmp_path)
    ours, theirs = ErasedModel.from_pretrained(tmp_path)(images), AutoModel.from_pretrained(tmp_path)(images)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_two_tower_model_without_texts_gives_image_features(forget, larger, images, tmp_path):
    erased = ErasedModel.from_model(build("CLIPModel"), larger).erase(forget, k=2, progress=False)
    erased.save_pretrained(tmp_path)
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(images).pooler_output, erased.pooled_features(images))


def test_heads_at_several_taps_give_all_their_features(forget, larger, images, tmp_path):
    model = build("DeiTForImageClassificationWithTeacher")
    erased = ErasedModel.from_model(model, larger).erase(forget, k=2, progress=False)
    erased.save_pretrained(tmp_path)
    features = erased.pooled_features(images)
    assert isinstance(features, tuple)
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(images).pooler_output, torch.cat(features, dim=-1))
