"""Files that appear whole or not at all: the one way this package writes to disk."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from nlrn.errors import InputError


def publish(path: str | Path, data: bytes, *, overwrite: bool = False) -> Path:
    """Write ``data`` to ``path`` atomically: a temporary file beside it, synced, then linked or renamed.

    A reader sees the old file or the new one, never a part; a full disk leaves the old one as it was. Without
    ``overwrite`` an existing file is refused, also one that appears meanwhile. Raises InputError with the reason.
    """
    path = Path(path)
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".nlrn-", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        if overwrite:
            os.replace(temporary, path)
            temporary = None
        else:
            os.link(temporary, path)  # unlike a rename, refuses to replace
        _sync_folder(path.parent)
    except FileExistsError as error:
        raise InputError(f"{path} exists already; give another name, or --overwrite") from error
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return path


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
