import os
from pathlib import Path

import pytest
import torch

from hf_kd import ErasedModel
from hf_kd.bench.store import Store
from hf_kd.data import paths
from hf_kd.data.load import load_source
from hf_kd.data.paths import (
    local_path,
    looks_like_path,
    refuse_missing_data,
    refuse_missing_model,
    refuse_no_model,
    with_revision,
)
from hf_kd.errors import CheckpointError, InvalidValueError, MissingFileError
from hf_kd.methods.unlearning.resume import save_progress, save_scan
from hf_kd.model import onnx_export

LAYER = torch.nn.Linear(2, 2)
PATHS = ("./nope", "../nope", "/nope", "~/nope", "a/b/c", r"a\b", "there/nope")
"""What can only be meant as a path, beside a folder called there."""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cut_short(folder: Path) -> None:
    (folder / "results.jsonl").write_bytes(b'{"key": "a", "seconds": {}, "status": "failed", "error": "x"}\n{"ke')
    Store(folder)


def trained(folder: Path) -> None:
    save_progress(folder, LAYER, LAYER.state_dict(), torch.optim.SGD(LAYER.parameters(), 0.1), {})


@pytest.mark.parametrize(
    "write",
    [
        trained,
        cut_short,
        lambda folder: save_scan(folder, {"tried": []}),
        lambda folder: onnx_export._write(b"model", folder / "model.onnx"),
    ],
)
def test_what_takes_the_place_of_a_file_is_on_disk_before(place, monkeypatch, write):
    on_disk, replaced = {}, []
    sync, replace = os.fsync, os.replace

    def syncs(handle):
        sync(handle)
        on_disk[os.fstat(handle).st_ino] = os.fstat(handle).st_size

    def replaces(written, target):
        there = os.stat(written)
        assert on_disk.get(there.st_ino) == there.st_size, f"{written} was renamed before it was on disk"
        replaced.append(target)
        replace(written, target)

    monkeypatch.setattr(os, "fsync", syncs)
    monkeypatch.setattr(os, "replace", replaces)
    monkeypatch.setattr(Path, "replace", replaces)
    write(place / "there")
    assert len(replaced) == 1
    assert Path(replaced[0]).stat().st_size


@pytest.mark.parametrize("name", [*PATHS, "nope", "my model"])
def test_a_model_that_can_only_be_a_path_and_is_not_there(name):
    with pytest.raises(MissingFileError, match="There is no folder"):
        refuse_missing_model(name)


def test_a_name_of_the_hub_is_left_to_the_hub(monkeypatch):
    refuse_missing_model("user/name")
    monkeypatch.setattr(paths, "try_to_load_from_cache", lambda name, file: f"/cache/{name}/{file}")
    refuse_missing_model("nope")
    for name in ("user/name", "mnist"):
        refuse_missing_data(name)


@pytest.mark.parametrize("name", [*PATHS[:-1], "nope.parquet"])
def test_data_that_can_only_be_a_path_and_is_not_there(name):
    with pytest.raises(MissingFileError, match="There is no file or folder"):
        refuse_missing_data(name)
    assert looks_like_path(name) or name.endswith(".parquet")


def test_what_is_there_is_left_alone_and_what_is_meant_is_named(place):
    refuse_missing_model("there")
    refuse_missing_data("there")
    for refuse in (refuse_missing_model, refuse_missing_data):
        with pytest.raises(MissingFileError, match=r"Did you mean '.*there'\?"):
            refuse("./there_" if refuse is refuse_missing_data else "there_")


@pytest.mark.parametrize("file", ["config.json", "adapter_config.json", "eraser_config.json"])
def test_a_folder_without_a_model(place, file):
    with pytest.raises(CheckpointError, match="not a model to load"):
        refuse_no_model("there")
    (place / "there" / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"Weights alone \(model\.safetensors\)"):
        refuse_no_model("there")
    (place / "there" / file).touch()
    refuse_no_model("there")
    refuse_no_model("user/name")


def test_a_revision_follows_the_name_of_a_repository_and_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my@model").mkdir()
    assert with_revision("user/m@refs/pr/1", {"token": "t"}) == ("user/m", {"token": "t", "revision": "refs/pr/1"})
    assert with_revision("user/m@v1", {"revision": "v1"}) == ("user/m", {"revision": "v1"})
    for name in ("user/m", "my@model", "./nowhere@v1", "/a/b@v1", str(tmp_path / "my@model")):
        assert with_revision(name, {"revision": "v2"}) == (name, {"revision": "v2"})
    with pytest.raises(InvalidValueError, match="give one of them"):
        with_revision("user/m@v1", {"revision": "v2"})


IMPOSSIBLE = ("", "~nosuchuser/x", "a" * 300, "nowhere/" + "a" * 300, "there/" * 2000, "a\0b")
"""Names that no file or folder can have."""


@pytest.mark.parametrize("name", IMPOSSIBLE, ids=lambda name: repr(name[:12]))
def test_a_name_that_nothing_can_have_is_refused_wherever_one_is_given(name):
    for use in (local_path, refuse_missing_model, refuse_missing_data, load_source, ErasedModel.from_pretrained):
        with pytest.raises(InvalidValueError, match="name|home folder") as refused:
            use(name)
        assert len(str(refused.value)) < 250


def test_a_path_begins_at_home_where_it_says_so(place, monkeypatch):
    monkeypatch.setenv("HOME", str(place))
    assert local_path("~/there").is_dir()
    assert local_path(Path("nope")) == Path("nope"), "there or not"
    for name in ("~", "~nosuchuser"):  # read by the command line first, then by what it calls
        assert local_path(local_path(f"./{name}")) == Path.cwd() / name


def test_a_place_that_is_not_there_is_named_whole(tmp_path):
    place = str(tmp_path / "/".join(["a-long-name"] * 20) / "the-end")
    for use in (refuse_missing_model, refuse_missing_data):
        with pytest.raises(MissingFileError, match=f"'{place}'"):
            use(place)
