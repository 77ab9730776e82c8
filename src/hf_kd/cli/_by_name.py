"""`hf-kd erase --text`: a concept of a two-tower model forgotten by its names, with or without a data set."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from hf_kd.data.text import terminal
from hf_kd.data.vocabulary import templates
from hf_kd.errors import InvalidValueError

if TYPE_CHECKING:
    from hf_kd.features.reader import ReadOptions
    from hf_kd.model.erased_model import ErasedModel

SHOWN = 12


@dataclass(frozen=True)
class ByName:
    """What the options say of a request by name."""

    texts: Sequence[str]
    retain_texts: Sequence[str] | None = None
    publish: bool = False
    ask: bool = False
    languages: Sequence[str] = ()

    @classmethod
    def given(
        cls,
        texts: Sequence[str] | None,
        retain_texts: Sequence[str] | None,
        publish: bool,
        ask: bool,
        languages: Sequence[str] | None,
    ) -> ByName | None:
        """None where no text was given.

        Raises:
            InvalidValueError: For the other options without one, and for a language without templates.
        """
        if texts:
            templates(*languages or ())  # another language is refused at once
            return cls(texts, retain_texts or None, publish, ask, languages or ())
        own = {"--retain-text": retain_texts, "--publish-texts": publish, "--ask": ask, "--language": languages}
        stray = [flag for flag, given in own.items() if given]
        if stray:
            raise InvalidValueError(
                f"{stray[0]} says something of a request by name: add --text TEXT, or leave it out."
            )
        return None

    def erase(
        self,
        model: ErasedModel,
        images: Any,
        retain: Any,
        method: str | None,
        settings: Mapping[str, Any],
        reading: ReadOptions,
    ) -> None:
        """Carry the request out; with `ask` and a terminal only after what is close was shown and agreed to."""
        words = {"retain_texts": self.retain_texts}
        if self.languages:
            words["templates"] = templates(*self.languages)
        if self.ask and sys.stdin.isatty() and sys.stderr.isatty():
            _agree(model.near_texts(self.texts, **words), Console(stderr=True))
        model.erase(
            images,
            method,
            texts=self.texts,
            retain=retain,
            publish_texts=self.publish,
            reading=reading,
            **words,
            **settings,
        )


def _agree(near: Sequence[Any], console: Console) -> None:
    """Show retained names that lie close; end the command where the user wants to name them too."""
    if not near:
        return
    console.print(f"{len(near)} names lie close to what is to be forgotten, and stay unless you name them with --text:")
    for entry in near[:SHOWN]:
        kept = "" if entry.protected else ", too close to be protected"
        console.print(f"  {terminal(entry.name)} (cosine {entry.cosine:.2f}{kept})", markup=False, highlight=False)
    if not typer.confirm("Forget only what was named?", err=True):
        raise typer.Abort
