"""A source that receives from one OpenIGTLink server.

Two threads. The *receiving* thread connects, says what this program wants from the server, and then stays in the
receive kernel (`drivers.openigtlink.receiver`), where no other Python work can delay it, until the connection ends. It
never resumes a stream that is out of step: after any framing error, stall or end it closes the socket and opens a new
one, with back-off. The *delivering* thread takes what came, decodes it and hands it over, in order. Whether data are
fresh is judged by whoever consumes them; the source only says what happened to the link.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass

from drivers.openigtlink.codec import decode
from drivers.openigtlink.receiver import Kind, ReceiveRing, Taken, compile_kernels
from drivers.openigtlink.requests import opening_messages
from drivers.openigtlink.wire import Limits, PeerGone, WireError, parse_header
from nav.config.room import SourceConfig
from nav.runtime.clock import Clock, SystemClock
from nav.runtime.messages import LinkMessage, LinkState, MessageSink

__all__ = ["IgtlSource", "SourceStatistics", "backoff_s", "make_source"]

#: Waits between attempts: at once after a loss (a restarted server must be back within a second), then longer.
_WAITS_S = (0.05, 0.25, 0.5, 1.0, 2.0, 5.0)
#: Where nobody is (refused, no answer, no way there), it is asked again soon: that costs one packet, bothers nobody,
#: and the server is found within a second of its return.
_NOBODY_WAIT_S = 0.5
_NOBODY = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)
#: A connection that lived this long counts as having worked.
_WORKED_S = 2.0
_CONNECT_TIMEOUT_S = 0.7
_TICK_S = 0.1
#: A message must be complete this long after its first byte, plus a second per megabyte of it.
_STALL_S = 5.0
#: A peer that does not take a message of ours within this time is given up.
_SEND_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class SourceStatistics:
    """What a source has done so far.

    Attributes
    ----------
    connections : int
    received : int
        Messages delivered.
    dropped : dict
        (type, device) → images that were given up for newer ones because nobody took them in time.
    skipped : dict
        Type → messages that were read past because they were too large to keep.
    waits : int
        Milliseconds that the socket was not read because nobody took what was there; nothing is lost by that.
    """

    connections: int
    received: int
    dropped: dict[tuple[str, str], int]
    skipped: dict[str, int]
    waits: int


@dataclass(frozen=True, slots=True)
class _Link:
    state: LinkState
    detail: str


@dataclass(frozen=True, slots=True)
class _End:
    """The last entry: the delivering thread ends with it."""


def backoff_s(failures: int, *, nobody: bool = False, asked_s: float = 0.0) -> float:
    """Seconds to wait before the next attempt.

    Parameters
    ----------
    failures : int
        Attempts in a row that did not lead to a working connection; 0 right after the loss of a working one.
    nobody : bool
        The last attempt found nobody.
    asked_s : float
        How long the last attempt took; counts towards the wait where nobody was found.

    Returns
    -------
    float
        0.05, then 0.25 doubling to 5 s; where nobody was found, never more than 0.5 s from attempt to attempt.
    """
    wait = _WAITS_S[min(max(failures, 0), len(_WAITS_S) - 1)]
    return max(_WAITS_S[0], min(wait, _NOBODY_WAIT_S) - asked_s) if nobody else wait


class IgtlSource:
    """Receives from one server; see `nav.runtime.messages.Source`.

    Parameters
    ----------
    config : SourceConfig
        Host, port, name mapping, what to ask for, overrides. With ``reconnect = false`` it waits for the server to
        appear, connects once, and after that connection has ended stays closed until `reconnect` is called (some
        servers ask a person at every connection).
    clock : Clock
        Gives the times of link changes. Messages are stamped by ``CLOCK_MONOTONIC``, which is what `SystemClock` reads.
    limits : Limits or None
        Largest message bodies.

    Attributes
    ----------
    skipped : Counter
        Messages per type that were read past because they were too large to keep.
    connections : int
        Connections made so far.
    """

    def __init__(self, config: SourceConfig, clock: Clock | None = None, *, limits: Limits | None = None) -> None:
        self.name = config.name
        self.config = config
        self.skipped: Counter[str] = Counter()
        self.connections = 0
        self._clock: Clock = SystemClock() if clock is None else clock
        self._limits = limits
        self._sequence = 0
        self._received = 0
        self._waits = 0
        self._dropped: Counter[tuple[str, str]] = Counter()
        self._stop = threading.Event()
        self._again = threading.Event()
        self._threads: list[threading.Thread] = []
        self._ring: ReceiveRing | None = None
        self._socket: socket.socket | None = None
        self._socket_lock = threading.Lock()
        self._send_lock = threading.Lock()

    def start(self, sink: MessageSink) -> None:
        """Begin to connect and read; returns at once.

        Raises
        ------
        RuntimeError
            When it runs already, or the kernels cannot run (the compiler is switched off).
        """
        if any(thread.is_alive() for thread in self._threads):
            raise RuntimeError(f"source {self.name}: runs already")
        compile_kernels()
        self._stop.clear()
        self._again.clear()
        self._ring = ring = ReceiveRing(self._limits)
        self._threads = [
            threading.Thread(target=self._deliver, args=(ring, sink), name=f"igtl-{self.name}-deliver", daemon=True),
            threading.Thread(target=self._run, args=(ring,), name=f"igtl-{self.name}", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Close the connection and join the threads (at most 2 s). Safe to call twice."""
        self._stop.set()
        self._again.set()
        ring = self._ring
        if ring is None:
            return
        ring.stop()
        with self._socket_lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)  # wakes the blocked read
        end_ns = time.monotonic_ns() + 2_000_000_000
        for thread in self._threads[::-1]:  # the receiving thread first; it says when the other may end
            if thread is threading.current_thread():
                continue
            thread.join(max(0.0, (end_ns - time.monotonic_ns()) * 1e-9))
            if thread.is_alive():
                raise RuntimeError(f"source {self.name}: its thread {thread.name} did not stop within 2 s")
        self._waits += ring.waits
        ring.close()
        self._ring, self._threads = None, []

    def reconnect(self) -> None:
        """Try (again) to connect, now: ends a pause between attempts, and the rest after a lost connection with
        ``reconnect = false``. Does nothing while connected."""
        self._again.set()

    def send(self, raw: bytes) -> None:
        """Send one whole message to the server; waits at most 2 s for it to be taken. From any thread.

        Raises
        ------
        PeerGone
            When there is no connection, or it was lost or stood still meanwhile (then it is closed: a message may have
            been sent in part).
        """
        with self._send_lock:
            with self._socket_lock:
                sock = self._socket
            if sock is None:
                raise PeerGone(f"source {self.name}: not connected to {self.config.host}:{self.config.port}")
            try:
                _send_whole(sock, raw)
            except OSError as error:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                raise PeerGone(f"source {self.name}: sending failed: {error.strerror or error}") from None

    def statistics(self) -> SourceStatistics:
        """Counts so far."""
        ring = self._ring
        return SourceStatistics(
            self.connections,
            self._received,
            dict(self._dropped),
            dict(self.skipped),
            self._waits + (ring.waits if ring is not None else 0),
        )

    # ---------------------------------------------------------------------------------------- the receiving thread

    def _run(self, ring: ReceiveRing) -> None:
        try:
            self._keep_connected(ring)
        finally:
            ring.post(_End(), self._clock.now_ns())

    def _keep_connected(self, ring: ReceiveRing) -> None:
        failures, told = 0, ""
        self._link(ring, LinkState.CONNECTING, f"connecting to {self.config.host}:{self.config.port}")
        while not self._stop.is_set():
            nobody, began_ns = False, time.monotonic_ns()
            self._again.clear()
            try:
                sock = self._connect()
            except OSError as error:
                nobody = error.errno in _NOBODY or isinstance(error, TimeoutError)
                why = f"cannot connect to {self.config.host}:{self.config.port}: {error.strerror or error}"
                if why != told:  # once per reason, not once per attempt
                    self._link(ring, LinkState.FAILED, f"{why}; retrying")
                    told = why
                failures += 1
            else:
                told = ""
                worked = self._converse(sock, ring)
                failures = 0 if worked else failures + 1
                if not self.config.reconnect:
                    self._again.clear()
                    if not self._stop.is_set():
                        self._again.wait()
                    if not self._stop.is_set():
                        self._link(ring, LinkState.CONNECTING, f"connecting to {self.config.host}:{self.config.port}")
                    continue
            if not self._stop.is_set():
                asked_s = (time.monotonic_ns() - began_ns) * 1e-9
                self._again.wait(backoff_s(failures, nobody=nobody, asked_s=asked_s))

    def _connect(self) -> socket.socket:
        sock = socket.create_connection((self.config.host, self.config.port), timeout=_CONNECT_TIMEOUT_S)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            # A silent peer is asked every second whether it still knows this connection: one that was switched off and
            # on does not, and says so as soon as it is back. Without any answer the connection ends after 5 s.
            for option, value in (
                (socket.TCP_KEEPIDLE, 1),
                (socket.TCP_KEEPINTVL, 1),
                (socket.TCP_KEEPCNT, 5),
                (socket.TCP_USER_TIMEOUT, 5000),
            ):
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
            # The kernel's time-outs: the receive kernel reads the socket itself.
            sock.settimeout(None)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, int(_TICK_S * 1e6)))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_SEND_TIMEOUT_S), 0))
            for raw in opening_messages(self.config):
                _send_whole(sock, raw)
        except BaseException:
            sock.close()
            raise
        return sock

    def _converse(self, sock: socket.socket, ring: ReceiveRing) -> bool:
        """Receive until the connection ends; True when it had worked."""
        began_ns = self._clock.now_ns()
        self.connections += 1
        # A server that sends on change only may rightly be silent; for it the kernel's keep-alive has to do.
        silent_s = 0.0 if any(t.hold_last for t in self.config.tools) else self.config.reopen_after_s
        ended: tuple[LinkState, str] | None = None
        with sock:
            with self._socket_lock:
                self._socket = sock
            try:
                self._link(ring, LinkState.CONNECTED, f"connected to {self.config.host}:{self.config.port}")
                ring.receive(sock.fileno(), silent_ns=int(silent_s * 1e9), stall_ns=int(_STALL_S * 1e9))
            except PeerGone as gone:
                ended = LinkState.CLOSED, str(gone)
            except WireError as error:
                ended = LinkState.FAILED, f"{error}; the connection is given up"
            except OSError as error:
                ended = LinkState.CLOSED, f"connection lost: {error.strerror or error}"
            finally:
                with self._socket_lock:
                    self._socket = None
        if ended is not None:
            self._end(ring, *ended)
        clean = ended is not None and ended[0] is LinkState.CLOSED
        return (clean and ring.received > 0) or self._clock.now_ns() - began_ns >= _WORKED_S * 1e9

    def _end(self, ring: ReceiveRing, state: LinkState, detail: str) -> None:
        if self._stop.is_set():
            return  # we closed it ourselves
        if not self.config.reconnect:
            detail += "; not reconnected until asked to (reconnect = false)"
        self._link(ring, state, detail)

    def _link(self, ring: ReceiveRing, state: LinkState, detail: str) -> None:
        ring.post(_Link(state, detail), self._clock.now_ns())

    # --------------------------------------------------------------------------------------- the delivering thread

    def _deliver(self, ring: ReceiveRing, sink: MessageSink) -> None:
        while True:
            for _ in range(ring.wait()):
                taken = ring.take()
                assert taken is not None  # it was announced
                if taken.kind is Kind.MESSAGE:
                    message = decode(
                        taken.raw,
                        source=self.name,
                        sequence=self._sequence,
                        arrival_ns=taken.arrival_ns,
                        options=self.config,
                    )
                    self._sequence += 1
                    self._received += 1
                    sink.deliver(message, taken.raw)
                elif isinstance(taken.note, _End):
                    return
                else:
                    self._note(taken, sink)

    def _note(self, taken: Taken, sink: MessageSink) -> None:
        if isinstance(taken.note, _Link):
            message = LinkMessage(
                self.name,
                self._sequence,
                taken.arrival_ns,
                device="",
                sender_ns=None,
                state=taken.note.state,
                detail=taken.note.detail,
            )
            self._sequence += 1
            sink.deliver(message, None)
            return
        header = parse_header(taken.raw)
        if taken.kind is Kind.DROPPED:
            self._dropped[header.type_name, header.device] += 1
        else:
            self.skipped[header.type_name] += 1


def _send_whole(sock: socket.socket, raw: bytes) -> None:
    """Send all of it; an `OSError` when the socket's own time-out passes without a byte taken."""
    view = memoryview(raw)
    while view:
        view = view[sock.send(view) :]


def make_source(config: SourceConfig, clock: Clock | None = None) -> IgtlSource:
    """Entry point of ``driver = "openigtlink"``."""
    return IgtlSource(config, clock)
