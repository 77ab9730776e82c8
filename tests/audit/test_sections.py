"""Sections that are there only when asked for: what each says where the truth is known."""

from __future__ import annotations

import pytest
import torch

from hf_kd.audit.audit_features import audit_features
from hf_kd.audit.report import RetentionReport
from hf_kd.audit.sections.weights import weights
from hf_kd.metrics.weights import weight_distance
from tests.metrics.planted import planted

QUICK = {"attacks": ["linear"], "draws": 1, "shots": [1, 5]}


def scored(forget=0, hide=True, **settings) -> RetentionReport:
    """Planted classes; the erased version loses the axis that carries the forgotten one, the head reads the axes."""
    train, train_y, test, test_y = planted(n=300)
    versions = []
    for x in (train, test):
        erased = x.clone()
        if hide:
            erased[:, forget] = 0
        versions.append({"original": x, "erased": erased})
    head = torch.eye(train.shape[1])[:, : int(train_y.max()) + 1]
    logits = {name: tuple(version[name] @ head for version in versions) for name in ("original", "erased")}
    settings["logits"] = logits | settings.pop("logits", {})
    return audit_features(versions[0], train_y, versions[1], test_y, forget, **QUICK | settings)


def of(report, section, name, group=None):
    return report.score(section, name, group)


def test_answers_agree_with_themselves_and_not_with_what_was_erased():
    report = scored(hide=False)
    for part in ("D_ft", "D_rt"):
        group = f"{part}, from the original"
        assert of(report, "agreement", "js", group).value == pytest.approx(0, abs=1e-9)
        assert of(report, "agreement", "same_answer", group).value == 100
    report = scored()
    forgot, kept = (of(report, "agreement", "js", f"{part}, from the original").value for part in ("D_ft", "D_rt"))
    assert forgot > 5 * kept
    assert 0 <= kept <= forgot <= 1


def test_the_gap_to_itself_is_nothing_and_there_is_none_without_a_reference():
    assert "gap" not in [section.key for section in scored().sections]
    plain = scored()
    train, train_y, test, _ = planted(n=300)
    head = torch.eye(train.shape[1])[:, : int(train_y.max()) + 1]
    report = scored(reference=(train, test), logits={"reference": (train @ head, test @ head)})
    gap = of(report, "gap", "average_gap")
    assert gap.original == 0
    assert gap.reference == 0
    assert gap.value > 20
    table = [
        abs(of(report, "gap", n).value - of(report, "gap", n).reference) for n in ("D_f", "D_r", "D_t", "member_rate")
    ]
    assert gap.value == pytest.approx(sum(table) / 4)
    assert plain.score("head", "D_f").value == of(report, "gap", "D_f").value


def test_zrf_is_one_for_answers_that_are_those_of_the_random_model():
    _, train_y, _, _ = planted(n=300)
    rows = int((train_y == 0).sum())
    flat = torch.zeros(rows, int(train_y.max()) + 1)
    report = scored(random_logits=flat)
    zrf = of(report, "agreement", "zrf")
    assert zrf.original < zrf.value <= 1, "erasing the axis makes the answers flatter"
    assert "zrf" not in {score.name for score in scored().section("agreement").scores}


def test_membership_by_share_and_by_references():
    rng = torch.Generator().manual_seed(0)
    train, train_y, test, _ = planted(n=300)
    head = torch.eye(train.shape[1])[:, : int(train_y.max()) + 1]
    memorised = train @ head
    memorised[torch.arange(len(train)), train_y] += 6  # the audited model is sure of what it was trained on
    blind = [
        (0.1 * torch.randn(memorised.shape, generator=rng), 0.1 * torch.randn(len(test), head.shape[1], generator=rng))
    ]
    report = scored(
        logits={"original": (memorised, torch.zeros(len(test), head.shape[1]))}, membership_references=blind * 3
    )
    rmia = of(report, "membership", "auc_two_sided", "RMIA")
    assert rmia.original > 90
    share = of(report, "membership", "member_rate", "confidence, SVC")
    assert share.original > share.chance + 30
    assert share.settings["efficacy"] == pytest.approx(100 - share.value)
    with pytest.raises(ValueError, match="a row for each sample"):
        scored(membership_references=[(memorised[1:], test @ head)])


def test_identities_are_found_until_they_share_a_place_with_everybody():
    report = scored(identities=True, hide=False)
    for similarity in ("cosine", "centred"):
        assert of(report, "identities", "rank1", f"closed set, {similarity}").value > 90
        tar = of(report, "identities", "tar", f"verification, FAR 0.01, {similarity}")
        assert tar.value > 3 * tar.chance
        assert tar.value == tar.original
    erased = scored(identities=True)
    rank = of(erased, "identities", "rank1", "closed set, cosine")
    assert rank.value < rank.original - 20
    assert of(erased, "identities", "rank1_retained", "closed set, cosine").value > 90
    assert "identities" not in [section.key for section in scored().sections]


def test_identities_are_sampled_and_say_so(monkeypatch):
    from hf_kd.audit.sections import identities as identity_scores

    monkeypatch.setattr(identity_scores, "MOST_QUERIES", 40)
    monkeypatch.setattr(identity_scores, "MOST_ENROLLED", 30)
    report = scored(identities=True, hide=False)
    score = of(report, "identities", "rank1", "closed set, cosine")
    assert score.settings["queries"] == 40
    assert score.settings["enrolled"] == 30
    assert score.value > 90


def test_weights_section_names_what_moved():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))
    before = {name.replace("1.", "classifier."): value.clone() for name, value in model.state_dict().items()}
    same = weights(weight_distance(before, before))
    assert any("No weight differs" in note for note in same.notes)
    after = {name: value.clone() for name, value in before.items()}
    after["classifier.weight"] += 1
    section = weights(weight_distance(before, after))
    rows = {score.group: score.value for score in section.scores if score.name == "mean_abs"}
    assert rows["other"] == 0
    assert rows["classifier.weight"] == pytest.approx(1)
    assert "0.weight" not in rows
    report = scored(more=[section])
    assert "Weights moved" in report.to_markdown()
    assert RetentionReport.from_json(report.to_json()) == report


def test_each_class_behind_its_own_eraser():
    def mean_direction(features):
        u = torch.nn.functional.normalize(features.mean(0), dim=0)
        return lambda x: x - (x @ u)[:, None] * u

    plots = scored(fit_class=mean_direction).plots["cosines"]
    own = torch.tensor(plots["norms_after_each"])
    assert (own < 0.5 * torch.tensor(plots["norms_before"])).all(), "every class loses its own mean"
    one = torch.tensor(plots["norms_after"])
    assert (one[1:] > 0.9 * torch.tensor(plots["norms_before"])[1:]).all(), "one request erases one class"
    assert "after_each" not in scored(fit_class=lambda features: None).plots["cosines"]
