"""Saved and loaded, an erased model is the same model; a damaged one does not load, and never as an un-erased model."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForImageClassification,
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    pipeline,
)

from hf_kd import ErasedModel
from hf_kd.errors import InvalidValueError, OutputError
from hf_kd.model.configuration import ErasedConfig
from hf_kd.model.saving import atomic_directory
from hf_kd.model.stored_eraser import read_eraser
from hf_kd.model.verify import verify
from tests.conftest import image_processor, small_resnet, small_vit
from tests.helpers import processes
from tests.helpers.small import NAMES, make_dataset, picture
from tests.helpers.zoo import build
from tests.model.test_erase import logits_of


@pytest.fixture(scope="module", params=[small_vit, small_resnet], ids=["vit", "resnet"])
def once(request, tmp_path_factory):
    """An erased model and the folder it was saved to, of which each test gets a copy."""
    model = ErasedModel.from_model(copy.deepcopy(request.param()), image_processor())
    model.erase(make_dataset([2] * 20), k=2, progress=False)
    folder = tmp_path_factory.mktemp("saving") / "erased"
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture
def erased(once):
    return copy.deepcopy(once[0])


@pytest.fixture
def saved(once, tmp_path):
    return shutil.copytree(once[1], tmp_path / "erased")


@pytest.mark.parametrize("loader", [ErasedModel, AutoModelForImageClassification])
def test_logits_and_features_are_equal_bit_for_bit(erased, saved, pixels, loader):
    again = loader.from_pretrained(saved)
    assert isinstance(again, ErasedModel)
    assert not again.training
    assert torch.equal(logits_of(again, pixels), logits_of(erased, pixels))
    assert torch.equal(again.pooled_features(pixels), erased.pooled_features(pixels))
    assert again.erasures == erased.erasures
    assert again.taps == erased.taps
    assert again.processor.to_dict() == erased.processor.to_dict()


def test_esc_t_and_compositions_come_back_too(model, processor, forget, pixels, tmp_path):
    erased = ErasedModel.from_model(model, processor).erase(forget, "esc-t", lr=3.0, threshold=0.999, progress=False)
    erased.erase(forget, k=1, progress=False)
    erased.save_pretrained(tmp_path)
    again = ErasedModel.from_pretrained(tmp_path)
    assert torch.equal(logits_of(again, pixels), logits_of(erased, pixels))
    again.erase(forget, k=1, progress=False)
    again.save_pretrained(tmp_path)
    assert torch.equal(logits_of(ErasedModel.from_pretrained(tmp_path), pixels), logits_of(again, pixels))


def test_loading_in_another_precision_keeps_the_directions(erased, saved):
    again = ErasedModel.from_pretrained(saved, dtype=torch.bfloat16)
    assert next(again.inner.parameters()).dtype == torch.bfloat16
    assert torch.equal(again.sites[0].eraser.directions, erased.sites[0].eraser.directions)


def test_a_stock_checkpoint_and_a_wrapped_model_before_erasing(model, processor, pixels, tmp_path):
    model.save_pretrained(tmp_path / "stock")
    processor.save_pretrained(tmp_path / "stock")
    loaded = ErasedModel.from_pretrained(tmp_path / "stock")
    assert type(loaded.inner) is type(model)
    assert torch.equal(logits_of(loaded, pixels), logits_of(model, pixels))
    assert loaded.processor.size == processor.size
    loaded.save_pretrained(tmp_path / "wrapped")
    assert torch.equal(logits_of(ErasedModel.from_pretrained(tmp_path / "wrapped"), pixels), logits_of(model, pixels))


def test_pipelines_answer_like_the_model(erased, saved):
    image = picture(2, 99)
    from_folder = pipeline("image-classification", model=str(saved))(image)
    from_object = pipeline("image-classification", model=erased, image_processor=erased.processor)(image)
    assert from_folder == from_object
    logits = logits_of(erased, erased.processor(image, return_tensors="pt")["pixel_values"])
    assert from_folder[0]["label"] == erased.config.id2label[int(logits.argmax())]


def test_the_attention_of_the_inner_model_is_kept(vit, processor, forget, tmp_path):
    before = vit.config._attn_implementation
    erased = ErasedModel.from_model(vit, processor).erase(forget, k=1, progress=False)
    assert vit.config._attn_implementation == before
    erased.save_pretrained(tmp_path)
    assert ErasedModel.from_pretrained(tmp_path).inner.config._attn_implementation == before
    eager = ErasedModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.inner.config._attn_implementation == "eager"


# Damaged checkpoints.


def edit_weights(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_config(folder: Path, change) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


KEY = "sites.0.eraser.directions"


def test_a_missing_eraser_raises(saved):
    edit_weights(saved, lambda tensors: tensors.pop(KEY))
    for loader in (ErasedModel, AutoModelForImageClassification):
        with pytest.raises(ValueError, match="lacks the eraser"):
            loader.from_pretrained(saved)


def test_an_eraser_the_configuration_does_not_know_raises(saved):
    edit_config(saved, lambda config: config.update(erasers=[None]))
    with pytest.raises(ValueError, match="does not describe the erasers"):
        ErasedModel.from_pretrained(saved)


def test_records_without_any_eraser_raise(saved):
    edit_weights(saved, lambda tensors: tensors.pop(KEY))
    edit_config(saved, lambda config: config.update(erasers=[None]))
    with pytest.raises(ValueError, match="records erasures"):
        ErasedModel.from_pretrained(saved)


@pytest.mark.parametrize(
    "values",
    [torch.zeros_like, lambda t: torch.full_like(t, float("nan")), lambda t: t * 2],
    ids=["zero", "nan", "scaled"],
)
def test_an_eraser_of_wrong_values_raises(saved, values):
    edit_weights(saved, lambda tensors: tensors.update({KEY: values(tensors[KEY])}))
    with pytest.raises(ValueError, match="not loaded or is damaged"):
        ErasedModel.from_pretrained(saved)


def test_an_eraser_of_another_width_raises(saved):
    edit_weights(saved, lambda tensors: tensors.update({KEY: torch.zeros(7, 2)}))
    with pytest.raises(ValueError, match="fit its configuration|refused"):
        ErasedModel.from_pretrained(saved)
    with pytest.raises(ValueError, match="fit its configuration|refused"):
        ErasedModel.from_pretrained(saved, ignore_mismatched_sizes=True)


def test_missing_weights_of_the_inner_model_raise(saved):
    edit_weights(saved, lambda tensors: [tensors.pop(k) for k in list(tensors) if "classifier" in k])
    with pytest.raises(ValueError, match="lacks"):
        ErasedModel.from_pretrained(saved)


def test_an_unknown_kind_of_eraser_names_the_way_out(saved):
    edit_config(saved, lambda config: config["erasers"][0].update(kind="from-elsewhere"))
    with pytest.raises(ValueError, match="Install the package"):
        ErasedModel.from_pretrained(saved)


@pytest.mark.parametrize("keep", [0.5, 0.999, 4], ids=["half", "all but a few bytes", "four bytes"])
def test_truncated_weights_raise(saved, keep):
    path = saved / "model.safetensors"
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(keep if isinstance(keep, int) else int(size * keep))
    with pytest.raises(OSError, match="damaged"):
        ErasedModel.from_pretrained(saved)


def test_corrupted_header_raises(saved):
    path = saved / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[8:40] = b"x" * 32
    path.write_bytes(data)
    with pytest.raises(OSError, match="damaged"):
        ErasedModel.from_pretrained(saved)


# Writing.


@pytest.mark.parametrize("where", ["file", "below a file"])
def test_unwritable_output_is_refused_and_the_model_stays(erased, pixels, tmp_path, where):
    (tmp_path / "taken").write_text("mine")
    answers = logits_of(erased, pixels)
    with pytest.raises((NotADirectoryError, PermissionError), match="Choose another path|may write"):
        erased.save_pretrained(tmp_path / "taken" / ("" if where == "file" else "deep/er"))
    assert (tmp_path / "taken").read_text() == "mine"
    assert torch.equal(logits_of(erased, pixels), answers)


def test_other_files_in_the_folder_stay(erased, saved):
    (saved / "README.md").write_text("written by a person")
    erased.save_pretrained(saved)
    assert (saved / "README.md").read_text() == "written by a person"


def test_fewer_shards_leave_no_old_ones_behind(erased, pixels, tmp_path):
    erased.save_pretrained(tmp_path, max_shard_size="5KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert torch.equal(logits_of(ErasedModel.from_pretrained(tmp_path), pixels), logits_of(erased, pixels))
    erased.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("model*")) == ["model.safetensors"]
    assert torch.equal(logits_of(ErasedModel.from_pretrained(tmp_path), pixels), logits_of(erased, pixels))


def test_a_failed_save_leaves_the_old_folder_whole(erased, saved, forget, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    erased.erase(forget, k=1, progress=False)

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(type(erased.processor), "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        erased.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name], "nothing half written stays beside it"


def test_a_folder_that_somebody_makes_while_a_save_puts_it_there_is_written_into(tmp_path, monkeypatch):
    target, rename = tmp_path / "erased", os.rename

    def rename_late(source, place):
        target.mkdir()
        (target / "notes.txt").write_text("mine")
        monkeypatch.setattr(os, "rename", rename)
        rename(source, place)

    monkeypatch.setattr(os, "rename", rename_late)
    with atomic_directory(target) as folder:
        (folder / "config.json").write_text("{}")
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "notes.txt"]
    assert not (target / "config.json").is_symlink()
    assert [path.name for path in tmp_path.iterdir()] == ["erased"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_said_and_leaves_the_old_folder_whole(erased, saved, forget, monkeypatch, error):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    erased.erase(forget, k=1, progress=False)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fail)
    with pytest.raises(OutputError, match="No space is left"):
        erased.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


KILLED = """
import os, signal, sys
from hf_kd import ErasedModel
model = ErasedModel.from_pretrained(sys.argv[1])
model.processor.save_pretrained = lambda folder: (print("writing", flush=True), os.kill(os.getpid(), signal.SIGKILL))
model.inner.classifier.requires_grad_(False)
for parameter in model.inner.parameters():
    parameter.data.zero_()
model.save_pretrained(sys.argv[1])
"""


@pytest.mark.processes
def test_a_killed_save_leaves_the_old_folder_whole(erased, saved, pixels):
    answers = logits_of(erased, pixels)
    (done,) = processes.run(["-c", KILLED, saved], environments=[processes.surroundings()])
    assert (done.out, done.code) == ("writing\n", -signal.SIGKILL), done.text
    assert torch.equal(logits_of(ErasedModel.from_pretrained(saved), pixels), answers)


# Classes of one's own.


class OwnConfig(PreTrainedConfig):
    model_type = "own_network"
    image_size: int = 16


class OwnNetwork(PreTrainedModel):
    config_class = OwnConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 12, 3), torch.nn.BatchNorm2d(12), torch.nn.ReLU())
        self.answer = torch.nn.Linear(12, config.num_labels)
        self.post_init()

    def forward(self, pixel_values, labels=None, return_dict=True):
        from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

        logits = self.answer(self.body(pixel_values).mean(dim=(2, 3)))
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


def test_an_unregistered_class_is_refused_at_save_and_welcome_once_registered(processor, forget, pixels, tmp_path):
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    erased = ErasedModel.from_model(OwnNetwork(OwnConfig(num_labels=5)).eval(), processor)
    erased.erase(forget, k=1, progress=False)
    with pytest.raises(ValueError, match=r"AutoModelForImageClassification.register\(OwnConfig, OwnNetwork\)"):
        erased.save_pretrained(tmp_path / "own")
    assert not (tmp_path / "own").exists()
    AutoConfig.register("own_network", OwnConfig)
    AutoModelForImageClassification.register(OwnConfig, OwnNetwork)
    try:
        erased.save_pretrained(tmp_path / "own")
        again = ErasedModel.from_pretrained(tmp_path / "own")
        assert type(again.inner) is OwnNetwork
        assert torch.equal(logits_of(again, pixels), logits_of(erased, pixels))
    finally:
        CONFIG_MAPPING._extra_content.pop("own_network")
        AutoModelForImageClassification._model_mapping._extra_content.pop(OwnConfig)


class FlatConfig(PreTrainedConfig):
    model_type = "flat_network"


class FlatNetwork(PreTrainedModel):
    """Takes images of the size that the fixture `processor` makes, and of no other; no configuration says so."""

    config_class = FlatConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.body = torch.nn.Linear(3 * 16 * 16, 12)
        self.answer = torch.nn.Linear(12, config.num_labels)
        self.post_init()

    def forward(self, pixel_values, return_dict=True):
        from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

        return ImageClassifierOutputWithNoAttention(logits=self.answer(torch.tanh(self.body(pixel_values.flatten(1)))))


def test_a_network_whose_configuration_states_no_size_loads_by_what_its_processor_makes(processor, forget, tmp_path):
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    AutoConfig.register("flat_network", FlatConfig)
    AutoModelForImageClassification.register(FlatConfig, FlatNetwork)
    try:
        stock = FlatNetwork(FlatConfig(num_labels=5)).eval()
        stock.save_pretrained(tmp_path / "base")
        erased = ErasedModel.from_model(stock, processor).erase(forget, k=1, progress=False)
        erased.save_pretrained(tmp_path / "m")
        erased.save_eraser(tmp_path / "eraser")
        again = ErasedModel.from_pretrained(tmp_path / "m")
        behind = ErasedModel.from_pretrained(tmp_path / "base", eraser=tmp_path / "eraser")
        pixels = torch.randn(2, 3, 16, 16)
        for loaded in (again, behind):
            assert torch.equal(logits_of(loaded, pixels), logits_of(erased, pixels))
        (tmp_path / "m" / "preprocessor_config.json").unlink()
        with pytest.raises(InvalidValueError, match="processor="):
            ErasedModel.from_pretrained(tmp_path / "m")
        assert ErasedModel.from_pretrained(tmp_path / "m", processor=processor).is_erased
        edit_config(tmp_path / "m", lambda config: config["taps"][0]["places"][0].update(module="body", side="output"))
        edit_config(tmp_path / "m", lambda config: config["taps"][0].update(heads=["body"]))
        edit_config(tmp_path / "m", lambda config: config["erasures"][0].update(taps=["output of body (d = 12)"]))
        with pytest.raises(InvalidValueError, match="contradicts"):
            ErasedModel.from_pretrained(tmp_path / "m", processor=processor)
    finally:
        CONFIG_MAPPING._extra_content.pop("flat_network")
        AutoModelForImageClassification._model_mapping._extra_content.pop(FlatConfig)


class ReadConfig(PreTrainedConfig):
    """Stores the number of its classes by another name than its constructor takes, as TimmWrapperConfig does."""

    model_type = "read_network"

    def to_dict(self):
        stored = super().to_dict()
        for name in ("id2label", "label2id", "num_labels"):
            stored.pop(name, None)
        return stored | {"num_classes": self.num_labels, "label_names": list(self.id2label.values())}

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        stored = dict(config_dict)
        names = stored.pop("label_names")
        assert stored.pop("num_classes") == len(names)
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: c for c, name in enumerate(names)}}
        return super().from_dict(stored | labels, **kwargs)


class ReadNetwork(OwnNetwork):
    config_class = ReadConfig


def test_a_configuration_is_read_as_transformers_reads_it(processor, forget, pixels, tmp_path):
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    AutoConfig.register("read_network", ReadConfig)
    AutoModelForImageClassification.register(ReadConfig, ReadNetwork)
    try:
        names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: c for c, name in enumerate(NAMES)}}
        erased = ErasedModel.from_model(ReadNetwork(ReadConfig(**names)).eval(), processor)
        erased.erase(forget, k=1, progress=False).save_pretrained(tmp_path)
        again = ErasedModel.from_pretrained(tmp_path)
        assert again.config.num_labels == again.inner.config.num_labels == len(NAMES)
        assert again.class_names == erased.class_names
        assert torch.equal(logits_of(again, pixels), logits_of(erased, pixels))
    finally:
        CONFIG_MAPPING._extra_content.pop("read_network")
        AutoModelForImageClassification._model_mapping._extra_content.pop(ReadConfig)


def test_remote_code_is_never_run(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_type": "evil",
                "architectures": ["Evil"],
                "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForImageClassification": "evil.Evil"},
            }
        )
    )
    (tmp_path / "evil.py").write_text("raise SystemExit('code from a repository was run')")
    with pytest.raises((ValueError, OSError)):
        ErasedModel.from_pretrained(tmp_path)
    with pytest.raises((ValueError, OSError)):
        ErasedModel.from_pretrained(tmp_path, trust_remote_code=True)


def test_no_model_at_all(tmp_path):
    with pytest.raises(OSError, match="neither config.json nor adapter_config.json|not a valid|does not"):
        ErasedModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from_pretrained or"):
        ErasedModel(ErasedConfig())


@pytest.mark.processes
def test_a_fresh_process_gives_the_same_answers(erased, saved, pixels):
    code = (
        "import sys, torch, hf_kd; from transformers import AutoModelForImageClassification as A;"
        "m = A.from_pretrained(sys.argv[1]);"
        "print(type(m).__name__, m.is_erased, float(m(pixel_values=torch.ones(1, 3, 16, 16)).logits.sum()))"
    )
    (done,) = processes.run(["-c", code, saved], environments=[processes.surroundings()])
    name, is_erased, total = done.out.split()
    assert (name, is_erased) == ("ErasedModel", "True")
    expected = float(logits_of(erased, torch.ones(1, 3, 16, 16)).sum())
    assert float(total) == pytest.approx(expected, rel=1e-4)


def test_nothing_that_is_saved_says_where_the_model_lay(vit, processor, forget, tmp_path):
    place = tmp_path / "a-folder-of-mine"
    vit.save_pretrained(place)
    processor.save_pretrained(place)
    model = ErasedModel.from_pretrained(place).erase(forget, k=2, progress=False)
    model.save_pretrained(tmp_path / "saved")
    model.fold().save_pretrained(tmp_path / "folded")
    files = [path for name in ("saved", "folded") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert not [path for path in files if b"a-folder-of-mine" in path.read_bytes()]
    again = ErasedModel.from_pretrained(tmp_path / "saved")
    again.save_pretrained(tmp_path / "again")
    assert str(tmp_path).encode() not in (tmp_path / "again" / "config.json").read_bytes()


def test_a_timm_checkpoint_loads_again_once_erased(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed: its checkpoints are not tried here")
    pytest.importorskip("torchvision", reason="timm needs torchvision")
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    names = ["ape", "bee", "cat"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: c for c, name in enumerate(names)}}
    settings = dict(timm.create_model("resnet18", num_classes=len(names)).pretrained_cfg)
    stock = TimmWrapperForImageClassification(
        TimmWrapperConfig(architecture="resnet18", pretrained_cfg=settings, **labels)
    )
    ErasedModel.from_model(stock.eval()).save_pretrained(tmp_path)
    again = ErasedModel.from_pretrained(tmp_path)
    assert again.class_names == dict(enumerate(names))
    assert again(pixel_values=torch.zeros(2, 3, 64, 64)).logits.shape == (2, len(names))


# What turns images and texts into inputs


def test_a_path_that_begins_at_home_is_the_same_place_in_every_call(erased, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for name, save in (("m", erased.save_pretrained), ("e", erased.save_eraser)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text("mine")
        save(f"~/{name}")
        assert (tmp_path / name / "README.md").read_text() == "mine"
        assert verify(f"~/{name}").ok
    assert ErasedModel.from_pretrained("~/m").erasures == read_eraser("~/e").erasures == erased.erasures


def test_a_folded_model_is_saved_with_its_image_processor(erased, pixels, tmp_path):
    folded = erased.fold()
    for number, stock in enumerate((folded, copy.deepcopy(folded))):
        stock.save_pretrained(tmp_path / str(number))
        answer = pipeline("image-classification", model=str(tmp_path / str(number)))(picture(2, 99))
        logits = stock(pixel_values=erased.processor(picture(2, 99), return_tensors="pt")["pixel_values"]).logits
        assert answer[0]["label"] == stock.config.id2label[int(logits.argmax())]
        again = type(stock).from_pretrained(tmp_path / str(number))
        assert torch.equal(again(pixel_values=pixels).logits, stock(pixel_values=pixels).logits)


def test_a_folded_model_is_copied_and_pickled_with_its_way_of_saving(erased, pixels, tmp_path):
    stock = erased.fold()
    torch.save(stock, tmp_path / "stock.pt")
    for number, other in enumerate([copy.deepcopy(stock), torch.load(tmp_path / "stock.pt", weights_only=False)]):
        list(other.parameters())[-1].data += 1  # of the head: what is saved is the copy
        other.save_pretrained(tmp_path / f"{number}")
        again = ErasedModel.from_pretrained(tmp_path / f"{number}")
        assert again.processor is not None
        assert torch.allclose(logits_of(again, pixels), logits_of(stock, pixels) + 1, atol=1e-5)


def test_a_model_of_images_and_texts_keeps_its_tokenizer_and_its_task(forget, tmp_path):
    words = {
        word: n for n, word in enumerate(["<s>", "<pad>", "</s>", "a", "photo", "of", "cat", "dog", "This", "is", "."])
    }
    tokens = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokens.pre_tokenizer = Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, model_max_length=16, **special)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    build("CLIPModel").save_pretrained(tmp_path / "clip")
    CLIPProcessor(images, tokenizer).save_pretrained(tmp_path / "clip")
    erased = ErasedModel.from_pretrained(tmp_path / "clip").erase(forget, k=1, progress=False)
    for number in range(2):
        folder = tmp_path / str(number)
        erased.save_pretrained(folder)
        assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
        asked = pipeline("zero-shot-image-classification", model=str(folder))
        assert isinstance(asked.model, ErasedModel)
        answer = asked(picture(2, 1), candidate_labels=["cat", "dog"])
        assert {entry["label"] for entry in answer} == {"cat", "dog"}
        assert verify(folder).ok
        erased = ErasedModel.from_pretrained(folder)
    assert isinstance(erased.processor, CLIPImageProcessorPil)


@pytest.mark.parametrize("classes", [3, 8])
def test_a_head_that_its_configuration_does_not_make_is_not_saved(vit, processor, forget, tmp_path, classes):
    vit.classifier = torch.nn.Linear(vit.config.hidden_size, classes)
    erased = ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False)
    with pytest.raises(InvalidValueError, match=rf"classifier.weight .* is \[{classes}, 32\], .* makes \[5, 32\]"):
        erased.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
