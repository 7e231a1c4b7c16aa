"""What waits for one client: sent at once where the socket takes it, else queued, bounded, and never torn.

The caller's own thread sends while nothing waits, so a message costs no change of thread. What a full socket does not
take stays here, in order, until the server's thread finds the socket writable again (`Outgoing.flush`). A message of
which a part was sent is finished before anything else; it is never dropped and nothing is put into its middle.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal

__all__ = ["FLUSH_BYTES", "RELIABLE_LIMIT", "Kind", "Outgoing"]

Kind = Literal["stream", "reliable"]

_LOG = logging.getLogger(__name__)

#: Commands and texts waiting for one client; beyond it the client is given up rather than anything dropped.
RELIABLE_LIMIT = 4096
#: Bytes given to the socket in one call of `Outgoing.flush` and in one round: the publisher may have to wait for that
#: long for this client's lock (a fraction of a millisecond), and the other clients for their turn.
FLUSH_BYTES = 1 << 20
#: A message that was begun must be out within the time limit and this much per byte (1 MB/s).
_NS_PER_BYTE = 1000


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    key: str
    kind: Kind
    raw: bytes


class Outgoing:
    """The way out to one client. Thread-safe.

    Parameters
    ----------
    sock : socket
        Connected and non-blocking.
    address : str
        Names the client in the log.
    max_bytes : int
        Most that may wait in whole messages; one message may always wait, however large it is.

    Attributes
    ----------
    sent : int
        Messages handed to the operating system as a whole.
    dropped : Counter
        Stream messages given up for a newer one, by their key (device).
    """

    def __init__(self, sock: socket.socket, address: str, max_bytes: int) -> None:
        self.sock, self.address = sock, address
        self.sent = 0
        self.dropped: Counter[str] = Counter()
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._queue: deque[_Item] = deque()
        self._bytes = 0
        self._counts: Counter[str] = Counter()
        self._reliable = 0
        self._begun: memoryview | None = None  # the rest of a message of which a part was sent
        self._begun_ns = 0
        self._begun_size = 0
        self._moved_ns = self._idle_ns = time.monotonic_ns()
        self._closed = False

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether something waits for the socket to become writable."""
        with self._lock:
            return self._begun is not None or bool(self._queue)

    @property
    def closed(self) -> bool:
        """True once the connection has failed or was closed from this side."""
        with self._lock:
            return self._closed

    def queued(self) -> tuple[int, int]:
        """(messages, bytes) that wait, the rest of a begun one included."""
        with self._lock:
            rest = 0 if self._begun is None else len(self._begun)
            return len(self._queue) + (rest > 0), self._bytes + rest

    def idle_since_ns(self) -> int:
        """When the last message went out; a far future while something waits (monotonic clock)."""
        with self._lock:
            return 1 << 63 if self._begun is not None or self._queue else self._idle_ns

    def late_at_ns(self, limit_ns: int) -> int:
        """When this client counts as stuck unless it takes something before; a far future when nothing waits."""
        with self._lock:
            if self._begun is None and not self._queue:
                return 1 << 63
            at = self._moved_ns + limit_ns
            if self._begun is not None:
                at = min(at, self._begun_ns + limit_ns + self._begun_size * _NS_PER_BYTE)
            return at

    # -- sending -------------------------------------------------------------------------------------------------

    def put(self, key: str, kind: Kind, raw: bytes, depth: int) -> bool:
        """Send ``raw``, or let it wait.

        Returns
        -------
        bool
            True when the server's thread must look at this client: something waits now that did not before, or the
            connection has failed.
        """
        with self._lock:
            if self._closed:
                return False
            if self._begun is not None or self._queue:
                self._enqueue(_Item(key, kind, raw), depth)
                return self._closed
            now = time.monotonic_ns()
            count = self._send(memoryview(raw))
            if count == len(raw):
                self.sent += 1
                self._idle_ns = now
                return False
            self._moved_ns = now
            if count > 0:
                self._begin(raw, count, now)
            elif not self._closed:
                self._enqueue(_Item(key, kind, raw), depth)
            return True

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it, at most about `FLUSH_BYTES`; for the server's thread."""
        given = 0
        while given < FLUSH_BYTES:
            with self._lock:
                if self._closed:
                    return
                if self._begun is not None:
                    view = self._begun
                elif self._queue:
                    view = memoryview(self._queue[0].raw)
                else:
                    return
                count = self._send(view[:FLUSH_BYTES])
                if count <= 0:
                    return
                now = time.monotonic_ns()
                if self._begun is None:
                    raw = self._forget(0).raw
                    self._begin(raw, 0, now)
                self._begun = view[count:] if count < len(view) else None
                self._moved_ns = now
                if self._begun is None:
                    self.sent += 1
                    self._idle_ns = now
            given += count

    def close(self) -> None:
        """Take nothing more; wakes whoever waits for the socket. The socket itself is closed by its owner."""
        with self._lock:
            self._close()

    def _begin(self, raw: bytes, count: int, now_ns: int) -> None:
        self._begun, self._begun_ns, self._begun_size = memoryview(raw)[count:], now_ns, len(raw)

    def _send(self, view: memoryview) -> int:
        """Bytes that the socket took; 0 when it is full, -1 when the connection has failed."""
        try:
            return self.sock.send(view)
        except BlockingIOError:
            return 0
        except OSError as error:
            _LOG.info("client %s: %s", self.address, error)
            self._close()
            return -1

    def _enqueue(self, item: _Item, depth: int) -> None:
        if item.kind == "stream" and self._counts[item.key] >= depth:
            self._drop_oldest(item.key)
        while self._queue and self._bytes + len(item.raw) > self._max_bytes and self._drop_oldest(None):
            pass
        full = bool(self._queue) and self._bytes + len(item.raw) > self._max_bytes
        if item.kind == "stream" and full:
            self.dropped[item.key] += 1  # what waits are texts and commands, which go first
            return
        if item.kind == "reliable" and (full or self._reliable >= RELIABLE_LIMIT):
            _LOG.warning(
                "client %s does not take its messages (%d texts, %d bytes waiting, limits %d and %d): disconnected",
                self.address, self._reliable, self._bytes, RELIABLE_LIMIT, self._max_bytes,
            )  # fmt: skip
            self._close()
            return
        self._queue.append(item)
        self._bytes += len(item.raw)
        if item.kind == "stream":
            self._counts[item.key] += 1
        else:
            self._reliable += 1

    def _drop_oldest(self, key: str | None) -> bool:
        """Give up the oldest stream message of a device (None: of any); False when there is none."""
        for at, old in enumerate(self._queue):
            if old.kind == "stream" and key in (None, old.key):
                self._forget(at)
                self.dropped[old.key] += 1
                return True
        return False

    def _forget(self, at: int) -> _Item:
        item = self._queue[at]
        del self._queue[at]
        self._bytes -= len(item.raw)
        if item.kind == "reliable":
            self._reliable -= 1
        else:
            self._counts[item.key] -= 1
            if not self._counts[item.key]:
                del self._counts[item.key]
        return item

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._queue.clear()
        self._bytes, self._reliable, self._begun = 0, 0, None
        self._counts.clear()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # the server's thread sees the end at once
