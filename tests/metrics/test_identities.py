"""Verification and retrieval: perfect on separable people, chance on noise and on collapsed ones."""

from __future__ import annotations

import pytest
import torch

from hf_kd.metrics.identities import open_set_identification, retrieval, verification

PEOPLE, IMAGES, DIM = 20, 10, 64


def faces(spread: float = 0.05, seed: int = 0, people: int = PEOPLE) -> tuple[torch.Tensor, torch.Tensor]:
    """People at random places, their images around them: `spread` 0.05 is a good embedding, large ones are noise."""
    centres = torch.randn(people, DIM, generator=torch.Generator().manual_seed(100))
    identities = torch.arange(people).repeat_interleave(IMAGES)
    noise = torch.randn(len(identities), DIM, generator=torch.Generator().manual_seed(seed))
    return centres[identities] + spread * noise, identities


def forget(embeddings: torch.Tensor, identities: torch.Tensor, erased: list[int], seed: int = 1) -> torch.Tensor:
    """What a perfect eraser would do: images of erased people carry nothing about them."""
    noise = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(torch.isin(identities, torch.tensor(erased))[:, None], noise, embeddings)


def test_verification_is_perfect_on_separable_people_and_chance_on_erased_ones():
    embeddings, identities = faces()
    intact = verification(embeddings, identities, [3, 4])
    for point in intact.points:
        assert point.erased == point.retained == 100
        assert point.erased_as_deployed == 100
    assert intact.genuine_erased == 2 * 45
    assert intact.impostor_erased == 100 + 20 * 180
    assert intact.genuine_retained == 18 * 45
    assert intact.impostor_retained == 100 * 18 * 17 // 2
    assert not intact.sampled
    gone = verification(forget(embeddings, identities, [3, 4]), identities, [3, 4]).points[0]
    assert gone.erased < 6  # chance is 1
    assert gone.retained == 100


def test_one_vector_for_one_person_is_recognised_and_one_for_everybody_is_not():
    embeddings, identities = faces()
    one = torch.where((identities == 3)[:, None], torch.ones(DIM), embeddings)
    assert verification(one, identities, [3]).points[0].erased == 100
    everybody = torch.ones(len(identities), DIM)
    for far in (0.3, 1e-3):
        point = verification(everybody, identities, [3], far=[far]).points[0]
        rates = (point.erased, point.retained, point.erased_as_deployed, point.far_as_deployed)
        assert rates == pytest.approx((100 * far,) * 4)
    nothing = verification(torch.zeros(len(identities), DIM), identities, [3]).points[0]
    assert nothing.erased == pytest.approx(1)


def test_verification_ignores_length_and_is_deterministic():
    embeddings, identities = faces(spread=1.5)
    scaled = embeddings * torch.linspace(0.1, 10, len(embeddings))[:, None]
    assert verification(embeddings, identities, [1]) == verification(scaled, identities, [1])
    assert verification(embeddings.numpy(), identities.numpy(), [1]) == verification(embeddings, identities, [1])


def test_of_many_images_some_are_drawn_and_it_is_said():
    """Whole identities, so that genuine pairs remain; at most half the images erased; close to what all pairs give."""
    embeddings, identities = faces(spread=1.5, people=60)
    erased = list(range(30))
    every = verification(embeddings, identities, erased, far=[0.1])
    assert (every.images, every.sampled) == (600, False)
    some = verification(embeddings, identities, erased, far=[0.1], max_images=300, seed=1)
    assert (some.images, some.sampled) == (300, True)
    assert some.genuine_erased == some.genuine_retained == 15 * 45
    assert some.impostor_retained == 100 * 15 * 14 // 2
    assert some.points[0].erased == pytest.approx(every.points[0].erased, abs=8)
    assert some.points[0].retained == pytest.approx(every.points[0].retained, abs=8)
    assert some == verification(embeddings, identities, erased, far=[0.1], max_images=300, seed=1)
    assert some != verification(embeddings, identities, erased, far=[0.1], max_images=300, seed=2)
    few = verification(embeddings, identities, [0], far=[0.1], max_images=300)
    assert few.genuine_erased == 45  # every image of the one erased identity
    alone = verification(embeddings, identities, erased, far=[0.1], max_images=30)
    assert alone.images == 30


def test_a_true_accept_rate_is_the_share_above_the_threshold_of_its_impostors():
    embeddings, identities = faces(spread=1.5)
    unit = torch.nn.functional.normalize(embeddings.double(), dim=1)
    cosines = unit @ unit.T
    same, own = identities[:, None] == identities, identities == 3
    pairs = torch.ones_like(same).triu(1) & (own[:, None] | own)
    impostors = cosines[pairs & ~same].sort(descending=True).values
    for far in (0.1, 0.01):
        accepted = (cosines[pairs & same] > impostors[int(far * len(impostors))]).double().mean()
        assert verification(embeddings, identities, [3], far=[far]).points[0].erased == pytest.approx(100 * accepted)


def test_closed_set_retrieval_is_perfect_on_separable_people_and_chance_on_erased_ones():
    gallery, gallery_ids = faces()
    queries, query_ids = faces(seed=2)
    intact = retrieval(queries, query_ids, gallery, gallery_ids, [3])
    assert (intact.rank1_erased, intact.map_erased, intact.rank1_retained, intact.map_retained) == (100,) * 4
    assert intact.chance_erased == pytest.approx(100 / PEOPLE)
    erased = list(range(10))
    gone = retrieval(forget(queries, query_ids, erased), query_ids, gallery, gallery_ids, erased)
    assert gone.rank1_erased < 12
    assert gone.map_erased < 12
    assert gone.rank1_retained == 100


def test_average_precision_is_its_definition():
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, 0.4], [1.0, 0.6]])
    result = retrieval(torch.tensor([[1.0, 0.0]]), [7], gallery, [7, 1, 7, 1], [7])
    assert result.rank1_erased == 100
    assert result.map_erased == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert result.rank1_retained is None


def test_ties_are_broken_at_random_and_averaged():
    gallery_ids = torch.arange(PEOPLE).repeat_interleave(IMAGES)  # in order: a stable sort would favour person 0
    collapsed = torch.ones(len(gallery_ids), DIM)
    result = retrieval(collapsed, gallery_ids, collapsed, gallery_ids, [0], tie_draws=200)
    assert result.rank1_erased == pytest.approx(100 / PEOPLE, abs=3)
    assert result.rank1_retained == pytest.approx(100 / PEOPLE, abs=3)
    assert result == retrieval(collapsed, gallery_ids, collapsed, gallery_ids, [0], tie_draws=200)


def test_open_set_finds_separable_people_at_the_stated_rate():
    gallery, gallery_ids = faces()
    enrolled = gallery_ids < 12
    queries, query_ids = faces(seed=2)
    arguments = (gallery[enrolled], gallery_ids[enrolled], [3, 4])
    for point in open_set_identification(queries, query_ids, *arguments):
        assert point.erased == point.retained == 100
    for point in open_set_identification(forget(queries, query_ids, [3, 4]), query_ids, *arguments):
        assert point.erased < 10
        assert point.retained == 100
    noisy = faces(spread=3.0, seed=2)[0]
    few, many = (open_set_identification(noisy, query_ids, *arguments, fpir=[rate])[0] for rate in (0.01, 0.5))
    assert few.threshold > many.threshold
    assert few.retained <= many.retained


def test_open_set_of_collapsed_queries_is_chance():
    ids = torch.arange(PEOPLE).repeat_interleave(IMAGES)
    collapsed = torch.ones(len(ids), DIM)
    enrolled = ids < 10
    point = open_set_identification(collapsed, ids, collapsed[enrolled], ids[enrolled], [3], fpir=[0.1])[0]
    # a tenth above the threshold, and a tenth of these right
    assert (point.erased, point.retained) == pytest.approx((1, 1))


def test_centring_finds_an_identity_that_a_projection_hid_at_the_origin():
    """What ESC at k = 1 does to embeddings with a common mean: raw cosines of the erased person become noise."""
    common = 2 * torch.ones(DIM)
    gallery, ids = faces(spread=0.3)
    queries = faces(spread=0.3, seed=2)[0]
    direction = torch.nn.functional.normalize((gallery + common)[ids == 3].mean(0), dim=0)

    def esc(embeddings):
        embeddings = embeddings + common
        return embeddings - (embeddings @ direction)[:, None] * direction

    enrolled = ids < 12
    arguments = (esc(queries), ids, esc(gallery)[enrolled], ids[enrolled], [3])
    raw, centred = (open_set_identification(*arguments, similarity=s, fpir=[0.1])[0] for s in ("cosine", "centred"))
    assert raw.erased < 20
    assert centred.erased > 95
    assert (raw.similarity, centred.similarity) == ("cosine", "centred")
    raw, centred = (verification(esc(queries), ids, [3], similarity=s).points[0] for s in ("cosine", "centred"))
    assert raw.erased < 20
    assert centred.erased > 80
    known = (esc(queries), ids, esc(gallery), ids, [3])
    assert retrieval(*known, similarity="centred").map_erased > 95 > retrieval(*known).map_erased
    for name, message in (("euclidean", "'cosine' or 'centred'"), ("centred", "Every identity is erased")):
        with pytest.raises(ValueError, match=message):
            verification(queries, ids, range(PEOPLE), similarity=name)


def test_refusals_say_what_is_missing():
    embeddings, identities = faces(people=4)
    with pytest.raises(ValueError, match=r"erased identities \(99\)"):
        verification(embeddings, identities, [99])
    with pytest.raises(ValueError, match="0 genuine"):
        verification(embeddings[9:], identities[9:], [0])
    with pytest.raises(ValueError, match="far=1"):
        verification(embeddings, identities, [0], far=[1])
    with pytest.raises(ValueError, match="open_set_identification"):
        retrieval(embeddings, identities, embeddings[:10], identities[:10], [0])
    with pytest.raises(ValueError, match="needs others"):
        open_set_identification(embeddings, identities, embeddings, identities, [0])
    with pytest.raises(ValueError, match="enrol"):
        open_set_identification(embeddings, identities, embeddings[10:], identities[10:], [0])
    with pytest.raises(ValueError, match="not finite"):
        verification(embeddings * torch.nan, identities, [0])
    with pytest.raises(ValueError, match="same model"):
        retrieval(embeddings, identities, embeddings[:, :3], identities, [0])
