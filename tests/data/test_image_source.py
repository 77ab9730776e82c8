"""Columns are found or asked for, and the shares of all processes hold every sample exactly once."""

from __future__ import annotations

import io
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Sequence, Value
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset as TorchIterableDataset
from transformers import CLIPImageProcessorPil, ViTImageProcessorPil

from hf_kd.data.image_source import inspect_images
from hf_kd.data.images import LargeImage
from hf_kd.data.loader import LoaderShare, RowDataset, make_loader
from hf_kd.data.preprocess import ImagePreprocessor
from hf_kd.errors import InvalidValueError, UnreadableImageError


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def mean_value(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float()


PREPROCESSOR = ImagePreprocessor(mean_value)
LABEL = ClassLabel(names=["cat", "dog", "fish"])


def dataset(count: int = 11, **columns) -> Dataset:
    """Image number i has grey value i and label i % 3."""
    data = {"image": [{"bytes": png(i), "path": None} for i in range(count)], "label": [i % 3 for i in range(count)]}
    features = {"image": ImageFeature(), "label": LABEL}
    for name, (values, feature) in columns.items():
        data[name], features[name] = values, feature
    return Dataset.from_dict(data, features=Features(features))


def encoded_rows(shards: list[list[int]]):
    for shard in shards:
        for i in shard:
            yield {"image": {"bytes": png(i), "path": None}, "label": i % 3}


def stream(count: int = 11, shards: int = 1) -> IterableDataset:
    parts = [list(range(count))[i::shards] for i in range(shards)]
    features = Features({"image": ImageFeature(), "label": LABEL})
    return IterableDataset.from_generator(encoded_rows, gen_kwargs={"shards": parts}, features=features)


def rows_of(count: int = 11) -> list[tuple[Image.Image, int]]:
    return [(Image.new("RGB", (4, 4), (i, i, i)), i % 3) for i in range(count)]


class MapStyle(TorchDataset):
    def __len__(self):
        return 11

    def __getitem__(self, index):
        if not 0 <= index < 11:
            raise IndexError(index)
        return rows_of()[index]


def numbered_loader() -> DataLoader:
    pixels = torch.arange(11.0)[:, None, None, None].expand(11, 3, 4, 4)
    rows = [{"pixel_values": pixels[i], "labels": i % 3} for i in range(11)]
    return DataLoader(rows, batch_size=2)


SOURCES = {
    "dataset": dataset,
    "dataset of a transform": lambda: dataset().with_transform(lambda batch: {"nothing": [0] * len(batch["label"])}),
    "torch format": lambda: dataset().with_format("torch"),
    "stream": stream,
    "stream, 3 shards": lambda: stream(shards=3),
    "stream, 4 shards": lambda: stream(shards=4),
    "mapped stream without features": lambda: stream().map(lambda row: row),
    "pairs": rows_of,
    "dicts": lambda: [{"image": image, "label": label} for image, label in rows_of()],
    "map-style": MapStyle,
    "ready pairs": lambda: [(mean_value(image), label) for image, label in rows_of()],
    "ready dicts": lambda: [{"pixel_values": mean_value(image), "label": label} for image, label in rows_of()],
    "loader": numbered_loader,
}


@pytest.mark.parametrize("world", [1, 2, 3, 16])
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_shares_of_all_processes_hold_each_sample_once(source, world):
    seen, rows = [], []
    for rank in range(world):
        forget_set = inspect_images(source())
        assert forget_set.has_labels
        for batch in make_loader(forget_set, PREPROCESSOR, batch_size=3, rank=rank, world_size=world):
            values = batch["inputs"]["pixel_values"].float().mean(dim=(1, 2, 3)).round().long()
            assert set(batch) == {"inputs", "labels", "rows"}
            assert set(batch["inputs"]) == {"pixel_values"}
            assert batch["labels"].dtype == batch["rows"].dtype == torch.int64
            assert torch.equal(batch["labels"], values % 3)
            if forget_set.kind != "stream":
                assert torch.equal(batch["rows"], values)
            seen += values.tolist()
            rows += batch["rows"].tolist()
    assert sorted(seen) == list(range(11))
    assert len(set(rows)) == 11


@pytest.mark.parametrize("name", ["dataset", "stream", "stream, 3 shards", "stream, 4 shards", "pairs"])
@pytest.mark.parametrize("world", [1, 2])
def test_workers_drop_and_repeat_nothing(name, world):
    seen, rows = [], []
    for rank in range(world):
        loader = make_loader(inspect_images(SOURCES[name]()), PREPROCESSOR, 2, 2, rank, world)
        for batch in loader:
            seen += batch["inputs"]["pixel_values"].mean(dim=(1, 2, 3)).long().tolist()
            rows += batch["rows"].tolist()
    assert sorted(seen) == list(range(11))
    assert len(set(rows)) == 11


def test_what_is_known_about_a_data_set():
    forget_set = inspect_images(dataset())
    assert (forget_set.kind, forget_set.image_column, forget_set.label_column) == ("dataset", "image", "label")
    assert (forget_set.label_names, forget_set.length) == (("cat", "dog", "fish"), 11)
    streamed = inspect_images(stream())
    assert (streamed.kind, streamed.label_names, streamed.length) == ("stream", ("cat", "dog", "fish"), None)
    assert inspect_images(numbered_loader()).length == 6


def test_a_row_is_its_number_image_and_label():
    number, image, label = RowDataset(inspect_images(dataset()), rank=1, world_size=2)[0]
    assert (number, image.getpixel((0, 0)), label) == (5, (5, 5, 5), 2)


def test_images_alone_have_no_labels():
    for source in ([image for image, _ in rows_of()], dataset().remove_columns("label")):
        forget_set = inspect_images(source)
        assert not forget_set.has_labels
        (batch,) = make_loader(forget_set, PREPROCESSOR)
        assert batch["labels"].tolist() == [-1] * 11


def test_columns_are_chosen_by_name():
    data = dataset(mask=([{"bytes": png(99), "path": None}] * 11, ImageFeature()), kind=([1] * 11, LABEL))
    with pytest.raises(ValueError, match=r"several image columns \('image', 'mask'\).*image_column="):
        inspect_images(data)
    forget_set = inspect_images(data, image_column="mask", label_column="kind")
    (batch,) = make_loader(forget_set, PREPROCESSOR)
    assert (batch["labels"] == 1).all()
    assert (batch["inputs"]["pixel_values"] == 99).all()
    undecided = inspect_images(data, image_column="image")
    assert not undecided.has_labels
    assert undecided.label_candidates == ("label", "kind")
    for argument in ("image_column", "label_column"):
        with pytest.raises(ValueError, match=rf"{argument}='nope'.*'label' \(ClassLabel\)"):
            inspect_images(dataset(), **{argument: "nope"})


def test_labels_of_other_types():
    plain = inspect_images(dataset().cast_column("label", Value("int32")))
    assert (plain.label_column, plain.label_names) == ("label", None)
    strings = dataset(breed=([f"b{i % 2}" for i in range(11)], Value("string")))
    forget_set = inspect_images(strings, label_column="breed")
    assert forget_set.label_names == ("b0", "b1")
    assert next(iter(make_loader(forget_set, PREPROCESSOR)))["labels"].tolist() == [i % 2 for i in range(11)]
    with pytest.raises(ValueError, match="cannot be the labels"):
        inspect_images(dataset(box=([[0.0]] * 11, Sequence(Value("float32")))), label_column="box")
    unlabelled = Dataset.from_dict({"image": [{"bytes": png(0), "path": None}], "label": [None]}, dataset().features)
    assert next(iter(make_loader(inspect_images(unlabelled), PREPROCESSOR)))["labels"].tolist() == [-1]


def test_parquet_of_other_programs_is_understood():
    data = Dataset.from_dict({"image": [{"bytes": png(3), "path": None}]})  # a struct, as pandas and polars write it
    (batch,) = make_loader(inspect_images(data), PREPROCESSOR)
    assert (batch["inputs"]["pixel_values"] == 3).all()


def test_further_inputs_of_a_loader_are_passed_on_and_labels_are_not():
    batch = {"pixel_values": torch.zeros(2, 3, 4, 4), "pixel_attention_mask": torch.ones(2, 4), "label": [0, 1]}
    (out,) = make_loader(inspect_images(DataLoader([batch], batch_size=None)))
    assert set(out["inputs"]) == {"pixel_values", "pixel_attention_mask"}
    assert out["labels"].tolist() == [0, 1]


@pytest.mark.parametrize(
    "source",
    [
        lambda: dataset(0),
        lambda: stream(0),
        lambda: dataset().filter(lambda row: False),
        lambda: stream().filter(lambda row: False),
        lambda: stream(0).map(lambda row: row),
        lambda: [],
        lambda: DataLoader([]),
    ],
)
def test_an_empty_forget_set_is_an_error(source):
    with pytest.raises(ValueError, match="empty"):
        inspect_images(source())


@pytest.mark.parametrize(
    "source",
    [
        lambda: dataset().remove_columns("image"),
        lambda: stream().remove_columns("image"),
        lambda: [{"text": "a"}],
        lambda: ["a"],
        lambda: [1, 2],
        lambda: DataLoader([{"input_ids": torch.arange(3)}]),
    ],
)
def test_a_forget_set_without_images_is_an_error(source):
    with pytest.raises(ValueError, match="has no images"):
        inspect_images(source())


def test_what_is_no_forget_set_says_what_would_be():
    with pytest.raises(TypeError, match=r"\['train'\]"):
        inspect_images(DatasetDict(train=dataset()))
    for source in (Image.new("RGB", (2, 2)), "user/pets", None, iter([])):
        with pytest.raises(TypeError, match="is no set of images"):
            inspect_images(source)
    with pytest.raises(ValueError, match="have to be dicts"):
        inspect_images(DataLoader(TensorDataset(torch.zeros(3, 3, 4, 4))))
    with pytest.raises(ValueError, match=r"\(image, label\) pairs"):
        inspect_images([(Image.new("RGB", (2, 2)), ("cat",))])


@pytest.mark.parametrize(("kind", "workers"), [("dataset", 0), ("stream", 0), ("rows", 0), ("dataset", 1)])
def test_an_unreadable_image_names_its_row(kind, workers):
    images = [{"bytes": png(i) if i != 7 else b"broken", "path": "secret-name.png"} for i in range(11)]
    data = Dataset.from_dict({"image": images}).cast_column("image", ImageFeature())
    source = {"dataset": data, "stream": data.to_iterable_dataset(), "rows": images}[kind]
    if kind == "rows":
        source = [{"image": image} for image in images]
    with pytest.raises(UnreadableImageError, match="row 7 ") as caught:
        list(make_loader(inspect_images(source), PREPROCESSOR, batch_size=4, num_workers=workers))
    assert caught.value.row == 7
    assert "secret-name" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_bad_settings_say_what_is_allowed():
    forget_set = inspect_images(dataset())
    with pytest.raises(ValueError, match="batch_size"):
        make_loader(forget_set, PREPROCESSOR, batch_size=0)
    with pytest.raises(ValueError, match="num_workers"):
        make_loader(forget_set, PREPROCESSOR, num_workers=-1)
    with pytest.raises(ValueError, match="ImagePreprocessor"):
        make_loader(forget_set)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        make_loader(forget_set, PREPROCESSOR, rank=2, world_size=2)
    labels = {"pixel_values": torch.zeros(2, 3, 4, 4), "labels": torch.zeros(2, 5)}
    with pytest.raises(ValueError, match="2 integers"):
        list(LoaderShare(inspect_images(DataLoader([labels], batch_size=None))))


def word_loader(labels):
    """default_collate leaves words in a list."""
    return DataLoader([{"pixel_values": torch.zeros(3, 4, 4), "labels": label} for label in labels], batch_size=3)


def test_words_in_the_batches_of_a_loader_are_labels_by_their_names():
    source = inspect_images(word_loader(["dog", "cat", "dog", "cat"]), names=["cat", "dog"])
    assert source.label_names == ("cat", "dog")
    assert torch.cat([batch["labels"] for batch in make_loader(source)]).tolist() == [1, 0, 1, 0]
    assert inspect_images(word_loader([0, 1]), names=["cat", "dog"]).label_names is None, "ids stay what they are"


@pytest.mark.parametrize("labels", [["cat", "eel", "cat"], ["cat", "dog", None]])
def test_labels_of_a_batch_that_are_none_are_refused_in_words(labels):
    batch = {"pixel_values": torch.zeros(3, 3, 4, 4), "labels": labels}
    source = inspect_images(DataLoader([batch], batch_size=None, collate_fn=lambda x: x), names=["cat", "dog"])
    with pytest.raises(InvalidValueError, match="(?i)labels? of a batch"):
        list(make_loader(source))


@pytest.mark.parametrize("form", ["typed", "nested", "numpy"])
def test_arrays_in_a_column_are_pictures(form):
    from datasets import Array3D

    arrays = [np.full((16, 16, 3), n, dtype=np.uint8) for n in range(4)]
    features = Features({"img": Array3D((16, 16, 3), "uint8"), "label": Value("int64")}) if form == "typed" else None
    data = Dataset.from_dict({"img": arrays, "label": [0, 1, 2, 3]}, features=features)
    data = data.with_format("numpy") if form == "numpy" else data
    for column in (None, "img"):
        rows = RowDataset(inspect_images(data, column if form != "typed" or column else None))
        assert [rows[n][1].getpixel((3, 3)) for n in range(4)] == [(n, n, n) for n in range(4)]
        assert [rows[n][2] for n in range(4)] == [0, 1, 2, 3]


def test_class_names_are_labels_where_the_column_is_called_so():
    data = Dataset.from_dict({"image": [Image.new("RGB", (4, 4))] * 3, "label": ["dog", "cat", "dog"]})
    found = inspect_images(data.cast_column("image", ImageFeature()))
    assert (found.label_column, found.label_names) == ("label", ("cat", "dog"))
    other = inspect_images(data.cast_column("image", ImageFeature()).rename_column("label", "breed"))
    assert (other.label_column, other.label_candidates) == (None, ("breed",))


TEXTS = ["fish", "cat", None, "cat"]


@pytest.mark.parametrize("kind", ["pairs", "dicts", "stream", "loaded"])
def test_texts_as_labels(kind):
    """What is in memory says which there are; of anything else they have to be known."""
    pictures = [Image.new("RGB", (4, 4), (i, i, i)) for i in range(len(TEXTS))]
    rows = [{"image": picture, "label": text} for picture, text in zip(pictures, TEXTS, strict=True)]
    source = {"pairs": list(zip(pictures, TEXTS, strict=True)), "dicts": rows,
              "stream": IterableDataset.from_generator(lambda: iter(rows)), "loaded": Loaded(rows)}[kind]  # fmt: skip
    if kind in ("stream", "loaded"):
        with pytest.raises(ValueError, match=r"holds texts.*labels=\['cat', ...\]"):
            inspect_images(source, label_column="label")
        with pytest.raises(ValueError, match="'fish', and the labels are"):
            list(make_loader(inspect_images(source, names=["dog", "cat"]), PREPROCESSOR))
    found = inspect_images(source, names=["dog", "cat", "fish"])
    labels = torch.cat([batch["labels"] for batch in make_loader(found, PREPROCESSOR)]).tolist()
    told = [None if label < 0 else found.label_names[label] for label in labels]
    assert told == TEXTS


class Loaded(TorchDataset):
    """Rows by number that may take long to read."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_a_row_or_a_batch_is_said_in_words_from_a_worker_too(workers):
    images = [Image.new("RGB", (8, 8)), Image.new("RGB", (1, 4000))]
    by_short_side = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size=8)
    for rows, processor, said in (
        ([(images[0], 1), (images[0], 2.5)], ViTImageProcessorPil(size=8), "^The label of row 1 "),
        (images, ViTImageProcessorPil(do_resize=False), "^ViTImageProcessorPil makes no batch of 2 images"),
        ([images[0], *images], by_short_side, "^Row 2: An image of 1 x 4000 "),
    ):
        with pytest.raises(InvalidValueError, match=said):
            list(make_loader(inspect_images(rows), ImagePreprocessor(processor), num_workers=workers))


def test_a_column_called_label_that_holds_no_labels_is_named(caplog):
    for label in (1.0, [0, 1]):
        described = inspect_images([{"image": Image.new("RGB", (8, 8)), "label": label}])
        assert not described.has_labels
    assert caplog.text.count("Column 'label' is") == 2


@pytest.mark.parametrize("mode", ["L", "1", None])
@pytest.mark.parametrize("streaming", [False, True])
def test_images_have_the_mode_that_their_column_says(mode, streaming):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    features = Features({"image": ImageFeature(mode=mode)})
    data = Dataset.from_dict({"image": [Image.fromarray(pixels)]}, features=features)
    expected = np.asarray(data[0]["image"].convert("RGB"))
    data = data.to_iterable_dataset() if streaming else data
    (batch,) = make_loader(inspect_images(data), ImagePreprocessor(lambda image: np.asarray(image)))
    assert np.array_equal(batch["inputs"]["pixel_values"][0], expected)


@pytest.fixture
def decoded(monkeypatch):
    """Images of more than 100 pixels are large; how many of them are held at a time, each time one is decoded."""
    held, alive = [], []
    monkeypatch.setattr("hf_kd.data.images.LARGE", 100)
    original = LargeImage.decoded

    def counted(image):
        found = original(image)
        alive.append(weakref.ref(found))
        held.append(sum(reference() is not None for reference in alive))
        return found

    monkeypatch.setattr(LargeImage, "decoded", counted)
    return held


def photos(sizes) -> list[bytes]:
    return [
        encoded(np.random.default_rng(n).integers(0, 256, (*size, 3), dtype=np.uint8)) for n, size in enumerate(sizes)
    ]


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["dataset", "stream", "rows"])
@pytest.mark.parametrize("mode", ["L", None])
@pytest.mark.parametrize("processor", [ViTImageProcessorPil(size=8), lambda image: np.asarray(image.resize((8, 8)))])
def test_of_large_images_one_is_decoded_at_a_time(decoded, monkeypatch, kind, mode, processor):
    files = photos([(20, 30), (4, 4), (30, 20), (20, 30), (5, 5), (40, 40)])
    images = [{"bytes": file, "path": None} for file in files]
    data = Dataset.from_dict({"image": images}).cast_column("image", ImageFeature(mode=mode))
    source = {"dataset": data, "stream": data.to_iterable_dataset(), "rows": [row["image"] for row in data]}[kind]
    preprocessor = ImagePreprocessor(processor)
    (batch,) = make_loader(inspect_images(source), preprocessor)
    assert decoded == [1] * 4 if kind != "rows" else len(decoded) == 4, "PIL images are whoever's gave them"
    monkeypatch.setattr("hf_kd.data.images.LARGE", 10_000)
    (together,) = make_loader(inspect_images(source), preprocessor)
    assert torch.equal(batch["inputs"]["pixel_values"], together["inputs"]["pixel_values"])
    assert batch["rows"].tolist() == list(range(6))


class Padding(ViTImageProcessorPil):
    """Pads the images of a batch to one size, as detectors do."""

    def __call__(self, images, **options):
        height, width = (max(size) for size in zip(*((image.height, image.width) for image in images), strict=True))
        padded = [np.pad(image, ((0, height - image.height), (0, width - image.width), (0, 0))) for image in images]
        return {"pixel_values": torch.from_numpy(np.stack(padded)).permute(0, 3, 1, 2)}


def test_large_images_that_a_processor_pads_to_one_size_are_a_batch_as_before(decoded):
    preprocessor = ImagePreprocessor(Padding(), exact_shortcuts=False)
    rows = [{"image": {"bytes": file, "path": None}} for file in photos([(20, 30), (30, 20)] * 2)]
    first, second = make_loader(inspect_images(rows), preprocessor, batch_size=2)
    assert first["inputs"]["pixel_values"].shape == second["inputs"]["pixel_values"].shape == (2, 3, 30, 30)
    assert len(decoded) == 2 + 2 + 2, "what was seen once is not tried again"


def test_a_large_image_that_cannot_be_read_names_its_row(decoded):
    files = photos([(20, 30)] * 6)
    files[4] = files[4][:-300]
    with pytest.raises(UnreadableImageError, match="row 4 ") as caught:
        list(
            make_loader(
                inspect_images([{"image": {"bytes": file, "path": None}} for file in files]), PREPROCESSOR, batch_size=3
            )
        )
    assert caught.value.row == 4
    strips = [Image.new("RGB", (8, 8)), Image.new("RGB", (20, 20)), Image.new("RGB", (1, 4000))]
    by_short_side = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size=8)
    with pytest.raises(UnreadableImageError, match="^Row 2: An image of 1 x 4000 "):
        list(make_loader(inspect_images(strips), ImagePreprocessor(by_short_side)))


class Batches(TorchIterableDataset):
    """Samples of inputs, from one iterator or from a new one each time."""

    def __init__(self, once):
        self.rows = [{"pixel_values": torch.full((3, 4, 4), float(i))} for i in range(6)]
        self.left = iter(self.rows) if once else None

    def __iter__(self):
        return iter(self.rows) if self.left is None else self.left


def test_a_loader_that_goes_on_where_it_was_left_would_lose_images():
    loader = DataLoader(Batches(once=False), batch_size=2)
    read = [batch["inputs"]["pixel_values"][:, 0, 0, 0].tolist() for batch in make_loader(inspect_images(loader))]
    assert read == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(InvalidValueError, match="Batches of the DataLoader gives one iterator"):
        inspect_images(DataLoader(Batches(once=True), batch_size=2))


def test_texts_that_are_no_labels_where_none_is_needed_are_not_told_as_labels():
    """Nor kept: those of a stream may all be different."""
    rows = [{"image": Image.new("RGB", (4, 4)), "label": text} for text in ("a fox", "CAT, TOM", "a gnu", "cat")]
    images = inspect_images(IterableDataset.from_generator(lambda: iter(rows)), names=["cat, tom", "cat, tabby"])
    batches = iter(make_loader(replace(images, labels_needed=False), PREPROCESSOR, batch_size=3, num_workers=0))
    with pytest.raises(InvalidValueError, match=r"'CAT, TOM', and the labels are \['cat, tom', 'cat, tabby'\]"):
        next(batches)
