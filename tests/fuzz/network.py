"""Hostile peers against a live server and a live source, with a well-behaved peer beside them.

``python -m tests.fuzz.network --connections 10000`` prints what came of it as JSON; the exit code is 1 when something
that must hold did not: the well-behaved peer gets every message, in order, whole; no thread, file or memory stays; no
hostile connection stays; who comes afterwards is served within a second.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from drivers.openigtlink.codec import encode_content, encode_image, encode_status, encode_string, encode_transform
from drivers.openigtlink.contents import CommandContent
from drivers.openigtlink.framing import Framer
from drivers.openigtlink.publisher import NavigationPublisher
from drivers.openigtlink.sink import ClientInfo, IgtlServer
from drivers.openigtlink.source import IgtlSource
from drivers.openigtlink.wire import Limits, WireError, pack_message, parse_message
from nav.config.room import PublishConfig, RoomConfig, SourceConfig, ToolStreamConfig
from nav.runtime.clock import SystemClock
from nav.runtime.core import NavigationCore
from nav.runtime.essentials import CaseEssentials
from nav.runtime.messages import LinkMessage, LinkState, Message
from nav.runtime.pipeline import ComputeThread
from nav.runtime.slots import Batch, Inbox
from tests.fuzz import invariants
from tests.fuzz.mutations import Mutator
from tests.fuzz.seeds import seeds

__all__ = ["attack_server", "attack_source", "main"]

#: Who comes back, or comes new, is served within this time.
RECOVERY_S = 1.0
#: What a run may leave behind: caches that fill once, and what the allocator keeps.
GROWTH_BYTES = 64 << 20
COUNT = "CountToTracker"
EYE = np.eye(4)


@dataclass(frozen=True, slots=True)
class Use:
    """What the process uses now."""

    threads: int
    files: int
    bytes: int

    @classmethod
    def now(cls) -> Use:
        """Measured."""
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            threading.active_count(), len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGE_SIZE")
        )  # fmt: skip


@dataclass
class Report:
    """What came of one part of a run; ``failures``: what did not hold."""

    connections: int = 0
    seconds: float = 0.0
    attacks: Counter[str] = field(default_factory=Counter)
    good_messages: int = 0
    longest_gap_s: float = 0.0
    recovery_s: float = -1.0
    growth_bytes: int = 0
    peak_growth_bytes: int = 0
    threads: tuple[int, int] = (0, 0)
    files: tuple[int, int] = (0, 0)
    failures: list[str] = field(default_factory=list)

    def need(self, holds: bool, what: str) -> None:
        """Note what did not hold."""
        if not holds and len(self.failures) < 20:
            self.failures.append(what)

    def compare(self, before: Use, after: Use) -> None:
        """Nothing stays: threads, files, memory."""
        self.threads, self.files = (before.threads, after.threads), (before.files, after.files)
        self.growth_bytes = after.bytes - before.bytes
        self.need(after.threads <= before.threads, f"threads: {before.threads} before, {after.threads} after")
        self.need(after.files <= before.files, f"files: {before.files} before, {after.files} after")
        self.need(self.growth_bytes <= GROWTH_BYTES, f"memory grew by {self.growth_bytes >> 20} MiB")


class Peak:
    """The most memory in use meanwhile."""

    def __init__(self) -> None:
        self.most = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._stop.wait(0.05):
            self.most = max(self.most, int(Path("/proc/self/statm").read_text().split()[1]) * page)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


def numbered(n: int) -> bytes:
    """Message ``n`` of the well-behaved stream: its number is in the matrix and in the stamp."""
    m = np.eye(4)
    m[0, 3] = n % 50_000
    return encode_transform(COUNT, m, sender_ns=10**18 + n)


# ------------------------------------------------------------------------------------------------------- the server


class GoodClient:
    """A client that reads everything and checks the numbered stream."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=5.0)
        self.next: int | None = None
        self.messages, self.longest_gap_s = 0, 0.0
        self.problem = ""
        self._stop = False
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        framer = Framer()
        last = time.monotonic()
        try:
            while not self._stop:
                count = self.sock.recv_into(framer.writable())
                if count == 0:
                    raise ConnectionError("closed by the server")
                for raw in framer.advance(count):
                    if raw[14:34].rstrip(b"\0").decode() != COUNT:
                        continue
                    now = time.monotonic()
                    self.longest_gap_s = max(self.longest_gap_s, now - last) if self.messages else 0.0
                    last = now
                    self._take(raw)
        except (OSError, WireError) as error:
            if not self._stop:
                self.problem = self.problem or f"the well-behaved client: {error}"

    def _take(self, raw: bytes) -> None:
        message = parse_message(raw)
        assert message.sender_ns is not None
        n = message.sender_ns - 10**18
        if self.next is not None and n != self.next:
            self.problem = self.problem or f"message {n} instead of {self.next}"
        if raw != numbered(n):
            self.problem = self.problem or f"message {n} is not what was sent"
        self.next = n + 1
        self.messages += 1
        self._first.set()

    def wait(self, timeout_s: float) -> bool:
        """Whether anything of the stream has come."""
        return self._first.wait(timeout_s)

    def close(self) -> None:
        self._stop = True
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(2)
        self.sock.close()


def _room() -> RoomConfig:
    return RoomConfig(sources=(SourceConfig(name="none", port=1),))


class _Control:
    """A session that does nothing it is asked."""

    recording = ""

    def start_recording(self, name: str = "") -> str:
        raise ValueError(f"no recording {name!r}")

    def stop_recording(self) -> str:
        raise ValueError("nothing is recorded")

    def reconnect(self, name: str) -> None:
        raise LookupError(f"no source {name!r}")


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _announce(type_name: str, size: int, version: int = 1) -> bytes:
    return struct.pack(">H12s20sIIQQ", version, type_name.encode(), b"x", 0, 0, size, 0)


_XML = (
    '<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;">]><Command Name="&y;"/>',
    "<Command " + " ".join(f'a{n}="{n}"' for n in range(900)) + "/>",
    "<a>" * 2000,
    "<Command>" * 900 + "</Command>" * 900,
    "<Command Name='StartRecording' OutputFilename='../../../../etc/passwd\0x'/>",
    "<Command Name='Reconnect' Source='\N{REPLACEMENT CHARACTER}'/>",
    "]]>&#0;&#x1F;<Command",
    "<Command Name='RequestState'" + "/>" * 200,
    "x" * 200_000,
    "",
)


def _server_attacks(mutator: Mutator) -> dict[str, tuple[int, Callable[[socket.socket, random.Random], None]]]:
    """Name → weight, and what one connection does. An error of its socket means that the server has ended it."""
    image = encode_image("Hostile", np.zeros((200, 200), np.uint8), EYE)

    def nothing(sock: socket.socket, rng: random.Random) -> None:
        pass

    def reset(sock: socket.socket, rng: random.Random) -> None:
        sock.sendall(rng.choice((b"", b"\0", numbered(1)[: rng.randrange(1, 106)], numbered(1))))
        _reset(sock)

    def garbage(sock: socket.socket, rng: random.Random) -> None:
        sock.sendall(rng.randbytes(rng.choice((1, 57, 58, 200, 5000))))

    def protocols(sock: socket.socket, rng: random.Random) -> None:
        sock.sendall(rng.choice((b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 3, b"\x16\x03\x01" * 40, b"\xff" * 99)))

    def huge(sock: socket.socket, rng: random.Random) -> None:
        size = rng.choice((1 << 26, (1 << 26) + 1, 1 << 31, 1 << 32, 1 << 40, 1 << 63, (1 << 64) - 1, 1 << 20))
        sock.sendall(_announce(rng.choice(("IMAGE", "TRANSFORM", "VENDOR", "POLYDATA", "STRING")), size) + bytes(900))

    def half(sock: socket.socket, rng: random.Random) -> None:
        sock.sendall(image[: rng.randrange(1, len(image))])

    def flood(sock: socket.socket, rng: random.Random) -> None:
        one = rng.choice((numbered(5), encode_status("x"), encode_string("x", "y"), _announce("GET_STATUS", 0)))
        sock.sendall(one * rng.choice((100, 1500)))

    def names(sock: socket.socket, rng: random.Random) -> None:
        sock.sendall(
            b"".join(
                pack_message(f"T{rng.randrange(10**9)}", f"N{rng.randrange(10**15)}", b"", sender_ns=n + 1)
                for n in range(300)
            )
        )

    def queries(sock: socket.socket, rng: random.Random) -> None:
        kinds = ("GET_STATUS", "GET_TRANS", "GET_IMAGE", "GET_POLYDATA", "STT_POLYDATA", "STP_TDATA", "GET_CAPABIL",
                 "STT_TDATA", "STT_BIND", "GET_BIND", "GET_NOTHING")  # fmt: skip
        sock.sendall(b"".join(pack_message(rng.choice(kinds), f"D{n}", rng.randbytes(rng.choice((0, 0, 8, 36))))
                              for n in range(120)))  # fmt: skip

    def commands(sock: socket.socket, rng: random.Random) -> None:
        for n in range(6):
            content = CommandContent(n, rng.choice(("StartRecording", "x" * 100, "")), rng.choice(_XML))
            sock.sendall(encode_content("Client", content, version=rng.choice((1, 2))))

    def mutated(sock: socket.socket, rng: random.Random) -> None:
        for _ in range(4):
            sock.sendall(mutator.stream(rng.randrange(1 << 30))[0])

    def speaks_then_reads_a_little(sock: socket.socket, rng: random.Random) -> None:
        sock.sendall(encode_status("x", version=2))
        sock.settimeout(0.2)
        sock.recv(rng.choice((1, 58, 4096)))

    return {
        "connect and close": (3, nothing),
        "reset": (3, reset),
        "garbage": (3, garbage),
        "other protocols": (1, protocols),
        "huge sizes": (3, huge),
        "half a message": (2, half),
        "flood of messages": (1, flood),
        "flood of names": (1, names),
        "flood of queries": (1, queries),
        "absurd commands": (1, commands),
        "mutations": (3, mutated),
        "reads a little": (1, speaks_then_reads_a_little),
    }


def _loris(port: int, raw: bytes, pause_s: float, seconds: float) -> None:
    """A byte now and then, until the server ends it."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2.0) as sock:
        end = time.monotonic() + seconds
        for byte in raw:
            if time.monotonic() > end:
                break
            sock.send(bytes([byte]))
            time.sleep(pause_s)


@contextlib.contextmanager
def _publishing(publisher: NavigationPublisher, rate_hz: float) -> Iterator[threading.Event]:
    """The numbered stream to every client; with the event set, large images beside it."""
    stop, bulk = threading.Event(), threading.Event()
    core = NavigationCore(_room(), CaseEssentials(""))
    picture = np.zeros((1000, 1000), np.uint8)

    def work() -> None:
        n = 0
        while not stop.wait(1.0 / rate_hz):
            raw = numbered(n)
            publisher.server.publish(COUNT, lambda _version, raw=raw: raw, kind="reliable")  # type: ignore[misc]
            if n % 10 == 0:
                publisher.offer(core.tick(Batch((), (), {}), [], time.monotonic_ns()))
                if bulk.is_set():
                    publisher.server.publish_image("Bulk", picture, EYE)
            n += 1

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield bulk
    finally:
        stop.set()
        thread.join()


def attack_server(connections: int, seed: int = 1, *, slow: bool = True, at_once: int = 200) -> Report:
    """Hostile clients against the server of a navigation.

    Parameters
    ----------
    slow : bool
        With the attacks that take their time (12 s): slow-loris, readers that stand still.
    at_once : int
        Clients that come at the same moment.
    """
    rng = random.Random(seed)
    report = Report()
    attacks = _server_attacks(Mutator(seeds(), seed))
    kinds, weights = list(attacks), [weight for weight, _ in attacks.values()]
    began = time.monotonic()
    config = PublishConfig(port=0, max_clients=16)
    with NavigationPublisher(_room(), config, SystemClock(), _Control()) as publisher:
        server = publisher.server
        with _publishing(publisher, 100.0) as bulk:
            good = GoodClient(server.port)
            report.need(good.wait(5.0), "the well-behaved client got nothing before the attack")

            def attack(name: str, chance: random.Random) -> None:
                report.attacks[name] += 1
                report.connections += 1
                with contextlib.suppress(OSError):
                    sock = socket.create_connection(("127.0.0.1", server.port), timeout=2.0)
                    with contextlib.closing(sock):
                        attacks[name][1](sock, chance)

            for name in kinds:  # what fills once has been filled
                for _ in range(3):
                    attack(name, rng)
            _ended(server, report, 1, 2.0)
            before = Use.now()
            with Peak() as peak:
                for _ in range(max(0, connections - at_once)):
                    attack(rng.choices(kinds, weights)[0], rng)
                with ThreadPoolExecutor(32) as pool:
                    for name in rng.choices(kinds, weights, k=at_once):
                        pool.submit(attack, name, random.Random(rng.random()))
                if slow:
                    _slow_attacks(server, report, bulk)
                # They may all stay connected, half-open, and say nothing: the limit holds.
                idle = []
                with contextlib.suppress(OSError):
                    for _ in range(40):
                        idle.append(socket.create_connection(("127.0.0.1", server.port), timeout=1.0))
                time.sleep(0.2)
                report.connections += len(idle)
                report.attacks["half-open"] += len(idle)
                report.need(len(server.clients) <= config.max_clients, f"{len(server.clients)} clients, limit 16")
                for sock in idle:
                    sock.close()
            report.peak_growth_bytes = peak.most - before.bytes
            _ended(server, report, 1, 2.0)
            start = time.monotonic()
            newcomer = GoodClient(server.port)
            report.need(newcomer.wait(RECOVERY_S), "a new client got nothing within 1 s after the attack")
            report.recovery_s = time.monotonic() - start
            newcomer.close()
            _ended(server, report, 1, 2.0)
            report.compare(before, Use.now())
            patience = time.monotonic() + 5.0  # a short attack on a busy machine may be over before so many were sent
            while good.messages <= 50 and not good.problem and time.monotonic() < patience:
                time.sleep(0.05)
            report.good_messages, report.longest_gap_s = good.messages, good.longest_gap_s
            report.need(not good.problem, good.problem)
            report.need(good.messages > 50, f"only {good.messages} messages")
            good.close()
    report.seconds = time.monotonic() - began
    return report


def _slow_attacks(server: IgtlServer, report: Report, bulk: threading.Event) -> None:
    """Slow-loris in header and body; readers that stand still while large images are sent; some that go meanwhile."""
    threads = [
        threading.Thread(target=_loris, args=(server.port, raw, 0.2, 8.0))
        for raw in (numbered(1), encode_string("x", "y" * 99), _announce("IMAGE", 1 << 26) + bytes(99))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    stalled = []
    for _ in range(6):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with contextlib.suppress(OSError):
            sock.connect(("127.0.0.1", server.port))
            stalled.append(sock)
    report.attacks["slow-loris"] += len(threads)
    report.attacks["stalled reader"] += len(stalled)
    report.connections += len(threads) + len(stalled)
    bulk.set()
    time.sleep(1.5)
    report.need(
        all(c.queued_bytes <= server.max_queued_bytes + (2 << 20) for c in server.clients), "a queue beyond its limit"
    )
    for sock in stalled[:3]:  # in the middle of an image
        _reset(sock)
    # The others are given up for taking nothing.
    ended = _wait(lambda: len(server.clients) <= 1, server.send_timeout_s + 3.0)
    bulk.clear()
    report.need(ended, f"clients that take nothing or are slow stay: {server.clients[1:]}")
    for thread in threads:
        thread.join()
    for sock in stalled[3:]:
        sock.close()


def _wait(what: Callable[[], bool], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def _ended(server: IgtlServer, report: Report, left: int, timeout_s: float) -> None:
    """Nobody is left but the well-behaved."""
    ended = _wait(lambda: len(server.clients) <= left, timeout_s)
    report.need(ended, f"{len(server.clients) - left} hostile connections stay: {_addresses(server.clients[left:])}")


def _addresses(clients: tuple[ClientInfo, ...]) -> str:
    return ", ".join(f"{c.address} (sent {c.sent}, queued {c.queued})" for c in clients[:5])


# ------------------------------------------------------------------------------------------------------- the source


class HostileServer:
    """Gives every connection of a source other bytes, and remembers them.

    ``play(number) -> (name, bytes, reset)``: what is sent, and whether the connection is reset rather than closed.
    """

    def __init__(self, play: Callable[[int], tuple[str, bytes, bool]]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._play = play
        self.sent: list[tuple[str, bytes, bool]] = []
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if self._stop:
                sock.close()
                return
            name, raw, reset = self._play(len(self.sent))
            self.sent.append((name, raw, reset))
            with contextlib.suppress(OSError):
                sock.settimeout(10.0)
                sock.sendall(raw)
                if reset:
                    # One that is reset before the source has seen it is an attempt that failed, and no connection.
                    time.sleep(0.02)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    sock.shutdown(socket.SHUT_WR)  # what was sent arrives
                    while sock.recv(4096):
                        pass
            sock.close()

    def close(self) -> None:
        """Stop listening; nobody is there any more."""
        self._stop = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(12)


class _Watching:
    """A sink that keeps what a hostile connection has delivered, checks the good one, and hands everything on."""

    def __init__(self, inbox: Inbox, report: Report) -> None:
        self._inbox, self._report = inbox, report
        self.hostile: list[bytes] = []
        self.ended: Callable[[list[bytes], str], None] | None = None
        self.next_good: int | None = None
        self.good = 0
        self.longest_gap_s = 0.0
        self._last = 0.0

    def deliver(self, message: Message, raw: bytes | memoryview | None) -> None:
        self._inbox.deliver(message, raw)
        if message.source == "good":
            self._check_good(message, raw)
        elif isinstance(message, LinkMessage):
            if message.state is LinkState.CONNECTED:
                self.hostile = []
            elif (
                self.ended is not None
                and message.state is not LinkState.CONNECTING
                and not message.detail.startswith("cannot connect")
            ):
                self.ended(self.hostile, message.detail)
        elif raw is not None:
            self.hostile.append(bytes(raw))

    def _check_good(self, message: Message, raw: bytes | memoryview | None) -> None:
        if isinstance(message, LinkMessage):
            self._report.need(
                message.state in (LinkState.CONNECTING, LinkState.CONNECTED), f"the good link: {message.detail}"
            )
            return
        if message.device != COUNT:
            return
        assert raw is not None
        assert message.sender_ns is not None
        n = message.sender_ns - 10**18
        self._report.need(self.next_good in (None, n), f"the good stream: message {n} instead of {self.next_good}")
        self._report.need(bytes(raw) == numbered(n), f"the good stream: message {n} is not what was sent")
        self.next_good = n + 1
        now = time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now - self._last) if self.good else 0.0
        self._last = now
        self.good += 1


def _hostile_play(seed: int) -> Callable[[int], tuple[str, bytes, bool]]:
    rng = random.Random(seed)
    mutator = Mutator(seeds(), seed)
    image = encode_image("Image", np.zeros((120, 120), np.uint8), EYE)
    large = encode_image("Large", np.zeros((700, 700), np.uint8), EYE)

    def play(number: int) -> tuple[str, bytes, bool]:
        good = b"".join(numbered(number * 10 + n) for n in range(3))
        match rng.randrange(13):
            case 0:
                return "nothing", b"", rng.random() < 0.5
            case 1:
                return "garbage", rng.randbytes(rng.choice((1, 57, 58, 3000))), False
            case 2:
                return "good, then garbage", good + rng.randbytes(200), False
            case 3:
                size = rng.choice((1 << 27, (1 << 27) + 1, 1 << 31, 1 << 40, 1 << 63, (1 << 64) - 1))
                return "huge sizes", good + _announce(rng.choice(("IMAGE", "VENDOR", "TDATA")), size), False
            case 4:
                return "half a message", good + image[: rng.randrange(1, len(image))], rng.random() < 0.3
            case 5:
                return "half a large message", good + large[: rng.randrange(1, len(large))], rng.random() < 0.3
            case 6:
                many = [
                    encode_transform(
                        f"N{rng.randrange(10**15)}", EYE, sender_ns=rng.randrange(1, 2**32 * 10**9), version=2,
                        metadata={"TransformStatus": rng.choice(("OK", "MISSING")), f"K{rng.randrange(10**9)}": "v"},
                    )
                    for _ in range(150)
                ]  # fmt: skip
                return "flood of names", b"".join(many), False
            case 7:
                many = [pack_message(f"T{rng.randrange(10**9)}", f"N{rng.randrange(10**15)}", b"x") for _ in range(150)]
                return "flood of types", b"".join(many), False
            case 8:
                one = rng.choice((encode_status("S", rng.randrange(20)), encode_string("T", "x"), numbered(7)))
                return "flood of messages", one * 1500, False
            case 9:
                broken = bytearray(good + numbered(9))
                broken[rng.randrange(len(good), len(broken))] ^= 1 << rng.randrange(8)
                return "a flipped bit", bytes(broken), False
            case 10:
                return "reset", good + image, True
            case 11:
                return "read past", good + _announce("VENDOR", 5 << 20) + bytes(5 << 20) + good, False
            case _:
                return "mutations", b"".join(mutator.stream(rng.randrange(1 << 30))[0] for _ in range(6)), False

    return play


def attack_source(connections: int, seed: int = 1) -> Report:
    """A hostile server against a source of a running navigation, with a well-behaved source beside it."""
    report = Report()
    invariants.compiled()
    clock = SystemClock()
    began = time.monotonic()
    hostile = HostileServer(_hostile_play(seed))
    tool = ToolStreamConfig(device=COUNT, transform=COUNT)
    other = ToolStreamConfig(device="NeedleToTracker", transform="NeedleToTracker")
    with IgtlServer(name="Good") as server:
        configs = (
            SourceConfig(name="good", port=server.port, tools=(tool,)),
            SourceConfig(name="hostile", port=hostile.port, tools=(other,)),
        )
        room = RoomConfig(sources=configs)
        inbox = Inbox()
        compute = ComputeThread(NavigationCore(room, CaseEssentials("")), inbox, clock)
        sink = _Watching(inbox, report)
        good, bad = (IgtlSource(config, clock) for config in configs)
        number = 0
        limits = Limits()

        def ended(messages: list[bytes], detail: str) -> None:
            nonlocal number
            if number < len(hostile.sent):
                name, raw, reset = hostile.sent[number]
                _compare(report, f"{number}, {name}", messages, raw, reset, detail, limits)
                report.attacks[name] += 1
                hostile.sent[number] = (name, b"", reset)  # megabytes, some of them
            number += 1
            bad.reconnect()  # ends the pause between attempts: thousands of them would take hours

        sink.ended = ended
        stop = threading.Event()

        def publish() -> None:
            n = 0
            while not stop.wait(0.01):
                raw = numbered(n)
                server.publish(COUNT, lambda _version, raw=raw: raw, kind="reliable")  # type: ignore[misc]
                n += 1

        publishing = threading.Thread(target=publish, daemon=True)
        compute.start()
        good.start(sink)
        server.wait_for_clients()
        publishing.start()
        bad.start(sink)
        warm = min(60, max(connections // 4, 30))
        _advance(report, lambda: number, warm)
        before = Use.now()
        with Peak() as peak:
            _advance(report, lambda: number, connections)
        report.peak_growth_bytes = peak.most - before.bytes
        report.connections = bad.connections
        sink.ended = None
        hostile.close()
        # It has gone. When a sound one is there in its place, its data are here within a second.
        bad.reconnect()  # whatever pause it is in: it finds nobody, and asks again
        _recovers(report, hostile.port, sink)
        report.compare(before, Use.now())
        report.need(not compute.error, f"the compute thread has ended: {compute.error[-500:]}")
        patience = time.monotonic() + 5.0
        while sink.good <= 50 and time.monotonic() < patience:
            time.sleep(0.05)
        stop.set()
        publishing.join()
        bad.stop()
        good.stop()
        compute.stop()
        report.good_messages, report.longest_gap_s = sink.good, sink.longest_gap_s
        report.need(sink.good > 50, f"only {sink.good} messages of the good source")
    report.seconds = time.monotonic() - began
    return report


def _advance(report: Report, reached: Callable[[], int], goal: int) -> None:
    """Wait for connection ``goal``; note when nothing moves for 10 s (the longest pause is 5 s)."""
    last, since = reached(), time.monotonic()
    while (now := reached()) < goal:
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > 20.0:
            report.need(False, f"nothing moves after connection {now}")
            return
        time.sleep(0.01)


def _compare(
    report: Report, which: str, messages: list[bytes], raw: bytes, reset: bool, detail: str, limits: Limits
) -> None:
    """What a connection delivered is what the protocol says of its bytes; a reset may take the end away."""
    expected = invariants.expected_framing(raw, limits)
    if reset:
        holds = messages == expected.messages[: len(messages)]
    else:
        holds = messages == expected.messages
        if expected.broken:
            report.need("given up" in detail, f"connection {which}: not given up: {detail}")
    report.need(holds, f"connection {which}: {len(messages)} messages, {len(expected.messages)} expected ({detail})")


def _recovers(report: Report, port: int, sink: _Watching) -> None:
    time.sleep(1.0)
    with IgtlServer(port=port, name="Back") as back:
        start = time.monotonic()
        sink.hostile = []
        raw = encode_string("Back", "again")

        def there() -> bool:
            back.publish("Back", lambda _version: raw)
            return raw in sink.hostile

        report.need(_wait(there, 5.0), "the source did not come back within 5 s")
        report.recovery_s = time.monotonic() - start
        report.need(report.recovery_s <= RECOVERY_S, f"back after {report.recovery_s:.2f} s, limit {RECOVERY_S} s")


def main() -> int:
    """Run from the command line; 0 when everything held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000, help="to the server; a fifth of it from the source")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    logging.getLogger("drivers").setLevel(logging.CRITICAL)
    out = {
        "server": attack_server(options.connections, options.seed),
        "source": attack_source(options.connections // 5, options.seed),
    }
    json.dump({name: vars(report) for name, report in out.items()}, sys.stdout, indent=1)
    sys.stdout.write("\n")
    return 1 if any(report.failures for report in out.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
