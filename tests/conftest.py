"""Fixtures of all tests, marks by place, and where the shared real data lies if it is there."""

from __future__ import annotations

import copy
import functools
import gc
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.processes import LONG, SRC

sys.path.insert(0, SRC)  # here, and in what tests start with this environment
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SRC, os.environ.get("PYTHONPATH")]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a network
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf-kd-tests-")  # nor find or leave anything in the cache of a person
os.environ.update(COLUMNS="80", TERM="xterm")  # wherever tests are started
if coloured := {"FORCE_COLOR", "GITHUB_ACTIONS", "NO_COLOR", "PY_COLORS", "TTY_COMPATIBLE"} & os.environ.keys():
    for name in coloured:  # read as if standard output were a terminal, or not
        del os.environ[name]
if "PYTEST_XDIST_WORKER" in os.environ:  # what tests start has one thread too: waiting threads spin on cores in use
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if gc.isenabled():  # until all is collected: little of it is garbage, and looking takes a quarter of the time
    gc.disable()

import numpy as np
import pytest
import torch
from datasets import Dataset
from filelock import FileLock
from tqdm import tqdm
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from hf_kd import ErasedModel
from hf_kd.audit.options import AuditOptions
from hf_kd.audit.report import RetentionReport
from hf_kd.audit.sections import membership
from hf_kd.data import progress
from hf_kd.model.onnx_export import ExportedFile
from tests.helpers.small import NAMES, labelled, make_dataset, picture, randomise  # noqa: F401

# small models gain nothing from threads, and with several test processes they only get in each other's way
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))

tqdm.monitor_interval = 0  # no thread holds the lock of bars while a test forks: in the fork nobody would give it back

PLACES = {"hub": "hub", "bench": "bench"}
"""Folders of tests whose tests all get a mark."""

SLOW = {
    "audit/sections/test_head",
    "audit/sections/test_identities",
    "audit/test_audit_features",
    "audit/test_audit_model",
    "audit/test_by_name",
    "audit/test_figures",
    "audit/test_hidden_states",
    "audit/test_verdict",
    "audit/test_weight_access",
    "audit/whitebox/test_attacks",
    "audit/whitebox/test_battery",
    "cli/test_by_name",
    "cli/test_demo",
    "cli/test_demo_page",
    "cli/test_erase",
    "cli/test_eraser_only",
    "cli/test_export",
    "cli/test_inspect",
    "cli/test_published",
    "cli/test_train_original",
    "cli/test_unlearn",
    "cli/test_verdict",
    "methods/unlearning/test_built_in",
    "methods/unlearning/test_properties",
    "methods/unlearning/test_regrow",
    "methods/unlearning/test_resume",
    "metrics/test_attacks",
    "model/test_architectures",
    "model/test_concept",
    "model/test_consistency",
    "model/test_cover",
    "model/test_endpoint",
    "model/test_fuzz",
    "model/test_graph",
    "model/test_integrations",
    "model/test_label_mask",
    "model/test_onnx_export",
    "model/test_saving",
    "model/test_stored_eraser",
    "model/test_train",
    "model/test_unlearn",
    "model/test_verify",
    "test_benchmarks",
    "test_by_name_page",
    "test_import",
    "test_onnx_page",
    "test_onnx_service",
    "test_readme",
    "test_real_data",
    "test_saved_0_1_0",
}
"""Files of tests that audit, train, compile or start a process each, or are very many."""

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def image_processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


@functools.cache
def small_vit() -> ViTForImageClassification:
    """Built once; every test gets a copy."""
    from tests.helpers.taught import taught

    config = labelled(
        ViTConfig,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=16,
        patch_size=8,
    )
    return taught(randomise(ViTForImageClassification(config)), image_processor())


@functools.cache
def small_resnet() -> ResNetForImageClassification:
    """Built once; every test gets a copy."""
    from tests.helpers.taught import taught

    config = labelled(ResNetConfig, embedding_size=8, hidden_sizes=[8, 24], depths=[1, 1], layer_type="basic")
    return taught(randomise(ResNetForImageClassification(config)), image_processor())


@pytest.fixture
def vit() -> ViTForImageClassification:
    return copy.deepcopy(small_vit())


@pytest.fixture
def resnet() -> ResNetForImageClassification:
    return copy.deepcopy(small_resnet())


@pytest.fixture(params=["vit", "resnet"])
def model(request):
    """A transformer whose tap is the head's input, and a conv net with BatchNorm whose tap is the tower's output."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def processor() -> ViTImageProcessorPil:
    return image_processor()


@pytest.fixture
def forget() -> Dataset:
    """20 images of "cat"."""
    return make_dataset([2] * 20)


@pytest.fixture
def pixels(processor) -> torch.Tensor:
    images = [picture(i % 5, 777 + i) for i in range(10)]
    return processor(images, return_tensors="pt")["pixel_values"]


@pytest.fixture(scope="session", autouse=True)
def few_draws_of_members() -> Iterator[None]:
    """Audits draw images for the loss attack twice: twenty draws would be most of the time of an audit of few images, and
    what they change, a mean and its deviation, is tested with the attack."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(membership, "DRAWS", 2)
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_takes_long() -> Iterator[None]:
    """Commands say on standard error what takes more than a second, which depends on how busy the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "DELAY", LONG)
        yield


@pytest.fixture
def few_draws(monkeypatch) -> None:
    """`hf-kd audit` asks few-label attackers once, for two numbers of labels: how often they are asked is no question of
    the command line, and takes most of the time of an audit."""
    init = AuditOptions.__init__
    few = {"draws": 1, "shots": [1, 5]}
    monkeypatch.setattr(AuditOptions, "__init__", lambda self, **settings: init(self, **few | settings))


@pytest.fixture
def no_figures(monkeypatch) -> None:
    """Reports leave an empty file for their figures: to draw them takes most of the time of a command."""

    def figures(self, directory):
        file = Path(directory) / "class_means.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        return (file,)

    monkeypatch.setattr(RetentionReport, "figures", figures)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """An erased ViT that never answers "cat", and the file of ONNX that it became: of what takes seconds, one, for all
    processes of tests. Nobody changes either."""
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="needs the extra hf-kd[onnx]")
    own, run = tmp_path_factory.getbasetemp(), os.environ.get("PYTEST_XDIST_TESTRUNUID")
    folder = (own if run is None else own.parent) / "exported"  # processes of one run have the folder above in common
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            model = ErasedModel.from_model(copy.deepcopy(small_vit()), image_processor())
            model.erase(make_dataset([2] * 20), k=2, mask_head=True, progress=False)
            model.save_pretrained(folder / "model")
            (file,) = model.export_onnx(folder / "new" / "model.onnx")
            (folder / "file.json").write_text(json.dumps(file.to_dict()))
    told = json.loads((folder / "file.json").read_text())
    return ErasedModel.from_pretrained(folder / "model"), ExportedFile(**told | {"path": Path(told["path"])})


@pytest.fixture
def fresh_compiler() -> None:
    """Nothing is known of what was compiled before: from models of other sizes in the same lines of code the compiler
    concludes that sizes vary, and captures graphs for all of them, which takes several times as long."""
    torch._dynamo.reset()


@pytest.fixture
def shared() -> Path:
    """The folder of real data and trained weights; the test is skipped where it is not there."""
    if not SHARED.is_dir():
        pytest.skip("the folder of shared data and weights is not beside the project")
    return SHARED


def seed() -> None:
    """What draws from the generators that all share draws the same whichever tests this process ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    seed()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    seed()


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks by place and by name, so that `make test-fast` can leave out what takes long."""
    for item in items:
        parts = item.path.relative_to(Path(__file__).parent).parts
        for folder, mark in PLACES.items():
            if folder in parts:
                item.add_marker(mark)
        if item.path.stem in ("test_processes", "test_distributed", "test_saving_killed"):
            item.add_marker("processes")
        if "/".join(parts).removesuffix(".py") in SLOW:
            item.add_marker("slow")


def pytest_collection_finish() -> None:
    """What was imported stays to the end: garbage is looked for among what tests make."""
    gc.freeze()
    gc.enable()
