"""A source that receives from one OpenIGTLink server, with a reader thread of its own.

The thread does nothing but read, check, stamp, decode and hand over. It never resumes a stream that is out of step:
after any framing error, stall or end it closes the socket and opens a new one, with back-off. Whether data are fresh
is judged by whoever consumes them; the source only says what happened to the link.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from collections import Counter

from drivers.openigtlink.codec import decode, encode_status
from drivers.openigtlink.crc64 import crc64
from drivers.openigtlink.framing import Framer
from drivers.openigtlink.wire import DEVICE_NAME_BYTES, Limits, PeerGone, WireError
from nav.config.room import SourceConfig
from nav.runtime.clock import Clock, SystemClock
from nav.runtime.messages import LinkMessage, LinkState, MessageSink

__all__ = ["IgtlSource", "backoff_s", "make_source"]

#: Waits between attempts: at once after a loss (a restarted server must be back within a second), then longer.
_WAITS_S = (0.05, 0.25, 0.5, 1.0, 2.0, 5.0)
#: A host that answers "nobody listens here" is asked again soon: that costs one packet and nobody is bothered.
_REFUSED_WAIT_S = 0.5
#: A connection that lived this long counts as having worked.
_WORKED_S = 2.0
_CONNECT_TIMEOUT_S = 1.0
_TICK_S = 0.1
#: A message must be complete this long after its first byte, plus a second per megabyte of it.
_STALL_S = 5.0


def backoff_s(failures: int, *, refused: bool = False) -> float:
    """Seconds to wait before the next attempt.

    Parameters
    ----------
    failures : int
        Attempts in a row that did not lead to a working connection; 0 right after the loss of a working one.
    refused : bool
        The last attempt was refused by a host that is up.

    Returns
    -------
    float
        0.05, then 0.25 doubling to 5 s; never more than 0.5 s when refused.
    """
    wait = _WAITS_S[min(max(failures, 0), len(_WAITS_S) - 1)]
    return min(wait, _REFUSED_WAIT_S) if refused else wait


class IgtlSource:
    """Receives from one server; see `nav.runtime.messages.Source`.

    Parameters
    ----------
    config : SourceConfig
        Host, port, name mapping, overrides. With ``reconnect = false`` it waits for the server to appear, connects
        once, and stays closed after that connection has ended (some servers ask a person at every connection).
    clock : Clock
        Gives the arrival times.
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
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._socket: socket.socket | None = None
        self._socket_lock = threading.Lock()

    def start(self, sink: MessageSink) -> None:
        """Begin to connect and read; returns at once.

        Raises
        ------
        RuntimeError
            When it runs already.
        """
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError(f"source {self.name}: runs already")
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, args=(sink,), name=f"igtl-{self.name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the connection and join the reader thread (at most 2 s). Safe to call twice."""
        self._stop.set()
        with self._socket_lock:
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)  # wakes the blocked read
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)
            if self._thread.is_alive():
                raise RuntimeError(f"source {self.name}: its reader thread did not stop within 2 s")
            self._thread = None

    # -------------------------------------------------------------------------------------------------- the thread

    def _run(self, sink: MessageSink) -> None:
        crc64(b"\0")  # compiled (or loaded) before the first message waits for it
        failures, told = 0, ""
        self._link(sink, LinkState.CONNECTING, f"connecting to {self.config.host}:{self.config.port}")
        while not self._stop.is_set():
            refused = False
            try:
                sock = self._connect()
            except OSError as error:
                refused = error.errno == errno.ECONNREFUSED
                why = f"cannot connect to {self.config.host}:{self.config.port}: {error.strerror or error}"
                if why != told:  # once per reason, not once per attempt
                    self._link(sink, LinkState.FAILED, f"{why}; retrying")
                    told = why
                failures += 1
            else:
                told = ""
                worked = self._converse(sock, sink)
                if self._stop.is_set():
                    return
                if not self.config.reconnect:
                    return
                failures = 0 if worked else failures + 1
            self._stop.wait(backoff_s(failures, refused=refused))

    def _connect(self) -> socket.socket:
        sock = socket.create_connection((self.config.host, self.config.port), timeout=_CONNECT_TIMEOUT_S)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
                if hasattr(socket, option):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000)
            if self.config.header_version == 2:
                # PLUS answers with version 2 (and so with tool status) only once it has heard version 2.
                sock.sendall(encode_status(self.name.encode()[:DEVICE_NAME_BYTES].decode(), version=2))
            # The kernel's receive time-out: one system call per read, where a Python time-out costs two.
            sock.settimeout(None)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, int(_TICK_S * 1e6)))
        except BaseException:
            sock.close()
            raise
        return sock

    def _converse(self, sock: socket.socket, sink: MessageSink) -> bool:
        """Read until the connection ends; True when it had worked."""
        began_ns = self._clock.now_ns()
        framer = Framer(self._limits)
        self.connections += 1
        self._received = 0
        clean = False
        with sock:
            with self._socket_lock:
                self._socket = sock
            try:
                self._link(sink, LinkState.CONNECTED, f"connected to {self.config.host}:{self.config.port}")
                self._read(sock, framer, sink)
            except PeerGone as gone:
                clean = True
                self._end(sink, LinkState.CLOSED, str(gone))
            except WireError as error:
                self._end(sink, LinkState.FAILED, f"{error}; the connection is given up")
            except OSError as error:
                clean = True
                self._end(sink, LinkState.CLOSED, f"connection lost: {error.strerror or error}")
            finally:
                with self._socket_lock:
                    self._socket = None
                self.skipped.update(framer.skipped)
        return (clean and self._received > 0) or self._clock.now_ns() - began_ns >= _WORKED_S * 1e9

    def _read(self, sock: socket.socket, framer: Framer, sink: MessageSink) -> None:
        clock, config, name = self._clock, self.config, self.name
        quick_ack = getattr(socket, "TCP_QUICKACK", None)
        last_ns = clock.now_ns()
        # A server that sends on change only may rightly be silent; for it the kernel's keep-alive has to do.
        reopen_ns = None if any(t.hold_last for t in config.tools) else int(config.reopen_after_s * 1e9)
        message_began_ns = 0
        while not self._stop.is_set():
            if quick_ack is not None:
                # Re-armed for each read: cures 40 ms pauses of senders that leave Nagle's algorithm on.
                sock.setsockopt(socket.IPPROTO_TCP, quick_ack, 1)
            try:
                # The rest of an image in one system call: each call costs a wait for the interpreter.
                count = sock.recv_into(framer.writable(), 0, socket.MSG_WAITALL if framer.in_large_body else 0)
            except BlockingIOError:
                count = -1
            now_ns = clock.now_ns()
            if count == 0:
                framer.close()
                raise PeerGone("the peer closed the connection")
            if count > 0:
                last_ns = now_ns
                was_pending = framer.pending
                for raw in framer.advance(count):
                    was_pending = 0
                    message = decode(raw, source=name, sequence=self._sequence, arrival_ns=now_ns, options=config)
                    self._sequence += 1
                    self._received += 1
                    sink.deliver(message, raw)
                if framer.broken is not None:
                    raise framer.broken
                if not was_pending:
                    message_began_ns = now_ns
            elif reopen_ns is not None and now_ns - last_ns > reopen_ns:
                raise PeerGone(f"nothing received for {(now_ns - last_ns) / 1e9:.1f} s", framer.pending)
            if framer.pending and now_ns - message_began_ns > int(_STALL_S * 1e9) + 1000 * framer.expected:
                raise PeerGone(
                    f"a message of {framer.expected} bytes is not complete after "
                    f"{(now_ns - message_began_ns) / 1e9:.1f} s",
                    framer.pending,
                )

    def _end(self, sink: MessageSink, state: LinkState, detail: str) -> None:
        if self._stop.is_set():
            return  # we closed it ourselves
        if not self.config.reconnect:
            detail += "; not reconnected (reconnect = false)"
        self._link(sink, state, detail)

    def _link(self, sink: MessageSink, state: LinkState, detail: str) -> None:
        message = LinkMessage(
            self.name, self._sequence, self._clock.now_ns(), device="", sender_ns=None, state=state, detail=detail
        )
        self._sequence += 1
        sink.deliver(message, None)


def make_source(config: SourceConfig, clock: Clock | None = None) -> IgtlSource:
    """Entry point of ``driver = "openigtlink"``."""
    return IgtlSource(config, clock)
