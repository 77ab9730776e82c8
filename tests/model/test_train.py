"""Training of original models: it learns, from where it should, for whatever labels; and the AllCNN of the examples."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from hf_kd import ErasedModel, train_original, unlearn
from hf_kd.audit.classes import forgotten_labels
from hf_kd.errors import InvalidValueError
from hf_kd.features.heads import predictions
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.methods.records import all_records
from hf_kd.methods.unlearning.retrain import Retrain
from hf_kd.model.train import PRETRAINED, RECIPES, with_labels
from tests.helpers.small import NAMES, labelled, make_dataset, randomise

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"epochs": 2, "batch_size": 16, "lr": 0.05, "progress": False, "augment": "none"}
OTHER = ("cat", "fox", "gnu")


@pytest.fixture(scope="module")
def data():
    return make_dataset([0, 1, 2, 3, 4] * 16)


@pytest.fixture(scope="module")
def allcnn():
    """The example as a module; importing it registers its classes."""
    spec = importlib.util.spec_from_file_location("allcnn", ROOT / "examples" / "allcnn.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["allcnn"] = module
    spec.loader.exec_module(module)
    return module


def equal(first, second) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns_and_says_so_and_leaves_the_given_model_alone(resnet, processor, data):
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    trained = train_original(
        resnet, data, "resnet18-cifar10", processor=processor, epochs=8, batch_size=16, lr=0.05, progress=False,
        augment="flip", decay_epochs=[],
    )  # fmt: skip
    assert all(torch.equal(before[name], value) for name, value in resnet.state_dict().items())
    record = trained.config.hf_kd_trained
    assert record["measured"]["accuracy"] > 90
    model = ErasedModel.from_model(trained, processor)
    fresh = make_dataset([0, 1, 2, 3, 4] * 6, seed=3)
    read = ImageReader(model, fresh).read()
    right = (predictions(model, read.before) == read.labels).float().mean()
    assert right > 0.8, "on images it was not trained on"
    assert (record["recipe"], record["images"], record["from_scratch"], record["new_head"]) == (
        "resnet18-cifar10", 80, True, False,
    )  # fmt: skip
    assert record["settings"]["epochs"] == 8
    assert not trained.training


def test_a_seed_decides_and_the_given_weights_do_not(vit, processor, data):
    first = train_original(vit, data, processor=processor, **QUICK)
    again = train_original(randomise(type(vit)(vit.config), seed=9), data, processor=processor, **QUICK)
    assert equal(first, again), "from scratch: whatever weights were there, and whatever torch's generator was at"
    assert not equal(first, train_original(vit, data, processor=processor, **QUICK, seed=1))


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_pretrained_recipes_start_from_the_models_own_weights(vit, processor, data, recipe):
    settings = QUICK | {"epochs": 1, "lr": 1e-9, "warmup": 0.0} | ({"head_lr": 1e-9} if "vit" in recipe else {})
    trained = train_original(vit, data, recipe, processor=processor, **settings)
    name = next(name for name, value in vit.state_dict().items() if "classifier" not in name and value.ndim == 2)
    own = torch.allclose(trained.state_dict()[name], vit.state_dict()[name], atol=1e-4)
    assert own == (recipe in PRETRAINED)
    assert trained.config.hf_kd_trained["from_scratch"] != own
    other = train_original(vit, data, recipe, processor=processor, from_scratch=own, **settings)
    assert torch.allclose(other.state_dict()[name], vit.state_dict()[name], atol=1e-4) != own


def test_recipes_are_those_of_the_reference():
    """AllCNN as the published code trains it; the SalUn recipe, which fits Table 5."""
    allcnn, salun = RECIPES["allcnn-cifar10"], RECIPES["resnet18-cifar10"]
    assert (allcnn.optimizer, allcnn.lr, allcnn.momentum, allcnn.weight_decay) == ("sgd", 0.01, 0.9, 0.0)
    assert (allcnn.batch_size, allcnn.epochs, allcnn.lr_factor(49.9), allcnn.augment) == (64, 50, 1.0, "flip")
    assert (salun.lr, salun.momentum, salun.weight_decay, salun.batch_size, salun.epochs) == (0.1, 0.9, 5e-4, 256, 182)
    assert [round(salun.lr_factor(epoch), 6) for epoch in (0, 90, 91, 135, 136, 181)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert RECIPES["vit-pretrained"].head_lr == 1e-3
    assert all(recipe.bn_mode == "train" for recipe in RECIPES.values())


@pytest.mark.parametrize("names", [OTHER, ("a", "b", "c", "d", "e")], ids=["fewer", "as many"])
def test_other_labels_get_a_new_head_over_the_same_backbone(model, processor, names):
    other = with_labels(model, names)
    assert list(other.config.id2label.values()) == list(names)
    assert other.config.label2id == {name: i for i, name in enumerate(names)}
    heads = {name for name in other.state_dict() if name.startswith("classifier")}
    for name, value in other.state_dict().items():
        same = value.shape == model.state_dict()[name].shape and torch.equal(value, model.state_dict()[name])
        assert same != (name in heads), name
    assert equal(other, with_labels(model, names))


def test_a_data_set_of_other_labels_can_be_trained_on(resnet, processor, tmp_path):
    """Someone with a checkpoint of 1000 labels and a data set of 100."""
    data = make_dataset([0, 1, 2] * 12, names=OTHER)
    trained = train_original(resnet, data, "resnet18-pretrained", processor=processor, **QUICK, warmup=0.0)
    assert trained.config.num_labels == 3
    assert list(trained.config.id2label.values()) == list(OTHER)
    assert trained.config.hf_kd_trained["new_head"]
    trained.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model = ErasedModel.from_pretrained(tmp_path)
    assert equal(model.inner, trained)
    assert model.processor is not None
    model.erase(data.filter(lambda label: label == 0, input_columns="label"), k=1, progress=False)
    assert model.erasures[0].classes == (0,), "cat is the first label of the new head"


@pytest.mark.parametrize("fold", [False, True], ids=["changed weights", "folded eraser"])
def test_records_hold_no_ids_of_a_head_that_was_replaced(resnet, processor, fold):
    """Label 2 of the new head is a gnu, and nobody ever asked to forget gnus."""
    cats = make_dataset([2] * 12)
    if fold:
        changed = ErasedModel.from_model(resnet, processor).erase(cats, k=1, progress=False).fold()
    else:
        changed = unlearn(resnet, cats, "head-surgery", processor=processor, progress=False)
    data = make_dataset([0, 1, 2] * 12, names=("bee", "fox", "gnu"))
    trained = train_original(changed, data, "resnet18-pretrained", processor=processor, **QUICK, warmup=0.0)
    model = ErasedModel.from_model(trained, processor)
    (record,) = all_records(model)
    assert (record.classes, record.dataset_classes) == (None, ("cat",))
    with pytest.raises(InvalidValueError, match="head of other labels since"):
        forgotten_labels(model, None, model.class_names)
    assert [own.classes for own in all_records(ErasedModel.from_model(changed, processor))] == [(2,)]


def test_the_models_labels_stay_where_they_are_the_data_sets(vit, processor, data):
    shuffled = make_dataset([0, 1, 2, 3, 4] * 4, names=tuple(reversed(NAMES)))
    trained = train_original(vit, shuffled, "vit-pretrained", processor=processor, **QUICK, warmup=0.0)
    assert list(trained.config.id2label.values()) == NAMES
    assert not trained.config.hf_kd_trained["new_head"]
    mapping = {"cat": "bee", "fox": "elk", "gnu": "ape"}
    named = make_dataset([0, 1, 2] * 4, names=OTHER)
    mapped = train_original(vit, named, processor=processor, reading=ReadOptions(label_mapping=mapping), **QUICK)
    assert list(mapped.config.id2label.values()) == NAMES
    unnamed = type(vit)(type(vit.config)(**{**vit.config.to_dict(), "id2label": {i: f"LABEL_{i}" for i in range(5)}}))
    assert list(train_original(unnamed, data, processor=processor, **QUICK).config.id2label.values()) == NAMES


def test_fresh_weights_forget_what_was_done_to_the_old_ones(vit, processor, data):
    changed = unlearn(vit, make_dataset([2] * 4), "head-surgery", processor=processor, progress=False)
    assert not hasattr(train_original(changed, data, processor=processor, **QUICK).config, "hf_kd_unlearned")
    kept = train_original(changed, data, processor=processor, from_scratch=False, **QUICK)
    assert kept.config.hf_kd_unlearned[0]["method"] == "head-surgery"


def test_pretrained_batchnorm_keeps_its_statistics_unless_told(resnet, processor, data):
    def statistics(model):
        return [value for name, value in model.state_dict().items() if "running_mean" in name]

    settings = QUICK | {"epochs": 1, "warmup": 0.0}
    kept = train_original(resnet, data, "resnet18-pretrained", processor=processor, **settings)
    assert kept.config.hf_kd_trained["settings"]["bn_mode"] == "freeze"
    assert all(map(torch.equal, statistics(kept), statistics(resnet)))
    moved = train_original(resnet, data, "resnet18-pretrained", processor=processor, bn_mode="train", **settings)
    assert not all(map(torch.equal, statistics(moved), statistics(resnet)))
    fresh = train_original(resnet, data, "resnet18-pretrained", processor=processor, from_scratch=True, **settings)
    assert fresh.config.hf_kd_trained["settings"]["bn_mode"] == "train", "fresh statistics have to be learnt"


def test_what_learnt_nothing_says_so(vit, processor, data, caplog):
    trained = train_original(vit, data, processor=processor, test=data, **QUICK | {"lr": 1e-9, "epochs": 1})
    record = trained.config.hf_kd_trained
    assert record["measured"]["test_accuracy"] == record["measured"]["accuracy"] < 20.001
    assert len(record["warnings"]) == 2
    assert "always answering the most frequent label gives 20.0 %" in caplog.text


@pytest.mark.parametrize("without", ["cat", [2, "ape"]])
def test_labels_that_are_left_out_are_never_seen_and_never_answered(vit, processor, data, without):
    trained = train_original(vit, data, processor=processor, without=without, test=data, **QUICK)
    record = trained.config.hf_kd_trained
    ids = record["without"]
    assert ids == ([2] if without == "cat" else [0, 2])
    assert record["images"] == 16 * (5 - len(ids)) == record["measured"]["test_images"]
    assert trained.config.num_labels == 5
    model = ErasedModel.from_model(trained, processor)
    read = ImageReader(model, data).read()
    assert not torch.isin(predictions(model, read.before), torch.tensor(ids)).any()
    # the images of the others decide alone: those left out may as well not be there
    rest = data.filter(lambda label: label not in ids, input_columns="label")
    assert equal(trained, train_original(vit, rest, processor=processor, without=without, **QUICK))


def test_a_label_that_is_left_out_is_the_data_sets_however_the_model_numbers_it(vit, processor):
    other = make_dataset([0, 1, 2, 3, 4] * 4, names=tuple(reversed(NAMES)))
    called = make_dataset([0, 1, 2] * 4, names=OTHER)
    to_model = ReadOptions(label_mapping={"cat": "bee", "fox": "elk", "gnu": "ape"})
    for data, without, reading, ids in (
        (other, 0, ReadOptions(), [4]),
        (other, ["elk", 1], ReadOptions(), [3, 4]),
        (called, "gnu", to_model, [0]),
        (called, [0], to_model, [1]),
    ):
        trained = train_original(vit, data, processor=processor, without=without, reading=reading, **QUICK)
        record = trained.config.hf_kd_trained
        assert (record["without"], list(trained.config.id2label.values())) == (ids, NAMES)
        assert record["images"] < len(data), "images of it were there"


def test_a_retrained_reference_goes_on_from_what_it_kept(vit, processor, data, tmp_path):
    forget, retain = make_dataset([2] * 8), data.filter(lambda label: label != 2, input_columns="label")
    given = {"retain": retain, "processor": processor, "checkpoint": tmp_path, **QUICK}
    first = unlearn(vit, forget, "retrain", **given)
    again = unlearn(vit, forget, "retrain", **given)
    assert equal(first, again)
    assert again.config.hf_kd_unlearned[-1]["measured"][0]["epochs_run"] == 2
    with pytest.raises(ValueError, match="is of another run"):
        unlearn(vit, forget, "retrain", **given | {"lr": 0.1})


def test_test_images_that_cannot_be_measured_are_refused_before_the_training(vit, processor, data, monkeypatch):
    monkeypatch.setattr(Retrain, "run", lambda *given: pytest.fail("the training began"))
    for strange in (make_dataset([0, 1], names=["fox", "gnu", "hen", "ibis", "jay"]), data.select(range(0))):
        with pytest.raises(ValueError, match="labels of the data set do not match|empty"):
            train_original(vit, data, processor=processor, test=strange, **QUICK)


class ConvConfig(PreTrainedConfig):
    model_type = "conv_head"
    image_size: int = 16


class ConvHead(PreTrainedModel):
    """Gives its logits by a convolution."""

    config_class = ConvConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.body = torch.nn.Conv2d(3, 12, 3)
        self.head = torch.nn.Conv2d(12, config.num_labels, 1)
        self.post_init()

    def forward(self, pixel_values, labels=None, return_dict=True):
        pooled = torch.relu(self.body(pixel_values)).mean(dim=(2, 3), keepdim=True)
        return ImageClassifierOutputWithNoAttention(logits=self.head(pooled).flatten(1))


def test_a_label_to_leave_out_that_there_is_not_is_refused_before_images_are_read(vit, processor, data, monkeypatch):
    def read(*args, **given):
        raise AssertionError("images are read")

    monkeypatch.setattr(ImageReader, "samples", read)
    with pytest.raises(ValueError, match="Did you mean 'cat'"):
        train_original(vit, data, processor=processor, without="cta", **QUICK)


def test_labels_are_not_left_out_of_a_head_that_could_not_silence_them(processor, data):
    model = randomise(ConvHead(labelled(ConvConfig)))
    assert train_original(model, data, processor=processor, **QUICK).config.hf_kd_trained["without"] == []
    with pytest.raises(ValueError, match=r"labels \[2\] cannot be left out"):
        train_original(model, data, processor=processor, without="cat", **QUICK)


def test_refusals(vit, processor, data):
    with pytest.raises(ValueError, match="recipe='resnet': expected 'allcnn-cifar10', 'resnet18-cifar10'"):
        train_original(vit, data, "resnet", processor=processor)
    with pytest.raises(TypeError, match=r"no option strength. It takes .*epochs"):
        train_original(vit, data, processor=processor, strength=1)
    with pytest.raises(ValueError, match="lr=0"):
        train_original(vit, data, processor=processor, lr=0)
    with pytest.raises(ValueError, match="needs the labels"):
        train_original(vit, data.remove_columns("label"), processor=processor, progress=False)
    with pytest.raises(ValueError, match="leaves 1 of 5 labels"):
        train_original(vit, data, processor=processor, without=["ape", "bee", "cat", "dog"])
    with pytest.raises(ValueError, match="two places to start from"):
        train_original(vit, data, Retrain(init="user/model"), processor=processor, from_scratch=False)
    erased = ErasedModel.from_model(vit, processor).erase(make_dataset([2] * 8), k=1, progress=False)
    with pytest.raises(ValueError, match="carries an eraser"):
        train_original(erased, data, **QUICK)


def test_the_allcnn_of_the_paper(allcnn, tmp_path):
    """Filters 0.5: 48 and 96 channels, d = 96; what enters the Linear is the average over the image, so the tap stands
    there; and the average after a 1x1 convolution to C channels would give the same logits."""
    config = labelled(allcnn.AllCNNConfig)
    model = randomise(allcnn.AllCNN(config))
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert {c.out_channels for c in convolutions} == {48, 96}
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules()) == len(convolutions) == 8
    wrapped = ErasedModel.from_model(model, allcnn.processor())
    (tap,) = wrapped.find_taps()
    assert (tap.dim, tap.heads) == (96, ("classifier",))
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        maps = model.features(pixels)
        assert maps.shape == (3, 96, 8, 8)
        weight, bias = model.classifier.weight, model.classifier.bias
        last = torch.nn.functional.conv2d(maps, weight[:, :, None, None], bias).mean(dim=(2, 3))
        assert torch.allclose(model(pixels).logits, last, atol=1e-5)
        assert torch.allclose(wrapped.pooled_features(pixels), maps.mean(dim=(2, 3)), atol=1e-6)
    assert tuple(allcnn.processor().image_mean) == (0.5, 0.5, 0.5)
    model.save_pretrained(tmp_path)
    assert equal(AutoModelForImageClassification.from_pretrained(tmp_path), model)


def test_every_ready_config_is_accepted():
    from hf_kd.bench.config import read_config

    files = sorted((ROOT / "benchmarks" / "paper").glob("*.yaml"))
    assert len(files) >= 8
    for file in files:
        for experiment in read_config(file, limit=100):
            assert {row.kind for row in experiment.rows} >= {"original", "eraser"}, file.name
            assert any(row.reference for row in experiment.rows) or file.stem == "ablations", file.name
            assert all(row.seeds == (0, 1, 2) for row in experiment.rows if row.kind == "weights"), file.name
        text = file.read_text(encoding="utf-8")
        assert "hf-kd train-original" in text, f"{file.name} has to say how its original is made"


def test_every_retrained_row_is_the_recipe_of_its_original(resnet, processor, data, monkeypatch):
    """It is what the other rows are held beside: a gap between two recipes would be read as one of forgetting."""
    from hf_kd.bench.config import read_config

    class NotTrainedError(Exception):
        pass

    def stop(method, task):
        made.append(method)
        raise NotTrainedError

    monkeypatch.setattr(Retrain, "run", stop)
    compared = 0
    for file in sorted((ROOT / "benchmarks" / "paper").glob("*.yaml")):
        text = file.read_text(encoding="utf-8").replace("\\\n#", "")
        for row in (row for experiment in read_config(file) for row in experiment.rows if row.name == "retrain"):
            ((start, recipe),) = re.findall(r"hf-kd train-original (\S+) .*--recipe (\S+)", text)
            made: list[Retrain] = []
            with pytest.raises(NotTrainedError):
                train_original(resnet, data, recipe, processor=processor, progress=False)
            (method,) = made
            init = start if recipe in PRETRAINED else None
            assert row.settings(method.seed) == method.settings() | {"init": init}, file.name
            compared += 1
    assert compared >= 7
