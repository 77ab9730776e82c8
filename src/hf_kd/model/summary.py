"""A model in one line: what it forgot, by which methods, and where its pooled features pass."""

from __future__ import annotations

from typing import Any

from hf_kd.data.text import escape_markdown, one_line
from hf_kd.features.protocol import TappedModel
from hf_kd.methods.records import all_records, class_list, classes_in

from .tapped import Tapped


def summary(model: TappedModel) -> str:
    """What `repr` of a model says, without the brackets."""
    records = all_records(model)
    names = model.class_names or {}
    if not records:
        done = "nothing forgotten"
    else:
        classes = sorted(classes_in(records))
        what = [f"{label} ({names[label]})" if label in names else str(label) for label in classes]
        samples = "samples" if any(record.classes is None and not record.n_texts for record in records) else ""
        concept = "a concept" if any(record.n_texts for record in records) else ""
        methods = ", ".join(dict.fromkeys(record.method for record in records))
        done = (
            f"{' and '.join(filter(None, [class_list(what) if what else '', samples, concept]))} forgotten by {methods}"
        )
    taps = ", ".join(map(str, model.taps)) or "not looked for yet"
    k = sum(record.k for record in model.erasures)
    return one_line(f"{type(model.inner).__name__}, {done}; tap: {taps}{f', k = {k}' if k else ''}")


class Summarised(Tapped):
    """A model that shows itself in that line."""

    def __repr__(self) -> str:
        """One line; `print(model.inner)` shows the modules."""
        return f"<ErasedModel: {summary(self)}>"

    def __rich__(self) -> Any:
        from rich.text import Text

        return Text(summary(self))

    def _repr_markdown_(self) -> str:
        return f"**ErasedModel**: {escape_markdown(summary(self), 300)}"
