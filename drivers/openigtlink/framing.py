"""From bytes in any split to whole, checked messages. No sockets, no clocks.

A reader asks the framer where the next bytes belong (`Framer.writable`), receives straight into that place, and says
how many came (`Framer.advance`). Bodies larger than the staging buffer are received into their final place, so a large
image is copied once, when it becomes immutable. Sizes are checked on the header alone, before room is made for a body.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from drivers.openigtlink.wire import HEADER_SIZE, Header, Limits, PeerGone, WireError, check_crc, parse_header

__all__ = ["Framer", "keeps"]

_STAGING_BYTES = 1 << 16


def keeps(header: Header, limits: Limits) -> bool:
    """Whether a message is kept (True) or read past (False), by its header alone.

    Raises
    ------
    WireError
        When its body is larger than may even be read past.
    """
    limit = limits.decoded.get(header.type_name, limits.skipped)
    if header.body_size > limit:
        raise WireError(
            f"body size of {header.type_name} {header.device!r}",
            offset=42,
            value=header.body_size,
            limit=f"{limit} bytes",
        )
    return header.type_name in limits.decoded or header.body_size <= limits.kept


class Framer:
    """Cuts one connection's bytes into messages.

    After a `WireError` the stream is out of step: every further call raises the same error, and the owner must close
    the connection and begin with a new framer. Nothing is ever resumed in the middle.

    Parameters
    ----------
    limits : Limits
        Largest bodies per type.
    check_crc : bool
        False only for tools that look at broken senders.

    Attributes
    ----------
    skipped : Counter
        Messages per type that were read past because they were too large to keep.
    broken : WireError or None
        Set as soon as the stream is out of step, also when the same bytes still completed good messages.
    """

    def __init__(self, limits: Limits | None = None, *, check_crc: bool = True) -> None:
        self.limits = Limits() if limits is None else limits
        self.check_crc = check_crc
        self.skipped: Counter[str] = Counter()
        self._staging = bytearray(_STAGING_BYTES)
        self._staging_view = memoryview(self._staging)
        self._head = bytearray()
        self._header: Header | None = None
        self._message = memoryview(b"")
        self._have = 0
        self._to_skip = 0
        self.broken: WireError | None = None

    @property
    def pending(self) -> int:
        """Bytes received of the message that is not complete yet (0 between messages)."""
        if self._to_skip:
            return HEADER_SIZE
        return len(self._head) if self._header is None else self._have

    @property
    def expected(self) -> int:
        """Whole size in bytes of the message that is being received, as far as its header is known (else 58)."""
        return HEADER_SIZE + self._to_skip if self._header is None else len(self._message)

    def writable(self) -> memoryview:
        """Where to receive the next bytes; use it at once and report to `advance`."""
        if self.in_large_body:
            return self._message[self._have :]
        return self._staging_view

    @property
    def in_large_body(self) -> bool:
        """True when `writable` is the rest of one large message, which is of no use before all of it is there."""
        return self._header is not None and len(self._message) - self._have > _STAGING_BYTES

    def advance(self, count: int) -> list[bytes]:
        """Take ``count`` bytes that were received into the last `writable` and return the messages now complete.

        Raises
        ------
        WireError
        """
        self._check()
        if self._header is None or len(self._message) - self._have <= _STAGING_BYTES:
            return self._consume(self._staging_view[:count])
        self._have += count
        if self._have < len(self._message):
            return []
        try:
            return [self._finish()]
        except WireError as error:
            self.broken = error
            raise

    def feed(self, data: bytes | bytearray | memoryview) -> list[bytes]:
        """Take bytes from anywhere and return the messages now complete, header and body.

        Raises
        ------
        WireError
        """
        self._check()
        return self._consume(memoryview(data))

    def close(self) -> None:
        """The peer closed: raise `PeerGone` when that was in the middle of a message."""
        if self.pending:
            raise PeerGone("the peer closed the connection in the middle of a message", self.pending)

    def _check(self) -> None:
        if self.broken is not None:
            raise self.broken

    def _consume(self, data: memoryview) -> list[bytes]:
        done: list[bytes] = []
        at, n = 0, len(data)
        try:
            while at < n:
                if self._to_skip:
                    step = min(self._to_skip, n - at)
                    self._to_skip -= step
                elif self._header is None:
                    step = min(HEADER_SIZE - len(self._head), n - at)
                    self._head += data[at : at + step]
                    if len(self._head) == HEADER_SIZE:
                        self._open()
                else:
                    step = min(len(self._message) - self._have, n - at)
                    self._message[self._have : self._have + step] = data[at : at + step]
                    self._have += step
                if self._header is not None and self._have == len(self._message):
                    done.append(self._finish())
                at += step
        except WireError as error:
            self.broken = error
            if not done:
                raise
        return done

    def _open(self) -> None:
        header = parse_header(self._head)
        if not keeps(header, self.limits):
            self.skipped[header.type_name] += 1
            self._to_skip = header.body_size
            self._head.clear()
            return
        self._header = header
        # Not filled with zeros: a large one has no memory behind it before bytes come, however much was announced.
        self._message = np.empty(HEADER_SIZE + header.body_size, np.uint8).data
        self._message[:HEADER_SIZE] = self._head
        self._have = HEADER_SIZE
        self._head.clear()

    def _finish(self) -> bytes:
        header, message = self._header, self._message
        assert header is not None
        self._header, self._message, self._have = None, memoryview(b""), 0
        if self.check_crc:
            check_crc(header, message[HEADER_SIZE:])
        return bytes(message)
