"""The Non-Local Recurrent Network of Liu, Wen, Fan, Loy and Huang (NeurIPS 2018), from top to bottom.

It defines ``NonLocal2d``, the paper's general non-local module with its six distances (section 3), for use in any
network, and ``NLRN``, the recurrent network whose state carries the correlations along
(section 4), as the authors' published code computes it.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nlrn.errors import ConfigError, InputError
from nlrn.models.distances import CARRIED, DISTANCES
from nlrn.ops import convolve3, neighborhood_attention, select_backend
from nlrn.ops.forking import note_computation
from nlrn.ops.interface import no_autocast

TASKS = ("denoise", "sr")
NOISES = ("white", "camera")
MAX_SIZE = 1024  # channels, states, or pixels of a window: far beyond any model, far below what exhausts memory
Observer = Callable[[int, Tensor], None]


def _norm(channels: int) -> nn.BatchNorm2d:
    """TensorFlow's batch norm of the published code: eps 1e-3, momentum 0.99 there is 0.01 here."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _Conv3x3(nn.Conv2d):
    """A 3 x 3 convolution to the same size, which on a CPU learns faster than torch's."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        return convolve3(x, self.weight, self.bias)


def _conv(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    """Same-size convolution with a bias; Glorot uniform kernel, zero bias."""
    conv = (_Conv3x3 if kernel == 3 else nn.Conv2d)(in_channels, out_channels, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class NonLocal2d(nn.Module):
    """X + Z, Z = Phi(X) G(X) / delta(X): every pixel averages similar pixels in a confined neighbourhood.

    Args:
        channels: channels of X.
        embed_channels: channels of theta and phi, by default half of ``channels`` (at least 1).
        distance: Phi, one of ``DISTANCES`` (paper, section 3, table of distance measures).
        window: odd side length q of the neighbourhood (clipped at the border), or None for the whole image.
        h: start value of the learned bandwidth, used by "euclidean" only.
        backend: of ``neighborhood_attention``.

    ``forward`` takes and returns [B, C, H, W]. The four exponential distances are a softmax over the
    neighbours; the two dot products are divided by the number of neighbours inside the image.
    """

    theta: nn.Conv2d
    phi: nn.Conv2d
    log_h: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        embed_channels: int | None = None,
        *,
        distance: str = "embedded_gaussian",
        window: int | None = None,
        h: float = 1.0,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if distance not in DISTANCES:
            raise ConfigError(f"distance must be one of {', '.join(DISTANCES)}, not {distance!r}")
        window = None if window is None else operator.index(window)
        if window is not None and (window < 1 or window % 2 == 0):
            raise ConfigError(f"window must be odd and positive, or None, not {window}")
        if not 0 < h < math.inf:
            raise ConfigError(f"the bandwidth h must be positive, not {h}")
        for name, value in (("channels", channels), ("embed_channels", embed_channels)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        self.distance, self.window, self.backend = distance, window, backend
        kind = DISTANCES[distance]
        embed = max(1, channels // 2) if embed_channels is None else embed_channels
        for name in kind.embeddings:
            self.add_module(name, _conv(channels, embed, 1))
        self.register_parameter("log_h", nn.Parameter(torch.tensor(math.log(h))) if kind.bandwidth else None)
        self.g = _conv(channels, channels, 1)
        nn.init.zeros_(self.g.weight)  # putting the module into a network changes nothing until it is trained

    @property
    def carries(self) -> bool:
        """Whether the network can carry the logits of this distance from state to state."""
        return DISTANCES[self.distance].carries

    @property
    def embeddings(self) -> list[nn.Conv2d]:
        """Those of theta and phi that this distance has."""
        return [getattr(self, name) for name in DISTANCES[self.distance].embeddings]

    def forward(self, x: Tensor) -> Tensor:
        """X + Z, [B, C, H, W] of x's dtype. Raises InputError for another shape, and for one that holds nothing."""
        if x.dim() != 4 or x.numel() == 0:
            raise InputError(f"x must be a filled [B, C, H, W] tensor, not of shape {tuple(x.shape)}")
        kind = DISTANCES[self.distance]
        maps = [embedding(x) for embedding in self.embeddings] or [x]
        theta, phi, g = maps[0], maps[-1], self.g(x)
        dtype = torch.promote_types(theta.dtype, g.dtype)  # under autocast g is 16 bit and x may not be
        if kind.wide:
            dtype = torch.promote_types(dtype, torch.float32)
        q, k, v = (t.to(dtype).permute(0, 2, 3, 1) for t in (theta, phi, g))  # [B, H, W, C]
        with no_autocast(x.device.type):
            q, k = kind.logits(q, k, self.log_h)
            z = kind.weighting(q, k, v, self.window, self.backend)
        return x + z.to(x.dtype).permute(0, 3, 1, 2)

    def attend(self, x: Tensor, correlation: Tensor | None, keep: bool) -> tuple[Tensor, Tensor | None]:
        """One recurrent state of the paper: x + softmax(theta phi^T + S) g and, if kept, the new S."""
        maps = (*self.embeddings, self.g)
        weight, bias = (torch.cat([getattr(m, name) for m in maps]) for name in ("weight", "bias"))
        qkv = F.conv2d(x, weight, bias).permute(0, 2, 3, 1)  # one 1x1 convolution: [B, H, W, 2 Cm + C]
        q, k, v = torch.split(qkv, [m.out_channels for m in maps], -1)
        found = neighborhood_attention(
            q,
            k,
            v,
            window=self.window,
            correlation=correlation,
            return_correlation=keep,
            overwrite=True,  # only the next state reads it
            backend=self.backend,
        )
        z, correlation = found if isinstance(found, tuple) else (found, None)
        return x + z.permute(0, 3, 1, 2), correlation


@dataclass(frozen=True)
class NLRNConfig:
    """The configuration of a network; by default the paper's grey denoiser (340,099 parameters).

    in_channels: 1 or 3, in and out. channels, embed_channels: of the state, and of theta and phi. states: T.
    window: q, odd, or None for the whole image. propagation: carry the correlations from state to state.
    sigma_input: a second input plane holds the noise level. task: "denoise" or "sr" (luminance). distance: Phi, one of
    DISTANCES (paper, section 3), of which only CARRIED has correlations to carry. noise: one of NOISES, whose
    standard deviation the second plane holds: white noise, or the correlated noise that cameras leave.
    """

    in_channels: int = 1
    channels: int = 128
    embed_channels: int = 64
    states: int = 12
    window: int | None = 45
    propagation: bool = True
    sigma_input: bool = False
    task: str = "denoise"
    distance: str = CARRIED
    noise: str = "white"

    def __post_init__(self) -> None:
        for name in ("in_channels", "channels", "embed_channels", "states"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
            if getattr(self, name) > MAX_SIZE:
                raise ConfigError(f"{name} must be at most {MAX_SIZE}, not {getattr(self, name):,}")
        if self.window is not None and (self.window < 1 or self.window % 2 == 0):
            raise ConfigError(f"window must be odd and positive, or None, not {self.window}")
        if self.window is not None and self.window > MAX_SIZE:
            raise ConfigError(f"window must be at most {MAX_SIZE}, or None for the whole image, not {self.window:,}")
        if self.distance not in DISTANCES:
            raise ConfigError(f"distance must be one of {', '.join(DISTANCES)}, not {self.distance!r}")
        if self.propagation and self.distance != CARRIED:
            raise ConfigError(f"only {CARRIED} carries correlations: {self.distance} requires propagation = false")
        if self.noise not in NOISES or (self.noise != "white" and not self.sigma_input):
            raise ConfigError(f"noise must be {' or '.join(NOISES)}, the latter with sigma_input, not {self.noise!r}")
        if self.task not in TASKS:
            raise ConfigError(f"task must be one of {', '.join(TASKS)}, not {self.task!r}")

    @property
    def head_channels(self) -> int:
        """Channels the first convolution sees: the image's and, when asked for, the sigma plane."""
        return self.in_channels + self.sigma_input


PRESETS = {
    "base": NLRNConfig(),
    "small": NLRNConfig(channels=64, embed_channels=32, states=6, window=15),
}


class RecurrentBlock(nn.Module):
    """The transition of the recurrent network: one set of convolutions, separate batch norms for every state."""

    def __init__(self, config: NLRNConfig, backend: str) -> None:
        super().__init__()
        c = config.channels
        self.norm1 = nn.ModuleList(_norm(c) for _ in range(config.states))
        self.norm2 = nn.ModuleList(_norm(c) for _ in range(config.states))
        self.norm3 = nn.ModuleList(_norm(c) for _ in range(config.states))
        self.non_local = NonLocal2d(
            c, config.embed_channels, distance=config.distance, window=config.window, backend=backend
        )
        self.conv_a = _conv(c, c, 3)
        self.conv_b = _conv(c, c, 3)

    def forward(
        self, s: Tensor, s0: Tensor, correlation: Tensor | None, t: int, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        """State t from the one before: (s [B, C, H, W], the new correlation or None).

        s0: the first features. correlation: carried so far, or None. keep: whether the new one is returned.
        """
        return self.state(self.norms(t), self.non_local.attend, s, s0, correlation, keep)

    def norms(self, t: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        """The three batch norms of state t."""
        return self.norm1[t], self.norm2[t], self.norm3[t]

    def state(
        self,
        norms: tuple[nn.Module, nn.Module, nn.Module],
        attend: Callable[[Tensor, Tensor | None, bool], tuple[Tensor, Tensor | None]],
        s: Tensor,
        s0: Tensor,
        correlation: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """One state with the batch norms given; attend: the attention of a distance that carries correlations."""
        norm1, norm2, norm3 = norms
        a = F.relu(norm1(s))  # [B, C, H, W]
        if self.non_local.carries:
            a, correlation = attend(a, correlation, keep)
        else:
            a = self.non_local(a)
        h = self.conv_a(norm2(a))
        h = self.conv_b(F.relu(norm3(h)))
        return h + s0, correlation


class NLRN(nn.Module):
    """The Non-Local Recurrent Network: an image in, the restored image out, same shape.

    Input [B, C, H, W], float, on the 0..1 scale (noise may exceed it). With ``config.sigma_input`` the noise
    level is a second argument, on the SAME scale (sigma / 255), as a number, a [B] tensor or a [B, 1, H, W] map; it
    bypasses the first batch norm, which would erase it. The output is not clipped.

    ``observer(t, correlation)`` is called after each state with the summed logits S_t, opaque as the operator
    returns them (see ``nlrn.ops.correlation_statistics``); the next state may overwrite them.

    Raises InputError when the channels do not fit, or sigma is missing or not accepted. Source: paper, section 4.
    """

    def __init__(self, config: NLRNConfig | None = None, *, backend: str = "auto") -> None:
        super().__init__()
        self.config = config = config or NLRNConfig()
        self.head_norm = _norm(config.in_channels)
        self.head = _conv(config.head_channels, config.channels, 3)
        self.block = RecurrentBlock(config, backend)
        self.tail_norm = _norm(config.channels)
        self.tail = _conv(config.channels, config.in_channels, 3)

    @property
    def receptive_radius(self) -> int | None:
        """How far an output pixel can see, in pixels: T * (q // 2 + 2) + 2; None for the whole image."""
        c = self.config
        return None if c.window is None else c.states * (c.window // 2 + 2) + 2

    def forward(self, x: Tensor, sigma: float | Tensor | None = None, observer: Observer | None = None) -> Tensor:
        """The restored image [B, C, H, W], not clipped, of x [B, C, H, W] on the 0..1 scale; sigma on that scale."""
        if x.dim() != 4 or x.shape[1] != self.config.in_channels:
            raise InputError(f"this model takes [B, {self.config.in_channels}, H, W], not {tuple(x.shape)}")
        if not torch.compiler.is_compiling():
            note_computation()
        first = with_sigma_plane(self.config, self.head_norm(x), sigma)
        s = s0 = self.head(first).contiguous(memory_format=torch.channels_last)  # [B, C, H, W]
        correlation = None
        for t in range(self.config.states):
            carry = self.config.propagation and t + 1 < self.config.states
            s, found = self.block(s, s0, correlation, t, carry or observer is not None)
            correlation = found if self.config.propagation else None
            if observer is not None and found is not None:
                observer(t, found)
        out: Tensor = x + self.tail(F.relu(self.tail_norm(s)))
        return out

    def reconfigured(self, **changes: Any) -> NLRN:
        """A network with the same parameters (shared, not copied) and another `window` or `propagation`.

        Raises ConfigError for a change that would change the parameters.
        """
        config = dataclasses.replace(self.config, **changes)
        fixed = dataclasses.replace(config, window=self.config.window, propagation=self.config.propagation)
        if fixed != self.config:
            raise ConfigError("only window and propagation can change without changing the parameters")
        return NLRN.sharing(self, config)

    @classmethod
    def sharing(cls, model: NLRN, config: NLRNConfig) -> Self:
        """A network of this class whose parameters and statistics are those of `model`: the same tensors."""
        with torch.device("meta"):  # its own take no memory
            other = cls(config, backend=model.block.non_local.backend)
        trained = {name: p.requires_grad for name, p in model.named_parameters()}
        other.load_state_dict(model.state_dict(keep_vars=True), assign=True)  # which sets the flag by that of its own
        for name, p in other.named_parameters():
            p.requires_grad_(trained[name])
        training = {name: module.training for name, module in model.named_modules()}  # batch norms may be frozen
        for name, module in other.named_modules():
            module.training = training[name]
        return other

    def backend(self, height: int, width: int) -> str:
        """The attention backend that an image of this size runs on."""
        like = self.head.weight.new_empty(()).expand(1, height, width, self.config.embed_channels)
        return select_backend(like, self.config.window, self.block.non_local.backend)


def on_unit_scale(model: NLRN, largest: int) -> NLRN:
    """A network trained on images in 0..largest as one for 0..1: other(x) = model(largest * x) / largest in eval mode.

    The first batch norm and the last convolution depend on the scale. The model itself where largest is 1, else a copy.
    """
    if largest == 1:
        return model
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head_norm.running_mean.div_(largest)  # type: ignore[union-attr]
        other.head_norm.weight.mul_(largest)
        for p in other.tail.parameters():
            p.div_(largest)
    return other


def with_sigma_plane(config: NLRNConfig, x: Tensor, sigma: float | Tensor | None) -> Tensor:
    """The input of the first convolution: x [B, C, H, W], normalised, and a plane of sigma where the model takes one.

    sigma: a number, [B], or a map [B, 1, H, W]. Raises InputError when it is missing, not accepted or does not fit.
    """
    if not config.sigma_input:
        if sigma is not None:
            raise InputError("this model takes no noise level; leave sigma out")
        return x
    if sigma is None:
        raise InputError("this model needs the noise level: give sigma on the scale of the image (sigma / 255)")
    given = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    plane = given.view(-1, 1, 1, 1) if given.dim() < 2 else given
    shape = (x.shape[0], 1, *x.shape[2:])
    if plane.dim() != 4 or any(n not in (1, m) for n, m in zip(plane.shape, shape, strict=True)):
        raise InputError(f"sigma must be a number, [B] or [B, 1, H, W] = {shape}, not {tuple(given.shape)}")
    return torch.cat([x, plane.expand(shape)], 1)
