"""A server for several clients: what is published goes to each of them, and a slow one delays nobody.

`IgtlServer.publish` sends from the caller's own thread where a client's socket takes the message at once, which is
nearly always (`outgoing`). One thread does everything else for all clients: it accepts, reads (so that closed peers,
version 2 messages and commands are noticed at once), and sends what had to wait. Overflow is decided per kind of data:
a stream drops its oldest message (the newest pose or image is worth more), commands and texts are never dropped (a
client that does not take them is disconnected).
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivers.openigtlink.codec import (
    encode_image,
    encode_position,
    encode_status,
    encode_string,
    encode_tdata,
    encode_transform,
)
from drivers.openigtlink.contents import TrackedTool
from drivers.openigtlink.framing import Framer
from drivers.openigtlink.listening import AllowList, AllowListError, Network, listen, set_connection_options
from drivers.openigtlink.outgoing import Kind, Outgoing
from drivers.openigtlink.wire import Limits, PeerGone, WireError

__all__ = ["AllowListError", "ClientInfo", "IgtlServer", "Kind"]

_LOG = logging.getLogger(__name__)

#: What a client may send us: commands and texts, no bulk.
_INBOUND_LIMITS = Limits(
    decoded={"STRING": 1 << 18, "STATUS": 1 << 17, "COMMAND": 1 << 18, "TRANSFORM": 1 << 16, "IMAGE": 1 << 26},
    kept=1 << 18,
    skipped=1 << 26,
)
#: One client's share of a round: this many bytes of small messages, or of one large one.
_ROUND_BYTES, _ROUND_BULK_BYTES = 1 << 13, 1 << 20
#: What is read from one client, in messages a second, before it has to wait (nothing is lost: its socket fills up) ...
_MESSAGES_PER_S, _MESSAGE_BURST = 4000.0, 8000.0
#: ... where this many bytes count as one message more.
_BYTES_PER_MESSAGE = 1 << 14
#: A message from a client must be complete this long after its first byte, and 1 s later per megabyte.
_MESSAGE_S = 5.0
_NS_PER_BYTE = 1000
#: A system that has no file left for a new connection is asked again after this long.
_ACCEPT_PAUSE_NS = 200_000_000
#: Clients turned away are told of at most this often.
_REFUSAL_LOG_NS = 1_000_000_000
_FAR = 1 << 63


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """One client as it stands now.

    Attributes
    ----------
    number : int
        Counted from 0 over the life of the server.
    version : int
        Header version spoken to it.
    sent, dropped : int, mapping
        Messages handed over as a whole; messages given up for newer ones, by device.
    queued, queued_bytes : int
        What waits for it.
    connected_utc_ns : int
        Since when.
    """

    number: int
    address: str
    version: int
    sent: int
    dropped: Mapping[str, int]
    queued: int
    queued_bytes: int
    connected_utc_ns: int


class _Client:
    """One connection as the server's thread sees it."""

    def __init__(self, number: int, sock: socket.socket, address: str, max_queued_bytes: int) -> None:
        self.number, self.sock, self.address = number, sock, address
        self.out = Outgoing(sock, address, max_queued_bytes)
        self.framer = Framer(_INBOUND_LIMITS)
        self.version = 1
        self.connected_utc_ns = time.time_ns()
        self.events = 0  # what the selector watches for
        self.complete_by_ns = _FAR  # when the message that is being received must be complete
        self._allowance, self._allowance_ns = _MESSAGE_BURST, time.monotonic_ns()

    def info(self) -> ClientInfo:
        queued, queued_bytes = self.out.queued()
        return ClientInfo(
            self.number, self.address, self.version, self.out.sent, dict(self.out.dropped), queued, queued_bytes,
            self.connected_utc_ns,
        )  # fmt: skip

    def receive(self) -> list[bytes]:
        """The messages that are complete with what one round reads; `PeerGone` at the end of the connection."""
        room = self.framer.writable()
        size = min(len(room), _ROUND_BULK_BYTES if self.framer.in_large_body else _ROUND_BYTES)
        count = self.sock.recv_into(room, size)
        if count == 0:
            raise PeerGone("the client closed the connection", self.framer.pending)
        messages = self.framer.advance(count)
        now = time.monotonic_ns()
        self._allowance = min(_MESSAGE_BURST, self._allowance + (now - self._allowance_ns) * 1e-9 * _MESSAGES_PER_S) - (
            len(messages) + count / _BYTES_PER_MESSAGE
        )
        self._allowance_ns = now
        if not self.framer.pending:
            self.complete_by_ns = _FAR
        elif messages or self.complete_by_ns == _FAR:
            self.complete_by_ns = now + round(_MESSAGE_S * 1e9)
        return messages

    def late_ns(self) -> int:
        """When the message that is being received is overdue."""
        return self.complete_by_ns + (self.framer.expected * _NS_PER_BYTE if self.complete_by_ns != _FAR else 0)

    def paused_until_ns(self) -> int:
        """Until when nothing is read from a client that sends more than its share; 0 when it may send."""
        if self._allowance >= 0.0:
            return 0
        return self._allowance_ns + round(-self._allowance / _MESSAGES_PER_S * 1e9)


class IgtlServer:
    """Serves OpenIGTLink to several clients.

    Speaks header version 1 to a client until that client has sent a version 2 message, then version 2, as PLUS does
    (version 1 libraries lose their framing over version 2).

    Parameters
    ----------
    host : str
        Address to listen on; loopback unless given. ``"0.0.0.0"`` opens it to the network, which needs ``allow``.
    port : int
        0 lets the system choose; `port` gives the bound one after `start`.
    name : str
        Device name of the keep-alive STATUS.
    keep_alive_s : float or None
        A client that was sent nothing for this long gets a STATUS OK; None: never.
    max_clients : int
        Further clients are turned away.
    send_timeout_s : float
        A client that takes nothing for this long while something waits is disconnected; so is one that does not take a
        whole message within this time and 1 s per megabyte, and one that does not answer at all (half-open).
    on_message : callable or None
        Called in the server's thread with (client, raw message) for everything that clients send. It must return at
        once; an exception in it is logged and disconnects that client.
    on_client : callable or None
        Called in the server's thread with (client, True) when a client has come, with (client, False) when it has gone.
    allow : sequence of networks (``"192.0.2.0/24"``, addresses, `ipaddress` networks)
        Whose connections are taken; those of this computer always are. Required when ``host`` is not loopback.
    max_queued_bytes : int
        Most that waits for one client, beside one message of any size.

    Raises
    ------
    AllowListError
        When an entry of ``allow`` is no network.
    EncodeError
        When ``name`` cannot be sent.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        name: str = "Server",
        keep_alive_s: float | None = 0.25,
        max_clients: int = 16,
        send_timeout_s: float = 10.0,
        on_message: Callable[[ClientInfo, bytes], None] | None = None,
        on_client: Callable[[ClientInfo, bool], None] | None = None,
        allow: Sequence[str | Network] = (),
        max_queued_bytes: int = 64 << 20,
    ) -> None:
        encode_status(name)  # refuses a name that cannot be sent, now rather than in a thread
        self.host, self.name, self.keep_alive_s = host, name, keep_alive_s
        self.max_clients, self.send_timeout_s, self.max_queued_bytes = max_clients, send_timeout_s, max_queued_bytes
        self.on_message, self.on_client = on_message, on_client
        self.allow = AllowList(allow)
        self._wanted_port = port
        self._listener: socket.socket | None = None
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._clients: dict[int, _Client] = {}
        self._roster: tuple[_Client, ...] = ()  # for publishers: replaced as a whole, never changed
        self._roused = False
        self._rouse_lock = threading.Lock()
        self._stopping = False
        self._number = 0
        self._refused, self._refusal_logged_ns = 0, -_REFUSAL_LOG_NS
        self._selector: selectors.BaseSelector
        self._accepting_ns = 0  # when a listener that was laid aside is taken up again; 0: it is in use

    # -------------------------------------------------------------------------------------------------- life

    def start(self) -> IgtlServer:
        """Bind and listen; returns self.

        Raises
        ------
        AllowListError
            When the address is open to a network and no ``allow`` says to whom.
        OSError
            When the address cannot be bound (it is named).
        """
        if self._thread is not None:
            raise RuntimeError("this server runs already")
        self._listener = listen(self.host, self._wanted_port, self.allow)
        self._wake = socket.socketpair()
        for end in self._wake:
            end.setblocking(False)
        self._stopping = self._roused = False
        self._thread = threading.Thread(target=self._serve, name="igtl-server", daemon=True)
        self._thread.start()
        return self

    def stop(self, timeout_s: float = 2.0) -> None:
        """Close everything and join the thread. Safe to call twice."""
        thread = self._thread
        if thread is None or self._wake is None:
            return
        self._stopping = True
        self._rouse()
        thread.join(timeout_s)
        if thread.is_alive():
            raise RuntimeError(f"the server's thread did not stop within {timeout_s} s")
        wake, self._thread, self._wake = self._wake, None, None
        for end in wake:
            end.close()

    def __enter__(self) -> IgtlServer:
        return self.start() if self._thread is None else self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The bound port (0 while not started)."""
        listener = self._listener
        return 0 if listener is None else int(listener.getsockname()[1])

    @property
    def clients(self) -> tuple[ClientInfo, ...]:
        """Everyone connected now."""
        return tuple(client.info() for client in self._roster)

    def wait_for_clients(self, count: int = 1, timeout_s: float = 5.0) -> bool:
        """Wait until at least ``count`` clients are connected; False when the time is over."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._roster) >= count, timeout_s)

    # -------------------------------------------------------------------------------------------------- publishing

    def publish(
        self,
        device: str,
        build: Callable[[int], bytes | None],
        *,
        kind: Kind = "stream",
        depth: int = 32,
        only: int | Collection[int] | None = None,
    ) -> int:
        """Send one message to every client, from this thread where a client takes it at once. Never waits for one.

        Parameters
        ----------
        device : str
            Messages of one device share a queue limit.
        build : callable
            Header version (1 or 2) → whole message; called at most once per version, in this thread, so that what
            cannot be encoded is the caller's exception and not a torn link. None: nothing for clients of that version.
        kind : "stream" or "reliable"
            A stream drops its oldest message when ``depth`` of them wait for a client.
        only : int, collection of int, or None
            Numbers of the clients that get it; None: all.

        Returns
        -------
        int
            Clients it was meant for.
        """
        wanted = (only,) if isinstance(only, int) else only
        encoded: dict[int, bytes | None] = {}
        count = 0
        for client in self._roster:
            if wanted is not None and client.number not in wanted:
                continue
            version = client.version
            if version not in encoded:
                encoded[version] = build(version)
            raw = encoded[version]
            if raw is None:
                continue
            count += 1
            if client.out.put(device, kind, raw, depth):
                self._rouse()
        return count

    def publish_transform(
        self,
        device: str,
        matrix: ArrayLike,
        *,
        sender_ns: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> int:
        """TRANSFORM to every client; ``metadata`` (such as TransformStatus) reaches those that speak version 2."""
        return self.publish(
            device,
            lambda v: encode_transform(device, matrix, sender_ns=sender_ns, version=v, metadata=metadata),
        )

    def publish_tdata(
        self,
        device: str,
        tools: Sequence[TrackedTool],
        *,
        sender_ns: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> int:
        """TDATA to every client."""
        return self.publish(
            device, lambda v: encode_tdata(device, tools, sender_ns=sender_ns, version=v, metadata=metadata)
        )

    def publish_position(
        self,
        device: str,
        position: Sequence[float],
        quaternion: Sequence[float] = (),
        *,
        sender_ns: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> int:
        """POSITION to every client."""
        return self.publish(
            device,
            lambda v: encode_position(device, position, quaternion, sender_ns=sender_ns, version=v, metadata=metadata),
        )

    def publish_image(
        self,
        device: str,
        array: NDArray[np.generic],
        mm_from_index: ArrayLike,
        *,
        sender_ns: int | None = None,
        metadata: Mapping[str, str] | None = None,
        depth: int = 2,
    ) -> int:
        """IMAGE (RAS, little-endian) to every client; at most ``depth`` of them wait for a slow one."""
        return self.publish(
            device,
            lambda v: encode_image(device, array, mm_from_index, sender_ns=sender_ns, version=v, metadata=metadata),
            depth=depth,
        )

    def publish_status(self, device: str, code: int = 1, subcode: int = 0, error_name: str = "", text: str = "") -> int:
        """STATUS to every client, never dropped."""
        return self.publish(
            device, lambda v: encode_status(device, code, subcode, error_name, text, version=v), kind="reliable"
        )

    def publish_string(self, device: str, text: str, *, sender_ns: int | None = None, only: int | None = None) -> int:
        """STRING to every client (or the one named by ``only``), never dropped."""
        return self.publish(
            device,
            lambda v: encode_string(device, text, sender_ns=sender_ns, version=v),
            kind="reliable",
            only=only,
        )

    # -------------------------------------------------------------------------------------------------- the thread

    def _rouse(self) -> None:
        """Let the server's thread look at all clients; from any thread."""
        with self._rouse_lock:
            if self._roused:
                return
            self._roused = True
        wake = self._wake
        if wake is not None:
            with contextlib.suppress(OSError):  # closed: nobody is there any more
                wake[1].send(b"x")

    def _serve(self) -> None:
        assert self._listener is not None
        assert self._wake is not None
        wake = self._wake[0]
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ, None)
            selector.register(wake, selectors.EVENT_READ, None)
            self._selector = selector
            self._accepting_ns = 0
            due_ns = 0
            try:
                while not self._stopping:
                    timeout_s = max(due_ns - time.monotonic_ns(), 0) * 1e-9 if due_ns < _FAR else None
                    for key, mask in selector.select(timeout_s):
                        if isinstance(key.data, _Client):
                            self._serve_client(key.data, mask)
                        elif key.fileobj is wake:
                            wake.recv(64)
                            with self._rouse_lock:
                                self._roused = False
                        else:
                            self._accept()
                    due_ns = self._look_after()
            except Exception:  # without this thread nobody is served: it must not end silently
                _LOG.exception("the server at port %d has failed; its clients are disconnected", self.port)
            finally:
                for client in self._roster:
                    self._drop(client)
                self._listener.close()
                self._listener = None

    def _look_after(self) -> int:
        """See to every client once; returns when to do so again although nothing happens (monotonic ns)."""
        now = time.monotonic_ns()
        limit_ns = round(self.send_timeout_s * 1e9)
        due = _FAR
        if self._accepting_ns:
            if now >= self._accepting_ns:
                self._accepting_ns = 0
                self._selector.register(self._listener, selectors.EVENT_READ, None)  # type: ignore[arg-type]
            else:
                due = self._accepting_ns
        for client in self._roster:
            out = client.out
            if out.closed:
                self._drop(client)
                continue
            late_at = out.late_at_ns(limit_ns)
            if now >= late_at:
                _LOG.warning("client %s takes nothing (limit %g s): disconnected", client.address, self.send_timeout_s)
                self._drop(client)
                continue
            if now >= client.late_ns():
                _LOG.warning(
                    "client %s: a message of %d bytes is not complete (%d are there): disconnected",
                    client.address, client.framer.expected, client.framer.pending,
                )  # fmt: skip
                self._drop(client)
                continue
            due = min(due, late_at, client.late_ns())
            if self.keep_alive_s is not None:
                idle_until = out.idle_since_ns() + round(self.keep_alive_s * 1e9)
                if now >= idle_until:
                    out.put(self.name, "reliable", encode_status(self.name, version=client.version), 1)
                    idle_until = now + round(self.keep_alive_s * 1e9)
                due = min(due, idle_until)
            paused_until = client.paused_until_ns()
            events = 0 if now < paused_until else selectors.EVENT_READ
            if not events:
                due = min(due, paused_until)
            if out.waiting:
                events |= selectors.EVENT_WRITE
            self._watch(client, events)
        return due

    def _watch(self, client: _Client, events: int) -> None:
        if events == client.events:
            return
        if not client.events:
            self._selector.register(client.sock, events, client)
        elif not events:
            self._selector.unregister(client.sock)
        else:
            self._selector.modify(client.sock, events, client)
        client.events = events

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, address = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # the client was gone again before it was accepted
        except OSError as error:
            _LOG.warning("a client cannot be accepted: %s; trying again", error.strerror)
            self._selector.unregister(self._listener)
            self._accepting_ns = time.monotonic_ns() + _ACCEPT_PAUSE_NS
            return
        name = f"{address[0]}:{address[1]}"
        refusal = ""
        if str(address[0]) not in self.allow:
            refusal = f"its address is not allowed ({self.allow})"
        elif len(self._roster) >= self.max_clients:
            refusal = f"{self.max_clients} clients are served already"
        else:
            try:
                set_connection_options(sock, self.send_timeout_s)
            except OSError:
                refusal = "it is gone already"
        if refusal:
            self._refuse(sock, name, refusal)
            return
        client = _Client(self._number, sock, name, self.max_queued_bytes)
        self._number += 1
        self._watch(client, selectors.EVENT_READ)
        with self._changed:
            self._clients[client.number] = client
            self._roster = tuple(self._clients.values())
            self._changed.notify_all()
        self._tell(client, True)

    def _refuse(self, sock: socket.socket, name: str, why: str) -> None:
        sock.close()
        self._refused += 1
        now = time.monotonic_ns()
        if now - self._refusal_logged_ns >= _REFUSAL_LOG_NS:
            _LOG.warning("client %s turned away: %s (%d so far)", name, why, self._refused)
            self._refusal_logged_ns = now

    def _tell(self, client: _Client, here: bool) -> None:
        if self.on_client is None:
            return
        try:
            self.on_client(client.info(), here)
        except Exception:
            _LOG.exception("client %s: its coming or going could not be handled", client.address)

    def _serve_client(self, client: _Client, mask: int) -> None:
        if client.number not in self._clients:
            return  # dropped in this round
        if mask & selectors.EVENT_WRITE:
            client.out.flush()
        if mask & selectors.EVENT_READ:
            self._read(client)

    def _read(self, client: _Client) -> None:
        try:
            for raw in client.receive():
                if raw[1] == 2:
                    client.version = 2
                if self.on_message is not None:
                    self.on_message(client.info(), raw)
            if client.framer.broken is not None:
                raise client.framer.broken
        except BlockingIOError:
            return
        except (OSError, WireError) as error:
            if isinstance(error, WireError):
                _LOG.warning("client %s: %s: disconnected", client.address, error)
            self._drop(client)
        except Exception:
            _LOG.exception("client %s: its message could not be handled: disconnected", client.address)
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        if client.number not in self._clients:
            return
        with self._changed:
            del self._clients[client.number]
            self._roster = tuple(self._clients.values())
            self._changed.notify_all()
        self._watch(client, 0)
        client.out.close()
        client.sock.close()
        self._tell(client, False)
