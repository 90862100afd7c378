"""Speed and memory of the operator and of the network, beside what else computes the same and the machine's limit.

``measure`` holds the clocks and one measurement in a process of its own, ``contestants`` who computes the operator,
``operator`` and ``network`` what is measured, ``report`` tables and plots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nlrn.benchmark import network, operator
from nlrn.benchmark.measure import Cell, in_own_process

CELLS = {"operator": operator.cells, "model": network.cells}
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
) -> list[Cell]:
    """All cells of "operator" or "model", one after the other, each in a process of its own.

    device: "cpu" or a CUDA device. only: of the cells, those whose description holds these words. seconds: after
    which a cell is given up; it then says so, as one does that cannot run here.
    """
    chosen = [c for c in CELLS[what](device, threads, quick=quick) if all(w in described(c) for w in only.split())]
    rows = []
    for cell in chosen:
        row = in_own_process(cell, seconds)
        outcome = row.get("reason") or f"{row['seconds']:.4g} s, {row['fraction']:.3f} of the limit"
        say(f"{described(cell)}: {outcome}")
        rows.append(row)
    return rows


def described(cell: dict[str, Any]) -> str:
    """A cell in one line."""
    names = ("section", "shape", "preset", "contestant", "backend", "instruction_set", "mode", "work", "dtype")
    words = [str(cell[name]) for name in names if cell.get(name) is not None]
    return " ".join([*words, f"{cell['size']}px", *(f"{n}={cell[n]}" for n in ("window", "states") if cell.get(n))])
