"""Builds the example programs of the OpenIGTLink C++ library from the sources that Debian ships.

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
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path("/usr/share/doc/openigtlink-examples/examples")
HEADERS = Path("/usr/include/openigtlink")
IMAGES = SOURCES / "Imager" / "img"


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
