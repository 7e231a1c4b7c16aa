"""The wire: header, stamps, extended header and metadata, and the size limits.

All numbers of the protocol are big-endian. The header is 58 bytes::

    V u16 | TYPE char12 | NAME char20 | SECONDS u32 | FRACTION u32 | BODY u64 | CRC u64

Header version 2 puts a 12-byte extended header before the content and metadata behind it, both inside the body.
Whatever is read can be written again byte for byte (`repack_message`): fractions of stamps, odd padding, character sets
and repeated keys of metadata are kept.
Source: OpenIGTLink protocol, https://github.com/openigtlink/OpenIGTLink/tree/master/Documents/Protocol.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from drivers.openigtlink.crc64 import crc64
from drivers.openigtlink.errors import ContentError, EncodeError, PeerGone, WireError
from drivers.openigtlink.text import ASCII, UTF8, WireText, decode_text, encode_text, field_text, fixed_text

__all__ = [
    "DEVICE_NAME_BYTES",
    "HEADER_SIZE",
    "TYPE_NAME_BYTES",
    "ContentError",
    "EncodeError",
    "Header",
    "Limits",
    "MetadataEntry",
    "PeerGone",
    "WireError",
    "WireMessage",
    "check_crc",
    "crc_mismatch",
    "header_prefix",
    "ns_from_stamp",
    "pack_message",
    "parse_header",
    "parse_message",
    "repack_message",
    "stamp_from_ns",
]

HEADER_SIZE = 58
EXTENDED_HEADER_SIZE = 12
DEVICE_NAME_BYTES = 20
TYPE_NAME_BYTES = 12

_HEADER = struct.Struct(">H12s20sIIQQ")
_EXTENDED = struct.Struct(">HHII")
_META_ENTRY = struct.Struct(">HHI")
_NS = 1_000_000_000

_KIB, _MIB = 1 << 10, 1 << 20
#: Content and generous metadata of each type; the exact content size is the codec's business. Most frequent first,
#: because the kernel that receives looks them up one by one.
_LIMITS: dict[str, int] = {
    "TRANSFORM": 64 * _KIB,
    "TDATA": 128 * _KIB,
    "IMAGE": 128 * _MIB,
    "POSITION": 64 * _KIB,
    "QTRANS": 64 * _KIB,
    "QTDATA": 128 * _KIB,
    "STATUS": 128 * _KIB,
    "STRING": 256 * _KIB,
    "VIDEO": 128 * _MIB,
    "COMMAND": 4 * _MIB,
    "RTS_COMMAND": 4 * _MIB,
    "SENSOR": 64 * _KIB,
    "POINT": 16 * _MIB,
    "TRAJ": 16 * _MIB,
    "IMGMETA": 16 * _MIB,
    "LBMETA": 16 * _MIB,
    "VIDEOMETA": 16 * _MIB,
    "CAPABILITY": _MIB,
    "CLIENTINFO": 256 * _KIB,
    "COLORT": _MIB,
    "COLORTABLE": _MIB,
    "NDARRAY": 128 * _MIB,
    "POLYDATA": 128 * _MIB,
    "BIND": 128 * _MIB,
    "GET_BIND": _MIB,
    "STT_BIND": _MIB,
    "STT_TDATA": 64 * _KIB,
    "STT_QTDATA": 64 * _KIB,
    "STT_VIDEO": 64 * _KIB,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest bodies, in bytes, checked on the header alone.

    Attributes
    ----------
    decoded : mapping
        Type name → limit of the types that are decoded; above it the connection is given up.
    kept : int
        Messages of other types (the queries among them) are delivered whole up to here.
    skipped : int
        Beyond ``kept`` their bodies are read past without being kept, up to here; above it the connection is given up.
    """

    decoded: Mapping[str, int] = field(default_factory=lambda: dict(_LIMITS))
    kept: int = 1 << 22
    skipped: int = 1 << 28


class Header(NamedTuple):
    """The 58 bytes, decoded.

    Attributes
    ----------
    sender_ns : int or None
        When the data was acquired, UTC ns since 1970; None when the stamp is zero (unused).
    stamp : (int, int)
        Seconds and fraction (2^-32 s) as they stand on the wire.
    """

    version: int
    type_name: str
    device: str
    sender_ns: int | None
    body_size: int
    crc: int
    stamp: tuple[int, int]


class MetadataEntry(NamedTuple):
    """One entry of the metadata. ``encoding``: character set of the value (IANA MIBenum; 0 lets packing choose)."""

    key: str
    value: str
    encoding: int = 0


class WireMessage(NamedTuple):
    """A whole message, taken apart but not interpreted.

    Attributes
    ----------
    content : memoryview
        The body without extended header and metadata.
    content_offset : int
        Where it begins in the message: 58, or 70 and more in version 2.
    metadata : dict
        Key → value; of a repeated key the last.
    entries : tuple of MetadataEntry
        The same as it stands on the wire, in order, repetitions included.
    stamp : (int, int)
        Seconds and fraction of the stamp as they stand on the wire.
    extension : bytes
        What a longer extended header holds beyond its 12 bytes.
    has_index : bool
        False for a version 2 message whose metadata has not even a count.
    """

    version: int
    type_name: str
    device: str
    sender_ns: int | None
    content: memoryview
    message_id: int
    metadata: dict[str, str]
    entries: tuple[MetadataEntry, ...]
    stamp: tuple[int, int]
    content_offset: int
    extension: bytes
    has_index: bool


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


@functools.lru_cache(maxsize=256)
def _type_name(raw: bytes) -> str:
    """The type's name, padded with NUL (or blanks, by some senders); empty when it is none."""
    name = raw.split(b"\0", 1)[0].rstrip(b" ")
    if not all(0x21 <= b <= 0x7E for b in name):
        return ""
    text = name.decode("ascii")
    return text if not name or name.ljust(TYPE_NAME_BYTES, b"\0") == raw else WireText(text, raw)


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
        raise WireError("message type", offset=2, value=type_raw, limit="1 to 12 printable ASCII characters")
    return Header(
        version,
        type_name,
        field_text(name_raw),
        ns_from_stamp(seconds, fraction),
        body_size,
        crc,
        (seconds, fraction),
    )


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
    version, type_name, device, sender_ns, body_size, _, stamp = parse_header(raw)
    if len(raw) != HEADER_SIZE + body_size:
        raise WireError(
            "body size", offset=42, value=body_size, limit=f"{len(raw) - HEADER_SIZE}, the bytes that follow"
        )
    view = memoryview(raw)
    if version == 1:
        return WireMessage(
            1, type_name, device, sender_ns, view[HEADER_SIZE:], 0, {}, (), stamp, HEADER_SIZE, b"", False
        )
    if body_size < EXTENDED_HEADER_SIZE:
        raise ContentError("body of a version 2 message", offset=42, value=body_size, limit="12 bytes or more")
    ext_size, meta_header_size, meta_size, message_id = _EXTENDED.unpack_from(raw, HEADER_SIZE)
    if not EXTENDED_HEADER_SIZE <= ext_size <= body_size:
        raise ContentError("extended header size", offset=58, value=ext_size, limit=f"12 to {body_size}")
    room = body_size - ext_size
    if meta_header_size + meta_size > room:
        raise ContentError(
            "metadata size", offset=60, value=meta_header_size + meta_size, limit=f"{room}, the rest of the body"
        )
    end = len(raw) - meta_header_size - meta_size
    start = HEADER_SIZE + ext_size
    meta = bytes(view[end:])
    entries = (_seen_metadata if len(meta) <= 512 else _parse_metadata)(meta, end, meta_header_size)
    return WireMessage(
        2,
        type_name,
        device,
        sender_ns,
        view[start:end],
        message_id,
        {key: value for key, value, _ in entries},
        entries,
        stamp,
        start,
        b"" if ext_size == EXTENDED_HEADER_SIZE else bytes(view[HEADER_SIZE + EXTENDED_HEADER_SIZE : start]),
        meta_header_size > 0,
    )


def _parse_metadata(raw: bytes, offset: int, header_size: int) -> tuple[MetadataEntry, ...]:
    size = len(raw)
    if header_size == 0:
        if size:
            raise ContentError("metadata without an index", offset=offset, value=size, limit="0 bytes")
        return ()
    if header_size < 2:
        raise ContentError("metadata index size", offset=60, value=header_size, limit="0, or 2 + 8 per entry")
    count = int.from_bytes(raw[:2], "big")
    if 2 + 8 * count != header_size:
        raise ContentError(
            "metadata entries", offset=offset, value=count, limit=f"{(header_size - 2) / 8:g} by the index size"
        )
    out = []
    at = header_size
    for n in range(count):
        key_size, encoding, value_size = _META_ENTRY.unpack_from(raw, 2 + 8 * n)
        middle = at + key_size
        end = middle + value_size
        if end > size:
            raise ContentError(
                f"metadata entry {n}", offset=offset + 2 + 8 * n, value=key_size + value_size, limit=size - at
            )
        out.append(MetadataEntry(decode_text(raw[at:middle], UTF8), _value_text(raw[middle:end], encoding), encoding))
        at = end
    if at != size:
        raise ContentError("metadata size", offset=offset, value=size, limit=f"{at} by its entries")
    return tuple(out)


#: A tool's metadata is nearly always that of its last pose.
_seen_metadata = functools.lru_cache(maxsize=128)(_parse_metadata)


def _value_text(raw: bytes, encoding: int) -> str:
    """A value of metadata; nearly all of them are plain ASCII."""
    if encoding in (ASCII, UTF8) and raw.isascii():
        return raw.decode("ascii")
    return decode_text(raw, encoding)


def _pack_metadata(entries: Sequence[MetadataEntry]) -> tuple[bytes, bytes]:
    if len(entries) > 8191:  # the index size is a u16: 2 + 8 per entry
        raise EncodeError(f"metadata holds {len(entries)} entries, limit 8191")
    index, body = [len(entries).to_bytes(2, "big")], []
    for key, value, encoding in entries:
        key_raw = encode_text(key, UTF8, "metadata key")[1]
        encoding, value_raw = encode_text(value, encoding, "metadata value")
        if len(key_raw) > 0xFFFF:
            raise EncodeError(f"metadata key {key[:40]!r}...: {len(key_raw)} bytes, limit 65535")
        if not 0 <= encoding <= 0xFFFF:
            raise EncodeError(f"metadata {key[:40]!r}: character set {encoding}, allowed: 0 to 65535")
        index.append(_META_ENTRY.pack(len(key_raw), encoding, len(value_raw)))
        body += [key_raw, value_raw]
    return b"".join(index), b"".join(body)


@functools.lru_cache(maxsize=256)
def _packed_type(type_name: str) -> bytes:
    if not type_name or not all("!" <= c <= "~" for c in type_name):
        raise EncodeError(f"message type {type_name!r}: must be 1 to 12 printable ASCII characters")
    return fixed_text(str(type_name), TYPE_NAME_BYTES, "message type")


@functools.lru_cache(maxsize=256)
def _packed_device(device: str) -> bytes:
    # A `WireText` equals its text, so the answer kept for one must do for the other.
    return fixed_text(str(device), DEVICE_NAME_BYTES, "device name")


@functools.lru_cache(maxsize=256)
def header_prefix(type_name: str, device: str) -> bytes:
    """The 34 bytes of a version 1 header up to the device name; `EncodeError` when a name cannot be sent."""
    return _HEADER.pack(1, _packed_type(type_name), _packed_device(device), 0, 0, 0, 0)[:34]


def pack_message(
    type_name: str,
    device: str,
    content: bytes | memoryview,
    *,
    sender_ns: int | None = None,
    version: int = 1,
    metadata: Mapping[str, str] | Sequence[MetadataEntry] | None = None,
    message_id: int = 0,
    pixels: memoryview | None = None,
    stamp: tuple[int, int] | None = None,
    extension: bytes = b"",
    has_index: bool = True,
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
    stamp : (int, int) or None
        Seconds and fraction to write as they are, in place of ``sender_ns``.
    extension, has_index
        Further bytes of the extended header, and whether the metadata has its count; see `WireMessage`.

    Raises
    ------
    EncodeError
        When a name is too long or a number does not fit.
    """
    type_raw = _exact(type_name, TYPE_NAME_BYTES) or _packed_type(type_name)
    name_raw = _exact(device, DEVICE_NAME_BYTES) or _packed_device(device)
    seconds, fraction = stamp_from_ns(sender_ns) if stamp is None else stamp
    if version == 1:
        if pixels is None:
            head = _header(1, type_raw, name_raw, seconds, fraction, len(content), crc64(content))
            return b"".join((head, content))
        parts: list[bytes | memoryview] = [content, pixels.cast("B")]
    elif version == 2:
        if not 0 <= message_id < 1 << 32:
            raise EncodeError(f"message_id {message_id}: must fit 32 bits")
        if len(extension) > 0xFFFF - EXTENDED_HEADER_SIZE:
            raise EncodeError(f"extended header: {len(extension)} further bytes, limit 65523")
        entries = (
            [MetadataEntry(key, value) for key, value in metadata.items()]
            if type(metadata) is dict or isinstance(metadata, Mapping)
            else metadata or ()
        )
        if entries and not has_index:
            raise EncodeError(f"metadata of {len(entries)} entries cannot be sent without its index")
        index, body = _pack_metadata(entries) if has_index else (b"", b"")
        if len(body) > 0xFFFFFFFF:
            raise EncodeError(f"metadata: {len(body)} bytes, limit {0xFFFFFFFF}")
        extended = _EXTENDED.pack(EXTENDED_HEADER_SIZE + len(extension), len(index), len(body), message_id)
        if pixels is None:
            whole = b"".join((extended, extension, content, index, body))
            return _header(2, type_raw, name_raw, seconds, fraction, len(whole), crc64(whole)) + whole
        parts = [extended, extension, content, pixels.cast("B"), index, body]
    else:
        raise EncodeError(f"header version {version}: must be 1 or 2")
    crc = 0
    for part in parts:
        crc = crc64(part, crc)
    size = sum(len(part) for part in parts)
    return b"".join([_header(version, type_raw, name_raw, seconds, fraction, size, crc), *parts])


def _header(version: int, type_raw: bytes, name: bytes, seconds: int, fraction: int, size: int, crc: int) -> bytes:
    try:
        return _HEADER.pack(version, type_raw, name, seconds, fraction, size, crc)
    except struct.error:
        raise EncodeError(f"stamp: {seconds} s and fraction {fraction}, both must fit 32 bits") from None


def _exact(text: str, size: int) -> bytes | None:
    """The bytes a name was read from, which a cache by text must not answer for."""
    return text.raw if isinstance(text, WireText) and len(text.raw) == size else None


def repack_message(message: WireMessage, content: bytes | memoryview | None = None) -> bytes:
    """A message that was read, byte for byte; or the same around another content.

    Raises
    ------
    EncodeError
        When the new content does not fit.
    """
    return pack_message(
        message.type_name,
        message.device,
        message.content if content is None else content,
        version=message.version,
        metadata=message.entries,
        message_id=message.message_id,
        stamp=message.stamp,
        extension=message.extension,
        has_index=message.has_index,
    )
