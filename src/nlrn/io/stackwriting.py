"""A restored stack, written one plane after another: a TIFF of the same kind, or a file for every plane.

A TIFF is made in a file beside it, `NAME.nlrn-part`, with a journal of the planes that are done; it gets its name when
it is whole. After a kill the same work resumes there, and the file equals that of an uninterrupted run.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from nlrn.errors import InputError
from nlrn.io.chunks import chunks
from nlrn.io.directories import Entry
from nlrn.io.grown import number
from nlrn.io.image import ImageData, check_output, samples, write_image
from nlrn.io.stacks import Stack
from nlrn.system.atomic import check_target, keep_rights, open_record, publish_file, sha256, writing
from nlrn.system.journal import Journal

PART = ".nlrn-part"
_HEADER = 16  # bytes kept for the header of either form
_BITS, _SAMPLES = 258, 277  # tags
_TIFF_ENDS = 2**32 - 2**20
_NUMBERED = re.compile(r"%0?\d{0,2}d")


Ready = Callable[[Path], None]


class TiffStackWriter:
    """The stack as a TIFF of its own kind, with its tags; a context. Raises InputError where it cannot be written.

    It takes the planes in their order. done: how many an earlier run wrote.
    """

    def __init__(self, path: Path, stack: Stack, journal: Journal, *, overwrite: bool) -> None:
        self.path, self.stack, self.journal, self.overwrite = path, stack, journal, overwrite
        self.part = path.with_name(path.name + PART)
        self.form = stack.form
        self.done, self.end = 0, _HEADER
        self._places: list[tuple[int, Sequence[int]]] = []  # of each plane, and the sizes of its parts

    def __enter__(self) -> TiffStackWriter:
        self._file: IO[bytes] = open_record(self.part, "r+b")
        try:
            if self.overwrite:
                keep_rights(self._file, self.path)
            self._resume()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a full disk refuses what was not written
            self._file.close()

    def _resume(self) -> None:
        """Keep the planes that the journal lists and the file holds, to the last of them."""
        head = self._head()
        self.end = _HEADER + len(head)
        for record in self.journal.records:
            sizes = record.get("sizes")
            if sizes is None:
                continue
            self._file.seek(self.end)
            data = self._file.read(sum(sizes))
            if len(data) < sum(sizes) or zlib.crc32(data) != record["crc"]:
                break
            self._places.append((self.end, sizes))
            self.end += len(data)
        self.done = len(self._places)
        self._file.truncate(self.end)
        self._file.seek(0)
        self._file.write(bytes(_HEADER) + head)

    def _head(self) -> bytes:
        """The directory that stands before the planes, where it is the only one."""
        if not self.stack.one_directory:
            return b""
        entries, at = self.stack.entries(0), 0
        size = len(b"".join(self._chunks(0, self.stack.read(0))))
        for _ in range(2):  # the place decides nothing about the length
            block = self.form.block(entries | self.form.parts(at, [size], tiled=False), _HEADER, last=True)
            block += bytes(len(block) % 2)
            at = _HEADER + len(block)
        return block

    def _chunks(self, index: int, image: ImageData) -> Iterator[bytes]:
        values = self.stack.stored(index, np.atleast_3d(samples(image)))
        if index == 0 or not self.stack.one_directory:
            self._check_declared(index, values, self.stack.entries(index))
        return chunks(values, self.stack.layout(index))

    def _check_declared(self, index: int, values: np.ndarray, entries: Mapping[int, Entry]) -> None:
        """Raises InputError for samples [H, W, samples] that are not what the tags say of them."""
        bits, channels = (number(entries[tag], self.form) if tag in entries else 1 for tag in (_BITS, _SAMPLES))
        if (8 * values.itemsize, values.shape[2]) != (bits, channels):
            raise InputError(
                f"{self.path}: plane {index + 1} has {values.shape[2]} samples a pixel of {8 * values.itemsize} bits,"
                f" and its tags say {channels} of {bits}; nothing of it was written"
            )

    def put(self, index: int, image: ImageData) -> None:
        """Write a plane behind the others, and list it in the journal."""
        parts = list(self._chunks(index, image))
        data = b"".join(parts)
        sizes = [len(part) for part in parts]
        with writing(self.part):
            self._file.seek(self.end)
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        self.journal.add({"plane": index, "sizes": sizes, "crc": zlib.crc32(data)})
        self._places.append((self.end, sizes))
        self.end += len(data)
        self.done += 1

    def finish(self, ready: Ready = lambda whole: None) -> None:
        """Write the directories, and give the file its name."""
        with writing(self.part):
            first = _HEADER
            if not self.stack.one_directory:
                first = self.end + self.end % 2
                self._directories(first)
            self._file.seek(0)
            self._file.write(self.form.header(first).ljust(_HEADER, b"\0"))
            self._file.flush()
        ready(self.part)
        publish_file(self.part, self._file, self.path, overwrite=self.overwrite)
        self.journal.remove()

    def _directories(self, first: int) -> None:
        """One for each plane, as of a BigTIFF where a TIFF would be too small."""
        try:
            if first > _TIFF_ENDS and not self.form.big:
                raise struct.error
            self._write_directories(first)
        except struct.error:  # a place that takes more than 32 bits
            if self.form.big:
                raise
            self.form = replace(self.form, big=True)
            self._write_directories(first)

    def _write_directories(self, at: int) -> None:
        self._file.truncate(self.end)
        self._file.seek(self.end)
        self._file.write(bytes(at - self.end))
        for index, (place, sizes) in enumerate(self._places):
            parts = self.form.parts(place, sizes, tiled=self.stack.layout(index).tiled)
            last = index == len(self._places) - 1
            block = self.form.block(self.stack.entries(index) | parts, at, last=last)
            block += bytes(len(block) % 2)
            self._file.write(block)
            at += len(block)
            if at > _TIFF_ENDS and not self.form.big:
                raise struct.error


class NumberedWriter:
    """Each plane as a file of its own, the first with the number 1; each appears whole."""

    def __init__(self, pattern: Path, stack: Stack, journal: Journal, *, overwrite: bool) -> None:
        self.pattern, self.journal, self.overwrite = pattern, journal, overwrite
        self.done = 0

    def __enter__(self) -> NumberedWriter:
        for record in self.journal.records:
            if "sha256" in record:
                path = numbered(self.pattern, self.done)
                if not path.is_file() or sha256(path) != record["sha256"]:
                    break
                self.done += 1
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def put(self, index: int, image: ImageData) -> None:
        """Write the file of a plane.

        One that an earlier run published before it was killed, and did not list any more, is replaced.
        """
        path, begun = numbered(self.pattern, index), {"plane": index, "begun": True}
        ours = self.journal.records and self.journal.records[-1] == begun
        if not ours:
            if not self.overwrite:
                check_target(path, overwrite=False)
            self.journal.add(begun)
        write_image(path, image, overwrite=bool(self.overwrite or ours))
        self.journal.add({"plane": index, "sha256": sha256(path)})
        self.done += 1

    def finish(self, ready: Ready = lambda whole: None) -> None:
        """All files are there."""
        self.journal.remove()


Writer = TiffStackWriter | NumberedWriter


def is_numbered(path: Path) -> bool:
    """Whether the name has a place for a number, as in clean_%04d.png."""
    return len(_NUMBERED.findall(path.name)) == 1


def numbered(pattern: Path, index: int) -> Path:
    """The name of a plane's file: the first has the number 1."""
    return pattern.with_name(_NUMBERED.sub(lambda found: found[0] % (index + 1), pattern.name))


def check_stack_output(
    path: Path, stack: Stack, first: ImageData, *, numbers: bool, overwrite: bool, inputs: Sequence[Path]
) -> None:
    """Find out before any work whether the result can be written under that name, or under `numbers` made of it.

    Raises InputError.
    """
    if numbers:
        for index in range(len(stack)):
            check_output(numbered(path, index), overwrite=overwrite, inputs=inputs, image=None if index else first)
        return
    if path.suffix.lower() not in (".tif", ".tiff", ".btf", ".tf8", ".tf2"):
        raise InputError(
            f"{path}: {len(stack)} planes are written as a TIFF (.tif), or as numbered files: name_%04d.png"
        )
    check_target(path, overwrite=overwrite, inputs=inputs)
