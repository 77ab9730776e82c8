"""The second moment: the same subspace whatever the order, the batch size, the number of processes or the precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from hf_kd import SecondMoment
from hf_kd.methods.erasers.moments import RetainMoments
from tests.helpers.processes import LONG


def features(n: int, d: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0.5, -2, d)
    return torch.randn(n, d, generator=generator) * scales + torch.rand(d, generator=generator)


def in_processes(parts: Sequence, reduce: Callable) -> list:
    """What `reduce(part, sum_over_processes)` returns for each part, each in a thread that stands for a process."""
    barrier, held = Barrier(len(parts), timeout=LONG), {}

    def run(rank: int):
        def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
            held[rank] = tensor.clone()
            barrier.wait()
            total = sum(held[other] for other in range(len(parts)))
            barrier.wait()
            return total

        return reduce(parts[rank], sum_over_processes)

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(run, range(len(parts))))


def largest_angle(a: torch.Tensor, b: torch.Tensor) -> float:
    """Sine of the largest principal angle between two orthonormal bases [d, k]."""
    return float(torch.linalg.svdvals(a - b @ (b.T @ a))[0])


@pytest.mark.parametrize(("n", "d"), [(300, 40), (40, 40), (12, 40)])
def test_directions_equal_those_of_a_float64_svd(n, d):
    h = features(n, d)
    u, s = SecondMoment.of(h).principal_directions()
    u_svd, s_svd, _ = torch.linalg.svd(h.double().T, full_matrices=True)
    rank = min(n, d)
    assert u.shape == (d, d)
    assert torch.allclose(u.T @ u, torch.eye(d, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(s[:rank], s_svd[:rank], rtol=1e-6)
    assert (s[rank:] == 0).all()
    for k in (1, 3, rank):
        assert largest_angle(u[:, :k], u_svd[:, :k]) < 1e-6


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_batch_size_and_order_do_not_matter(batch_size):
    h = features(200, 32)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    streamed = SecondMoment(32)
    for batch in h[order].split(batch_size):
        streamed.update(batch)
    assert streamed.count == 200
    u, _ = streamed.principal_directions()
    reference, _ = SecondMoment.of(h).principal_directions()
    assert (u - reference).abs().max() < 1e-6, "columns agree, signs included"


def test_merging_parts_equals_the_whole():
    h = features(100, 16)
    merged = SecondMoment.of(h[:37]).merge(SecondMoment.of(h[37:]))
    union = SecondMoment.union([SecondMoment.of(h[:50]), SecondMoment.of(h[50:])])
    whole = SecondMoment.of(h)
    assert merged.count == union.count == 100
    for moment in (merged, union):
        assert torch.allclose(moment.outer_sum, whole.outer_sum, rtol=1e-12)
        assert torch.allclose(moment.scatter, whole.scatter, rtol=1e-12)
        assert torch.allclose(moment.feature_sum, whole.feature_sum, rtol=1e-12)


def test_all_reduce_gives_every_process_the_whole():
    h = features(90, 16)
    parts = [SecondMoment.of(h[:20]), SecondMoment.of(h[20:]), SecondMoment(16)]
    for reduced in in_processes(parts, SecondMoment.all_reduce):
        assert reduced.count == 90
        assert torch.allclose(reduced.outer_sum, SecondMoment.of(h).outer_sum, rtol=1e-12)
        assert torch.allclose(reduced.scatter, SecondMoment.of(h).scatter, rtol=1e-12)
    assert all(part.count == 0 for part in in_processes([SecondMoment(4)] * 2, SecondMoment.all_reduce))


MERGES = {
    "at once": SecondMoment.of,
    "by rows": lambda h: SecondMoment.union(SecondMoment.of(row) for row in h.split(1)),
    "in batches": lambda h: SecondMoment.union(SecondMoment.of(rows) for rows in h.split(7)),
    "backwards": lambda h: SecondMoment.union(SecondMoment.of(rows) for rows in reversed(h.split(64))),
    "streamed": lambda h: [m := SecondMoment(h.shape[1]), *(m.update(rows) for rows in h.split(5))][0],
    "as a tree": lambda h: SecondMoment.of(h) if len(h) < 9 else _halves(h),
    "over processes": lambda h: in_processes([*map(SecondMoment.of, h.tensor_split(3))], SecondMoment.all_reduce)[2],
}


def _halves(h: torch.Tensor) -> SecondMoment:
    first, second = (MERGES["as a tree"](part) for part in h.tensor_split(2))
    return first.merge(second)


@pytest.mark.parametrize("way", MERGES)
@pytest.mark.parametrize("offset", [0.0, 1.0, 1e3, 1e6])
def test_merged_in_any_way_the_scatter_is_that_of_two_passes(way, offset):
    h = torch.randn(500, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) + offset
    moment, centred = MERGES[way](h), h - h.mean(dim=0)
    expected = centred.T @ centred
    assert float((moment.scatter - expected).norm() / expected.norm()) < 1e-10
    assert float((moment.outer_sum - h.T @ h).norm() / (h.T @ h).norm()) < 1e-13
    assert torch.allclose(moment.mean, h.mean(dim=0), rtol=1e-14, atol=1e-14)
    assert moment.count == 500


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_input_precision_is_kept_and_sums_are_float64(dtype):
    h = features(50, 8).to(dtype)
    moment = SecondMoment.of(h)
    assert moment.outer_sum.dtype == torch.float64
    assert torch.allclose(moment.outer_sum, h.double().T @ h.double(), rtol=1e-12)


def test_the_state_does_not_grow_with_the_number_of_samples():
    moment = SecondMoment(8)
    for _ in range(50):
        moment.update(torch.randn(100, 8))
    assert sum(v.numel() for v in vars(moment).values() if isinstance(v, torch.Tensor)) == 8 * 8 + 8


def test_the_null_space_basis_does_not_depend_on_rounding():
    """Eigenvectors of a null space are arbitrary; ESC-T multiplies them by a mask, so they have to be reproducible."""
    h = features(10, 64)
    u, _ = SecondMoment.of(h).principal_directions()
    perturbed = SecondMoment(64)
    for row in h.flip(0).split(3):
        perturbed.update(row * (1 + 1e-12))
    assert (perturbed.principal_directions()[0] - u).abs().max() < 1e-7


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("columns", [0, 1, 9, 12, 64, 100])
def test_some_columns_are_those_of_the_whole(columns, center):
    """Within the rank (10, or 9 when centred), beyond it, and all."""
    moment = SecondMoment.of(features(10, 64))
    whole, values = moment.principal_directions(center=center)
    some, values_too = moment.principal_directions(center=center, columns=columns)
    assert some.shape == (64, min(columns, 64))
    assert torch.allclose(some, whole[:, :columns], atol=1e-12)
    assert torch.equal(values, values_too)


@pytest.mark.parametrize("seed", range(3))
def test_equal_singular_values_have_directions_that_rounding_does_not_choose(seed):
    """Orthogonal rows of one length in a rotated basis: every basis of their span would do."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=generator)).Q
    h = torch.cat([3 * turn[:6], turn[6:12], 2 * turn[12:13]])
    u, values = SecondMoment.of(h).principal_directions()
    assert torch.allclose(values, torch.tensor([3.0] * 6 + [2.0] + [1.0] * 6 + [0.0] * 3).double(), atol=1e-7)
    assert torch.allclose(u.T @ u, torch.eye(16).double(), atol=1e-12)
    noise = 1e-16 * torch.randn(h.shape, dtype=torch.float64, generator=generator)
    again, _ = SecondMoment.of((h + noise).flip(0)).principal_directions()
    assert torch.allclose(again, u, atol=1e-9)
    assert torch.allclose(SecondMoment.of(h).principal_directions(columns=3)[0], u[:, :3], atol=1e-12)


def test_equal_entries_do_not_leave_the_sign_to_rounding():
    for lean in (-1e-15, 0.0, 1e-15):
        h = torch.tensor([[1.0 + lean, -1.0, 0.0], [-1.0, 1.0 + lean, 0.0], [0.0, 0.0, 0.1]]).double()
        assert float(SecondMoment.of(h).principal_directions()[0][0, 0]) > 0, "the first of the largest is positive"


def test_centring_removes_the_mean_direction():
    h = features(500, 16) + 10
    direction = SecondMoment.of(h).principal_directions()[0][:, 0]
    mean = torch.nn.functional.normalize(h.double().mean(dim=0), dim=0)
    assert float(direction @ mean) > 0.999
    centred = SecondMoment.of(h).principal_directions(center=True)[0]
    reference = torch.linalg.svd((h.double() - h.double().mean(dim=0)).T)[0]
    assert largest_angle(centred[:, :2], reference[:, :2]) < 1e-6


def test_not_finite_features_name_the_row_and_change_nothing():
    moment = SecondMoment.of(features(5, 4))
    before = moment.outer_sum.clone()
    bad = features(5, 4)
    bad[3, 1] = float("nan")
    with pytest.raises(ValueError, match="row 3"):
        moment.update(bad)
    assert moment.count == 5
    assert torch.equal(moment.outer_sum, before)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: SecondMoment(4).update(torch.zeros(3, 5)), r"\[n, 4\]"),
        (lambda: SecondMoment.of(torch.zeros(3)), r"\[n, d\]"),
        (lambda: SecondMoment(4).merge(SecondMoment(5)), "d = 5"),
        (lambda: SecondMoment(4).principal_directions(), "empty"),
        (lambda: SecondMoment.of(torch.zeros(3, 4)).principal_directions(), "all forget features are zero|All forget"),
        (lambda: SecondMoment.of(torch.ones(3, 4)).principal_directions(center=True), "centring"),
        (lambda: SecondMoment.union([]), "at least one"),
    ],
)
def test_bad_input_says_what_is_wrong(action, message):
    with pytest.raises(ValueError, match=message):
        action()


# The moments of D_r: of all, and the mean of each class.


def retained(n: int = 120, d: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    return features(n, d), torch.arange(n) % 5 * 2


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_retained_moments_stream(batch_size):
    h, labels = retained()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    streamed = RetainMoments(12)
    for rows in order.split(batch_size):
        streamed.update(h[rows], labels[rows])
    whole = RetainMoments.of(h, labels)
    assert list(whole.means()) == [0, 2, 4, 6, 8] == list(streamed.means())
    for label, mean in whole.means().items():
        assert torch.allclose(mean, h[labels == label].double().mean(dim=0), atol=1e-12)
        assert torch.allclose(streamed.means()[label], mean, atol=1e-12)
    assert torch.allclose(streamed.moment.outer_sum, SecondMoment.of(h).outer_sum, rtol=1e-12)
    assert streamed.moment.count == len(labels)


def test_retained_moments_of_all_processes_where_one_lacks_a_class_or_everything():
    h, labels = retained()
    parts = [labels < 4, labels >= 4, labels < 0]
    whole = RetainMoments.of(h, labels)
    names = sorted(whole.sums)
    own = [RetainMoments.of(h[part], labels[part]) for part in parts]
    for reduced in in_processes(own, lambda moments, sum_over: moments.all_reduce(sum_over, names)):
        assert reduced.moment.count == len(labels)
        assert torch.allclose(reduced.moment.outer_sum, whole.moment.outer_sum, rtol=1e-12)
        for label, mean in whole.means().items():
            assert torch.allclose(reduced.means()[label], mean, atol=1e-12)


def test_retained_moments_refuse_what_is_not_finite_and_add_nothing():
    h, labels = retained()
    moments = RetainMoments.of(h, labels)
    bad = h.clone()
    bad[3, 1] = float("inf")
    with pytest.raises(ValueError, match="row 3"):
        moments.update(bad, labels)
    assert moments.moment.count == len(labels) == sum(moments.counts.values())


def test_retained_moments_take_bfloat16_and_stay_small():
    h, labels = retained()
    moments = RetainMoments.of(h.bfloat16(), labels)
    for _ in range(20):
        moments.update(h.bfloat16(), labels)
    assert all(total.dtype == torch.float64 for total in moments.sums.values())
    assert sum(total.numel() for total in moments.sums.values()) == 5 * 12
    assert torch.allclose(moments.means()[2], h.bfloat16()[labels == 2].double().mean(dim=0), atol=1e-12)


def test_features_whose_squares_add_up_beyond_float64_are_refused():
    large = torch.full((3, 2), 1e154, dtype=torch.float64)  # each square is finite, and so is the sum of a row
    large[:, 1] = 0
    with pytest.raises(ValueError, match="squares of the features"):
        SecondMoment(2).update(large)
