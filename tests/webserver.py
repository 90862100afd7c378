"""The real service in a process of its own, on a free port of the loopback, and images to send to it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from networks import random_model
from PIL import Image

from nlrn.models.checkpoint import save_model


@dataclass
class Service:
    """url: where it listens. said: the lines that it printed since."""

    process: subprocess.Popen[str]
    url: str
    said: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, **more: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False, **more)  # type: ignore[arg-type]

    def children(self) -> list[int]:
        """Of Linux: the processes that it has started."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split()]

    def resident(self) -> int:
        """Bytes of Linux: of the service and of its worker."""
        pids = [self.process.pid, *self.children()]
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
        return sum(pages) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def service(folder: Path, *arguments: str, open_files: int | None = None) -> Iterator[Service]:
    """A service that offers toy.safetensors (denoise) and toy-sr.safetensors of that folder, made when missing.

    open_files: file descriptors that the system allows it.
    """
    for name, changes in (("toy", {}), ("toy-sr", {"task": "sr", "sigma_input": False})):
        if not (folder / f"{name}.safetensors").exists():
            save_model(folder / f"{name}.safetensors", random_model(**changes), {"steps": "0"})  # type: ignore[arg-type]
    models = [word for name in ("toy", "toy-sr") for word in ("--model", str(folder / f"{name}.safetensors"))]
    command = [sys.executable, "-m", "nlrn", "serve", "--port", "0", *models, *arguments]
    if open_files is not None:
        command = ["sh", "-c", f'ulimit -n {open_files}; exec "$@"', "sh", *command]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    with process.stdout as out:
        first = out.readline()
        if open_files is not None and "(ulimit -n)" in first:
            first = out.readline()
        found = re.search(r"http://\S+", first)
        assert found, first
        running = Service(process, found[0])
        reader = threading.Thread(target=lambda: running.said.extend(out), daemon=True)
        reader.start()
        try:
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            finally:
                process.kill()
                reader.join(5)
    wrong = [line for line in running.said if not line.startswith("nlrn: interrupted")]
    assert not wrong, wrong  # it says nothing after its first line unless something went wrong


def image_file(path: Path, mode: str = "L", size: tuple[int, int] = (40, 30), seed: int = 0) -> Path:
    """An image of noise, saved in the format of the path's suffix."""
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "I;16": ()}[mode]
    top, kind = (65536, np.uint16) if mode == "I;16" else (256, np.uint8)
    samples = np.random.RandomState(seed).randint(0, top, (size[1], size[0], *channels)).astype(kind)
    Image.fromarray(samples).save(path)
    return path
