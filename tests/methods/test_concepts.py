"""The algebra of forgetting by name: what the pair of maps removes, keeps, and leaves to the original text tower."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_kd.errors import InvalidValueError
from hf_kd.methods.concepts import (
    ConceptMethod,
    NameVectors,
    Prompts,
    SeenImages,
    as_unit,
    concept_directions,
    fit_concept,
)

CLASSES, DIM, TEMPLATES = 8, 24, 4


@pytest.fixture(scope="module")
def world() -> dict[str, Tensor]:
    """Images and prompts share directions by class; images lie in a cone of their own. Class 0 is the concept."""
    rng = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    centres, mean, gap, wording = noise(CLASSES, DIM), noise(DIM), 1.5 * noise(DIM), 0.3 * noise(TEMPLATES, DIM)
    prompts = as_unit((mean + centres[:, None] + wording + 0.1 * noise(CLASSES, TEMPLATES, DIM)).reshape(-1, DIM))
    labels = torch.arange(400) % CLASSES
    images = as_unit(gap + centres[labels] + 0.3 * noise(400, DIM) + (labels == 0)[:, None] * 0.5 * noise(DIM))
    return {"prompts": prompts.reshape(CLASSES, TEMPLATES, DIM), "images": images, "labels": labels}


def prompts_of(rows: Tensor) -> Prompts:
    names, wordings = rows.shape[:2]
    return Prompts(
        rows.reshape(-1, DIM), torch.arange(names).repeat_interleave(wordings), torch.arange(wordings).repeat(names)
    )


@pytest.fixture(scope="module")
def names(world) -> NameVectors:
    return NameVectors.of(prompts_of(world["prompts"][:1]), prompts_of(world["prompts"][1:]))


def accuracy(images: Tensor, texts: Tensor, labels: Tensor) -> tuple[float, float]:
    """Of the concept and of the others."""
    right = (as_unit(images) @ as_unit(texts.mean(dim=1)).T).argmax(dim=1) == labels
    return float(right[labels == 0].double().mean()), float(right[labels != 0].double().mean())


def test_without_a_ridge_the_scores_of_retained_names_are_those_from_before(world, names):
    maps = fit_concept(ConceptMethod(k=1, ridge=0.0), names, None, None)
    images = maps.images(world["images"])
    kept = names.retained
    assert torch.allclose(images @ kept.T, world["images"] @ kept.T, atol=1e-4), "with the original text tower"
    assert torch.allclose(images @ maps.texts(kept).T, world["images"] @ kept.T, atol=1e-4), "and with the erased one"
    directions, _ = concept_directions(names.concept, 0.9, 1)
    assert float((images @ directions).abs().max()) < 1e-6, "nothing lies along the concept"
    assert float(maps.texts(directions.T).abs().max()) < 1e-6
    assert torch.allclose(maps.images.matrix(), maps.texts.matrix().T, atol=1e-6)


@pytest.mark.parametrize("method", ["oblique", "esc"])
@pytest.mark.parametrize("given", ["name", "images of others", "both"])
def test_the_concept_is_gone_for_both_text_towers_and_the_others_stay(world, names, method, given):
    images, labels, texts = world["images"], world["labels"], world["prompts"]
    known, before = accuracy(images, texts, labels)
    assert known > 0.9
    mine = images[labels == 0] if given == "both" else images[:0]
    seen = None if given == "name" else SeenImages(mine, images[labels != 0])
    maps = fit_concept(ConceptMethod(method), names, None if seen is None else images.mean(dim=0), seen)
    for text, asked in ((maps.texts(texts), "erased"), (texts, "original")):
        concept, others = accuracy(maps.images(images), text, labels)
        assert others > before - 0.1
        if (method == "oblique" and given != "name") or asked == "original":  # without a push it is left at the mean
            assert concept < 0.15
    maps.images.check()
    maps.texts.check()


def test_with_images_no_mean_tells_them_from_others(world, names):
    images, labels = world["images"], world["labels"]
    seen = SeenImages(images[labels == 0], images[labels != 0])
    difference = (seen.concept.mean(dim=0) - seen.others.mean(dim=0))[None]
    by_name = fit_concept(ConceptMethod(), names, None, None).images(difference)
    both = fit_concept(ConceptMethod(), names, images.mean(dim=0), seen).images(difference)
    assert float(by_name.norm()) > 0.2 * float(difference.norm())
    assert float(both.norm()) < 1e-5


@pytest.mark.parametrize("others", [[1], [1, 1, 1]], ids=["one", "equal ones"])
def test_one_image_of_something_else_is_enough(world, names, others):
    """Its spread says nothing, and the map takes the difference all the same."""
    images, labels = world["images"], world["labels"]
    seen = SeenImages(images[labels == 0], images[others])
    maps = fit_concept(ConceptMethod(), names, images.mean(dim=0), seen)
    difference = (seen.concept.mean(dim=0) - seen.others.mean(dim=0))[None]
    assert float(maps.images(difference).norm()) < 1e-5 * float(difference.norm())


def test_one_retained_name_is_enough(world):
    """Less what it has in common with itself nothing is left of it, and the projection is orthogonal."""
    names = NameVectors.of(prompts_of(world["prompts"][:1]), prompts_of(world["prompts"][1:2]))
    maps = fit_concept(ConceptMethod(k=1, push=0.0), names, None, None)
    directions, _ = concept_directions(names.concept, 0.9, 1)
    assert float((maps.images(directions.T)).norm()) < 1e-5
    assert torch.allclose(maps.images.matrix(), maps.images.matrix().T, atol=1e-6)


def test_a_constant_stands_along_the_concept_and_tells_nothing(world, names):
    images, labels = world["images"], world["labels"]
    seen = SeenImages(images[:0], images[labels != 0])
    maps = fit_concept(ConceptMethod(k=1, push=2.0), names, images.mean(dim=0), seen)
    directions, _ = concept_directions(names.concept, 0.9, 1)
    common = images.mean(dim=0) / images.mean(dim=0).norm()
    along, height = maps.images(images) @ directions, images @ common
    assert torch.allclose(along[:, 0] / height, (along[:, 0] / height)[0].expand(len(along)), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"name": "leace"}, "forgotten by"),
        ({"variance": 0}, "variance"),
        ({"k": 0}, "k is 1"),
        ({"ridge": -1}, "negative"),
    ],
)
def test_settings_are_checked(settings, text):
    with pytest.raises(InvalidValueError, match=text):
        ConceptMethod(**settings)


def test_prompts_that_say_nothing_and_too_many_directions_are_refused(names):
    with pytest.raises(InvalidValueError, match="mean nothing"):
        concept_directions(torch.zeros(4, DIM, dtype=torch.float64), 0.9)
    with pytest.raises(InvalidValueError, match="have 4 directions"):
        concept_directions(names.concept, 0.9, 9)
