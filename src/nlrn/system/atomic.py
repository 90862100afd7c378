"""Files that appear whole or not at all: the one way this package writes to disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from nlrn.errors import ConfigError, InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
LEFTOVERS = ".nlrn-*.part"  # what a killed process may leave in the folder; never a file's own name


def check_folder(path: Path) -> None:
    """Raises InputError where the folder of a file that will be written is missing."""
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to write {path.name} into")


def check_target(
    path: str | os.PathLike[str], *, overwrite: bool, inputs: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Find out before any work whether `path` can be written. Raises InputError with the reason.

    Checked: an existing folder that files can be written in, no file of that name (with `overwrite`: nothing but a
    file), and that it is none of `inputs`, which are never written, with or without `overwrite`.
    """
    path = Path(path)
    try:
        check_folder(path)
        for source in map(Path, inputs):
            if path.resolve() == source.resolve() or (path.exists() and source.exists() and path.samefile(source)):
                raise InputError(f"{path} is an input; an original is never overwritten, give another name")
        if os.path.lexists(path):
            if not overwrite:
                raise InputError(f"{path} exists already; give another name, or --overwrite")
            if not path.is_file():
                raise InputError(f"{path} exists and is not a file; give another name")
        tempfile.TemporaryFile(dir=path.parent).close()
    except InputError:
        raise
    except (OSError, ValueError) as error:  # a name that is too long or holds a NUL, a folder without permission
        raise InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises InputError with the reason where the system refuses to write a file."""
    try:
        yield
    except FileExistsError as error:
        raise InputError(f"{path} exists already; give another name, or --overwrite") from error
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def publish(path: str | Path, data: bytes, *, overwrite: bool = False) -> Path:
    """Write ``data`` to ``path`` atomically: a temporary file in the same folder, synced, then linked or renamed.

    A reader sees the old file or the new one, never a part; a full disk leaves the old one as it was. Without
    ``overwrite`` an existing file is refused, also one that appears meanwhile. Raises InputError with the
    reason.
    """
    path = Path(path)
    with writing(path):
        temporary, file = _begun(path.parent)
        try:
            if overwrite:
                keep_rights(file, path)
            file.write(data)
            _named(temporary, file, path, overwrite=overwrite)
        finally:
            with contextlib.suppress(OSError):  # a full disk refuses what was not written
                file.close()
            with contextlib.suppress(OSError):
                temporary.unlink()
    return path


def publish_file(temporary: Path, file: IO[bytes], path: Path, *, overwrite: bool = False) -> Path:
    """Give a finished file beside ``path`` that name, as `publish` does; it is closed then, its other name gone.

    Where it cannot have the name it stays as it is. Raises InputError with the reason.
    """
    with writing(path):
        _named(temporary, file, path, overwrite=overwrite)
        file.close()
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    return path


def remove_second_name(temporary: Path, path: Path) -> bool:
    """Delete the temporary name of a file that `publish_file` gave its own before it was killed; whether it did."""
    with contextlib.suppress(OSError):
        if not path.is_symlink() and not temporary.is_symlink() and temporary.samefile(path):
            temporary.unlink()
            return True
    return False


def _named(temporary: Path, file: IO[bytes], path: Path, *, overwrite: bool) -> None:
    """The file with all its content gets the name."""
    file.flush()
    os.fsync(file.fileno())
    if os.name == "nt":  # where an open file is not renamed
        file.close()
    if overwrite:
        temporary.replace(path)
    else:
        _appear(temporary, path)
    _sync_folder(path.parent)


def publish_json(path: str | Path, result: dict[str, Any]) -> Path:
    """Write a result as JSON, atomically; an existing file is replaced. Raises InputError."""
    return publish(path, (json.dumps(finite(result), indent=1) + "\n").encode(), overwrite=True)


def finite(result: Any) -> Any:
    """A result with None for numbers that JSON has no word for, such as the PSNR of equal images."""
    if isinstance(result, dict):
        return {key: finite(value) for key, value in result.items()}
    if isinstance(result, list | tuple):
        return [finite(value) for value in result]
    return None if isinstance(result, float) and not math.isfinite(result) else result


def open_record(path: Path, mode: str = "a+b") -> IO[bytes]:
    """A file of this package's own, to read and to append to; made where there is none, never truncated.

    mode: "r+b" to write into it anywhere. Raises ConfigError for a symbolic link, a file with a second name (a hard
    link) and anything that is no regular file: what those refer to may be an original.
    """
    flags = os.O_RDWR | os.O_CREAT | (os.O_APPEND if "a" in mode else 0)
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    advice = "remove it, or choose another folder"
    try:
        if path.is_symlink():
            raise ConfigError(f"{path} is a symbolic link, which is not followed: {advice}")
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise ConfigError(f"cannot open {path}: {error.strerror or error}; {advice}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        problem = "has a second name (a hard link)" if stat.S_ISREG(status.st_mode) else "is not a regular file"
        raise ConfigError(f"{path} {problem}: {advice}")
    return os.fdopen(descriptor, mode)


def locked(file: IO[bytes] | int, *, otherwise: bool = False) -> bool:
    """Lock an open file for this process; False where another holds it.

    otherwise: the answer where files cannot be locked. On Windows none is: True.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return otherwise


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_no_links(folder: Path, target: Path) -> None:
    """Raises ConfigError for a symbolic link among the folders from `folder` down to `target`, both excluded.

    A result behind it would lie outside of `folder`, perhaps among the originals.
    """
    for parent in target.parents:
        if parent == folder or folder not in parent.parents:
            return
        if parent.is_symlink():
            raise ConfigError(
                f"{parent} is a symbolic link inside the output folder: remove it, or choose another folder"
            )


def remove_leftovers(folder: Path, *, recursive: bool = False) -> None:
    """Delete what killed processes left in a folder (and below); what is being written is locked, and stays.

    So does what cannot be deleted, or is no file.
    """
    for path in (folder.rglob if recursive else folder.glob)(LEFTOVERS):
        with contextlib.suppress(OSError):
            if stat.S_ISREG(path.lstat().st_mode):
                _remove(path)


def _remove(path: Path) -> None:
    """Delete a file unless a process holds its lock; it is locked meanwhile, so that its maker sees that it is lost."""
    if os.name == "nt":
        path.unlink()
        return
    file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)  # NFS locks only what is open for writing
    try:
        if locked(file, otherwise=True):
            path.unlink()
    finally:
        os.close(file)


def _begun(folder: Path) -> tuple[Path, IO[bytes]]:
    """A new temporary file, locked where files can be, so that no process takes it for a leftover."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    while True:
        path = folder / f".nlrn-{secrets.token_hex(8)}.part"
        file = os.fdopen(os.open(path, flags, 0o666), "wb")  # the umask applies, as to any new file
        if _is_ours(file):
            return path, file
        file.close()
        with contextlib.suppress(OSError):
            path.unlink()


def keep_rights(file: IO[bytes], path: Path) -> None:
    """Give a new file, still empty, the owner, group and rights of the one that it will replace.

    Where the group cannot be kept, another has no rights of that one. A link that is replaced has none to keep.
    """
    if os.name == "nt":
        return
    try:
        old = path.lstat()
    except OSError:
        return
    if not stat.S_ISREG(old.st_mode):
        return
    mode, new = stat.S_IMODE(old.st_mode) & 0o777, os.fstat(file.fileno())
    for uid, gid in ((old.st_uid, -1), (-1, old.st_gid)):
        with contextlib.suppress(OSError):
            if (uid, gid) not in ((new.st_uid, -1), (-1, new.st_gid)):
                os.fchown(file.fileno(), uid, gid)
    if os.fstat(file.fileno()).st_gid != old.st_gid:
        mode &= ~0o070
    with contextlib.suppress(OSError):  # a file system without rights
        os.fchmod(file.fileno(), mode)


def _is_ours(file: IO[bytes]) -> bool:
    """Lock a file that was just made; False where another process took it for a leftover before."""
    if os.name == "nt":
        return True
    return locked(file, otherwise=True) and os.fstat(file.fileno()).st_nlink > 0


def _appear(temporary: Path, path: Path) -> None:
    """Give a finished file its name unless that is taken: a link, unlike a rename, refuses to replace."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):  # a file system without links, such as FAT: nearly as good
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        temporary.replace(path)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
