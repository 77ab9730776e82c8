"""The bench: model x data x protocol x methods x seeds -> JSON lines, tables, figures.

`config` reads what is asked for, `protocols` says which images are to be forgotten, `run` goes cell by cell, `build` makes
each row's model, `measure` says what is left, `memory` what it took, `store` keeps it, `tables`, `tables_latex`, `figures`
and `row_figures` show it; `shared` is what all rows of an experiment start from, `places` where what is drawn of a row lies.
"""

from pathlib import Path

from hf_kd.errors import OutputError

from .config import Experiment, Measures, Row, experiments, read_config
from .figures import draw
from .protocols import Problem, make_problem, split_identities
from .run import NotOpenedError, bench
from .store import Store
from .tables import markdown
from .tables_latex import latex

__all__ = [
    "Experiment",
    "Measures",
    "NotOpenedError",
    "Problem",
    "Row",
    "Store",
    "bench",
    "draw",
    "experiments",
    "latex",
    "make_problem",
    "markdown",
    "read_config",
    "split_identities",
    "write_tables",
]


def write_tables(found: list[Experiment], store: Store, folder: Path, figures: bool = True) -> list[Path]:
    """Write tables.md, a .tex for each experiment, and the figures.

    Args:
        found: The experiments.
        store: Their results.
        folder: Where the files go.
        figures: Whether figures are drawn.

    Returns:
        The files.

    Raises:
        OutputError: They cannot be written.
    """
    try:
        return _write(found, store, folder, figures)
    except OSError as error:
        raise OutputError(
            f"Tables and figures cannot be written to {folder} ({error.strerror or error}). The results are in "
            f"{store.path}: --tables-only writes what there is of them."
        ) from error


def _write(found: list[Experiment], store: Store, folder: Path, figures: bool) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "tables.md"]
    written[0].write_text("\n".join(markdown(one, store) for one in found), encoding="utf-8")
    for one in found:
        path = folder / f"{one.name}.tex"
        path.write_text(latex(one, store), encoding="utf-8")
        written.append(path)
        if figures:
            written += draw(one, store, folder / "figures" / one.name)
    return written
