"""python -m studies."""

from __future__ import annotations

import sys

from nlrn.cli import execute
from nlrn.system.allocator import keep_freed_memory
from studies.command import parser

if __name__ == "__main__":  # a study's trainings are processes that import this module
    keep_freed_memory()
    sys.exit(execute(parser(), sys.argv[1:]))
