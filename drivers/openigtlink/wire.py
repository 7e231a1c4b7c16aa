"""The wire: header, stamps, extended header and metadata, size limits, and the two trees of errors.

All numbers of the protocol are big-endian. The header is 58 bytes::

    V u16 | TYPE char12 | NAME char20 | SECONDS u32 | FRACTION u32 | BODY u64 | CRC u64

Header version 2 puts a 12-byte extended header before the content and metadata behind it, both inside the body.
Source: OpenIGTLink protocol, https://github.com/openigtlink/OpenIGTLink/tree/master/Documents/Protocol.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from drivers.openigtlink.crc64 import crc64

__all__ = [
    "HEADER_SIZE",
    "ContentError",
    "EncodeError",
    "Header",
    "Limits",
    "PeerGone",
    "WireError",
    "WireMessage",
    "check_crc",
    "crc_mismatch",
    "ns_from_stamp",
    "pack_message",
    "parse_header",
    "parse_message",
    "stamp_from_ns",
]

HEADER_SIZE = 58
EXTENDED_HEADER_SIZE = 12
DEVICE_NAME_BYTES = 20
TYPE_NAME_BYTES = 12

#: IANA MIBenum numbers of the character sets used in the field.
ASCII, UTF8 = 3, 106

_HEADER = struct.Struct(">H12s20sIIQQ")
_EXTENDED = struct.Struct(">HHII")
_META_ENTRY = struct.Struct(">HHI")
_NS = 1_000_000_000


class WireError(ValueError):
    """The bytes are wrong.

    Attributes
    ----------
    offset : int
        Byte within the message at which the wrong field starts.
    value, limit : object
        What stands there, and what may.
    """

    def __init__(self, what: str, *, offset: int, value: object, limit: object) -> None:
        self.offset, self.value, self.limit = offset, value, limit
        super().__init__(f"{what}: {value!r} at byte {offset}, allowed: {limit}")


class ContentError(WireError):
    """A well-framed message whose content is wrong; the stream itself is still in step."""


class PeerGone(ConnectionError):
    """The peer closed, reset or stalled the connection; ``pending`` bytes of an unfinished message are lost."""

    def __init__(self, why: str, pending: int = 0) -> None:
        self.pending = pending
        super().__init__(f"{why}; {pending} bytes of an unfinished message are lost" if pending else why)


class EncodeError(ValueError):
    """A message that cannot be put on the wire as it is; names the field, its value and the limit."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest bodies, in bytes, checked on the header alone.

    Attributes
    ----------
    decoded : mapping
        Type name → limit of the types that are decoded; above it the connection is given up.
    kept : int
        Messages of other types are delivered whole up to here.
    skipped : int
        Beyond ``kept`` their bodies are read past without being kept, up to here; above it the connection is given up.
    """

    decoded: Mapping[str, int] = field(
        default_factory=lambda: {
            # Content and generous metadata; the exact content size is the codec's business.
            "TRANSFORM": 1 << 16,
            "POSITION": 1 << 16,
            "QTRANS": 1 << 16,
            "STATUS": 1 << 17,
            "STRING": 1 << 18,
            "TDATA": 1 << 20,
            "IMAGE": 1 << 27,
        }
    )
    kept: int = 1 << 22
    skipped: int = 1 << 28


@dataclass(frozen=True, slots=True)
class Header:
    """The 58 bytes, decoded. ``sender_ns`` is None when the stamp is zero (unused)."""

    version: int
    type_name: str
    device: str
    sender_ns: int | None
    body_size: int
    crc: int


@dataclass(frozen=True, slots=True)
class WireMessage:
    """A whole message, taken apart but not interpreted. ``content`` excludes extended header and metadata."""

    version: int
    type_name: str
    device: str
    sender_ns: int | None
    content: bytes | memoryview
    message_id: int = 0
    metadata: dict[str, str] = field(default_factory=dict)


def ns_from_stamp(seconds: int, fraction: int) -> int | None:
    """UTC ns since 1970 of a wire stamp (fraction in units of 2^-32 s); None for the unused stamp 0."""
    if seconds == 0 and fraction == 0:
        return None
    return seconds * _NS + ((fraction * _NS + (1 << 31)) >> 32)


def stamp_from_ns(ns: int | None) -> tuple[int, int]:
    """Seconds and fraction of a stamp; the nearest fraction, so that ns → stamp → ns is exact.

    Raises
    ------
    EncodeError
        When the time does not fit 32 bits of seconds (before 1970 or after February 2106).
    """
    if ns is None:
        return 0, 0
    if not 0 <= ns < (1 << 32) * _NS:
        raise EncodeError(f"sender_ns {ns}: must lie in 0 to {(1 << 32) * _NS - 1} (1970 to 2106)")
    seconds, rest = divmod(ns, _NS)
    return seconds, ((rest << 32) + _NS // 2) // _NS


def _text(raw: bytes) -> str:
    """Text of a fixed field: cut at the first NUL, anything that is not UTF-8 replaced."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def fixed_text(text: str, size: int, what: str) -> bytes:
    """``text`` as UTF-8, at most ``size`` bytes and free of NUL; `EncodeError` otherwise."""
    raw = text.encode("utf-8")
    if len(raw) > size or b"\0" in raw:
        raise EncodeError(
            f"{what} {text!r}: {len(raw)} bytes" + (" with a NUL" if b"\0" in raw else "") + f", limit {size} bytes "
            "without NUL; choose a shorter name (nothing is cut silently)"
        )
    return raw


@functools.lru_cache(maxsize=256)
def _type_name(raw: bytes) -> str:
    """The type's name, padded with NUL (or blanks, by some senders); empty when it is none."""
    name = raw.split(b"\0", 1)[0].rstrip(b" ")
    return name.decode("ascii") if all(0x21 <= b <= 0x7E for b in name) else ""


def parse_header(raw: bytes | bytearray | memoryview) -> Header:
    """Decode and check the first 58 bytes.

    Raises
    ------
    WireError
        When the version is not 1 or 2, or the type name is not printable ASCII: what follows cannot be framed.
    """
    if len(raw) < HEADER_SIZE:
        raise WireError("header", offset=0, value=f"{len(raw)} bytes", limit=f"{HEADER_SIZE} bytes")
    version, type_raw, name_raw, seconds, fraction, body_size, crc = _HEADER.unpack_from(raw)
    if version not in (1, 2):
        raise WireError("header version", offset=0, value=version, limit="1 or 2 (protocol 1 to 3)")
    type_name = _type_name(type_raw)
    if not type_name:
        raise WireError("message type", offset=2, value=bytes(type_raw), limit="1 to 12 printable ASCII characters")
    return Header(version, type_name, _text(name_raw), ns_from_stamp(seconds, fraction), body_size, crc)


def check_crc(header: Header, body: bytes | bytearray | memoryview) -> None:
    """Raise `WireError` when the body does not have the CRC that the header states."""
    found = crc64(body)
    if found != header.crc:
        raise crc_mismatch(header, found)


def crc_mismatch(header: Header, found: int) -> WireError:
    """What to raise for a body whose CRC is ``found``."""
    return WireError(
        f"CRC of {header.type_name} {header.device!r}",
        offset=50,
        value=f"{header.crc:016x}",
        limit=f"{found:016x} for the body received",
    )


def parse_message(raw: bytes | memoryview) -> WireMessage:
    """Take one whole message apart: header, extended header (its own size is honoured), content, metadata.

    The CRC is not checked again; the framer has done it.

    Raises
    ------
    WireError
        When ``raw`` is not exactly one message.
    ContentError
        When extended header or metadata contradict the body's size.
    """
    header = parse_header(raw)
    if len(raw) != HEADER_SIZE + header.body_size:
        raise WireError(
            "body size", offset=42, value=header.body_size, limit=f"{len(raw) - HEADER_SIZE}, the bytes that follow"
        )
    view = memoryview(raw)
    if header.version == 1:
        return WireMessage(1, header.type_name, header.device, header.sender_ns, view[HEADER_SIZE:])
    if header.body_size < EXTENDED_HEADER_SIZE:
        raise ContentError("body of a version 2 message", offset=42, value=header.body_size, limit="12 bytes or more")
    ext_size, meta_header_size, meta_size, message_id = _EXTENDED.unpack_from(raw, HEADER_SIZE)
    if not EXTENDED_HEADER_SIZE <= ext_size <= header.body_size:
        raise ContentError("extended header size", offset=58, value=ext_size, limit=f"12 to {header.body_size}")
    room = header.body_size - ext_size
    if meta_header_size + meta_size > room:
        raise ContentError(
            "metadata size", offset=60, value=meta_header_size + meta_size, limit=f"{room}, the rest of the body"
        )
    end = len(raw) - meta_header_size - meta_size
    metadata = _parse_metadata(view[end:], end, meta_header_size)
    return WireMessage(
        2, header.type_name, header.device, header.sender_ns, view[HEADER_SIZE + ext_size : end], message_id, metadata
    )


def _parse_metadata(view: memoryview, offset: int, header_size: int) -> dict[str, str]:
    if header_size == 0:
        if len(view):
            raise ContentError("metadata without an index", offset=offset, value=len(view), limit="0 bytes")
        return {}
    if header_size < 2:
        raise ContentError("metadata index size", offset=60, value=header_size, limit="0, or 2 + 8 per entry")
    count = int.from_bytes(view[:2], "big")
    if 2 + 8 * count != header_size:
        raise ContentError(
            "metadata entries", offset=offset, value=count, limit=f"{(header_size - 2) / 8:g} by the index size"
        )
    out: dict[str, str] = {}
    at = header_size
    for n in range(count):
        key_size, _, value_size = _META_ENTRY.unpack_from(view, 2 + 8 * n)
        if at + key_size + value_size > len(view):
            raise ContentError(
                f"metadata entry {n}", offset=offset + 2 + 8 * n, value=key_size + value_size, limit=len(view) - at
            )
        # Only ASCII (3) and UTF-8 (106) are in use, and the first is part of the second; anything else is replaced.
        key = bytes(view[at : at + key_size]).decode("utf-8", "replace")
        at += key_size
        out[key] = bytes(view[at : at + value_size]).decode("utf-8", "replace")
        at += value_size
    if at != len(view):
        raise ContentError("metadata size", offset=offset, value=len(view), limit=f"{at} by its entries")
    return out


def encode_text(text: str) -> tuple[int, bytes]:
    """Character set number and bytes: ASCII (3) where it suffices, else UTF-8 (106)."""
    return (ASCII, text.encode("ascii")) if text.isascii() else (UTF8, text.encode("utf-8"))


def _pack_metadata(metadata: Mapping[str, str]) -> tuple[bytes, bytes]:
    if len(metadata) > 8191:  # the index size is a u16: 2 + 8 per entry
        raise EncodeError(f"metadata holds {len(metadata)} entries, limit 8191")
    index, body = [len(metadata).to_bytes(2, "big")], []
    for key, value in metadata.items():
        key_raw = key.encode("utf-8")
        encoding, value_raw = encode_text(value)
        if len(key_raw) > 0xFFFF:
            raise EncodeError(f"metadata key {key[:40]!r}...: {len(key_raw)} bytes, limit 65535")
        index.append(_META_ENTRY.pack(len(key_raw), encoding, len(value_raw)))
        body += [key_raw, value_raw]
    return b"".join(index), b"".join(body)


def pack_message(
    type_name: str,
    device: str,
    content: bytes,
    *,
    sender_ns: int | None = None,
    version: int = 1,
    metadata: Mapping[str, str] | None = None,
    message_id: int = 0,
    pixels: memoryview | None = None,
) -> bytes:
    """One whole message with its CRC.

    Parameters
    ----------
    content : bytes
        The content as the type's table says; ``pixels`` (a contiguous view of bytes) is appended without a copy of
        its own.
    sender_ns : int or None
        When the data was acquired, UTC ns; None writes the unused stamp 0.
    version : 1 or 2
        Metadata and message number need 2. With 1, metadata is left out: a version 1 peer has no place for it.

    Raises
    ------
    EncodeError
        When a name is too long or a number does not fit.
    """
    if version not in (1, 2):
        raise EncodeError(f"header version {version}: must be 1 or 2")
    type_raw = fixed_text(type_name, TYPE_NAME_BYTES, "message type")
    if not type_raw or not type_name.isascii():
        raise EncodeError(f"message type {type_name!r}: must be 1 to 12 ASCII characters")
    name_raw = fixed_text(device, DEVICE_NAME_BYTES, "device name")
    seconds, fraction = stamp_from_ns(sender_ns)
    parts: list[bytes | memoryview] = [content]
    if pixels is not None:
        parts.append(pixels.cast("B"))
    if version == 2:
        if not 0 <= message_id < 1 << 32:
            raise EncodeError(f"message_id {message_id}: must fit 32 bits")
        index, body = _pack_metadata(metadata or {})
        parts.insert(0, _EXTENDED.pack(EXTENDED_HEADER_SIZE, len(index), len(body), message_id))
        parts += [index, body]
    crc = 0
    for part in parts:
        crc = crc64(part, crc)
    size = sum(len(part) for part in parts)
    return b"".join([_HEADER.pack(version, type_raw, name_raw, seconds, fraction, size, crc), *parts])
