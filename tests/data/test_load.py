"""Everything a command line can name on disk opens to the same rows."""

from __future__ import annotations

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageFeature
from PIL import Image

from hf_kd.data.load import filter_by_labels, load_source


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
        data.shard(2, i).to_parquet(folder / "data" / f"held-out-0000{i}-of-00002.parquet")
    for file in ("train.parquet", "test.parquet"):
        (folder / file).unlink()
    loaded = load_source(folder, "held-out", streaming=streaming)
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


def test_what_is_not_there_says_so(tmp_path, monkeypatch):
    for spec in (tmp_path / "nope", "./nope", "a/b/c", "nope.parquet"):
        with pytest.raises(FileNotFoundError, match="There is no file or folder"):
            load_source(spec)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no data set"):
        load_source(tmp_path / "empty")
    (tmp_path / "list.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"no \.parquet file"):
        load_source(tmp_path / "list.csv")


@pytest.mark.parametrize("split", [None, "train"])
def test_no_network_is_told_from_no_data_set(monkeypatch, split):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match=r"'user/no-such-pets' could not be fetched.*local folder"):
        load_source("user/no-such-pets", split)


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
