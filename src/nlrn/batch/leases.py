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

from nlrn.batch.s3 import ObjectPath
from nlrn.errors import ConfigError, StoreError

_log = logging.getLogger("nlrn")
RENEWED = 15.0  # seconds between two signs of life
SILENT = 60.0  # seconds without one, then the holder counts as dead
PATIENCE = 10.0  # seconds that the end of a run waits for the store
TRIES = 10
_open: set[str] = set()  # leases of this process


class Lease:
    """Holds a folder, for one run at a time; a context.

    The object says who put it and how often. Every put names the etag of the one before, so the store itself lets
    one succeed. A holder that was killed is followed at once by a run on the same machine, which sees that its process
    is gone, and by any other after SILENT seconds without a sign of life. Raises ConfigError for a folder that is held,
    and for a store that does not know of conditions.
    """

    def __init__(self, folder: ObjectPath) -> None:
        self.folder, self.object = folder, folder / ".nlrn-lock"
        self._claim: dict[str, Any] = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "run": secrets.token_hex(8),
        }
        self._claim |= {"where": _here(), "begun": _stat(os.getpid())[1], "renewed": 0}
        self._etag, self._lost, self._when = "", "", 0.0
        self._end, self._one = threading.Event(), threading.Lock()
        self._renewing = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Lease:
        _open.add(self._claim["run"])
        try:
            self._take()
            self._check_store()
            self._renewing.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        releasing = threading.Thread(target=self._release, daemon=True)  # a store that hangs holds nobody
        releasing.start()
        releasing.join(PATIENCE)
        if releasing.is_alive():
            _log.warning("%s does not answer; the next run elsewhere will wait for this one", self.object)

    def check(self) -> None:
        """Raises StoreError where the folder is another run's by now: this one was asleep, or cut off, for long."""
        if not self._lost and time.time() - self._when > SILENT:
            self._sign()
        if self._lost:
            raise StoreError(self._lost)

    def _take(self) -> None:
        for _ in range(TRIES):
            if self._put(self._etag):
                return
            self._etag = self._free_of()
            time.sleep(0.1)
        raise StoreError(f"the store refuses {self.object}, and says that nothing is there")

    def _check_store(self) -> None:
        """Raises ConfigError for one that passes over conditions."""
        for name, over in (("If-None-Match", ""), ("If-Match", "0" * 32)):
            if self.object.put(json.dumps(self._claim).encode(), over=over) is not None:
                raise ConfigError(f"the store of {self.folder} replaces what is there although asked not to ({name})")

    def _sign(self) -> None:
        """Give a sign of life, or learn that it came too late."""
        with self._one:
            if not self._put(self._etag):
                self._lost = f"{self.folder} was taken over by another run, after {SILENT:.0f} s without this one"

    def _renew(self) -> None:
        while not self._end.wait(RENEWED) and not self._lost:
            try:
                self._sign()
            except Exception as error:  # perhaps the store answers the next time; check() asks again
                _log.warning("cannot say that this run still holds the folder: %s", error)

    def _release(self) -> None:
        try:
            with self._one:
                if self._ours() is not None:
                    self.object.delete()
        except Exception as error:
            level = logging.WARNING if self._when else logging.DEBUG  # it never held anything
            _log.log(level, "the next run elsewhere will wait for this one: %s", error)
        finally:
            _open.discard(self._claim["run"])

    def _put(self, over: str) -> bool:
        self._claim["renewed"] += 1
        now = time.time()
        etag = self.object.put(json.dumps(self._claim).encode(), over=over)
        if etag is None:  # unless it was this run, whose first try went unanswered
            etag = self._ours()
        if etag is not None:
            self._etag, self._when = etag, now
        return etag is not None

    def _ours(self) -> str | None:
        """The etag of the object where this run put it."""
        holder, etag = self._holder()
        return etag if holder.get("run") == self._claim["run"] else None

    def _holder(self) -> tuple[dict[str, Any], str]:
        """Who put the object, and its etag, which is empty where there is none."""
        data, etag = self.object.content() or (b"{}", "")
        try:
            return dict(json.loads(data)), etag
        except (ValueError, TypeError):
            return {}, etag

    def _free_of(self) -> str:
        """The etag of what a dead holder left; nothing where there is none. Raises ConfigError for one that lives."""
        began, warned = time.monotonic(), False
        first = found = self._holder()
        while found[1]:
            holder, etag = found
            who = f"process {holder.get('process', '?')} on {holder.get('host', '?')}"
            who = "".join(letter for letter in who if letter.isprintable())[:200]
            alive = _alive(holder)
            if alive is False or (found == first and time.monotonic() - began >= SILENT):
                return etag
            if found != first or alive:
                raise ConfigError(f"{self.folder} is held by {who}")
            if not warned:
                _log.warning("%s was held by %s; waiting %.0f s for a sign of life", self.folder, who, SILENT)
            warned = True
            time.sleep(min(RENEWED / 5, 2.0))
            found = self._holder()
        return ""


def _here() -> str:
    """Where a process number means something: this machine since it was started, this container; empty if unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _stat(process: int) -> tuple[str, str]:
    """The state of a process, and when it was started in ticks of this machine; empty where they cannot be read."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", ""


def _alive(holder: dict[str, Any]) -> bool | None:
    """Whether the run of a holder continues; None where that cannot be seen from here."""
    process = holder.get("process")
    if not _here() or holder.get("where") != _here() or not isinstance(process, int) or not 0 < process < 1 << 31:
        return None
    state, begun = _stat(process)
    if process == os.getpid() and begun == holder.get("begun"):
        return holder.get("run") in _open
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        pass
    if not begun:  # hidden
        return None
    return begun == holder.get("begun") and state not in "ZX"  # killed, and nobody has asked how it ended
