"""Errors: a word that is nearly one of those known is answered by the one that was probably meant, everywhere."""

from __future__ import annotations

import pytest
import torch

import hf_kd
from hf_kd.bench.config import experiments
from hf_kd.data.image_source import inspect_images
from hf_kd.data.labels import resolve_forget_labels
from hf_kd.errors import HfKdError, did_you_mean
from hf_kd.methods.registry import make_method, make_unlearning_method
from hf_kd.metrics.label_efficiency import relative_area
from hf_kd.metrics.linear_probe import fit_linear_probe
from hf_kd.metrics.neighbours import knn_predictions
from hf_kd.model.train import _recipe
from tests.helpers.audited import audited
from tests.helpers.small import make_dataset
from tests.metrics.planted import planted

EXPERIMENT = {"model": "m", "dataset": "d", "protocol": "class", "methods": ["original", "esc"]}
X, Y = torch.randn(8, 3), torch.tensor([0, 1] * 4)


@pytest.mark.parametrize(
    ("meant", "action"),
    [
        ("esc", lambda: make_method("escc")),
        ("scrub", lambda: make_unlearning_method("scrap")),
        ("epochs", lambda: make_unlearning_method("scrub", epoch=1)),
        ("adamw", lambda: make_unlearning_method("finetune", optimizer="adamv")),
        ("train", lambda: make_unlearning_method("finetune", bn_mode="trian")),
        ("label", lambda: inspect_images(make_dataset([0, 1]), label_column="lable")),
        ("pce", lambda: make_method("esc-t", loss="pcee")),
        ("linear", lambda: hf_kd.AuditOptions(attacks=["liner"])),
        ("standard", lambda: hf_kd.AuditOptions(attacks="standart")),
        ("weights", lambda: hf_kd.AuditOptions(access="wieghts")),
        ("dataset", lambda: hf_kd.ReadOptions(labels="datset")),
        ("bf16", lambda: hf_kd.ReadOptions(mixed_precision="bf61")),
        ("whitened", lambda: fit_linear_probe(X, Y, geometry="whitend")),
        ("cosine", lambda: knn_predictions(X, Y, X, metric="cosin")),
        ("recall", lambda: relative_area(None, None, None, measure="recal")),
        ("resnet18-cifar10", lambda: _recipe("resnet18-cifar", {})),
        ("tabby", lambda: resolve_forget_labels(["tabbi"], ["tabby", "beagle"])),
        ("methods", lambda: experiments(EXPERIMENT | {"method": []})),
        ("worst_case", lambda: audited(planted(n=60), attacks=["linear"]).section("worstcase")),
        ("class", lambda: experiments(EXPERIMENT | {"protocol": "clas"})),
        ("label_column", lambda: experiments(EXPERIMENT | {"dataset": {"name": "d", "label_colum": "x"}})),
        ("esc", lambda: experiments(EXPERIMENT | {"measure": {"panels": ["escc"]}})),
        ("report", lambda: experiments(EXPERIMENT | {"measure": {"reports": True}})),
    ],
)
def test_a_word_that_is_nearly_right_is_answered_by_the_right_one(meant, action):
    with pytest.raises(HfKdError, match=rf"Did you mean .*'{meant}'"):
        action()


def test_what_is_like_nothing_is_answered_by_nothing():
    assert did_you_mean("tench", ["goldfish", "cockatoo"]) == ""
    assert did_you_mean("ESC", ["esc"]) == " Did you mean 'esc'?"
