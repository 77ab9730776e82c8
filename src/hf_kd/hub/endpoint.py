"""The two files with which a repository answers as an Inference Endpoint; written when asked, and never run by hf_kd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hf_kd.errors import InvalidValueError

FILES = {
    "handler.py": '''"""Inference Endpoint of an erased model; what it answers: hf_kd.model.endpoint.EndpointHandler."""

from hf_kd.model.endpoint import EndpointHandler

__all__ = ["EndpointHandler"]
''',
    "requirements.txt": "hf-kd\n",
}


def write_handler(folder: Path, published: Callable[[str], bytes | None]) -> None:
    """Write `FILES` into a folder that is about to be published.

    Args:
        folder: Of the model.
        published: From a name to the file of that name in the repository; None where it has none.

    Raises:
        InvalidValueError: The repository has another file of that name, which is a person's.
    """
    for name, text in FILES.items():
        there = published(name)
        if there is not None and there != text.encode():
            raise InvalidValueError(
                f"The repository has a {name} of its own, which is left alone. Push without a handler, or take that file "
                f"out of the repository first; by hand, a handler is: {FILES['handler.py'].splitlines()[2]}"
            )
        (folder / name).write_text(text, encoding="utf-8")
