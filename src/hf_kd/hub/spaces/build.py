"""The two Spaces that hf_kd publishes: the metric for `evaluate`, and a demo of one erased model beside its original."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from hf_kd.data.text import escape_markdown
from hf_kd.errors import InvalidValueError
from hf_kd.hub.upload import check_repo_id

GRADIO = "6.31.0"
REQUIREMENTS = "hf-kd[ui]\n"


def metric_space(source: Path, folder: Path, repo_id: str) -> None:
    """Write the Space of the metric in `source` into `folder`, so that `evaluate.load(repo_id)` finds its module.

    `evaluate` looks for a module named like the Space, so the module is renamed; the page imports it by that name.
    """
    name = repo_id.rpartition("/")[2]
    if not name.isidentifier():
        raise InvalidValueError(
            f"The Space {repo_id!r} cannot hold a metric: evaluate imports a module named {name!r}, which is no Python "
            "name. Use letters, digits and '_', for instance knowledge_retention."
        )
    module = source.name
    for file in ("README.md", "requirements.txt"):
        shutil.copyfile(source / file, folder / file)
    shutil.copyfile(source / f"{module}.py", folder / f"{name}.py")
    page = (source / "app.py").read_text(encoding="utf-8")
    (folder / "app.py").write_text(page.replace(f"from {module} import", f"from {name} import"), encoding="utf-8")


def demo_space(model_id: str, folder: Path) -> None:
    """Write a Gradio Space into `folder` that shows the erased model `model_id` beside its original."""
    check_repo_id(model_id)
    front = {
        "title": f"{model_id.rpartition('/')[2]}: before and after erasing",
        "emoji": "\U0001f9fd",
        "colorFrom": "indigo",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": GRADIO,
        "app_file": "app.py",
        "pinned": False,
        "models": [model_id],
        "tags": ["hf-kd", "machine-unlearning"],
    }
    link = f"[{escape_markdown(model_id)}](https://huggingface.co/{model_id})"
    text = f"Answers of {link} and of its original, side by side. What its features still reveal is in its card.\n"
    metadata = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    (folder / "README.md").write_text(f"---\n{metadata}---\n\n{text}", encoding="utf-8")
    (folder / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
    (folder / "demo.json").write_text(json.dumps({"model": model_id}) + "\n", encoding="utf-8")
    (folder / "app.py").write_text(APP, encoding="utf-8")


APP = '''"""An erased model beside its original; which one stands in demo.json."""

import json
from pathlib import Path

from hf_kd.cli.demo.page import page

settings = json.loads((Path(__file__).parent / "demo.json").read_text(encoding="utf-8"))
page(settings["model"]).launch()
'''
