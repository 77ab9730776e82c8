"""`access="weights"`: the section, its data, the level of references, the budget, and what the command line takes."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification
from typer.testing import CliRunner

from hf_kd import AuditOptions, ErasedModel, ReadOptions, Retrained, unlearn
from hf_kd.audit import figures, weight_access
from hf_kd.audit.audit_model import audit_model
from hf_kd.audit.report import RetentionReport
from hf_kd.audit.sections.weight_access import left_out_notes
from hf_kd.audit.sections.weights import moved_weights
from hf_kd.audit.weight_access import AuditImages, last_kept, measure_weight_access
from hf_kd.audit.whitebox import battery
from hf_kd.audit.whitebox.findings import NetworkFindings
from hf_kd.audit.whitebox.images import rows_of_fewer_classes
from hf_kd.audit.whitebox.network import Network
from hf_kd.audit.whitebox.regrowing import no_regrowing
from hf_kd.cli import app
from hf_kd.errors import InvalidValueError, LabelMismatchError
from hf_kd.metrics.attack_data import AttackResult
from tests.helpers.processes import in_two_processes
from tests.helpers.small import NAMES, labelled, make_dataset, randomise


@pytest.fixture(scope="module")
def small_battery():
    """Less of everything that takes time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(battery, "SHOTS", (5,))
        patch.setattr(battery, "STEPS", (0, 2))
        patch.setattr("hf_kd.audit.whitebox.probes.DRAWS", 1)
        yield


def resnet(seed: int = 0) -> ResNetForImageClassification:
    config = labelled(ResNetConfig, hidden_sizes=[4, 8], depths=[1, 1], embedding_size=4, num_channels=3)
    return randomise(ResNetForImageClassification(config), seed)


@pytest.fixture(scope="module")
def report(small_battery, request) -> RetentionReport:
    from transformers import ViTImageProcessorPil

    processor = ViTImageProcessorPil(size={"height": 16, "width": 16})
    train, test = make_dataset([0, 1, 2, 3, 4] * 16), make_dataset([0, 1, 2, 3, 4] * 10, seed=9)
    changed = ErasedModel.from_model(resnet(), processor)
    original = ErasedModel.from_model(resnet(), processor)
    with torch.no_grad():
        changed.inner.classifier[-1].weight[2] += 1.0
    references = [ErasedModel.from_model(resnet(seed), processor) for seed in (1, 2)]
    return changed.audit(
        train,
        test,
        "cat",
        original=original,
        reference=Retrained(references),
        options=AuditOptions(attacks=["linear"], draws=1, shots=[1], access="weights"),
        progress=False,
    )


@pytest.mark.parametrize("which", ["audited", "original", "reference"])
def test_weights_that_are_offloaded_are_refused_before_any_attack(which):
    models = {name: ErasedModel.from_model(resnet()) for name in ("audited", "original", "reference")}
    head = models[which].inner.classifier[-1]
    head.weight = torch.nn.Parameter(head.weight.to("meta"))
    with pytest.raises(ValueError, match=r"access='weights' needs the weights in memory.* offloaded \(classifier"):
        measure_weight_access(models["audited"], None, models["original"], [models["reference"]])
    if which != "reference":
        options = AuditOptions(access="weights")
        with pytest.raises(ValueError, match=r"access='weights' needs the weights in memory"):
            audit_model(models["audited"], [], [], "cat", original=models["original"], options=options)
        with pytest.raises(ValueError, match=r"How far weights moved .*offloaded"):
            moved_weights(models["original"], models["audited"])


def test_every_attack_stands_beside_original_and_reference(report):
    section = report.section("weight_access")
    rows = section.rows()
    for group in (
        "strongest attack",
        "strongest probe",
        "head as it is",
        "head, BatchNorm from 80 images",
        "linear probe, BatchNorm as it is",
        "linear probe, BatchNorm from 10 images",
        "linear probe, BatchNorm from 80 images",
        "linear on maps",
        "mlp, 10 labels a class",
        "4 bits",
        "60 % pruned",
        "5 epochs on retained images",
        "regrown by the attacker",
        "the class's row, 1 % false alarms",
        "relearning, 5 images a class",
    ):
        own = {score.name: score for score in rows[group]}
        assert None not in (own["F"].value, own["F"].original, own["F"].reference), group
    assert rows["strongest probe"][0].chance == pytest.approx(100 / len(NAMES))
    assert "idi_probe" in {score.name for score in section.scores}
    moved = [score for score in section.scores if score.name == "moved" and score.value]
    assert [score.group for score in moved] == ["weights of classifier.1"], "only the row of the head was changed"
    assert sum(group.startswith("strongest at ") for group in rows) == 2, "the tap is the mean of the last block"


def test_the_report_carries_what_verdict_and_figures_need(report):
    weights = report.context["weights"]
    assert set(weights["best"]) == {"erased", "original", "reference", "reference 2", "name"}
    best = next(s for s in report.section("weight_access").scores if s.group == "strongest attack" and s.name == "F")
    assert weights["best"]["erased"] == best.value
    assert {"F", "R", "false_alarms", "AUC", "attack", "called"} <= set(weights["strongest"]["erased"])
    assert RetentionReport.from_json(report.to_json()) == report
    assert "What a downloader finds" in report.to_markdown()


def test_no_row_of_the_table_is_stronger_than_what_verdict_and_summary_call_the_strongest(report):
    rows = [
        {s.name: s for s in scores}
        for group, scores in report.section("weight_access").rows().items()
        if any(s.name == "false_alarms" for s in scores)
    ]
    for version, column in (("erased", "value"), ("original", "original"), ("reference", "reference")):
        top = report.context["weights"]["strongest"][version]
        gains = [getattr(own["F"], column) - getattr(own["false_alarms"], column) for own in rows]
        assert top["F"] - top["false_alarms"] >= max(gains) - 1e-9


def test_the_section_says_what_was_read_where_and_in_which_state(report):
    notes = " ".join(report.section("weight_access").notes)
    assert (
        "with BatchNorm as it is and from 10 images and from 80 images; every other probe from 80 images alone" in notes
    )
    assert "Maps are read by a linear probe" in notes
    assert "Features of 2 of 2 blocks" in notes


def test_figures(report, tmp_path, monkeypatch):
    """Those that a report with access to weights alone has; the others are drawn in test_figures.py."""
    pytest.importorskip("matplotlib")
    own = {"weight_profile", "relearning", "reference_level"}
    monkeypatch.setattr(figures, "FIGURES", {name: figures.FIGURES[name] for name in own})
    assert {path.stem for path in report.figures(tmp_path)} == own


def test_references_at_equal_accuracy(report):
    section = report.section("reference_level")
    assert [score.group.partition(",")[0] for score in section.scores] == ["features", "bare network"]
    assert len(section.scores[0].settings["references"]) == 2
    assert section.notes


@pytest.mark.parametrize(("method", "keep"), [("regrow", None), ("eu-k", 0.75)])
def test_who_regrows_keeps_what_was_kept_in_every_network_beside_it(monkeypatch, processor, method, keep):
    """A cut further down draws anew what the published model still has of the original."""
    monkeypatch.setattr(battery, "ATTACKS", [attack for attack in battery.ATTACKS if attack.name == "regrown"])
    train, test = make_dataset([0, 1, 2, 3, 4] * 8), make_dataset([0, 1, 2, 3, 4] * 6, seed=9)
    config = labelled(ResNetConfig, hidden_sizes=[4, 8], depths=[2, 2], embedding_size=4, num_channels=3)
    original, never_saw = (
        ErasedModel.from_model(randomise(ResNetForImageClassification(config), seed), processor) for seed in (0, 1)
    )
    settings = {"epochs": 1} if keep is None else {"epochs": 1, "keep": keep}
    changed = unlearn(
        original, make_dataset([2] * 8), method, retain=make_dataset([0, 1, 3, 4] * 8), progress=False,
        allow_unrecognised=True, **settings,
    )  # fmt: skip
    kept = changed.config.hf_kd_unlearned[-1]["measured"][0]["block"]
    later = dict(changed.config.hf_kd_unlearned[-1], measured=[{}])  # weights may be changed once more, without a cut
    changed.config.hf_kd_unlearned = [*changed.config.hf_kd_unlearned, later]
    report = ErasedModel.from_model(changed, processor).audit(
        train, test, "cat", original=original, reference=Retrained([never_saw]), progress=False,
        options=AuditOptions(attacks=["linear"], draws=1, shots=[1], access="weights"),
    )  # fmt: skip
    section = report.section("weight_access")
    recall = {score.name: score for score in section.rows()["regrown by the attacker"]}["F"]
    assert recall.settings["kept_to"] == kept
    assert any(kept in note for note in section.notes)
    assert recall.value == recall.original, "the weights that are kept are the original's"
    assert recall.reference is not None


def test_what_an_earlier_request_kept_is_not_kept_by_one_that_draws_everything_anew():
    def kept(*methods):
        of = {"n_forget": 1, "classes": [2], "taps": [], "rank_removed": [], "condition_number": [], "sha256": []}
        of |= {"dtype": "float32", "feature_seconds": 0.0, "fit_seconds": 0.0}
        blocks = {"regrow": [{"block": "stages.0"}], "eu-k": [{"block": "stages.1"}]}
        records = [of | {"method": name, "settings": {}, "measured": blocks.get(name, [{}])} for name in methods]
        return last_kept(SimpleNamespace(config=SimpleNamespace(hf_kd_unlearned=records)))

    assert kept() is None
    assert kept("regrow", "finetune") == "stages.0"
    assert kept("regrow", "eu-k") == "stages.1"
    assert kept("regrow", "retrain") is None
    assert kept("retrain", "regrow") == "stages.0"


def test_a_network_that_has_no_such_block_is_not_regrown_behind_another_one(processor):
    network = Network.of(ErasedModel.from_model(resnet(), processor), cut="layer4.2")
    assert "no block 'layer4.2'" in no_regrowing(network, SimpleNamespace(classes=torch.arange(5)))


def test_an_eraser_is_taken_off_and_columns_are_one_network(small_battery, processor):
    train, test = make_dataset([0, 1, 2, 3, 4] * 8), make_dataset([0, 1, 2, 3, 4] * 6, seed=9)
    erased = ErasedModel.from_model(resnet(), processor).erase(
        make_dataset([2] * 8), k=1, progress=False, allow_unrecognised=True
    )
    bare = Network.of(erased)
    assert erased.is_erased
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(bare.model(pixels).logits, resnet()(pixels).logits)
    options = AuditOptions(attacks=["linear"], draws=1, shots=[1], access="weights", budget=1e-6)
    references = Retrained([resnet(seed=8), resnet(seed=9)])
    report = erased.audit(train, test, reference=references, options=options, progress=False)
    section = report.section("weight_access")
    assert any("takes the eraser off" in note for note in section.notes)
    assert sum("had no time for" in note for note in section.notes) == 1, "of all networks the same"


def test_a_head_with_more_answers_than_the_classes_that_are_read_says_so(small_battery, processor):
    train, test = make_dataset([0, 1, 2] * 12), make_dataset([0, 1, 2] * 8, seed=9)
    model = ErasedModel.from_model(resnet(), processor)
    options = AuditOptions(attacks=["linear"], draws=1, shots=[1], access="weights", budget=1e-6)
    report = model.audit(train, test, "cat", options=options, progress=False)
    notes = " ".join(report.section("weight_access").notes)
    assert "among the 3 classes that were read" in notes
    assert "any of its 5 answers" in notes


def test_of_many_classes_some_are_drawn_the_same_in_both_splits():
    labels = {"train": torch.arange(300) % 100, "test": torch.arange(200) % 100}
    kept = rows_of_fewer_classes(labels, {split: own != 3 for split, own in labels.items()}, [7], most=20)
    classes = [own[kept[split]].unique() for split, own in labels.items()]
    assert torch.equal(*classes)
    assert len(classes[0]) == 21
    assert 7 in classes[0]
    assert 3 not in classes[0]


def renamed(names) -> ErasedModel:
    """The small network with other names of its classes."""
    config = copy.deepcopy(resnet().config)
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    return ErasedModel.from_model(randomise(ResNetForImageClassification(config)))


@pytest.mark.parametrize("write", [str.upper, "{}, a synonym".format, lambda name: f"LABEL_{NAMES.index(name)}"])
def test_columns_are_found_whatever_the_spelling_or_by_number_where_no_name_is_the_same(write):
    network = Network.of(renamed([write(name) for name in NAMES]), dict(enumerate(NAMES)))
    assert [network.column_of(label) for label in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("names", [[f"LABEL_{i}" for i in range(4)], [*NAMES[:4], "something else"]])
@pytest.mark.parametrize("place", ["original", "references"])
def test_a_network_that_lacks_a_retained_class_is_refused_before_it_is_attacked(names, place, processor):
    """Else the class is given a row, or every image is answered class 0, and the column says what nobody's network does."""
    labels = {split: torch.arange(20) % 5 for split in ("train", "test")}
    everything = {split: own >= 0 for split, own in labels.items()}
    forget = [NAMES.index("cat")]
    images = AuditImages({}, labels=labels, kept=everything, numbers=labels, forget=forget, reading=ReadOptions())
    other = renamed(names)
    beside = {"original": other} if place == "original" else {"references": [other]}
    with pytest.raises(LabelMismatchError, match=r"The (original|reference) \(ResNet.*id2label") as refused:
        measure_weight_access(ErasedModel.from_model(resnet(), processor), images, **beside)
    assert "'cat'" not in str(refused.value)


IN_PROCESSES = """
import json, torch
from transformers import ViTImageProcessorPil
from hf_kd import ErasedModel, ReadOptions
from hf_kd.audit.whitebox.images import white_box_images
from hf_kd.data import process_state
from tests.audit.test_weight_access import resnet
from tests.helpers.small import make_dataset

state = process_state()
model = ErasedModel.from_model(resnet(), ViTImageProcessorPil(size={"height": 16, "width": 16}))
images = {"train": make_dataset([0, 2, 1] * 2), "test": make_dataset([2, 0])}
labels = {split: torch.tensor(data["label"]) for split, data in images.items()}
kept = {split: own >= 0 for split, own in labels.items()}
made = white_box_images(model, images, labels, kept, [2], ReadOptions(batch_size=4, progress=False))
parts = [[part.labels.tolist(), part.inputs["pixel_values"].sum((1, 2, 3)).tolist()] for part in (made.train, made.test)]
if state.is_main_process:
    print(json.dumps({"parts": parts}))
state.destroy_process_group()
"""


def test_two_processes_hold_the_images_of_one_also_where_one_of_them_reads_none(capsys):
    exec(compile(IN_PROCESSES.replace("state.destroy_process_group()", ""), "one", "exec"), {})
    alone = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert in_two_processes("-c", IN_PROCESSES) == alone


def test_the_command_line_says_what_access_there_is():
    result = CliRunner().invoke(app, ["audit", "user/none", "--dataset", "user/none", "--access", "everything"])
    assert result.exit_code == 1
    assert "'features' or 'weights'" in result.output.replace("\n", " ")


def test_what_cannot_be_asked():
    with pytest.raises(InvalidValueError, match="'features' or 'weights'"):
        AuditOptions(access="everything")
    with pytest.raises(InvalidValueError, match="minutes"):
        AuditOptions(budget=0)
    with pytest.raises(InvalidValueError, match="access='weights' alone"):
        AuditOptions(budget=5)


def test_a_class_without_a_row_gets_one(small_battery, processor):
    """A head of four classes, an audit of five: names say which column is whose."""
    model = resnet()
    four = copy.deepcopy(model.config)
    names = [name for name in NAMES if name != "cat"]
    four.id2label, four.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    dropped = ErasedModel.from_model(randomise(ResNetForImageClassification(four)), processor)
    network = Network.of(dropped, dict(enumerate(NAMES)))
    assert [network.column_of(label) for label in range(5)] == [0, 1, None, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_is_attacked_in_full(processor, dtype):
    """Steps at small learning rates would not move its weights, and it would seem to resist."""
    model = ErasedModel.from_model(resnet().to(dtype), processor)
    bare = Network.of(model)
    assert {parameter.dtype for parameter in bare.model.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in model.inner.parameters()} == {dtype}, "the model that is audited stays"


def test_what_had_no_time_is_said_of_every_network():
    ran = NetworkFindings()
    late = NetworkFindings(left_out=["removal", "relearning"])
    odd = NetworkFindings(impossible={"regrown": "no blocks", "relearning": "no row"})
    assert left_out_notes({"erased": ran, "original": odd, "reference": odd}) == [
        "Left out: regrown of the original, regrown of the first reference; no blocks.",
        "Left out: relearning of the original, relearning of the first reference; no row.",
    ]
    assert left_out_notes({"erased": ran, "reference 2": late}) == [
        "The budget had no time for removal, relearning of reference 2."
    ]


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ([0, 1, 3, 4] * 5, range(5), "No training sample"),
        ([2] * 9, [2] * 4, "at least two classes"),
        ([0, 1, 2] * 5, range(4), "Test labels"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_attack(processor, monkeypatch, train, test, said):
    monkeypatch.setattr("hf_kd.audit.audit_model.measure_weight_access", None)
    splits = make_dataset(list(train)), make_dataset(list(test), seed=9)
    with pytest.raises(ValueError, match=said):
        ErasedModel.from_model(resnet(), processor).audit(
            *splits, "cat", options=AuditOptions(access="weights"), progress=False
        )


def test_a_head_that_may_give_several_labels_is_said_to_be_read_by_one(small_battery, processor):
    model = resnet()
    model.config.problem_type = "multi_label_classification"
    splits = make_dataset([0, 1, 2, 3, 4] * 4), make_dataset([0, 1, 2, 3, 4] * 4, seed=9)
    options = AuditOptions(attacks=["linear"], draws=1, shots=[1], access="weights", budget=1e-6)
    report = ErasedModel.from_model(model, processor).audit(*splits, "cat", options=options, progress=False)
    assert "answers the one with the largest logit" in " ".join(report.section("weight_access").notes)


def test_a_reference_of_the_same_weights_is_no_model_that_never_saw_the_class(processor):
    splits = make_dataset([0, 1, 2, 3, 4] * 8), make_dataset([0, 1, 2, 3, 4] * 8, seed=9)
    model = ErasedModel.from_model(resnet(), processor)
    options = AuditOptions(attacks=["linear"], draws=1, shots=[1])
    for seeds, said in (((0,), "the audited model"), ((1, 2), "the original"), ((1,), "the original"), ((2,), None)):
        references = [ErasedModel.from_model(resnet(seed), processor) for seed in seeds]
        original = ErasedModel.from_model(resnet(1), processor)
        report = model.audit(
            *splits, "cat", original=original, reference=Retrained(references), options=options, progress=False
        )
        told = [text for text in report.context["warnings"] if "never saw" in text]
        assert [said in text for text in told] == ([] if said is None else [True])


def test_networks_of_other_architectures_are_regrown_behind_blocks_of_their_own():
    def findings(block):
        return NetworkFindings(regrown=AttackResult("", 0.0, 0.0, 0.0, 50.0, {"kept_to": block}))

    same = {"erased": findings("a"), "original": findings("a"), "reference": NetworkFindings()}
    assert "every network up to a, the lower third" in " ".join(weight_access._kept_to(same, "the lower third"))
    other = weight_access._kept_to({"erased": findings("a"), "reference": findings("b")}, "the lower third")
    assert other == ["Who regrows keeps this model up to a, the first reference up to b, the lower third each."]
