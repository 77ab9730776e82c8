"""`hf-kd`, the command line: one file a command. Each parses, calls the library, and prints.

`_app` has what all commands share, `_inputs` makes data sets, models and settings of what is typed, `_tables` prints.
"""

from __future__ import annotations

import gc
import os

from hf_kd.data.progress import plain_lines

from . import (  # noqa: F401  (each registers its command)
    audit,
    bench,
    card,
    erase,
    export,
    inspect,
    methods,
    publish,
    push,
    train_original,
    unlearn,
    verify,
)
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
    plain_lines()
    try:
        app()
    finally:
        gc.freeze()  # looking for garbage among all that was imported would hold the prompt back for more than a second
