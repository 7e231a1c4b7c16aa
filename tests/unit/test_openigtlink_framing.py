"""Framing: any split of the bytes, limits before buffers, and damage that ends the stream."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from drivers.openigtlink.codec import encode_image, encode_status, encode_string, encode_transform
from drivers.openigtlink.framing import Framer
from drivers.openigtlink.wire import HEADER_SIZE, Limits, PeerGone, WireError, pack_message

EYE = np.eye(4)


def one(device: str = "NeedleToTracker") -> bytes:
    return encode_transform(device, EYE, sender_ns=1_700_000_000_123_456_789)


def header(version: int = 1, type_name: bytes = b"TRANSFORM", body: int = 48, crc: int = 0) -> bytes:
    return struct.pack(">H12s20sIIQQ", version, type_name, b"Device", 0, 0, body, crc)


def receive(framer: Framer, data: bytes) -> list[bytes]:
    """As a socket would: into the framer's own memory, as much as fits."""
    out: list[bytes] = []
    at = 0
    while at < len(data):
        place = framer.writable()
        n = min(len(place), len(data) - at)
        place[:n] = data[at : at + n]
        out += framer.advance(n)
        at += n
    return out


def test_every_fixture_split_at_every_offset(shared_data: Path) -> None:
    for file in sorted((shared_data / "openigtlink").glob("*.bin")):
        raw = file.read_bytes()
        for cut in range(len(raw) + 1):
            framer = Framer()
            assert framer.feed(raw[:cut]) + framer.feed(raw[cut:]) == [raw], f"{file.name} cut at {cut}"
            framer.close()


def test_fixtures_byte_by_byte_and_all_at_once(shared_data: Path) -> None:
    messages = [f.read_bytes() for f in sorted((shared_data / "openigtlink").glob("*.bin"))]
    assert len(messages) == 24
    stream = b"".join(messages)
    slow, fast = Framer(), Framer()
    assert [m for n in range(len(stream)) for m in slow.feed(stream[n : n + 1])] == messages
    assert receive(fast, stream) == messages


def test_large_bodies_are_received_in_place_in_random_pieces() -> None:
    rng = random.Random(5)
    image = encode_image("Image", np.arange(300_000, dtype=np.uint16).reshape(1, 500, 600), EYE)
    messages = [one(), image, one(), encode_string("Text", "x" * 5000), image, image, one()]
    stream = b"".join(messages)
    for _ in range(5):
        framer, out, at = Framer(), [], 0
        while at < len(stream):
            place = framer.writable()
            n = min(len(place), len(stream) - at, rng.choice((1, 57, 58, 59, 1000, 70_000, 400_000)))
            place[:n] = stream[at : at + n]
            out += framer.advance(n)
            at += n
        assert out == messages
        assert framer.pending == 0


def test_messages_are_immutable_and_own_their_bytes() -> None:
    framer = Framer()
    data = bytearray(one())
    (raw,) = framer.feed(data)
    data[:] = bytes(len(data))
    assert isinstance(raw, bytes)
    assert raw == one()


@pytest.mark.parametrize("version", [0, 3, 4, 65535])
def test_other_header_versions_are_refused(version: int) -> None:
    with pytest.raises(WireError, match="header version") as caught:
        Framer().feed(header(version=version))
    assert (caught.value.offset, caught.value.value) == (0, version)


@pytest.mark.parametrize("type_name", [b"", b"\xff\xfeABC", b"TRANS FORM\x01", b"\0TRANSFORM", b"   "])
def test_a_type_that_is_no_name_means_lost_step(type_name: bytes) -> None:
    with pytest.raises(WireError, match="message type"):
        Framer().feed(header(type_name=type_name))


@pytest.mark.parametrize(
    ("type_name", "size"),
    [(b"TRANSFORM", (1 << 16) + 1), (b"IMAGE", (1 << 27) + 1), (b"STRING", 1 << 40), (b"POLYDATA", 1 << 63)],
)
def test_size_is_refused_on_the_header_alone(type_name: bytes, size: int) -> None:
    framer = Framer()
    with pytest.raises(WireError, match="body size") as caught:
        framer.feed(header(type_name=type_name, body=size))
    assert (caught.value.offset, caught.value.value) == (42, size)
    assert str(size) in str(caught.value)


def test_no_room_is_made_for_a_refused_body() -> None:
    tracemalloc.start()
    with pytest.raises(WireError):
        Framer().feed(header(type_name=b"IMAGE", body=1 << 33))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_one_flipped_bit_anywhere_in_the_body_is_noticed() -> None:
    raw = one()
    for bit in range(8 * HEADER_SIZE, 8 * len(raw)):
        bad = bytearray(raw)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError, match="CRC") as caught:
            Framer().feed(bad)
        assert caught.value.offset == 50


def test_broken_stream_stays_broken() -> None:
    framer = Framer()
    bad = bytearray(one())
    bad[-1] ^= 1
    with pytest.raises(WireError):
        framer.feed(bad)
    with pytest.raises(WireError):
        framer.feed(one())
    with pytest.raises(WireError):
        framer.advance(1)


def test_good_messages_before_the_damage_are_delivered() -> None:
    framer = Framer()
    bad = bytearray(one())
    bad[60] ^= 1
    assert framer.feed(one() + one() + bad + one()) == [one(), one()]
    assert framer.broken is not None
    with pytest.raises(WireError, match="CRC"):
        framer.feed(b"")


def test_crc_check_can_be_switched_off_for_diagnosis() -> None:
    bad = bytearray(one())
    bad[-1] ^= 1
    assert Framer(check_crc=False).feed(bad) == [bytes(bad)]


def test_end_in_the_middle_is_said_and_between_messages_is_not() -> None:
    framer = Framer()
    framer.feed(one())
    framer.close()
    framer.feed(one()[:30])
    with pytest.raises(PeerGone, match="30 bytes"):
        framer.close()
    framer.feed(one()[30:80])
    with pytest.raises(PeerGone) as caught:
        framer.close()
    assert caught.value.pending == 80


def test_unknown_types_are_whole_up_to_a_limit_then_skipped_and_counted() -> None:
    limits = Limits(kept=100, skipped=100_000)
    framer = Framer(limits)
    small, large = pack_message("WHATEVER", "X", bytes(100)), pack_message("WHATEVER", "X", bytes(90_000))
    assert framer.feed(small + large + one()) == [small, one()]
    assert framer.skipped == {"WHATEVER": 1}
    assert [m for n in large + one() for m in framer.feed(bytes([n]))] == [one()]
    assert receive(framer, large + large + one()) == [one()]
    assert framer.skipped == {"WHATEVER": 4}


def test_end_while_skipping_is_in_the_middle() -> None:
    framer = Framer(Limits(kept=10))
    framer.feed(pack_message("WHATEVER", "X", bytes(1000))[:-1])
    assert framer.expected > framer.pending > 0
    with pytest.raises(PeerGone):
        framer.close()


def test_empty_body() -> None:
    raw = pack_message("GET_STATUS", "X", b"")
    assert Framer().feed(raw + raw) == [raw, raw]


def test_expected_size_is_known_once_the_header_is() -> None:
    framer = Framer()
    raw = encode_status("Server", text="hello")
    framer.feed(raw[:20])
    assert framer.expected == HEADER_SIZE
    framer.feed(raw[20:60])
    assert framer.expected == len(raw)
