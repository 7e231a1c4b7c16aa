"""A server for several clients: what is published goes to each of them, and a slow one delays nobody.

One thread accepts and reads for all clients (so that closed peers, version 2 messages and commands are noticed at
once); each client has a writer thread of its own behind a bounded queue. Overflow is decided per kind of data: a
stream drops its oldest message (the newest pose or image is worth more), commands and texts are never dropped (a
client that does not take them is disconnected).
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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
from drivers.openigtlink.wire import Limits, PeerGone, WireError

__all__ = ["ClientInfo", "IgtlServer", "Kind"]

Kind = Literal["stream", "reliable"]

_LOG = logging.getLogger(__name__)

#: What a client may send us: commands and texts, no bulk.
_INBOUND_LIMITS = Limits(
    decoded={"STRING": 1 << 18, "STATUS": 1 << 17, "COMMAND": 1 << 18, "TRANSFORM": 1 << 16, "IMAGE": 1 << 26},
    kept=1 << 18,
    skipped=1 << 26,
)
#: Commands and texts waiting for one client; beyond it the client is given up rather than anything dropped.
_RELIABLE_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """One client as it stands now. ``version`` is the header version spoken to it."""

    number: int
    address: str
    version: int
    sent: int
    dropped: Mapping[str, int]
    queued: int


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    key: str
    kind: Kind
    raw: bytes


class _Client:
    """Queue and writer thread of one client."""

    def __init__(self, server: IgtlServer, number: int, sock: socket.socket, address: str) -> None:
        self.number, self.sock, self.address = number, sock, address
        self.framer = Framer(_INBOUND_LIMITS)
        self.version = 1
        self.sent = 0
        self.dropped: Counter[str] = Counter()
        self._server = server
        self._queue: deque[_Item] = deque()
        self._waiting: Counter[str] = Counter()
        self._ready = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._write, name=f"igtl-client-{number}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, item: _Item, depth: int) -> None:
        with self._ready:
            if self._closing:
                return
            if item.kind == "stream" and self._waiting[item.key] >= depth:
                for at, old in enumerate(self._queue):
                    if old.key == item.key and old.kind == "stream":
                        del self._queue[at]
                        self._waiting[item.key] -= 1
                        self.dropped[item.key] += 1
                        break
            elif item.kind == "reliable" and self._waiting[item.key] >= _RELIABLE_LIMIT:
                _LOG.warning(
                    "client %s does not take its messages (%d of %s waiting): disconnected",
                    self.address, _RELIABLE_LIMIT, item.key,
                )  # fmt: skip
                self._shut_down()
                return
            self._queue.append(item)
            self._waiting[item.key] += 1
            self._ready.notify()

    def info(self) -> ClientInfo:
        with self._ready:
            return ClientInfo(self.number, self.address, self.version, self.sent, dict(self.dropped), len(self._queue))

    def close(self) -> None:
        """Stop the writer; the socket itself is closed by the server's thread once the writer is gone."""
        with self._ready:
            self._shut_down()

    def _shut_down(self) -> None:
        self._closing = True
        self._queue.clear()
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # wakes a blocked sendall, and the server's selector
        self._ready.notify_all()

    def join(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _next(self) -> _Item | None:
        """The next message, or None when nothing came for the keep-alive time; closing wins."""
        keep_alive_s = self._server.keep_alive_s
        with self._ready:
            if not self._queue and not self._closing:
                self._ready.wait(keep_alive_s)
            if not self._queue:
                return None
            item = self._queue.popleft()
            self._waiting[item.key] -= 1
            return item

    def _write(self) -> None:
        try:
            while not self._closing:
                item = self._next()
                if self._closing:
                    return
                if item is not None:
                    self.sock.sendall(item.raw)
                    self.sent += 1
                elif self._server.keep_alive_s is not None:
                    self.sock.sendall(encode_status(self._server.name, version=self.version))
        except (OSError, ValueError) as error:
            # A peer that is gone or too slow: after a partial send the stream is out of step, so it is never resumed.
            if not self._closing:
                _LOG.info("client %s: %s", self.address, error)
            self.close()


class IgtlServer:
    """Serves OpenIGTLink to several clients.

    Speaks header version 1 to a client until that client has sent a version 2 message, then version 2, as PLUS does
    (version 1 libraries lose their framing over version 2).

    Parameters
    ----------
    host : str
        Address to listen on; loopback unless given. ``"0.0.0.0"`` opens it to the network.
    port : int
        0 lets the system choose; `port` gives the bound one after `start`.
    name : str
        Device name of the keep-alive STATUS.
    keep_alive_s : float or None
        A client that was sent nothing for this long gets a STATUS OK; None: never.
    max_clients : int
        Further clients are turned away.
    send_timeout_s : float
        A client that takes no byte of a message for this long in all is disconnected.
    on_message : callable or None
        Called in the server's thread with (client, raw message) for everything that clients send. It must return at
        once; an exception in it is logged and disconnects that client.
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
    ) -> None:
        encode_status(name)  # refuses a name that cannot be sent, now rather than in a thread
        self.host, self.name, self.keep_alive_s = host, name, keep_alive_s
        self.max_clients, self.send_timeout_s, self.on_message = max_clients, send_timeout_s, on_message
        self._wanted_port = port
        self._listener: socket.socket | None = None
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._thread: threading.Thread | None = None
        self._clients: dict[int, _Client] = {}
        self._changed = threading.Condition()
        self._stopping = False
        self._number = 0

    # -------------------------------------------------------------------------------------------------- life

    def start(self) -> IgtlServer:
        """Bind and listen; returns self.

        Raises
        ------
        OSError
            When the address cannot be bound (it is named).
        """
        if self._thread is not None:
            raise RuntimeError("this server runs already")
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self._wanted_port))
            listener.listen(8)
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise OSError(error.errno, f"cannot listen on {self.host}:{self._wanted_port}: {error.strerror}") from None
        self._listener = listener
        self._wake = socket.socketpair()
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="igtl-server", daemon=True)
        self._thread.start()
        return self

    def stop(self, timeout_s: float = 2.0) -> None:
        """Close everything and join the threads. Safe to call twice."""
        thread = self._thread
        if thread is None or self._wake is None:
            return
        self._stopping = True
        with contextlib.suppress(OSError):
            self._wake[1].send(b"x")
        thread.join(timeout_s)
        if thread.is_alive():
            raise RuntimeError(f"the server's thread did not stop within {timeout_s} s")
        for end in self._wake:
            end.close()
        self._thread, self._wake = None, None

    def __enter__(self) -> IgtlServer:
        return self.start() if self._thread is None else self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The bound port (0 while not started)."""
        return 0 if self._listener is None else int(self._listener.getsockname()[1])

    @property
    def clients(self) -> tuple[ClientInfo, ...]:
        """Everyone connected now."""
        with self._changed:
            return tuple(client.info() for client in self._clients.values())

    def wait_for_clients(self, count: int = 1, timeout_s: float = 5.0) -> bool:
        """Wait until at least ``count`` clients are connected; False when the time is over."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._clients) >= count, timeout_s)

    # -------------------------------------------------------------------------------------------------- publishing

    def publish(
        self,
        device: str,
        build: Callable[[int], bytes],
        *,
        kind: Kind = "stream",
        depth: int = 32,
        only: int | None = None,
    ) -> int:
        """Send one message to every client.

        Parameters
        ----------
        device : str
            Messages of one device share a queue limit.
        build : callable
            Header version (1 or 2) → whole message; called at most once per version, in this thread, so that what
            cannot be encoded is the caller's exception and not a torn link.
        kind : "stream" or "reliable"
            A stream drops its oldest message when ``depth`` of them wait for a client.
        only : int or None
            Number of the one client that gets it.

        Returns
        -------
        int
            Clients it was queued for.
        """
        with self._changed:
            clients = [c for c in self._clients.values() if only is None or c.number == only]
        encoded: dict[int, bytes] = {}
        for client in clients:
            version = client.version
            if version not in encoded:
                encoded[version] = build(version)
            client.put(_Item(device, kind, encoded[version]), depth)
        return len(clients)

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

    def _serve(self) -> None:
        assert self._listener is not None
        assert self._wake is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ, None)
            selector.register(self._wake[0], selectors.EVENT_READ, None)
            try:
                while not self._stopping:
                    for key, _ in selector.select():
                        if key.fileobj is self._listener:
                            self._accept(selector)
                        elif isinstance(key.data, _Client):
                            self._read(key.data, selector)
            finally:
                with self._changed:
                    clients = list(self._clients.values())
                for client in clients:
                    self._drop(client, selector)
                self._listener.close()
                self._listener = None

    def _accept(self, selector: selectors.BaseSelector) -> None:
        assert self._listener is not None
        try:
            sock, address = self._listener.accept()
        except OSError:
            return  # the client was gone again before it was accepted
        try:
            sock.settimeout(self.send_timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if len(self._clients) >= self.max_clients:
                _LOG.warning("client %s:%d turned away: %d clients are served already", *address[:2], self.max_clients)
                sock.close()
                return
        except OSError:
            sock.close()
            return
        client = _Client(self, self._number, sock, f"{address[0]}:{address[1]}")
        self._number += 1
        selector.register(sock, selectors.EVENT_READ, client)
        client.start()
        with self._changed:
            self._clients[client.number] = client
            self._changed.notify_all()

    def _read(self, client: _Client, selector: selectors.BaseSelector) -> None:
        try:
            count = client.sock.recv_into(client.framer.writable(), 0, socket.MSG_DONTWAIT)
            if count == 0:
                raise PeerGone("the client closed the connection")
            messages = client.framer.advance(count)
            for raw in messages:
                if raw[1] == 2:
                    client.version = 2
                if self.on_message is not None:
                    self.on_message(client.info(), raw)
            if client.framer.broken is not None:
                raise client.framer.broken
        except (BlockingIOError, TimeoutError):
            return
        except (OSError, WireError) as error:
            if isinstance(error, WireError):
                _LOG.warning("client %s: %s: disconnected", client.address, error)
            self._drop(client, selector)
        except Exception:
            _LOG.exception("client %s: its message could not be handled: disconnected", client.address)
            self._drop(client, selector)

    def _drop(self, client: _Client, selector: selectors.BaseSelector) -> None:
        with self._changed:
            self._clients.pop(client.number, None)
            self._changed.notify_all()
        client.close()
        selector.unregister(client.sock)
        if not client.join(1.0):
            _LOG.error("client %s: its writer did not stop within 1 s", client.address)
        client.sock.close()
