"""The paper in NumPy float64, written from its formulas alone: dense, slow, sharing nothing with the package.

Every pair of pixels is formed and masked; no tiles, no gathers, no autograd. Arrays inside the attention are
[B, H, W, C]; images and feature maps are [B, C, H, W]. "Dense S" is [B, N, N], N = H * W in row-major
order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Array = np.ndarray
Params = dict[str, Array]

BN_EPS = 1e-3
BN_MOMENTUM = 0.01


# --------------------------------------------------------------------------------------------- neighbourhoods
def neighbours(height: int, width: int, window: int | None) -> Array:
    """[N, N] bool: may pixel i (row) see pixel j (column)? Windows are clipped at the border, not shifted."""
    y, x = (axis.reshape(-1) for axis in np.mgrid[:height, :width])
    if window is None:
        return np.ones((height * width, height * width), dtype=bool)
    radius = window // 2
    return (abs(y[:, None] - y[None, :]) <= radius) & (abs(x[:, None] - x[None, :]) <= radius)


def masked_softmax(logits: Array, mask: Array) -> Array:
    """Softmax over the last axis of [B, N, N], zero where the mask [N, N] is False."""
    shown = np.where(mask, logits, -np.inf)
    weights = np.exp(shown - shown.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def attention(q: Array, k: Array, v: Array, window: int | None, carried: Array | None = None) -> tuple[Array, Array]:
    """softmax_j(q_i.k_j + S_prev) v_j and the new S; q, k [B, H, W, Cm], v [B, H, W, C], S [B, N, N]."""
    batch, height, width, _ = q.shape
    flat_q, flat_k, flat_v = (np.asarray(t, np.float64).reshape(batch, height * width, -1) for t in (q, k, v))
    logits = flat_q @ flat_k.transpose(0, 2, 1)
    if carried is not None:
        logits = logits + carried
    out = masked_softmax(logits, neighbours(height, width, window)) @ flat_v
    return out.reshape(batch, height, width, -1), logits


def attention_over_planes(
    q: Array, k: Array, v: Array, window: int | None, reach: int, carried: Array | None = None
) -> tuple[Array, Array]:
    """`attention` of [P, H, W, C] over the window in the planes up to `reach` away: S [1, P * N, P * N], all planes."""
    planes, height, width, _ = q.shape
    size = planes * height * width
    flat_q, flat_k, flat_v = (np.asarray(t, np.float64).reshape(1, size, -1) for t in (q, k, v))
    logits = flat_q @ flat_k.transpose(0, 2, 1) + (0 if carried is None else carried)
    near = abs(np.arange(planes)[:, None] - np.arange(planes)) <= reach
    out = masked_softmax(logits, np.kron(near, neighbours(height, width, window))) @ flat_v
    return out.reshape(planes, height, width, -1), logits


def windowed(dense: Array, height: int, width: int, window: int | None) -> Array:
    """Dense S -> [B,H,W,q,q] (None: [B,H,W,H,W]), 0 outside the image, by an explicit loop over offsets."""
    batch = dense.shape[0]
    pairs = dense.reshape(batch, height, width, height, width)
    if window is None:
        return pairs
    radius = window // 2
    result = np.zeros((batch, height, width, window, window))
    for dy, dx in np.ndindex(window, window):
        y = np.array([i for i in range(height) if 0 <= i + dy - radius < height], dtype=int)[:, None]
        x = np.array([i for i in range(width) if 0 <= i + dx - radius < width], dtype=int)
        result[:, y, x, dy, dx] = pairs[:, y, x, y + dy - radius, x + dx - radius]
    return result


# ------------------------------------------------------------------------------- the six distances, section 1
def non_local(x: Array, params: Params, distance: str, window: int | None) -> Array:
    """X + Z with Z = diag(delta)^-1 Phi G for x [B,C,H,W]; params as in NonLocal2d's state_dict."""
    batch, channels, height, width = x.shape
    pixels = x.reshape(batch, channels, -1).transpose(0, 2, 1)  # [B, N, C]
    transformed = _linear(pixels, params, "g")
    mask = neighbours(height, width, window)
    if distance in ("dot_product", "embedded_dot_product"):
        phi = np.where(mask, _exponent(pixels, params, distance), 0.0)
        z = (phi @ transformed) / mask.sum(axis=1)[None, :, None]
    else:
        z = masked_softmax(_exponent(pixels, params, distance), mask) @ transformed
    return x + z.transpose(0, 2, 1).reshape(batch, channels, height, width)


def _exponent(pixels: Array, params: Params, distance: str) -> Array:
    """The table of section 1: Phi of the dot products, log Phi of the exponential kinds. [B, N, N]."""
    left, right = pixels, pixels
    if distance == "euclidean":
        squared = ((pixels[:, :, None, :] - pixels[:, None, :, :]) ** 2).sum(-1)
        return -squared / np.exp(params["log_h"]) ** 2
    if distance in ("embedded_gaussian", "embedded_dot_product"):
        left, right = _linear(pixels, params, "theta"), _linear(pixels, params, "phi")
    elif distance == "symmetric_embedded_gaussian":
        left = right = _linear(pixels, params, "theta")
    elif distance not in ("gaussian", "dot_product"):
        raise ValueError(distance)
    return left @ right.transpose(0, 2, 1)


def _linear(pixels: Array, params: Params, name: str) -> Array:
    weight = params[f"{name}.weight"]
    return pixels @ weight.reshape(weight.shape[0], -1).T + params[f"{name}.bias"]


# ------------------------------------------------------------------------------------- the network, section 2
def random_parameters(shapes: dict[str, tuple[int, ...]], seed: int, embedding: float = 1.0) -> Params:
    """Values for every parameter and statistic, float32-exact; `embedding` scales theta and phi."""
    random = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Array:
        if name.endswith("running_var") or ("norm" in name and name.endswith("weight")):
            return random.uniform(0.6, 1.6, shape)
        if name.endswith("weight"):
            scale = embedding if "theta" in name or "phi" in name else 0.7
            return random.normal(0, scale / np.sqrt(np.prod(shape[1:])), shape)
        return random.normal(0, 0.2, shape)

    return {name: draw(name, shape).astype(np.float32).astype(np.float64) for name, shape in shapes.items()}


@dataclass
class Trace:
    """Inside one pass: carried S after every state, and the batch's statistics (mean, biased var, count)."""

    correlations: list[Array] = field(default_factory=list)
    statistics: dict[str, tuple[Array, Array, int]] = field(default_factory=dict)

    def largest_logit(self, mask: Array) -> float:
        return max(float(abs(np.where(mask, s, 0.0)).max()) for s in self.correlations)


def conv1x1(x: Array, params: Params, name: str) -> Array:
    weight = params[f"{name}.weight"][:, :, 0, 0]
    return np.einsum("oi,bihw->bohw", weight, x, optimize=True) + params[f"{name}.bias"][None, :, None, None]


def conv3x3(x: Array, params: Params, name: str) -> Array:
    """Nine shifted products with zeros outside (cross-correlation, as every network library defines it)."""
    weight, (height, width) = params[f"{name}.weight"], x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    total = np.zeros((x.shape[0], weight.shape[0], height, width))
    for dy, dx in np.ndindex(3, 3):
        shifted = padded[:, :, dy : dy + height, dx : dx + width]
        total += np.einsum("oi,bihw->bohw", weight[:, :, dy, dx], shifted, optimize=True)
    return total + params[f"{name}.bias"][None, :, None, None]


def batch_norm(x: Array, params: Params, name: str, training: bool, trace: Trace) -> Array:
    """eval: running statistics; training: those of the batch (biased variance), noted in the trace."""
    mean, variance = params[f"{name}.running_mean"], params[f"{name}.running_var"]
    if training:
        mean, variance = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
        trace.statistics[name] = (mean, variance, x.size // x.shape[1])
    scale = params[f"{name}.weight"] / np.sqrt(variance + BN_EPS)
    return (x - mean[None, :, None, None]) * scale[None, :, None, None] + params[f"{name}.bias"][None, :, None, None]


def running_after(params: Params, trace: Trace) -> Params:
    """Running statistics after one training pass: momentum 0.01, variance unbiased."""
    updated = {}
    for name, (mean, variance, count) in trace.statistics.items():
        for key, fresh in (("running_mean", mean), ("running_var", variance * count / (count - 1))):
            updated[f"{name}.{key}"] = (1 - BN_MOMENTUM) * params[f"{name}.{key}"] + BN_MOMENTUM * fresh
    return updated


def nlrn(
    x: Array,
    params: Params,
    *,
    states: int,
    window: int | None,
    propagation: bool = True,
    sigma: Array | float | None = None,
    training: bool = False,
    attend: bool = True,
    distance: str = "embedded_gaussian",
    reach: int = 0,
) -> tuple[Array, Trace]:
    """The network on x [B,C,H,W]; sigma a scalar, [B] or [B,1,H,W]; attend=False drops the softmax term.

    reach: the batch is planes of a stack, and the attention, nothing else, sees those up to `reach` away, too.

    Another distance is another Phi in the same place, without a sum over the states.
    """
    trace = Trace()

    def norm(features: Array, name: str) -> Array:
        return batch_norm(features, params, name, training, trace)

    seen = norm(x, "head_norm")
    if sigma is not None:
        seen = np.concatenate([seen, sigma_plane(sigma, x)], axis=1)
    s0 = conv3x3(seen, params, "head")
    s, carried = s0, None
    for t in range(states):
        a = relu(norm(s, f"block.norm1.{t}"))
        if distance != "embedded_gaussian":
            inside = "block.non_local."
            module = {name.removeprefix(inside): p for name, p in params.items() if name.startswith(inside)}
            h = conv3x3(norm(non_local(a, module, distance, window), f"block.norm2.{t}"), params, "block.conv_a")
            s = conv3x3(relu(norm(h, f"block.norm3.{t}")), params, "block.conv_b") + s0
            continue
        update, carried = _attend(a, params, window, carried if propagation else None, reach)
        trace.correlations.append(carried)
        a = a + update if attend else a
        h = conv3x3(norm(a, f"block.norm2.{t}"), params, "block.conv_a")
        h = conv3x3(relu(norm(h, f"block.norm3.{t}")), params, "block.conv_b")
        s = h + s0
    return x + conv3x3(relu(norm(s, "tail_norm")), params, "tail"), trace


def _attend(a: Array, params: Params, window: int | None, carried: Array | None, reach: int) -> tuple[Array, Array]:
    theta, phi, g = (conv1x1(a, params, f"block.non_local.{n}").transpose(0, 2, 3, 1) for n in ("theta", "phi", "g"))
    if reach:
        out, carried = attention_over_planes(theta, phi, g, window, reach, carried)
    else:
        out, carried = attention(theta, phi, g, window, carried)
    return out.transpose(0, 3, 1, 2), carried


def relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def sigma_plane(sigma: Array | float, x: Array) -> Array:
    level = np.asarray(sigma, np.float64)
    level = level.reshape(-1, 1, 1, 1) if level.ndim < 4 else level
    return np.broadcast_to(level, (x.shape[0], 1, *x.shape[2:]))
