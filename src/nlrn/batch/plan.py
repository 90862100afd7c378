"""The plan of a folder: every image and where its result goes, before any work."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from nlrn.batch.s3 import ObjectPath, Place
from nlrn.errors import ConfigError, InputError
from nlrn.io import further
from nlrn.io.written import INSTEAD, SUFFIXES
from nlrn.system.atomic import check_no_links

# Suffixes of images that are not read, some of them not without an extra
_OTHERS = (
    "bpg czi dcm dds djvu emf eps exr fit fits hdr icns ico iff jls jxr lif lsm mng nd2 ndpi pam pcx pfm pic pict psb"
    " psd qoi ras raw sgi stk svg svs tga wdp wmf xbm xcf xpm"
)
OTHER_IMAGES = frozenset(f".{name}" for name in _OTHERS.split()).union(*(kind.suffixes for kind in further.KINDS))


@dataclass(frozen=True)
class Job:
    """One image: its name below the input folder, as in the manifest, and the files or objects; or a stack of many."""

    name: str
    source: Place
    target: Place
    stack: bool = False

    @property
    def form(self) -> str:
        """The format of the result."""
        return SUFFIXES[self.target.suffix.lower()]


@dataclass(frozen=True)
class Encoded:
    """The encoded result of an image.

    source: the sha256 of its file; data: the file of its result; noted: what else is recorded, such as "tile", the side
    of the tiles where larger ones were refused memory, "noise" and "range". Not recorded: said, messages to print, a
    line each, and the seconds that the image took.
    """

    source: str
    data: bytes
    noted: dict[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    seconds: float = 0.0


def plan(
    root: Place,
    output: Place,
    *,
    recursive: bool = False,
    ending: str = "",
    form: str | None = None,
    is_stack: Callable[[Path], bool] = lambda source: False,
    unread: dict[str, str] | None = None,
) -> list[Job]:
    """Every image of a folder, by name, and where its result goes; nothing is read or made.

    Files with the suffix of an image count, hidden ones do not. recursive: those of the folders below too, links to
    folders left out; the results lie in the same order of folders. ending: put at the end of names. form: the suffix
    of all results, such as ".png"; None keeps each image's own, and makes TIFFs of stacks. is_stack: which files those
    are. unread: receives the folders below that cannot be read, each with the reason.
    Raises ConfigError for an output folder, or a result, inside the input folder, for two results of one name
    (also where names differ in how an accent is written, or in case where the disk does not tell it apart), for a
    result that would lie on an input or behind a linked folder of the output, and for an object whose key is no way
    through folders; InputError for a folder that is not there or cannot be read.
    """
    if not root.is_dir():
        raise InputError(f"there is no folder {root}")
    if form is not None and form not in SUFFIXES:
        raise ConfigError(f"results of {form!r} are not written; known are {', '.join(SUFFIXES)}")
    if "/" in ending or "\0" in ending or os.sep in ending:
        raise ConfigError(f"{ending!r} cannot be the end of a file's name")
    if _inside(output, root):
        raise ConfigError(f"{output} lies inside {root}: its results would be the next run's images")
    jobs = []
    unread = {} if unread is None else unread
    found = _objects(root, recursive) if isinstance(root, ObjectPath) else _files(root, recursive, unread=unread)
    for way, source in sorted(found, key=lambda pair: pair[0].parts):
        stack = isinstance(source, Path) and is_stack(source)
        suffix = form or (stack_written_as if stack else written_as)(way.suffix)
        jobs.append(Job(way.as_posix(), source, output / way.parent / f"{way.stem}{ending}{suffix}", stack))
    _check(jobs, form)
    for target in (job.target for job in jobs):
        if isinstance(output, Path) and isinstance(target, Path):
            check_no_links(output, target)
        if _inside(target, root):
            raise ConfigError(f"{target} lies inside {root}: it would be one of the next run's images")
    return jobs


def written_as(suffix: str) -> str:
    """The suffix of the result of an image: its own, or another where files of its format are not written."""
    return (INSTEAD | further.BECOMES).get(suffix.lower(), suffix)


def stack_written_as(suffix: str) -> str:
    """The suffix of the result of a stack: its own, where it is one of TIFF."""
    return suffix if suffix.lower() in (".tif", ".tiff") else ".tif"


def left_out(root: Place, *, recursive: bool = False) -> dict[str, int]:
    """How many files of a folder look like images and are not read, by suffix."""
    found = _objects(root, recursive, _is_other) if isinstance(root, ObjectPath) else _files(root, recursive, _is_other)
    return dict(sorted(Counter(way.suffix.lower() for way, _ in found).items()))


def _check(jobs: list[Job], form: str | None) -> None:
    """Raises ConfigError where a result would lie on another, on an input, or where it cannot be found again."""
    taken: dict[str, Job] = {}
    folded = bool(jobs) and not _tells_case_apart(jobs[0].target)
    for job in jobs:
        key = unicodedata.normalize("NFC", str(job.target))
        key = key.casefold() if folded else key
        if key in taken:
            way = "leave out --format" if form and _own(job) != _own(taken[key]) else "rename one, or move it elsewhere"
            raise ConfigError(f"{taken[key].name} and {job.name} would both become {job.target.name}: {way}")
        taken[key] = job
    sources = {_one(job.source) for job in jobs}
    for job in jobs:
        if _one(job.target) in sources:
            raise ConfigError(f"{job.target} is an input; an original is never overwritten")
        if isinstance(job.target, ObjectPath) and (odd := job.target.name_error()):
            raise ConfigError(f"{job.name}: with {odd!r} in its name its result cannot lie in a store")


def _own(job: Job) -> str:
    """The suffix of its result where no format is given, in lower case."""
    return (stack_written_as if job.stack else written_as)(PurePosixPath(job.name).suffix).lower()


def _tells_case_apart(target: Place) -> bool:
    """Whether names that differ in case only are two files there, by a folder that exists."""
    if isinstance(target, ObjectPath):
        return True
    for folder in target.absolute().parents:
        other = folder.with_name(folder.name.swapcase()) if folder.name else folder
        if other != folder and folder.exists():
            return not (other.exists() and other.samefile(folder))
    return os.name == "posix"


def _one(what: Place) -> tuple[str, ...]:
    """The same for all names of one file or object."""
    return (what.bucket, what.key) if isinstance(what, ObjectPath) else (str(what.resolve()),)


def _inside(output: Place, root: Place) -> bool:
    if isinstance(output, ObjectPath) or isinstance(root, ObjectPath):
        return isinstance(output, ObjectPath) and isinstance(root, ObjectPath) and root.contains(output)
    inside = output.resolve()
    return inside == root.resolve() or root.resolve() in inside.parents


def _is_image(name: str) -> bool:
    suffix = PurePosixPath(name).suffix.lower()
    return not name.startswith(".") and suffix in SUFFIXES.keys() | INSTEAD.keys() | further.suffixes().keys()


def _is_other(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in OTHER_IMAGES and not (name.startswith(".") or _is_image(name))


def _files(
    root: Path, recursive: bool, wanted: Callable[[str], bool] = _is_image, *, unread: dict[str, str] | None = None
) -> Iterator[tuple[PurePosixPath, Place]]:
    """The way from the folder to an image, and the image."""

    def failed(error: OSError) -> None:
        reason = f"cannot read the folder: {error.strerror or error}"
        if Path(error.filename) == root:
            raise InputError(f"{root}: {reason}") from error
        if unread is not None:
            unread[Path(error.filename).relative_to(root).as_posix()] = reason

    for folder, folders, files in os.walk(root, onerror=failed):
        folders[:] = [name for name in folders if not name.startswith(".")] if recursive else []
        for source in (Path(folder, name) for name in files if wanted(name)):
            yield PurePosixPath(source.relative_to(root).as_posix()), source


def _objects(
    root: ObjectPath, recursive: bool, wanted: Callable[[str], bool] = _is_image
) -> Iterator[tuple[PurePosixPath, Place]]:
    """The same, of a store."""
    for source in root.below(recursive=recursive):
        *folders, name = source.parts[len(root.parts) :]
        hidden = any(folder.startswith(".") and folder not in (".", "..") for folder in folders)
        if wanted(name) and not hidden:
            if odd := source.name_error():
                raise ConfigError(f"{source}: {odd!r} in its key is no name of a folder or file")
            yield PurePosixPath(*folders, name), source
