"""One measurement, in the process that `measure.in_own_process` starts: a cell in, what came out as a line of JSON."""

from __future__ import annotations

import json
import sys

import torch

from benchmarks import model, operator
from nlrn.system.allocator import keep_freed_memory


def main() -> None:
    cell = json.loads(sys.argv[1])
    keep_freed_memory()  # as the nlrn command does
    torch.set_num_threads(cell["threads"])
    torch.manual_seed(0)
    measured = {"operator": operator.measured, "network": model.measured}[cell["kind"]](cell)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
