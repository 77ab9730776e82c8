"""Erased models captured, compiled and packed by torch answer as they do uncompiled, for batches of every size."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.utils.data import DataLoader

from hf_kd import ErasedModel
from hf_kd.errors import InvalidTypeError
from hf_kd.model.graph import TowerGraph
from hf_kd.model.graph_check import GraphReference
from tests.helpers import zoo
from tests.helpers.two_towers import two_towers

NEAR = 1e-4
"""Of the root mean square of an output."""


@pytest.fixture(scope="module")
def graph(request):
    """An erased model, its erasers at work on the samples that are compared; and what it answers."""
    name = request.param
    if name == "CLIPModel":
        erased = ErasedModel.from_model(*two_towers(name, vision_layers=1))
        erased.erase(texts=["cat"], templates=["a photo of a {}", "{}"], k=1)
    else:
        inputs = zoo.inputs(name, 8)
        rows = [{key: value[i] for key, value in inputs.items()} for i in range(8)]
        one = {"num_hidden_layers": 1} if name.startswith("ViT") else {}  # a C++ compiler takes ten seconds a layer
        model = zoo.build(name, **one)
        erased = ErasedModel.from_model(model).erase(DataLoader(rows, batch_size=4), k=1, progress=False)
    made = TowerGraph(erased.eval())
    reference = GraphReference.of(made)
    assert reference.acts
    return made, reference


def needs_compiler():
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch's inductor needs a C++ compiler, and there is none")


def answers_of(graph, run):
    """`run` on positional inputs, as the comparison wants it."""

    def named(batch):
        with torch.no_grad():
            return dict(zip(graph.output_names, run(*batch.values()), strict=True))

    return named


# Windows in stages, and modules that stand in a model twice: HGNetV2 has its pooling under two names, and torch.export then
# asks for modules through proxies. Tokens, BatchNorm and both towers of two: test_onnx_export.py, at every batch size too.
@pytest.mark.parametrize("graph", ["SwinForImageClassification", "HGNetV2ForImageClassification"], indirect=True)
def test_an_exported_program_answers_erased(graph, monkeypatch):
    """And capturing never puts a model in eval mode into training, which would warn of it."""
    graph, reference = graph
    train, modes = ErasedModel.train, []
    with monkeypatch.context() as patch:
        patch.setattr(ErasedModel, "train", lambda self, mode=True: modes.append(mode) or train(self, mode))
        program = graph.program()
    assert True not in modes
    found = reference.deviations(answers_of(graph, program.module()))
    assert max(found.values()) < NEAR, found


def test_an_eraser_in_the_text_tower_of_a_siglip_is_in_its_graph():
    """It has neither a mask of tokens nor a projection, and no file of ONNX is made of it with an eraser in this tower."""
    erased = ErasedModel.from_model(*two_towers("SiglipModel", vision_layers=1))
    erased.erase(texts=["cat"], retain_texts=["dog", "car"], templates=["a photo of a {}", "{}"], k=1)
    graph = TowerGraph(erased.eval(), "text")
    reference = GraphReference.of(graph)
    assert reference.acts
    found = reference.deviations(answers_of(graph, graph.program().module()))
    assert max(found.values()) < NEAR, found


@pytest.mark.parametrize("graph", ["CLIPModel"], indirect=True)  # classifiers: test_architectures.py
def test_a_compiled_tower_answers_erased(graph):
    graph, reference = graph
    compiled = torch.compile(graph.model.get_image_features, dynamic=False, backend="aot_eager")
    with torch.no_grad():
        found = compiled(**reference.batches[1]).pooler_output
    (name,) = graph.output_names
    assert float((found - reference.answers[1][name]).abs().max()) < NEAR * reference.units[name]


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["ViTForImageClassification"], indirect=True)  # a quarter of a minute of a compiler
def test_a_package_of_inductor_answers_erased_without_hf_kd(graph, tmp_path):
    needs_compiler()
    graph, reference = graph
    quick = {  # most of the time goes into optimising the wrapper, into headers that one package needs once, and into trying
        # what vectors the compiler knows
        "aot_inductor.compile_wrapper_opt_level": "O0",
        "aot_inductor.precompile_headers": False,
        "cpp.vec_isa_ok": False,
    }
    package = torch._inductor.aoti_compile_and_package(
        graph.program(), package_path=str(tmp_path / "model.pt2"), inductor_configs=quick
    )
    found = reference.deviations(answers_of(graph, torch._inductor.aoti_load_package(package)))
    assert max(found.values()) < NEAR, found


def test_a_classifier_has_one_tower(resnet, processor):
    erased = ErasedModel.from_model(resnet, processor)
    with pytest.raises(InvalidTypeError, match="has image"):
        TowerGraph(erased, "text")
