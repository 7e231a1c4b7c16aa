"""Builds the example programs of the OpenIGTLink C++ library from the sources that Debian ships, and talks to them.

``apt-get install openigtlink-examples libopenigtlink-dev g++``. Programs already built may be given as a folder in
``$OPENIGTLINK_EXAMPLES``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from drivers.openigtlink.contents import Content, unpack_message
from drivers.openigtlink.sink import ClientInfo, IgtlServer
from drivers.openigtlink.source import make_source
from drivers.openigtlink.wire import WireMessage, parse_message
from nav.config.room import SourceConfig
from nav.runtime.messages import LinkState
from tests.system.openigtlink_tools import Collector

ContentT = TypeVar("ContentT", bound=Content)

SOURCES = Path("/usr/share/doc/openigtlink-examples/examples")
HEADERS = Path("/usr/include/openigtlink")
IMAGES = SOURCES / "Imager" / "img"
#: Programs of the folder Thread show the library's threads; they open no socket.
NO_NETWORK = ("SingleMethodExecute", "MultipleMethodExecute", "SpawnThread")


# -------------------------------------------------------------------------------------------------------- the programs


def program_names() -> list[str]:
    """Every program of the package that uses the network; empty where it is not installed."""
    return sorted({path.stem for path in SOURCES.glob("*/*.cxx")} - set(NO_NETWORK))


def build(name: str, folder: Path) -> Path:
    """The program ``name`` (such as ``TrackerServer``), built into ``folder``; skips where it cannot be had."""
    given = os.environ.get("OPENIGTLINK_EXAMPLES")
    if given and (Path(given) / name).is_file():
        return Path(given) / name
    program = folder / name
    if program.is_file():
        return program
    compiler = shutil.which("g++")
    source = next(iter(SOURCES.glob(f"*/{name}.cxx")), None)
    if source is None:
        pytest.skip("the package openigtlink-examples is not installed")
    if not HEADERS.is_dir() or compiler is None:
        pytest.skip("libopenigtlink-dev and g++ are needed to build the OpenIGTLink examples")
    command = [compiler, "-w", f"-I{HEADERS}", str(source), "-o", str(program), "-lOpenIGTLink", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def build_all(folder: Path) -> None:
    """Build every program, two at a time; nothing where they cannot be had (`build` then skips)."""

    def attempt(name: str) -> None:
        with contextlib.suppress(pytest.skip.Exception):
            build(name, folder)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(attempt, program_names()))


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def running(program: Path, *arguments: object, log: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program; its output goes to ``log`` (or nowhere). Ended on the way out."""
    with contextlib.ExitStack() as stack:
        output = subprocess.DEVNULL if log is None else stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            [str(program), *map(str, arguments)], stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait(5)


def wait_for_text(log: Path, text: str, count: int = 1, timeout_s: float = 8.0) -> str:
    """Wait until ``text`` stands ``count`` times in ``log``; returns all of it."""
    end = time.monotonic() + timeout_s
    while True:
        content = log.read_text(errors="replace")
        if content.count(text) >= count:
            return content
        assert time.monotonic() < end, f"{text!r} x {count} not in: {content[-2000:]}"
        time.sleep(0.02)


def wait_for_lines(log: Path, *lines: str) -> str:
    """Wait until each of ``lines`` (or parts of lines) stands in ``log``; returns all of it."""
    for line in lines:
        wait_for_text(log, line)
    return log.read_text(errors="replace")


# ------------------------------------------------------------------------------------------------------- talk to them


@contextlib.contextmanager
def our_source(
    program: Path, *arguments: object, log: Path | None = None, **options: object
) -> Iterator[tuple[Collector, Callable[[bytes], None]]]:
    """Run one of their servers with our source connected to it: what comes, and how to send.

    No framing error may occur.
    """
    sink, port = Collector(), free_port()
    source = make_source(SourceConfig.model_validate({"name": "example", "port": port, **options}))
    with running(program, port, *arguments, log=log):
        source.start(sink)
        try:
            first = sink.wait_for_link(LinkState.CONNECTED, timeout_s=8.0)
            yield sink, source.send
        finally:
            source.stop()
    links = sink.of(type(first))
    assert LinkState.FAILED not in [link.state for link in links[links.index(first) :]], "no framing error"


def contents(sink: Collector, kind: type[ContentT]) -> list[tuple[str, ContentT]]:
    """Device and content of what was received of one kind."""
    found = []
    for _, _, raw in sink.items():
        message = None if raw is None else parse_message(raw)
        content = None if message is None else unpack_message(message)
        if message is not None and isinstance(content, kind):
            found.append((message.device, content))
    return found


class OurServer:
    """Our server for one of their clients: what it heard; ``answer`` gives what goes back."""

    def __init__(self, answer: Callable[[WireMessage], bytes | None] = lambda _: None) -> None:
        self.heard: list[WireMessage] = []
        self._answer = answer
        self._server = IgtlServer(on_message=self._on_message, keep_alive_s=None)

    def _on_message(self, client: ClientInfo, raw: bytes) -> None:
        message = parse_message(raw)
        self.heard.append(message)
        reply = self._answer(message)
        if reply is not None:
            self.send(reply, only=client.number)

    def send(self, raw: bytes, only: int | None = None) -> None:
        self._server.publish("test", lambda _: raw, kind="reliable", only=only)

    def wait_for(self, count: int) -> list[WireMessage]:
        """The first ``count`` messages of the client."""
        end = time.monotonic() + 8
        while len(self.heard) < count:
            assert time.monotonic() < end, f"{len(self.heard)} of {count} messages"
            time.sleep(0.01)
        return self.heard[:count]

    @contextlib.contextmanager
    def client(self, program: Path, *arguments: object, log: Path | None = None) -> Iterator[IgtlServer]:
        """Run one of their clients, which is given host and port before ``arguments``."""
        with self._server as server, running(program, "127.0.0.1", server.port, *arguments, log=log):
            yield server


# ------------------------------------------------------------------------------------------------------ what they send


def position(phi: float) -> NDArray[np.float64]:
    """Of the examples' GetRandomTestMatrix."""
    return 50 * np.array([np.cos(phi), np.sin(phi), np.cos(phi)])


def quaternion(theta: float) -> NDArray[np.float64]:
    """Of the examples' GetRandomTestMatrix: x, y, z, w, of length 0.88."""
    return np.array([0, 0.6666666666 * np.cos(theta), 0.577350269189626, 0.6666666666 * np.sin(theta)])


def pose(phi: float, theta: float) -> NDArray[np.float64]:
    """The matrix that the examples' GetRandomTestMatrix makes of them; the library takes the length out."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_quat(quaternion(theta)).as_matrix()
    matrix[:3, 3] = position(phi)
    return matrix
