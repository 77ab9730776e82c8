"""One registry: built-in methods are described without being imported, and any package may add methods of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, is_typeddict

import pytest

from hf_kd import ESC, ESCT, available_methods, unlearning_methods
from hf_kd.methods import measured, registry
from hf_kd.methods.attribute_texts import attribute_texts
from hf_kd.methods.erasers.base import Method, build
from hf_kd.methods.registry import (
    MethodInfo,
    get_method,
    make_method,
    make_unlearning_method,
    method_info,
    method_infos,
    register_method,
)
from hf_kd.methods.unlearning.base import UnlearningMethod
from tests.helpers import processes

ROOT = Path(__file__).resolve().parents[2]

PLUGIN = '''
"""Removes the mean direction only; with an eraser class of its own."""
from dataclasses import dataclass
from typing import ClassVar

import torch
from hf_kd import Eraser, Method, SecondMoment, register_eraser
from hf_kd.methods.erasers import Projection


@register_eraser
class MeanProjection(Projection):
    kind = "mean-projection"


@dataclass(frozen=True)
class MeanDirection(Method):
    name: ClassVar[str] = "mean-direction"
    scale: float = 1.0

    def fit(self, forget, labels=None, head=None):
        direction = torch.nn.functional.normalize(forget.feature_sum, dim=0)[:, None]
        return MeanProjection.onto_complement_of(direction * self.scale, n_forget=forget.count)
'''

USE = """
import sys, torch, hf_kd
from transformers import ViTConfig, ViTForImageClassification
assert "mean-direction" in hf_kd.available_methods()
assert "mean_direction_plugin" not in sys.modules, "listing does not import it"
config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16,
                   patch_size=8, num_labels=3)
torch.manual_seed(0)
model = hf_kd.ErasedModel.from_model(ViTForImageClassification(config))
images = torch.randn(8, 3, 16, 16)
loader = torch.utils.data.DataLoader([{"pixel_values": x} for x in images], batch_size=3)
model.erase(loader, "mean-direction", scale=1.0, progress=False)
assert abs(float(model.pooled_features(images).mean(dim=0).norm())) < 1e-4
model.save_pretrained(sys.argv[1])
print("saved")
"""

LOAD = """
import sys, torch, hf_kd
model = hf_kd.ErasedModel.from_pretrained(sys.argv[1])
print(type(model.sites[0].eraser).__name__, model.erasures[0].method, model.erasures[0].settings)
"""


@pytest.fixture
def plugin_path(tmp_path):
    """A folder with a third-party package as an installer leaves it: a module, and metadata that name its method."""
    folder = tmp_path / "site"
    info = folder / "mean_direction_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "mean_direction_plugin.py").write_text(textwrap.dedent(PLUGIN))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mean-direction-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hf_kd.methods]\nmean-direction = mean_direction_plugin:MeanDirection\n")
    return folder


@pytest.mark.processes
def test_a_third_party_method_is_used_by_name_saved_and_loaded(plugin_path, tmp_path):
    model, with_it = tmp_path / "model", processes.surroundings(PYTHONPATH=str(plugin_path))
    (done,) = processes.run(["-c", USE, model], environments=[with_it])
    assert done.out.strip() == "saved", done.err
    load = ["-c", LOAD, model]
    loaded, refused = processes.run(load, load, environments=[with_it, processes.surroundings()])
    assert loaded.out.split(maxsplit=2)[:2] == ["MeanProjection", "mean-direction"], loaded.err
    assert refused.code != 0, "without the package it does not load un-erased"
    assert "Install the package whose method wrote this model" in refused.err


def test_names_and_options():
    assert {"esc", "esc-t"} <= set(available_methods())
    assert make_method("esc", k=3) == ESC(k=3)
    assert make_method("esc-t", lr=2.0) == ESCT(lr=2.0)
    assert get_method("esc") is ESC
    method = ESC(k=2)
    assert make_method(method) is method


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (lambda: make_method("escc"), ValueError, "Unknown method 'escc'. Did you mean 'esc'.*Available: cover, esc"),
        (
            lambda: make_unlearning_method("scrap"),
            ValueError,
            "Unknown method 'scrap'. Did you mean 'scrub'.*Available: amnesiac.*scrub",
        ),
        (lambda: get_method("scrap"), ValueError, "Available: eraser: cover.*; weights: amnesiac"),
        (lambda: make_method("scrub"), ValueError, "'scrub' changes weights and fits no eraser: use hf_kd.unlearn"),
        (
            lambda: make_method(make_unlearning_method("scrub")),
            ValueError,
            "'scrub' changes weights and fits no eraser",
        ),
        (lambda: make_unlearning_method("esc"), ValueError, "'esc' fits an eraser and leaves weights alone"),
        (lambda: make_unlearning_method(ESC()), ValueError, "'esc' fits an eraser and leaves weights alone"),
        (lambda: make_method("esc", tau=1), TypeError, "no option tau. It takes p, k, center, per_class"),
        (lambda: make_method(ESC(), k=1), TypeError, "already has its settings"),
        (lambda: make_method(3), TypeError, "name or a Method"),
        (lambda: build({"kind": "unknown"}), ValueError, "Unknown eraser kind"),
    ],
)
def test_wrong_names_say_what_there_is(action, error, message):
    with pytest.raises(error, match=message):
        action()


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="already registered"):

        @register_method
        class Other(ESC):
            pass

    with pytest.raises(TypeError, match="subclass of hf_kd.Method"):
        register_method(dict)


def test_the_registry_imports_no_method_and_no_torch():
    code = """
import sys, types
package = types.ModuleType("hf_kd")  # the package without its public names, which bring torch
package.__path__ = [sys.argv[1]]
sys.modules["hf_kd"] = package
from hf_kd.methods import registry
assert registry.method_info("scrub").options and registry.available_methods() and registry.method_infos("eraser")
print([name for name in sys.modules if name.split(".")[0] in ("torch", "transformers", "numpy", "sklearn")])
"""
    command = [sys.executable, "-c", code, str(ROOT / "src" / "hf_kd")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.processes
def test_what_is_stored_of_the_built_in_methods_is_what_their_classes_say():
    command = [ROOT / "tools" / "methods_table.py", "--check"]
    (done,) = processes.run(command, environments=[processes.surroundings()])
    assert done.code == 0, done.err


@pytest.mark.parametrize("name", available_methods(None))
def test_a_built_in_info_agrees_with_its_class(name):
    info, cls = method_info(name), get_method(name)
    assert info == MethodInfo.of(cls)
    assert info.kind == ("eraser" if issubclass(cls, Method) else "weights")
    assert info.needs_retain == (cls.needs_retain if info.kind == "eraser" else "D_r" in cls.needs)
    assert info.needs in registry.NEEDS
    assert all((info.source, info.about, info.when))
    own = {option.name: (option.type, option.default) for option in info.options}
    assert all(option.about for option in info.options), "every option says what it does"
    assert own == {field.name: (field.type, field.default) for field in fields(cls)}


def test_infos_are_those_of_all_methods_erasers_first():
    infos = method_infos()
    assert (
        {info.name for info in infos} == {*available_methods(), *unlearning_methods()} == set(available_methods(None))
    )
    assert [info.kind for info in infos] == sorted(info.kind for info in infos)
    assert [info.name for info in method_infos("weights")] == list(unlearning_methods())


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is gone after it."""
    for table in ("_METHODS", "_ERASERS"):
        monkeypatch.setattr(registry, table, dict(getattr(registry, table)))


class _Point:
    """An entry point of an installed package."""

    def __init__(self, name: str, found: object):
        self.name, self.value, self.load = name, f"somewhere:{name}", lambda: found


@dataclass(frozen=True, kw_only=True)
class Shrink(UnlearningMethod):
    """Every weight shrinks a little.

    Attributes:
        factor: What each is multiplied by,
            once.
    """

    name: ClassVar[str] = "shrink"
    needs: ClassVar[str] = "D_f"

    factor: float = 0.5
    layers: tuple[str, ...] = ()

    def change(self, task):
        return {}


@pytest.mark.usefixtures("own_registry")
def test_methods_that_change_weights_come_through_the_same_entry_points(monkeypatch):
    monkeypatch.setattr(registry, "entry_points_of_methods", lambda: [_Point("shrink", Shrink), _Point("odd", dict)])
    assert "shrink" in available_methods(None)
    assert make_unlearning_method("shrink", layers=["head"]) == Shrink(layers=("head",))
    assert "shrink" not in available_methods(), "once loaded its kind is known"
    info = method_info("shrink")
    assert (info.kind, info.needs, info.about) == ("weights", "D_f", "Every weight shrinks a little.")
    told = {option.name: option.about for option in info.options}
    assert told["factor"] == "What each is multiplied by, once."
    assert [option.name for option in info.options] == ["seed", "bn_mode", "factor", "layers"]
    with pytest.raises(ValueError, match="changes weights and fits no eraser"):
        make_method("shrink")
    with pytest.raises(TypeError, match=r"entry point 'somewhere:odd' .* has to be a subclass of hf_kd\.Method"):
        get_method("odd")


@pytest.mark.usefixtures("own_registry")
def test_one_decorator_registers_both_kinds():
    assert register_method(Shrink) is Shrink
    assert unlearning_methods()["shrink"] is Shrink

    @dataclass(frozen=True, kw_only=True)
    class Vague(Shrink):
        name: ClassVar[str] = "vague"
        needs: ClassVar[str] = "something"

    with pytest.raises(ValueError, match="needs='something'"):
        register_method(Vague)


def test_what_is_said_of_a_measured_value_stands_alone():
    """It is a row of a table, where nothing before it says what "they" are."""
    for cls in filter(is_typeddict, vars(measured).values()):
        for name, text in attribute_texts(cls).items():
            assert not re.match(
                r"(How many|What (it|they|reading)|Its|The same|Those|Both)\b|.*\bof the last one\b", text
            ), (cls, name)
