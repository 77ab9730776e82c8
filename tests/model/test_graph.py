"""Erased models captured, compiled and packed by torch answer as they do uncompiled, for batches of every size."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch.utils.data import DataLoader

from hf_kd import ErasedModel
from hf_kd.errors import InvalidTypeError
from hf_kd.model.graph import TowerGraph, towers
from hf_kd.model.graph_check import GraphReference
from tests.helpers import zoo
from tests.helpers.two_towers import two_towers

NAMES = ("ResNetForImageClassification", "ViTForImageClassification", "SwinForImageClassification", "CLIPModel")
"""BatchNorm and pooling, a token, windows in stages, two towers."""
NEAR = 1e-4
"""Of the root mean square of an output."""


@pytest.fixture(scope="module", params=NAMES)
def graph(request):
    """An erased model, its erasers at work on the samples that are compared; and what it answers."""
    name = request.param
    if name == "CLIPModel":
        erased = ErasedModel.from_model(*two_towers(name))
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


def test_an_exported_program_answers_erased(graph):
    graph, reference = graph
    found = reference.deviations(answers_of(graph, graph.program().module()))
    assert max(found.values()) < NEAR, found


def test_capturing_says_nothing_of_training(monkeypatch):
    """A graph around an erased model in eval mode never puts it into training, which would warn of it."""
    name = "ViTForImageClassification"
    rows = [{"pixel_values": image} for image in zoo.inputs(name, 8)["pixel_values"]]
    erased = ErasedModel.from_model(zoo.build(name)).erase(DataLoader(rows, batch_size=4), k=1, progress=False).eval()
    train, modes = ErasedModel.train, []
    monkeypatch.setattr(ErasedModel, "train", lambda self, mode=True: modes.append(mode) or train(self, mode))
    TowerGraph(erased).program()
    assert True not in modes


@pytest.mark.parametrize("graph", ["CLIPModel"], indirect=True)  # classifiers: test_architectures.py
def test_a_compiled_tower_answers_erased(graph):
    graph, reference = graph
    compiled = torch.compile(graph.model.get_image_features, dynamic=False, backend="aot_eager")
    with torch.no_grad():
        found = compiled(**reference.batches[1]).pooler_output
    (name,) = graph.output_names
    assert float((found - reference.answers[1][name]).abs().max()) < NEAR * reference.units[name]


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["ViTForImageClassification"], indirect=True)  # half a minute of a compiler each
def test_a_package_of_inductor_answers_erased_without_hf_kd(graph, tmp_path):
    needs_compiler()
    graph, reference = graph
    quick = {"aot_inductor.compile_wrapper_opt_level": "O0"}  # half of the time goes into optimising the wrapper
    package = torch._inductor.aoti_compile_and_package(
        graph.program(), package_path=str(tmp_path / "model.pt2"), inductor_configs=quick
    )
    found = reference.deviations(answers_of(graph, torch._inductor.aoti_load_package(package)))
    assert max(found.values()) < NEAR, found


def test_modules_that_stand_in_a_model_twice_do_not_hide_the_eraser():
    """HGNetV2 has its pooling under two names; torch.export then asks for modules through proxies."""
    name = "HGNetV2ForImageClassification"
    rows = [{"pixel_values": image} for image in zoo.inputs(name, 8)["pixel_values"]]
    erased = ErasedModel.from_model(zoo.build(name)).erase(DataLoader(rows, batch_size=4), k=1, progress=False)
    graph = TowerGraph(erased.eval())
    found = GraphReference.of(graph).deviations(answers_of(graph, graph.program().module()))
    assert max(found.values()) < NEAR, found


@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel"])
def test_the_text_tower_is_a_graph_of_its_own(name):
    erased = ErasedModel.from_model(*two_towers(name))
    erased.erase(texts=["cat"], templates=["a photo of a {}", "{}"], k=1)
    assert towers(erased) == ("image", "text")
    graph = TowerGraph(erased.eval(), "text")
    found = GraphReference.of(graph).deviations(answers_of(graph, graph.program().module()))
    assert max(found.values()) < NEAR, found


def test_a_classifier_has_one_tower(resnet, processor):
    erased = ErasedModel.from_model(resnet, processor)
    with pytest.raises(InvalidTypeError, match="has image"):
        TowerGraph(erased, "text")
