"""python -m nlrn, and the nlrn command."""

from __future__ import annotations

import sys

from nlrn.cli import run
from nlrn.system.allocator import keep_freed_memory


def main() -> None:
    """Run the command line and end the process with its exit code."""
    keep_freed_memory()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
