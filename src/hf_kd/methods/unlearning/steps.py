"""Gradient steps that several processes share and that stop at the last good weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hf_kd.data.distributed import gather_rows, reduce_tensor
from hf_kd.errors import DivergedError
from hf_kd.methods.measured import StepsMeasured

from .task import Task


class GradientSteps:
    """Gradient steps on the parameters of an optimizer: shared by processes, finite, with a count.

    Args:
        task: Its model is stepped.
        optimizer: Its parameters are stepped; those of other parts of the model get no update.
        clip_norm: Bound of the norm of the whole gradient; none by default.
        steps: How many there will be, for the progress bar.
        name: What stands before it.
        done: How many of them an earlier run did, from which this one goes on.
    """

    def __init__(
        self,
        task: Task,
        optimizer: torch.optim.Optimizer,
        *,
        clip_norm: float | None = None,
        steps: int | None = None,
        name: str = "unlearning",
        done: int = 0,
    ) -> None:
        self.task, self.optimizer, self.clip_norm = task, optimizer, clip_norm
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.steps, self.last_loss = 0, float("nan")
        self._stored = [*self.parameters, *task.model.buffers()]
        self._good = [tensor.detach().clone() for tensor in self._stored]
        self._bar = task.bar(steps, name, done)

    def step(self, loss: Tensor, change_gradients: Callable[[], None] | None = None) -> float:
        """One step down a loss.

        Args:
            loss: The mean over this process's samples, with its graph.
            change_gradients: Called once gradients are those of all processes, before the optimizer steps.

        Returns:
            The loss, as the mean over all processes.

        Raises:
            DivergedError: When the loss is not finite, with the weights of the last finite one back in place.
        """
        value = float(reduce_tensor(loss.detach().float().reshape(1), "mean"))
        if not torch.isfinite(torch.tensor(value)):
            self.restore()
            raise DivergedError(
                f"the loss became {value} in step {self.steps + 1}; the weights are those of the last finite loss"
            )
        with torch.no_grad():
            torch._foreach_copy_(self._good, self._stored)  # pyright: ignore[reportPrivateImportUsage]
        self.optimizer.zero_grad(set_to_none=False)
        loss.backward()
        for parameter in self.parameters:
            if self.task.state.num_processes > 1:
                gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = reduce_tensor(gradient, "mean")
        if change_gradients is not None:
            change_gradients()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        self.steps, self.last_loss = self.steps + 1, value
        self._bar.update()
        return value

    def show(self, text: str) -> None:
        """Say something beside the progress bar.

        Args:
            text: In place of what was said before.
        """
        self._bar.show(text)

    @torch.no_grad()
    def restore(self) -> None:
        """Back to the weights whose loss was last seen to be finite."""
        for kept, tensor in zip(self._good, self._stored, strict=True):
            tensor.copy_(kept)

    @torch.no_grad()
    def agree(self) -> None:
        """Statistics of BatchNorm, which each process takes of its own images, become their mean over processes."""
        if self.task.state.num_processes > 1:
            for buffer in self.task.model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(agreed_mean(gather_rows(buffer[None])))

    def close(self) -> StepsMeasured:
        """End, with one network in all processes.

        Returns:
            What was done, for the record.
        """
        self._bar.close()
        self.agree()
        return {"steps": self.steps, "last_loss": self.last_loss}


def agreed_mean(values: Tensor) -> Tensor:
    """The mean over processes of their values [processes, ...]; bit for bit their own where they agree.

    The sum of three equal numbers, divided by three, is another number in one case of seven.
    """
    return torch.where((values == values[0]).all(dim=0), values[0], values.mean(dim=0))
