"""`hf-kd`, the command line: one file a command. Parses and prints; `commands` and the rooms below do the work."""

from __future__ import annotations

import os

from . import audit, bench, card, erase, inspect, publish, push, unlearn, verify  # noqa: F401  (each registers its command)
from ._app import app
from .demo import command as demo  # noqa: F401

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: the commands, with the progress bars of libraries off; the feature pass has its own.

    By environment, which they read when they are imported: help and errors in usage import none of them.
    """
    for name, value in (
        ("TOKENIZERS_PARALLELISM", "false"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
    ):
        os.environ.setdefault(name, value)
    app()
