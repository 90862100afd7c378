"""Which of the collected tests run: by marker, and of a full grid the cells that hold every pair of values."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

NUMERIC = {  # files whose results depend on the instruction set: `make test` runs them a second time, held to AVX2
    "test_alpha",
    "test_api",
    "test_cpu",
    "test_determinism",
    "test_distributed",
    "test_inference",
    "test_integrations_hub",
    "test_model",
    "test_neighbors",
    "test_non_local",
    "test_ops",
    "test_optimization",
    "test_planes",
    "test_restore",
    "test_runs",
    "test_stabilization",
    "test_tiling",
    "test_training",
}
# Files that take long, the longest first: begun last, one of them would be waited for by itself
LONG = [
    "test_batch",
    "test_cluster",
    "test_web_load",
    "test_stores",
    "test_snippets",
    "test_distributed",
    "test_conftest",
    "test_web_framing",
    "test_integrations_onnx",
    "test_instruction_sets",
    "test_site",
    "test_web_fuzz",
    "test_weights",
    "test_pages",
    "test_footprint",
    "test_web_unread",
    "test_temporary_folder",
    "test_slice",
    "test_noise_first",
    "test_stacks",
    "test_cli",
    "test_benchmark",
]
Pair = tuple[tuple[str, str], tuple[str, str]]


def pairs(cell: dict[str, Any]) -> set[Pair]:
    """Every two of a cell's named values."""
    return set(combinations(sorted((name, repr(value)) for name, value in cell.items()), 2))


def pairwise(cells: list[dict[str, Any]]) -> list[int]:
    """Indices of cells that hold every pair of values that any cell holds, each chosen for the most that are new."""
    left = {i: pairs(cell) for i, cell in enumerate(cells)}
    chosen: list[int] = []
    while any(left.values()):
        best = max(left, key=lambda i: (len(left[i]), -i))
        chosen.append(best)
        found = left.pop(best)
        left = {i: new - found for i, new in left.items()}
    return sorted(chosen)


def mark(items: list[pytest.Item]) -> None:
    """`numeric` by the list above, `data` where the data sets are used.

    Not numeric: what takes each instruction set in turn by itself, and what is marked `once`.
    """
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        again = "instruction_set" not in fixtures and not item.get_closest_marker("once")
        if Path(item.path).stem in NUMERIC and again:
            item.add_marker("numeric")
        if "data_root" in fixtures:
            item.add_marker("data")


def long_first(item: pytest.Item) -> int:
    """The place of a test's file among all; those that are not listed keep their order behind."""
    stem = Path(item.path).stem
    return LONG.index(stem) if stem in LONG else len(LONG)


def left_out(items: list[pytest.Item], whole: bool, data: bool) -> set[str]:
    """Node ids of what does not run. whole: the long tests and full grids do; data: the data sets are there."""
    import torch  # not for who asks for the files alone

    out, grids = set(), {}
    for item in items:
        away = {"slow": not whole, "data": not data, "gpu": not torch.cuda.is_available()}
        away["screen"] = "DISPLAY" not in os.environ
        if any(absent and item.get_closest_marker(name) for name, absent in away.items()):
            out.add(item.nodeid)
        elif not whole and item.get_closest_marker("pairwise") and hasattr(item, "callspec"):
            grids.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for grid in grids.values():
        kept = pairwise([item.callspec.params for item in grid])
        out |= {item.nodeid for i, item in enumerate(grid) if i not in kept}
    return out


if __name__ == "__main__":  # for the Makefile: what else is there need not be collected
    print(*(f"tests/{name}.py" for name in sorted(NUMERIC)))
