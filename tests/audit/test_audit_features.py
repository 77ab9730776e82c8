"""The audit of features: complete, honest about references and convergence, and refusing what it cannot measure."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from hf_kd.audit import AuditOptions, RetentionReport, Retrained, Unseen, audit_features
from hf_kd.metrics.knowledge_retention import knowledge_retention
from tests.audit.test_render import printed
from tests.helpers.audited import LEAST, QUICK, audited, both, erase_axis
from tests.metrics.planted import planted


@pytest.fixture(scope="module")
def report() -> RetentionReport:
    return audited(class_names={0: "fox", 1: "gnu", 2: "hen"})


def test_the_headline_is_knowledge_retention_and_the_worst_case_the_strongest_attack(report):
    train, train_y, test, test_y = both(planted(n=300))
    for version, attribute in (("erased", "value"), ("original", "original")):
        scores = knowledge_retention(train[version], train_y, test[version], test_y, 0).scores
        for name in ("D_f", "D_r", "D_ft", "D_rt", "HM", "HM_t"):
            assert getattr(report.score("converged", name), attribute) == getattr(scores, name)
    advantages = {s.group: s.value for s in report.section("attacks").scores if s.name == "advantage"}
    assert report.worst_case.group == max(advantages, key=advantages.get)
    assert set(advantages) == {"linear", "few-shot-5-l2", "norm"}
    assert report.section("converged").settings["erased"]["converged"]
    gradient = report.score("converged", "gradient_norm")
    assert gradient.value <= report.section("converged").settings["erased"]["tolerance"]


def test_controls_an_untouched_model_and_head_surgery_have_the_originals_retention():
    data = planted(n=300)
    untouched = audited(data, lambda x: x.clone())
    assert any("bit for bit" in note for note in untouched.section("converged").notes)
    train, train_y, test, test_y = both(data, lambda x: x)
    head = torch.eye(8)[:, :3]
    bias = torch.tensor([float("-inf"), 0.0, 0.0])
    silenced = head * torch.tensor([0.0, 1.0, 1.0])
    logits = {
        "original": (train["original"] @ head, test["original"] @ head),
        "erased": (train["erased"] @ silenced + bias, test["erased"] @ silenced + bias),
    }
    surgery = audit_features(train, train_y, test, test_y, 0, logits=logits, options=AuditOptions(**QUICK))
    assert surgery.score("head", "D_ft").value == 0
    assert surgery.score("head", "D_ft").original > 90
    assert surgery.score("head", "HM_t").value > 90, "a head score alone would call this forgetting"
    for report in (untouched, surgery):
        for key in ("converged", "paper", "label_efficiency", "attacks"):
            for score in report.section(key).scores:
                assert score.value == score.original, score
        assert report.score("converged", "normalised_retention").value == 1


def test_positive_and_negative_control_planted_knowledge_is_seen_and_its_removal_too():
    data = planted(n=300, strength=5.0)
    kept = audited(data)
    removed = audited(data, lambda x: torch.zeros_like(x).index_copy_(1, torch.arange(1, 8), x[:, 1:]))
    assert kept.score("converged", "D_ft").value > 80, "class 0 is still where the rest are not"
    assert removed.score("converged", "D_ft").value == kept.score("converged", "D_ft").value
    rng = np.random.default_rng(0)
    noise = audited(data, lambda x: torch.from_numpy(rng.normal(size=x.shape)).float())
    assert noise.score("converged", "D_ft").value == pytest.approx(100 / 3, abs=15)
    assert abs(noise.score("attacks", "advantage", "linear").value) < 15


def test_without_a_reference_the_report_says_so_and_with_one_it_has_the_area(report):
    section = report.section("label_efficiency")
    assert any("no reference without this knowledge" in note for note in section.notes)
    assert not [score for score in section.scores if score.name == "area"]
    assert "No reference" in printed(report)

    train, _, test, _ = planted(n=300)
    unknown = Retrained(erase_axis(train), erase_axis(test))
    known = audited(planted(n=300), reference=unknown)
    assert known.reference == "retrained"
    area = known.score("label_efficiency", "area")
    assert area.value == pytest.approx(0, abs=0.05), "the reference is the erased model itself"
    assert known.score("converged", "D_ft").reference == known.score("converged", "D_ft").value
    assert "retrained" in printed(known)


def test_unseen_classes_stand_in_the_place_of_the_forgotten_one():
    train, train_y, test, test_y = planted(n=300, classes=5)
    seen, seen_t = train_y < 3, torch.as_tensor(test_y) < 3
    data = (train[seen], train_y[seen], test[seen_t], torch.as_tensor(test_y)[seen_t])
    rng = np.random.default_rng(1)
    unseen = torch.from_numpy(rng.normal(size=(80, 8))).float()  # sit at the origin, on nobody's axis
    report = audited(data, reference=Unseen(unseen, torch.arange(80) % 2 + 7))
    assert report.reference == "unseen"
    assert any("2 classes that were never trained on" in note for note in report.notes)
    assert any("only 30 labelled" in note for note in report.section("converged").notes), "60 are forgotten"
    assert report.score("converged", "D_ft").reference is None, "with other numbers of labels there is no comparing"
    assert report.score("converged", "normalised_retention").reference is None
    assert report.score("label_efficiency", "recall", "n = 5").reference is not None
    more = torch.from_numpy(rng.normal(size=(80, 8))).float()
    enough = audited(data, reference=Unseen(more, torch.full((80,), 7)))
    assert enough.score("converged", "normalised_retention").reference == 0
    assert enough.score("converged", "D_ft").reference is not None
    assert RetentionReport.from_json(report.to_json()) == report
    with pytest.raises(ValueError, match="at least 8"):
        audited(data, reference=Unseen(unseen[:6], torch.zeros(6, dtype=torch.long)))


def test_seeds_give_mean_and_sd_where_chance_plays_and_say_what_varies():
    report = audited(planted(n=200), seeds=3)
    assert any("A seed decides" in note for note in report.notes)
    assert report.score("converged", "D_ft").sd is None, "an optimum has no seed"
    assert report.score("paper", "D_rt").sd is not None
    assert report.score("attacks", "recall", "few-shot-5-l2").sd is not None
    runs = [audited(planted(n=200)).score("paper", "D_rt").value]
    assert (
        report.score("paper", "D_rt").value != pytest.approx(runs[0], abs=1e-9) or report.score("paper", "D_rt").sd == 0
    )
    assert "mean ± sd of 3 seeds" in printed(report)
    assert RetentionReport.from_json(report.to_json()) == report


def test_shared_vectors_are_counted_and_shown():
    def cover(features):
        return features.sign().clamp(min=0) * torch.tensor([1.0] * 2 + [0.0] * (features.shape[1] - 2))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = audited(planted(n=300), cover)
    assert report.score("inputs", "repeated_vectors", "D_ft").value >= 1
    assert report.score("inputs", "rows_sharing", "D_ft").value > 90
    assert report.score("inputs", "changed", "D_ft").value == 100
    assert report.score("inputs", "repeated_vectors", "D_ft").original == 0
    assert "repeated vectors, D_ft" in printed(report)


def test_embeddings_without_a_head_leave_out_what_needs_one():
    report = audited(planted(n=200), logits=None)
    for key in ("head", "recovery_ratio", "membership"):
        assert not report.section(key).scores
        assert "Not measured" in report.section(key).notes[0]
    printed(report)
    report.to_markdown()


def test_before_projection_is_measured_where_it_differs():
    train, train_y, test, test_y = both(planted(n=200))
    moved = {"train": train["original"] * 0.5 + 1, "test": test["original"] * 0.5 + 1}
    report = audit_features(
        train | {"before_projection": moved["train"]},
        train_y,
        test | {"before_projection": moved["test"]},
        test_y,
        0,
        options=AuditOptions(**QUICK),
    )
    score = report.score("converged", "D_ft")
    assert score.before_projection == pytest.approx(score.original), "an affine map hides nothing"
    assert "before the eraser" in report.to_markdown()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["train"].pop("erased"), "it needs 'erased'"),
        (lambda a: a.update(forget=7), "No training sample"),
        (lambda a: a.update(forget=[0, 1, 2]), "Every training sample"),
        (lambda a: a["train"]["erased"].fill_(float("nan")), "not finite"),
        (lambda a: a.update(logits={"erased": (torch.zeros(3, 3), torch.zeros(300, 3))}), "3 rows"),
        (lambda a: a.update(reference=Unseen(torch.zeros(20, 2), torch.zeros(20, dtype=torch.long))), "2 columns"),
    ],
)
def test_refusals(change, message):
    train, train_y, test, test_y = both(planted(n=300))
    arguments = {"train": train, "test": test, "forget": 0}
    change(arguments)
    settings = {k: v for k, v in arguments.items() if k not in ("train", "test", "forget")}
    with pytest.raises(ValueError, match=message):
        audit_features(
            arguments["train"],
            train_y,
            arguments["test"],
            test_y,
            arguments["forget"],
            options=AuditOptions(**QUICK),
            **settings,
        )


def test_overlapping_splits_are_warned_about_with_the_count():
    train, train_y, test, test_y = planted(n=300)
    test = torch.cat([test[:-6], train[:6]])
    test_y = torch.cat([torch.as_tensor(test_y)[:-6], train_y[:6]])
    with pytest.warns(UserWarning, match="^6 of 300"):
        report = audited((train, train_y, test, test_y))
    assert any("overlap" in note for note in report.notes)


@pytest.mark.parametrize("absent", [1, 7])  # between the labels and behind them
def test_a_forgotten_class_without_a_sample_is_said_and_the_others_are_measured_as_alone(absent):
    train, labels, test, test_labels = planted(n=300)
    labels, test_labels = 2 * labels, 2 * torch.as_tensor(test_labels)
    matrices = {"original": train, "erased": train.flip(1)}, {"original": test, "erased": test.flip(1)}
    with pytest.warns(UserWarning, match=rf"training sample: 1 of 2.*They are \[{absent}\]"):
        report = audit_features(
            matrices[0], labels, matrices[1], test_labels, [4, absent], options=AuditOptions(**LEAST)
        )
    alone = audit_features(matrices[0], labels, matrices[1], test_labels, 4, options=AuditOptions(**LEAST))
    assert report.forget_labels == (4,)
    assert report.sections == alone.sections
    assert any("without a training sample: 1 of 2" in note for note in report.notes)
    kept = test_labels != 4
    with pytest.warns(UserWarning, match=r"test sample: 1 of 2.*They are \[4\]"):
        audit_features(train, labels, test[kept], test_labels[kept], [2, 4], options=AuditOptions(**LEAST))


def test_one_matrix_is_audited_with_nothing_beside_it_and_says_so():
    train, labels, test, test_labels = planted(n=300)
    report = audit_features(train, labels, test, test_labels, [2], options=AuditOptions(**LEAST))
    both_given = audited(eraser=torch.clone, forget=[2], logits=None, **LEAST)
    assert report.score("converged", "D_ft").value == both_given.score("converged", "D_ft").value
    assert not [score for score in report if score.original is not None]
    assert "No original was given" in report.notes[0]
    assert "| original" not in report.to_markdown()
    dicts = audit_features({"erased": train}, labels, {"erased": test}, test_labels, [2], options=AuditOptions(**LEAST))
    assert list(dicts) == list(report)
    assert not any("nothing was erased" in note for note in report.section("converged").notes)
    with pytest.raises(ValueError, match="train is one matrix and test a dict of versions"):
        audit_features(train, labels, {"original": test, "erased": test}, test_labels, [2])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"texts": ["cat"]}, r"texts is said as options=AuditOptions\(texts=...\)"),
        ({"attacks": "full"}, r"attacks is said as options=AuditOptions\(attacks=...\)"),
        ({"unseen": 1}, r"unseen is said as reference=Unseen\("),
        ({"reference_model": 1}, r"reference_model is said as reference=Retrained\("),
        ({"more": []}, r"more is said as extras=AuditExtras\(extra_sections"),
        ({"colour": 1}, "no argument colour: it takes reference, options"),
        ({"reference": (1, 2)}, r"reference is a tuple.*Retrained"),
        ({"options": "full"}, "options is 'full'.*any of attacks, seeds"),
    ],
)
def test_what_is_no_argument_says_where_it_belongs(given, message):
    with pytest.raises(TypeError, match=message):
        audit_features(*planted(n=30), 0, **given)


def test_a_reference_without_its_matrices_is_refused_before_anything_is_measured():
    with pytest.raises(ValueError, match="Retrained.*test is missing"):
        audited(reference=Retrained("a model"))
    with pytest.raises(ValueError, match="Unseen.*labels is missing"):
        audited(reference=Unseen(torch.zeros(20, 8)))
    with pytest.raises(ValueError, match="needs a model"):
        audited(layer_profile=True)


def test_of_very_many_classes_some_are_drawn_and_the_report_says_so():
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(60).repeat_interleave(4)
    features = torch.randn(60, 8, generator=rng)[labels] + 0.3 * torch.randn(240, 8, generator=rng)
    train, test = slice(0, None, 2), slice(1, None, 2)
    given = (features[train], labels[train], features[test], labels[test], [7])
    options = {"attacks": ["linear", "norm"], "draws": 1, "shots": [1, 2]}
    report = audit_features(*given, options=AuditOptions(**options, max_classes=20))
    assert report.sampled["retained classes"] == {"drawn": 20, "of": 59, "seed": 0}
    assert any("retained classes 20 of 59" in note for note in report.notes)
    assert report.samples["D_r"] == 118, "what there is, not what was drawn"
    assert RetentionReport.from_dict(report.to_dict()).sampled == report.sampled
    whole = audit_features(*given, options=AuditOptions(**options))
    assert not whole.sampled
    assert not any("sample" in note for note in whole.notes)
