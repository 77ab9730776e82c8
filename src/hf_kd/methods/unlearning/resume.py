"""How far a training has come: at the end of an epoch in one safetensors file with JSON in its header, of a scan in JSON.

Each file is replaced by one rename, and says of which run it is: another model or settings are refused, and
other data as far as `run_identity` tells it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_kd.data.digest import tensors_digest
from hf_kd.data.distributed import gather_rows
from hf_kd.data.paths import replace_file
from hf_kd.data.samples import Samples
from hf_kd.errors import InvalidValueError, OutputError

from .task import Task

FILE = "training.safetensors"
SCAN = "scan.json"

OTHER = {"model": "another model", "forget": "other images to forget", "data": "other images to train on"}
"""What is known again by a digest, which says nothing to a person."""

LOOKED_AT = 16
"""Images of a set, evenly spaced, by which it is known again, beside its labels: reading all takes as long as an epoch."""


def run_identity(task: Task, settings: Mapping[str, Any], samples: Samples) -> dict[str, Any]:
    """What has to be as it was for a run to go on; empty where `Task.checkpoint` says that nothing is kept.

    Of a set all labels in their order are compared, and `LOOKED_AT` of its images: a change of others is not noticed.

    Args:
        task: Its model is as the run begins with it.
        settings: Of the method, those that its result depends on.
        samples: What is trained on.
    """
    if task.checkpoint is None:
        return {}
    return {
        "settings": dict(settings),
        "model": tensors_digest(task.model.state_dict().values()),
        "forget": _digest_of(task.forget),
        "data": _digest_of(samples),
        "processes": task.state.num_processes,
        "precision": task.mixed_precision,
    }


def _digest_of(samples: Samples) -> str:
    """Of the labels of a set, in their order, and of a few of its images."""
    rows = torch.linspace(0, len(samples) - 1, min(LOOKED_AT, len(samples))).round().long()
    first = next(samples.subset(rows).batches(LOOKED_AT))
    return tensors_digest([samples.labels, *first.inputs.values()])


def save_progress(
    folder: Path, model: nn.Module, names: Iterable[str], optimizer: torch.optim.Optimizer, about: Mapping[str, Any]
) -> None:
    """Write the tensors `names` of a model, the state of its optimizer and `about` (plain values); all of it or nothing."""
    state = model.state_dict()
    tensors = {f"model.{name}": state[name] for name in names}
    for number, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": v for key, v in values.items() if isinstance(v, Tensor)}
    cloned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with _replacing(folder / FILE) as unfinished:
        save_file(cloned, unfinished, metadata={"about": json.dumps(dict(about))})


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file to write, which then takes the place of `path`; what a run that was killed left of one is deleted.

    Raises:
        OutputError: Where it cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        replace_file(unfinished, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise OutputError(
            f"The state of the training cannot be written to {path} ({error}); what was kept there before is as it was. "
            "Make room or the folder writable, and call again to go on, or name another folder to start again."
        ) from error
    with contextlib.suppress(OSError):  # what could not be deleted is in nobody's way
        for left in path.parent.glob(f"{path.name}.*.unfinished"):
            left.unlink(missing_ok=True)


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
            about = dict(json.loads(file.metadata()["about"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    _refuse_another(path, about, same)
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


def save_scan(folder: Path, about: Mapping[str, Any]) -> None:
    """Write how far a scan has come (plain values); all of it or nothing."""
    with _replacing(folder / SCAN) as unfinished:
        unfinished.write_text(json.dumps(dict(about)), encoding="utf-8")


def load_scan(folder: Path, same: Mapping[str, Any]) -> dict[str, Any]:
    """What `save_scan` wrote; empty where there is no file. Raises as `load_progress` does."""
    path = folder / SCAN
    if not path.is_file():
        return {}
    try:
        about = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    _refuse_another(path, about, same)
    return about


def count_earlier(task: Task, done: Mapping[str, Any]) -> None:
    """Count the seconds of earlier calls up to what was kept, of several states the latest; older files say none."""
    task.seconds_before = max(task.seconds_before, done.get("seconds", 0.0))


def _damaged(path: Path, error: Exception) -> InvalidValueError:
    return InvalidValueError(
        f"The training in {path} cannot be gone on with ({type(error).__name__}: {error}): it is damaged. Delete it to "
        "start again."
    )


def _refuse_another(path: Path, about: Mapping[str, Any], same: Mapping[str, Any]) -> None:
    about = {"precision": same.get("precision"), **about}  # which older files do not say
    there, here = (_flat(json.loads(json.dumps(dict(each)))) for each in (about, same))
    different = [
        OTHER.get(name, f"{name}={value!r}, and there {there.get(name)!r}")
        for name, value in here.items()
        if there.get(name) != value
    ]
    if different:
        raise InvalidValueError(
            f"The training in {path} is of another run ({'; '.join(different)}). Name another folder, delete this one to "
            "start again, or go on with what is said there."
        )


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    """With the settings of a method beside the rest, which knows better how many epochs they mean."""
    return {**about.get("settings", {}), **{name: value for name, value in about.items() if name != "settings"}}


class KeptTraining:
    """One training by epochs, kept in the folder `Task.checkpoint` after each of them; without such a folder, nothing is.

    Args:
        task: Its model is trained.
        optimizer: Of the training.
        settings: Of the method.
        samples: What is trained on.
        draws: Generators that it draws from, beside torch's own.
    """

    def __init__(
        self,
        task: Task,
        optimizer: torch.optim.Optimizer,
        settings: Mapping[str, Any],
        samples: Samples,
        draws: Sequence[torch.Generator] = (),
    ) -> None:
        self.task, self.optimizer, self.draws = task, optimizer, tuple(draws)
        self.same = run_identity(task, settings, samples)
        self.steps, self.last_loss = 0, float("nan")

    def resume(self) -> int:
        """Go back to the end of the last epoch that was kept; returns its number, 0 where there is none."""
        if self.task.checkpoint is None:
            return 0
        done = load_progress(self.task.checkpoint, self.task.model, self.optimizer, self.same)
        if not done:
            return 0
        count_earlier(self.task, done)
        stored, here = done["generators"], self._generators()
        if isinstance(stored, list):  # older files: in order, with that of a GPU where there was one
            names = [name for name in here if name != "cuda"]
            stored = dict(
                zip(names if len(stored) == len(names) else [names[0], "cuda", *names[1:]], stored, strict=True)
            )
        for name in here.keys() & stored.keys():
            own = bytearray.fromhex(stored[name][self.task.state.process_index])
            here[name].set_state(torch.frombuffer(own, dtype=torch.uint8))
        if here.keys() != stored.keys():
            self.task.warn(
                "The training was kept on another kind of device: what a device draws itself, as dropout, is drawn anew."
            )
        self.steps, self.last_loss = done["steps"], done["last_loss"]
        return done["epoch"]

    def keep(self, epoch: int, steps: int, last_loss: float) -> None:
        """Keep the state at the end of an epoch; every process hands in the states of its generators."""
        if self.task.checkpoint is None:
            return
        states = {
            name: [
                row.to(torch.uint8).numpy().tobytes().hex()
                for row in gather_rows(generator.get_state()[None].long()).cpu()
            ]
            for name, generator in self._generators().items()
        }
        about = {"epoch": epoch, "steps": steps, "last_loss": last_loss, "generators": states}
        about |= {**self.same, "seconds": self.task.seconds}
        if self.task.state.is_main_process:
            save_progress(self.task.checkpoint, self.task.model, self.task.model.state_dict(), self.optimizer, about)

    def _generators(self) -> dict[str, torch.Generator]:
        device = self.task.device
        own = {"cuda": torch.cuda.default_generators[device.index or 0]} if device.type == "cuda" else {}
        return {"cpu": torch.default_generator, **own, **{f"draws.{i}": draws for i, draws in enumerate(self.draws)}}
