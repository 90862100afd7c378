"""The parts of one training step: the loss, the optimiser, the clipping, and a compiled recurrent state."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from nlrn.model import NLRN, RecurrentBlock
from nlrn.recipe import OptimConfig, TrainConfig


def loss_of(restored: Tensor, clean: Tensor, kind: str) -> Tensor:
    """ "mse", or "rms": the mean over patches of each patch's root-mean-square error."""
    error = (restored - clean).square().flatten(1).mean(1)  # [B]
    return error.mean() if kind == "mse" else (error + 1e-8).sqrt().mean()


def make_optimizer(config: TrainConfig, model: NLRN) -> torch.optim.Optimizer:
    """Adam or AdamW; weight decay on convolution kernels alone, never on biases or batch norms.

    Every group has a `factor` on the learning rate: that of theta and phi is the recipe's embedding_lr.
    """
    o, block = config.optim, model.block.non_local
    embeddings = {id(p) for part in (block.theta, block.phi) for p in part.parameters()}
    groups = []
    for factor, inside in ((1.0, False), (config.embedding_lr, True)):
        own = [p for p in model.parameters() if (id(p) in embeddings) == inside]
        groups.append({"params": [p for p in own if p.dim() > 1], "weight_decay": o.weight_decay, "factor": factor})
        groups.append({"params": [p for p in own if p.dim() <= 1], "weight_decay": 0.0, "factor": factor})
    kind = torch.optim.AdamW if o.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=o.lr, betas=o.betas, eps=o.eps)


@torch.no_grad()
def scale_embeddings(model: NLRN, gain: float) -> None:
    """The kernels of theta and phi times `gain`, so that the logits start gain squared times as large."""
    for part in (model.block.non_local.theta, model.block.non_local.phi):
        part.weight.mul_(gain)


def freeze_norms(model: nn.Module) -> None:
    """Batch norms normalise by their running statistics and leave them alone, while the rest trains on."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


@torch.no_grad()
def clip_gradients(parameters: list[nn.Parameter], o: OptimConfig) -> Tensor:
    """Scale the gradients down to norm `clip`, all together or each alone; the (largest) norm before that."""
    if not o.clip_per_variable:
        return nn.utils.clip_grad_norm_(parameters, o.clip)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = [g.norm() for g in gradients]
    for gradient, norm in zip(gradients, norms, strict=True):
        gradient.mul_(o.clip / norm.clamp(min=o.clip))
    return torch.stack(norms).max()


def compile_states(block: RecurrentBlock, backend: str = "inductor") -> None:
    """Compile one recurrent state in place: all states run the same graphs, each with its own batch norms.

    The attention stays outside of them, whatever backend it runs on. Only training is compiled.
    """
    attention = copy.copy(block.non_local)
    attention.attend = torch.compiler.disable(block.non_local.attend)  # type: ignore[method-assign,no-untyped-call]
    states = []
    for t in range(len(block.norm1)):
        state = copy.copy(block)
        own = {name: nn.ModuleList([getattr(block, name)[t]]) for name in ("norm1", "norm2", "norm3")}
        state._modules = {**block._modules, **own, "non_local": attention}
        states.append(state)
    compiled, eager = torch.compile(RecurrentBlock.forward, dynamic=False, backend=backend), block.forward

    def forward(s: Tensor, s0: Tensor, correlation: Tensor | None, t: int, keep: bool) -> tuple[Tensor, Tensor | None]:
        if not block.training:
            return eager(s, s0, correlation, t, keep)
        found: tuple[Tensor, Tensor | None] = compiled(states[t], s, s0, correlation, 0, keep)
        return found

    block.forward = forward  # type: ignore[method-assign]
