"""Batch norms in training: by the statistics of all processes together, frozen, or measured anew."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from nlrn.training.distributed import Processes
from nlrn.training.pairs import Batch


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm by the statistics of all processes' shares taken together, which may differ in size.

    It computes what one process would over the whole batch, gradients included: the sums over the processes are
    differentiated. PyTorch's SyncBatchNorm does so for CUDA tensors only. In eval mode it is a plain batch norm. plain:
    whose parameters and statistics these are (shared, not copied).
    """

    def __init__(self, plain: nn.BatchNorm2d, processes: Processes) -> None:
        super().__init__(plain.num_features, plain.eps, plain.momentum)
        self.weight, self.bias = plain.weight, plain.bias
        self._buffers = plain._buffers
        self.train(plain.training)
        self.processes = processes
        self._over_all = torch.compiler.disable(self._together)  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        """X [B, C, H, W] normalised, of its dtype."""
        result: Tensor = self._over_all(x) if self.training else super().forward(x)
        return result

    def _together(self, x: Tensor) -> Tensor:
        """One message of 2 C + 1 numbers, in float64 so that the mean's square may be subtracted."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # [B, C, H, W]
        var, mean = (s.double() for s in torch.var_mean(wide, (0, 2, 3), correction=0))
        n = mean.new_tensor([wide.numel() // self.num_features])
        sums = self.processes.summed(torch.cat([n * mean, n * (var + mean.square()), n]))
        mean, square = (sums[:-1] / sums[-1]).chunk(2)
        var = (square - mean.square()).clamp(min=0)
        self._follow(mean, var, sums[-1])
        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        scale, shift = (s.to(wide.dtype).view(1, -1, 1, 1) for s in (scale, shift))
        return torch.addcmul(shift, wide, scale).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, n: Tensor) -> None:
        """Update the running statistics as PyTorch does: the variance is the unbiased one."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_((var * n / (n - 1)).to(self.running_var.dtype), share)


def sync_norms(model: nn.Module, processes: Processes) -> None:
    """Make the model's batch norms normalise by all processes' statistics, in place; nothing with one process."""
    if processes.world == 1:
        return
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                parent.add_module(name, SyncedBatchNorm2d(child, processes))


def freeze_norms(model: nn.Module) -> None:
    """Make the batch norms normalise by their running statistics and keep them; the rest continues to train."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


@torch.no_grad()
def measure_norms(
    model: nn.Module,
    batches: Iterable[Batch],
    share: float,
    processes: Processes,
    autocast: AbstractContextManager[object],
) -> None:
    """Measure the statistics of a model in training mode: the mean of those of the batches of all processes.

    batches: of this process, each a whole one. share: their part of all batches. autocast: around each call.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
    for batch in batches:
        with autocast:
            model(batch.degraded, batch.sigma)
    if processes.world > 1:
        for mean in [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]:
            processes.sum(mean.mul_(share))
