"""A source that receives from one OpenIGTLink server.

Two threads that change places (`drivers.openigtlink.receiver`): the *leader* connects, says what this program wants
from the server, and stays in the receive kernel, where no other Python work can delay it; when messages are complete it
hands the socket to the other thread and delivers them itself. A stream that is out of step is never resumed: after any
framing error, stall or end the socket is closed and a new one opened, with back-off. Whether data are fresh is judged
by whoever consumes them; the source only says what happened to the link.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import socket
import struct
import threading
import time
from collections import Counter
from dataclasses import dataclass

from drivers.openigtlink.codec import decode
from drivers.openigtlink.receiver import Kind, Outcome, ReceiveRing, Taken
from drivers.openigtlink.requests import opening_messages
from drivers.openigtlink.video_codecs import VideoDecoders
from drivers.openigtlink.wire import Limits, PeerGone, WireError, parse_header
from nav.config.room import SourceConfig
from nav.runtime.clock import Clock, SystemClock
from nav.runtime.messages import LinkMessage, LinkState, Message, MessageSink, UnusedMessage

__all__ = ["IgtlSource", "SourceStatistics", "backoff_s", "make_source"]

_LOG = logging.getLogger(__name__)

#: Waits between attempts: at once after a loss, then longer; never so long that a server that is sound again is not
#: back within a second. (Where a person has to confirm each connection, there is ``reconnect = false``.)
_WAITS_S = (0.05, 0.25, 0.5, 0.75)
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
#: Names counted one by one; a peer that invents more has the rest counted together.
_NAMES = 256
_OTHERS = ("others", "")
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
        0.05, then 0.25, 0.5, 0.75; where nobody was found, never more than 0.5 s from attempt to attempt.
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
        self._videos = VideoDecoders()
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
        # Of the leader: the wait before the next attempt (None: it is the first; infinite: until asked), failures in
        # a row, what was said of them, since when it is connected.
        self._wait_s: float | None = None
        self._failures = 0
        self._told = ""
        self._began_ns = 0

    def start(self, sink: MessageSink) -> None:
        """Begin to connect and read; returns at once.

        Raises
        ------
        RuntimeError
            When it runs already, or the kernels cannot run (the compiler is switched off).
        """
        if any(thread.is_alive() for thread in self._threads):
            raise RuntimeError(f"source {self.name}: runs already")
        self._stop.clear()
        self._again.clear()
        self._wait_s, self._failures, self._told = None, 0, ""
        self._ring = ring = ReceiveRing(self._limits)
        self._threads = [
            threading.Thread(target=self._work, args=(ring, sink), name=f"igtl-{self.name}-{n}", daemon=True)
            for n in range(2)
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
        for thread in self._threads:
            if thread is threading.current_thread():
                continue
            thread.join(max(0.0, (end_ns - time.monotonic_ns()) * 1e-9))
            if thread.is_alive():
                raise RuntimeError(f"source {self.name}: its thread {thread.name} did not stop within 2 s")
        self._waits += ring.waits
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

    def counts(self) -> dict[str, object]:
        """`statistics`, JSON-able: ``connections, received, dropped{"TYPE device"}, skipped{TYPE}, waits_ms``."""
        found = self.statistics()
        return {
            "connections": found.connections,
            "received": found.received,
            "dropped": {f"{type_name} {device}": n for (type_name, device), n in sorted(found.dropped.items())},
            "skipped": dict(sorted(found.skipped.items())),
            "waits_ms": found.waits,
        }

    # ------------------------------------------------------------------------------------------------- the threads

    def _work(self, ring: ReceiveRing, sink: MessageSink) -> None:
        leads = False
        while True:
            try:
                outcome = ring.receive(leads)
            except (PeerGone, WireError, OSError) as error:
                leads = True
                self._lost(ring, sink, error)
                continue
            leads = outcome is not Outcome.DELIVER
            if outcome is Outcome.DELIVER:
                self._deliver(ring, sink)
            elif outcome is Outcome.NO_CONNECTION:
                self._seek(ring, sink)
            else:
                break
        self._close()
        if ring.claim():
            self._deliver(ring, sink)
        ring.resign()

    # ------------------------------------------------------------------------------------------------- leading

    def _seek(self, ring: ReceiveRing, sink: MessageSink) -> None:
        """One attempt to connect, after the wait that is due."""
        place = f"{self.config.host}:{self.config.port}"
        wait_s, self._wait_s = self._wait_s, 0.0
        if wait_s is not None:
            self._again.wait(None if math.isinf(wait_s) else wait_s)
        self._again.clear()
        if self._stop.is_set():
            return
        if wait_s is None or math.isinf(wait_s):
            self._link(ring, sink, LinkState.CONNECTING, f"connecting to {place}")
        began_ns = time.monotonic_ns()
        try:
            sock = self._connect()
        except OSError as error:
            nobody = error.errno in _NOBODY or isinstance(error, TimeoutError)
            why = f"cannot connect to {place}: {error.strerror or error}"
            if why != self._told:  # once per reason, not once per attempt
                self._link(ring, sink, LinkState.FAILED, f"{why}; retrying")
                self._told = why
            self._failures += 1
            asked_s = (time.monotonic_ns() - began_ns) * 1e-9
            self._wait_s = backoff_s(self._failures, nobody=nobody, asked_s=asked_s)
            return
        self._told = ""
        self.connections += 1
        self._began_ns = self._clock.now_ns()
        with self._socket_lock:
            self._socket = sock
        self._link(ring, sink, LinkState.CONNECTED, f"connected to {place}")
        # A server that sends on change only may rightly be silent; for it the kernel's keep-alive has to do.
        silent_s = 0.0 if any(t.hold_last for t in self.config.tools) else self.config.reopen_after_s
        ring.open(sock.fileno(), silent_ns=int(silent_s * 1e9), stall_ns=int(_STALL_S * 1e9))

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

    def _lost(self, ring: ReceiveRing, sink: MessageSink, error: Exception) -> None:
        """The connection has ended: name it, and say what to wait before the next one."""
        clean = not isinstance(error, WireError)
        worked = (clean and ring.received > 0) or self._clock.now_ns() - self._began_ns >= _WORKED_S * 1e9
        ring.shut()
        self._close()
        self._failures = 0 if worked else self._failures + 1
        self._wait_s = backoff_s(self._failures) if self.config.reconnect else math.inf
        self._again.clear()  # what was asked for while it was connected
        if self._stop.is_set():
            self._again.set()  # never wait for what `stop` has said already
            return  # we closed it ourselves
        if isinstance(error, WireError):
            detail = f"{error}; the connection is given up"
        elif isinstance(error, PeerGone):
            detail = str(error)
        else:
            detail = f"connection lost: {getattr(error, 'strerror', None) or error}"
        if not self.config.reconnect:
            detail += "; not reconnected until asked to (reconnect = false)"
        self._link(ring, sink, LinkState.CLOSED if clean else LinkState.FAILED, detail)

    def _close(self) -> None:
        with self._socket_lock:
            sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def _link(self, ring: ReceiveRing, sink: MessageSink, state: LinkState, detail: str) -> None:
        """Tell a change of the link, behind all messages received before it."""
        now_ns = self._clock.now_ns()
        while not ring.post(_Link(state, detail), now_ns):
            if not ring.claim():
                time.sleep(0.001)  # the other thread is delivering
                continue
            self._deliver(ring, sink)
        if ring.claim():
            self._deliver(ring, sink)

    # ----------------------------------------------------------------------------------------------- delivering

    def _deliver(self, ring: ReceiveRing, sink: MessageSink) -> None:
        while (taken := ring.take()) is not None:
            if taken.kind is not Kind.MESSAGE:
                self._note(taken, sink)
                continue
            message = self._decoded(taken)
            self._sequence += 1
            self._received += 1
            self._hand_over(sink, message, taken.raw)

    def _decoded(self, taken: Taken) -> Message:
        try:
            return decode(
                taken.raw,
                source=self.name,
                sequence=self._sequence,
                arrival_ns=taken.arrival_ns,
                options=self.config,
                videos=self._videos,
            )
        except Exception as error:
            # A defect in one decoder (a broken codec, say) must not end the thread, and with it all streams.
            header = parse_header(taken.raw)
            _LOG.exception("source %s: %s %r could not be decoded", self.name, header.type_name, header.device)
            return UnusedMessage(
                self.name,
                self._sequence,
                taken.arrival_ns,
                header.device,
                header.sender_ns,
                {},
                header.type_name,
                f"decoding failed: {type(error).__name__}: {error}",
            )

    def _hand_over(self, sink: MessageSink, message: Message, raw: bytes | memoryview | None) -> None:
        try:
            sink.deliver(message, raw)
        except Exception:
            # One message that the sink could not take must not end the stream.
            _LOG.exception("source %s: message %d (%s) could not be handed over", self.name, message.sequence, message)

    def _note(self, taken: Taken, sink: MessageSink) -> None:
        if isinstance(taken.note, _Link):
            self._videos.lost()
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
            self._hand_over(sink, message, None)
            return
        header = parse_header(taken.raw)
        if taken.kind is Kind.DROPPED:
            key = (header.type_name, header.device)
            self._dropped[key if key in self._dropped or len(self._dropped) < _NAMES else _OTHERS] += 1
        else:
            name = header.type_name
            self.skipped[name if name in self.skipped or len(self.skipped) < _NAMES else _OTHERS[0]] += 1


def _send_whole(sock: socket.socket, raw: bytes) -> None:
    """Send all of it; an `OSError` when the socket's own time-out passes without a byte taken."""
    view = memoryview(raw)
    while view:
        view = view[sock.send(view) :]


def make_source(config: SourceConfig, clock: Clock | None = None) -> IgtlSource:
    """Entry point of ``driver = "openigtlink"``."""
    return IgtlSource(config, clock)
