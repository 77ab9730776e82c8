"""Text from outside on its way into Markdown: label names, repository ids and data set names are data, never markup."""

from __future__ import annotations

import re

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

LONGEST = 80
"""Characters of a name that a card shows."""


def plain(text: str, most: int = LONGEST) -> str:
    """A name as one line of Markdown that renders as itself: no markup, no HTML, no table cell, no comment."""
    line = re.sub(r"\s+", " ", str(text)).strip()
    line = "".join(c for c in line if c.isprintable())
    line = line if len(line) <= most else line[: most - 1] + "\u2026"
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_\[\]()!#|~{}])", r"\\\1", line)
    return re.sub(r"(https?)(:)", r"\1\\\2", line).replace("--", "\\-\\-")


def is_repo_id(name: str | None) -> bool:
    """Whether a name can stand in metadata and links as the id of a repository."""
    if not name:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
