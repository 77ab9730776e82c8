"""What all methods that change weights owe, held by the tester that packages with methods of their own inherit too."""

from __future__ import annotations

import copy

import pytest

from hf_kd import unlearning_methods
from hf_kd.methods import unlearning as u
from hf_kd.testing import UnlearningTester
from hf_kd.testing.unlearning import trained_model

QUICK = {"epochs": 1, "batch_size": 16}


class OnOneNetwork(UnlearningTester):
    """Whatever the layers are, or with layers that another class or test_regrow.py looks for in both networks.

    A loss and steps along its gradient are taken on a transformer in tests/model/test_unlearn.py.
    """

    @pytest.fixture(scope="class")
    def original(self):
        return copy.deepcopy(trained_model("convolutional")).train()


class TestAmnesiac(OnOneNetwork):
    method = u.Amnesiac(**QUICK)


class TestBadTeaching(OnOneNetwork):
    method = u.BadTeaching(**QUICK)


class TestBoundaryExpand(OnOneNetwork):
    method = u.BoundaryExpand(**QUICK)


class TestBoundaryShrink(OnOneNetwork):
    method = u.BoundaryShrink(**QUICK)


class TestCatastrophicForgetting(OnOneNetwork):
    method = u.CatastrophicForgetting(**QUICK, k=2)


class TestCola(UnlearningTester):
    method = u.Cola(epochs=2, batch_size=16)


class TestDamp(UnlearningTester):
    method = u.Damp()
    keeps = 0.0  # it edits every layer of a tiny network


class TestDelete(OnOneNetwork):
    method = u.Delete(**QUICK)


class TestExactUnlearning(UnlearningTester):
    method = u.ExactUnlearning(epochs=8, batch_size=16, k=2)


class TestExactUnlearningAboveABlock(OnOneNetwork):
    method = u.ExactUnlearning(epochs=8, batch_size=16, keep=0.5)


class TestFinetune(OnOneNetwork):
    method = u.Finetune(**QUICK)


class TestFisher(UnlearningTester):
    method = u.Fisher(samples=6)


class TestHeadSurgery(UnlearningTester):
    method = u.HeadSurgery()


class TestKodge(UnlearningTester):
    method = u.Kodge(forget_samples=12, retain_samples=48)


class TestL1Sparse(OnOneNetwork):
    method = u.L1Sparse(**QUICK)


class TestLayerResets(UnlearningTester):
    method = u.LayerResets(epochs=6, batch_size=16, layers=1, cycles=2, optimizer="adam", lr=5e-3)


class TestLAU(OnOneNetwork):
    method = u.LAU(epochs=2, batch_size=16)


class TestNegGrad(OnOneNetwork):
    method = u.NegGrad(epochs=2, batch_size=16)


class TestNegGradPlus(OnOneNetwork):
    method = u.NegGradPlus(**QUICK)


class TestNoiseDistill(OnOneNetwork):
    method = u.NoiseDistill(epochs=8, batch_size=16, optimizer="adam", lr=5e-3)


class TestRandomLabel(OnOneNetwork):
    method = u.RandomLabel(**QUICK)


class TestRegrow(OnOneNetwork):
    method = u.Regrow(batch_size=16)


class TestRetrain(OnOneNetwork):
    method = u.Retrain(epochs=12, batch_size=16, augment="flip", lr=0.05)


class TestSalUn(OnOneNetwork):
    method = u.SalUn(**QUICK)


class TestScrub(OnOneNetwork):
    method = u.Scrub(epochs=2, max_epochs=1, batch_size=16)


class TestScrubRewind(OnOneNetwork):
    method = u.Scrub(epochs=2, max_epochs=2, batch_size=16, rewind=True)


class TestSSD(UnlearningTester):
    method = u.SSD()


class TestSpotter(OnOneNetwork):
    method = u.Spotter(**QUICK, lr=1e-3)


class TestUnsir(OnOneNetwork):
    method = u.Unsir(**QUICK, noise_images=8, noise_steps=3, noise_repeats=2, per_class=12)


def test_no_method_is_left_out():
    tested = {tester.method.name for name, tester in globals().items() if name.startswith("Test")}
    assert tested == set(unlearning_methods())
