"""Cover erasure: a few constant points with more cover than forgotten mass, everything else bit for bit as it was."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from hf_kd import SecondMoment
from hf_kd.data.masked_classes import MASKED_LOGIT
from hf_kd.features.taps.site import HeadFunction
from hf_kd.methods.erasers.base import build, describe
from hf_kd.methods.erasers.cover import Cover, CoverMap
from hf_kd.methods.registry import make_method

CLASSES, DIM = 8, 20


def planted(per_class: int = 200, seed: int = 0, noise: float = 0.7) -> tuple[Tensor, Tensor, nn.Linear]:
    """Gaussian classes [n, d], their labels and the head that tells them apart (their linear discriminants)."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    features = means[labels] + noise * torch.randn(len(labels), DIM, generator=generator)
    head = nn.Linear(DIM, CLASSES)
    with torch.no_grad():
        head.weight.copy_(means)
        head.bias.copy_(-means.square().sum(dim=1) / 2)
    return features, labels, head.requires_grad_(False)


@pytest.fixture(scope="module")
def problem():
    return planted()


def of(problem, *classes: int) -> tuple[Tensor, Tensor, nn.Linear]:
    """The forget set: features and labels of some classes, and the head."""
    features, labels, head = problem
    rows = torch.isin(labels, torch.tensor(classes))
    return features[rows], labels[rows], head


def masked(head: nn.Module, *classes: int):
    """The head as a model hands it over that never answers some classes."""
    return HeadFunction([(0, (DIM,), head)], classes).of_tap(0)


def replaced(eraser: CoverMap, features: Tensor) -> Tensor:
    return eraser.decide(features)[1]


def mass_on_points(eraser: CoverMap, labels: Tensor, features: Tensor, classes: int = CLASSES) -> Tensor:
    """How many features of each class lie on each prototype [|M|, C]."""
    rows, hit = eraser.decide(features)
    return torch.stack([labels[hit & (rows == i)].bincount(minlength=classes) for i in range(len(eraser.cover))])


# What the map is.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_a_few_constants_and_everything_else_bit_for_bit(problem, dtype):
    features = problem[0].to(dtype)
    eraser = Cover().fit(*of(problem, 3))
    out, hit = eraser(features), replaced(eraser, features.to(torch.promote_types(dtype, torch.float32)))
    assert 0.2 < float(hit.float().mean()) < 0.6
    assert torch.equal(out[~hit], features[~hit])
    assert torch.equal(out[hit].unique(dim=0), eraser.prototypes.to(dtype).unique(dim=0))
    assert len(eraser.prototypes) == 2
    assert out.dtype == dtype


def test_twice_is_once(problem):
    eraser = Cover().fit(*of(problem, 3))
    once = eraser(problem[0])
    assert torch.equal(eraser(once), once)
    assert eraser.is_projection


def test_a_feature_becomes_the_same_alone_and_among_others(problem):
    eraser = Cover().fit(*of(problem, 3))
    out = eraser(problem[0])
    for size in (1, 7, 333):
        assert torch.equal(torch.cat([eraser(part) for part in problem[0].split(size)]), out)
    assert torch.equal(eraser(problem[0][5]), out[5])
    assert torch.equal(eraser(problem[0][:12].reshape(3, 4, DIM)), out[:12].reshape(3, 4, DIM))
    assert eraser(problem[0][:0]).shape == (0, DIM)


def test_fitting_is_deterministic_and_blind_to_the_order(problem):
    features, labels, head = of(problem, 3, 5)
    one = Cover().fit(features, labels, head)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    other = Cover().fit(features[order], labels[order], head)
    for name, value in Cover().fit(features, labels, head).state_dict().items():
        assert torch.equal(value, one.state_dict()[name])
        assert torch.allclose(value, other.state_dict()[name], atol=1e-5), name


@pytest.mark.parametrize("classes", [(3,), (3, 5), (0, 3, 6)])
def test_every_prototype_is_answered_as_its_own_class(problem, classes):
    head = problem[2]
    eraser = Cover(m=None if len(classes) < 3 else 5).fit(*of(problem, *classes))
    assert head(eraser.prototypes).argmax(dim=1).tolist() == list(eraser.cover)
    assert len(eraser.cover) == min(2 * len(classes), 5)
    assert eraser.measured["cover_classes"] == list(eraser.cover)
    assert eraser.measured["prototypes_moved"] == eraser.measured["classes_skipped"] == []


def test_no_output_is_answered_as_forgotten_and_no_retained_answer_changes(problem):
    features, _, head = problem
    eraser = Cover().fit(*of(problem, 3))
    before = head(features).index_fill(1, torch.tensor([3]), -torch.inf).argmax(dim=1)
    recognised = head(features).argmax(dim=1) == 3
    after = head(eraser(features)).argmax(dim=1)
    assert not (after == 3).any()
    assert torch.equal(after[~recognised], before[~recognised])
    assert torch.isin(after[recognised], torch.tensor(eraser.cover)).all()


def test_it_says_that_it_cannot_be_inverted_nor_folded(problem):
    eraser = Cover().fit(*of(problem, 3))
    assert not eraser.is_linear
    assert eraser.condition_number == float("inf")
    assert eraser.rank_removed == 0


def test_features_that_are_not_numbers_come_back_as_they_were(problem):
    bad = problem[0][:3].clone()
    bad[1] = float("nan")
    assert torch.isnan(Cover().fit(*of(problem, 3))(bad)[1]).all()


# The bound: cover and forgotten mass.


def test_every_point_holds_at_least_twice_as_much_cover(problem):
    for classes in ((3,), (3, 5)):
        eraser = Cover().fit(*of(problem, *classes))
        held_out, truth, _ = planted(400, seed=5)
        mass = mass_on_points(eraser, truth, held_out)
        for row, cover in zip(mass, eraser.cover, strict=True):
            assert int(row.argmax()) == cover, "the best decision at each point is its cover class"
            assert float(row[list(classes)].sum()) < 0.7 * float(row[cover])


def test_a_small_class_of_an_uneven_forget_set_is_shared_out_too(problem):
    """One forgotten class with a tenth of the images: as large as any other where the model is used."""
    features, labels, head = of(problem, 3, 5)
    rows = torch.cat([(labels == 3).nonzero().flatten(), (labels == 5).nonzero().flatten()[:20]])
    views = [features[rows] + 0.01 * torch.randn(len(rows), DIM, generator=torch.Generator().manual_seed(2))]
    for given in ((), views):
        eraser = Cover().fit(features[rows], labels[rows], head, given)
        mass = mass_on_points(eraser, *planted(400, seed=5)[1::-1]).float()
        for row, cover in zip(mass, eraser.cover, strict=True):
            assert float(row[5]) < 0.75 * float(row[cover])
            assert float(row[3] + row[5]) < 0.85 * float(row[cover])


@pytest.mark.parametrize("m", [2, 3, 5])
def test_forgotten_features_are_shared_out_equally(problem, m):
    eraser = Cover(m=m).fit(*of(problem, 3))
    assert eraser.measured["shares"] == pytest.approx([1 / m] * m, abs=0.02)
    assert eraser.measured["shared_by"] == "logits"


def test_fifty_features_suffice(problem):
    features, labels, head = of(problem, 3)
    few, many = Cover().fit(features[:50], labels[:50], head), Cover().fit(features, labels, head)
    assert few.cover == many.cover
    mass = mass_on_points(few, *planted(400, seed=5)[1::-1])
    assert all(int(row.argmax()) == cover for row, cover in zip(mass, few.cover, strict=True))
    distance = (few.prototypes - many.prototypes).norm(dim=1)
    assert float(distance.max()) < 0.2 * float((many.prototypes[0] - many.prototypes[1]).norm())


def test_the_nearest_classes_cover_unless_others_are_named(problem):
    features, labels, head = of(problem, 3)
    order = head(features).mean(dim=0).argsort(descending=True).tolist()
    assert list(Cover(m=3).fit(features, labels, head).cover) == [c for c in order if c != 3][:3]
    assert Cover(cover_classes=[6, 0]).fit(features, labels, head).cover == (6, 0)


def test_class_sizes_ask_for_twice_the_mass_and_share_it_by_size(problem):
    features, labels, head = of(problem, 3)
    near = Cover().fit(features, labels, head).cover
    sizes = dict.fromkeys(range(CLASSES), 100) | {3: 300, near[0]: 200}
    eraser = Cover(class_sizes=sizes).fit(features, labels, head)
    assert sum(sizes[c] for c in eraser.cover) >= 600
    assert sum(sizes[c] for c in eraser.cover[:-1]) < 600, "and no more classes than that needs"
    total = sum(sizes[c] for c in eraser.cover)
    assert eraser.measured["shares"] == pytest.approx([sizes[c] / total for c in eraser.cover], abs=0.03)
    hit = 300 * eraser.measured["share_of_forget_replaced"] + total
    assert eraser.measured["share_of_inputs_expected"] == pytest.approx(hit / sum(sizes.values()))


def test_prototypes_may_be_true_means(problem):
    features, labels, _ = problem
    near = Cover().fit(*of(problem, 3)).cover
    means = {c: features[labels == c].mean(dim=0) for c in near}
    eraser = Cover(prototypes=means).fit(*of(problem, 3))
    assert torch.allclose(eraser.prototypes, torch.stack(list(means.values())), atol=1e-6)


def test_a_prototype_that_is_not_answered_as_its_class_is_moved_and_said_so(problem):
    features, labels, head = problem
    near = Cover().fit(*of(problem, 3)).cover
    wrong = {near[0]: features[labels == 3].mean(dim=0)}
    eraser = Cover(prototypes=wrong).fit(*of(problem, 3))
    assert eraser.measured["prototypes_moved"] == [near[0]]
    assert head(eraser.prototypes).argmax(dim=1).tolist() == list(near)
    assert torch.equal(eraser(eraser(features)), eraser(features))


def test_a_class_that_is_never_answered_is_skipped_and_said_so(problem):
    features, labels, head = of(problem, 3)
    near = Cover().fit(features, labels, head).cover[0]
    hopeless = copy.deepcopy(head)
    others = [c for c in range(CLASSES) if c != near]
    hopeless.weight[near] = head.weight[others].mean(dim=0)  # inside the hull of the others: never the largest
    hopeless.bias[near] = head.bias[others].mean() - 0.1
    found = Cover(m=CLASSES - 2).fit(features, labels, hopeless)
    assert found.measured["classes_skipped"] == [near]
    assert near not in found.cover
    with pytest.raises(ValueError, match=rf"skipped.*\[{near}\]"):
        Cover(cover_classes=[near, others[0]]).fit(features, labels, hopeless)


# The gate and the guard.


def test_tau_lets_through_what_is_barely_forgotten(problem):
    features, _, head = problem
    logits = head(features)
    margin = logits[:, 3] - logits.index_fill(1, torch.tensor([3]), -torch.inf).amax(dim=1)
    for tau in (1.5, -1.5):
        eraser = Cover(tau=tau).fit(*of(problem, 3))
        answer = logits.index_fill(1, torch.tensor([3]), -torch.inf).argmax(dim=1)
        cover = torch.isin(answer, torch.tensor(eraser.cover))
        assert torch.equal(replaced(eraser, features), (margin > tau) | cover)
        assert torch.equal(eraser(eraser(features)), eraser(features))


def test_guard_is_a_quantile_of_the_margin(problem):
    features, labels, head = of(problem, 3)
    recognised = features[head(features).argmax(dim=1) == 3]
    for quantile in (0.0, 0.1, 0.5):
        eraser = Cover(guard=quantile).fit(features, labels, head)
        assert float(replaced(eraser, recognised).float().mean()) == pytest.approx(1 - quantile, abs=0.01)
        assert eraser.measured["guard_quantile"] == quantile
        top = head(problem[0]).topk(2, dim=1).values
        unsure = top[:, 0] - top[:, 1] <= eraser.measured["guard_margin"]
        assert torch.equal(eraser(problem[0])[unsure], problem[0][unsure])


@pytest.mark.parametrize("n", [41, 101, 121])
@pytest.mark.parametrize("quantile", [0.0, 0.05, 0.5])
def test_no_feature_lies_on_the_margin_of_the_guard(problem, n, quantile):
    """A quantile that a feature reaches exactly would leave it to rounding whether the feature is replaced."""
    features, labels, head = of(problem, 3)
    recognised = features[head(features).argmax(dim=1) == 3][:n]
    eraser = Cover(guard=quantile).fit(recognised, labels[: len(recognised)], head)
    top = (recognised.double() @ head.weight.double().T + head.bias.double()).topk(2, dim=1).values
    assert float((top[:, 0] - top[:, 1] - eraser.measured["guard_margin"]).abs().min()) > 1e-4
    assert torch.equal(replaced(eraser, recognised), replaced(eraser, recognised.double()))
    assert int((~replaced(eraser, recognised)).sum()) == int(quantile * len(recognised))


@pytest.mark.parametrize("seed", range(6))
def test_classes_that_score_alike_are_taken_in_their_order(seed):
    """Features and head are mirror images of themselves, so that two classes each have one mean logit but for rounding."""
    features, labels, head = of(planted(40, seed), 3)
    for a, b in ((0, 1), (2, 4), (5, 6)):
        head.weight[b], head.bias[b] = head.weight[a].flip(0), head.bias[a]
    head.weight[3] += head.weight[3].flip(0)
    eraser = Cover(m=7).fit(torch.cat([features, features.flip(1)]), labels.repeat(2), head)
    for a, b in ((0, 1), (2, 4), (5, 6)):
        assert eraser.cover.index(a) + 1 == eraser.cover.index(b)


@pytest.mark.parametrize("n", [60, 99, 200, 1000])
def test_the_automatic_guard_leaves_a_hundredth_at_most(n):
    features, labels, head = planted(n)
    forget = features[labels == 3]
    eraser = Cover(guard="auto").fit(forget, labels[labels == 3], head)
    recognised = forget[head(forget).argmax(dim=1) == 3]
    left = int((~replaced(eraser, recognised)).sum())
    assert left <= 0.01 * len(recognised)
    assert left == 0 or len(recognised) >= 100
    assert math.isfinite(eraser.measured["guard_margin"])
    answers = masked(head, 3)(eraser(features)).argmax(dim=1)
    assert not (answers == 3).any(), "with the row masked"


@pytest.mark.parametrize("seed", range(4))
def test_the_automatic_guard_holds_in_the_precision_the_map_works_in(seed):
    """Large logits and small margins: what float64 sees above the margin, float32 must not see below."""
    features, labels, head = planted(60, seed)
    head.weight.mul_(1e-2)
    head.bias.mul_(1e-2).add_(20.0)
    forget = features[labels == 3]
    recognised = forget[head(forget).argmax(dim=1) == 3]
    logits = head(recognised[:1])
    nearest = logits.index_fill(1, torch.tensor([3]), -torch.inf).argmax()
    normal = head.weight[3] - head.weight[nearest]
    close = recognised[:1] - (logits[0, 3] - logits[0, nearest] - 1e-5) / normal.square().sum() * normal
    forget = torch.cat([recognised, close])
    eraser = Cover(guard="auto").fit(forget, torch.full((len(forget),), 3), head)
    assert replaced(eraser, forget[head(forget).argmax(dim=1) == 3]).all()


# Several heads, several requests.


def test_each_tap_is_fitted_by_its_own_head(problem):
    features, labels, head = problem
    other = copy.deepcopy(head)
    other.weight.mul_(-1)  # the same classes in mirrored features
    function = HeadFunction([(0, (DIM,), head), (1, (DIM,), other)])
    rows = labels == 3
    first, second = Cover().fit_taps([features[rows], -features[rows]], labels[rows], function)
    assert torch.equal(first(features), Cover().fit(features[rows], labels[rows], head)(features))
    assert torch.equal(second(-features), Cover().fit(-features[rows], labels[rows], other)(-features))
    answers = function([first(features), second(-features)]).argmax(dim=1)
    assert not (answers == 3).any()


def test_a_second_request_is_covered_after_the_first(problem):
    features, labels, head = problem
    first = Cover().fit(*of(problem, 3))
    second_class = next(c for c in range(CLASSES) if c != 3 and c not in first.cover)
    rows = labels == second_class
    after = first(features)
    eraser = first.then(Cover().fit(after[rows], labels[rows], masked(head, 3)))
    out = eraser(features)
    answers = masked(head, 3, second_class)(out).argmax(dim=1)
    assert not torch.isin(answers, torch.tensor([3, second_class])).any()
    _, index, counts = out.unique(dim=0, return_inverse=True, return_counts=True)
    for point in (counts > 5).nonzero().flatten().tolist():
        mass = labels[index == point].bincount(minlength=CLASSES)
        assert int(mass.argmax()) not in (3, second_class)
    rebuilt = build(describe(eraser))
    rebuilt.load_state_dict(eraser.state_dict())
    rebuilt.check()
    assert torch.equal(rebuilt(features), out)


def test_masked_classes_do_not_stretch_the_scale_of_the_logits(problem):
    """A masked logit is -10,000. What a prototype has to lead by is a matter of the others."""
    features, labels, head = of(problem, 5)
    head = copy.deepcopy(head)
    head.weight.mul_(1e-3)
    head.bias.mul_(1e-3)
    plain = Cover().fit(features, labels, head)
    spare = next(c for c in range(CLASSES) if c != 5 and c not in plain.cover)
    with_mask = Cover().fit(features, labels, masked(head, spare))
    assert with_mask.measured["prototypes_moved"] == []
    assert torch.allclose(with_mask.prototypes, plain.prototypes, atol=1e-4)
    assert spare not in with_mask.cover


def test_a_cover_class_cannot_be_covered_afterwards(problem):
    """Its features are one point, which cannot be shared out: whatever it moves to would be forgotten and cover 1 : 1."""
    features, labels, head = problem
    first = Cover().fit(*of(problem, 3))
    rows = labels == first.cover[0]
    with pytest.raises(ValueError, match=r"one and the same point.*reset\(\).*together"):
        Cover().fit(first(features)[rows], labels[rows], masked(head, 3))


def test_a_class_that_is_never_answered_cannot_be_told_by_its_answer(problem):
    features, labels, head = of(problem, 3)
    with pytest.raises(ValueError, match=r"Classes \[3\].*never answered"):
        Cover().fit(features, labels, masked(head, 3))


# Settings, state, exit_on_error.


def test_settings_survive_json(problem):
    method = Cover(
        m=None,
        guard="auto",
        tau=0.5,
        cover_classes=(6, 0),
        class_sizes=dict.fromkeys(range(CLASSES), 10),
        prototypes={6: problem[0][0], 0: problem[0][1].tolist()},
        views=1,
    )
    settings = method.settings()
    stored = json.loads(json.dumps(settings))
    assert stored == settings, "what a record says is the same after it was saved"
    again = make_method("cover", **stored)
    assert again.settings() == settings
    one, other = method.fit(*of(problem, 3)), again.fit(*of(problem, 3))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_the_state_comes_back_from_its_description_and_casts_do_not_round_it(problem):
    eraser = Cover(guard="auto").fit(*of(problem, 3))
    rebuilt = build(json.loads(json.dumps(describe(eraser))))
    with pytest.raises(ValueError, match="not loaded or is damaged"):
        rebuilt.check()
    with pytest.raises(ValueError, match="not all among the 8"):
        build(describe(eraser) | {"forgotten": [99]})
    rebuilt.load_state_dict(eraser.state_dict())
    rebuilt.check()
    before = eraser(problem[0])
    assert torch.equal(rebuilt(problem[0]), before)
    assert torch.equal(copy.deepcopy(eraser)(problem[0]), before)
    assert torch.equal(eraser.to(torch.bfloat16).half()(problem[0]), before)


@pytest.mark.parametrize("name", ["weight", "bias", "prototypes", "share_weight", "limits", "roles"])
def test_damage_is_noticed(problem, name):
    eraser = Cover().fit(*of(problem, 3))
    buffer = getattr(eraser, name)
    if name == "roles":
        buffer[3] = -1
    else:
        buffer.view(-1)[0] = float("nan")
    with pytest.raises(ValueError, match="damaged"):
        eraser.check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"m": 0}, "m=0"),
        ({"m": 1.5}, "m=1.5"),
        ({"m": True}, "m=True"),
        ({"m": 2, "cover_classes": [1, 2]}, "not both"),
        ({"cover_classes": []}, "cover_classes"),
        ({"cover_classes": [1, 1]}, "twice"),
        ({"cover_classes": ["dog"]}, r"cover_classes=\['dog'\] is out of range"),
        ({"guard": 1.0}, "guard=1.0"),
        ({"guard": -0.1}, "guard=-0.1"),
        ({"guard": "most"}, "'most'"),
        ({"tau": float("nan")}, "tau=nan"),
        ({"tau": float("inf")}, "tau=inf"),
        ({"class_sizes": {0: 0}}, "an image or more"),
        ({"views": 3}, "views=3"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Cover(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"m": CLASSES}, "8 cover classes of 7 retained"),
        ({"cover_classes": [3, 1]}, r"Classes \[3\]"),
        ({"cover_classes": [1, 99]}, r"Classes \[99\]"),
        ({"class_sizes": {0: 10}}, "size of every class"),
        ({"class_sizes": dict.fromkeys(range(CLASSES), 10) | {99: 10}}, r"\[99\]"),
        ({"class_sizes": dict.fromkeys(range(CLASSES), 10) | {3: 1000}}, "2000"),
        ({"prototypes": {99: [0.0] * DIM}}, r"\[99\]"),
        ({"prototypes": {3: [0.0] * DIM}}, r"\[3\]"),
        ({"prototypes": {c: [0.0] for c in range(3)}, "m": 7}, "has 1 values"),
        ({"prototypes": {0: [float("nan")] * DIM}, "m": 7}, "finite"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(problem, options, message):
    with pytest.raises(ValueError, match=message):
        Cover(**options).fit(*of(problem, 3))


def test_what_is_missing_is_named(problem):
    features, labels, head = of(problem, 3)
    with pytest.raises(ValueError, match="a classification head is missing"):
        Cover().fit(features, labels, None)
    with pytest.raises(ValueError, match="labels is missing"):
        Cover().fit(features, None, head)
    with pytest.raises(ValueError, match="features of D_f is missing"):
        Cover().fit(SecondMoment.of(features), labels, head)
    with pytest.raises(ValueError, match="200 features and 3 labels"):
        Cover().fit(features, labels[:3], head)
    with pytest.raises(ValueError, match=r"labels \[8\]"):
        Cover().fit(features, torch.full_like(labels, CLASSES), head)
    with pytest.raises(ValueError, match="not affine"):
        Cover().fit(features, labels, nn.Sequential(head, nn.ReLU()))


def test_a_head_on_an_accelerator_takes_features_that_were_kept_on_the_cpu():
    """Features are stored on the CPU, the head is where the model is; fake tensors know devices without having them."""
    head = nn.Linear(DIM, CLASSES, bias=False)
    with FakeTensorMode() as mode:
        weight = FakeTensor(mode, torch.empty(CLASSES, DIM, device="meta"), torch.device("xpu"))
        head.weight = nn.Parameter(weight, requires_grad=False)
        function = HeadFunction([(0, (DIM,), head)])
        assert function([torch.zeros(5, DIM)]).device.type == "cpu"
        assert function.of_tap(0)(torch.zeros(5, DIM).to(weight.device)).device.type == "xpu"


def test_a_masked_row_weighs_nothing(problem):
    features = problem[0]
    logits = masked(problem[2], 3, 5)(features)
    assert (logits[:, [3, 5]] == MASKED_LOGIT).all()
    assert (logits.softmax(dim=1)[:, [3, 5]] == 0).all()
