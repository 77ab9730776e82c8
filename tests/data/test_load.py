"""Everything a command line can name on disk opens to the same rows."""

from __future__ import annotations

import errno
import re

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from hf_kd.data.image_source import inspect_images
from hf_kd.data.load import filter_by_labels, load_source
from hf_kd.data.read_files import files_of
from hf_kd.errors import InvalidValueError
from tests.helpers.small import make_dataset


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    for split in ("train", "test"):
        for label in ("golf ball", "tench", "test tube"):  # a name in which datasets would see a split
            (folder / split / label).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / split / label / f"{i}.png")
    return folder


def dataset(count: int = 6) -> Dataset:
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b", "c"])})
    rows = {
        "image": [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(count)],
        "label": [i % 3 for i in range(count)],
    }
    return Dataset.from_dict(rows, features)


def values(rows) -> list[tuple[int, int]]:
    return sorted((row["label"], row["image"].getpixel((0, 0))[0]) for row in rows)


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_in_all_its_layouts(tmp_path, streaming):
    folder = tmp_path / "pets [v2]"
    (folder / "data").mkdir(parents=True)
    data = dataset()
    data.to_parquet(folder / "train.parquet")
    assert values(load_source(folder, streaming=streaming)) == values(data)
    assert values(load_source(folder / "train.parquet", streaming=streaming)) == values(data)
    data.select([0]).to_parquet(folder / "test.parquet")
    assert values(load_source(str(folder), "test", streaming=streaming)) == values(data.select([0]))
    for i in range(2):
        data.shard(2, i).to_parquet(folder / "data" / f"held_out-0000{i}-of-00002.parquet")
    for file in ("train.parquet", "test.parquet"):
        (folder / file).unlink()
    loaded = load_source(folder, "held_out", streaming=streaming)
    assert values(loaded) == values(data)
    assert loaded.features["label"].names == ["a", "b", "c"]


@pytest.mark.parametrize("streaming", [False, True])
def test_image_folders(images, streaming):
    for spec, split in ((images, "train"), (images / "train", None), (images / "train", "train")):
        loaded = load_source(spec, split, streaming=streaming)
        assert loaded.features["label"].names == ["golf ball", "tench", "test tube"]
        assert values(loaded) == [(label, i) for label in range(3) for i in range(2)]


def test_a_single_class_is_a_class_and_loose_images_have_none(images):
    for label in ("golf ball", "test tube"):
        for file in (images / "train" / label).iterdir():
            file.unlink()
        (images / "train" / label).rmdir()
    assert load_source(images / "train").features["label"].names == ["tench"]
    assert load_source(images / "train" / "tench").column_names == ["image"]


@pytest.mark.parametrize("streaming", [False, True])
def test_saved_to_disk(tmp_path, streaming):
    data = dataset()
    data.save_to_disk(tmp_path / "one")
    DatasetDict(train=data, test=data.select([0])).save_to_disk(tmp_path / "two")
    assert values(load_source(tmp_path / "one", streaming=streaming)) == values(data)
    assert values(load_source(tmp_path / "two", "test", streaming=streaming)) == values(data.select([0]))


def test_what_was_saved_without_the_name_of_a_split_is_read_as_any_and_said_to_be_so(tmp_path, caplog):
    data = dataset()
    data.save_to_disk(tmp_path / "saved")
    assert values(load_source(tmp_path / "saved", "train")) == values(data)
    assert not caplog.messages
    assert values(load_source(tmp_path / "saved", "test")) == values(data)
    assert "all of it is read as 'test'" in caplog.text


def test_a_missing_split_lists_those_there_are(tmp_path, images):
    DatasetDict(train=dataset(), test=dataset()).save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    for split in ("train", "test"):
        dataset().to_parquet(tmp_path / "parquet" / f"{split}.parquet")
    for folder in (tmp_path / "saved", tmp_path / "parquet", images):
        with pytest.raises(ValueError, match=r"no split 'dev'.*'train'"):
            load_source(folder, "dev")
        with pytest.raises(ValueError, match=r"several splits.*'train'.*Choose"):
            load_source(folder)


def test_where_there_is_one_split_the_layout_of_several_is_said(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        dataset()[0]["image"].save(tmp_path / name / "0.png")
    with pytest.raises(ValueError, match=r"only 'train'.*split='train'.*SPLIT/CLASS/IMAGE"):
        load_source(tmp_path, "test")


def test_what_is_not_there_says_so(tmp_path, monkeypatch):
    for spec in (tmp_path / "nope", "./nope", "a/b/c", "nope.parquet"):
        with pytest.raises(FileNotFoundError, match="There is no file or folder"):
            load_source(spec)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no data set"):
        load_source(tmp_path / "empty")
    (tmp_path / "list.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"no \.parquet file.*metadata\.csv, with a column file_name"):
        load_source(tmp_path / "list.csv")


@pytest.mark.parametrize("split", [None, "train"])
def test_no_network_is_told_from_no_data_set(monkeypatch, split):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConnectionError, match=r"'user/no-such-pets' could not be fetched.*local folder.*HF_HUB_OFFLINE=1 asks no Hub"
    ):
        load_source("user/no-such-pets", split)


def test_a_mistyped_folder_is_answered_by_the_one_beside_it(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenette").mkdir()
    with pytest.raises(ConnectionError, match=r"Did you mean 'imagenette'\?.*\)\. Without"):
        load_source("imagenete", "train")


def test_filtering_reads_labels_only(monkeypatch):
    data = dataset()
    monkeypatch.setattr(ImageFeature, "decode_example", lambda *_, **__: pytest.fail("an image was decoded"))
    assert filter_by_labels(data, "label", [0, 2])["label"][:] == [0, 2, 0, 2]
    assert len(filter_by_labels(data, "label", [])) == 0
    assert filter_by_labels(data.select([5, 4, 3]), "label", {1})["label"][:] == [1]
    with pytest.raises(ValueError, match="no column 'kind'"):
        filter_by_labels(data, "kind", [0])
    with pytest.raises(ValueError, match="class_encode_column"):
        filter_by_labels(Dataset.from_dict({"label": ["a"]}), "label", [0])


def test_a_missing_label_is_none_and_hinders_no_other(tmp_path):
    texts = ["cat", "dog", None, "cat"]
    features = Features({"image": ImageFeature(), "label": Value("string")})
    Dataset.from_dict({"image": dataset(4)["image"], "label": texts}, features).to_parquet(tmp_path / "train.parquet")
    data = load_source(tmp_path / "train.parquet")
    assert filter_by_labels(data, "label", [0])["label"][:] == [0, 0]
    assert filter_by_labels(data, "label", {*data.unique("label"), -1})["label"][:] == [0, 1, 0], (
        "it belongs to no part"
    )
    assert filter_by_labels(data, "label", [1], unlabelled=True)["label"][:].count(1) == 1
    assert len(filter_by_labels(data, "label", [1], unlabelled=True)) == len(data) - 2


@pytest.fixture
def place(tmp_path):
    """Beside the cache, and without a word for a split in the names on the way."""
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


LAYOUTS = {
    "hashed shards": [f"data/train-0000{n}-of-00002-8d1a2b3c4e5f607{n}.parquet" for n in range(2)],
    "converted": ["default/train/0000.parquet", "default/train/0001.parquet"],
    "configurations": ["one/train-00000-of-00001.parquet", "two/train-00000-of-00001.parquet"],
    "plain": ["a.parquet", "b.parquet"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_hold_what_load_dataset_reads_in_them(place, layout):
    for n, name in enumerate(LAYOUTS[layout]):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        dataset().shard(2, n).to_parquet(place / name)
    expected = load_dataset(str(place), split="train")
    assert len(expected) == 6
    assert values(load_source(place)) == values(load_source(place, "train")) == values(expected)


def test_configurations_of_a_readme_have_to_be_chosen(place):
    for name, split in (("one", "train"), ("two", "test")):
        (place / name).mkdir()
        dataset(3 if name == "one" else 6).to_parquet(place / name / f"{split}.parquet")
    lines = [
        f"- config_name: {n}\n  data_files:\n  - split: {s}\n    path: {n}/*"
        for n, s in (("one", "train"), ("two", "test"))
    ]
    (place / "README.md").write_text("---\nconfigs:\n" + "\n".join(lines) + "\n---\n")
    with pytest.raises(ValueError, match="several configurations: 'one', 'two'"):
        load_source(place)
    assert len(load_source(place, config_name="one")) == 3
    assert len(load_source(place, "test", config_name="two")) == 6


def test_nothing_is_fetched_for_a_local_folder(place):
    dataset().to_parquet(place / "train.parquet")
    configs = "configs:\n- config_name: far\n  data_files: https://example.com/x.parquet"
    (place / "README.md").write_text(f"---\n{configs}\n---\n")
    with pytest.raises(ValueError, match="nothing is fetched"):
        load_source(place)


def png(path, red: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (red, 0, 0)).save(path)


@pytest.mark.parametrize("stray", ["plot.png", "plot1.png plot2.png plot3.png", "cat/notes.pdf", "doc.pdf", "cat/2020/0.png",
                                   ".hidden/0.png", "results.csv", "features.parquet"])  # fmt: skip
def test_a_stray_file_decides_nothing(place, caplog, stray):
    for label in ("cat", "dog"):
        for n in range(3):
            png(place / label / f"{n}.png", n)
    for name in stray.split():
        if name.endswith(".png"):
            png(place / name)
        elif name.endswith(".parquet"):
            dataset().to_parquet(place / name)
        else:
            (place / name).write_bytes(b"%PDF-1.4")
    loaded = load_source(place)
    assert loaded.features["label"].names == ["cat", "dog"]
    assert values(loaded) == [(label, n) for label in range(2) for n in range(3)]
    if "png" in stray and not stray.startswith("."):
        assert stray.split()[0].rpartition("/")[2] in caplog.text


def test_a_stray_folder_of_images_decides_nothing(place, images):
    png(images / "plots" / "loss.png")
    assert load_source(images, "train").features["label"].names == ["golf ball", "tench", "test tube"]
    for n in range(4):
        png(place / "loose" / f"{n}.png")
    png(place / "loose" / "thumbnails" / "0.png")
    assert load_source(place / "loose").column_names == ["image"]


def test_folders_that_are_links_are_read_and_may_lead_back(place):
    for name in ("pets/cat", "pets/dog", "elsewhere"):
        png(place / name / "0.png")
    (place / "pets" / "eel").symlink_to(place / "elsewhere")
    (place / "elsewhere" / "back").symlink_to(place / "pets")
    found = load_source(place / "pets")
    assert found.features["label"].names == ["cat", "dog", "eel"]
    assert found["label"] == [0, 1, 2]


def test_pictures_of_formats_that_are_not_read_are_named(place, caplog):
    png(place / "cat" / "0.png")
    png(place / "dog" / "0.png")
    (place / "cat" / "1.avif").write_bytes(b"")
    assert len(load_source(place)) == 2
    assert "1 pictures are in formats that are not read (1.avif)" in caplog.text
    (place / "alone").mkdir()
    (place / "cat" / "1.avif").rename(place / "alone" / "1.avif")
    with pytest.raises(ValueError, match=r"not read \(1\.avif\): convert them"):
        load_source(place / "alone")


@pytest.mark.parametrize("head", ["title: Pets: cats and dogs", "- a list", "\tx: 1"])
def test_a_readme_that_is_no_yaml_is_named(place, caplog, head):
    for name in ("cat", "dog"):
        png(place / "images" / name / "0.png")
    (place / "images" / "README.md").write_text(f"---\n{head}\n---\n")
    assert len(load_source(place / "images")) == 2
    assert "no YAML" in caplog.text
    (place / "rows").mkdir()
    dataset().to_parquet(place / "rows" / "train.parquet")
    (place / "images" / "README.md").rename(place / "rows" / "README.md")
    with pytest.raises(ValueError, match=r"rows/README.md' has a head that is no YAML"):
        load_source(place / "rows")


def test_images_too_deep_are_named(place):
    for label in ("cat", "dog"):
        png(place / label / "2020" / "0.png")
    with pytest.raises(ValueError, match=r"cat/2020/0\.png.*neither CLASS/IMAGE nor SPLIT/CLASS/IMAGE"):
        load_source(place)


def test_pictures_beside_shards_are_named_where_they_would_be_read_instead(place):
    dataset().to_parquet(place / "0000.parquet")
    for n in range(3):
        png(place / f"preview{n}.png")
    with pytest.raises(ValueError, match=r"0000\.parquet and more pictures beside it \(preview0\.png"):
        load_source(place)
    assert values(load_source(place / "0000.parquet")) == values(dataset())


def test_class_names_in_a_string_column_are_labels(place):
    for n in range(3):
        png(place / f"{n}.png", n)
    (place / "metadata.csv").write_text("file_name,label,kind\n0.png,dog,x\n1.png,cat,y\n2.png,dog,x\n")
    loaded = load_source(place)
    assert loaded.features["label"].names == ["cat", "dog"]
    assert values(loaded) == [(0, 1), (1, 0), (1, 2)]
    assert load_source(place, label_column="kind").features["kind"].names == ["x", "y"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("named", [".", "train.parquet", "as [links]"])
def test_every_split_has_the_label_names_of_its_own_files(tmp_path, named, streaming):
    place = tmp_path / ("as [links]" if "[" in named else "data")
    place.mkdir()
    own = {"train": ["cat", "dog", "fox"], "test": ["dog", "fox"]}
    for split, names in own.items():
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
        Dataset.from_dict({"image": dataset(2)["image"], "label": [0, 1]}, features).to_parquet(
            place / f"{split}.parquet"
        )
    for split, names in own.items():
        data = load_source(place / named if named.endswith(".parquet") else place, split=split, streaming=streaming)
        source = inspect_images(data)
        assert list(source.label_names) == names, split
    wrong = place / "train-00001-of-00002.parquet"
    (place / "test.parquet").rename(wrong)
    (place / "train.parquet").rename(place / "train-00000-of-00002.parquet")
    with pytest.raises(InvalidValueError, match="one number would be two classes"):
        load_source(place, split="train", streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_so_has_every_split_of_arrow_files(tmp_path, streaming):
    for split, names in (("train", ["cat", "dog", "fox"]), ("test", ["dog", "fox"])):
        features = Features({"image": ImageFeature(), "label": ClassLabel(names=names)})
        Dataset.from_dict({"image": dataset(2)["image"], "label": [0, 1]}, features).save_to_disk(tmp_path / split)
        (tmp_path / "data").mkdir(exist_ok=True)
        next((tmp_path / split).glob("*.arrow")).rename(tmp_path / "data" / f"{split}.arrow")
    for split, names in (("train", ["cat", "dog", "fox"]), ("test", ["dog", "fox"])):
        source = inspect_images(load_source(tmp_path / "data", split=split, streaming=streaming))
        assert list(source.label_names) == names, split


@pytest.mark.parametrize("kind", ["parquet", "saved", "images"])
def test_a_configuration_of_what_has_none_is_an_error(tmp_path, images, kind):
    dataset().to_parquet(tmp_path / "one.parquet")
    dataset().save_to_disk(tmp_path / "saved")
    spec = {"parquet": tmp_path / "one.parquet", "saved": tmp_path / "saved", "images": images / "train"}[kind]
    with pytest.raises(ValueError, match="config_name='fold1'.*no configurations"):
        load_source(spec, config_name="fold1")


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (["test tube", "cat", "dog"], None),
        (["test", "val", "cat"], None),
        (["train", "val", "docs"], ["train", "val"]),
        (["my_train", "my_test"], ["my_test", "my_train"]),
        (["train2017", "val2017"], ["train2017", "val2017"]),
    ],
)
def test_which_folders_above_others_are_splits(tmp_path, folders, splits):
    """CLASS/YEAR/IMAGE and SPLIT/CLASS/IMAGE look alike; a class may be called as splits are."""
    for number, name in enumerate(folders):
        (tmp_path / name / "inside").mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / name / "inside" / "0.png")
    if splits is None:
        with pytest.raises(ValueError, match="neither CLASS/IMAGE nor SPLIT/CLASS/IMAGE"):
            load_source(tmp_path)
    else:
        with pytest.raises(ValueError, match=f"several splits: {', '.join(map(repr, splits))}\\."):
            load_source(tmp_path)
    assert len(load_source(tmp_path, folders[0])) == 1, "whatever the user calls a split is one"


def test_classes_that_are_called_as_splits_are(tmp_path):
    for number, name in enumerate(["test", "val", "cat"]):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / name / "0.png")
    assert load_source(tmp_path).features["label"].names == ["cat", "test", "val"]


@pytest.mark.parametrize("folder", ["plain", "pets [v2]"])
@pytest.mark.parametrize(
    ("files", "told"),
    [
        (("train", "test"), None),
        (("train", "train_rest", "test"), "read as split 'train': train.parquet, train_rest.parquet."),
        (("train-00000-of-00002", "train-00001-of-00002"), None),
        (("train-1", "train-2"), None),
        (
            ("train-00000-of-00003", "train-00002-of-00003"),
            "train-00000-of-00003.parquet, train-00002-of-00003.parquet.",
        ),
        (("train", "test", "more"), "read as split 'train': train.parquet. Not read, as no split: more.parquet."),
    ],
)
def test_which_files_are_a_split_is_said_where_there_are_several_or_some_are_none(
    tmp_path, caplog, folder, files, told
):
    place = tmp_path / folder
    place.mkdir()
    for number, name in enumerate(files):
        make_dataset([0, 1] * (number + 1)).to_parquet(place / f"{name}.parquet")
    rows = load_source(place, "train")
    read = [
        number
        for number, name in enumerate(files)
        if (f"{name}.parquet" in told.split(" Not")[0] if told else name.startswith("train"))
    ]
    assert len(rows) == sum(2 * (number + 1) for number in read), "what is said is what is read"
    said = [record.getMessage() for record in caplog.records if record.name == "hf_kd.data.read_files"]
    assert len(said) == (told is not None)
    assert told is None or told in said[0]
    names = [f"{files[number]}.parquet" for number in read]
    part = rows.filter(lambda label: label == 1, input_columns="label").shuffle(seed=0).select(range(1))
    for data in (rows, part):
        assert files_of(data) == {"count": len(names), "names": sorted(names)}, "a part of it is of the same files"


@pytest.mark.parametrize(
    ("named", "split", "there", "read"),
    [
        ("train", "test", ["train", "train_rest", "test"], ["test"]),
        ("train_rest", "train", ["train", "train_rest", "test"], ["train_rest"]),
        ("train_rest", "test", ["train", "train_rest", "test"], ["test"]),
        ("pets", "train", ["pets", "test"], ["pets"]),
        ("pets", "test", ["pets", "test", "other_test"], ["test"]),
        ("pets_train", "test", ["pets_train", "pets_test", "other_test"], ["pets_test"]),
        ("train-00000-of-00002", "test", ["train-00000-of-00002", "train-00001-of-00002",
                                          "test-00000-of-00002", "test-00001-of-00002"],
         ["test-00000-of-00002", "test-00001-of-00002"]),
        ("val", "validation", ["val", "train"], ["val"]),
        ("train", "trainval", ["train", "trainval"], ["trainval"]),
        ("training", "train", ["training", "test"], ["training"]),
    ],
)  # fmt: skip
def test_of_a_file_that_is_named_the_other_split_is_the_one_beside_it(tmp_path, caplog, named, split, there, read):
    for number, name in enumerate(there):
        make_dataset([number]).to_parquet(tmp_path / f"{name}.parquet")
    rows = load_source(tmp_path / f"{named}.parquet", split)
    assert rows["label"] == [there.index(name) for name in read]
    said = [record.getMessage() for record in caplog.records if record.name == "hf_kd.data.read_files"]
    assert len(said) == (read != [named]), "what is read is said where it is another file than the one named"
    assert all(f"{name}.parquet" in said[0] for name in read if said)


@pytest.mark.parametrize(
    ("named", "split", "there", "told"),
    [
        ("train", "test", [], r"there is no test.parquet beside it.*train.parquet and test.parquet.*split=..."),
        ("pets_train", "test", ["test", "pets_test"], "several could be: pets_test.parquet, test.parquet"),
        ("test", "train", ["train"], "is the split 'test', as its name says.*split='test'"),
        ("train", "trani", ["test"], "Did you mean 'train'"),
    ],
)
def test_of_a_file_that_is_named_no_other_split_is_guessed(tmp_path, named, split, there, told):
    for name in (named, *there):
        make_dataset([0]).to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match=told):
        load_source(tmp_path / f"{named}.parquet", split)


def test_files_are_named_from_the_folder_that_was_given_and_of_many_two(tmp_path):
    rows = make_dataset([0, 1] * 4)
    (tmp_path / "pets" / "data").mkdir(parents=True)
    for number in range(12):
        rows.to_parquet(tmp_path / "pets" / "data" / f"train-{number:05d}-of-00012.parquet")
    found = files_of(load_source(tmp_path / "pets", "train"))
    assert found["count"] == 12
    assert found["names"] == [f"data/train-{number:05d}-of-00012.parquet" for number in (0, 11)]
    one = tmp_path / "pets" / "data" / "train-00003-of-00012.parquet"
    assert files_of(load_source(one)) == {"count": 1, "names": [one.name]}
    assert files_of(load_source(tmp_path / "pets", "train", streaming=True)) == found
    rows.save_to_disk(tmp_path / "saved")
    assert files_of(load_source(tmp_path / "saved"))["names"] == ["data-00000-of-00001.arrow"]


def test_names_of_pictures_and_places_are_in_no_list_of_files(tmp_path):
    for number, name in enumerate(("ann", "bob", "bob")):
        png(tmp_path / "pets" / name / f"{number}.png")
    assert files_of(load_source(tmp_path / "pets")) is None
    make_dataset([0, 1]).to_parquet(tmp_path / "train.parquet")
    theirs = load_dataset("parquet", data_files=str(tmp_path / "train.parquet"), split="train")
    assert files_of(theirs) is None
    theirs.info.download_checksums = {str(tmp_path / "train.parquet"): {"num_bytes": 1, "checksum": None}}
    assert files_of(theirs) is None
    assert files_of([1, 2]) is None


def cut_short(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    "kind", ["shards", "file", "no parquet", "saved", "state of saved", "no rows", "no rows saved"]
)
def test_files_that_are_damaged_or_hold_nothing_are_said_of_the_place(tmp_path, kind):
    """Arrow and `datasets` name neither, and some of what they raise is no error of a value."""
    place, data = tmp_path / "pets", dataset(0 if kind.startswith("no rows") else 6)
    if "saved" in kind:
        data.save_to_disk(place)
    else:
        place.mkdir()
        data.to_parquet(place / "train.parquet")
    if kind in ("shards", "file"):
        cut_short(place / "train.parquet")
    if kind == "no parquet":
        (place / "train.parquet").write_text("<html>")
    for file in place.glob({"saved": "*.arrow", "state of saved": "state.json"}.get(kind, "-")):
        cut_short(file)
    named = place / "train.parquet" if kind == "file" else place
    told = "it has no rows. " if kind.startswith("no rows") else ""
    with pytest.raises(InvalidValueError, match=re.escape(f"{str(named)!r} cannot be read as a data set: {told}")):
        load_source(named, "train")


def test_a_saved_split_without_rows_is_named(tmp_path):
    DatasetDict({"train": dataset(6), "validation": dataset(0)}).save_to_disk(tmp_path / "pets")
    with pytest.raises(InvalidValueError, match="its split 'validation' has no rows"):
        load_source(tmp_path / "pets", "train")
    assert len(load_source(tmp_path / "pets" / "train")) == 6, "as is said"


def test_what_the_system_refuses_is_not_said_to_be_damaged(tmp_path, monkeypatch):
    dataset().save_to_disk(tmp_path / "pets")

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hf_kd.data.load.load_from_disk", full)
    with pytest.raises(OSError, match="No space left") as refused:
        load_source(tmp_path / "pets")
    assert refused.type is OSError
