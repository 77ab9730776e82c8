"""Images on their way into a model: what the options allow, and with what the tap search is tried where data shows it."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset, Features, Image, IterableDataset, Value
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from hf_kd import ErasedModel, unlearn
from hf_kd.audit.hidden_states import blocks_of, read_layers
from hf_kd.cli._inputs import by_labels
from hf_kd.data.load import with_class_labels
from hf_kd.errors import InvalidValueError, LabelMismatchError
from hf_kd.features.reader import ImageReader, ReadOptions
from hf_kd.features.taps.find import find_taps
from hf_kd.features.taps.inputs import probe_inputs
from tests.helpers.small import NAMES, make_dataset, picture


@pytest.mark.parametrize(
    "option",
    [
        {"batch_size": 0},
        {"batch_size": "8"},
        {"batch_size": 2.5},
        {"num_workers": -1},
        {"limit": 0},
        {"limit_test": True},
    ],
    ids=str,
)
def test_numbers_of_images_and_processes_are_whole(option):
    with pytest.raises(InvalidValueError, match="has to be a whole number"):
        ReadOptions(**option)
    assert ReadOptions(num_workers=0, batch_size=1).batch_size == 1


@pytest.mark.parametrize("equal", [1, 2, 3])
def test_images_that_are_alike_at_the_beginning_hide_no_tap(vit, equal):
    generator = torch.Generator().manual_seed(0)
    first, other = torch.randn(2, 3, 16, 16, generator=generator)
    rows = [{"pixel_values": image} for image in [first] * equal + [other]]
    model = ErasedModel.from_model(vit)
    ImageReader(model, DataLoader(rows, batch_size=3)).find_taps()
    assert model.taps == find_taps(vit, probe_inputs(vit)).taps


def test_values_that_are_not_finite_are_named_before_the_search(vit):
    rows = [{"pixel_values": torch.full((3, 16, 16), float("nan"))}] * 3
    with pytest.raises(InvalidValueError, match="pixel_values of the first batch .* not finite"):
        ImageReader(ErasedModel.from_model(vit), DataLoader(rows, batch_size=2)).find_taps()


def as_texts(form: str, names: list[str]):
    pictures = [picture(0, n) for n in range(len(names))]
    if form == "pairs":
        return list(zip(pictures, names, strict=True))
    columns = {"image": pictures, "label": names}
    data = Dataset.from_dict(columns, features=Features({"image": Image(), "label": Value("string")}))
    return data if form == "column" else data.to_iterable_dataset()


@pytest.mark.parametrize("labels", [None, "model", ["dog", "cat"]], ids=str)
@pytest.mark.parametrize("form", ["pairs", "column", "stream"])
def test_labels_that_are_texts_are_the_classes_of_these_names(vit, processor, form, labels):
    model = ErasedModel.from_model(vit, processor)
    reader = ImageReader(model, as_texts(form, ["dog", "cat", "dog"]), ReadOptions(labels=labels, progress=False))
    assert [NAMES[label] for label in reader.read().labels.tolist()] == ["dog", "cat", "dog"]
    if isinstance(labels, list):
        assert reader.label_names == reader.images.label_names == ("dog", "cat"), "numbered in the order that was given"


@pytest.mark.parametrize("labels", ["model", ["dog", "cat"]], ids=str)
def test_texts_that_were_numbered_when_they_were_opened_are_still_the_classes_of_these_names(vit, processor, labels):
    """As on the command line: the numbers are places in sorted texts, which nobody chose."""
    data = with_class_labels(as_texts("column", ["dog", "cat", "dog"])).select([0, 1])
    reading = ReadOptions(labels=labels, progress=False)
    model = ErasedModel.from_model(vit, processor)
    assert [NAMES[label] for label in ImageReader(model, data, reading).read().labels.tolist()] == ["dog", "cat"]
    assert by_labels(data, ["dog"], reading).in_model(model, reading) == [NAMES.index("dog")]


@pytest.mark.parametrize("form", ["pairs", "column", "stream"])
def test_a_text_that_is_none_of_the_names_given_is_refused(vit, processor, form):
    model = ErasedModel.from_model(vit, processor)
    for labels in (["dog", "cat"], "model"):
        reader = ImageReader(model, as_texts(form, ["dog", "fox"]), ReadOptions(labels=labels, progress=False))
        with pytest.raises(InvalidValueError, match="row 1 is 'fox', and the labels are"):
            reader.read()


def test_a_text_that_two_classes_of_the_model_are_called_is_neither(vit, processor):
    vit.config.id2label = dict(enumerate(["dog", "dog", "cat", "bee", "elk"]))
    model, options = ErasedModel.from_model(vit, processor), ReadOptions(labels="model", progress=False)
    assert ImageReader(model, as_texts("stream", ["cat", "elk"]), options).read().labels.tolist() == [2, 4]
    with pytest.raises(InvalidValueError, match="row 0 is 'dog'"):
        ImageReader(model, as_texts("stream", ["dog"]), options).read()


def test_what_a_batch_says_of_all_its_samples_reaches_the_model_in_every_pass(vit):
    """Larger images than the model's go through it with `interpolate_pos_encoding` alone."""
    rows = torch.randn(6, 3, 24, 24, generator=torch.Generator().manual_seed(0))

    def batch(part):
        return {
            "pixel_values": torch.stack([row for row, _ in part]),
            "labels": torch.tensor([label for _, label in part]),
            "interpolate_pos_encoding": True,
        }

    data = DataLoader([(row, n % 2) for n, row in enumerate(rows)], batch_size=4, collate_fn=batch)
    model, options = ErasedModel.from_model(vit), ReadOptions(progress=False)
    reader = ImageReader(model, data, options)
    read = reader.read()
    assert read.labels.tolist() == [0, 1] * 3
    found = list(reader.inputs_with_labels([1]))
    assert [inputs["interpolate_pos_encoding"] for inputs, _ in found] == [True, True]
    assert torch.equal(torch.cat([inputs["pixel_values"] for inputs, _ in found]), rows[1::2])
    blocks = blocks_of(model)
    part, whole = (read_layers(model, data, options, blocks, own) for own in (read.rows[::2], read.rows))
    for block in blocks:
        torch.testing.assert_close(part[block], whole[block][::2])


def test_a_data_set_that_may_augment_is_not_taken_to_read_the_same_again(vit, processor):
    class Own(list):
        pass

    class Augmenting(TorchDataset):
        def __len__(self):
            return 4

        def __getitem__(self, row):
            return picture(0, row), 0

    model = ErasedModel.from_model(vit, processor)
    pairs = [(picture(0, n), 0) for n in range(4)]
    told = [ImageReader(model, data).reads_the_same_again for data in (pairs, Own(pairs), Augmenting())]
    assert told == [True, True, False]


@pytest.mark.parametrize("method", ["esc", "leace"])
def test_a_label_mapping_says_which_texts_of_a_stream_are_labels(vit, processor, method):
    """Which nobody knows before its end: without, the mapping was told to name no label."""

    def stream(*names):
        rows = [
            {"image": picture(NAMES.index(to_model.get(name, name)), n), "label": name}
            for n in range(4)
            for name in names
        ]
        return IterableDataset.from_generator(lambda: iter(rows))

    to_model = {"katze": "cat", "hund": "dog"}
    model, reading = ErasedModel.from_model(vit, processor), ReadOptions(label_mapping=to_model, progress=False)
    model.erase(stream("katze"), method, retain=stream("ape", "hund"), reading=reading, allow_unrecognised=True)
    assert model.erasures[0].classes == (NAMES.index("cat"),)


def test_a_label_mapping_may_name_labels_of_retained_images_that_a_method_does_not_read(vit, processor):
    """As where one loop asks several methods for the same."""
    sets = [make_dataset([label] * 4, names=["ape", "bee", name]) for label, name in ((2, "katze"), (0, "chat"))]
    given = {"retain": sets[1], "reading": ReadOptions(label_mapping={"katze": "cat", "chat": "cat"}, progress=False)}
    erased = ErasedModel.from_model(copy.deepcopy(vit), processor).erase(sets[0], "esc", **given)
    assert erased.erasures[0].classes == (2,)
    changed = unlearn(vit, sets[0], "neggrad", processor=processor, allow_unrecognised=True, **given)
    assert tuple(changed.config.hf_kd_unlearned[0]["classes"]) == (2,)
    given["reading"] = ReadOptions(label_mapping={"hund": "cat"}, progress=False)
    with pytest.raises(LabelMismatchError, match="'hund'"):
        erased.erase(sets[0], "esc", **given)
