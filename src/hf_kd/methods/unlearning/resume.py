"""Where a training stands at the end of an epoch, in one safetensors file with JSON in its header."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_kd.data.distributed import gather_rows
from hf_kd.data.samples import Samples
from hf_kd.errors import InvalidValueError

from .task import Task

FILE = "training.safetensors"


def save_progress(
    folder: Path, model: nn.Module, names: Iterable[str], optimizer: torch.optim.Optimizer, about: Mapping[str, Any]
) -> None:
    """Write the tensors `names` of a model, the state of its optimizer and `about` (plain values); all of it or nothing."""
    state = model.state_dict()
    tensors = {f"model.{name}": state[name] for name in names}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": v for key, v in values.items() if isinstance(v, Tensor)}
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{FILE}.{os.getpid()}"
    cloned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(cloned, unfinished, metadata={"about": json.dumps(dict(about))})
    os.replace(unfinished, folder / FILE)


def load_progress(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, same: Mapping[str, Any]
) -> dict[str, Any]:
    """Put what `save_progress` wrote back into a model and its optimizer.

    Args:
        folder: Where it is; without a file there, nothing is done.
        model: Of the run that goes on.
        optimizer: Likewise.
        same: What has to be as it was, among what was said.

    Returns:
        What was said; empty where there is no file.

    Raises:
        InvalidValueError: For a file that cannot be read or is of another run.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InvalidValueError(
            f"The training in {path} cannot be gone on with ({type(error).__name__}: {error}): it is damaged. Delete it to "
            "start again."
        ) from error
    different = sorted(key for key, value in same.items() if about.get(key) != json.loads(json.dumps(value)))
    if different:
        raise InvalidValueError(
            f"The training in {path} is of another run ({', '.join(different)} differ). Name another folder, or delete "
            "this one to start again."
        )
    with torch.no_grad():
        state = model.state_dict()
        for name, tensor in tensors.items():
            if name.startswith("model."):
                state[name.removeprefix("model.")].copy_(tensor)
    stored = optimizer.state_dict()
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            number, _, key = rest.partition(".")
            stored["state"].setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict(stored)
    return about


class KeptTraining:
    """One training by epochs, kept in the folder `Task.checkpoint` after each of them; without such a folder, nothing is.

    Args:
        task: Its model is trained.
        optimizer: Of the training.
        same: What has to be as it was for the training to go on.
        draws: Generators that it draws from, beside torch's own.
    """

    def __init__(
        self,
        task: Task,
        optimizer: torch.optim.Optimizer,
        same: Mapping[str, Any],
        draws: Sequence[torch.Generator] = (),
    ) -> None:
        self.task, self.optimizer, self.draws = task, optimizer, tuple(draws)
        self.same = {**same, "processes": task.state.num_processes}
        self.steps, self.last_loss = 0, float("nan")

    def resume(self) -> int:
        """Go back to the end of the last epoch that was kept; returns its number, 0 where there is none."""
        if self.task.checkpoint is None:
            return 0
        done = load_progress(self.task.checkpoint, self.task.model, self.optimizer, self.same)
        if not done:
            return 0
        for generator, states in zip(self._generators(), done["generators"], strict=True):
            own = bytearray.fromhex(states[self.task.state.process_index])
            generator.set_state(torch.frombuffer(own, dtype=torch.uint8))
        self.steps, self.last_loss = done["steps"], done["last_loss"]
        return done["epoch"]

    def keep(self, epoch: int, steps: int, last_loss: float) -> None:
        """Keep the state at the end of an epoch; every process hands in the states of its generators."""
        if self.task.checkpoint is None:
            return
        states = [
            [
                row.to(torch.uint8).numpy().tobytes().hex()
                for row in gather_rows(generator.get_state()[None].long()).cpu()
            ]
            for generator in self._generators()
        ]
        about = {**self.same, "epoch": epoch, "steps": steps, "last_loss": last_loss, "generators": states}
        if self.task.state.is_main_process:
            save_progress(self.task.checkpoint, self.task.model, self.task.model.state_dict(), self.optimizer, about)

    def _generators(self) -> list[torch.Generator]:
        device = self.task.device
        own = [torch.cuda.default_generators[device.index or 0]] if device.type == "cuda" else []
        return [torch.default_generator, *own, *self.draws]


def digest_of(samples: Samples) -> str:
    """Of the labels of a set, in their order: whether a training goes on with the same data."""
    return hashlib.sha256(samples.labels.numpy().tobytes()).hexdigest()
