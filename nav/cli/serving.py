"""Serves a recording or a sequence metafile over OpenIGTLink, as live sources for any client."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from drivers.openigtlink.player import play, play_sequence
from drivers.openigtlink.sink import IgtlServer
from nav.cli.endpoints import endpoint, until_interrupted
from nav.cli.errors import CommandError, ExitCode
from nav.cli.progress import Steps
from nav.runtime.recording import Recording

__all__ = ["serve_file"]


@dataclass(frozen=True, slots=True)
class _Raw:
    """A recorded message, sent as it was received (its own stamp included)."""

    time_s: float
    device: str
    raw: bytes

    def send(self, server: IgtlServer, sender_ns: int) -> None:  # noqa: ARG002 (the bytes hold their own stamp)
        """Send it."""
        server.publish(self.device, lambda _version: self.raw)


def serve_file(path: Path, address: str, *, loop: bool, speed: float, steps: Steps, allow: Sequence[str] = ()) -> None:
    """Serve until the end of the file, or until Ctrl-C with ``loop``.

    A recording of several sources is served at consecutive ports, in the order of its sources. ``allow``: networks that
    may connect where the address can be reached from one.
    """
    host, port = endpoint(address, "--serve", listening=True)
    if not path.is_file():
        raise CommandError(f"{path}: no such file", ExitCode.INPUT)
    with until_interrupted() as stop:
        if path.suffix == ".mcap":
            _serve_recording(path, host, port, loop=loop, speed=speed, stop=stop, steps=steps, allow=allow)
            return
        if speed != 1.0:
            raise CommandError("--speed is for recordings; a sequence is served at its own pace", ExitCode.USAGE)
        with IgtlServer(host, port, name="Sequence", allow=allow) as server:
            steps.say(f"  {path.name} at {host}:{server.port}; Ctrl-C ends")
            play_sequence(path, server, loop=loop, stop=stop)


def _serve_recording(
    path: Path,
    host: str,
    port: int,
    *,
    loop: bool,
    speed: float,
    stop: threading.Event,
    steps: Steps,
    allow: Sequence[str],
) -> None:
    with Recording.open(path) as recording, ExitStack() as stack:
        threads = []
        for n, source in enumerate(recording.sources()):
            server = stack.enter_context(
                IgtlServer(host, port + n if port else 0, name=source[:20], keep_alive_s=None, allow=allow)
            )
            steps.say(f"  {source} at {host}:{server.port}; Ctrl-C ends")
            messages = [
                _Raw(m.arrival_ns * 1e-9 / speed, f"{source}/{m.raw[14:34].decode('ascii', 'replace')}", m.raw)
                for m in recording.raw_messages(source)
            ]
            threads.append(threading.Thread(target=play, args=(server, messages), kwargs={"loop": loop, "stop": stop}))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
