"""Helpers for tests over real sockets: a collecting sink, and scripted peers."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from nav.runtime.messages import LinkMessage, LinkState, Message

MessageT = TypeVar("MessageT", bound=Message)


class Collector:
    """Keeps everything that a source delivers, with the moment it was delivered."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: list[tuple[float, Message, bytes | None]] = []

    def deliver(self, message: Message, raw: bytes | None) -> None:
        with self._changed:
            self._items.append((time.monotonic(), message, raw))
            self._changed.notify_all()

    def items(self) -> list[tuple[float, Message, bytes | None]]:
        with self._changed:
            return list(self._items)

    def messages(self) -> list[Message]:
        return [m for _, m, _ in self.items()]

    def of(self, kind: type[MessageT]) -> list[MessageT]:
        return [m for m in self.messages() if isinstance(m, kind)]

    def links(self) -> list[LinkState]:
        return [m.state for m in self.of(LinkMessage)]

    def wait_for(self, what: Callable[[Collector], bool], timeout_s: float = 5.0) -> None:
        """Wait until ``what(self)``; fail with what was received instead."""
        end = time.monotonic() + timeout_s
        while not what(self):
            left = end - time.monotonic()
            if left <= 0:
                seen = [str(m)[:150] for m in self.messages()[-5:]]
                raise AssertionError(f"not seen within {timeout_s} s; the last of {len(self.messages())}: {seen}")
            with self._changed:
                self._changed.wait(min(left, 0.05))

    def wait_for_link(self, state: LinkState, count: int = 1, timeout_s: float = 5.0) -> LinkMessage:
        self.wait_for(lambda c: c.links().count(state) >= count, timeout_s)
        return [m for m in self.of(LinkMessage) if m.state is state][count - 1]


class ScriptedServer:
    """Listens and gives each connection to ``script`` in a thread of its own."""

    def __init__(self, script: Callable[[socket.socket, int], None], port: int = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = int(self._listener.getsockname()[1])
        self._script = script
        self.accepted: list[float] = []
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.accepted.append(time.monotonic())
            self._sockets.append(sock)
            thread = threading.Thread(target=self._run, args=(sock, len(self.accepted) - 1), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, sock: socket.socket, number: int) -> None:
        with sock, contextlib.suppress(OSError):
            self._script(sock, number)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(2)
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(2)
        for sock in self._sockets:
            sock.close()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def hold(sock: socket.socket) -> None:
    """Keep a connection open until the other side goes."""
    while sock.recv(4096):
        pass


@contextlib.contextmanager
def threads_end() -> Iterator[None]:
    """Fail when threads of this package are still running afterwards."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        left = [t.name for t in threading.enumerate() if t not in before and t.name.startswith("igtl")]
        if not left:
            return
        time.sleep(0.01)
    raise AssertionError(f"threads left running: {left}")
