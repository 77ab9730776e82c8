"""`hf-kd audit`."""

from __future__ import annotations

import errno
import json

import pytest

from tests.cli.runner import hf_kd
from tests.helpers.small import NAMES, make_dataset


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize(
    ("names", "labels", "more"),
    [
        (tuple(reversed(NAMES)), ("0", "1"), ()),
        (("elk", "hound", "cat", "bee", "ape"), ("elk", "hound"), ("--label-mapping", "hound=dog")),
    ],
)
def test_labels_that_count_as_retained_are_those_of_the_data_set_as_the_forgotten_ones_are(
    place, tmp_path, names, labels, more
):
    """Whatever the model calls them, and in whatever order it has them."""
    for split, count in (("train", 12), ("test", 6)):
        rows = [label for label in range(5) for _ in range(count + label)]
        make_dataset(rows, seed=count, names=names).to_parquet(tmp_path / f"{split}.parquet")
    asked = ["--forget-labels", labels[0], "--retain-labels", labels[1], *more]
    done = hf_kd("audit", place / "model", "--dataset", tmp_path, *asked, "--attacks", "linear", "--json")
    report = json.loads(done.stdout)
    assert report["forget_labels"] == [4]
    assert report["samples"] == {"D_f": 12, "D_r": 13, "D_ft": 6, "D_rt": 7}, "of the label with the id 1 in the data"


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("how", ["--json", "--summary"])
def test_a_report_that_cannot_be_written_is_shown_all_the_same(place, tmp_path, monkeypatch, how):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hf_kd.audit.report.RetentionReport.to_markdown", full)
    asked = ["--forget-labels", "cat", "--attacks", "linear", "--output", tmp_path / "report", how]
    done = hf_kd("audit", place / "model", "--dataset", place / "data", *asked, code=1)
    assert "the head answers" in done.stdout
    assert "No space is left to write" in done.stderr
    assert not (tmp_path / "report").exists()
