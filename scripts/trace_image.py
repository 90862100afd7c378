"""Follows one image through `nlrn denoise`, or one recipe through `nlrn train`, and counts modules and steps back up.

    python scripts/trace_image.py noisy.png
    python scripts/trace_image.py recipe.toml --data folder

Every call of a Python function of the package is recorded from the command on (the parsing of arguments before it
visits the modules of all commands); what runs while a module is imported is not recorded. A module counts once, where
it is first entered, and so does a package. A step back up is one that is entered for the first time right after one
that is lower in the order of imports, which pyproject.toml lists for import-linter. A call up is a call of a function
in a higher package: imports go down only, so it can only be of a function that was passed down, and is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "nlrn"


@dataclass
class Trace:
    """entered: modules in the order of their first call. calls: (caller's module, module, function) up the order."""

    order: Sequence[str]  # packages, the highest first
    start: str = ""  # "module.function" from whose call on it records; empty: from the first call
    entered: list[str] = field(default_factory=list)
    calls: set[tuple[str, str, str]] = field(default_factory=set)

    def rank(self, module: str) -> int:
        """Place of a module's package in the order, 0 the highest; the package itself is above all."""
        return 1 + self.order.index(module.split(".")[1]) if "." in module else 0

    @property
    def steps_up(self) -> list[tuple[str, str]]:
        """(module, the next one entered) where the next is higher."""
        return self._up(self.entered)

    @property
    def packages(self) -> list[str]:
        """The packages of these modules, in the order of their first call."""
        return list(dict.fromkeys(".".join(module.split(".")[:2]) for module in self.entered))

    @property
    def package_steps_up(self) -> list[tuple[str, str]]:
        """(package, the next one entered) where the next is higher."""
        return self._up(self.packages)

    def _up(self, entered: list[str]) -> list[tuple[str, str]]:
        return [(a, b) for a, b in pairwise(entered) if self.rank(b) < self.rank(a)]

    def record(self, frame: FrameType, event: str, _: Any) -> None:
        """A profile function, see sys.setprofile."""
        if event != "call" or not _is_ours(frame) or _importing(frame):
            return
        module = frame.f_globals["__name__"]
        if not self.entered and self.start not in ("", f"{module}.{frame.f_code.co_name}"):
            return
        if module not in self.entered:
            self.entered.append(module)
        caller = frame.f_back
        while caller is not None and not _is_ours(caller):
            caller = caller.f_back
        if caller is not None and self.rank(module) < self.rank(source := caller.f_globals["__name__"]):
            self.calls.add((source, module, frame.f_code.co_qualname))


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] == PACKAGE


def _importing(frame: FrameType | None) -> bool:
    """Whether a frame runs because a module of the package is imported."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and _is_ours(frame):
            return True
        frame = frame.f_back
    return False


def order_of_imports() -> list[str]:
    """The packages by pyproject.toml, the highest first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return next(list(contract["layers"]) for contract in contracts if contract["type"] == "layers")


def traced(call: Callable[[], int], order: Sequence[str], start: str = "") -> Trace:
    """The trace of a call that must return 0."""
    trace = Trace(order, start)
    sys.setprofile(trace.record)
    try:
        code = call()
    finally:
        sys.setprofile(None)
    if code:
        sys.exit(code)
    return trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, help="an image, or a recipe (.toml)")
    parser.add_argument("--data", type=Path, help="of a recipe: the folder of the data sets")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    options = parser.parse_args()
    from nlrn.cli import run

    with tempfile.TemporaryDirectory() as folder:
        arguments = ["denoise", str(options.input), "-o", str(Path(folder) / "restored.png"), "-q"]
        if options.input.suffix == ".toml":
            arguments = ["train", str(options.input), "-o", str(Path(folder) / "run"), "-q"]
            arguments += ["--data", str(options.data)] if options.data else []
        command = arguments[0]
        trace = traced(lambda: run(arguments), order_of_imports(), f"{PACKAGE}.cli.{command}._{command}")
    if options.json:
        counts = {
            "modules": trace.entered,
            "steps_up": trace.steps_up,
            "packages": trace.packages,
            "package_steps_up": trace.package_steps_up,
            "calls_up": sorted(trace.calls),
        }
        print(json.dumps(counts, indent=1))
        return
    for module in trace.entered:
        print(f"{'  ' * trace.rank(module)}{module.removeprefix('nlrn.')}")
    print(f"{len(trace.entered)} modules entered, {len(trace.steps_up)} steps back up")
    print(f"{len(trace.packages)} packages entered, {len(trace.package_steps_up)} steps back up")
    for source, module, name in sorted(trace.calls):
        print(f"call up, passed down: {source} -> {module}.{name}")


if __name__ == "__main__":
    main()
