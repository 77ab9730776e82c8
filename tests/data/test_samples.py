"""Samples in any order: their inputs are batches of one size, and every process can train on each."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch

from hf_kd.data import loader, samples
from hf_kd.data.image_source import inspect_images
from hf_kd.data.preprocess import ImagePreprocessor
from hf_kd.data.samples import Samples, consecutive, one_batch
from hf_kd.errors import InvalidValueError
from tests.conftest import image_processor
from tests.helpers.small import make_dataset


def test_inputs_of_different_sizes_are_refused_in_words():
    rows = [(torch.zeros(3, 8, side), 0) for side in (8, 9)]
    with pytest.raises(InvalidValueError, match=r"\(3, 8, 8\) and \(3, 8, 9\)"):
        Samples.read(inspect_images(rows), None, batch_size=1)
    assert one_batch([torch.zeros(2, 3), torch.zeros(1, 3)]).shape == (3, 3)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_no_process_gets_a_single_sample_where_batches_are_larger(batch_size, parts):
    """BatchNorm cannot train on one value, and the process that fails leaves the others waiting."""
    for n in range(1, 40):
        order = torch.randperm(n)
        chunks = consecutive(order, batch_size, parts)
        assert torch.equal(torch.cat(chunks), order), "all of them, as they stand"
        if batch_size >= 2 * parts and n >= batch_size:
            assert all(len(chunk[part::parts]) > 1 for chunk in chunks for part in range(parts))
        assert all(len(chunk) == batch_size for chunk in chunks[:-1])


def test_labels_of_a_set_that_memory_does_not_hold_are_read_without_its_images(monkeypatch):
    decoded = []
    read = loader.small_to_rgb
    monkeypatch.setattr(
        loader, "small_to_rgb", lambda value, row, *rest: decoded.append(row) or read(value, row, *rest)
    )
    data, prepare = make_dataset([0, 1, 2, 3, 4] * 4), ImagePreprocessor(image_processor())
    found = Samples.read(inspect_images(data), prepare, batch_size=2, num_workers=0, cache_bytes=1)
    assert found.labels.tolist() == data["label"][:]
    assert decoded == [0, 1], "those of the batch that showed how large the set is"


def test_a_set_is_kept_in_memory_up_to_a_share_of_what_is_free(monkeypatch):
    data, prepare = make_dataset([0, 1, 2, 3, 4] * 4), ImagePreprocessor(image_processor())

    def read(free, processes=1):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
        monkeypatch.setattr(samples, "process_state", lambda: SimpleNamespace(num_processes=processes))
        return Samples.read(inspect_images(data), prepare, batch_size=8, num_workers=0)

    kept = read(1 << 50)
    size = sum(value.nbytes for value in kept._cached.values())
    few = read(4 * size - 4)
    assert few._cached is None, "put together, they would take half of what is free"
    assert read(4 * size)._cached is not None
    assert read(4 * size, processes=2)._cached is None
    for one, other in zip(kept.batches(8), few.batches(8), strict=True):
        assert torch.equal(one.labels, other.labels)
        assert all(torch.equal(value, other.inputs[name]) for name, value in one.inputs.items())
    monkeypatch.setattr(samples, "CACHE_BYTES", size - 1)
    assert read(1 << 50)._cached is None, "however much is free"
    with pytest.raises(InvalidValueError, match="as many as are kept in memory here.*Pass a datasets.Dataset"):
        Samples.read(inspect_images(data.to_iterable_dataset()), prepare, batch_size=8)


def test_a_set_of_one_sample_more_than_a_batch_is_one_batch():
    found = Samples(torch.arange(17), {"pixel_values": torch.randn(17, 3)})
    assert [len(batch) for batch in found.batches(16)] == [17]
    assert [batch.labels.tolist() for batch in found.batches(16, part=1, parts=2)] == [list(range(1, 17, 2))]
