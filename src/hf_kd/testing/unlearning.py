"""What every method that changes weights owes: `UnlearningTester`, on two tiny models trained on planted images."""

from __future__ import annotations

import copy
import functools
import json
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_kd.data.devices import own_generators
from hf_kd.methods.records import WeightChange, weight_changes
from hf_kd.methods.registry import NEEDS
from hf_kd.methods.unlearning.base import UnlearningMethod
from hf_kd.model.unlearn import unlearn

from .checks import equal_states, expect, expect_declared, expect_settings_come_back

CLASSES, SIDE = 5, 16
ARCHITECTURES = ("convolutional", "transformer")


def planted_images(classes: list[int], per_class: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images [n, 3, 16, 16] of stripes whose period says the class, with noise, and their labels [n]."""
    labels = torch.tensor(classes).repeat_interleave(per_class)
    phase = torch.arange(SIDE) * (labels[:, None] + 1) * 0.7
    stripes = torch.sin(phase)[:, None, None, :].expand(-1, 3, SIDE, -1)
    draws = torch.Generator().manual_seed(seed)
    return stripes + 0.3 * torch.randn(stripes.shape, generator=draws), labels


def loader(images: Tensor, labels: Tensor) -> DataLoader:
    """Batches as `hf_kd.unlearn` takes them, of images that are preprocessed already."""
    rows: Any = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels.tolist(), strict=True)]
    return DataLoader(
        rows, batch_size=16, generator=torch.Generator()
    )  # iterating draws a seed: not from the global one


@functools.lru_cache
def trained_model(architecture: str) -> PreTrainedModel:
    """A tiny model that answers all five classes of `planted_images` right: a residual network or a transformer."""
    with own_generators(torch.get_default_device(), 0):
        shape: dict[str, Any] = {"num_labels": CLASSES}
        if architecture == "convolutional":
            shape |= {"embedding_size": 8, "hidden_sizes": [8, 24], "depths": [1, 1], "layer_type": "basic"}
            model: PreTrainedModel = ResNetForImageClassification(ResNetConfig(**shape))
        else:
            shape |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
            model = ViTForImageClassification(ViTConfig(image_size=SIDE, patch_size=8, **shape))
        images, labels = planted_images(list(range(CLASSES)), seed=1)
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(15):
            for rows in torch.randperm(len(labels)).split(20):
                loss = F.cross_entropy(model.train()(pixel_values=images[rows]).logits, labels[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        model.zero_grad()
    return model.eval()


class UnlearningTester:
    """Inherit, name the class `Test...`, and set `method` with settings that are quick.

    Attributes:
        method: The method under test, with its settings.
        keeps: Percent of unseen images of retained classes that are still answered right at least.
        architectures: Of the tiny models it runs on; a method for one kind leaves the other out.
    """

    method: ClassVar[UnlearningMethod]
    keeps: ClassVar[float] = 60.0
    architectures: ClassVar[tuple[str, ...]] = ARCHITECTURES

    forget_classes: ClassVar[tuple[int, ...]] = (2,)

    @pytest.fixture(scope="class", params=ARCHITECTURES)
    def original(self, request) -> PreTrainedModel:
        """The trained model, in training mode: what a caller left it in."""
        if request.param not in self.architectures:
            pytest.skip(f"not for a {request.param} network")
        return copy.deepcopy(trained_model(request.param)).train()

    @pytest.fixture(scope="class")
    def before(self, original: PreTrainedModel) -> dict[str, Tensor]:
        """The state of the model before anything was done."""
        return {name: tensor.clone() for name, tensor in original.state_dict().items()}

    @pytest.fixture(scope="class")
    def changed(self, original: PreTrainedModel, before: dict[str, Tensor]) -> PreTrainedModel:
        """The model that was made to forget."""
        return self.run(original)

    def run(self, model: PreTrainedModel, **more: Any) -> PreTrainedModel:
        """`hf_kd.unlearn` with the method under test.

        Args:
            model: The model to change; the tests ask that it stays as it is.
            **more: Further arguments of `hf_kd.unlearn`, which overrule.

        Returns:
            The model that was made to forget.
        """
        forget = loader(*planted_images(list(self.forget_classes)))
        retained = [c for c in range(CLASSES) if c not in self.forget_classes]
        given: dict[str, Any] = {"retain": loader(*planted_images(retained))} | more
        return unlearn(model, forget, self.method, progress=False, **given)

    def test_the_model_that_was_given_stays_as_it_was(self, original, before, changed):
        """Weights, flags, gradients and mode."""
        expect(equal_states(original.state_dict(), before), "the model that was given was changed")
        expect(original.training, "the model that was given is in another mode")
        expect(all(p.requires_grad and p.grad is None for p in original.parameters()), "flags or gradients were left")

    def test_the_result_is_a_stock_model_that_differs(self, original, before, changed):
        """Of the same class, in eval mode, finite, without hooks, and not the model it was.

        BatchNorm's statistics are those it had unless `bn_mode` is "train".
        """
        expect(type(changed) is type(original), f"a {type(original).__name__} became a {type(changed).__name__}")
        expect(not changed.training, "the result is in training mode")
        expect(all(bool(torch.isfinite(t).all()) for t in changed.state_dict().values()), "values are not finite")
        expect(not equal_states(changed.state_dict(), before), "no weight changed")
        hooked = any(module._forward_pre_hooks or module._forward_hooks for module in changed.modules())
        expect(not hooked, "hooks were left on the result")
        if self.method.bn_mode != "train":
            after = changed.state_dict()
            names = [name for name in before if "running_" in name or "num_batches" in name]
            expect(all(torch.equal(before[n], after[n]) for n in names), "BatchNorm's statistics changed")

    def test_retained_classes_are_still_answered(self, changed):
        """On images that neither the model nor the method has seen."""
        retained = [c for c in range(CLASSES) if c not in self.forget_classes]
        images, labels = planted_images(retained, seed=2)
        with torch.no_grad():
            right = 100 * float((changed(pixel_values=images).logits.argmax(dim=1) == labels).float().mean())
        expect(right >= self.keeps, f"{right:.0f} % of retained images are answered right, and keeps={self.keeps}")

    def test_the_same_seed_gives_the_same_weights(self, original, changed):
        """Whatever state torch's generator is in, which stays as it is."""
        with own_generators(torch.get_default_device(), 1234):
            before = torch.get_rng_state()
            again = self.run(original)
            after = torch.get_rng_state()
        expect(equal_states(changed.state_dict(), again.state_dict()), "another state of the generator, other weights")
        expect(torch.equal(after, before), "the method draws from torch's global generator")

    def test_the_record_comes_back(self, changed, tmp_path):
        """Through a saved checkpoint that plain transformers loads: what was done, and what was measured."""
        changed.save_pretrained(tmp_path)
        loaded = type(changed).from_pretrained(tmp_path)
        (record,) = weight_changes(loaded.config)
        (stored,) = changed.config.hf_kd_unlearned
        expect(
            record == WeightChange.from_dict(json.loads(json.dumps(stored))), "the record changes on its way to JSON"
        )
        said = (record.method, record.classes, record.n_forget, record.needs)
        expected = (self.method.name, self.forget_classes, 16 * len(self.forget_classes), self.method.needs)
        expect(said == expected, f"the record says {said} of {expected}")
        expect(record.measured[0] != {}, "nothing was measured")
        expect_declared(record.measured[0], self.method.measures)
        images = planted_images([0, 2], seed=2)[0]
        with torch.no_grad():
            same = torch.equal(loaded(pixel_values=images).logits, changed(pixel_values=images).logits)
        expect(same, "the saved model answers something else")

    def test_what_the_method_needs_has_to_be_given(self, original):
        """Retained images, where `needs` says so; where it does not, they are not looked at."""
        expect(self.method.needs in NEEDS, f"needs={self.method.needs!r} is none of {NEEDS}")
        if self.method.needs_retain:
            with pytest.raises(ValueError, match=r"retain=\.\.\."):
                self.run(original, retain=None)
        else:
            self.run(original, retain=None)

    def test_settings_come_back(self):
        """From JSON, by name."""
        expect_settings_come_back(self.method)
