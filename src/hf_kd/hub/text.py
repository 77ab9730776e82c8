"""Names of repositories."""

from __future__ import annotations

from typing import TypeGuard

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id


def is_repo_id(name: str | None) -> TypeGuard[str]:
    """Whether a name can stand in metadata and links as the id of a repository."""
    if not name:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
