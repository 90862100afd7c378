"""A folder by this machine's processes and by Ray, into results/engines.json: images a second, and memory.

The same photographs of BSDS500, `nlrn denoise -j N` and `nlrn denoise -j N --engine ray` one after the other, from the
command to its end; and what the command takes for a result that is handed to it, to record and publish it on this
disk: there is one command, whatever number of workers a cluster has. Memory is what the command and all processes that
it starts hold at most, shared pages shared out (Pss), looked at twice a second; on Linux alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nlrn.batch.plan import Encoded, Job
from nlrn.batch.run import Make, Read, Restore, Results, run
from nlrn.evaluation.protocols import machine
from nlrn.io.datasets import data_root
from nlrn.system.atomic import publish_json

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "results" / "engines.json"


def held(root: int) -> int:
    """KiB of a process and all below it."""
    parents, sizes = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                lines = (entry / "smaps_rollup").read_text().splitlines()
                sizes[int(entry.name)] = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    ours = {root}
    while more := {child for child, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return sum(sizes.get(process, 0) for process in ours)


def measured(words: list[str], count: int) -> dict[str, Any]:
    """What one command takes, from its start to its end."""
    started, most = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, "-m", "nlrn", *words, "-q"])
    while process.poll() is None:
        most = max(most, held(process.pid))
        time.sleep(0.5)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"nlrn {' '.join(words)} ended with {process.returncode}")
    return {"images": count, "seconds": seconds, "rate": count / seconds, "mebibytes": most / 1024}


def digests(folder: Path) -> set[str]:
    return {hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.png")}


def handed(data: bytes, jobs: Sequence[Job], make: Make, read: Read) -> Results:
    """An engine whose results are there already."""
    for job in jobs:
        future: Future[Encoded] = Future()
        future.set_result(Encoded("", data))
        yield job, future


def publishing(folder: Path, count: int = 500) -> dict[str, Any]:
    """Milliseconds a result, of the size of the median one of a folder."""
    sizes = sorted(file.stat().st_size for file in folder.glob("*.png"))
    data = bytes(sizes[len(sizes) // 2])
    with tempfile.TemporaryDirectory(dir=folder) as name:
        jobs = [Job(f"{i}.png", Path(name, "in", f"{i}.png"), Path(name, "out", f"{i}.png")) for i in range(count)]
        started = time.perf_counter()
        run(jobs, none, Path(name, "out"), "work", engine=partial(handed, data))
        seconds = time.perf_counter() - started
    return {"bytes": len(data), "milliseconds": 1000 * seconds / count}


def none() -> Restore:
    raise AssertionError("nothing is restored")


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--data", type=Path, help="folder of the data sets (default: $NLRN_DATA)")
    words.add_argument("--count", type=int, default=100, help="images (default: 100)")
    words.add_argument("--workers", type=int, nargs="+", default=[2, 1], help="one run each (default: 2 1)")
    return words


def main() -> None:
    options = parser().parse_args()
    images = sorted((data_root(options.data) / "bsds500" / "test").glob("*.jpg"))[: options.count]
    lines = []
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "in")
        source.mkdir()
        for image in images:
            shutil.copy(image, source)
        words = ["denoise", str(source), "--sigma", "25", "--model", "denoise-gray-small", "--format", "png"]
        words += ["--memory", "2048"]
        for workers in options.workers:
            made = {}
            for engine in ("local", "ray"):
                output = Path(name, f"{engine}-{workers}")
                more = ["-o", str(output), "-j", str(workers), "--engine", engine]
                line = {"engine": engine, "workers": workers, **measured([*words, *more], len(images))}
                made[engine] = digests(output)
                lines.append(line)
                print(line, flush=True)
            if workers > 1 and made["local"] != made["ray"]:  # one local worker has all threads
                raise SystemExit("the engines give other images")
        published = publishing(output)
    publish_json(RESULT, {"lines": lines, "publishing": published, "run": machine(torch.device("cpu"))})
    print(json.dumps([line["rate"] for line in lines]))


if __name__ == "__main__":
    main()
