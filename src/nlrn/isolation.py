"""Decoding in a process of its own, whose memory and time are limited by the system: what a decoder makes of a file
that lies about its size, or that it was never tried on, ends with that process.

The process is given the bytes of the file, and answers with a line of JSON and the samples behind it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from nlrn.decoding import Decoded, decode
from nlrn.errors import InputError

try:
    import resource
except ImportError:  # not on Windows, where nothing is limited but the time
    resource = None  # type: ignore[assignment]

_SECONDS = 60
_ALLOWANCE, _PER_PIXEL = 64 << 20, 32  # bytes beyond what the process has when it knows the picture's size
_PARTS = ("colour", "alpha")


def decode_apart(data: bytes, max_pixels: int) -> Decoded:
    """As nlrn.decoding.decode, in a fresh process with 64 MiB and 32 bytes a pixel, for 60 seconds at most.

    Raises InputError alone: what the decoder says, or that it ended without a word.
    """
    command = [sys.executable, "-P", "-c", "from nlrn.isolation import answer; answer()", str(max_pixels)]
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            command,
            input=data,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"damaged: decoding did not end within {_SECONDS} seconds") from None
    head, _, samples = done.stdout.partition(b"\n")
    if done.returncode or not head:
        raise InputError("damaged: the decoder ended without a word, by the memory that it was allowed perhaps")
    said: dict[str, Any] = json.loads(head)
    if "refused" in said:
        raise InputError(said["refused"])
    planes: list[np.ndarray | None] = []
    for part in _PARTS:
        plane = None
        if said[part] is not None:
            shape, dtype = said[part]
            plane = np.frombuffer(samples, np.dtype(dtype), int(np.prod(shape))).reshape(shape).copy()
            samples = samples[plane.nbytes :]
        planes.append(plane)
    icc, exif = (None if said[name] is None else bytes.fromhex(said[name]) for name in ("icc", "exif"))
    assert planes[0] is not None
    return Decoded(planes[0], planes[1], said["depth"], said["format"], icc, exif)


def answer() -> None:
    """What the process does. Whatever goes wrong is said as the reason of a refusal."""
    said: dict[str, Any]
    planes: list[np.ndarray]
    try:
        found = decode(sys.stdin.buffer.read(), int(sys.argv[1]), before_pixels=_limit)
    except InputError as error:
        said, planes = {"refused": str(error)}, []
    except Exception as error:
        said, planes = {"refused": f"damaged or truncated ({error or type(error).__name__})"}, []
    else:
        pairs = [(part, getattr(found, part)) for part in _PARTS]
        said = {part: plane if plane is None else (plane.shape, plane.dtype.str) for part, plane in pairs}
        said |= {"depth": found.depth, "format": found.format}
        said |= {name: value and value.hex() for name, value in (("icc", found.icc), ("exif", found.exif))}
        planes = [plane for _, plane in pairs if plane is not None]
    out = sys.stdout.buffer
    out.write(json.dumps(said).encode() + b"\n")
    for plane in planes:
        out.write(np.ascontiguousarray(plane).data)
    out.flush()


def _limit(width: int, height: int) -> None:
    """From here on this process gets no more than what a picture of that size may take."""
    if resource is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
        limit = pages * resource.getpagesize() + _ALLOWANCE + _PER_PIXEL * width * height
        if pages:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
