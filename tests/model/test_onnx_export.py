"""What onnxruntime answers from an exported file, against the model: every eraser, mask, tower, precision and batch size."""

from __future__ import annotations

import copy
import functools
import json
import logging
import os

import pytest
import torch
from torch.onnx._internal.exporter._registration import ONNXRegistry

from hf_kd import ErasedModel
from hf_kd.data.masked_classes import MASKED_LOGIT
from hf_kd.errors import InvalidValueError, MissingPackageError, OutputError
from hf_kd.model import onnx_export
from hf_kd.model.graph import TowerGraph
from hf_kd.model.graph_check import GraphReference
from hf_kd.model.onnx_export import OPSET, TOLERANCE
from tests.helpers import zoo
from tests.helpers.small import make_dataset
from tests.helpers.two_towers import two_towers

onnx = pytest.importorskip("onnx", reason="needs the extra hf-kd[onnx]")
runtime = pytest.importorskip("onnxruntime", reason="needs the extra hf-kd[onnx]")
pytest.importorskip("onnxscript", reason="needs the extra hf-kd[onnx]")


def session_of(path):
    return runtime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])


def said(path):
    stored = session_of(path).get_modelmeta().custom_metadata_map
    return {key.removeprefix("hf_kd."): json.loads(value) for key, value in stored.items()}


def answers(path, **inputs):
    session = session_of(path)
    names = [each.name for each in session.get_outputs()]
    got = session.run(names, {each.name: inputs[each.name].numpy() for each in session.get_inputs()})
    return dict(zip(names, map(torch.from_numpy, got), strict=True))


@pytest.fixture
def erased(exported):
    """A model that may be changed."""
    return copy.deepcopy(exported[0])


@pytest.fixture(scope="module", autouse=True)
def one_library():
    """torch.onnx reads the sources of its library anew for every export, a sixth of the time of one of a small model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
        yield


@pytest.fixture
def captured(exported, monkeypatch):
    """Exports of this model take the graph of the file that is there: capturing it is most of their time."""
    _, file = exported
    monkeypatch.setattr(onnx_export, "_proto", lambda graph: onnx.load(file.path))


def test_logits_and_features_are_those_of_the_erased_model(exported, pixels):
    erased, file = exported
    assert_answers_of(erased, file, pixels)
    assert (answers(file.path, pixel_values=pixels)["logits"][:, 2] == MASKED_LOGIT).all()


@pytest.mark.parametrize(
    ("inner", "dtype", "method", "settings"),
    [
        ("resnet", torch.float32, "esc-t", {"lr": 3.0, "threshold": 0.999, "mask_head": True, "erased_label": None}),
        ("vit", torch.bfloat16, "cover", {}),
    ],
)  # every kind of map (that of ESC is above, that of LEACE below); a class that is dropped; a model in bfloat16
def test_every_eraser_is_in_the_graph(request, processor, forget, pixels, tmp_path, inner, dtype, method, settings):
    model = request.getfixturevalue(inner).to(dtype)
    erased = ErasedModel.from_model(model, processor).erase(forget, method, progress=False, **settings)
    (file,) = erased.export_onnx(tmp_path / "model.onnx", images=forget)
    assert next(erased.inner.parameters()).dtype == dtype, "the model itself stays"
    assert session_of(file.path).get_inputs()[0].type == "tensor(float)"
    assert said(file.path)["labels"] == list(erased.config.id2label.values())
    assert_answers_of(erased.float(), file, pixels)


def assert_answers_of(erased, file, pixels):
    assert file.erased
    assert max(file.deviation.values()) <= TOLERANCE["float32"]
    for rows in (pixels[:1], pixels[:3], pixels):
        got = answers(file.path, pixel_values=rows)
        with torch.no_grad():
            wanted = erased.eval()(rows).logits
        assert got["logits"].shape == wanted.shape
        assert torch.allclose(got["logits"], wanted, atol=1e-4)
        assert torch.allclose(got["features"], erased.pooled_features(rows), atol=1e-4)
        before = erased.pooled_features(rows, stage="before")
        moved = float((got["features"] - before).abs().max())
        cover = erased.erasures[0].method == "cover"
        assert cover or moved > 100 * max(file.deviation.values()) * float(before.square().mean().sqrt())


def test_the_file_says_what_it_is(exported):
    erased, file = exported
    proto = onnx.load(file.path)
    onnx.checker.check_model(proto)
    assert {each.domain: each.version for each in proto.opset_import}[""] == OPSET == file.opset
    assert file.inputs == {"pixel_values": ["batch", 3, 16, 16]}
    assert file.outputs == {"logits": ["batch", 5], "features": ["batch", 32]}
    told = said(file.path)
    assert told["labels"] == list(erased.config.id2label.values()) == ["ape", "bee", "(erased)", "dog", "elk"]
    assert told["processor"]["image_mean"] == [0.5] * 3
    assert told["erasures"] == json.loads(json.dumps([erased.erasures[0].to_dict()]))
    assert told["eraser_sha256"] == erased.config.eraser_sha256
    assert told["dtype"] == "float32"
    assert "path" not in told, "where it was made is nobody's business"
    assert b".py" not in file.path.read_bytes(), "no stack traces of whoever exported it"
    assert sorted(os.listdir(file.path.parent)) == ["model.onnx"]


def test_float16_keeps_float32_outside_and_in_the_eraser(exported, forget, pixels, tmp_path):
    erased, whole = exported
    (half,) = erased.export_onnx(tmp_path / "half.onnx", dtype="float16", images=forget)
    assert half.path.stat().st_size < 0.7 * whole.path.stat().st_size
    got = answers(half.path, pixel_values=pixels)
    with torch.no_grad():
        assert torch.allclose(got["logits"], erased.eval()(pixels).logits, atol=0.05)
    assert next(erased.inner.parameters()).dtype == torch.float32, "the model itself stays"
    assert half.dtype == said(half.path)["dtype"] == "float16"


def test_an_embedding_model_gives_features_of_images_of_the_size_that_is_shown(resnet, processor, forget, tmp_path):
    erased = ErasedModel.from_model(resnet.resnet, processor)
    erased.erase(forget, "leace", retain=make_dataset([0, 1, 3, 4] * 5), progress=False, whole_classes=False)
    processor.do_resize = False
    larger = forget.map(lambda row: {"image": row["image"].resize((48, 40))})
    (file,) = erased.export_onnx(tmp_path / "model.onnx", images=larger)
    assert file.inputs["pixel_values"] == ["batch", 3, 40, 48]
    rows = processor(larger[:3]["image"], return_tensors="pt")["pixel_values"]
    got = answers(file.path, pixel_values=rows)
    assert list(got) == ["features"]
    assert torch.allclose(got["features"], erased.pooled_features(rows), atol=1e-4)
    assert not torch.allclose(got["features"], erased.pooled_features(rows, stage="before"), atol=1e-2)


@pytest.mark.parametrize(("name", "by_text"), [("CLIPModel", True), ("SiglipModel", False)])
def test_each_tower_of_two_is_a_file(name, by_text, tmp_path, caplog):
    """Erased by text there is an eraser in both; erased by images the text tower is the original one, which is said."""
    inner, whole = two_towers(name, vision_layers=1)
    erased = ErasedModel.from_model(inner, whole)
    if by_text:
        erased.erase(texts=["cat"], templates=["a photo of a {}", "{}"], k=1)
    else:
        erased.erase(make_dataset([2] * 12, size=(32, 32)), k=1, progress=False, whole_classes=False)
    with caplog.at_level(logging.WARNING, logger="hf_kd"):
        files = erased.export_onnx(tmp_path / "clip.onnx")
    assert [(file.path.name, file.tower, file.erased) for file in files] == [
        ("clip.image.onnx", "image", True), ("clip.text.onnx", "text", by_text)]  # fmt: skip
    assert ("There is no eraser in the text tower" in caplog.text) != by_text
    assert [list(file.outputs) for file in files] == [["image_embeds"], ["text_embeds"]]
    images = zoo.inputs(name, 3)["pixel_values"]
    tokens = {key: torch.randint(3, 20, (3, 6)) for key in files[1].inputs}
    tokens = {key: torch.ones_like(value) if key == "attention_mask" else value for key, value in tokens.items()}
    with torch.no_grad():
        wanted = erased.get_image_features(images).pooler_output, erased.get_text_features(**tokens).pooler_output
    assert torch.allclose(answers(files[0].path, pixel_values=images)["image_embeds"], wanted[0], atol=1e-4)
    assert torch.allclose(answers(files[1].path, **tokens)["text_embeds"], wanted[1], atol=1e-4)
    assert said(files[0].path)["logit_scale"] == pytest.approx(float(inner.logit_scale.exp())), "what is multiplied by"


def test_nothing_is_written_where_onnxruntime_answers_something_else(erased, captured, tmp_path, monkeypatch):
    found = GraphReference.deviations
    monkeypatch.setattr(
        GraphReference, "deviations", lambda self, run: {k: v + 0.5 for k, v in found(self, run).items()}
    )
    with pytest.raises(InvalidValueError, match="something else than the model: logits by 0.5"):
        erased.export_onnx(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    (file,) = erased.export_onnx(tmp_path / "model.onnx", tolerance=1.0)
    assert said(file.path)["tolerance"] == 1.0
    assert said(file.path)["deviation"]["logits"] > 0.5


def test_a_graph_without_the_eraser_does_not_pass_the_comparison(vit, processor, forget):
    erased = ErasedModel.from_model(vit, processor).erase(forget, k=2, progress=False)
    graph = TowerGraph(erased.eval(), images=forget)
    reference = GraphReference.of(graph)
    assert reference.acts
    erased.reset()
    bare = reference.deviations(graph.answers)
    assert bare["features"] > 10 * TOLERANCE["float16"]
    assert bare["logits"] > 10 * TOLERANCE["float16"]


def test_a_processor_that_does_not_resize_leaves_the_size_to_the_configuration(
    vit, resnet, processor, forget, tmp_path
):
    erased = {name: ErasedModel.from_model(inner, processor) for name, inner in (("vit", vit), ("resnet", resnet))}
    for model in erased.values():
        model.erase(forget, k=2, progress=False)
    processor.do_resize = False
    with pytest.raises(InvalidValueError, match="neither the image processor, which leaves it to the image, nor"):
        erased["resnet"].export_onnx(tmp_path / "any.onnx")  # a ResNet states no size
    example = TowerGraph(erased["vit"].eval()).example["pixel_values"]
    assert example.shape[2:] == (vit.config.image_size,) * 2


def test_an_eraser_that_had_nothing_to_do_is_said(vit, processor, forget, tmp_path, caplog, monkeypatch):
    erased = ErasedModel.from_model(vit, processor).erase(forget, "cover", progress=False)
    erased.sites[0].eraser.limits[:2] = 1e6  # nothing is ever recognised, and no margin is wide enough
    monkeypatch.setattr(onnx_export, "_compared", lambda *given: pytest.fail("it is said before the graph is made"))
    with caplog.at_level(logging.WARNING, logger="hf_kd"), pytest.raises(pytest.fail.Exception):
        erased.export_onnx(tmp_path / "model.onnx")
    assert "changes none of the samples" in caplog.text


def test_what_is_refused_leaves_everything_as_it_was(vit, processor, forget, captured, tmp_path):
    bare = ErasedModel.from_model(vit, processor)
    with pytest.raises(InvalidValueError, match="Nothing has been erased"):
        bare.export_onnx(tmp_path / "model.onnx")
    erased = bare.erase(forget, k=2, mask_head=True, progress=False)
    with pytest.raises(InvalidValueError, match="end in .onnx"):
        erased.export_onnx(tmp_path / "folder")
    with pytest.raises(InvalidValueError, match="dtype='int8'"):
        erased.export_onnx(tmp_path / "model.onnx", dtype="int8")
    (tmp_path / "model.onnx").write_text("mine")
    with pytest.raises(InvalidValueError, match="there already"):
        erased.export_onnx(tmp_path / "model.onnx")
    with pytest.raises(OutputError, match="Cannot write"):
        erased.export_onnx(tmp_path / "model.onnx" / "inside.onnx")
    assert (tmp_path / "model.onnx").read_text() == "mine"
    erased.export_onnx(tmp_path / "model.onnx", overwrite=True)
    assert said(tmp_path / "model.onnx")["tower"] == "image"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_an_architecture_that_cannot_be_captured_is_refused_in_words(tmp_path):
    name = "Siglip2ForImageClassification"
    rows = [{key: value[i] for key, value in zoo.inputs(name, 4).items()} for i in range(4)]
    loader = torch.utils.data.DataLoader(rows, batch_size=2)
    erased = ErasedModel.from_model(zoo.build(name)).erase(loader, k=1, progress=False)
    with pytest.raises(InvalidValueError, match="cannot be captured as a graph"):
        erased.export_onnx(tmp_path / "model.onnx")


def test_hostile_labels_are_data(vit, processor, captured, tmp_path):
    names = ['a"}],"x', "\x1b[2J", "cat", "\u202edog", "-->"]
    vit.config.id2label = dict(enumerate(names))
    vit.config.label2id = {name: c for c, name in vit.config.id2label.items()}
    forget = make_dataset([2] * 20, names=names)
    erased = ErasedModel.from_model(vit, processor).erase(forget, k=2, mask_head=True, progress=False)
    (file,) = erased.export_onnx(tmp_path / "model.onnx")
    assert said(file.path)["labels"] == [*names[:2], "(erased)", *names[3:]]


def test_a_missing_package_names_the_extra(erased, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match=r"hf-kd\[onnx\]"):
        erased.export_onnx(tmp_path / "model.onnx")
