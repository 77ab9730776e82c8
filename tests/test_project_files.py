"""What stands beside the code for others to read or run agrees with it: how to cite, which version, where files lie."""

from __future__ import annotations

import re
import runpy
import urllib.request
from pathlib import Path

import yaml

from tests.helpers.processes import LONG

ROOT = Path(__file__).resolve().parents[1]


def test_the_citation_is_of_this_version_and_of_the_paper_that_cards_cite():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert cited["cff-version"] == "1.2.0"
    assert cited["version"] == re.search(r'^version = "(.*)"$', project, re.MULTILINE)[1]
    assert cited["license"] == re.search(r'^license = "(.*)"$', project, re.MULTILINE)[1]
    card = (ROOT / "model_card_template.md").read_text(encoding="utf-8")
    (paper,) = cited["references"]
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert f"author    = {{{' and '.join(names)}}}" in card
    assert f"title     = {{{paper['title']}}}" in card
    assert f"booktitle = {{{paper['collection-title']}}}" in card
    assert f"pages     = {{{paper['start']}-{paper['end']}}}" in card


def test_the_changelog_knows_this_version():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.*)"$', project, re.MULTILINE)[1]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(version)}\b", changelog, re.MULTILINE)


def test_scripts_name_files_of_the_project_where_they_are():
    named = re.compile(r'Path\(__file__\)\.resolve\(\)\.parents\[(\d)\]((?: / "[^"]+")+)')
    found = [
        script.parents[int(up)].joinpath(*re.findall('"(.*?)"', down))
        for folder in ("benchmarks", "docs", "examples", "tools")
        for script in (ROOT / folder).rglob("*.py")
        for up, down in named.findall(script.read_text(encoding="utf-8"))
    ]
    assert ROOT / "examples" / "cifar_resnet20.py" in found, "the pattern no longer fits how scripts are written"
    assert not [str(path) for path in found if not path.exists()]


def test_the_example_that_publishes_brings_its_own_hub():
    example = runpy.run_path(str(ROOT / "examples" / "publish.py"))
    with example["loopback"]() as environment:
        asked = urllib.request.Request(
            f"{environment['HF_ENDPOINT']}/api/whoami-v2",
            headers={"Authorization": f"Bearer {environment['HF_TOKEN']}"},
        )
        with urllib.request.urlopen(asked, timeout=LONG) as answer:
            assert answer.status == 200
