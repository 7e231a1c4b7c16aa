"""Addresses on the command line, and work that ends with Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from nav.cli.errors import CommandError, ExitCode

__all__ = ["endpoint", "until_interrupted"]


def endpoint(address: str, what: str, *, listening: bool = False) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``.

    Parameters
    ----------
    address : str
        ``127.0.0.1:18944``, ``tracker.local:18944``, ``[::1]:18944``; without a host this computer.
    what : str
        Argument or option, for the message.
    listening : bool
        Port 0 is allowed: the system chooses.

    Raises
    ------
    CommandError
        When it is none.
    """
    host, colon, port = address.rpartition(":")
    least = 0 if listening else 1
    if not colon or not (port.isascii() and port.isdigit()) or not least <= int(port) <= 65535:
        raise CommandError(
            f"{what} {address!r}: expected HOST:PORT, such as 127.0.0.1:18944 (port {least} to 65535)", ExitCode.USAGE
        )
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)


@contextmanager
def until_interrupted() -> Iterator[threading.Event]:
    """An event that Ctrl-C (or a request to terminate) sets, instead of ending the program in the middle.

    Asked a second time, the program ends at once.
    """
    stop = threading.Event()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def ask(*_: object) -> None:
        stop.set()
        restore()

    previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        restore()
