"""What every method that fits an eraser owes: `EraserTester`, on planted features without a model."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from hf_kd.data.devices import own_generators
from hf_kd.errors import HfKdError
from hf_kd.features.taps.site import HeadFunction
from hf_kd.methods.erasers.base import Composition, Eraser, Method, build, describe
from hf_kd.methods.erasers.moments import RetainMoments, SecondMoment

from .checks import close, equal_states, expect, expect_declared, expect_settings_come_back


@dataclass(frozen=True)
class PlantedFeatures:
    """Gaussian classes with known means, and the head that tells them apart.

    Attributes:
        features: [n, d], float32.
        labels: [n].
        head: Linear discriminants of the classes, [d] -> [C].
        forget: The classes to forget.
    """

    features: Tensor
    labels: Tensor
    head: nn.Linear
    forget: tuple[int, ...] = (3,)

    @classmethod
    def make(cls, dim: int = 20, classes: int = 8, per_class: int = 60, seed: int = 0) -> PlantedFeatures:
        """Means drawn from N(0, I), spread 0.7 within a class.

        Args:
            dim: d.
            classes: C.
            per_class: Features of each class.
            seed: Of means and features.
        """
        draws = torch.Generator().manual_seed(seed)
        means = torch.randn(classes, dim, generator=draws)
        labels = torch.arange(classes).repeat_interleave(per_class)
        features = means[labels] + 0.7 * torch.randn(len(labels), dim, generator=draws)
        head = nn.Linear(dim, classes, device="meta").to_empty(device="cpu").requires_grad_(False)
        head.weight.copy_(means / 4)  # not so sure of itself that the loss has no gradient
        head.bias.copy_(-means.square().sum(dim=1) / 8)
        return cls(features, labels, head)

    @property
    def is_forgotten(self) -> Tensor:
        """Mask [n] of the features to forget."""
        return torch.isin(self.labels, torch.tensor(self.forget))

    def permuted(self, seed: int) -> PlantedFeatures:
        """The same features in another order.

        Args:
            seed: Of the order.
        """
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))
        return replace(self, features=self.features[order], labels=self.labels[order])


class EraserTester:
    """Inherit, name the class `Test...`, and set `method`.

    Attributes:
        method: The method under test, with its settings.
        order_matters: Set it for a method whose result depends on the order of D_f by design, such as one that takes
            steps on batches.
        tolerance: Relative error of what has to hold up to rounding; buffers are float32.
    """

    method: ClassVar[Method]
    order_matters: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-4

    def planted(self) -> PlantedFeatures:
        """The features that the method is fitted on; override it for a method that wants others."""
        return PlantedFeatures.make()

    def fit(self, planted: PlantedFeatures, method: Method | None = None, batch_size: int = 1000) -> Eraser:
        """The eraser, fitted on what the method's class attributes ask for, as `ErasedModel.erase` does it.

        Args:
            planted: Features of which the forgotten ones are D_f, and the rest D_r where it is needed.
            method: Another than the one under test.
            batch_size: Features that a moment takes at a time.
        """
        method = self.method if method is None else method
        forgotten, names = planted.features[planted.is_forgotten], planted.labels[planted.is_forgotten]
        dim = planted.features.shape[1]
        data: Any = forgotten
        if not method.needs_features:
            data = {int(c): SecondMoment(dim) for c in names.unique()} if method.by_class else SecondMoment(dim)
            for rows in torch.arange(len(names)).split(batch_size):
                for c, moment in data.items() if method.by_class else [(None, data)]:
                    moment.update(forgotten[rows] if c is None else forgotten[rows][names[rows] == c])
        head = HeadFunction([(0, (dim,), planted.head)]) if method.needs_head else None
        given: dict[str, Any] = {}
        if method.views:
            given["views"] = [[self._view(forgotten, number) for number in range(method.views)]]
        if method.needs_retain:
            rest = ~planted.is_forgotten
            given["retain"] = [RetainMoments.of(planted.features[rest], planted.labels[rest])]
        return method.fit_taps([data], names, head, **given)[0]

    @pytest.fixture
    def features(self) -> Tensor:
        """Forgotten and retained features, and some that belong to no class [n, d], float64."""
        planted = self.planted()
        other = torch.randn(50, planted.features.shape[1], generator=torch.Generator().manual_seed(1))
        return torch.cat([planted.features, 3 * other]).double()

    @pytest.fixture
    def eraser(self) -> Eraser:
        """The method fitted on `planted`."""
        return self.fit(self.planted())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
    def test_dtype_device_and_shape_of_the_input_come_back(self, eraser: Eraser, features: Tensor, dtype: torch.dtype):
        """Leading dimensions are free, the input stays as it was, and no arithmetic runs in less than float32."""
        given = features[:12].to(dtype)
        kept = given.clone()
        out = eraser(given.reshape(3, 4, -1))
        expect(
            (out.dtype, out.device, out.shape) == (dtype, given.device, (3, 4, features.shape[1])),
            f"{dtype} features [3, 4, d] come back as {out.dtype} {tuple(out.shape)}",
        )
        expect(torch.equal(given, kept), "the features that were given were changed in place")
        if dtype in (torch.float16, torch.bfloat16):
            wide = eraser(given.float()).to(dtype)
            expect(torch.equal(out.flatten(0, 1), wide), "half precision features were not erased in float32")

    def test_another_width_is_refused(self, eraser: Eraser):
        """Features of another d."""
        with pytest.raises(ValueError, match="d = "):
            eraser(torch.zeros(2, eraser.dim + 1))

    def test_rank_removed_is_true(self, eraser: Eraser, features: Tensor):
        """As many dimensions are lost as `rank_removed` says."""
        out = eraser(features)
        out = out - eraser.offset() if eraser.is_linear else out
        rank = int(torch.linalg.matrix_rank(out, rtol=1e-5))
        expect(
            rank == eraser.dim - eraser.rank_removed,
            f"the features have rank {rank} of {eraser.dim}, and rank_removed says {eraser.rank_removed}",
        )

    def test_is_linear_is_true(self, eraser: Eraser, features: Tensor):
        """h M + c where `is_linear` says so, and something else where it does not."""
        out = eraser(features)
        affine = features @ eraser.matrix() + eraser.offset()
        expect(
            close(affine, out, self.tolerance) == eraser.is_linear,
            f"is_linear is {eraser.is_linear}, and h M + c {'differs' if eraser.is_linear else 'is the same'}",
        )

    def test_condition_number_is_true(self, eraser: Eraser):
        """`inf` where something is lost, else the ratio of the extreme singular values."""
        said = eraser.condition_number
        expect(said >= 1, f"condition_number {said} is below 1")
        expect(
            said == float("inf") or not eraser.rank_removed, f"{eraser.rank_removed} dimensions are lost, not {said}"
        )
        if eraser.is_linear and not eraser.rank_removed:
            values = torch.linalg.svdvals(eraser.matrix())
            ratio = float(values[0] / values[-1])
            expect(abs(min(ratio, 1e9) - min(said, 1e9)) <= 1e-2 * ratio, f"condition_number {said}, measured {ratio}")

    def test_is_projection_is_true(self, eraser: Eraser, features: Tensor):
        """Twice is once where `is_projection` says so, and something else where it does not."""
        once = eraser(features)
        expect(
            close(eraser(once), once, self.tolerance) == eraser.is_projection,
            f"is_projection is {eraser.is_projection}, and twice is {'not ' if eraser.is_projection else ''}once",
        )

    def test_it_comes_back_bit_for_bit(self, eraser: Eraser, features: Tensor):
        """Saved by description and safetensors, loaded into an eraser that is refused until then."""
        rebuilt = build(json.loads(json.dumps(describe(eraser))))
        with pytest.raises(ValueError, match="not loaded or is damaged"):
            rebuilt.check()
        rebuilt.load_state_dict(load(save({k: v.contiguous() for k, v in eraser.state_dict().items()})))
        rebuilt.check()
        expect(torch.equal(rebuilt(features), eraser(features)), "the eraser that was loaded does something else")
        expect(rebuilt.rank_removed == eraser.rank_removed, "rank_removed did not come back")

    def test_damage_is_noticed(self, eraser: Eraser):
        """A value that is no number, in any buffer."""
        for name, buffer in eraser.named_buffers():
            kept = buffer.flatten()[0].clone()
            buffer.view(-1)[0] = float("nan")
            with pytest.raises(ValueError, match="damaged"):
                eraser.check()
                pytest.fail(f"a NaN in {name} is not noticed by check()")
            buffer.view(-1)[0] = kept
        eraser.check()

    def test_casting_the_model_rounds_no_buffer(self, eraser: Eraser):
        """`model.half()` leaves buffers in float32."""
        before = {name: buffer.clone() for name, buffer in eraser.state_dict().items()}
        eraser.to(torch.bfloat16).half()
        expect(equal_states(eraser.state_dict(), before), "casting the eraser changed its buffers")

    def test_the_same_seed_gives_the_same_eraser(self, eraser: Eraser):
        """Whatever state torch's generator is in, which stays as it is."""
        with own_generators(torch.get_default_device(), 1234):
            before = torch.get_rng_state()
            again = self.fit(self.planted())
            after = torch.get_rng_state()
        expect(
            equal_states(eraser.state_dict(), again.state_dict()), "another state of torch's generator, another eraser"
        )
        expect(torch.equal(after, before), "fitting draws from torch's global generator")

    def test_order_and_batches_do_not_matter(self, eraser: Eraser, features: Tensor):
        """The same features in another order and in other batches; in another order only where features are kept."""
        if self.order_matters:
            pytest.skip("depends on the order by design")
        again = self.fit(self.planted().permuted(7), batch_size=13)
        expect(close(again(features), eraser(features), self.tolerance), "another order of D_f gives another eraser")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_features_that_are_not_finite_are_refused(self, value: float):
        """By an error of hf_kd, not by an eraser full of NaN."""
        planted = self.planted()
        broken = planted.features.clone()
        broken[int(planted.is_forgotten.nonzero()[4]), 2] = value
        with pytest.raises(HfKdError):
            self.fit(replace(planted, features=broken))

    def test_what_the_method_needs_has_to_be_given(self):
        """Retained features and the head, where the class attributes name them."""
        planted = self.planted()
        data: Any = planted.features[planted.is_forgotten]
        if not self.method.needs_features:
            moment = SecondMoment.of(data)
            data = {planted.forget[0]: moment} if self.method.by_class else moment
        if self.method.needs_retain:
            with pytest.raises(ValueError, match=r"retain=\.\.\."):
                self.method.fit(data, planted.labels[planted.is_forgotten])
        if self.method.needs_head:
            with pytest.raises(ValueError, match="head"):
                self.method.fit(data, planted.labels[planted.is_forgotten], None)

    def test_two_requests_compose(self, eraser: Eraser, features: Tensor):
        """`first.then(second)` is the second after the first, honest about itself, and comes back as it was."""
        planted = self.planted()
        stays = ~planted.is_forgotten
        rest = PlantedFeatures(eraser(planted.features[stays]), planted.labels[stays], planted.head, forget=(5,))
        second = self.second(rest)
        both = eraser.then(second)
        expect(close(both(features), second(eraser(features)), self.tolerance), "then() is not one after the other")
        if both.is_linear:
            lost = both.dim - int(torch.linalg.matrix_rank(both.matrix(), rtol=1e-5))
            expect(both.rank_removed == lost, f"together {lost} dimensions are lost, and it says {both.rank_removed}")
        rebuilt = build(json.loads(json.dumps(describe(both))))
        rebuilt.load_state_dict(both.state_dict())
        expect(torch.equal(rebuilt(features), both(features)), "the composition did not come back")
        expect(isinstance(both, (Composition, type(eraser))), f"then() gives a {type(both).__name__}")

    def second(self, planted: PlantedFeatures) -> Eraser:
        """The eraser of a later request; override it where the method cannot follow itself.

        Args:
            planted: Features behind the first eraser.
        """
        return self.fit(planted)

    def test_settings_come_back(self):
        """From JSON, by name."""
        expect_settings_come_back(self.method)

    def test_what_was_measured_is_plain(self, eraser: Eraser):
        """`measured` goes into the record of a model: JSON, declared by `measures`, with the number of forget samples."""
        expect_declared(eraser.measured, self.method.measures)
        measured = json.loads(json.dumps(dict(eraser.measured)))
        expected = int(self.planted().is_forgotten.sum())
        expect(
            measured.get("n_forget") == expected, f"measured has n_forget={measured.get('n_forget')}, not {expected}"
        )

    def _view(self, features: Tensor, number: int) -> Tensor:
        """Another view of the same images [n, d]: near the first, and tied to each feature whatever the order."""
        turned = features.roll(number + 1, dims=1)
        return features + 0.05 * turned
