"""The operator, and the gradient of 3 x 3 kernels: which cells are measured, and one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.contestants import CONTESTANTS, call_of, why_not
from benchmarks.measure import (
    DTYPES,
    Cell,
    Limit,
    available_bytes,
    leaves,
    peak_bytes,
    reset_peak,
)
from nlrn.ops import convolution, cpu, neighborhood_attention
from nlrn.ops.flops import PER_PAIR, clipped_pairs
from nlrn.system.hardware import hardware_bf16

SHAPES = {"base": (64, 128, 45), "small": (32, 64, 15)}  # channels of q and of v, window
SIZES = (128, 256, 512, 1024)
WINDOWS = (7, 15, 31, 45, 61)
BATCHES = ((8, 32), (8, 48), (6, 64), (2, 96))  # patches of a training step: how many, and their side
GRADIENT = "gradient of 3x3 weights"


def cells(device: str, threads: int, *, quick: bool) -> Iterator[Cell]:
    """All measurements, in four sections: "limit" (one thread, how near the machine's limit), "beside" (everyone, at
    rising sizes), "growth" (of this package's kernel, with the pixels and with the window), "weights" (the gradient of
    3 x 3 kernels against the limit, by torch and by this package). In bf16 where this machine multiplies it. quick:
    tiny ones."""
    ours = "cpu" if torch.device(device).type == "cpu" else "gpu"
    dtype = "bf16" if hardware_bf16(torch.device(device)) else "fp32"
    for shape, (embed, channels, window) in SHAPES.items():
        common = {"kind": "operator", "device": device, "shape": shape, "embed": embed, "channels": channels}
        common |= {"window": 7 if quick else window, "repeats": 3 if quick else 7}
        one, all_threads = common | {"threads": 1}, common | {"threads": threads}
        yield from _limit(one if ours == "cpu" else all_threads, ours, dtype, quick)
        sizes = (16, 24) if quick else SIZES
        for work, size in [*(("forward", size) for size in sizes), ("backward", sizes[0])]:
            for name in [n for n in CONTESTANTS if n not in {"cpu", "gpu"} - {ours}]:
                row = {"section": "beside", "contestant": name, "dtype": dtype, "size": size, "work": work}
                yield all_threads | row | {"repeats": 3}
        growth = all_threads | {"section": "growth", "contestant": ours, "dtype": dtype, "work": "forward"}
        for size in () if quick else (64, 128, 256, 512, 1024):
            yield growth | {"size": size, "along": "pixels"}
        for window in () if quick else WINDOWS:
            yield growth | {"size": 256, "window": window, "along": "window"}
    yield from _weights(device, dtype, quick) if ours == "cpu" else ()


def _limit(common: Cell, ours: str, dtype: str, quick: bool) -> Iterator[Cell]:
    row = common | {"section": "limit", "contestant": ours}
    for work in PER_PAIR if dtype == "bf16" else ():
        yield row | {"dtype": "bf16", "size": 24 if quick else 256, "work": work}
    sets = [s for s in ("avx512", "avx2") if s in _sets()] if ours == "cpu" else [None]
    for name in sets or ["portable"]:
        for work in PER_PAIR:
            yield row | {"dtype": "fp32", "size": 24 if quick else 128, "work": work, "instruction_set": name}


def _sets() -> list[str]:
    """The instruction set in use, and those below it."""
    names = list(cpu.INSTRUCTION_SETS)
    return names[names.index(cpu.instruction_set()) :] if names else []


def _weights(device: str, dtype: str, quick: bool) -> Iterator[Cell]:
    common = {"kind": "operator", "section": "weights", "device": device, "threads": 1, "repeats": 3 if quick else 7}
    for channels in (64,) if quick else (64, 128):
        for batch, size in ((2, 16),) if quick else BATCHES:
            row = common | {"shape": f"{channels} channels", "channels": channels, "batch": batch, "size": size}
            kinds = [(dtype, "torch"), ("fp32", "torch"), ("fp32", "nlrn")]
            for kind, contestant in dict.fromkeys(kinds):
                yield row | {"dtype": kind, "contestant": contestant, "work": GRADIENT}


def flop(cell: Cell) -> float:
    """Useful operations of a pass."""
    a_pair = PER_PAIR[cell["work"]](cell["embed"], cell["channels"])
    return float(a_pair * clipped_pairs(cell["size"], cell["size"], cell["window"]))


def measured(cell: Cell) -> Cell:
    """{"seconds", "fraction", ..., "peak_mib"}, or {"reason"}."""
    if cell["section"] == "weights":
        return _weights_measured(cell)
    device = torch.device(cell["device"])
    if cell.get("instruction_set"):
        cpu.use_instruction_set(cell["instruction_set"])
    dtype, contestant = DTYPES[cell["dtype"]], CONTESTANTS[cell["contestant"]]
    like = torch.empty(1, 1, 1, 1, dtype=dtype, device=device).expand(1, cell["size"], cell["size"], cell["embed"])
    reason = why_not(contestant, cell, like, available_bytes(device))
    if reason is not None:
        return {"reason": reason}
    q, k, v = (_normal(cell, n, scale).to(device, dtype) for n, scale in _inputs(cell))
    limit = Limit(dtype, device)
    work = _backward if "backward" in cell["work"] else _forward
    if cell["contestant"] == "flex":  # compiled for a size
        work(cell, q, k, v)()
    else:
        side = max(16, cell["window"])
        work(cell, *(x[:, :side, :side] for x in (q, k, v)))()
    idle = reset_peak(device)
    call = work(cell, q, k, v)
    call()
    peak = peak_bytes(device) - idle  # before the matrix products, which take memory of their own
    result = limit.compare(call, flop(cell), cell["repeats"])
    result["peak_mib"] = peak / 2**20
    if cell["section"] == "limit" and dtype != torch.bfloat16 and hardware_bf16(device):
        result["fraction_of_bf16"] = Limit(torch.bfloat16, device).compare(call, flop(cell), cell["repeats"])[
            "fraction"
        ]
    return result


def _weights_measured(cell: Cell) -> Cell:
    """The gradients of a 3 x 3 kernel and its bias, out of maps that lie channels-last."""
    n, side, dtype = cell["channels"], cell["size"], DTYPES[cell["dtype"]]
    if cell["contestant"] == "nlrn" and cpu.instruction_set() == "none":
        return {"reason": "the fused CPU kernel is missing"}
    maps = (torch.randn(cell["batch"], n, side, side) for _ in range(2))
    x, gradient = (m.to(dtype).contiguous(memory_format=torch.channels_last) for m in maps)
    weight = torch.randn(n, n, 3, 3).to(dtype)

    def by_torch() -> object:
        one, none = [1, 1], [0, 0]
        return torch.ops.aten.convolution_backward(
            gradient, x, weight, [n], one, one, one, False, none, 1, [False, True, True]
        )

    call = by_torch if cell["contestant"] == "torch" else lambda: convolution.convolution_weights(x, gradient)
    call()
    idle = reset_peak(x.device)
    call()
    peak = peak_bytes(x.device) - idle
    useful = 2.0 * 9 * n * n * cell["batch"] * side * side
    return Limit(dtype, x.device).compare(call, useful, cell["repeats"]) | {"peak_mib": peak / 2**20}


def _inputs(cell: Cell) -> tuple[tuple[int, float], ...]:
    return (cell["embed"], 0.3), (cell["embed"], 0.3), (cell["channels"], 1.0)


def _normal(cell: Cell, channels: int, scale: float) -> Tensor:
    return torch.randn(1, cell["size"], cell["size"], channels) * scale


def _forward(cell: Cell, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], object]:
    """As in inference: no gradients, one correlation overwritten."""
    if "carried" not in cell["work"]:
        call = torch.no_grad()(call_of(CONTESTANTS[cell["contestant"]], cell["window"]))
        return lambda: call(q, k, v)
    _, state = _carry(cell, q, k, v, None)
    return lambda: _carry(cell, q, k, v, state)


@torch.no_grad()
def _carry(cell: Cell, q: Tensor, k: Tensor, v: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    found = neighborhood_attention(
        q, k, v, window=cell["window"], correlation=state, return_correlation=True, overwrite=True,
        backend=cell["contestant"],
    )  # fmt: skip
    assert isinstance(found, tuple)
    return found


def _backward(cell: Cell, q: Tensor, k: Tensor, v: Tensor) -> Callable[[], object]:
    """As in training: float32 correlations, a gradient of the one after coming in and of the one before going out."""
    inputs = list(leaves(q, k, v))
    if "carried" not in cell["work"]:
        outs = [call_of(CONTESTANTS[cell["contestant"]], cell["window"])(*inputs)]
    else:
        _, state = _carry(cell, q.float(), k.float(), v.float(), None)
        inputs += leaves(state)
        outs = list(
            neighborhood_attention(
                *inputs[:3], window=cell["window"], correlation=inputs[3], return_correlation=True,
                backend=cell["contestant"],
            )
        )  # fmt: skip
    gradients = [torch.randn_like(out) for out in outs]
    return lambda: torch.autograd.grad(outs, inputs, gradients, retain_graph=True)


if __name__ == "__main__":
    from benchmarks.command import main

    main("operator")
