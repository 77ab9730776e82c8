"""`RetentionReport`, the result of an audit: its data, and the forms in which it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .figures import draw
from .render import markdown, screen
from .report_data import ReportData


class RetentionReport(ReportData):
    """What erased features still reveal about forgotten classes, and what it took to find out. Rates are in percent.

    D_f and D_r are forgotten and retained training samples, D_ft and D_rt their test counterparts (paper, Table 1).
    """

    def __rich__(self) -> Any:
        return screen(self)

    def to_markdown(self, heading: int = 2) -> str:
        """The whole report for a model card; `heading` is the level of its title."""
        return markdown(self, heading)

    def figures(self, directory: str | Path) -> tuple[Path, ...]:
        """Draw what the report can show into `directory` (PNG) and return the files; see `figures.draw`.

        Raises ImportError, with the command to install it, without matplotlib.
        """
        return draw(self, directory)
