"""`RetentionReport`, the result of an audit: its data, and the forms in which it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .figures import draw_figures
from .render import in_one_line, markdown, screen
from .report_data import ReportData
from .summary import summary_lines
from .verdict import verdict


class RetentionReport(ReportData):
    """What erased features still reveal about forgotten classes, and what it took to find out. Rates are in percent.

    D_f and D_r are forgotten and retained training samples, D_ft and D_rt their test counterparts (paper, Table 1). Its data
    are those of `ReportData`: `section("converged")`, `score("converged", "D_ft")`, `worst_case`, `to_json()`; `verdict`
    says what they mean.

    A console prints it as one screen, a notebook shows the whole of it, and its `repr` is a single line.
    """

    def __repr__(self) -> str:
        return f"<RetentionReport: {in_one_line(self)}>"

    def __rich__(self) -> Any:
        return screen(self)

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    @property
    def verdict(self) -> str:
        """What the report says in one or two plain sentences; `hf_kd.audit.verdict.verdict` has its parts."""
        return verdict(self).text

    def summary(self) -> str:
        """At most ten lines that can be handed on, the verdict first."""
        return "\n".join(summary_lines(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts and numbers, with the verdict; `plot_samples` is left out."""
        head, rest = {"verdict": self.verdict}, super().to_dict()
        return {key: rest.pop(key) for key in ("schema_version", "kind")} | head | rest

    def to_markdown(self, heading: int = 2) -> str:
        """The whole report, for a model card.

        Args:
            heading: Level of its title; sections are one below it.

        Returns:
            Markdown: the summary, then every section in reading order, with a table and its notes.
        """
        return markdown(self, heading)

    def figures(self, directory: str | Path) -> tuple[Path, ...]:
        """Draw what the report can show, as PNG.

        `recovery.png` (after Fig. 1: accuracies), `label_efficiency.png`, `class_means.png` (Fig. 3), `norms.png`,
        `layer_profile.png`, `reference_level.png`, of attacks on weights `weight_profile.png` and `relearning.png`, and
        `tsne.png`, which needs the features themselves: a report that was loaded from JSON does not have them.

        Args:
            directory: Where to; it is made.

        Returns:
            The files.

        Raises:
            ImportError: Without matplotlib; the message says how to install it.
        """
        return draw_figures(self, directory)
