"""Who holds a folder of an object store, where nothing can be locked: an object that its holder keeps putting."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from nlrn.errors import ConfigError, InputError
from nlrn.objects import ObjectPath

_log = logging.getLogger("nlrn")
RENEWED = 15.0  # seconds between two signs of life
SILENT = 60.0  # seconds without one, then the holder counts as dead


class Lease:
    """Holds a folder, for one run at a time; a context.

    The object says who put it and how often. Every put names the etag of the one before, so the store itself lets
    one succeed. A holder that was killed is followed at once by a run on the same machine, which sees that its process
    is gone, and by any other after SILENT seconds without a sign of life. Raises ConfigError for a folder that is held,
    and for a store that does not know of conditions.
    """

    def __init__(self, folder: ObjectPath) -> None:
        self.folder, self.object = folder, folder / ".nlrn-lock"
        self._told: dict[str, Any] = {"process": os.getpid(), "host": socket.gethostname(), "run": secrets.token_hex(8)}
        self._told |= {"where": _here(), "begun": _begun(os.getpid()), "renewed": 0}
        self._etag, self._lost = "", ""
        self._end = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Lease:
        while not self._put(self._etag):
            self._etag = self._free_of()
        if self.object.put(b"") is not None:
            self.object.delete()
            raise ConfigError(
                f"the store of {self.folder} replaces what is there although it is asked not to (If-None-Match)"
            )
        self._renewing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._renewing.join()
        try:
            if self._ours() is not None:
                self.object.delete()
        except InputError as error:
            _log.warning("the next run on another machine will wait for this one: %s", error)

    def check(self) -> None:
        """Raises ConfigError where the folder is somebody else's by now: this run was asleep, or cut off, for long."""
        if self._lost:
            raise ConfigError(self._lost)

    def _put(self, over: str) -> bool:
        self._told["renewed"] += 1
        etag = self.object.put(json.dumps(self._told).encode(), over=over)
        if etag is None:  # unless it was this run, whose first try went unanswered
            etag = self._ours()
        self._etag = etag or over
        return etag is not None

    def _ours(self) -> str | None:
        """The etag of the object where this run put it."""
        holder, etag = self._holder()
        return etag if holder.get("run") == self._told["run"] else None

    def _holder(self) -> tuple[dict[str, Any], str]:
        """Who put the object, and its etag, which is empty where there is none."""
        data, etag = self.object.content() or (b"{}", "")
        try:
            return dict(json.loads(data)), etag
        except (ValueError, TypeError):
            return {}, etag

    def _free_of(self) -> str:
        """The etag of what a dead holder left; nothing where there is none."""
        began = time.monotonic()
        first = found = self._holder()
        while found[1]:
            holder, etag = found
            who = f"process {holder.get('process', '?')} on {holder.get('host', '?')}"
            if _ended(holder) or (found == first and time.monotonic() - began >= SILENT):
                return etag
            if found != first or _lives(holder):
                raise ConfigError(f"{self.folder} is held by {who}")
            if time.monotonic() - began < 1:
                _log.warning("%s was held by %s; waiting %.0f s for a sign of life", self.folder, who, SILENT)
            time.sleep(min(RENEWED / 5, 2.0))
            found = self._holder()
        return ""

    def _renew(self) -> None:
        while not self._end.wait(RENEWED):
            try:
                if not self._put(self._etag):
                    self._lost = f"{self.folder} was taken over by another run, after {SILENT:.0f} s without this one"
                    return
            except InputError as error:  # perhaps the store answers the next time
                _log.warning("cannot say that this run still holds the folder: %s", error)


def _here() -> str:
    """Where a process number means something: this machine since it was started, this container; empty if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _begun(process: int) -> str:
    """When a process was started, in ticks of this machine; empty if there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _ended(holder: dict[str, Any]) -> bool:
    return _is_near(holder) and holder.get("begun") != _begun(holder["process"])


def _lives(holder: dict[str, Any]) -> bool:
    return _is_near(holder) and not _ended(holder)


def _is_near(holder: dict[str, Any]) -> bool:
    """Whether its process can be looked at from here."""
    return bool(_here()) and holder.get("where") == _here() and isinstance(holder.get("process"), int)
