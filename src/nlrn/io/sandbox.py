"""Decoding in a separate process, whose memory and time are limited by the system.

A decoder that fails on a file, or exhausts memory on one that declares a wrong size, ends with that process only. The
process receives the bytes of the file, and answers with a line of JSON and the samples after it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import AvifImagePlugin

from nlrn.errors import BackendError, InputError
from nlrn.io.decode import decode, reason_of
from nlrn.io.metadata import Decoded
from nlrn.io.texts import Texts

try:
    import resource
except ImportError:  # not on Windows, where nothing is limited but the time
    resource = None  # type: ignore[assignment]

_SECONDS = 60
_ALLOWANCE, _PER_PIXEL = 64 << 20, 48  # bytes beyond what the process has when the image's size is known
_BEFORE = 256 << 20  # more of them until then: for what precedes the pixels, and for libvips
# One thread and one pool of memory: each further one is charged with more address space than it uses.
_LEAN = {"VIPS_CONCURRENCY": "1", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_PARTS = ("colour", "alpha")
_TYPES = frozenset({"|u1", "<u2", "<f4"})  # in which samples are passed, whatever the decoder's byte order
_LONGEST_HEAD = 64 << 20  # profiles and EXIF among it


def decode_apart(data: bytes, max_pixels: int, *, gps: bool = False) -> Decoded:
    """As nlrn.io.decode.decode, in a fresh process with 64 MiB and 48 bytes a pixel, for 60 seconds at most.

    Raises InputError for errors of the decoder, and when it ends silently; BackendError when the process cannot be
    started, or answers what it should not.
    """
    command = [
        sys.executable,
        "-P",
        "-c",
        "from nlrn.io.sandbox import answer; answer()",
        str(max_pixels),
        "gps" if gps else "",
    ]
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    try:
        process = subprocess.Popen(command, env={**os.environ, **_LEAN, "PYTHONPATH": path}, **pipes)  # type: ignore[call-overload]
    except OSError as error:
        raise BackendError(f"cannot start the decoding process: {error}") from error
    timer = threading.Timer(_SECONDS, process.kill)
    timer.start()
    feeder = threading.Thread(target=_feed, args=(process.stdin, data), daemon=True)
    feeder.start()
    try:
        return _answered(process.stdout, max_pixels)
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        feeder.join()
        process.stdout.close()


def _feed(pipe: IO[bytes], data: bytes) -> None:
    with suppress(OSError), pipe:  # it may be gone
        pipe.write(data)


def _answered(pipe: IO[bytes], max_pixels: int) -> Decoded:
    """The answer of the process; no more is read than a correct answer can have."""
    head = pipe.readline(_LONGEST_HEAD)
    if not head.endswith(b"\n"):
        raise InputError(f"damaged: its decoder ended silently, probably out of memory, or of time ({_SECONDS} s)")
    try:
        answer = json.loads(head)
        if "refused" in answer:
            raise InputError(str(answer["refused"]), limit=answer.get("limit"))
        colour, alpha = (answer[part] and _plane(pipe, answer[part], max_pixels) for part in _PARTS)
        depth, form, icc, exif, dpi, colours, notes, texts = answer["rest"]
        icc, exif = (block and bytes.fromhex(block) for block in (icc, exif))
        dpi = dpi and (float(dpi[0]), float(dpi[1]))
        notes = tuple(map(str, notes))
        return Decoded(colour, alpha, depth, form, icc, exif, dpi, bytes.fromhex(colours), notes, _texts(texts))
    except InputError:
        raise
    except (ValueError, TypeError, KeyError) as error:
        raise BackendError(f"the process that decodes gave an unexpected answer ({error})") from error


def _texts(parts: list[Any]) -> Texts:
    """Those of an answer, which has no notes beside its own."""
    xmp, iptc, chunks, comments, _ = parts
    chunks, comments = (tuple(bytes.fromhex(part) for part in named) for named in (chunks, comments))
    return Texts(bytes.fromhex(xmp), bytes.fromhex(iptc), chunks, comments)


def _plane(pipe: IO[bytes], head: list[Any], max_pixels: int) -> np.ndarray:
    shape, dtype = head
    if (
        dtype not in _TYPES
        or not 2 <= len(shape) <= 3
        or shape[0] * shape[1] > max_pixels
        or shape[2:] not in ([], [3])
    ):
        raise ValueError(f"samples {dtype} {shape}")
    plane = np.empty(shape, dtype)
    if pipe.readinto(plane.data.cast("B")) != plane.nbytes:  # type: ignore[attr-defined]
        raise InputError("damaged: its decoder ended before the last row")
    return plane


def answer() -> None:
    """The work of the process; any error becomes the reason of a refusal in its answer."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each takes of the memory that is allowed
    answer: dict[str, Any]
    planes: list[np.ndarray]
    try:
        data, most = sys.stdin.buffer.read(), int(sys.argv[1])
        _limit(_BEFORE + _PER_PIXEL * most, permanent=False)
        found = decode(
            data,
            most,
            gps=bool(sys.argv[2]),
            apart=True,
            before_pixels=lambda width, height: _limit(_ALLOWANCE + _PER_PIXEL * width * height),
        )
    except InputError as error:
        answer, planes = {"refused": str(error), "limit": error.limit}, []
    except Exception as error:
        answer, planes = {"refused": reason_of(error), "limit": None}, []
    else:
        planes = [x.astype(x.dtype.newbyteorder("<"), copy=False) for x in (found.colour, found.alpha) if x is not None]
        heads = [(plane.shape, plane.dtype.str) for plane in planes]
        answer = dict(zip_longest(_PARTS, heads)) | {"rest": found[len(_PARTS) :]}
    out.write(json.dumps(answer, default=bytes.hex).encode() + b"\n")
    for plane in planes:
        out.write(np.ascontiguousarray(plane).data)
    out.flush()


def _limit(more: int, *, permanent: bool = True) -> None:
    """From here on this process gets so many bytes more than it has, and 60 seconds of the processor in all."""
    if resource is not None:
        if sys.platform == "linux":
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + more, permanent)
        _lower(resource.RLIMIT_CPU, _SECONDS, permanent)


def _lower(kind: int, limit: int, permanent: bool) -> None:
    """Lower a limit to this, unless it is lower already; permanently, or so that it can be raised again."""
    hardest = resource.getrlimit(kind)[1]
    limit = limit if hardest == resource.RLIM_INFINITY else min(limit, hardest)
    resource.setrlimit(kind, (limit, limit if permanent else hardest))
