"""`import hf_kd` loads nothing heavy, and yet the Auto classes of transformers load a saved model, whoever comes first."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import hf_kd
from tests.helpers import processes

SAVED = Path(__file__).parent / "saved_0_1_0"

HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "sklearn",
    "scipy",
    "peft",
    "accelerate",
    "matplotlib",
    "evaluate",
    "gradio",
)
ABOVE = ("hf_kd.audit", "hf_kd.metrics", "hf_kd.bench", "hf_kd.hub", "hf_kd.methods.unlearning")
"""Parts of hf_kd that a model only needs when it is asked for what they do."""


def python(code: str, code_wanted: int = 0) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=processes.LONG)
    assert done.returncode == code_wanted, done.stdout + done.stderr
    return done.stdout


@pytest.mark.processes
def test_tests_and_what_they_start_import_this_checkout(tmp_path):
    told = "import hf_kd; print(hf_kd.__file__)"
    (tmp_path / "told.py").write_text(told)
    given = [processes.surroundings(), processes.surroundings(PYTHONPATH=str(tmp_path))]
    ran = processes.run(["-c", told], ["-c", "import told"], environments=given, folder=tmp_path)
    found = [hf_kd.__file__, python(told), *(done.out for done in ran), *processes.launch(tmp_path / "told.py")]
    own = Path(__file__).parents[1] / "src" / "hf_kd" / "__init__.py"
    assert {Path(each.strip()) for each in found} == {own}, [done.err for done in ran]


FORKED = """
import json, os, sys, tempfile
import torch, torch._dynamo, torch.distributed.tensor  # transformers imports them, and they take longer than it does

said = {}
for name, (packages, code) in json.load(sys.stdin).items():
    for package in packages.split():
        __import__(package)
    assert not {"transformers", "hf_kd"} & set(sys.modules)
    with tempfile.TemporaryFile("w+") as out:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
            try:
                exec(compile(code, name, "exec"), {"__name__": "__main__"})
                sys.stdout.flush()
            except BaseException:
                import traceback
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        out.seek(0)
        said[name] = [os.waitstatus_to_exitcode(status), out.read()]
print(json.dumps(said))
"""
"""Runs each of several programs in a fork of an interpreter that has neither transformers nor hf_kd, but the packages that
it or one before it names."""
PACKAGES = (
    "accelerate datasets PIL.ImageOps safetensors.torch tokenizers regex jinja2.meta jinja2.ext jinja2.sandbox "
    "huggingface_hub._snapshot_download torch.distributed.checkpoint torch.nn.attention.flex_attention"
)


def forked(programs: dict[str, tuple[str, str]]) -> dict[str, tuple[int, str]]:
    """Exit code and output of each program, which starts before transformers and hf_kd are imported."""
    done = subprocess.run(
        [sys.executable, "-c", FORKED],
        input=json.dumps(programs),
        capture_output=True,
        text=True,
        timeout=processes.LONG,
    )
    assert done.returncode == 0, done.stderr
    return {name: tuple(found) for name, found in json.loads(done.stdout.splitlines()[-1]).items()}


def loaded(code: str, among: tuple[str, ...]) -> set[str]:
    """Which of these modules a fresh interpreter has imported after `code`."""
    return set(ast.literal_eval(python(f"{code}\nimport sys\nprint([m for m in {among!r} if m in sys.modules])")))


def test_importing_the_package_imports_nothing_heavy():
    assert loaded("import hf_kd", HEAVY + ABOVE) == set()
    assert loaded("import hf_kd; dir(hf_kd); hf_kd.__version__; hf_kd.HfKdError", HEAVY + ABOVE) == set()
    assert loaded("import hf_kd.cli", HEAVY + ABOVE[:3]) == set()


def test_every_public_name_is_there_and_where_it_says():
    assert sorted(hf_kd.__all__) == sorted(hf_kd._HOME)
    assert set(hf_kd.__all__) <= set(dir(hf_kd))
    for name, home in hf_kd._HOME.items():
        assert getattr(hf_kd, name) is getattr(import_module(f"hf_kd.{home}"), name)
    for name in hf_kd._PACKAGES:
        assert getattr(hf_kd, name) is import_module(f"hf_kd.{name}")
    assert not hasattr(hf_kd, "erase_everything")
    tree = ast.parse(Path(hf_kd.__file__).read_text(encoding="utf-8"))
    typed = next(node for node in tree.body if isinstance(node, ast.If))
    names = {alias.name: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names == {name: f"hf_kd.{home}" for name, home in hf_kd._HOME.items()}, "tools see what runs"


LOAD = """
assert type(AutoConfig.from_pretrained(FOLDER)).__name__ == "ErasedConfig"
assert type(AutoModelForImageClassification.from_pretrained(FOLDER)).__name__ == "ErasedModel"
assert type(AutoModel.from_pretrained(FOLDER)).__name__ == "ErasedFeatureModel"
print("loaded")
"""
BROUGHT = f"""
before = set(sys.modules)
from hf_kd import ErasedModel
above = {(*(name for name in ABOVE if name != "hf_kd.hub"), "hf_kd.hub.document", "hf_kd.hub.card")!r}
brought = {{name for name in {HEAVY!r} + above if name in sys.modules and name not in before}}
assert brought <= {{"datasets"}}, brought  # readers of images know the data sets of `datasets`
{LOAD}
Path(PICKLED).write_bytes(pickle.dumps(AutoConfig.from_pretrained(FOLDER)))
"""
"""A model brings what a model needs, in a process that has torch and transformers alone."""
STOCK = """
model = AutoModelForImageClassification.from_pretrained(FOLDED)
assert type(model).__name__ == "ViTForImageClassification"
try:
    AutoModelForImageClassification.from_pretrained(FOLDER)
except ValueError as error:
    assert "hf_kd_erased" in str(error), error
else:
    raise SystemExit("loaded without hf_kd")
assert not any(name.startswith("hf_kd") for name in sys.modules)
"""
"""A folded model needs no hf_kd, and nothing imports it for one that does."""
UNPICKLED = """
config = pickle.loads(Path(PICKLED).read_bytes())
assert type(AutoModel.from_config(config)).__name__ == "ErasedFeatureModel"
assert type(AutoConfig.from_pretrained(FOLDER)).__name__ == "ErasedConfig"
print("loaded")
"""
METRICS = """
import sys, hf_kd.metrics
assert "sklearn" not in sys.modules, "it takes a second; the functions that need it import it"
print("no more")
"""
TRANSFORMERS_FIRST = f"""
import os, pickle, sys
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoImageProcessor, PreTrainedModel
if os.fork() == 0:
    exec({BROUGHT!r})
else:
    assert os.wait()[1] == 0
    exec({STOCK + UNPICKLED!r})
"""

AFTER = {
    "KNOWLEDGE_RETENTION": "/hub/spaces/knowledge_retention",
    "metrics.run_attacks.__name__": "run_attacks",
    "__version__": hf_kd.__version__,
}
"""What is found after importing the package and nothing else of it, and how it ends."""

PIPELINE = """
from transformers import AutoConfig, pipeline
assert type(pipeline("image-classification", model=FOLDER).model).__name__ == "ErasedModel"
"""

ORDERS = {
    "in the middle of layers": "import hf_kd, transformers.modeling_layers; from transformers import {names}",
    "our model first": "from hf_kd.model.erased_model import ErasedModel; from transformers import {names}",
}

RELOADED = """
import importlib, sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

class Delegating(MetaPathFinder):  # as instrumentation does it: asks all others, itself apart
    asked = False
    def find_spec(self, name, path=None, target=None):
        if self.asked or name not in sys.modules and "auto" not in name:
            return None
        self.asked = True
        try:
            return find_spec(name)
        finally:
            self.asked = False

import hf_kd
sys.meta_path.insert(0, Delegating())
sys.meta_path.insert(2, Delegating())
from transformers import AutoProcessor  # which imports configurations in the middle of what it needs
from transformers import AutoConfig
from transformers.models.auto import configuration_auto, modeling_auto
assert type(AutoConfig.from_pretrained(FOLDER)).__name__ == "ErasedConfig"
assert configuration_auto.__spec__.loader is configuration_auto.__loader__
assert type(configuration_auto.__loader__).__name__ == "SourceFileLoader"
importlib.reload(configuration_auto), importlib.reload(modeling_auto), importlib.reload(hf_kd)
assert type(configuration_auto.AutoConfig.from_pretrained(FOLDER)).__name__ == "ErasedConfig"
assert type(modeling_auto.AutoModel.from_pretrained(FOLDER)).__name__ == "ErasedFeatureModel"
assert sum(type(finder).__name__ == "AutoConfigFinder" for finder in sys.meta_path) == 1
print("loaded")
"""
INSPECT = """
import os, runpy
os.dup2(os.open(SAID, os.O_WRONLY | os.O_CREAT), 2)
sys.argv = ["hf-kd", "inspect", FOLDED, "--json"]
try:
    runpy.run_module("hf_kd", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
"""
THREADS = """
import hf_kd
from concurrent.futures import ThreadPoolExecutor
from transformers import AutoModel, AutoModelForImageClassification
autos = AutoModelForImageClassification, AutoModel
loads = [*(auto.from_pretrained for auto in autos), lambda folder: hf_kd.ErasedModel.from_pretrained(folder)] * 2
with ThreadPoolExecutor(4) as pool:
    models = list(pool.map(lambda load: load(FOLDER), loads))
classes = [type(model) for model in models]
assert classes[0] is classes[2] is hf_kd.ErasedModel and issubclass(classes[1], hf_kd.ErasedModel)
assert classes[1] is not hf_kd.ErasedModel and classes[:3] == classes[3:]
assert "hf_kd.audit" not in sys.modules and hf_kd.audit.RetentionReport.__name__ == "RetentionReport"
"""
"""Four threads find the package as it is imported: nothing before them has imported a model's modules."""


@pytest.mark.processes
def test_fresh_processes_find_public_names_and_load_a_saved_model_by_auto_classes(tmp_path):
    """Whoever is imported first, after reloads and behind other finders, in a process that unpickles, and in threads; and
    what importing a model brings, and what the command prints."""
    names = "AutoConfig, AutoModel, AutoModelForImageClassification"
    places = [str(path) for path in (SAVED / "projection", SAVED / "folded", tmp_path / "config", tmp_path / "said")]
    given = f"import sys\nfrom pathlib import Path\nFOLDER, FOLDED, PICKLED, SAID = {places}\n"
    codes = {"hf_kd first": THREADS + PIPELINE + LOAD, "reloaded": RELOADED}
    codes |= {order: start.format(names=names) + LOAD for order, start in ORDERS.items()}
    wanted = {"metrics": "no more", "transformers first": "loaded"} | dict.fromkeys(codes, "loaded")
    wanted |= {"inspect": "}"} | AFTER
    codes["inspect"] = INSPECT
    codes |= {name: f"import hf_kd; print(hf_kd.{name})" for name in AFTER}
    said = forked(
        {"metrics": ("", METRICS), "transformers first": ("", given + TRANSFORMERS_FIRST)}
        | {name: (PACKAGES, given + code) for name, code in codes.items()}
    )
    assert list(said) == list(wanted)
    assert not {name: text for name, (code, text) in said.items() if code or not text.strip().endswith(wanted[name])}
    assert json.loads(said["inspect"][1])["class"] == "ViTForImageClassification", "JSON and nothing else"
    told = (tmp_path / "said").read_text().splitlines()
    assert all(line.endswith(" ...") for line in told), "what it is at, and no warning"


def test_help_and_errors_in_usage_import_nothing_heavy():
    """All in one interpreter: what one of them imported would still be there."""
    commands = [
        ([], 2),
        (["--help"], 0),
        (["--version"], 0),
        (["methods"], 0),
        (["methods", "esc"], 0),
        (["erase", "--help"], 0),
        (["train-original", "--help"], 0),
        (["demo", "--help"], 0),
        (["erase"], 2),
        (["erase", "model", "--no-such-option"], 2),
        (["no-such-command"], 2),
    ]
    text = f"""
import sys
from hf_kd.cli import main
for arguments, wanted in {commands!r}:
    sys.argv, code = ["hf-kd", *arguments], 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    found = [name for name in {HEAVY + ABOVE[:3]!r} if name in sys.modules]
    assert (code, found) == (wanted, []), (arguments, code, found)
"""
    python(text)


def test_what_the_arguments_alone_refute_is_refused_without_heavy_imports(tmp_path):
    """Paths that are not there, folders in the way, and methods and settings that do not exist."""
    folders = {name: tmp_path / name for name in ("model", "full", "empty")}
    for folder in folders.values():
        folder.mkdir()
    (folders["model"] / "config.json").write_text("{}")
    (folders["full"] / "file").touch()
    model, full, empty, new = (str(tmp_path / name) for name in (*folders, "new"))
    erase, unlearn = (
        ["erase", model, "--dataset", empty],
        ["unlearn", model, "--dataset", empty, "--forget-labels", "a"],
    )
    audit = ["audit", model, "--dataset", empty]
    commands = {
        "There is no folder": ["erase", "./nowhere", "--dataset", empty, "--output", new],
        "There is no file or folder": ["audit", model, "--dataset", "./nowhere"],
        "There is no folder './no-original'": [*audit, "--original", "./no-original"],
        "There is no folder './no-reference'": [*audit, "--retrained", model, "--retrained", "./no-reference"],
        "There is no file or folder './unseen'": [*audit, "--unseen", "./unseen"],
        "neither config.json": ["audit", empty, "--dataset", empty],
        "has something in it already": [*erase, "--output", full],
        "Did you mean 'esc'": [*erase, "--output", new, "--method", "esx"],
        "leaves weights alone": [*unlearn, "--output", new, "--method", "esc"],
        "has no option --epochs": [*erase, "--output", new, "--epochs", "3"],
        "has no option --strength": [*unlearn, "--output", new, "--method", "finetune", "--option", "strength=3"],
    }
    text = f"""
import contextlib, io, sys
from hf_kd.cli import main
for said, arguments in {commands!r}.items():
    sys.argv, told = ["hf-kd", *arguments], io.StringIO()
    with contextlib.redirect_stderr(told):
        try:
            main()
        except SystemExit as end:
            assert end.code == 1, end.code
    assert said in " ".join(told.getvalue().split()), told.getvalue()
print([name for name in {HEAVY + ABOVE[:3]!r} if name in sys.modules])
"""
    assert ast.literal_eval(python(text).splitlines()[-1].strip()) == []
