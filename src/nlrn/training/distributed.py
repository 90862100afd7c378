"""One process or several of a training run: torchrun's group, and the messages between the processes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nlrn.errors import ElsewhereError, TrainingError


@dataclass(frozen=True)
class Processes:
    """This process's place: `rank` of `world`, on `device`; by default the only one."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def agree(self, value: int) -> int:
        """Rank 0's value, in all processes."""
        if self.world == 1:
            return value
        answer = torch.tensor(value, device=self.device)
        with _talking():
            dist.broadcast(answer, 0)
        return int(answer)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes, in place."""
        if self.world > 1:
            with _talking():
                dist.all_reduce(value)
        return value

    def summed(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes, in a new tensor, with its gradient."""
        found: Tensor = _Summed.apply(value, self)  # type: ignore[no-untyped-call]
        return found

    def sum_all(self, tensors: Sequence[Tensor]) -> None:
        """Every tensor becomes its sum over the processes, in place and in one message; one dtype."""
        if self.world == 1:
            return
        flat = self.sum(torch.cat([t.flatten() for t in tensors]))
        sums = torch.split(flat, [t.numel() for t in tensors])
        for tensor, sum_ in zip(tensors, sums, strict=True):
            tensor.copy_(sum_.view_as(tensor))

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Every tensor becomes rank 0's, in place."""
        if self.world > 1:
            for tensor in tensors:
                theirs = tensor.contiguous()
                with _talking():
                    dist.broadcast(theirs, 0)
                tensor.copy_(theirs)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.world > 1:
            with _talking():
                dist.barrier()

    @contextmanager
    def as_one(self) -> Iterator[None]:
        """What is done inside succeeds in all processes or in none.

        The first that failed raises its error, the others ElsewhereError.
        """
        if self.world == 1:
            yield
            return
        problem: Exception | None = None
        try:
            yield
        except Exception as error:
            problem = error
        first = torch.tensor(self.world if problem is None else self.rank, device=self.device)
        try:
            with _talking():
                dist.all_reduce(first, dist.ReduceOp.MIN)
        except TrainingError:
            if problem is not None:  # the others are gone: here is why
                raise problem from None
            raise
        if problem is not None and int(first) == self.rank:
            raise problem
        if int(first) < self.world:
            raise ElsewhereError(f"process {int(first)} of this run failed; its message names the error") from problem


class _Summed(torch.autograd.Function):
    """The sum over the processes: the loss of each depends on what every one put in, so their gradients add up."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        return processes.sum(value.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.processes.summed(gradient), None


@contextmanager
def _talking() -> Iterator[None]:
    """Around a message: TrainingError when another process is not there any more."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        text = str(error).partition("\n")[0]
        raise TrainingError(f"another process of this run is gone; the last state is kept ({text})") from error


def use_private_compiler_cache() -> None:
    """Let TorchInductor, which every optimiser of torch imports, keep its files in the user's cache folder.

    Its usual folder lies in the shared temporary folder under a name that other users can predict and occupy. A folder
    that TORCHINDUCTOR_CACHE_DIR names is kept, and so is the usual one where there is no cache folder.
    """
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        return
    with suppress(OSError, RuntimeError):  # RuntimeError: there is no home folder
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nlrn" / "torchinductor"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


@contextmanager
def joined() -> Iterator[Processes]:
    """The Processes of this run as a context; joins the group when started by torchrun."""
    use_private_compiler_cache()
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    if int(os.environ.get("WORLD_SIZE", 1)) < 2:
        yield Processes(device)
        return
    # The optimiser imports this. After init_process_group it would keep the group forever, whose threads then
    # outlive destroy_process_group and can abort the process at its end, when they free a tensor.
    import_module("torch._dynamo")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes(device, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
