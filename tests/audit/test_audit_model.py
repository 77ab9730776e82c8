"""`ErasedModel.audit` and `hf-kd audit`: one pass, the classes of the records, references, controls, exit_on_error."""

from __future__ import annotations

import copy
import functools
import json
from types import SimpleNamespace

import pytest
import torch
from transformers import ViTConfig, ViTModel
from typer.testing import CliRunner

from hf_kd import AuditOptions, ErasedModel, Retrained, Unseen, audit_features
from hf_kd.audit.other_models import wrapped
from hf_kd.audit.report import RetentionReport
from hf_kd.cli import app
from hf_kd.cli._accuracy import HeadAccuracy
from hf_kd.data.draw import stratified_rows
from hf_kd.features.heads import head_logits, predictions
from hf_kd.features.reader import ImageReader, ReadOptions
from tests.conftest import image_processor, small_resnet, small_vit
from tests.helpers.small import make_dataset, randomise


def quick(**more):
    """Arguments of a small audit; `more` are options."""
    return {
        "options": AuditOptions(**{"attacks": ["linear", "norm"], "draws": 1, "shots": [1, 5]} | more),
        "progress": False,
    }


QUICK = quick()


SPLITS = make_dataset([0, 1, 2, 3, 4] * 16), make_dataset([0, 1, 2, 3, 4] * 10, seed=9)


@pytest.fixture
def splits():
    return SPLITS


@functools.cache
def erased_once(family: str) -> ErasedModel:
    model = copy.deepcopy({"vit": small_vit, "resnet": small_resnet}[family]())
    return ErasedModel.from_model(model, image_processor()).erase(make_dataset([2] * 20), k=2, progress=False)


@functools.cache
def audited_once(family: str, attacks: str) -> tuple[RetentionReport, list[object]]:
    """The report, and the data of each pass that was made for it."""
    passes = []
    read = ImageReader.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageReader, "read", lambda self, *a, **k: passes.append(self.data) or read(self, *a, **k))
        report = erased_once(family).audit(*SPLITS, **(quick(attacks="full") if attacks == "full" else QUICK))
    return report, passes


@pytest.fixture(params=["vit", "resnet"])
def family(request):
    """A transformer whose tap is the head's input, and a conv net whose tap is the tower's output."""
    return request.param


def on(family: str):
    """For what lies behind the reading of features, where no family makes a difference."""
    return pytest.mark.parametrize("family", [family], indirect=True)


@pytest.fixture
def model(family, request):
    return request.getfixturevalue(family)


@pytest.fixture
def erased(family):
    return copy.deepcopy(erased_once(family))


@pytest.fixture
def report(family):
    """A small audit of `erased`."""
    return audited_once(family, "few")[0]


@pytest.fixture
def full(family):
    """The audit of `erased` with all attacks."""
    return audited_once(family, "full")[0]


def test_one_pass_over_each_split_and_the_classes_of_the_records(family, report, splits):
    assert audited_once(family, "few")[1] == list(splits)
    assert "after_each" in report.plots["cosines"], "Fig. 3 with an eraser for each class"
    assert report.forget_labels == (2,)
    assert report.label(2) == "2 (cat)"
    assert report.samples == {"D_f": 16, "D_r": 64, "D_ft": 10, "D_rt": 40}
    assert report.context["erasures"][0]["method"] == "esc"
    assert RetentionReport.from_json(report.to_json()) == report


def test_the_head_in_the_report_is_the_models_own(erased, report, splits):
    inputs = erased.processor([image.convert("RGB") for image in splits[1]["image"]], return_tensors="pt")
    with torch.no_grad():
        right = erased(**inputs).logits.argmax(dim=1) == torch.tensor(splits[1]["label"])
    cats = torch.tensor(splits[1]["label"]) == 2
    assert report.score("head", "D_ft").value == pytest.approx(100 * float(right[cats].float().mean()))
    assert report.score("head", "D_rt").value == pytest.approx(100 * float(right[~cats].float().mean()))


@on("vit")
def test_an_untouched_model_and_head_surgery_keep_what_the_original_has(model, processor, splits):
    wrapped = ErasedModel.from_model(model, processor)
    report = wrapped.audit(*splits, "cat", **QUICK)
    for score in report.section("converged").scores:
        assert score.value == score.original
    head = model.classifier[-1] if isinstance(model.classifier, torch.nn.Sequential) else model.classifier
    with torch.no_grad():
        head.weight[2], head.bias[2] = 0.0, float("-inf")
    surgery = wrapped.audit(*splits, [2], **QUICK)
    assert surgery.score("head", "D_ft").value == 0
    for name in ("D_f", "D_r", "D_ft", "D_rt"):
        assert surgery.score("converged", name).value == report.score("converged", name).value


@on("resnet")
def test_a_retrained_model_and_unseen_classes_as_reference(erased, splits):
    retrained = copy.deepcopy(erased).reset()
    report = erased.audit(*splits, reference=Retrained(retrained), **QUICK)
    assert report.reference == "retrained"
    for key in ("converged", "head"):
        for score in report.section(key).scores:
            if score.name in ("D_f", "D_r", "D_ft", "D_rt"):
                assert score.reference == score.original, "the reference given is the original itself"
    other = make_dataset([0] * 12 + [1] * 12, seed=5, names=["fox", "gnu"])
    report = erased.audit(*splits, reference=Unseen(other), **QUICK)
    assert report.reference == "unseen"
    assert any("2 classes that were never trained on" in note for note in report.notes)


@on("resnet")
def test_full_reads_mirrored_images_too(full):
    assert full.score("attacks", "recall", "views-2-linear").settings["views"] == 2


@on("resnet")
def test_full_reads_the_views_of_an_original_too(erased, full, splits):
    report = erased.audit(*splits, original=copy.deepcopy(erased).reset(), **quick(attacks=["views-2-linear"]))
    score = report.score("attacks", "recall", "views-2-linear")
    assert score.original is not None
    assert score.original == full.score("attacks", "recall", "views-2-linear").original


@on("resnet")
def test_full_reads_three_views_and_asks_an_untrained_model(full):
    assert full.score("attacks", "recall", "views-3-mlp").settings["views"] == 3
    assert 0 < full.score("agreement", "zrf").value <= 1


@on("resnet")
def test_only_the_labels_that_count_as_retained(erased, splits):
    report = erased.audit(*splits, **QUICK, retain_labels=["dog", 4])
    assert report.samples == {"D_f": 16, "D_r": 32, "D_ft": 10, "D_rt": 20}
    assert {2, 3, 4} <= set(report.class_names), "and those that are answered"
    with pytest.raises(ValueError, match="Did you mean 'dog'"):
        erased.audit(*splits, **QUICK, retain_labels="dgo")


def test_a_model_that_is_named_goes_to_the_device_of_the_audited_one(vit, processor, tmp_path):
    """Where the inputs of that one go: here to "meta", which any machine can tell from the CPU."""
    vit.save_pretrained(tmp_path / "other")
    audited = ErasedModel.from_model(vit, processor)
    audited.inner._hf_hook = SimpleNamespace(execution_device="meta")  # as accelerate says where a model runs
    named = wrapped(audited, tmp_path / "other")
    assert {parameter.device.type for parameter in named.parameters()} == {"meta"}
    assert named.processor is processor, "a folder without one is read as the audited model is"


def test_an_original_model_makes_changed_weights_visible(model, processor, forget, splits):
    before = copy.deepcopy(model)
    head = model.classifier[-1] if isinstance(model.classifier, torch.nn.Sequential) else model.classifier
    with torch.no_grad():
        head.bias[2] = 100.0
        for parameter in model.parameters():
            parameter.mul_(1.01)
    wrapped = ErasedModel.from_model(model, processor).erase(forget, k=2, progress=False)
    report = wrapped.audit(*splits, original=before, **quick(membership_references=[before]))
    assert 0.005 < report.score("weights", "relative", "other").value < 0.011, "running statistics did not move"
    assert report.score("converged", "D_ft").before_projection is not None
    heads = [report.score("head", name) for name in ("D_ft", "D_rt")]
    assert [score.before_projection for score in heads] == [100, 0], "the changed head answers cat to everything"
    assert [score.original for score in heads] != [100, 0]
    assert report.score("membership", "auc_two_sided", "RMIA").settings["references"] == 1


def test_embedding_models_are_asked_for_identities(vit, processor, forget, splits):
    model = randomise(ViTModel(vit.config))
    wrapped = ErasedModel.from_model(model, processor).erase(forget, k=2, progress=False)
    report = wrapped.audit(*splits, [2], **QUICK)
    groups = {score.group for score in report.section("identities").scores}
    assert {"closed set, cosine", "closed set, centred"} <= groups
    assert "Not measured" in report.section("head").notes[0]


def test_labels_of_a_model_without_head_and_names_are_those_of_the_data(vit, processor, forget, splits):
    made_up = ViTConfig.from_dict(vit.config.to_dict() | {"id2label": {0: "LABEL_0", 1: "LABEL_1"}})
    wrapped = ErasedModel.from_model(randomise(ViTModel(made_up)), processor).erase(forget, k=2, progress=False)
    report = wrapped.audit(*splits, [2], **QUICK)
    assert report.class_names[2] == splits[0].features["label"].names[2]


@on("vit")
def test_refusals_say_the_way_out(erased, model, processor, splits):
    train, test = splits
    untouched = ErasedModel.from_model(type(model)(model.config).eval(), processor)
    with pytest.raises(ValueError, match="forget_labels has to say"):
        untouched.audit(train, test, progress=False)
    with pytest.raises(ValueError, match="No test sample"):
        erased.audit(train, make_dataset([0, 1, 3] * 4), **QUICK)
    with pytest.raises(ValueError, match="at least two classes"):
        erased.audit(make_dataset([2] * 12), test, [2], **QUICK)
    with pytest.raises(ValueError, match="reads them itself"):
        erased.audit(train, test, reference=Unseen(torch.zeros(9, 2), torch.zeros(9)), **QUICK)
    with pytest.raises(ValueError, match="Did you mean 'cat'"):
        erased.audit(train, test, "cta", **QUICK)
    for given, message in (
        ({"colour": 1}, "no argument colour: it takes forget_labels, retain"),
        ({"forget": [0]}, "forget is said as forget_labels"),
        ({"seeds": 3}, r"options=AuditOptions\(seeds"),
        ({"original_model": erased}, "said as original="),
        ({"label_column": "breed"}, r"reading=ReadOptions\(label_column='breed'\)"),
    ):
        with pytest.raises(TypeError, match=message):
            erased.audit(train, test, **given)
    with pytest.warns(UserWarning, match="overlap"):
        erased.audit(train, train, **QUICK)


@pytest.mark.usefixtures("few_draws", "no_figures")
def test_the_command_prints_one_screen_and_leaves_report_and_figures(vit, processor, forget, splits, tmp_path):
    ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False).save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    for name, split in zip(("train", "test"), splits, strict=True):
        split.to_parquet(tmp_path / "data" / f"{name}.parquet")
    arguments = ["audit", str(tmp_path / "model"), "--dataset", str(tmp_path / "data"), "--attacks", "linear,norm"]
    done = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "model"), "--overwrite"])
    assert done.exit_code == 0, done.output
    assert "class 2 (cat)" in done.stdout
    report = RetentionReport.from_json(tmp_path / "model" / "report.json")
    assert report.forget_labels == (2,)
    assert (tmp_path / "model" / "report.md").read_text().startswith("# Retention audit")
    assert (tmp_path / "model" / "class_means.png").exists()
    assert ErasedModel.from_pretrained(tmp_path / "model").is_erased, "a report beside a model leaves the model alone"
    done = CliRunner().invoke(app, [*arguments, "--forget-labels", "dog", "--json"])
    assert json.loads(done.stdout)["forget_labels"] == [3]


@on("vit")
def test_a_first_look_is_the_audit_of_the_rows_that_were_drawn(erased, splits):
    reading = ReadOptions(limit=30, limit_test=15)
    looked = erased.audit(*splits, **quick(layer_profile=True), reading=reading)
    rows = [stratified_rows(split["label"], most) for split, most in zip(splits, (30, 15), strict=True)]
    parts = [split.select(own) for split, own in zip(splits, rows, strict=True)]
    whole = erased.audit(*parts, **quick(layer_profile=True))
    assert list(looked) == list(whole)
    assert looked.samples == whole.samples
    assert looked.sampled["train"] == {"drawn": 30, "of": len(splits[0]), "seed": 0}
    assert looked.sampled["test"] == {"drawn": 15, "of": len(splits[1]), "seed": 0}
    assert "train 30 of" in "".join(looked.notes)
    assert not whole.sampled


def test_a_head_for_several_labels_counts_what_its_users_see(vit, processor, splits):
    """Other labels beside it do not hide a forgotten class, whose probability is its own."""
    vit.config.problem_type = "multi_label_classification"
    with torch.no_grad():
        vit.classifier.bias[:] = torch.tensor([3.0, 0, 3.0, 0, 0])  # apes and cats are seen everywhere, apes most
        vit.classifier.weight[2] = vit.classifier.weight[0] / 2
    model = ErasedModel.from_model(vit, processor).erase(make_dataset([2] * 20), k=1, progress=False)
    report = model.audit(*splits, **QUICK)
    read = ImageReader(model, splits[1], ReadOptions(progress=False)).read()
    seen = head_logits(model, read.erased(model)).sigmoid() > 0.5
    rows = read.labels == 2
    share = 100 * float(seen[rows, 2].double().mean())
    scores = {score.name: score.value for score in report.section("head").scores if not score.group}
    assert scores["D_ft"] == pytest.approx(share)
    assert share > 50
    assert float((predictions(model, read.erased(model))[rows] == 2).double().mean()) < share / 100
    given = {
        score.settings["label"]: score.value for score in report.section("head").scores if score.name == "answered"
    }
    every = 100 * seen[rows].double().mean(dim=0)
    assert given == pytest.approx({c: float(every[c]) for c in (0, 1, 3, 4) if every[c] > 0})
    assert sum(given.values()) > 100, "an image has several"
    told = report.to_markdown()
    assert "may give an image several labels" in told
    assert "top-1" not in told.split("The model's own head", 1)[1].split("##", 1)[0]


def test_a_regression_of_several_values_is_no_choice_of_classes(vit, processor, splits):
    vit.config.problem_type = "regression"
    model = ErasedModel.from_model(vit, processor)
    with pytest.raises(ValueError, match="answers with 5 numbers"):
        model.audit(*splits, forget_labels=[0])
    with pytest.raises(ValueError, match="this one answers 5 numbers"):
        HeadAccuracy(model, splits[1], "test", [0], ReadOptions(progress=False))


def test_a_model_of_one_logit_is_refused_with_what_does_audit_it(vit, processor, splits):
    config = copy.deepcopy(vit.config)
    config.num_labels = 1
    one = randomise(type(vit)(config))
    model = ErasedModel.from_model(one, processor).erase(splits[0].select(range(8)), k=1, progress=False)
    with pytest.raises(ValueError, match="one logit") as error:
        model.audit(*splits, forget_labels=[0])
    assert "ImageReader(model, images).read(own_labels=True)" in str(error.value)
    read = [ImageReader(model, images).read(own_labels=True) for images in splits]
    train, test = ({"original": part.before[0], "erased": part.erased(model)[0]} for part in read)
    report = audit_features(
        train, read[0].labels, test, read[1].labels, [2], options=AuditOptions(attacks=["linear"], draws=1, shots=[1])
    )
    assert report.forget_labels == (2,)
