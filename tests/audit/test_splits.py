"""In which ids an audit numbers labels, and which samples later passes take for those of the first."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
from datasets import ClassLabel, Features, Image, IterableDataset
from torch.utils.data import DataLoader
from transformers import ViTConfig, ViTModel

from hf_kd import AuditOptions, ErasedModel, ReadOptions
from hf_kd.audit.hidden_states import blocks_of, read_layers
from hf_kd.audit.splits import AuditSplits
from hf_kd.audit.weight_access import _images_of
from hf_kd.cli._inputs import by_labels
from hf_kd.errors import InvalidValueError, LabelMismatchError
from hf_kd.features.reader import ImageReader, preprocessor_of
from tests.conftest import image_processor, small_vit
from tests.helpers.small import NAMES, make_dataset, picture, randomise

QUICK = {"options": AuditOptions(attacks=["linear"], draws=1, shots=[1]), "progress": False}
QUIET = ReadOptions(progress=False)
OTHER = tuple(reversed(NAMES))
TRAIN, TEST = [4] * 10 + [0, 1, 2, 3] * 16, [0, 1, 2, 3, 4] * 10


def backbone(**config) -> ErasedModel:
    config = ViTConfig.from_dict(small_vit().config.to_dict() | config)
    return ErasedModel.from_model(randomise(ViTModel(config)), image_processor())


@functools.cache
def erased() -> ErasedModel:
    """A model without a head that knows the names, from which "ape" was erased by data that numbers them the other way."""
    return backbone().erase(make_dataset([4] * 20, names=OTHER), k=2, progress=False)


@functools.cache
def reversed_report():
    return erased().audit(make_dataset(TRAIN, names=OTHER), make_dataset(TEST, seed=9, names=OTHER), **QUICK)


def test_a_model_without_head_is_audited_for_the_class_that_was_erased():
    assert erased().erasures[0].classes == (0,)
    report = reversed_report()
    assert report.forget_labels == (0,)
    assert report.samples["D_f"] == 10, "the images of apes, whatever their number in the data"
    assert report.class_names == dict(enumerate(NAMES))
    data = make_dataset(TRAIN, names=OTHER)
    assert by_labels(data, ["ape"], QUIET).in_model(erased(), QUIET) == [0], "nor does the command line ask for another"


def test_test_images_are_numbered_as_the_training_images_are():
    model = backbone(id2label={0: "LABEL_0", 1: "LABEL_1"})
    few = [name for name in NAMES if name != "bee"]
    data = AuditSplits(model, make_dataset([0, 1, 2, 3, 4]), make_dataset([0, 1, 2, 3], names=few), QUIET)
    data.read(None)
    assert data.labels[1].tolist() == [0, 2, 3, 4], "and not 0 to 3, as the split itself numbers them"
    more = AuditSplits(model, make_dataset([0, 1]), make_dataset([5], names=[*NAMES, "fox"]), QUIET)
    with pytest.raises(LabelMismatchError, match="'fox' of the test images is none of the training images'"):
        more.read(None)
    unread = AuditSplits(model, make_dataset([0, 1]), make_dataset([0, 4], names=["ape", *NAMES[:0:-1], "fox"]), QUIET)
    unread.read(None)
    assert unread.labels[1].tolist() == [0, 1], "a name that no image has harms nothing"


def test_a_backbone_of_other_classes_is_audited_by_the_names_of_the_data():
    pets = ["fox", "gnu", "hen", "jay", "owl"]
    splits = make_dataset(TRAIN, names=pets), make_dataset(TEST, seed=9, names=pets)
    report = erased().audit(*splits, "fox", **QUICK)
    assert report.class_names == dict(enumerate(pets))
    with pytest.raises(LabelMismatchError, match="'fox'"):  # the record says ape, which is none of these
        erased().audit(*splits, **QUICK)


FEATURES = Features({"image": Image(), "label": ClassLabel(names=NAMES)})


def stream(first: int, total: int) -> IterableDataset:
    """Two shards of unequal length."""

    def rows(shards):
        for shard in shards:
            for n in range(*shard):
                yield {"image": picture(n % 5, n), "label": n % 5}

    shards = [(0, first), (first, total)]
    return IterableDataset.from_generator(rows, features=FEATURES, gen_kwargs={"shards": shards})


def test_later_passes_over_a_stream_take_the_samples_of_the_first():
    model, reading = erased(), ReadOptions(num_workers=2, batch_size=8, progress=False)
    counts, images = {"train": 20, "test": 15}, {"train": stream(4, 20), "test": stream(3, 15)}
    read = ImageReader(model, images["train"], reading).read()
    assert read.rows.max() > len(read.rows), "their numbers are no places"
    data = AuditSplits(model, *images.values(), reading)
    data.read([0, 1])
    both = (data.before[0][0], data.before[1][0])
    assert data.layer_profile([0], {"original": both, "erased": both}).scores
    rows, blocks = torch.isin(read.labels, torch.tensor([0, 1])).nonzero().flatten(), blocks_of(model)
    whole = read_layers(model, images["train"], reading, blocks, read.rows)
    part = read_layers(model, images["train"], reading, blocks, read.rows[rows])
    assert all(torch.equal(part[block], whole[block][rows]) for block in blocks)

    found = _images_of({"erased": model}, data.for_weights([0]))["erased"]
    prepare = preprocessor_of(model)
    for split, count in counts.items():
        own = getattr(found, split)
        every = prepare([picture(n % 5, n) for n in range(count)])["pixel_values"]
        assert len(own.labels) == 2 * count / 5
        for pixels, label in zip(own.inputs["pixel_values"], own.labels.tolist(), strict=True):
            (place,) = [n for n in range(count) if torch.equal(every[n], pixels)]
            assert place % 5 == label


def batches(labels, shuffle: bool) -> DataLoader:
    """Inputs of the model, with texts as labels."""
    rows, together = prepared(labels)
    order = torch.Generator().manual_seed(0)
    return DataLoader(rows, batch_size=8, shuffle=shuffle, generator=order, collate_fn=together)


def prepared(labels):
    """Rows of inputs with texts as labels, and what makes batches of them."""
    prepare = preprocessor_of(erased())
    rows = [(prepare([picture(label, n)])["pixel_values"][0], NAMES[label]) for n, label in enumerate(labels)]

    def together(rows):
        return {"pixel_values": torch.stack([row for row, _ in rows]), "labels": [name for _, name in rows]}

    return rows, together


LATER = {
    "another model": lambda data, tap: data.of_other(erased()),
    "another view": lambda data, tap: data.versions("mirrored"),
    "the layer profile": lambda data, tap: data.layer_profile([0], {"original": tap, "erased": tap}),
    "the weights": lambda data, tap: _images_of({"erased": erased()}, data.for_weights([0])),
    "the untrained model": lambda data, tap: data.untrained_logits([0]),
}


@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
def test_a_loader_that_shuffles_is_read_once_or_refused(later):
    """The labels of the first pass beside the features of another order: every attack would read chance."""
    data = AuditSplits(erased(), *(batches(labels, shuffle=True) for labels in (TRAIN, TEST)), QUIET)
    data.read(None)
    with pytest.raises(InvalidValueError, match="without shuffling"):
        later(data, (data.before[0][0], data.before[1][0]))


@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
def test_a_loader_that_gives_the_same_again_is_read_as_often_as_need_be(later):
    data = AuditSplits(erased(), *(batches(labels, shuffle=False) for labels in (TRAIN, TEST)), QUIET)
    data.read(None)
    later(data, (data.before[0][0], data.before[1][0]))


@pytest.mark.parametrize("shuffle", [True, False])
def test_labels_are_compared_by_name_where_another_model_numbers_them_otherwise(shuffle):
    data = AuditSplits(erased(), *(batches(labels, shuffle) for labels in (TRAIN, TEST)), QUIET)
    data.read(None)
    other = backbone(id2label=dict(enumerate(OTHER)), label2id={name: n for n, name in enumerate(OTHER)})
    with pytest.raises(InvalidValueError, match="without shuffling") if shuffle else contextlib.nullcontext():
        data.of_other(other)


@pytest.mark.parametrize("later", ["the layer profile", "the weights"])
def test_a_loader_that_gives_fewer_samples_later_is_refused(later):
    left_out = {"now": 0}

    class Fewer(torch.utils.data.IterableDataset):
        def __init__(self, rows):
            self.rows = rows

        def __iter__(self):
            return iter(self.rows[left_out["now"] :])

    made = [prepared(labels) for labels in ([0] * 40, TEST)]
    loaders = [DataLoader(Fewer(rows), batch_size=8, collate_fn=together) for rows, together in made]
    data = AuditSplits(erased(), *loaders, QUIET)
    data.read(None)
    left_out["now"] = 9
    with pytest.raises(InvalidValueError, match="A second pass read 31 samples and the first 40"):
        LATER[later](data, (data.before[0][0], data.before[1][0]))
