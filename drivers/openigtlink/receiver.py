"""The memory that the two threads of a source share, and what each of them does with it.

Both call `ReceiveRing.receive`: one of them leads and is in `receive_kernel` on the socket, the other waits for the
lead or delivers. Who is told to deliver calls `ReceiveRing.take` until nothing is left. What came is handed out in
order, with the notes (changes of the link) that the leader posted between. Large messages are handed over in the buffer
that they were received into, without a copy.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numba import config as numba_config
from numpy.typing import NDArray

from drivers.openigtlink import codec
from drivers.openigtlink import receive_kernel as k
from drivers.openigtlink.crc64 import TABLES
from drivers.openigtlink.framing import keeps
from drivers.openigtlink.wire import Limits, PeerGone, WireError, crc_mismatch, parse_header
from nav.geometry.kernels import KernelSpec

__all__ = ["IMAGE_TYPES", "KERNELS", "Kind", "Outcome", "ReceiveRing", "Taken", "compile_kernels"]

#: What receiving, and reading a pose, needs.
KERNELS: tuple[KernelSpec, ...] = (*codec.KERNELS, *k.KERNELS)

#: Types of which the newest message replaces those that wait. Not VIDEO: its frames rest on those before them.
IMAGE_TYPES = ("IMAGE",)

_RING_BYTES = 1 << 22
_STAGING_BYTES = 1 << 16
_DESCRIPTORS = 1 << 14
_SLOTS = 8
#: Buffers beyond the one that is needed now are made up to this many bytes in all; their pages cost nothing unused.
_SLOT_BYTES = 1 << 28
_ROUND_BYTES = 1 << 16


class Kind(Enum):
    """What was taken."""

    MESSAGE = "message"
    #: An image that was given up for a newer one; only its header is left.
    DROPPED = "dropped"
    #: A message too large to keep, of a type that is not decoded; only its header is left.
    SKIPPED = "skipped"
    NOTE = "note"


class Outcome(Enum):
    """Why `ReceiveRing.receive` came back."""

    #: Messages wait, and this thread delivers them; it has given up the lead.
    DELIVER = "deliver"
    #: This thread leads, and there is no connection.
    NO_CONNECTION = "no connection"
    #: This thread leads, and the ring was told to stop.
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Taken:
    """One entry.

    Attributes
    ----------
    kind : Kind
    arrival_ns : int
        ``CLOCK_MONOTONIC`` when the message was complete and its CRC checked, before any Python ran.
    raw : bytes or memoryview
        The whole message (read-only); of DROPPED and SKIPPED its header; empty for a NOTE.
    note : object
        What was posted.
    """

    kind: Kind
    arrival_ns: int
    raw: bytes | memoryview
    note: object = None


def compile_kernels() -> None:
    """Compile or load `KERNELS`.

    Raises
    ------
    RuntimeError
        With the compiler switched off: the kernels call the C library, which plain Python cannot do for them.
    """
    if getattr(numba_config, "DISABLE_JIT", 0):
        raise RuntimeError("receiving OpenIGTLink needs compiled kernels: unset NUMBA_DISABLE_JIT")
    for spec in KERNELS:
        spec.compile()


class _Buffers:
    """Makes buffers, and hands one out again once nobody holds a part of it: its pages are there already.

    A fresh buffer of an 8 MB volume costs 2000 page faults in the middle of receiving.
    """

    #: References to a buffer that nobody holds: the list's, the loop's, and that of the question itself.
    _UNUSED = 3
    #: Unused buffers beyond this many of all are let go.
    _KEPT = 16

    def __init__(self) -> None:
        self._made: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def get(self, size: int) -> NDArray[np.uint8]:
        """A buffer of exactly ``size`` bytes; the caller's reference keeps it from being handed out again."""
        with self._lock:
            kept: list[NDArray[np.uint8]] = []
            found: NDArray[np.uint8] | None = None
            for buffer in self._made:
                if sys.getrefcount(buffer) <= self._UNUSED:
                    if buffer.size != size or len(kept) >= self._KEPT:
                        continue
                    found = buffer if found is None else found
                kept.append(buffer)
            if found is None:
                found = np.empty(size, np.uint8)
                kept.append(found)
            self._made = kept
            return found


class ReceiveRing:
    """See the module.

    Parameters
    ----------
    limits : Limits or None
        Largest bodies per type.
    ring_bytes, descriptors, slots : int
        Room for small messages, for messages of any size, and for large ones.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        ring_bytes: int = _RING_BYTES,
        descriptors: int = _DESCRIPTORS,
        slots: int = _SLOTS,
    ) -> None:
        compile_kernels()
        self.limits = Limits() if limits is None else limits
        self._control = np.zeros(k.CONTROL_WORDS, np.int64)
        self._head = np.zeros(k.HEAD_BYTES, np.uint8)
        self._staging = np.zeros(_STAGING_BYTES, np.uint8)
        self._ring = np.zeros(max(ring_bytes, 4 * k.SMALL_BYTES), np.uint8)
        self._descriptors = np.zeros((descriptors, k.DESCRIPTOR_WORDS), np.int64)
        self._headers = np.zeros((descriptors, 64), np.uint8)
        self._slots = np.zeros((slots, 4), np.int64)
        self._mutex = np.zeros(8, np.uint64)
        self._lead = np.zeros(8, np.uint64)
        self._names, self._type_limits = _type_table(self.limits)
        self._scratch = np.zeros(4, np.int64)
        self._pool = _Buffers()
        self._buffers: list[NDArray[np.uint8] | None] = [None] * slots
        self._notes: dict[int, object] = {}
        self._note_number = 0
        self._out = np.zeros(k.DESCRIPTOR_WORDS, np.int64)
        self._out_header = np.zeros(64, np.uint8)
        self._free_to = 0
        self._control[k.SOCKET] = -1
        self._control[k.KEPT], self._control[k.SKIPPED] = self.limits.kept, self.limits.skipped

    # --------------------------------------------------------------------------------------------------- any thread

    def receive(self, leads: bool) -> Outcome:
        """Wait for the lead, then receive until there is something to do. Holds no GIL meanwhile.

        Parameters
        ----------
        leads : bool
            This thread has the lead already: after every outcome but DELIVER, and after every error.

        Raises
        ------
        PeerGone
            The peer closed, was silent, or stalled.
        WireError
            The bytes are wrong; the stream is out of step.
        OSError
            The connection was reset.
        """
        control = self._control
        while True:
            code = k.receive_kernel(
                leads, control, self._head, self._staging, self._ring, self._descriptors, self._headers, self._slots,
                self._mutex, self._lead, self._names, self._type_limits, TABLES, self._scratch,
            )  # fmt: skip
            if code == k.DELIVER:
                return Outcome.DELIVER
            leads = True
            if code == k.NEED_BUFFER:
                self._provide(int(control[k.NEED_SLOT]), int(control[k.NEED]))
            elif code == k.NO_CONNECTION:
                return Outcome.NO_CONNECTION
            elif code == k.STOPPED:
                return Outcome.STOPPED
            else:
                self._raise(code)

    def stop(self) -> None:
        """Let `receive` return soon (shut the socket down too, to wake it at once)."""
        self._control[k.STOP] = 1

    def claim(self) -> bool:
        """Become the one who delivers, if something waits and nobody does."""
        return bool(k.claim_kernel(self._control, self._mutex))

    # ------------------------------------------------------------------------------------------- the thread in the lead

    def open(self, fd: int, *, silent_ns: int = 0, stall_ns: int = 0) -> None:
        """Receive from a new connection from now on.

        Parameters
        ----------
        fd : int
            A blocking socket with a receive time-out of about 0.1 s (``SO_RCVTIMEO``).
        silent_ns : int
            Give up when nothing at all came for this long; 0: never.
        stall_ns : int
            Give up when a message is not complete this long (and a second per megabyte) after its first byte; 0: never.
        """
        self._begin_connection()
        self._control[k.SILENT_NS], self._control[k.STALL_NS] = silent_ns, stall_ns
        self._control[k.SOCKET] = fd

    def shut(self) -> None:
        """The connection has ended."""
        self._control[k.SOCKET] = -1

    def resign(self) -> None:
        """Give up the lead."""
        k.resign_kernel(self._lead)

    def post(self, note: object, at_ns: int) -> bool:
        """Put a note behind the messages received so far; False when there is no room (then deliver, and try again)."""
        self._note_number += 1
        self._notes[self._note_number] = note
        words = np.array([k.NOTE, self._note_number, 0, at_ns, 0], np.int64)
        if k.post_kernel(self._control, self._descriptors, self._headers, self._mutex, words):
            return True
        del self._notes[self._note_number]
        return False

    def _begin_connection(self) -> None:
        """Forget the message that the last connection left unfinished, and give back its room."""
        control = self._control
        if control[k.PHASE] == k.IN_BODY and control[k.SLOT] < 0:
            control[k.RING_HEAD] = control[k.RING_END] - control[k.TOTAL]
        for slot in range(len(self._slots)):
            if self._slots[slot, k.SLOT_STATE] == k.FILLING:
                self._slots[slot, k.SLOT_STATE] = k.FREE
        control[[k.PHASE, k.HAVE, k.NEED, k.STAGE_AT, k.STAGE_END, k.LEFT, k.RECEIVED]] = 0
        control[k.LAST_NS] = control[k.BEGAN_NS] = time.monotonic_ns()

    def _provide(self, slot: int, size: int) -> None:
        """A buffer for the slot that waits for it, and for the free ones that would be too small as well."""
        size = -(-size // _ROUND_BYTES) * _ROUND_BYTES
        self._set_buffer(slot, size, k.FILLING)
        total = sum(b.size for b in self._buffers if b is not None)
        for other in range(len(self._slots)):
            _, have, state, _ = self._slots[other]
            if state == k.FREE and have < size and total + size - have <= _SLOT_BYTES:
                self._set_buffer(other, size, k.FREE)
                total += size - int(have)

    def _set_buffer(self, slot: int, size: int, state: int) -> None:
        buffer = self._pool.get(size)
        self._buffers[slot] = buffer
        k.put_slot_kernel(self._slots, self._mutex, slot, buffer.ctypes.data, size, state)

    def _raise(self, code: int) -> None:
        control = self._control
        if code == k.PEER_CLOSED:
            inside = " in the middle of a message" if self.pending else ""
            raise PeerGone(f"the peer closed the connection{inside}", self.pending)
        if code == k.RECEIVE_FAILED:
            number = int(self._scratch[3])
            raise OSError(number, os.strerror(number))
        if code == k.SILENT:
            raise PeerGone(
                f"nothing received for {(time.monotonic_ns() - control[k.LAST_NS]) / 1e9:.1f} s", self.pending
            )
        if code == k.STALLED:
            since_s = (time.monotonic_ns() - control[k.BEGAN_NS]) / 1e9
            size = int(control[k.TOTAL]) if control[k.PHASE] == k.IN_BODY else k.HEADER_BYTES + int(control[k.LEFT])
            raise PeerGone(f"a message of {size} bytes is not complete after {since_s:.1f} s", self.pending)
        # The plain twins say what is wrong with it.
        header = parse_header(self._head[: k.HEADER_BYTES].tobytes())
        if code == k.BAD_CRC:
            raise crc_mismatch(header, int(control[k.FOUND_CRC].astype(np.uint64)))
        keeps(header, self.limits)
        raise WireError("header", offset=0, value=header, limit="what the limits allow")  # pragma: no cover

    @property
    def pending(self) -> int:
        """Bytes received of the message that is not complete yet."""
        phase = self._control[k.PHASE]
        if phase in (k.IN_HEADER, k.IN_BODY):
            return int(self._control[k.HAVE])
        return k.HEADER_BYTES

    @property
    def received(self) -> int:
        """Messages completed on this connection."""
        return int(self._control[k.RECEIVED])

    @property
    def waits(self) -> int:
        """Times that the socket was not read for a millisecond because nobody took what was there."""
        return int(self._control[k.WAITS])

    # ----------------------------------------------------------------------------------------- the thread that delivers

    def take(self) -> Taken | None:
        """The next entry; None when there is none left, and this thread delivers no longer."""
        out = self._out
        there = k.take_kernel(
            self._control, self._descriptors, self._headers, self._slots, self._mutex, out, self._out_header,
            self._free_to,
        )  # fmt: skip
        self._free_to = 0
        if not there:
            return None
        kind, where, length, arrival_ns, free_to = out[:5].tolist()
        if kind == k.SMALL:
            raw = self._ring[where : where + length].tobytes()
            self._free_to = free_to
            return Taken(Kind.MESSAGE, arrival_ns, raw)
        if kind == k.LARGE:
            buffer = self._buffers[where]
            assert buffer is not None
            self._set_buffer(where, buffer.size, k.FREE)
            message = buffer[:length]
            message.setflags(write=False)
            return Taken(Kind.MESSAGE, arrival_ns, message.data)
        if kind == k.NOTE:
            return Taken(Kind.NOTE, arrival_ns, b"", self._notes.pop(where))
        header = self._out_header[: k.HEADER_BYTES].tobytes()
        return Taken(Kind.DROPPED if kind == k.DROPPED_IMAGE else Kind.SKIPPED, arrival_ns, header)


def _type_table(limits: Limits) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Names (t, 12) and limits (t, 2) of the types that have a limit of their own."""
    names = np.zeros((len(limits.decoded), 12), np.uint8)
    numbers = np.zeros((len(limits.decoded), 2), np.int64)
    for row, (name, limit) in enumerate(limits.decoded.items()):
        raw = name.encode("ascii")
        names[row, : len(raw)] = list(raw)
        numbers[row] = limit, name in IMAGE_TYPES
    names.setflags(write=False)
    numbers.setflags(write=False)
    return names, numbers
