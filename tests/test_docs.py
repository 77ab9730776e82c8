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
