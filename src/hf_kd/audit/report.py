"""`RetentionReport`, the result of an audit: its data, and the forms in which it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .figures import draw_figures
from .render import markdown, screen, summary
from .report_data import ReportData


class RetentionReport(ReportData):
    """What erased features still reveal about forgotten classes, and what it took to find out. Rates are in percent.

    D_f and D_r are forgotten and retained training samples, D_ft and D_rt their test counterparts (paper, Table 1). Its data
    are those of `ReportData`: `section("converged")`, `score("converged", "D_ft")`, `worst_case`, `to_json()`.

    A console prints it as one screen, a notebook shows the whole of it, and its `repr` is a single line.
    """

    def __repr__(self) -> str:
        return f"<RetentionReport: {summary(self)}>"

    def __rich__(self) -> Any:
        return screen(self)

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def to_markdown(self, heading: int = 2) -> str:
        """The whole report, for a model card.

        Args:
            heading: Level of its title; sections are one below it.

        Returns:
            Markdown: every section in reading order, with a table and its notes.
        """
        return markdown(self, heading)

    def figures(self, directory: str | Path) -> tuple[Path, ...]:
        """Draw what the report can show, as PNG.

        `recovery.png` (Fig. 1), `label_efficiency.png`, `class_means.png` (Fig. 3), `norms.png`, `layer_profile.png`, and
        `tsne.png`, which needs the features themselves: a report that was loaded from JSON does not have them.

        Args:
            directory: Where to; it is made.

        Returns:
            The files.

        Raises:
            ImportError: Without matplotlib; the message says how to install it.
        """
        return draw_figures(self, directory)
