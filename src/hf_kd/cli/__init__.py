"""`hf-kd`, the command line: one file a command. Parses and prints; `commands` and the rooms below do the work."""

from __future__ import annotations

import os

from . import audit, bench, card, erase, inspect, publish, push, unlearn, verify  # noqa: F401  (each registers its command)
from ._app import app
from .demo import command as demo  # noqa: F401

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: quiet libraries, then the commands."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging

    logging.disable_progress_bar()  # shards and weights; the feature pass has its own bar
    app()
