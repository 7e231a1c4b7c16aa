"""What must hold for any bytes at all. Shared by the mutation fuzzer, the coverage-guided one, and the negative cases.

The framing is checked against `expected_framing`, which is written after the protocol's document and shares no code
with the framer; the CRC in it is another program's. Values are checked against the numbers that stand in the bytes.
"""

from __future__ import annotations

import functools
import json
import math
import random
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import crcmod
import numpy as np

from drivers.openigtlink.codec import FARTHEST_MM, decode
from drivers.openigtlink.contents import SCALAR_TYPES, Content, ImageContent, unpack_message
from drivers.openigtlink.crc64 import crc64
from drivers.openigtlink.errors import ContentError, EncodeError, PeerGone, WireError
from drivers.openigtlink.framing import Framer
from drivers.openigtlink.json_form import message_as_json, message_from_json
from drivers.openigtlink.receiver import Kind, Outcome, ReceiveRing
from drivers.openigtlink.wire import HEADER_SIZE, Limits, WireMessage, parse_message, repack_message
from nav.config.room import ImageStreamConfig, SourceConfig, ToolStreamConfig
from nav.geometry.poses import PoseStatus
from nav.geometry.rigid import ORTHONORMAL_TOLERANCE
from nav.runtime.messages import ImageMessage, Message, PoseMessage, UnusedMessage

__all__ = [
    "LIMITS",
    "OPTIONS",
    "Framed",
    "Received",
    "by_framer",
    "check_content",
    "check_json",
    "check_stream",
    "expected_framing",
    "make_ring",
]

#: Small enough that an announced size costs nothing; the real ones are `Limits()`.
LIMITS = Limits(decoded={name: min(limit, 1 << 18) for name, limit in Limits().decoded.items()}, kept=1 << 14,
                skipped=1 << 20)  # fmt: skip

#: What a room may say of a source: None for nothing at all.
OPTIONS: tuple[SourceConfig | None, ...] = (
    None,
    SourceConfig(
        name="a",
        port=1,
        origin_is_corner=True,
        coordinate_override="lps",
        endian_override="big",
        tools=(ToolStreamConfig(device="DeviceName", transform="NeedleToTracker"),),
        images=(ImageStreamConfig(device="Image", placed_by="header"),),
    ),
    SourceConfig(name="b", port=1, coordinate_override="ras", endian_override="little"),
)

_reference_crc = crcmod.mkCrcFun(0x142F0E1EBA9EA3693, initCrc=0, rev=False, xorOut=0)


@dataclass(frozen=True, slots=True)
class Framed:
    """What a stream holds: messages, types read past (the last one perhaps in part), whether it is given up, and how
    much there is of a message that is not complete."""

    messages: list[bytes]
    skipped: list[str]
    broken: bool
    pending: int


@dataclass(slots=True)
class Received:
    """What a reader made of a stream; ``error`` as text."""

    messages: list[bytes] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    error: str = ""
    pending: int = 0


def expected_framing(stream: bytes, limits: Limits) -> Framed:
    """The messages of a stream, straight from the protocol's document."""
    messages: list[bytes] = []
    skipped: list[str] = []
    at = 0
    while True:
        head = stream[at : at + 58]
        if len(head) < 58:
            return Framed(messages, skipped, False, len(head))
        version = int.from_bytes(head[:2], "big")
        size, crc = struct.unpack_from(">QQ", head, 42)
        name = head[2:14].split(b"\0")[0].rstrip(b" ")
        if version not in (1, 2) or not name or any(not 33 <= letter <= 126 for letter in name):
            return Framed(messages, skipped, True, 58)
        known = name.decode() in limits.decoded
        if size > (limits.decoded[name.decode()] if known else limits.skipped):
            return Framed(messages, skipped, True, 58)
        body = stream[at + 58 : at + 58 + size]
        keep = known or size <= limits.kept
        if not keep:
            skipped.append(name.decode())
        if len(body) < size:
            return Framed(messages, skipped, False, 58 + len(body) if keep else 58)
        if keep and _reference_crc(body) != crc:
            return Framed(messages, skipped, True, 58 + size)
        if keep:
            messages.append(stream[at : at + 58 + size])
        at += 58 + size


def by_framer(pieces: Sequence[bytes], limits: Limits) -> Received:
    """The framer, fed piece by piece."""
    framer = Framer(limits)
    got = Received()
    try:
        for piece in pieces:
            got.messages += framer.feed(piece)
        if framer.broken is not None:
            raise framer.broken
        framer.close()
    except (WireError, PeerGone) as error:
        got.error = f"{type(error).__name__}: {error}"
    got.skipped = list(framer.skipped.elements())
    got.pending = framer.pending
    return got


def by_writable(pieces: Sequence[bytes], limits: Limits) -> Received:
    """The framer as the server uses it: bytes go straight into the place that it names."""
    framer = Framer(limits)
    got = Received()
    try:
        for piece in pieces:
            rest = memoryview(piece)
            while len(rest):
                room = framer.writable()
                count = min(len(room), len(rest))
                room[:count] = rest[:count]
                got.messages += framer.advance(count)
                rest = rest[count:]
        if framer.broken is not None:
            raise framer.broken
        framer.close()
    except (WireError, PeerGone) as error:
        got.error = f"{type(error).__name__}: {error}"
    got.skipped = list(framer.skipped.elements())
    return got


def make_ring(limits: Limits = LIMITS) -> ReceiveRing:
    """A small ring for `by_kernel`."""
    return ReceiveRing(limits, ring_bytes=1 << 18, descriptors=64, slots=3)


#: What may be under way in a pair of sockets without anybody reading.
KERNEL_BYTES, KERNEL_PIECES = 100_000, 60


def by_kernel(ring: ReceiveRing, pieces: Sequence[bytes]) -> Received:
    """The receive kernel, in this thread: each piece is one ``recv`` (they are packets)."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    got = Received()
    try:
        for piece in pieces:
            left.send(piece)
        left.shutdown(socket.SHUT_WR)
        ring.open(right.fileno())
        leads = False
        while True:
            try:
                outcome = ring.receive(leads)
            except (WireError, PeerGone) as error:
                got.error = f"{type(error).__name__}: {error}"
                got.pending = ring.pending
                break
            if outcome is not Outcome.DELIVER:
                raise AssertionError(f"the kernel came back with {outcome}")
            leads = False
            _drain(ring, got)
        if ring.claim():
            _drain(ring, got)
        ring.shut()
        ring.resign()
    finally:
        left.close()
        right.close()
    return got


def _drain(ring: ReceiveRing, got: Received) -> None:
    while (entry := ring.take()) is not None:
        if entry.kind is Kind.MESSAGE:
            got.messages.append(bytes(entry.raw))
        elif entry.kind is Kind.SKIPPED:
            got.skipped.append(bytes(entry.raw[2:14]).split(b"\0")[0].rstrip(b" ").decode())
        else:
            raise AssertionError(f"the kernel gave up {entry}")


def check_stream(
    stream: bytes, pieces: Sequence[bytes], limits: Limits = LIMITS, ring: ReceiveRing | None = None
) -> Received:
    """Framing, in any split, by the framer and (with ``ring``) by the receive kernel; returns what the framer gave."""
    expected = expected_framing(stream, limits)
    got = by_framer([stream], limits)
    _same("the framer", got, expected)
    if len(pieces) != 1:
        _equal("the framer, split", by_framer(pieces, limits), got)
        _equal("the framer, written into", by_writable(pieces, limits), got, pending=False)
    if ring is not None and len(stream) <= KERNEL_BYTES and len(pieces) <= KERNEL_PIECES:
        kernel = by_kernel(ring, pieces)
        if not got.error and kernel.error == "PeerGone: the peer closed the connection":
            kernel.error = ""
        if len(got.skipped) == len(kernel.skipped) + 1 and "in the middle" in kernel.error:
            kernel.skipped = got.skipped  # the kernel tells of a message when it has read past all of it
        _equal("the receive kernel", kernel, got, pending=False)
    return got


def _same(who: str, got: Received, expected: Framed) -> None:
    assert got.messages == expected.messages, f"{who}: {len(got.messages)} messages, {len(expected.messages)} expected"
    assert sorted(got.skipped) == sorted(expected.skipped), f"{who}: skipped {got.skipped}, not {expected.skipped}"
    kind = "WireError" if expected.broken else "PeerGone" if expected.pending else ""
    assert got.error.partition(":")[0] == kind, f"{who}: {got.error!r}, expected {kind or 'no error'}"
    if not expected.broken:
        assert got.pending == expected.pending, f"{who}: {got.pending} bytes pending, {expected.pending} expected"


def _equal(who: str, got: Received, other: Received, *, pending: bool = True) -> None:
    assert got.messages == other.messages, f"{who}: {len(got.messages)} messages, {len(other.messages)} otherwise"
    assert sorted(got.skipped) == sorted(other.skipped), f"{who}: skipped {got.skipped}, {other.skipped} otherwise"
    assert got.error == other.error, f"{who}: {got.error!r}, {other.error!r} otherwise"
    if pending:
        assert got.pending == other.pending, f"{who}: {got.pending} bytes pending, {other.pending} otherwise"


# ------------------------------------------------------------------------------------------------------------- content


def check_content(raw: bytes, options: SourceConfig | None = None) -> str:
    """A framed message: taken apart, written again, decoded. Returns what became of it, in a word."""
    message: WireMessage | None = None
    content: Content | None = None
    problem, offset = "", 0
    try:
        message = parse_message(raw)
        content = unpack_message(message)
    except ContentError as error:
        problem, offset = str(error), error.offset
    assert 0 <= offset <= len(raw), f"error at byte {offset} of {len(raw)}: {problem}"
    if message is not None:
        assert repack_message(message) == raw, "repack_message gives other bytes"
    outcome = "refused" if problem else "unknown type" if content is None else "read"
    if content is not None:
        assert message is not None
        try:
            packed, reason = content.pack(), ""
        except EncodeError as error:
            packed, reason = b"", str(error)
            outcome = "read, not to be sent"
        assert reason or packed == message.content, f"{type(content).__name__}.pack gives other bytes"
    decoded = decode(raw, source="s", sequence=3, arrival_ns=5, options=options)
    _check_decoded(raw, decoded, message, content, problem)
    return f"{outcome}: {type(decoded).__name__}"


def _check_decoded(
    raw: bytes, decoded: Message, message: WireMessage | None, content: Content | None, problem: str
) -> None:
    assert (decoded.source, decoded.sequence, decoded.arrival_ns) == ("s", 3, 5)
    seconds, fraction = struct.unpack_from(">II", raw, 34)
    if seconds == fraction == 0:
        assert decoded.sender_ns is None
    else:
        assert decoded.sender_ns is not None
        # Whole numbers: the nearest nanosecond.
        assert abs((decoded.sender_ns << 32) - 10**9 * ((seconds << 32) + fraction)) <= 1 << 31, "another time"
    if problem:
        assert isinstance(decoded, UnusedMessage), f"{type(decoded).__name__} of a content that is refused: {problem}"
        # What nobody uses is kept as it came: it is taken apart only where somebody looks at it.
        assert decoded.problem or decoded.type_name not in _USED, f"no reason for a content that is refused: {problem}"
        return
    assert message is not None
    if isinstance(decoded, PoseMessage):
        _check_poses(decoded, message)
    elif isinstance(decoded, ImageMessage):
        _check_image(decoded, message, content)
    if isinstance(content, ImageContent) and not isinstance(decoded, ImageMessage):
        assert isinstance(decoded, UnusedMessage)
        assert decoded.problem


_USED = ("TRANSFORM", "POSITION", "QTRANS", "TDATA", "QTDATA", "IMAGE", "VIDEO", "STATUS", "STRING")
_TOOL_AT = {"TDATA": (70, 22), "QTDATA": (50, 22)}


def _check_poses(decoded: PoseMessage, message: WireMessage) -> None:
    """Rigid and finite where OK, nothing at all where not; and the very numbers that stand in the bytes."""
    body = bytes(message.content)
    type_name = str(message.type_name)
    if type_name in _TOOL_AT:
        assert len(decoded.tools) * _TOOL_AT[type_name][0] == len(body)
    else:
        assert len(decoded.tools) == 1
    for n, tool in enumerate(decoded.tools):
        if tool.status is not PoseStatus.OK:
            assert tool.matrix is None, "a tool that is not seen has a matrix"
            continue
        m = tool.matrix
        assert m is not None
        assert m.shape == (4, 4)
        assert m.dtype == np.float64
        assert not m.flags.writeable
        rows = m.tolist()
        assert rows[3] == [0.0, 0.0, 0.0, 1.0]
        r = [row[:3] for row in rows[:3]]
        assert all(math.isfinite(x) for row in rows for x in row), "a pose that is not finite"
        assert all(abs(row[3]) <= FARTHEST_MM for row in rows[:3])
        for a in range(3):
            for b in range(3):
                product = sum(r[k][a] * r[k][b] for k in range(3))
                assert abs(product - (a == b)) <= ORTHONORMAL_TOLERANCE * 1.001, "a pose that is no rotation"
        assert (
            r[0][0] * (r[1][1] * r[2][2] - r[1][2] * r[2][1])
            - r[0][1] * (r[1][0] * r[2][2] - r[1][2] * r[2][0])
            + r[0][2] * (r[1][0] * r[2][1] - r[1][1] * r[2][0])
            > 0.0
        ), "a pose that mirrors"
        size, at = _TOOL_AT.get(type_name, (0, 0))
        at += n * size
        if type_name in ("TRANSFORM", "TDATA"):
            wire = struct.unpack_from(">12f", body, at)
            assert [rows[i][j] for j in range(4) for i in range(3)] == list(wire), "other numbers than on the wire"
        else:
            assert [rows[i][3] for i in range(3)] == list(struct.unpack_from(">3f", body, at))
            _check_quaternion(r, struct.unpack_from(f">{min((len(body) - at - 12) // 4, 4)}f", body, at + 12))


def _check_quaternion(r: list[list[float]], q: tuple[float, ...]) -> None:
    """The rotation turns its own axis into itself, by the angle that the quaternion says."""
    if not q:
        assert r == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
        return
    x, y, z = q[:3]
    w = q[3] if len(q) == 4 else math.sqrt(max(0.0, 1.0 - x * x - y * y - z * z))
    norm2 = x * x + y * y + z * z + w * w
    for row, axis in zip(r, (x, y, z), strict=True):
        assert abs(row[0] * x + row[1] * y + row[2] * z - axis) <= 1e-6 * (1 + abs(axis))
    assert abs(r[0][0] + r[1][1] + r[2][2] - (4 * w * w / norm2 - 1)) <= 1e-6


def _check_image(decoded: ImageMessage, message: WireMessage, content: Content | None) -> None:
    m = decoded.mm_from_index
    assert np.isfinite(m).all(), "an image whose place is not finite"
    assert abs(np.linalg.det(m[:3, :3])) > 0.0, "an image without volume"
    assert not decoded.array.flags.writeable or message.type_name == "VIDEO"
    if not isinstance(content, ImageContent):
        return
    components = () if content.components == 1 else (content.components,)
    assert decoded.array.shape == (*content.part[::-1], *components)
    assert decoded.array.dtype == np.dtype(SCALAR_TYPES[content.scalar])
    assert decoded.index_offset == content.offset
    assert decoded.array.nbytes == len(content.pixels)
    if decoded.array.dtype.itemsize == 1:
        assert decoded.array.tobytes() == content.pixels


def check_json(raw: bytes) -> None:
    """As JSON and back, byte for byte, or refused with the reason."""
    try:
        written = message_as_json(raw)
    except ContentError:
        return
    again = message_from_json(json.loads(json.dumps(written, allow_nan=False)))
    assert again == raw, "other bytes after JSON"


@functools.cache
def compiled() -> None:
    """Load all kernels now, so that no message pays for it."""
    crc64(b"123456789")
    make_ring()


def split(stream: bytes, rng: random.Random) -> list[bytes]:
    """The stream in pieces as a network may deliver it; none is empty, none larger than 64 KiB."""
    cuts = sorted(
        {rng.randrange(1, len(stream)) for _ in range(rng.choice((1, 2, 3, 8, 40)))} if len(stream) > 1 else ()
    )
    if rng.random() < 0.3:
        cuts = sorted({*cuts, *(n for n in (57, 58, 59, 70) if n < len(stream))})
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    return [piece[n : n + 65_536] for piece in pieces for n in range(0, len(piece), 65_536)]


assert HEADER_SIZE == 58
