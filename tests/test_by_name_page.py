"""The page on forgetting by name holds: its Python and its commands run on the tiny model that it builds, offline."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from hf_kd import ErasedModel
from hf_kd.data import vocabulary
from tests.cli.runner import hf_kd

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "by_name.md").read_text(encoding="utf-8")
TINY = PAGE.replace("openai/clip-vit-base-patch32", "tiny-clip").replace("user/pets", "pets")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TINY, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def few_words(monkeypatch):
    """A tiny tower still reads thousands of sentences, letter by letter: a tenth of them says as well that the page runs."""
    lines = vocabulary._lines
    monkeypatch.setattr(vocabulary, "_lines", lambda name: lines(name)[::10])
    caches = (vocabulary.objects, vocabulary.templates)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the page's own block made a tiny CLIP and images; what that block leaves for the others."""
    place = tmp_path_factory.mktemp("page")
    namespace: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        exec(compile(blocks("python")[1], "by_name.md", "exec"), namespace)
    return place, namespace


@pytest.mark.usefixtures("few_draws", "no_figures")
def test_its_python_runs(folder, monkeypatch, tmp_path):
    place, namespace = folder
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-clip").symlink_to(place / "tiny-clip")
    exec(compile(blocks("python")[0], "by_name.md", "exec"), dict(namespace))
    assert [record.n_texts for record in ErasedModel.from_pretrained("erased").erasures] == [2, 2]


@pytest.mark.slow
@pytest.mark.usefixtures("few_draws", "no_figures")
def test_its_commands_run(folder, monkeypatch):
    place, _ = folder
    monkeypatch.chdir(place)
    (commands,) = blocks("bash")
    for command in commands.splitlines():
        hf_kd(*shlex.split(command)[1:])
    assert set(re.findall(r"^hf-kd (\w+)", commands, re.MULTILINE)) == {"erase", "audit"}
