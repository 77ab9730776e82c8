"""The site says what there is: every public name, every error and every page stands in it. `make docs` builds it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hf_kd
from hf_kd import errors

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if not {"_build", "_generated", "_templates"} & set(path.parts))
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
KINDS = sorted(
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.HfKdError) and kind is not errors.HfKdError
)


def test_every_public_name_is_in_the_reference():
    words = set(re.findall(r"\w+", (DOCS / "reference" / "api_index.md").read_text(encoding="utf-8")))
    of_errors = {name for name in hf_kd.__all__ if hasattr(errors, name)}
    assert set(hf_kd.__all__) - of_errors <= words
    assert "errors" in words


@pytest.mark.parametrize("name", KINDS)
def test_every_error_has_its_page(name):
    listed = (DOCS / "errors" / "index.md").read_text(encoding="utf-8")
    assert f"[{name}]({name}.md)" in listed
    base = next(kind for kind in getattr(errors, name).__mro__ if kind.__module__ == "builtins")
    assert f"`{base.__name__}`" in (DOCS / "errors" / f"{name}.md").read_text(encoding="utf-8")


def test_no_page_of_an_error_that_does_not_exist():
    assert sorted(path.stem for path in (DOCS / "errors").glob("*Error.md")) == KINDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_to_files_lead_somewhere(page):
    for target in LINK.findall(re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)):
        if "://" in target or target.startswith("mailto:"):
            continue
        assert (page.parent / target).exists(), target


def said(page: str) -> str:
    """The words of a page of the project, or of a module, on one line."""
    return " ".join((DOCS.parent / page).read_text(encoding="utf-8").split())


def test_what_groups_of_five_show_of_one_class_is_what_was_measured():
    groups = []
    for part in re.split(r"^##+ ", (DOCS / "cover.md").read_text(encoding="utf-8"), flags=re.M):
        names, *rows = [line.split("|")[1:-1] for line in part.splitlines() if line.startswith("|")] or [[]]
        column = next((n for n, name in enumerate(names) if "groups of 5" in name), None)
        if column is not None and not part.startswith("Cat and ship"):  # two classes
            groups += [row[column] for row in rows if row[0].strip() not in ("original", "unseen")]
    shares = [float(share) for share in groups if re.search(r"\d", share)]
    assert len(shares) > 30
    assert f"one class, {min(shares):.0f} to {max(shares):.0f} %" in said("docs/concepts/threat_models.md")


def test_the_drop_of_open_set_search_is_that_of_the_audit_on_real_networks():
    rows = re.findall(
        r"\| open set, FPIR 0\.1, (?:cosine|centred) [| ]+([\d.]+) / ([\d.]+) \|", said("benchmarks/RESULTS_audit.md")
    )
    (cosine, before), (centred, before_centred) = rows
    module = said("src/hf_kd/metrics/identities.py")
    assert f"from {before} to {cosine} % by the raw cosine, and from {before_centred} to {centred} % centred" in module
    tutorial = said("docs/tutorials/person_in_a_gallery.md")
    assert f"from {before} to {cosine} %" in tutorial
    assert f"({before_centred}, then {centred} %)" in tutorial


def test_what_a_small_network_pays_is_said_alike():
    measured = r"from ([\d.]+) to ([\d.]+) %, with k = 1 to ([\d.]+)"
    before, default, one = re.search(measured, said("benchmarks/RESULTS.md")).groups()
    for page in ("docs/which_method.md", "docs/howto/troubleshooting.md"):
        assert re.search(rf"from {before} to {default} % .*? to {one} % with `?k ?= ?1`?", said(page)), page


def test_what_unlearn_returns_is_audited_with_the_processor_that_it_does_not_have():
    fenced = re.compile(r"```(?:python|\{code-cell\} python)\n(.*?)```", re.DOTALL)
    called = re.compile(r"^(\w+) = (?:hf_kd\.)?unlearn\(", re.MULTILINE)
    blocks = [(page, block) for page in PAGES for block in fenced.findall(page.read_text(encoding="utf-8"))]
    calls = [(page, block, name) for page, block in blocks for name in called.findall(block)]
    assert calls
    for page, block, name in calls:
        assert re.search(rf"from_model\({name}, (?:\w+\.)?processor\)", block), f"{page.name}: {name}"
    for function in (hf_kd.unlearn, hf_kd.train_original):
        assert "image processor" in function.__doc__.partition("Returns:")[2]
