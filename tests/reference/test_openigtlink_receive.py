"""The receive kernel against its plain twin, `Framer`: the same bytes give the same messages and the same error."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from numba import config as numba_config

from drivers.openigtlink.codec import encode_image, encode_status, encode_transform
from drivers.openigtlink.framing import Framer
from drivers.openigtlink.receiver import Kind, ReceiveRing
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
    """A ring at one end of a TCP connection, received into by a thread of its own."""

    def __init__(self, ring: ReceiveRing) -> None:
        self.ring = ring
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.peer = socket.create_connection(listener.getsockname())
            self.sock, _ = listener.accept()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50_000))
        self.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.error = ""
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.ring.receive(self.sock.fileno())
        except (WireError, PeerGone, OSError) as problem:
            self.error = str(problem)

    def end(self) -> None:
        self.ring.stop()
        for sock in (self.peer, self.sock):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.thread.join(5)
        self.peer.close()
        self.sock.close()


@pytest.fixture
def ring() -> Iterator[ReceiveRing]:
    ring = ReceiveRing(LIMITS)
    yield ring
    ring.close()


def by_kernel(ring: ReceiveRing, pieces: list[bytes]) -> tuple[list[bytes], list[str], str]:
    receiving = Receiving(ring)
    taken = []
    try:
        with contextlib.suppress(OSError):  # the receiver has given up before the end of the stream
            for piece in pieces:
                receiving.peer.sendall(piece)
        with contextlib.suppress(OSError):
            receiving.peer.shutdown(socket.SHUT_WR)
        receiving.thread.join(10)
        assert not receiving.thread.is_alive()
        while (entry := ring.take()) is not None:
            taken.append(entry)
    finally:
        receiving.end()
        ring._control[0] = 0  # the next connection of the test uses the same ring
    arrivals = [t.arrival_ns for t in taken]
    assert arrivals == sorted(arrivals)
    messages = [bytes(t.raw) for t in taken if t.kind is Kind.MESSAGE]
    skipped = [t.raw[2:14].rstrip(b"\0").decode() for t in taken if t.kind is Kind.SKIPPED]
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
    receiving = Receiving(ring)
    sent = [encode_status("S", text=str(n)) for n in range(5000)]
    sender = threading.Thread(target=lambda: receiving.peer.sendall(b"".join(sent)))
    sender.start()
    taken: list[bytes] = []
    try:
        while ring.waits == 0:
            pass
        while len(taken) < len(sent):
            for _ in range(ring.wait()):
                entry = ring.take()
                assert entry is not None
                taken.append(bytes(entry.raw))
    finally:
        receiving.end()
        sender.join(5)
        ring.close()
    assert taken == sent


def test_half_messages_of_many_connections_do_not_fill_the_ring() -> None:
    ring = ReceiveRing(LIMITS, ring_bytes=1)
    half = encode_status("S", text="x" * 60_000)[:-1]
    for _ in range(12):
        assert by_kernel(ring, [half])[0] == []
    assert by_kernel(ring, [GOOD[0]])[0] == [GOOD[0]]
    ring.close()


def test_newest_images_stay_and_those_given_up_are_named() -> None:
    """Nobody takes: poses stay all, each stream keeps its newest image, the others are counted by name."""
    ring = ReceiveRing(LIMITS, slots=3)
    ultrasound = [image(300 + n, "Ultrasound") for n in range(6)]
    fluoro = image(290, "Fluoro")
    poses = [encode_transform(f"T{n}", EYE) for n in range(6)]
    stream = [fluoro]
    for a, b in zip(ultrasound, poses, strict=True):
        stream += [a, b]
    receiving = Receiving(ring)
    try:
        for raw in stream:
            receiving.peer.sendall(raw)
        receiving.peer.shutdown(socket.SHUT_WR)
        receiving.thread.join(10)
        taken = [ring.take() for _ in stream]
        assert ring.take() is None
    finally:
        receiving.end()
        ring.close()
    kept = [bytes(t.raw) for t in taken if t is not None and t.kind is Kind.MESSAGE]
    dropped = [bytes(t.raw[14:34]).rstrip(b"\0") for t in taken if t is not None and t.kind is Kind.DROPPED]
    assert kept == [fluoro, *poses[:4], ultrasound[4], poses[4], ultrasound[5], poses[5]]
    assert dropped == [b"Ultrasound"] * 4


def test_a_taken_image_is_not_overwritten_by_those_that_follow(ring: ReceiveRing) -> None:
    receiving = Receiving(ring)
    sent = [image(300 + n) for n in range(40)]
    held = []
    try:
        for raw in sent:
            receiving.peer.sendall(raw)
            for _ in range(ring.wait()):
                entry = ring.take()
                assert entry is not None
                held.append(entry.raw)
    finally:
        receiving.end()
    assert [bytes(raw) for raw in held] == sent
    assert all(isinstance(raw, memoryview) and raw.readonly for raw in held)


def test_notes_keep_their_place(ring: ReceiveRing) -> None:
    ring.post("first", 5)
    by_kernel_messages = Receiving(ring)
    by_kernel_messages.peer.sendall(GOOD[0])
    by_kernel_messages.peer.shutdown(socket.SHUT_WR)
    by_kernel_messages.thread.join(5)
    ring.post("last", 9)
    by_kernel_messages.end()
    taken = []
    while (entry := ring.take()) is not None:
        taken.append(entry.note if entry.kind is Kind.NOTE else bytes(entry.raw))
    assert taken == ["first", GOOD[0], "last"]


def test_silence_and_a_message_that_does_not_get_on(ring: ReceiveRing) -> None:
    def run(pieces: list[bytes], **limits: int) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        peer = socket.create_connection(listener.getsockname())
        sock, _ = listener.accept()
        listener.close()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 20_000))
        with peer, sock:
            for piece in pieces:
                peer.sendall(piece)
            with pytest.raises(PeerGone) as gone:
                ring.receive(sock.fileno(), **limits)
        return str(gone.value)

    assert "nothing received for 0." in run([GOOD[0]], silent_ns=150_000_000)
    assert "not complete after 0." in run([GOOD[0], GOOD[0][:70]], stall_ns=150_000_000)
    assert "not complete after 0." in run([GOOD[0][:7]], stall_ns=150_000_000)
