"""One process or several of a training run: torchrun's group, and what the processes tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process's place: `rank` of `world`, on `device`. Alone unless told otherwise."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def agree(self, value: int) -> int:
        """Rank 0's value, for all."""
        if self.world == 1:
            return value
        answer = torch.tensor(value, device=self.device)
        dist.broadcast(answer, 0)
        return int(answer)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes, in place."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Every tensor becomes its mean over the processes, in place and in one message; one dtype."""
        if self.world == 1:
            return
        flat = self.sum(torch.cat([t.flatten() for t in tensors])).div_(self.world)
        means = torch.split(flat, [t.numel() for t in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Every tensor becomes rank 0's, in place."""
        if self.world > 1:
            for tensor in tensors:
                theirs = tensor.contiguous()
                dist.broadcast(theirs, 0)
                tensor.copy_(theirs)

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()


class joined:  # noqa: N801  # a context, used like a function
    """The Processes of this run as a context; joins the group when started by torchrun."""

    def __enter__(self) -> Processes:
        local = int(os.environ.get("LOCAL_RANK", 0))
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
            torch.backends.cudnn.benchmark = True
        self.several = int(os.environ.get("WORLD_SIZE", 1)) > 1
        if not self.several:
            return Processes(device)
        # The optimiser imports this. After init_process_group it would keep the group for good, whose threads then
        # outlive destroy_process_group and can abort the process at its end, when they free a tensor.
        import_module("torch._dynamo")

        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return Processes(device, dist.get_rank(), dist.get_world_size())

    def __exit__(self, *_: object) -> None:
        if self.several:
            dist.destroy_process_group()
