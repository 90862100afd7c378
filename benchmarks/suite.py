"""All measurements of the operator or of the network, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import model, operator
from benchmarks.measure import GEMM, Cell, in_own_process
from nlrn.errors import ConfigError

CELLS = {"operator": operator.cells, "model": model.cells}
SECONDS = 1800.0  # that one measurement may take


def run(
    what: str,
    *,
    device: str,
    threads: int,
    quick: bool = False,
    only: str = "",
    seconds: float = SECONDS,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Cell]:
    """All cells of "operator" or "model", one after the other as they are measured, each in a process of its own.

    device: "cpu" or a CUDA device. only: of the cells, those whose description holds these words. seconds: after
    which a cell is given up and reported, like one that cannot run here. Raises ConfigError for another device,
    and when nothing is chosen.
    """
    if torch.device(device).type not in GEMM:
        raise ConfigError(f"a benchmark has clocks for {' and '.join(GEMM)}, not for {device}")
    chosen = [c for c in CELLS[what](device, threads, quick=quick) if all(w in described(c) for w in only.split())]
    if not chosen:
        raise ConfigError(f"no measurement's line holds all of {only!r}")
    for cell in chosen:
        row = in_own_process(cell, seconds)
        outcome = row.get("reason") or f"{row['seconds']:.4g} s, {row['fraction']:.3f} of the limit"
        say(f"{described(cell)}: {outcome}")
        yield row


def described(cell: dict[str, Any]) -> str:
    """A cell in one line."""
    names = ("section", "shape", "preset", "contestant", "backend", "instruction_set", "mode", "work", "dtype")
    words = [str(cell[name]) for name in names if cell.get(name) is not None]
    return " ".join([*words, f"{cell['size']}px", *(f"{n}={cell[n]}" for n in ("window", "states") if cell.get(n))])
