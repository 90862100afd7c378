"""The parts of one training step: the loss, the optimiser, the clipping, and a compiled recurrent state."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from nlrn.models.nlrn import NLRN, RecurrentBlock
from nlrn.training.config import OptimConfig, TrainConfig
from nlrn.training.pairs import Batch, HalvedBatch

ROUNDING = 0.5 / 255  # added to the root-mean-square errors of which the logarithm is taken; no 8-bit file is finer


def loss_of(restored: Tensor, clean: Tensor, kind: str, region: int = 0) -> Tensor:
    """The loss of patches [B, C, H, W]: of kind "mse", or a mean over patches of what `TrainConfig.loss` says.

    region: of the middle region x region pixels only; 0: of all.
    """
    if region:
        top, left = (n // 2 - region // 2 for n in clean.shape[2:])
        middle = (..., slice(top, top + region), slice(left, left + region))
        restored, clean = restored[middle], clean[middle]
    error = (restored - clean).square().flatten(1).mean(1)  # [B]
    if kind == "log":
        return 0.5 * (error + ROUNDING**2).log().mean()
    return error.mean() if kind == "mse" else (error + 1e-8).sqrt().mean()


def batch_loss(
    model: NLRN, batch: Batch, config: TrainConfig, autocast: Callable[[], AbstractContextManager[object]]
) -> Tensor:
    """The mean loss of a batch.

    Of halves of noisy images with a second term: what the model makes of the input should differ from the target as
    the halves of what it makes of the whole image differ (Huang et al., CVPR 2021, equation 6).
    """
    with autocast():
        restored = model(batch.degraded, batch.sigma)
    loss = loss_of(restored.to(batch.clean.dtype), batch.clean, config.loss, config.loss_region)
    if not isinstance(batch, HalvedBatch) or config.noise.regularization == 0:
        return loss
    with torch.no_grad(), autocast():
        whole = model(batch.halves.whole)
    first, second = batch.halves.of(whole.to(batch.clean.dtype))
    rest = loss_of(restored.to(first.dtype), batch.clean + first - second, config.loss, config.loss_region)
    return loss + config.noise.regularization * rest


class Muon(torch.optim.AdamW):
    """AdamW, but in the groups marked `orthogonal` the momentum of every kernel is made orthogonal.

    A kernel [out, in, height, width] counts as a matrix of `out` rows; its step is the nearest matrix of equal
    singular values (to within some 30 %), scaled to the root mean square that AdamW's steps have, so that one learning
    rate serves both. ``torch.optim.Muon`` takes matrices only, and no other parameters. Source: Jordan et
    al., Muon, 2024; the scale is that of Liu et al., arXiv 2502.16982, section 2.2.
    """

    MOMENTUM = 0.95

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step: AdamW's for the usual groups, then the orthogonal ones."""
        groups = self.param_groups
        try:
            self.param_groups = [g for g in groups if not g["orthogonal"]]
            super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            for p in group["params"] if group["orthogonal"] else ():
                if p.grad is not None:
                    self._orthogonal_step(p, group["lr"], group["weight_decay"])

    def _orthogonal_step(self, p: nn.Parameter, lr: float, weight_decay: float) -> None:
        assert p.grad is not None
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - self.MOMENTUM)
        ahead = p.grad.lerp(state["momentum"], self.MOMENTUM).flatten(1)  # Nesterov's
        scale = 0.2 * max(ahead.shape) ** 0.5
        p.mul_(1 - lr * weight_decay)
        p.add_(orthogonalized(ahead).view(p.shape), alpha=-lr * scale)


class TensorFlowAdam(torch.optim.Adam):
    """Adam as TensorFlow computes it: epsilon is added to a root whose bias is not corrected yet.

    At step t this is torch's with an epsilon of eps / sqrt(1 - beta2^t), which at the first step is 32 times as large.
    Source: Kingma and Ba, arXiv 1412.6980, end of section 2; tf.train.AdamOptimizer ("epsilon hat").
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of Adam with TensorFlow's epsilon."""
        for group in self.param_groups:
            epsilon = group.setdefault("epsilon", group["eps"])
            done = max((int(self.state[p]["step"]) for p in group["params"] if self.state.get(p)), default=0)
            group["eps"] = epsilon / math.sqrt(1 - group["betas"][1] ** (done + 1))
        super().step(closure)


def orthogonalized(matrix: Tensor) -> Tensor:
    """The matrix with its singular values brought to about 1 (0.7 to 1.2) by five Newton-Schulz steps."""
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (2.0315 * gram @ gram - 4.7750 * gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def make_optimizer(config: TrainConfig, model: NLRN) -> torch.optim.Optimizer:
    """Adam, AdamW or Muon; weight decay on convolution kernels only, never on biases or batch norms.

    Muon's orthogonal steps are for the kernels of the recurrent block except theta's and phi's. Every group has a
    `factor` on the learning rate: that of theta and phi is the recipe's embedding_lr.
    """
    o, block = config.optim, model.block
    embeddings = {id(p) for part in block.non_local.embeddings for p in part.parameters()}
    hidden = {id(part.weight) for part in (block.conv_a, block.conv_b, block.non_local.g)}
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for p in model.parameters():
        groups.setdefault((id(p) in embeddings, p.dim() > 1, id(p) in hidden), []).append(p)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "muon": Muon, "tf-adam": TensorFlowAdam}
    kind = kinds[o.optimizer]
    return kind(
        [
            {
                "params": parameters,
                "weight_decay": o.weight_decay if is_kernel else 0.0,
                "factor": config.embedding_lr if is_embedding else 1.0,
                "orthogonal": is_hidden,
            }
            for (is_embedding, is_kernel, is_hidden), parameters in groups.items()
        ],
        lr=o.lr,
        betas=o.betas,
        eps=o.eps,
    )


@torch.no_grad()
def start_embeddings(model: NLRN, gain: float, tied: bool = False) -> None:
    """Multiply the kernels of theta and phi by `gain`: the logits start gain squared times as large.

    tied: phi starts as theta, so that from the first step on pixels of similar features have the largest logits; two
    independent kernels start with a random bilinear form, which does not prefer similar pixels.
    """
    embeddings = model.block.non_local.embeddings
    if tied:
        for part in embeddings[1:]:
            part.weight.copy_(embeddings[0].weight)
    for part in embeddings:
        part.weight.mul_(gain)


@torch.no_grad()
def clip_gradients(parameters: list[nn.Parameter], o: OptimConfig) -> Tensor:
    """Scale the gradients down to norm `clip`, all together or each separately; the (largest) norm before that."""
    if not o.clip_per_variable:
        return nn.utils.clip_grad_norm_(parameters, o.clip)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = [g.norm() for g in gradients]
    for gradient, norm in zip(gradients, norms, strict=True):
        gradient.mul_(o.clip / norm.clamp(min=o.clip))
    return torch.stack(norms).max()


class CompiledBlock(RecurrentBlock):
    """A recurrent block whose states are compiled in training: all run the same graphs, each with its batch norms.

    The attention stays outside of the graphs, whatever backend it runs on. block: whose parts these are (shared, not
    copied).
    """

    def __init__(self, block: RecurrentBlock, backend: str = "inductor") -> None:
        nn.Module.__init__(self)
        for name, part in block.named_children():
            self.add_module(name, part)
        self.train(block.training)
        self._attend = torch.compiler.disable(self.non_local.attend)  # type: ignore[no-untyped-call]
        self._compiled = torch.compile(RecurrentBlock.state, dynamic=False, backend=backend)

    def forward(
        self, s: Tensor, s0: Tensor, correlation: Tensor | None, t: int, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        """As RecurrentBlock; compiled in training only."""
        if not self.training:
            return super().forward(s, s0, correlation, t, keep)
        found: tuple[Tensor, Tensor | None] = self._compiled(
            self, self.norms(t), self._attend, s, s0, correlation, keep
        )
        return found


def compile_states(model: NLRN, backend: str = "inductor") -> None:
    """Compile the recurrent states of a model for training, in place; backend: of ``torch.compile``."""
    model.block = CompiledBlock(model.block, backend)
