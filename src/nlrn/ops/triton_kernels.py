"""What runs on the GPU: neighbourhood attention forward, and its gradient as two gathers. See triton.py.

A program owns a tile of `tall` x `wide` pixels of one image and streams the pixels around it, `streamed` at a
time: the tile grown by the window's radius and clipped at the image's border (its halo), row after row. In the
forward and the query pass the tile holds queries and keys are streamed; in the key pass it is the other way
round. Nothing is added up across programs, so no result depends on their order.

Blocks of pixels are [pixels, channels]; channels are padded to a power of two, the extra ones reading as 0.
Logits are [tile, streamed] in float32, -inf where the two pixels are no neighbours. The correlation is
[B, H, W, q, q]: entry (dy, dx) of the query (y, x) is the key (y + dy - r, x + dx - r), so its place is a number
of the query plus the number q * key_y + key_x.
"""

# Without Triton installed the decorators are unknown; with it, untyped.
# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl
from triton.language import constexpr, tensor

from nlrn.ops.interface import MASKED

LOG2E = constexpr(1.4426950408889634)
LOWEST = constexpr(MASKED)  # finite: a maximum over nothing must not turn into inf - inf
FAR = constexpr(1 << 29)  # the window of a pixel that does not exist starts here
HALF_LIMIT = constexpr(65504.0)  # the largest float16


# ------------------------------------------------------------------------------------------------ geometry
@triton.jit
def _tile(height: tensor, width: tensor, tall: constexpr, wide: constexpr) -> tuple[tensor, ...]:
    """This program's image, its tile's first row and column, and y, x, inside [tall * wide] of its pixels."""
    across = tl.cdiv(width, wide)
    down = tl.cdiv(height, tall)
    program = tl.program_id(0)
    image = program // (across * down)
    top = program // across % down * tall
    left = program % across * wide
    n = tl.arange(0, tall * wide)
    y = top + n // wide
    x = left + n % wide
    return image, top, left, y, x, (y < height) & (x < width)


@triton.jit
def _halo(
    top: tensor, left: tensor, height: tensor, width: tensor, radius: tensor, tall: constexpr, wide: constexpr
) -> tuple[tensor, ...]:
    """The halo's first row and column, its number of pixels and of columns, and 2^31 / columns, rounded up."""
    first_row = tl.maximum(top - radius, 0)
    first_column = tl.maximum(left - radius, 0)
    rows = tl.minimum(top + tall + radius, height) - first_row
    columns = tl.minimum(left + wide + radius, width) - first_column
    reciprocal = (((1 << 31) + columns.to(tl.int64) - 1) // columns).to(tl.uint32)
    return first_row, first_column, rows * columns, columns, reciprocal


@triton.jit
def _stream(
    start: tensor, first_row: tensor, first_column: tensor, count: tensor, columns: tensor, reciprocal: tensor,
    size: constexpr,
) -> tuple[tensor, ...]:  # fmt: skip
    """y, x, inside [size] of the halo's pixels from number `start` on, counted along its rows."""
    n = tl.arange(0, size)
    row = start // columns
    along = start - row * columns + n
    # along // columns = (2 * along + 1) // (2 * columns), without a division for every pixel
    down = tl.umulhi((2 * along + 1).to(tl.uint32), reciprocal).to(tl.int32)
    return first_row + row + down, first_column + along - down * columns, start + n < count


@triton.jit
def _window(y: tensor, x: tensor, inside: tensor, height: tensor, width: tensor, radius: tensor) -> tuple[tensor, ...]:
    """Of each pixel's clipped window: first row and column, rows and columns after those; nothing if not inside."""
    low_y = tl.maximum(y - radius, 0)
    low_x = tl.maximum(x - radius, 0)
    more_y = tl.where(inside, tl.minimum(y + radius, height - 1) - low_y, 0)
    more_x = tl.minimum(x + radius, width - 1) - low_x
    return tl.where(inside, low_y, FAR), low_x, more_y, more_x


@triton.jit
def _within(y: tensor, x: tensor, low_y: tensor, low_x: tensor, more_y: tensor, more_x: tensor) -> tensor:
    """Do these pixels lie in those windows? As unsigned numbers, what lies before a window lies far behind it."""
    rows = (y - low_y).to(tl.uint32) <= more_y.to(tl.uint32)
    return rows & ((x - low_x).to(tl.uint32) <= more_x.to(tl.uint32))


# -------------------------------------------------------------------------------------------------- memory
@triton.jit
def _pixels(image: tensor, y: tensor, x: tensor, height: tensor, width: tensor) -> tensor:
    """The pixels' numbers in the batch, 64 bits wide."""
    return (image.to(tl.int64) * height + y) * width + x


@triton.jit
def _load(
    source: tensor, strides: tl.tuple, image: tensor, y: tensor, x: tensor, inside: tensor,
    channels: constexpr, padded: constexpr,
) -> tensor:  # fmt: skip
    """[pixels, padded] of a tensor [B, H, W, channels] with these strides of B, H, W and adjoining channels."""
    channel = tl.arange(0, padded)
    place = y.to(tl.int64) * strides[1] + x.to(tl.int64) * strides[2]
    known = inside[:, None] if padded == channels else inside[:, None] & (channel < channels)[None, :]
    source += image.to(tl.int64) * strides[0]
    return tl.load(source + place[:, None] + channel[None, :], mask=known, other=0.0)


@triton.jit
def _store(
    target: tensor, pixels: tensor, inside: tensor, values: tensor, channels: constexpr, padded: constexpr
) -> None:
    """[pixels, padded] into a contiguous tensor [B, H, W, channels]."""
    channel = tl.arange(0, padded)
    place = pixels[:, None] * channels + channel[None, :]
    known = inside[:, None] & (channel < channels)[None, :]
    tl.store(target + place, values.to(target.dtype.element_ty), mask=known)


@triton.jit
def _row_of(state: tensor, image: tensor, row: tensor, height: tensor, width: tensor, window: tensor) -> tensor:
    """Pointer to the first entry of an image's row of queries. A batch's correlation soon passes 2^31 entries."""
    return state + (image.to(tl.int64) * height + row) * width * (window * window)


@triton.jit
def _places(y: tensor, x: tensor, row: tensor, width: tensor, window: tensor, narrow: constexpr) -> tensor:
    """For each query the number, counted from _row_of(row), to which q * key_y + key_x is added; narrow: 32 bits."""
    radius = window // 2
    pixel = (y - row) * width + x
    pixel = pixel if narrow else pixel.to(tl.int64)
    return pixel * (window * window) + ((radius - y) * window + radius - x)


@triton.jit
def _clear_outside(
    state: tensor, pixels: tensor, y: tensor, x: tensor, inside: tensor, height: tensor, width: tensor, window: tensor,
    size: constexpr,
) -> None:  # fmt: skip
    """Zero the entries of these queries that point out of the image: all that is not written elsewhere."""
    radius = window // 2
    area = window * window
    clipped = (y < radius) | (y + radius >= height) | (x < radius) | (x + radius >= width)
    if tl.max((inside & clipped).to(tl.int32), 0) > 0:
        for start in range(0, area, size):
            n = start + tl.arange(0, size)
            key_y = y[:, None] + (n // window)[None, :] - radius
            key_x = x[:, None] + (n % window)[None, :] - radius
            outside = (key_y < 0) | (key_y >= height) | (key_x < 0) | (key_x >= width)
            known = inside[:, None] & (n < area)[None, :]
            tl.store((state + pixels * area)[:, None] + n[None, :], 0.0, mask=outside & known)


# ---------------------------------------------------------------------------------------------- arithmetic
@triton.jit
def _rounded(logits: tensor, state: tensor) -> tensor:
    """Logits as the state keeps them; float16 saturates, and a NaN stays one."""
    if state.dtype.element_ty == tl.float16:
        logits = tl.clamp(logits, -HALF_LIMIT, HALF_LIMIT, propagate_nan=tl.PropagateNan.ALL)
    return logits.to(state.dtype.element_ty)


@triton.jit
def _gradient_dot(ds: tensor, x: tensor, total: tensor, precision: constexpr) -> tensor:
    """total + ds x.

    Entries of ds are as small as 1e-12, zero in float16: with such an x both become tf32, which holds every float16
    and keeps float32's exponents.
    """
    if x.dtype == tl.float16:
        total = tl.dot(ds, x.to(tl.float32), total, input_precision=precision)
    else:
        total = tl.dot(ds.to(x.dtype), x, total, input_precision=precision)
    return total


# ------------------------------------------------------------------------------------------------- kernels
@triton.jit(do_not_specialize=["height", "width", "window"])
def forward_pass(
    q: tensor, k: tensor, v: tensor, before: tensor, after: tensor, out: tensor, most: tensor, whole: tensor,
    exact: tensor,
    q_strides: tl.tuple, k_strides: tl.tuple, v_strides: tl.tuple,
    height: tensor, width: tensor, window: tensor,
    embedded: constexpr, embedded_padded: constexpr, channels: constexpr, channels_padded: constexpr,
    tall: constexpr, wide: constexpr, streamed: constexpr, precision: constexpr, narrow: constexpr, clear: constexpr,
) -> None:  # fmt: skip
    """One tile of out and, where given, of the correlation after, of exact (out before it is rounded), most and whole.

    most, whole: the maximum of the logits and the sum of exp(logit - most), apart because their logarithm would lose
    the sum where the logits are large. clear: zero the entries of after that point out of the image.
    """
    radius = window // 2
    image, top, left, y, x, inside = _tile(height, width, tall, wide)
    first_row, first_column, count, columns, reciprocal = _halo(top, left, height, width, radius, tall, wide)
    pixels = _pixels(image, y, x, height, width)
    low_y, low_x, more_y, more_x = _window(y, x, inside, height, width, radius)
    places = _places(y, x, top, width, window, narrow)
    queries = _load(q, q_strides, image, y, x, inside, embedded, embedded_padded)
    highest = tl.full([tall * wide], LOWEST, tl.float32)  # of the logits so far
    total = tl.zeros([tall * wide], tl.float32)
    sums = tl.zeros([tall * wide, channels_padded], tl.float32)
    for start in range(0, count, streamed):
        key_y, key_x, key_inside = _stream(start, first_row, first_column, count, columns, reciprocal, streamed)
        near = _within(key_y[None, :], key_x[None, :], low_y[:, None], low_x[:, None], more_y[:, None], more_x[:, None])
        entries = places[:, None] + (key_y * window + key_x)[None, :]
        keys = _load(k, k_strides, image, key_y, key_x, key_inside, embedded, embedded_padded)
        logits = tl.dot(queries, tl.trans(keys), input_precision=precision)
        if before is not None:
            carried = _row_of(before, image, top, height, width, window) + entries
            logits += tl.load(carried, mask=near, other=float("-inf")).to(tl.float32)
        else:
            logits = tl.where(near, logits, float("-inf"))
        if after is not None:  # the softmax sees what is kept, so that the gradient can start from it
            kept = _rounded(logits, after)
            tl.store(_row_of(after, image, top, height, width, window) + entries, kept, mask=near)
            logits = tl.where(logits == float("-inf"), logits, kept.to(tl.float32))
        higher = tl.maximum(highest, tl.max(logits, 1))
        shrink = tl.exp2((highest - higher) * LOG2E)
        weights = tl.exp2((logits - higher[:, None]) * LOG2E)
        values = _load(v, v_strides, image, key_y, key_x, key_inside, channels, channels_padded)
        total = total * shrink + tl.sum(weights, 1)
        sums = tl.dot(weights.to(values.dtype), values, sums * shrink[:, None], input_precision=precision)
        highest = higher
    total = tl.where(inside, total, 1.0)
    mixed = sums / total[:, None]
    _store(out, pixels, inside, mixed, channels, channels_padded)
    if exact is not None:
        _store(exact, pixels, inside, mixed, channels, channels_padded)
    if most is not None:
        tl.store(most + pixels, highest, mask=inside)
        tl.store(whole + pixels, total, mask=inside)
    if clear:
        _clear_outside(after, pixels, y, x, inside, height, width, window, streamed)


@triton.jit(do_not_specialize=["height", "width", "window"])
def query_pass(
    q: tensor, k: tensor, v: tensor, out: tensor, dout: tensor, most: tensor, whole: tensor,
    after: tensor, grad_after: tensor, grad_before: tensor, dq: tensor, delta: tensor,
    q_strides: tl.tuple, k_strides: tl.tuple, v_strides: tl.tuple,
    out_strides: tl.tuple, dout_strides: tl.tuple,
    height: tensor, width: tensor, window: tensor,
    embedded: constexpr, embedded_padded: constexpr, channels: constexpr, channels_padded: constexpr,
    tall: constexpr, wide: constexpr, streamed: constexpr, precision: constexpr, narrow: constexpr, clear: constexpr,
) -> None:  # fmt: skip
    """dq, delta = sum(out * dout) and, where given, grad_before = dS.

    clear: zero the entries of grad_before that point out of the image.
    """
    radius = window // 2
    image, top, left, y, x, inside = _tile(height, width, tall, wide)
    first_row, first_column, count, columns, reciprocal = _halo(top, left, height, width, radius, tall, wide)
    pixels = _pixels(image, y, x, height, width)
    low_y, low_x, more_y, more_x = _window(y, x, inside, height, width, radius)
    places = _places(y, x, top, width, window, narrow)
    queries = _load(q, q_strides, image, y, x, inside, embedded, embedded_padded)
    slope = _load(dout, dout_strides, image, y, x, inside, channels, channels_padded)
    mixed = _load(out, out_strides, image, y, x, inside, channels, channels_padded)
    expected = tl.sum(slope.to(tl.float32) * mixed.to(tl.float32), 1)
    tl.store(delta + pixels, expected, mask=inside)
    highest = tl.load(most + pixels, mask=inside, other=0.0)
    share = 1 / tl.load(whole + pixels, mask=inside, other=1.0)
    total = tl.zeros([tall * wide, embedded_padded], tl.float32)
    for start in range(0, count, streamed):
        key_y, key_x, key_inside = _stream(start, first_row, first_column, count, columns, reciprocal, streamed)
        near = _within(key_y[None, :], key_x[None, :], low_y[:, None], low_x[:, None], more_y[:, None], more_x[:, None])
        entries = places[:, None] + (key_y * window + key_x)[None, :]
        keys = _load(k, k_strides, image, key_y, key_x, key_inside, embedded, embedded_padded)
        if after is not None:
            kept = _row_of(after, image, top, height, width, window) + entries
            logits = tl.load(kept, mask=near, other=float("-inf")).to(tl.float32)
        else:
            logits = tl.where(near, tl.dot(queries, tl.trans(keys), input_precision=precision), float("-inf"))
        values = _load(v, v_strides, image, key_y, key_x, key_inside, channels, channels_padded)
        p = tl.exp2((logits - highest[:, None]) * LOG2E) * share[:, None]
        ds = p * (tl.dot(slope, tl.trans(values), input_precision=precision) - expected[:, None])
        if grad_after is not None:
            later = _row_of(grad_after, image, top, height, width, window) + entries
            ds += tl.load(later, mask=near, other=0.0).to(tl.float32)
        if grad_before is not None:
            earlier = _row_of(grad_before, image, top, height, width, window) + entries
            tl.store(earlier, ds.to(grad_before.dtype.element_ty), mask=near)
        total = _gradient_dot(ds, keys, total, precision)
    _store(dq, pixels, inside, total, embedded, embedded_padded)
    if clear:
        _clear_outside(grad_before, pixels, y, x, inside, height, width, window, streamed)


@triton.jit(do_not_specialize=["height", "width", "window"])
def key_pass(
    q: tensor, k: tensor, v: tensor, dout: tensor, most: tensor, whole: tensor, delta: tensor,
    after: tensor, grad_before: tensor, dk: tensor, dv: tensor,
    q_strides: tl.tuple, k_strides: tl.tuple, v_strides: tl.tuple,
    dout_strides: tl.tuple,
    height: tensor, width: tensor, window: tensor,
    embedded: constexpr, embedded_padded: constexpr, channels: constexpr, channels_padded: constexpr,
    tall: constexpr, wide: constexpr, streamed: constexpr, precision: constexpr, narrow: constexpr,
) -> None:  # fmt: skip
    """dk and dv. Where there is a state, dS is read from grad_before, which the query pass filled, else found again.

    The states are read as [streamed, tile], along the keys as they lie in memory, and turned round.
    """
    radius = window // 2
    image, top, left, y, x, inside = _tile(height, width, tall, wide)
    first_row, first_column, count, columns, reciprocal = _halo(top, left, height, width, radius, tall, wide)
    low_y, low_x, more_y, more_x = _window(y, x, inside, height, width, radius)
    keys = _load(k, k_strides, image, y, x, inside, embedded, embedded_padded)
    values = _load(v, v_strides, image, y, x, inside, channels, channels_padded)
    key_total = tl.zeros([tall * wide, embedded_padded], tl.float32)
    value_total = tl.zeros([tall * wide, channels_padded], tl.float32)
    for start in range(0, count, streamed):
        query_y, query_x, query_inside = _stream(start, first_row, first_column, count, columns, reciprocal, streamed)
        seen = _within(
            query_y[:, None], query_x[:, None], low_y[None, :], low_x[None, :], more_y[None, :], more_x[None, :]
        )
        places = _places(query_y, query_x, first_row, width, window, narrow)
        entries = places[:, None] + (y * window + x)[None, :]
        queries = _load(q, q_strides, image, query_y, query_x, query_inside, embedded, embedded_padded)
        slope = _load(dout, dout_strides, image, query_y, query_x, query_inside, channels, channels_padded)
        pixels = _pixels(image, query_y, query_x, height, width)
        highest = tl.load(most + pixels, mask=query_inside, other=0.0)
        share = 1 / tl.load(whole + pixels, mask=query_inside, other=1.0)
        if after is not None:
            kept = _row_of(after, image, first_row, height, width, window) + entries
            logits = tl.trans(tl.load(kept, mask=seen, other=float("-inf"))).to(tl.float32)
        else:
            near = _within(
                query_y[None, :], query_x[None, :], low_y[:, None], low_x[:, None], more_y[:, None], more_x[:, None]
            )
            logits = tl.where(near, tl.dot(keys, tl.trans(queries), input_precision=precision), float("-inf"))
        p = tl.exp2((logits - highest[None, :]) * LOG2E) * share[None, :]
        value_total = tl.dot(p.to(slope.dtype), slope, value_total, input_precision=precision)
        if grad_before is not None:
            earlier = _row_of(grad_before, image, first_row, height, width, window) + entries
            ds = tl.trans(tl.load(earlier, mask=seen, other=0.0)).to(tl.float32)
        else:
            expected = tl.load(delta + pixels, mask=query_inside, other=0.0)
            ds = p * (tl.dot(values, tl.trans(slope), input_precision=precision) - expected[None, :])
        key_total = _gradient_dot(ds, queries, key_total, precision)
    tile_pixels = _pixels(image, y, x, height, width)
    _store(dk, tile_pixels, inside, key_total, embedded, embedded_padded)
    _store(dv, tile_pixels, inside, value_total, channels, channels_padded)
