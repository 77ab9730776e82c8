"""What all methods that fit an eraser owe, held by the testers that packages with methods of their own inherit too."""

from __future__ import annotations

import pytest
import torch

from hf_kd.methods.erasers import (
    ESC,
    ESCT,
    LEACE,
    Cover,
    MeanDifference,
    MeanProjection,
    PrototypeOrthogonal,
    RetainedSpan,
)
from hf_kd.methods.erasers.base import Method
from hf_kd.methods.registry import available_methods
from hf_kd.testing import EraserTester, PlantedFeatures


class TestESC(EraserTester):
    method = ESC(k=3)


class TestESCCentred(EraserTester):
    method = ESC(k=3, center=True)


class TestESCRenorm(EraserTester):
    method = ESC(k=3, renorm=True)


class TwoClasses(EraserTester):
    """Of two forgotten classes, each on its own."""

    def planted(self):
        planted = PlantedFeatures.make()
        return PlantedFeatures(planted.features, planted.labels, planted.head, (1, 3))


class TestESCPerClass(TwoClasses):
    method = ESC(k=2, per_class=True)


class TestESCT(EraserTester):
    method = ESCT(batch_size=1000)


class TestESCTInBatches(EraserTester):
    method = ESCT(batch_size=16)
    order_matters = True


class TestESCTSoft(EraserTester):
    method = ESCT(batch_size=1000, threshold=None)


class TestCover(EraserTester):
    method = Cover()

    def second(self, planted):
        return ESC(k=2).fit(planted.features[planted.is_forgotten])


class TestCoverByLogits(TestCover):
    method = Cover(views=0, class_sizes=dict.fromkeys(range(8), 60), guard="auto")


class TestRetainedSpan(EraserTester):
    method = RetainedSpan()


class TestMeanProjection(TwoClasses):
    method = MeanProjection()


class TestMeanDifference(TwoClasses):
    method = MeanDifference()


class TestLEACE(TwoClasses):
    method = LEACE()


class TestPrototypeOrthogonal(TwoClasses):
    method = PrototypeOrthogonal()


class TestPrototypeOrthogonalRemap(TwoClasses):
    method = PrototypeOrthogonal(remap=True)


def test_no_method_is_left_out():
    tested = {tester.method.name for name, tester in globals().items() if name.startswith("Test")}
    assert tested == set(available_methods())


def test_a_method_of_one_tap_that_needs_the_head_is_refused_at_two():
    class OneTap(Method):
        name = "one-tap"
        needs_head = True

        def fit(self, forget, labels=None, head=None, **given):
            raise AssertionError("the taps of a model are not fitted one by one where the head decides")

    with pytest.raises(ValueError, match="this model has 2 taps"):
        OneTap().fit_taps([torch.ones(4, 3), torch.ones(4, 3)], torch.zeros(4), lambda parts: parts[0])
