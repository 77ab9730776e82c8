"""A save that is killed anywhere leaves the model that was there or the new one, whole, and the next save tidies up."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal

import pytest
import torch
from huggingface_hub import ModelCard

from hf_kd import ErasedModel
from hf_kd.hub.card import BEGIN, END
from hf_kd.hub.document import document
from hf_kd.model import saving
from hf_kd.model.verify import verify
from tests.helpers.audited import LEAST, audited
from tests.helpers.small import make_dataset
from tests.model.test_erase import logits_of

STEPS = ("replace", "rename", "unlink", "link", "symlink", "mkdir", "rmdir", "remove")
SHARDS = {"max_shard_size": "10KB"}


@pytest.fixture
def models(vit, resnet, processor):
    """Two models that differ in everything: network, weights, eraser, records."""
    a = ErasedModel.from_model(vit, processor).erase(make_dataset([2] * 20), k=2, progress=False)
    b = ErasedModel.from_model(resnet, processor).erase(make_dataset([1] * 20), k=1, progress=False)
    return a, b


def killed_save(model, place, step: int, **options) -> bool:
    """Save in a process that is killed before its call number `step` that changes a folder; whether it came to an end."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def counted(real):
            def call(*args, **kwargs):
                nonlocal count
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1
                return real(*args, **kwargs)

            return call

        for name in STEPS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            model.save_pretrained(place, **options)
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), "the save failed by itself"
    return status == 0


def whole(place, old, new, pixels, **options) -> str:
    """Which of the two models is in the folder; fails for anything between."""
    found = ErasedModel.from_pretrained(place, **options)
    which = "old" if found.erasures == old.erasures else "new"
    expected = old if which == "old" else new
    assert found.erasures == expected.erasures
    assert type(found.inner) is type(expected.inner)
    assert torch.equal(logits_of(found, pixels), logits_of(expected, pixels))
    result = verify(place)
    assert result.ok, [check for check in result.checks if not check.ok]
    return which


def content(folder) -> dict[str, bytes]:
    """What a reader of the folder sees: the files it can open, and what is in them."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} if folder.is_dir() else {}


def left_over(place) -> list[str]:
    links = [path.name for path in place.iterdir() if path.is_symlink()] if place.is_dir() else []
    return [path.name for path in (*place.parent.glob(".*"), *place.glob(".*"))] + links


def states(model, place, monkeypatch, **options) -> list[pathlib.Path]:
    """Save, and copy all there is before every call that changes a folder: what a kill at that moment would leave."""
    copies: list[pathlib.Path] = []

    def copied(real):
        def call(*args, **kwargs):
            if not copying:
                copying.append(True)
                copies.append(place.parent.with_name(f"{place.parent.name}-{len(copies)}"))
                shutil.copytree(place.parent, copies[-1], symlinks=True)
                copying.clear()
            return real(*args, **kwargs)

        return call

    copying: list[bool] = []
    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, copied(getattr(os, name)))
        model.save_pretrained(place, **options)
    return [copy / place.name for copy in copies]


@pytest.mark.parametrize(
    ("first", "then"),
    [({}, {}), ({}, SHARDS), (SHARDS, {}), (SHARDS, {"max_shard_size": "25KB"}), ({}, {"variant": "fp16"})],
    ids=["single to single", "single to shards", "shards to single", "shards to other shards", "variant"],
)
def test_at_every_step_the_folder_reads_as_the_old_one_or_the_new(models, pixels, tmp_path, monkeypatch, first, then):
    a, b = models
    if "variant" in then:
        b = a
    place = tmp_path / "work" / "model"
    a.save_pretrained(place, **first)
    (place / "notes.txt").write_text("mine")
    old = content(place)
    found = states(b, place, monkeypatch, **then)
    new = content(place)
    assert whole(place, b, b, pixels) == "old"
    assert new["notes.txt"] == b"mine"
    assert not left_over(place)
    seen = [content(state) for state in found]
    changed = seen.index(new)
    assert 0 < changed < len(seen)
    assert all(state == old for state in seen[:changed])
    assert all(state == new for state in seen[changed:])
    for state, what in zip(found, seen, strict=True):
        with saving.atomic_directory(state):
            pass
        assert content(state) == what
        assert not left_over(state)


def test_on_its_way_into_a_new_folder_there_is_no_folder_or_the_model(models, tmp_path, monkeypatch):
    a, b = models
    place = tmp_path / "work" / "model"
    place.parent.mkdir()
    found = states(a, place, monkeypatch)
    new = content(place)
    assert all(content(state) in ({}, new) for state in found)
    assert not any(state.exists() and not content(state) for state in found)
    for state in found[::8]:
        b.save_pretrained(state)
        assert ErasedModel.from_pretrained(state).erasures == b.erasures
        assert not left_over(state)


@pytest.mark.parametrize("step", [4, 14, 24, 34])
def test_a_process_that_is_killed(models, pixels, tmp_path, step):
    a, b = models
    place = tmp_path / "work" / "model"
    a.save_pretrained(place)
    assert not killed_save(b, place, step)
    whole(place, a, b, pixels)
    b.save_pretrained(place)
    assert whole(place, a, b, pixels) == "new"
    assert not left_over(place)


def test_an_error_on_the_way_leaves_the_old_model(models, pixels, tmp_path, monkeypatch):
    a, b = models
    a.save_pretrained(tmp_path / "m")
    before = content(tmp_path / "m")
    real, left = os.replace, [3]

    def full(*args):
        left[0] -= 1
        if left[0] == 0:
            raise OSError("No space left on device")
        return real(*args)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        b.save_pretrained(tmp_path / "m")
    assert content(tmp_path / "m") == before
    assert not left_over(tmp_path / "m")


def test_an_interruption_while_links_become_files_leaves_the_new_model(models, pixels, tmp_path, monkeypatch):
    a, b = models
    a.save_pretrained(tmp_path / "m")

    def no_links(*args, **kwargs):
        raise OSError("Operation not permitted")

    def interrupted(source, target, *args, real=shutil.copy2, **kwargs):
        if pathlib.Path(target).name == "file":
            raise KeyboardInterrupt
        return real(source, target, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_links)
        patch.setattr(shutil, "copy2", interrupted)
        with pytest.raises(KeyboardInterrupt):
            b.save_pretrained(tmp_path / "m")
    assert whole(tmp_path / "m", a, b, pixels) == "new"
    a.save_pretrained(tmp_path / "m")
    assert whole(tmp_path / "m", a, b, pixels) == "old"
    assert not left_over(tmp_path / "m")


def test_a_save_whose_folder_was_tidied_away_before_it_had_the_lock_takes_another(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    real, left = os.mkdir, [1]

    def mkdir(path, *args, **kwargs):
        real(path, *args, **kwargs)
        if saving.MARK in str(path) and left[0]:
            left[0] -= 1
            saving.clean_up(tmp_path / "m")  # as another process does

    monkeypatch.setattr(os, "mkdir", mkdir)
    with saving.atomic_directory(tmp_path / "m") as folder:
        (folder / "notes.txt").write_text("mine")
    assert (tmp_path / "m" / "notes.txt").read_text() == "mine"
    assert not left_over(tmp_path / "m")


def test_without_symbolic_or_hard_links_the_save_still_happens(models, pixels, tmp_path, monkeypatch, caplog):
    a, b = models
    a.save_pretrained(tmp_path / "m", **SHARDS)

    def none(*args, **kwargs):  # a file system such as FAT
        raise OSError("Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    b.save_pretrained(tmp_path / "m")
    monkeypatch.setattr(os, "symlink", none)
    a.save_pretrained(tmp_path / "m", **SHARDS)
    assert "no symbolic links" in caplog.text
    assert whole(tmp_path / "m", a, b, pixels) == "old"


def test_the_folder_itself_stays_that_somebody_may_stand_in(models, tmp_path, monkeypatch):
    a, b = models
    a.save_pretrained(tmp_path / "m")
    number = (tmp_path / "m").stat().st_ino
    monkeypatch.chdir(tmp_path / "m")
    b.save_pretrained(".")
    assert pathlib.Path.cwd().stat().st_ino == number
    assert ErasedModel.from_pretrained(".").erasures == b.erasures


def test_a_save_at_work_is_not_tidied_away(models, tmp_path):
    a, b = models
    a.save_pretrained(tmp_path / "m")
    with saving.atomic_directory(tmp_path / "m") as folder:
        (folder / "notes.txt").write_text("late")
        b.save_pretrained(tmp_path / "m")
    assert (tmp_path / "m" / "notes.txt").read_text() == "late"
    assert ErasedModel.from_pretrained(tmp_path / "m").erasures == b.erasures


# What a save takes away


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_variants_and_a_users_own_weights_stay(models, pixels, tmp_path):
    a, _ = models
    mine = {"model-backup.safetensors", "other.safetensors", "model_old.safetensors", "my-00001-of-00002.safetensors"}
    (tmp_path / "m").mkdir()
    for name in mine:
        (tmp_path / "m" / name).write_bytes(b"mine")
    a.save_pretrained(tmp_path / "m", variant="fp16", **SHARDS)
    shards = {name for name in names(tmp_path / "m") if name.startswith("model.fp16-")}
    assert len(shards) > 1
    a.save_pretrained(tmp_path / "m")
    a.save_pretrained(tmp_path / "m", variant="int8")
    assert names(tmp_path / "m") >= mine | shards | {
        "model.safetensors.index.fp16.json",
        "model.safetensors",
        "model.int8.safetensors",
    }
    for variant in (None, "fp16", "int8"):
        assert torch.equal(
            logits_of(ErasedModel.from_pretrained(tmp_path / "m", variant=variant), pixels), logits_of(a, pixels)
        )
    assert verify(tmp_path / "m").ok
    a.save_pretrained(tmp_path / "m", variant="fp16")
    assert not shards & names(tmp_path / "m")
    assert {"model.safetensors", "model.int8.safetensors", "model.fp16.safetensors"} <= names(tmp_path / "m")


def test_another_model_is_no_variant_of_the_one_that_is_there(models, pixels, tmp_path):
    a, b = models
    a.save_pretrained(tmp_path / "m")
    with pytest.raises(ValueError, match="share one config.json"):
        b.save_pretrained(tmp_path / "m", variant="fp16")
    assert whole(tmp_path / "m", a, b, pixels) == "old"
    assert [name for name in names(tmp_path / "m") if name.startswith(".")] == []


def test_another_name_of_the_processor_does_not_answer_for_the_new_model(models, tmp_path):
    a, b = models
    a.save_pretrained(tmp_path / "m")
    stored = json.loads((tmp_path / "m" / "preprocessor_config.json").read_text())
    (tmp_path / "m" / "preprocessor_config.json").unlink()
    (tmp_path / "m" / "processor_config.json").write_text(
        json.dumps({"image_processor": stored | {"image_mean": [0] * 3}})
    )
    assert list(ErasedModel.from_pretrained(tmp_path / "m").processor.image_mean) == [0] * 3
    b.save_pretrained(tmp_path / "m")
    assert ErasedModel.from_pretrained(tmp_path / "m").processor.to_dict() == b.processor.to_dict()


@pytest.mark.usefixtures("no_figures")
def test_of_the_card_of_the_model_before_only_a_persons_text_stays(models, tmp_path):
    a, _ = models
    (tmp_path / "README.md").write_text("---\ntags:\n- mine\n---\n\n# Cats\n\nMine.\n")
    a.save_pretrained(tmp_path)
    document(a, tmp_path, report=audited(context={}, **LEAST))
    assert "machine-unlearning" in (tmp_path / "README.md").read_text()
    a.reset().save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "Mine." in text
    assert ModelCard(text).data.tags == ["mine"]
    assert not any(word in text for word in (BEGIN, "unlearning", "orget", "erased", "model"))
    (tmp_path / "README.md").write_text(f"---\n{{[\n---\n{BEGIN}\n{END}\n")
    a.save_pretrained(tmp_path)
    assert BEGIN in (tmp_path / "README.md").read_text(), "metadata that cannot be read cost no save"


def test_the_receipt_of_the_model_before_does_not_stay(models, tmp_path):
    a, b = models
    a.save_pretrained(tmp_path / "m")
    b.reset().save_pretrained(tmp_path / "m")
    assert "erasures.json" not in names(tmp_path / "m")
