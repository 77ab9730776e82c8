"""The verdict: each wording is held to its numbers, and a difference inside the interval is never called one."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from hf_kd.audit import RetentionReport, Score, Section
from hf_kd.audit.shares import Share
from hf_kd.audit.verdict import measured_verdict, verdict
from tests.helpers.audited import audited, erase_axis
from tests.metrics.planted import planted

N, REST = 25, 475


def paired(name: str, before: int, now: int, samples: int, kept: int | None = None, **about) -> Score:
    """A score of so many images right before and now, of which `kept` are the same ones: as many as can be."""
    kept = min(before, now) if kept is None else kept
    settings = {"samples": samples, "lost": before - kept, "gained": now - kept, **about.pop("settings", {})}
    return Score(name, 100 * now / samples, "lower", original=100 * before / samples, settings=settings, **about)


def made(head=(19, 0), attack=(23, 23), rest=(176, 171), alarms=(1.0, 1.0), compared="different", **fields):
    """A report with these numbers before and now, of 25 forgotten and 475 other test images."""
    recall = paired("recall", *attack, N, group="linear", reference=fields.pop("value", None))
    false = Score("false_alarms", alarms[1], "none", "linear", original=alarms[0])
    gain = Score("advantage", recall.value - alarms[1], "lower", "linear", original=recall.original - alarms[0])
    sections = [
        Section("worst_case", "", (recall, false, gain), settings={"compared": compared}),
        Section("converged", "", (Score("D_ft", 50.0, "lower", chance=2.0),)),
    ]
    if head is not None:
        classes = [
            paired("accuracy", *own, 25, settings={"label": label}) for label, own in fields.pop("classes", {}).items()
        ]
        sections.append(Section("head", "", (paired("D_ft", *head, N), paired("D_rt", *rest, REST), *classes)))
    about = {"forget_labels": (1,), "class_names": {1: "goldfish, Carassius auratus"}, "reference": "none"} | fields
    return RetentionReport(
        samples={"D_f": 100, "D_r": 1000, "D_ft": N, "D_rt": REST},
        dimension=8,
        seeds=1,
        sections=tuple(sections),
        **about,
    )


@pytest.mark.parametrize(
    ("right", "reference", "told"),
    [(25, "retrained", True), (0, "retrained", False), (1, "retrained", False), (25, "unseen", False)],
)
def test_a_reference_that_answers_the_class_is_said_to_have_seen_it(right, reference, told):
    about = {"label": 1, "samples": N, "forgotten": True}
    score = Score("accuracy", 0.0, "lower", "class 1", reference=100 * right / N, settings=about)
    another = replace(score, group="class 0", reference=80 * right / N, settings={**about, "label": 0})
    report = made(reference=reference)
    sections = [replace(s, scores=(*s.scores, another, score)) if s.key == "head" else s for s in report.sections]
    warnings = verdict(replace(report, sections=tuple(sections))).warnings
    assert [warning.startswith("The reference answers 100 % of goldfish rightly") for warning in warnings] == [
        True
    ] * told


def test_the_example_of_the_documentation():
    assert made(rest=(176, 171)).verdict == (
        "goldfish: the head answers 0 of 25 (before 19). An attacker with labels still reads 23 of 25 from the features, as "
        "many as before. The other classes: 36 % right, before 37 % (within what 475 images can tell, -2 to 0 points)."
    )
    assert made(rest=(176, 166)).verdict.endswith("The other classes: 35 % right, before 37 %."), (
        "10 of 10 changed sides"
    )


@pytest.mark.parametrize("lost", range(N + 1))
def test_no_drop_is_claimed_inside_the_interval_and_every_one_outside(lost):
    """5 of 5 images changed sides by a fair coin with p = 0.06, 6 of 6 with p = 0.03."""
    judged = verdict(made(attack=(N, N - lost)))
    assert judged.change == ("same" if lost == 0 else "within" if lost < 6 else "lower")
    assert ("as many as before" in judged.sentences[1]) == (lost == 0)
    assert ("within what 25 images can tell" in judged.sentences[1]) == (0 < lost < 6)
    assert f"{N - lost} of {N}" in judged.sentences[1]


@pytest.mark.parametrize("kept", [10, 12, 15])
def test_the_same_numbers_say_less_where_more_images_changed_sides(kept):
    """15 of 25 after 21: a drop where all 15 were read before too; none where it is mostly other images."""
    share = Share(60.0, 84.0, N, lost=21 - kept, gained=15 - kept)
    assert share.change == ("lower" if kept == 15 else "within")
    assert Share(60.0, 84.0, N).change == "within", "without pairs, of two Wilson intervals"


def test_more_images_turn_the_same_shares_into_a_difference():
    changes = [Share(80.0, 84.0, n, lost=0.05 * n, gained=0.01 * n).change for n in (25, 100, 400, 1600)]
    assert changes == sorted(changes, reverse=True), "within, then lower, and never back"
    assert changes[0] == "within"
    assert changes[-1] == "lower"


def test_what_is_recognised_more_often_is_said_in_capitals():
    judged = verdict(made(head=(10, 20), attack=(10, 20)))
    assert "the head answers 20 of 25, MORE than before (10)." in judged.sentences[0]
    assert "reads 20 of 25 from the features, MORE than before (10)" in judged.sentences[1]
    assert "still" not in judged.sentences[1]
    assert judged.change == "higher"


def test_a_head_that_knew_nothing_is_no_success():
    assert "0 of 25, as many as before; it knew nothing to begin with." in made(head=(0, 0)).verdict
    assert "; it knew nothing to begin with" in made(head=(1, 0)).verdict, "1 of 25 is what guessing among 50 can give"
    assert "within" in made(head=(0, 5)).verdict.partition(";")[0], "5 of 25 gained, by a fair coin p = 0.06"
    assert "6 of 25, MORE than before (0); it knew nothing to begin with" in made(head=(0, 6)).verdict
    assert "knew nothing" not in made(head=(19, 0)).verdict


def test_recall_that_falls_with_more_false_alarms_or_rises_by_them_is_called_neither():
    judged = verdict(made(attack=(10, 20), alarms=(0.0, 60.0)))
    assert judged.change == "mixed"
    assert (
        "20 of 25 from the features (before 10, at other false alarms), and takes 60 % of the other images"
        in judged.text
    )
    assert "MORE" not in judged.text


def test_reading_no_more_than_by_guessing_is_said():
    judged = verdict(made(attack=(24, 3), alarms=(0.0, 10.0)))
    assert "reads 3 of 25 from the features, no more than by guessing (before 24)" in judged.text
    assert "guessing" not in made(attack=(24, 20)).verdict


def test_a_reference_stands_beside_the_attacker():
    assert "; from a model trained without it 16." in made(reference="retrained", value=64.0).verdict
    assert "; of a class never trained on 64 %." in made(reference="unseen", value=64.0).verdict


def test_where_nothing_is_compared_nothing_is_said_of_before():
    one = made(compared="alone").verdict
    assert "before" not in one.partition("What it was before is not known")[0]
    changed = made(compared="equal", context={"changes": [{"method": "scrub", "n_forget": 3}]}).verdict
    assert "the model before the change was not given" in changed
    assert "bit for bit" not in changed
    both = {"changes": [{"method": "regrow", "n_forget": 9}], "erasures": [{"method": "esc", "n_forget": 9}]}
    told = made(head=(0, 0), context=both).verdict
    assert "the model before the change was not given" in told
    assert "to begin with" not in told
    assert "before" not in told.partition("What it was before is not known")[0]
    assert "bit for bit, and nothing was erased" in made(compared="equal").verdict


def test_a_change_of_the_head_alone_is_told_beside_the_original_that_was_given():
    context = {"changes": [{"method": "lau", "n_forget": 3}], "original_given": True}
    told = made(compared="equal", context=context).verdict
    assert "the head answers 0 of 25 (before 19)" in told
    assert "they are the original's, bit for bit, and nothing was erased from them" in told
    assert "not known" not in told


def test_classes_are_named_and_of_several_the_one_that_is_read_most():
    data = planted(n=300, classes=5)
    report = audited(data, forget=[0, 1], class_names={0: "fox", 1: "gnu", 2: "hen", 3: "ibex", 4: "jay"})
    assert report.verdict.startswith("fox and gnu: the head answers ")
    assert "(most of gnu: 60 of 60)" in report.verdict
    many = replace(made(), forget_labels=(1, 2, 3, 4, 5))
    assert many.verdict.startswith("5 classes (goldfish, class 2, class 3, ...)")


def test_the_other_class_that_is_hit_hardest_is_named_where_it_lost_more_than_the_worst_of_so_many_does_by_chance():
    """6 of 6 lost are no chance in one class (p = 0.03), and are in the worst of 20; 12 of 12 are not (p = 0.0005)."""
    names = dict.fromkeys(range(30), "") | {1: "goldfish", 2: "carp, Cyprinus", 3: "eel", 4: "pike"}
    for lost, named in ((6, False), (12, True)):
        others = dict.fromkeys(range(4, 22), (20, 20))
        text = made(class_names=names, classes={2: (20, 20 - lost), 3: (20, 19), **others}).verdict
        assert ("hit hardest" in text) == named
        if named:
            assert f"points); hit hardest: carp, {20 - lost} of 25 (before 20)." in text
    alone = made(class_names=names, classes={2: (20, 14)}).verdict
    assert "hit hardest: carp, 14 of 25 (before 20)." in alone
    assert "hit hardest: eel" in made(class_names=names, classes={2: (25, 15), 3: (20, 2)}).verdict
    assert "hit hardest" not in made(class_names=names, classes={2: (20, 25), 3: (0, 0)}).verdict
    unpaired = made(class_names=names, classes={2: (25, 0)})
    scores = [replace(s, settings={"label": 2, "samples": 25}) if s.name == "accuracy" else s for s in unpaired]
    unpaired = replace(unpaired, sections=(*unpaired.sections[:2], Section("head", "", tuple(scores[4:]))))
    assert "hit hardest" not in unpaired.verdict, "reports of earlier versions do not say which images changed sides"


def test_a_report_pairs_the_images_of_every_class():
    report = audited(planted(n=300, classes=5), forget=[0, 1])
    for score in report.section("head").scores:
        if score.name == "accuracy":
            about = score.settings
            step = 100 * (about["gained"] - about["lost"]) / about["samples"]
            assert score.value - score.original == pytest.approx(step)


def test_identities_without_a_head_have_a_verdict_too():
    text = audited(planted(n=300), logits=None, identities=True).verdict
    assert re.match(
        r"class 0: a gallery search finds \d+ % of the images( by the centred cosine)? \(before \d+ %\)", text
    )
    assert "An attacker with labels still reads" in text
    assert "The other classes: 98 % found" in text


def test_the_original_is_judged_by_its_own_best_attacker():
    report = audited(planted(n=300), attacks=["linear", "knn-l2", "norm"])
    advantages = {s.group: s.original for s in report.section("attacks").scores if s.name == "advantage"}
    assert report.score("worst_case", "advantage").original == max(advantages.values())
    attackers = report.section("worst_case").settings["attackers"]
    assert attackers["original"] == max(advantages, key=advantages.get)
    untouched = audited(planted(n=300), lambda x: x.clone(), attacks=["linear", "knn-l2", "norm"])
    assert untouched.worst_case.value == untouched.worst_case.original
    assert verdict(untouched).change == "same"


@pytest.mark.parametrize("attackers", [{}, {"original": "groups-of-5-mlp"}])
def test_an_attack_on_groups_has_no_number_of_images(attackers):
    """25 images are five groups: their share is told in percent, and a difference is one of five groups."""
    group = "linear" if attackers else "groups-of-5-linear"
    recall = Score("recall", 76.0, "lower", group, original=100.0, settings={"attackers": attackers})
    false = Score("false_alarms", 1.0, "none", group, original=1.0)
    report = made()
    section = Section("worst_case", "", (recall, false), settings={"compared": "different"})
    report = replace(report, sections=(section, *report.sections[1:]))
    told = f"76 %{'' if attackers else ' of the groups'} from the features (before 100 %: within what 5 groups can tell"
    assert told in report.verdict
    line = next(line for line in report.summary().splitlines() if line.startswith("Best attacker"))
    assert "of 25" not in line
    assert "of 25" not in verdict(report).short.partition("head")[0]


def test_the_verdict_is_in_json_in_the_summary_and_survives_both(tmp_path):
    report = audited(class_names={0: "fox", 1: "gnu", 2: "hen"})
    assert report.to_dict()["verdict"] == report.verdict == RetentionReport.from_json(report.to_json()).verdict
    lines = report.summary().splitlines()
    assert lines[0] == report.verdict
    assert len(lines) <= 10
    count = f"{sum(report.samples.values()):,} images ("
    named = replace(report, context={**report.context, "dataset": "pets"})
    for one, said in ((report, f": {count}"), (named, f": pets, {count}")):
        assert said in next(line for line in one.summary().splitlines() if line.startswith("Measured"))


def test_warnings_of_the_records_stand_beside_it():
    warned = made(
        context={"erasures": [{"method": "esc", "n_forget": 9, "warnings": ["The head now answers it more often."]}]}
    )
    assert verdict(warned).warnings == ("The head now answers it more often.",)
    assert "Warning: The head now answers it more often." in warned.summary()


def test_before_an_audit_the_head_alone_is_told_and_what_is_missing():
    judged = measured_verdict(["cat"], Share(0.0, 76.0, N, 19, 0), Share(36.0, 37.0, 100, 1, 0))
    hit = ("dog", Share(10.0, 90.0, 10, 8, 0))
    told = measured_verdict(["cat"], None, Share(36.0, 37.0, 100, 1, 0), hardest=hit).text
    assert "points); hit hardest: dog, 1 of 10 (before 9). What attackers" in told
    assert judged.text.startswith(
        "cat: the head answers 0 of 25 (before 19). The other classes: 36 % right, before 37 %"
    )
    assert judged.text.endswith("is not measured yet.")
    assert measured_verdict(["cat"], None, None).text.startswith("cat: not measured on test images.")


def test_a_downloader_has_a_place():
    weights = {"best": {"erased": 71.0, "original": 90.0, "reference": 68.0}}
    less = {"attack": (20, 17)}  # the features give less than the weights
    text = made(context={"weights": weights}, **less).verdict
    assert (
        "Whoever downloads the weights reads 71 % (from the original 90 %, from a network that never saw it 68 %)."
        in text
    )
    weights["strongest"] = {"erased": {"R": 88.0}, "reference": {"R": 88.6}}
    assert "never saw it 68 %)." in made(context={"weights": weights}, **less).verdict
    weights["strongest"]["reference"]["R"] = 84.0
    told = made(context={"weights": weights}, **less).verdict
    assert "never saw it 68 %, which knows the others worse by 4 points)." in told


def test_erased_features_that_cannot_be_told_from_the_originals_are_not_called_lower():
    """Over many strengths of an eraser: whatever is called lower is lower, and grows no rarer as more is taken away."""
    found = []
    for kept in (1.0, 0.6, 0.3, 0.0):

        def eraser(x, kept=kept):
            return kept * x + (1 - kept) * erase_axis(x)

        report = audited(planted(n=300, strength=2.0), eraser, attacks=["linear"])
        judged, recall = verdict(report), report.worst_case
        if judged.change == "lower":
            assert recall.value < recall.original
        found.append(("same", "within", "lower").index(judged.change))
    assert found == sorted(found)


def test_too_few_images_before_say_nothing_of_what_was_known():
    said = measured_verdict(["church"], Share(0.0, 100 / 6, 6, lost=1, gained=0), None, chance=10.0).text
    assert "1 of 6 before are too few to say what was lost" in said
    assert "knew nothing" not in said
    said = measured_verdict(["church"], Share(0.0, 2.0, 50, lost=1, gained=0), None, chance=2.0).text
    assert "it knew nothing to begin with" in said
