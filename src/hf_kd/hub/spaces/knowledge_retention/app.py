"""The page of the metric's Space: features of a train and a test split in, Knowledge Retention out.

Files are .npy (never pickled) or .safetensors. Nothing is stored.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import numpy as np
from knowledge_retention import KnowledgeRetention
from safetensors import SafetensorError
from safetensors.numpy import load_file

SCORES = ("D_ft", "D_rt", "HM_t", "D_f", "D_r", "HM")
ABOUT = """# Knowledge Retention
How well does a fresh linear classifier still read the *forgotten* classes from a model's features?
Upload the pooled features [n, d] and the integer labels [n] of a train and a test split: two `.npy` files each, or one
`.safetensors` with the tensors `features` and `labels`.

The **converged** row is the measurement. The **paper** row stops training long before the optimum and falls when
features merely become smaller; it is there to compare with printed numbers. Classes that a model was *never* trained
on are read well above chance, so compare with such a class before calling a number knowledge.
"""


def read(path: str | None, labels_path: str | None, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Features [n, d] and labels [n] of one split; raises gr.Error with what is missing."""
    if path is None:
        raise gr.Error(f"The features of the {split} split are missing.")
    tensors = tensors_of(path)
    if labels_path is not None:
        tensors["labels"] = next(iter(tensors_of(labels_path).values()))
    if "features" not in tensors or "labels" not in tensors:
        raise gr.Error(f"The {split} split has {sorted(tensors)}; both features and labels are needed.")
    return tensors["features"], tensors["labels"]


def tensors_of(path: str) -> dict[str, np.ndarray]:
    """The arrays in a .npy or .safetensors file; a single one counts as features."""
    try:
        named = Path(path).suffix == ".safetensors"
        tensors = load_file(path) if named else {"features": np.load(path, allow_pickle=False)}
    except (ValueError, OSError, EOFError, SafetensorError, TypeError) as error:
        raise gr.Error(f"{Path(path).name} is not a .npy or .safetensors file of plain numbers: {error}") from error
    if len(tensors) == 1:
        tensors = {"features": next(iter(tensors.values()))}
    return tensors


def measure(train, train_labels, test, test_labels, forget: str, with_paper: bool) -> list[list[str]]:
    """One row a protocol, converged first."""
    try:
        forget_labels = [int(part) for part in forget.replace(",", " ").split()]
    except ValueError as error:
        raise gr.Error(f"Forgotten labels are integers such as 3, 7; got {forget!r}.") from error
    arrays = [*read(train, train_labels, "train"), *read(test, test_labels, "test")]
    rows = []
    for protocol in ("converged", "paper")[: 1 + with_paper]:
        try:
            result = KnowledgeRetention(protocol).compute(
                **dict(zip(("train_features", "train_labels", "test_features", "test_labels"), arrays, strict=True)),
                forget_labels=forget_labels,
            )
        except ValueError as error:
            raise gr.Error(str(error)) from error
        rows.append([protocol, *(f"{result[name]:.2f}" for name in SCORES), f"{result['gradient_norm']:.1e}"])
    return rows


def page() -> gr.Blocks:
    """The page, not yet launched."""
    types = [".npy", ".safetensors"]
    with gr.Blocks(title="Knowledge Retention") as blocks:
        gr.Markdown(ABOUT)
        with gr.Row():
            train = gr.File(label="Train features", file_types=types, type="filepath")
            train_labels = gr.File(label="Train labels (if not in the same file)", file_types=types, type="filepath")
            test = gr.File(label="Test features", file_types=types, type="filepath")
            test_labels = gr.File(label="Test labels (if not in the same file)", file_types=types, type="filepath")
        with gr.Row():
            forget = gr.Textbox(label="Forgotten labels", placeholder="3, 7")
            with_paper = gr.Checkbox(label="Also the paper's protocol", value=True)
        button = gr.Button("Measure", variant="primary")
        table = gr.Dataframe(
            headers=["protocol", *SCORES, "gradient norm"],
            label="Accuracies in percent; D_ft and D_f are the forgotten classes",
            interactive=False,
        )
        inputs = [train, train_labels, test, test_labels, forget, with_paper]
        button.click(measure, inputs, table, api_name="measure")
    return blocks


if __name__ == "__main__":
    page().launch(max_file_size="1gb")
