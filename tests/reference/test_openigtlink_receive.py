"""The receive kernel against its plain twin, `Framer`: the same bytes give the same messages and the same error."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time

import numpy as np
import pytest
from numba import config as numba_config

from drivers.openigtlink.codec import encode_image, encode_status, encode_transform
from drivers.openigtlink.framing import Framer
from drivers.openigtlink.receive_kernel import DELIVERING, STOP
from drivers.openigtlink.receiver import Kind, Outcome, ReceiveRing, Taken
from drivers.openigtlink.wire import Limits, PeerGone, WireError, pack_message

pytestmark = pytest.mark.skipif(
    bool(numba_config.DISABLE_JIT), reason="the kernel calls the C library, which plain Python cannot do for it"
)

EYE = np.eye(4)
LIMITS = Limits(decoded={"TRANSFORM": 1000, "STATUS": 1 << 17, "IMAGE": 1 << 22}, kept=200_000, skipped=600_000)


def image(n: int, name: str = "Image") -> bytes:
    rng = np.random.default_rng(n)
    return encode_image(name, rng.integers(0, 255, (n, n), dtype=np.uint8), EYE)


def other(size: int, name: str = "Thing") -> bytes:
    return pack_message("SENSOR", name, bytes(size))


def by_framer(stream: bytes, limits: Limits = LIMITS) -> tuple[list[bytes], list[str], str]:
    framer = Framer(limits)
    messages: list[bytes] = []
    error = ""
    try:
        messages = framer.feed(stream)
        if framer.broken is not None:
            raise framer.broken
        framer.close()
    except (WireError, PeerGone) as problem:
        error = str(problem)
    return messages, list(framer.skipped.elements()), error or "the peer closed the connection"


class Receiving:
    """A ring at one end of a TCP connection: two threads that lead and deliver in turn, as a source has them.

    Parameters
    ----------
    busy : bool
        Nobody delivers: whoever should is thought to be busy all the time.
    """

    def __init__(self, ring: ReceiveRing, *, busy: bool = False, **limits: int) -> None:
        self.ring = ring
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.peer = socket.create_connection(listener.getsockname())
            self.sock, _ = listener.accept()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 20_000))
        self.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.taken: list[Taken] = []
        self.error = ""
        self.ended = threading.Event()
        ring._control[STOP] = 0
        ring._control[DELIVERING] = busy
        ring.open(self.sock.fileno(), **limits)
        self.threads = [threading.Thread(target=self._run) for _ in range(2)]
        for thread in self.threads:
            thread.start()

    def _run(self) -> None:
        while True:
            try:
                outcome = self.ring.receive(False)
            except (WireError, PeerGone, OSError) as problem:
                self.error = str(problem)
                break
            if outcome is not Outcome.DELIVER:
                break
            self.drain()
        self.ring.stop()  # for the other thread, too
        if self.ring.claim():
            self.drain()
        self.ring.resign()
        self.ended.set()

    def drain(self) -> None:
        while (entry := self.ring.take()) is not None:
            self.taken.append(entry)

    def wait(self) -> None:
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()

    def end(self) -> None:
        self.ring.stop()
        for sock in (self.peer, self.sock):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.wait()
        self.peer.close()
        self.sock.close()


@pytest.fixture
def ring() -> ReceiveRing:
    return ReceiveRing(LIMITS)


def by_kernel(ring: ReceiveRing, pieces: list[bytes]) -> tuple[list[bytes], list[str], str]:
    receiving = Receiving(ring)
    with contextlib.suppress(OSError):  # the receiver has given up before the end of the stream
        for piece in pieces:
            receiving.peer.sendall(piece)
    with contextlib.suppress(OSError):
        receiving.peer.shutdown(socket.SHUT_WR)
    receiving.wait()
    receiving.end()
    arrivals = [t.arrival_ns for t in receiving.taken]
    assert arrivals == sorted(arrivals)
    messages = [bytes(t.raw) for t in receiving.taken if t.kind is Kind.MESSAGE]
    skipped = [bytes(t.raw[2:14]).rstrip(b"\0").decode() for t in receiving.taken if t.kind is Kind.SKIPPED]
    return messages, skipped, receiving.error


def split(stream: bytes, rng: random.Random) -> list[bytes]:
    pieces, at = [], 0
    while at < len(stream):
        n = rng.choice((1, 5, 57, 58, 59, 106, 1000, 65_536, 70_000, 300_000))
        pieces.append(stream[at : at + n])
        at += n
    return pieces


GOOD = [
    encode_transform("NeedleToTracker", EYE, sender_ns=10**18),
    image(200),
    encode_status("S"),
    image(300),  # larger than the staging buffer
    other(0),
    other(199_999),
    other(250_000),  # read past
    encode_transform("A", EYE),
    image(256),
    pack_message("STATUS", "Server", b"\0\1" + bytes(28) + b"ok\0"),
    image(20),
]


def test_the_same_messages_in_any_split(ring: ReceiveRing) -> None:
    rng = random.Random(2)
    for _ in range(12):
        messages = rng.sample(GOOD, len(GOOD))
        stream = b"".join(messages)
        assert by_kernel(ring, split(stream, rng)) == by_framer(stream)


def test_blanks_behind_the_type_are_padding_and_stay_as_they_came(ring: ReceiveRing) -> None:
    raw = bytearray(encode_status("S"))
    raw[2:14] = b"STATUS      "
    assert by_kernel(ring, [bytes(raw)]) == by_framer(bytes(raw))


BAD = {
    "version 0": lambda raw: b"\0\0" + raw[2:],
    "version 3": lambda raw: b"\0\3" + raw[2:],
    "no type": lambda raw: raw[:2] + bytes(12) + raw[14:],
    "blank type": lambda raw: raw[:2] + b" " * 12 + raw[14:],
    "type with a control character": lambda raw: raw[:3] + b"\7" + raw[4:],
    "type beyond ASCII": lambda raw: raw[:3] + b"\xe4" + raw[4:],
    "size over the type's limit": lambda raw: raw[:42] + (1001).to_bytes(8, "big") + raw[50:],
    "huge size": lambda raw: raw[:42] + (1 << 40).to_bytes(8, "big") + raw[50:],
    "size with the highest bit": lambda raw: raw[:42] + b"\xff" * 8 + raw[50:],
    "crc": lambda raw: raw[:57] + bytes([raw[57] ^ 1]) + raw[58:],
    "body": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
    "cut": lambda raw: raw[:-1],
    "cut in the header": lambda raw: raw[:30],
}


@pytest.mark.parametrize("what", BAD)
def test_the_same_error_behind_the_same_good_messages(ring: ReceiveRing, what: str) -> None:
    stream = image(300) + GOOD[0] + BAD[what](GOOD[0])
    for pieces in ([stream], split(stream, random.Random(3))):
        assert by_kernel(ring, pieces) == by_framer(stream)
    assert by_kernel(ring, GOOD) == by_framer(b"".join(GOOD))  # nothing is left over for the next connection


def test_a_damaged_large_body_and_an_unknown_type_beyond_every_limit(ring: ReceiveRing) -> None:
    for bad in (image(300)[:-7] + b"damaged", other(700_000), image(300)[:-7]):
        stream = GOOD[0] + bad
        assert by_kernel(ring, split(stream, random.Random(4))) == by_framer(stream)


def test_every_small_message_is_kept_while_nobody_takes_any() -> None:
    """More than the ring holds: the socket waits, and nothing is lost or out of order."""
    ring = ReceiveRing(LIMITS, ring_bytes=1, descriptors=64)
    receiving = Receiving(ring, busy=True)
    sent = [encode_status("S", text=str(n)) for n in range(5000)]
    sender = threading.Thread(target=lambda: receiving.peer.sendall(b"".join(sent)))
    sender.start()
    while ring.waits == 0:
        time.sleep(0.001)
    receiving.drain()  # whoever was busy is done; from here on the threads deliver
    sender.join(5)
    receiving.peer.shutdown(socket.SHUT_WR)
    receiving.wait()
    receiving.end()
    assert [bytes(t.raw) for t in receiving.taken] == sent


@pytest.mark.parametrize("what", ["descriptors", "bytes", "slots"])
def test_a_small_ring_is_delivered_when_it_is_full(what: str) -> None:
    sizes = {"descriptors": {"descriptors": 1}, "bytes": {"ring_bytes": 1}, "slots": {"slots": 1}}[what]
    body = {"descriptors": 10, "bytes": 60_000, "slots": 100_000}[what]
    sent = [other(body, f"N{n}") for n in range(40)]
    assert by_kernel(ReceiveRing(LIMITS, **sizes), [b"".join(sent)])[0] == sent


def test_half_messages_of_many_connections_do_not_fill_the_ring() -> None:
    ring = ReceiveRing(LIMITS, ring_bytes=1)
    half = encode_status("S", text="x" * 60_000)[:-1]
    for _ in range(12):
        assert by_kernel(ring, [half])[0] == []
    assert by_kernel(ring, [GOOD[0]])[0] == [GOOD[0]]


def test_newest_images_stay_and_those_given_up_are_named() -> None:
    """Nobody takes: poses stay all, each stream keeps its newest image, the others are counted by name."""
    ring = ReceiveRing(LIMITS, slots=3)
    ultrasound = [image(300 + n, "Ultrasound") for n in range(6)]
    fluoro = image(290, "Fluoro")
    poses = [encode_transform(f"T{n}", EYE) for n in range(6)]
    stream = [fluoro]
    for a, b in zip(ultrasound, poses, strict=True):
        stream += [a, b]
    receiving = Receiving(ring, busy=True)
    receiving.peer.sendall(b"".join(stream))
    receiving.peer.shutdown(socket.SHUT_WR)
    receiving.wait()
    receiving.drain()
    receiving.end()
    kept = [bytes(t.raw) for t in receiving.taken if t.kind is Kind.MESSAGE]
    dropped = [bytes(t.raw[14:34]).rstrip(b"\0") for t in receiving.taken if t.kind is Kind.DROPPED]
    assert kept == [fluoro, *poses[:4], ultrasound[4], poses[4], ultrasound[5], poses[5]]
    assert dropped == [b"Ultrasound"] * 4


def test_a_taken_image_is_not_overwritten_by_those_that_follow(ring: ReceiveRing) -> None:
    receiving = Receiving(ring)
    sent = [image(300 + n) for n in range(40)] + [image(300, f"Same{n}") for n in range(40)]
    for n, raw in enumerate(sent):
        receiving.peer.sendall(raw)
        end = time.monotonic() + 5
        while len(receiving.taken) <= n and time.monotonic() < end:
            time.sleep(0.0005)
    receiving.end()
    assert [bytes(t.raw) for t in receiving.taken] == sent
    assert all(isinstance(t.raw, memoryview) and t.raw.readonly for t in receiving.taken)


def test_notes_keep_their_place(ring: ReceiveRing) -> None:
    assert ring.post("first", 5)
    receiving = Receiving(ring, busy=True)
    receiving.peer.sendall(GOOD[0])
    receiving.peer.shutdown(socket.SHUT_WR)
    receiving.wait()
    assert ring.post("last", 9)
    receiving.drain()
    receiving.end()
    assert [t.note or bytes(t.raw) for t in receiving.taken] == ["first", GOOD[0], "last"]


def test_a_note_without_room_is_not_lost() -> None:
    ring = ReceiveRing(LIMITS, descriptors=2)
    assert ring.post(1, 0)
    assert ring.post(2, 0)
    assert not ring.post(3, 0)
    assert ring.claim()
    assert not ring.claim()
    first, second = ring.take(), ring.take()
    assert ring.take() is None
    assert first is not None
    assert second is not None
    assert (first.note, second.note) == (1, 2)
    assert not ring.claim()
    assert ring.post(3, 0)


@pytest.mark.parametrize(
    ("pieces", "limits", "text"),
    [
        ([GOOD[0]], {"silent_ns": 150_000_000}, "nothing received for 0."),
        ([GOOD[0], GOOD[0][:70]], {"stall_ns": 150_000_000}, "not complete after 0."),
        ([GOOD[0][:7]], {"stall_ns": 150_000_000}, "not complete after 0."),
        ([other(250_000)[:200_000]], {"stall_ns": 50_000_000}, "not complete after 0."),
        ([image(300)[:-1]], {"stall_ns": 50_000_000}, "not complete after 0."),
    ],
)
def test_silence_and_a_message_that_does_not_get_on(
    ring: ReceiveRing, pieces: list[bytes], limits: dict[str, int], text: str
) -> None:
    receiving = Receiving(ring, **limits)
    for piece in pieces:
        receiving.peer.sendall(piece)
    receiving.wait()
    receiving.end()
    assert text in receiving.error


def test_the_other_thread_receives_while_one_delivers(ring: ReceiveRing) -> None:
    """A delivery that takes its time: what comes meanwhile is stamped when it comes."""
    receiving = Receiving(ring, busy=True)  # the test delivers
    sent_ns = []
    for _ in range(10):
        sent_ns.append(time.monotonic_ns())
        receiving.peer.sendall(GOOD[0])
        time.sleep(0.01)
    receiving.drain()
    receiving.end()
    late_ms = (np.array([t.arrival_ns for t in receiving.taken]) - np.array(sent_ns)) / 1e6
    assert len(late_ms) == 10
    assert np.median(late_ms) < 8.0  # usually 0.1; 50 if the stamp waited for the delivery
