"""Fewer images of a data set: as many as asked for, every class in its share, the same each time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from torch.utils.data import DataLoader

from hf_kd import ReadOptions
from hf_kd.data.draw import Limited, drawn, stratified_rows
from hf_kd.data.image_source import inspect_images
from hf_kd.data.loader import RowDataset
from hf_kd.errors import InvalidValueError, UnreadableImageError
from tests.helpers.small import make_dataset, picture


@pytest.mark.parametrize("seed", range(20))
def test_as_many_as_asked_for_and_every_class_in_its_share(seed):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(7), rng.integers(1, 200, 7))
    limit = int(rng.integers(7, len(labels)))
    least = int(rng.integers(1, 1 + limit // 7))
    sure = stratified_rows(labels, limit, least=least)
    assert len(set(sure.tolist())) == limit
    assert all((labels[sure] == c).sum() >= min(least, (labels == c).sum()) for c in range(7))
    rows = stratified_rows(labels, limit)
    assert len(set(rows.tolist())) == limit
    assert (np.diff(rows) > 0).all()
    share = limit / len(labels)
    for label in range(7):
        wanted, got = share * (labels == label).sum(), (labels[rows] == label).sum()
        assert got >= 1
        assert got - wanted < 1 or got == 1
    assert (rows == stratified_rows(labels, limit)).all()


def test_lists_and_data_sets_are_drawn_from_and_streams_are_not():
    data = make_dataset([0, 1, 2, 3, 4] * 6)
    part = drawn(inspect_images(data), 10)
    assert sorted(part.source["label"]) == sorted([0, 1, 2, 3, 4] * 2)
    assert part.drawn_of == 30
    images = [row["image"] for row in data]
    assert len(drawn(inspect_images(images), 7).source) == 7, "without labels, any rows"
    assert drawn(inspect_images(data), 30).drawn_of is None, "all there are is no sample"
    with pytest.raises(InvalidValueError, match="a stream has none to choose from"):
        drawn(inspect_images(data.to_iterable_dataset()), 3)
    with pytest.raises(InvalidValueError, match="a loader has none"):
        drawn(inspect_images(DataLoader([{"pixel_values": torch.zeros(3, 4, 4)}])), 1)
    with pytest.raises(InvalidValueError, match="at least 5"):
        drawn(inspect_images(data), 4)


@pytest.mark.parametrize("limit", [0, -1, 2.5])
def test_a_limit_is_a_number_of_images(limit):
    with pytest.raises(InvalidValueError, match="limit_test="):
        ReadOptions(limit_test=limit)


@pytest.mark.parametrize("kind", ["pairs", "dataset"])
def test_an_image_that_cannot_be_read_is_named_by_its_row_in_the_whole(kind):
    bad = int(stratified_rows([0] * 100, 10)[-1])
    images = [{"bytes": b"broken" if n == bad else picture(0, n)._repr_png_(), "path": None} for n in range(100)]
    rows = [{"image": image, "label": 0} for image in images]
    if kind == "dataset":
        rows = Dataset.from_list(rows, features=Features({"image": Image(), "label": Value("int64")}))
    read = RowDataset(drawn(inspect_images(rows), 10))
    with pytest.raises(UnreadableImageError, match=f"row {bad} cannot be read"):
        [read[n] for n in range(10)]
    (error,) = [row for row in read.__getitems__(range(10)) if isinstance(row, UnreadableImageError)]
    assert error.row == bad


def test_what_is_drawn_without_shares_says_of_how_many():
    few = [(np.zeros((4, 4, 3), np.uint8), label) for label in (0, 1, 2)]
    found = Limited(few, 2).drawn(inspect_images(few))
    assert (len(found.source), found.drawn_of) == (2, 3)
    assert [label for _, label in found.source] == list(found.rows)
    assert Limited(few, 3).drawn(inspect_images(few)).drawn_of is None
