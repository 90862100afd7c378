"""The network for inference: every batch norm folded into a neighbouring convolution, buffers used again.

With fixed statistics a batch norm is x -> a x + b by channel. Those of one state (paper, section 4) go:

- the first, before a ReLU, into the convolution before it, of the state before: its output is scaled by a, and
  the skip from the first features is added as a times these;
- the second into g: the weights of the attention sum to 1, so their average of a v + b is a z + b, and what remains of
  norm(x + z) is a x, added to it. (b cannot go into the convolution after it, which pads with zeros.)
- the third, after a convolution, into that.

What remains of a state is three convolutions, one attention, two fused multiply-adds and two ReLUs.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlrn.errors import InputError
from nlrn.models.nlrn import NLRN, with_sigma_plane
from nlrn.ops import attention_over_planes, neighborhood_attention
from nlrn.ops.forking import note_computation
from nlrn.ops.interface import no_autocast

_Conv = tuple[Tensor, Tensor]  # weight, bias
Carried = Tensor | list[Tensor] | None  # a correlation, or one for each pair of planes


class FoldedNLRN:
    """An NLRN in eval mode, its convolutions in `dtype`; called like it, without gradients and observer.

    The input image, the sigma plane and the last sum are float32 whatever the dtype. A later change of
    the model does not reach it. reach: above 0 the images of a batch are planes of a stack in their order, and the
    attention, nothing else, sees so many planes before and after each.
    """

    reach = 0

    @torch.no_grad()
    def __init__(self, model: NLRN, dtype: torch.dtype = torch.float32) -> None:
        if model.training:
            raise InputError("only a model in eval mode has fixed batch norms to fold")
        self.config, self.dtype, self.backend = model.config, dtype, model.block.non_local.backend
        block = model.block
        norms1 = [_affine(norm) for norm in block.norm1]
        following = [*norms1[1:], _affine(model.tail_norm)]
        self.first_norm = [v.float()[None, :, None, None] for v in _affine(model.head_norm)]
        self.head = self._conv(*_double(model.head))
        self.tail = self._conv(*_double(model.tail))
        self.norm1 = [self._planes(x) for x in norms1[0]]  # of the first state only: scale, shift
        self.skip = [self._planes(scale) for scale, _ in following]
        self.split = [*(part.out_channels for part in block.non_local.embeddings), model.config.channels]
        norms2 = [_affine(norm) for norm in block.norm2]
        self.embed = [self._embedding(model, *norm) for norm in norms2]
        self.keep = [self._planes(scale) for scale, _ in norms2]
        self.conv_a = [self._conv(*_scaled(block.conv_a, *_affine(norm))) for norm in block.norm3]
        self.conv_b = [self._conv(*_scaled(block.conv_b, *norm)) for norm in following]

    def _conv(self, weight: Tensor, bias: Tensor) -> _Conv:
        return weight.to(self.dtype, memory_format=torch.channels_last), bias.to(self.dtype)

    def _planes(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)[None, :, None, None]

    def _embedding(self, model: NLRN, scale: Tensor, shift: Tensor) -> _Conv:
        """theta, phi and the scaled g as one 1 x 1 convolution."""
        part = model.block.non_local
        maps = [*map(_double, part.embeddings), _scaled(part.g, scale, shift)]
        weight, bias = (torch.cat(parts) for parts in zip(*maps, strict=True))
        return self._conv(weight, bias)

    def seeing(self, window: int | None, reach: int = 0) -> FoldedNLRN:
        """The same weights under another window, over planes that see each other."""
        other = copy.copy(self)
        other.config, other.reach = dataclasses.replace(self.config, window=window), reach
        return other

    @torch.inference_mode()
    def __call__(self, x: Tensor, sigma: float | Tensor | None = None) -> Tensor:
        """The restored image [B, C, H, W], float32, as NLRN's forward defines it."""
        note_computation()
        with no_autocast(x.device.type):  # the dtype is this network's, not the caller's
            return self.restored(x, sigma)

    def restored(self, x: Tensor, sigma: float | Tensor | None) -> Tensor:
        """As a call, without its contexts, for exporters that trace it."""
        scale, shift = self.first_norm
        first = with_sigma_plane(self.config, torch.addcmul(shift, x, scale), sigma)
        s0 = convolve(first.to(self.dtype, memory_format=torch.channels_last), self.head)
        a = torch.addcmul(self.norm1[1], s0, self.norm1[0]).relu_()
        correlation: Carried = None
        for t in range(self.config.states):
            carry = self.config.propagation and t + 1 < self.config.states
            z, correlation = self.attend(a, t, correlation, carry)
            z.addcmul_(a, self.keep[t])
            del a
            h = convolve(z, self.conv_a[t]).relu_()
            del z
            a = convolve(h, self.conv_b[t]).addcmul_(s0, self.skip[t]).relu_()
        return x + convolve(a, self.tail).float()

    def attend(self, a: Tensor, t: int, correlation: Carried, carry: bool) -> tuple[Tensor, Carried]:
        """softmax(theta phi^T + S) g [B, C, H, W] in channels_last, and the new S."""
        q, k, v = torch.split(convolve(a, self.embed[t]).permute(0, 2, 3, 1), self.split, -1)
        if self.reach:
            assert not isinstance(correlation, Tensor)
            z, carried = attention_over_planes(
                q,
                k,
                v,
                window=self.config.window,
                reach=self.reach,
                correlations=correlation,
                return_correlations=carry,
                backend=self.backend,
            )
            return z.permute(0, 3, 1, 2), carried
        assert not isinstance(correlation, list)
        found = neighborhood_attention(
            q,
            k,
            v,
            window=self.config.window,
            correlation=correlation,
            return_correlation=carry,
            overwrite=True,
            backend=self.backend,
        )
        z, correlation = found if isinstance(found, tuple) else (found, None)
        return z.permute(0, 3, 1, 2), correlation


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """(a, b) of a batch norm with fixed statistics, float64."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


def _double(conv: nn.Conv2d) -> _Conv:
    assert conv.bias is not None
    return conv.weight.double(), conv.bias.double()


def _scaled(conv: nn.Conv2d, scale: Tensor, shift: Tensor) -> _Conv:
    """A convolution, then scale x + shift, as one, float64."""
    weight, bias = _double(conv)
    return weight * scale[:, None, None, None], bias * scale + shift


def convolve(x: Tensor, conv: _Conv) -> Tensor:
    """x [B, C, H, W] by (weight, bias), padded with zeros to the same size."""
    weight, bias = conv
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
