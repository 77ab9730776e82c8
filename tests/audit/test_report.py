"""The report: complete, in order, honest about references and convergence, and equal after JSON."""

from __future__ import annotations

import json
import re
import warnings

import numpy as np
import pytest
import torch
from rich.console import Console

from hf_kd.audit.audit_features import audit_features
from hf_kd.audit.report import RetentionReport
from hf_kd.audit.report_data import SCHEMA_VERSION
from hf_kd.audit.schema import SECTIONS, Score
from hf_kd.metrics.knowledge_retention import knowledge_retention
from tests.metrics.planted import planted

CLAIMS = re.compile(r"irreversib|certif|guarantee|better than retrain", re.I)
QUICK = {"attacks": ["linear", "few-shot-5-l2", "norm"], "draws": 3, "shots": [1, 5, 20]}


def erase_axis(features: torch.Tensor, axis: int = 0) -> torch.Tensor:
    out = features.clone()
    out[:, axis] = 0
    return out


def both(data, eraser=erase_axis):
    train, train_y, test, test_y = data
    return {"original": train, "erased": eraser(train)}, train_y, {"original": test, "erased": eraser(test)}, test_y


def audit(data, eraser=erase_axis, forget=0, **settings):
    train, train_y, test, test_y = both(data, eraser)
    head = torch.eye(train["original"].shape[1])[:, : int(train_y.max()) + 1]
    logits = {name: (train[name] @ head, test[name] @ head) for name in train}
    return audit_features(train, train_y, test, test_y, forget, **{"logits": logits, **QUICK, **settings})


@pytest.fixture(scope="module")
def report() -> RetentionReport:
    return audit(planted(n=300), class_names={0: "fox", 1: "gnu", 2: "hen"})


def printed(report: RetentionReport, width: int = 200) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report)
    return console.export_text()


def test_json_round_trip_gives_an_equal_report(report, tmp_path):
    assert RetentionReport.from_json(report.to_json()) == report
    report.to_json(tmp_path / "report.json")
    assert RetentionReport.from_json(tmp_path / "report.json") == report
    assert json.loads(report.to_json())["schema_version"] == SCHEMA_VERSION
    again = RetentionReport.from_json(report.to_json())
    assert again.to_markdown() == report.to_markdown()
    assert printed(again) == printed(report)


def test_what_is_no_report_or_a_later_one_is_refused(report):
    with pytest.raises(ValueError, match="no retention report"):
        RetentionReport.from_dict({"sections": []})
    with pytest.raises(ValueError, match="install a later one"):
        RetentionReport.from_dict({**report.to_dict(), "schema_version": SCHEMA_VERSION + 1})


def test_every_section_is_there_in_reading_order_and_every_score_has_its_meaning(report):
    keys = [section.key for section in report.sections]
    assert keys == [key for key in SECTIONS if key not in ("layers", "identities", "gap", "weights")]
    for score in report:
        assert score.direction
        assert score.protocol or score.name == "gradient_norm"
    with pytest.raises(KeyError, match="converged"):
        report.section("nothing")
    with pytest.raises(KeyError, match="D_ft"):
        report.score("converged", "nothing")
    with pytest.raises(ValueError, match="direction"):
        Score("x", 1.0, "sideways")
    with pytest.raises(ValueError, match="None where there is no number"):
        Score("x", float("nan"), "lower")


def test_converged_number_and_worst_case_come_first_in_text_and_markdown(report):
    titles = ("converged", "Strongest attack", "Label efficiency", "paper protocol")
    for text in (printed(report), report.to_markdown()):
        positions = [text.index(title) for title in titles]
        assert positions == sorted(positions)
        assert "fox" in text
        assert not CLAIMS.search(text)
    lines = printed(report).splitlines()
    assert "D_ft" in lines[3], "the first number of the screen"
    assert max(len(line.rstrip()) for line in printed(report, width=80).splitlines()) <= 80
    assert len(lines) <= 45


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
    untouched = audit(data, lambda x: x.clone())
    assert any("bit for bit" in note for note in untouched.section("converged").notes)
    train, train_y, test, test_y = both(data, lambda x: x)
    head = torch.eye(8)[:, :3]
    bias = torch.tensor([float("-inf"), 0.0, 0.0])
    silenced = head * torch.tensor([0.0, 1.0, 1.0])
    logits = {
        "original": (train["original"] @ head, test["original"] @ head),
        "erased": (train["erased"] @ silenced + bias, test["erased"] @ silenced + bias),
    }
    surgery = audit_features(train, train_y, test, test_y, 0, logits=logits, **QUICK)
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
    kept, removed = audit(data), audit(data, lambda x: torch.zeros_like(x).index_copy_(1, torch.arange(1, 8), x[:, 1:]))
    assert kept.score("converged", "D_ft").value > 80, "class 0 is still where the others are not"
    assert removed.score("converged", "D_ft").value == kept.score("converged", "D_ft").value
    rng = np.random.default_rng(0)
    noise = audit(data, lambda x: torch.from_numpy(rng.normal(size=x.shape)).float())
    assert noise.score("converged", "D_ft").value == pytest.approx(100 / 3, abs=15)
    assert abs(noise.score("attacks", "advantage", "linear").value) < 15


def test_without_a_reference_the_report_says_so_and_with_one_it_has_the_area(report):
    section = report.section("label_efficiency")
    assert any("no reference that never knew" in note for note in section.notes)
    assert not [score for score in section.scores if score.name == "area"]
    assert "No reference" in printed(report)

    train, _, test, _ = planted(n=300)
    unknown = (erase_axis(train), erase_axis(test))
    known = audit(planted(n=300), reference=unknown)
    assert known.reference == "retrained"
    area = known.score("label_efficiency", "area")
    assert area.value is None or area.value == pytest.approx(0, abs=0.05), "the reference is the erased model itself"
    assert known.score("converged", "D_ft").reference == known.score("converged", "D_ft").value
    assert "retrained" in printed(known)
    with pytest.raises(ValueError, match="one reference"):
        audit(planted(n=300), reference=unknown, unseen=(train, torch.zeros(300, dtype=torch.long)))


def test_unseen_classes_stand_in_the_place_of_the_forgotten_one():
    train, train_y, test, test_y = planted(n=300, classes=5)
    seen, seen_t = train_y < 3, torch.as_tensor(test_y) < 3
    data = (train[seen], train_y[seen], test[seen_t], torch.as_tensor(test_y)[seen_t])
    rng = np.random.default_rng(1)
    strangers = torch.from_numpy(rng.normal(size=(80, 8))).float()  # sit at the origin, on nobody's axis
    report = audit(data, unseen=(strangers, torch.arange(80) % 2 + 7))
    assert report.reference == "unseen"
    assert any("2 classes that were never trained on" in note for note in report.notes)
    assert any("only 30 labelled" in note for note in report.section("converged").notes), "60 are forgotten"
    assert report.score("converged", "D_ft").reference is None, "with other numbers of labels there is no comparing"
    assert report.score("converged", "normalised_retention").reference is None
    assert report.score("label_efficiency", "recall", "n = 5").reference is not None
    more = torch.from_numpy(rng.normal(size=(80, 8))).float()
    enough = audit(data, unseen=(more, torch.full((80,), 7)))
    assert enough.score("converged", "normalised_retention").reference == 0
    assert enough.score("converged", "D_ft").reference is not None
    assert RetentionReport.from_json(report.to_json()) == report
    with pytest.raises(ValueError, match="at least 8"):
        audit(data, unseen=(strangers[:6], torch.zeros(6, dtype=torch.long)))


def test_seeds_give_mean_and_sd_where_chance_plays_and_say_what_varies():
    report = audit(planted(n=200), seeds=3)
    assert any("A seed decides" in note for note in report.notes)
    assert report.score("converged", "D_ft").sd is None, "an optimum has no seed"
    assert report.score("paper", "D_rt").sd is not None
    assert report.score("attacks", "recall", "few-shot-5-l2").sd is not None
    runs = [audit(planted(n=200)).score("paper", "D_rt").value]
    assert (
        report.score("paper", "D_rt").value != pytest.approx(runs[0], abs=1e-9) or report.score("paper", "D_rt").sd == 0
    )
    assert "mean ± sd of 3 seeds" in printed(report)
    assert RetentionReport.from_json(report.to_json()) == report
    with pytest.raises(ValueError, match="at least one"):
        audit(planted(n=200), seeds=0)


def test_shared_vectors_are_counted_and_shown():
    def cover(features):
        return features.sign().clamp(min=0) * torch.tensor([1.0] * 2 + [0.0] * (features.shape[1] - 2))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = audit(planted(n=300), cover)
    assert report.score("inputs", "repeated_vectors", "D_ft").value >= 1
    assert report.score("inputs", "rows_sharing", "D_ft").value > 90
    assert report.score("inputs", "changed", "D_ft").value == 100
    assert report.score("inputs", "repeated_vectors", "D_ft").original == 0
    assert "repeated vectors, D_ft" in printed(report)


def test_embeddings_without_a_head_leave_out_what_needs_one():
    report = audit(planted(n=200), logits=None)
    for key in ("head", "recovery", "membership"):
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
        **QUICK,
    )
    score = report.score("converged", "D_ft")
    assert score.before_projection == pytest.approx(score.original), "an affine map hides nothing"
    assert "before projection" in report.to_markdown()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a["train"].pop("erased"), "it needs 'original' and 'erased'"),
        (lambda a: a.update(forget=7), "No training sample"),
        (lambda a: a.update(forget=[0, 1, 2]), "Every training sample"),
        (lambda a: a["train"]["erased"].fill_(float("nan")), "not finite"),
        (lambda a: a.update(attacks=["telepathy"]), "Unknown attacks"),
        (lambda a: a.update(logits={"erased": (torch.zeros(3, 3), torch.zeros(300, 3))}), "3 rows"),
        (lambda a: a.update(unseen=(torch.zeros(20, 2), torch.zeros(20, dtype=torch.long))), "2 columns"),
    ],
)
def test_refusals(change, message):
    train, train_y, test, test_y = both(planted(n=300))
    arguments = {"train": train, "test": test, "forget": 0}
    change(arguments)
    settings = QUICK | {k: v for k, v in arguments.items() if k not in ("train", "test", "forget")}
    with pytest.raises(ValueError, match=message):
        audit_features(arguments["train"], train_y, arguments["test"], test_y, arguments["forget"], **settings)


def test_overlapping_splits_are_warned_about_with_the_count():
    train, train_y, test, test_y = planted(n=300)
    test = torch.cat([test[:-6], train[:6]])
    test_y = torch.cat([torch.as_tensor(test_y)[:-6], train_y[:6]])
    with pytest.warns(UserWarning, match="^6 of 300"):
        report = audit((train, train_y, test, test_y))
    assert any("overlap" in note for note in report.notes)
