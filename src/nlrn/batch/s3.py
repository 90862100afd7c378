"""Folders in an object store, S3 or a compatible one, by fsspec's s3fs: objects appear whole or not at all."""

from __future__ import annotations

import mimetypes
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from nlrn.errors import BackendError, ConfigError, InputError, NLRNError

SCHEME = "s3://"
_ONE_REQUEST = 5 << 30  # bytes: the most that is put at once, so that no part of one is left where a run is killed
VERSION = "?versionId="  # what s3fs takes for the beginning of another thing
LIMIT, SPEED = 30.0, 1e6  # seconds that a request may take, and bytes a second that its content may be had at least
LONGEST = 1024  # bytes of a key
_CONFLICTS = 3  # times that a store may answer that another client puts the same at the moment


@dataclass(frozen=True)
class ObjectPath:
    """s3://bucket/key: an object, or what a folder is in a store, the beginning of keys.

    etag, size: of the object, bytes, where it comes from a listing. Of pathlib it has what a plan of images needs.
    Every call that asks the store raises InputError with the reason, ConfigError for settings that are invalid,
    BackendError without s3fs. Its address and the credentials are set by the variables and files of AWS's own tools
    (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_PROFILE ...), once for a process.
    """

    bucket: str
    key: str = ""
    etag: str = ""
    size: int = 0

    @staticmethod
    def of(url: str) -> ObjectPath:
        """The path of a typed address. Raises ConfigError."""
        bucket, _, key = url.removeprefix(SCHEME).partition("/")
        found = ObjectPath(bucket, key.rstrip("/"))
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,255}", bucket) or found.name_error():
            raise ConfigError(f"{url!r} names no folder of a store: expected {SCHEME}BUCKET/FOLDER")
        return found

    def name_error(self) -> str:
        """What of the key is no way through folders, or would name another object; empty where nothing is."""
        for part in self.parts:
            if part in ("", "..") or Path(part).parts != (part,):
                return part or "//"
            try:
                part.encode()
            except UnicodeEncodeError:
                return part.encode(errors="backslashreplace").decode()
        if len(self.key.encode()) > LONGEST:
            return f"{self.key[:40]}..."
        return VERSION if VERSION in self.key else ""

    def __str__(self) -> str:
        return SCHEME + self._path

    @property
    def _path(self) -> str:
        return f"{self.bucket}/{self.key}" if self.key else self.bucket

    @property
    def parts(self) -> tuple[str, ...]:
        """The key between its slashes."""
        return tuple(self.key.split("/")) if self.key else ()

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The suffix of the name, such as ".png", or empty."""
        return PurePosixPath(self.name).suffix

    def __truediv__(self, more: PurePosixPath | str) -> ObjectPath:
        return ObjectPath(self.bucket, "/".join([*self.parts, *PurePosixPath(more).parts]))

    def contains(self, other: ObjectPath) -> bool:
        """Whether the other is this one or lies below it."""
        return self.bucket == other.bucket and other.parts[: len(self.parts)] == self.parts

    def is_dir(self) -> bool:
        """Whether any object's key begins with this one and a slash."""
        with _asked(self) as store:
            start = f"{self.key}/" if self.key else ""
            metadata = store.call_s3("list_objects_v2", Bucket=self.bucket, Prefix=start, MaxKeys=1, timeout=LIMIT)
        return not self.key or bool(metadata.get("Contents"))

    def below(self, *, recursive: bool = True) -> Iterator[ObjectPath]:
        """Every object of the folder, without those of the folders below it unless `recursive`."""
        with _asked(self) as store:
            listed = store.find if recursive else store.ls
            found = listed(self._path, detail=True)
        for metadata in found.values() if recursive else found:
            path = metadata["name"]
            if path.startswith(self._path + "/") and not path.endswith("/") and metadata["type"] == "file":
                key = path.removeprefix(f"{self.bucket}/")
                yield ObjectPath(self.bucket, key, metadata["ETag"].strip('"'), metadata["size"])

    def read(self, most: int) -> bytes:
        """At most one byte more than the limit. The object must be the one that was listed: InputError."""
        with _asked(self) as store:
            end = min(self.size, most + 1)
            data: bytes = store.cat_file(self._path, start=0, end=end, timeout=LIMIT + end / SPEED) if end else b""
            found = store.info(self._path, timeout=LIMIT)
        if found.get("ETag", "").strip('"') != self.etag:  # of a folder there is none
            raise InputError("it has changed since this run began")
        return data

    def metadata(self) -> dict[str, str]:
        """The metadata that the object was put with; empty where there is none."""
        with _asked(self) as store:
            try:
                return dict(store.metadata(self._path, timeout=LIMIT))
            except FileNotFoundError:
                return {}

    def put(self, data: bytes, metadata: Mapping[str, str] = {}, *, over: str = "") -> str | None:
        """Put an object with its metadata, in one request; returns its etag, or None if another object is there.

        over: the etag of what it replaces; without, no object may be there. The store decides (If-None-Match,
        If-Match), so of several that do this at a time one succeeds.
        """
        options: dict[str, Any] = {"mode": "overwrite" if over else "create", "Metadata": dict(metadata)}
        options |= {"chunksize": _ONE_REQUEST, "timeout": LIMIT + len(data) / SPEED}
        if over:
            options["IfMatch"] = f'"{over}"'
        kind = mimetypes.guess_type(self.name)[0] or "application/octet-stream"
        conflicts = 0
        with _asked(self) as store:
            while True:
                try:
                    said = store.pipe_file(self._path, data, ContentType=kind, **options)
                    return str(said["ETag"].strip('"'))
                except OSError as error:
                    conflicts += _code(error) == "ConditionalRequestConflict"
                    if _code(error) in ("PreconditionFailed", "412", "NoSuchKey"):
                        return None
                    if _code(error) != "ConditionalRequestConflict" or conflicts == _CONFLICTS:
                        raise
                time.sleep(0.2 * conflicts)


Place = Path | ObjectPath  # a folder or what is in one


def place(text: str) -> Place:
    """What a user names. Raises ConfigError for a store of another kind."""
    if text.startswith(SCHEME):
        return ObjectPath.of(text)
    if scheme := re.match(r"(?i)([a-z][a-z0-9+.-]+://|s3:/)", text):
        raise ConfigError(f"{text!r}: of object stores {SCHEME}BUCKET/FOLDER is known, not {scheme[0]}")
    return Path(text)


@contextmanager
def _asked(what: ObjectPath) -> Iterator[Any]:
    """The store; its errors become one line that names the object."""
    try:
        import s3fs
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise BackendError("object stores need s3fs (pip install 'nlrn[s3]')") from error
    try:
        yield _connected(s3fs, what)
    except NLRNError:
        raise
    except FileNotFoundError as error:
        bucket = _code(error) == "NoSuchBucket"
        raise InputError(f"there is no bucket {what.bucket}" if bucket else f"there is no {what}") from error
    except TimeoutError as error:
        raise InputError(f"{what}: the store does not answer in time") from error
    except (OSError, BotoCoreError, ClientError) as error:  # of the store, of the credentials, of the network
        raise InputError(f"{what}: {_line(error)}") from error


def _connected(s3fs: Any, what: ObjectPath) -> Any:
    """s3fs keeps one for a process. Raises ConfigError."""
    try:
        store = s3fs.S3FileSystem(use_listings_cache=False)
        store.connect()
    except (TypeError, AttributeError, KeyError, ValueError) as error:  # how s3fs reports an unknown setting
        reason = f"AWS_ENDPOINT_URL or FSSPEC_S3 is invalid: {_line(error)}"
        raise ConfigError(f"{what}: {reason}") from error
    return store


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _code(error: OSError) -> str:
    """The store's own name of an error."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))
