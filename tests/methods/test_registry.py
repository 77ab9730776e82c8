"""Methods are an open set: built-in ones by name, and those of any installed package through its entry point."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import zipfile

import pytest

from hf_kd import ESC, ESCT, available_methods
from hf_kd.methods.erasers.base import build, get_method, make_method, register_method

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


@pytest.fixture(scope="module")
def plugin_path(tmp_path_factory):
    """A third-party package, built as a wheel and installed by pip into a folder of its own."""
    folder = tmp_path_factory.mktemp("plugin")
    info = "mean_direction_plugin-1.0.dist-info"
    wheel = folder / "mean_direction_plugin-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mean_direction_plugin.py", textwrap.dedent(PLUGIN))
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: mean-direction-plugin\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(
            f"{info}/entry_points.txt", "[hf_kd.methods]\nmean-direction = mean_direction_plugin:MeanDirection\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    subprocess.run([*command, str(folder / "site"), str(wheel)], check=True, capture_output=True)
    return folder / "site"


def run(code: str, argument: str, path) -> str:
    import os

    environment = os.environ | {"PYTHONPATH": str(path)}
    done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_third_party_method_is_used_by_name_saved_and_loaded(plugin_path, tmp_path):
    assert "saved" in run(USE, str(tmp_path / "model"), plugin_path)
    out = run(LOAD, str(tmp_path / "model"), plugin_path)
    assert out.split(maxsplit=2)[:2] == ["MeanProjection", "mean-direction"]
    done = subprocess.run([sys.executable, "-c", LOAD, str(tmp_path / "model")], capture_output=True, text=True)
    assert done.returncode != 0, "without the package it does not load un-erased"
    assert "Install the package whose method wrote this model" in done.stderr


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
        (lambda: make_method("escc"), ValueError, "Unknown method 'escc'; available: cover, esc"),
        (lambda: make_method("esc", tau=1), TypeError, "no option tau; it takes p, k, center, per_class"),
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
