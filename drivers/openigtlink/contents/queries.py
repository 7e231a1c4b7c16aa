"""Queries and their answers: GET_, STT_, STP_ and RTS_ of every type."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

from drivers.openigtlink.contents.base import Content, bad
from drivers.openigtlink.errors import EncodeError
from drivers.openigtlink.text import field_text, fixed_text
from drivers.openigtlink.wire import TYPE_NAME_BYTES

__all__ = [
    "DATA_TYPES",
    "EmptyContent",
    "Query",
    "QueryContent",
    "ReplyContent",
    "StartTrackingContent",
    "query_of",
    "query_type",
]

#: The types that carry data; the queries are made of them.
DATA_TYPES = (
    "TRANSFORM", "POSITION", "QTRANS", "TDATA", "QTDATA", "IMAGE", "IMGMETA", "LBMETA", "VIDEO", "VIDEOMETA", "STATUS",
    "STRING", "POINT", "TRAJ", "SENSOR", "NDARRAY", "COLORT", "COLORTABLE", "POLYDATA", "BIND", "CAPABILITY", "COMMAND",
)  # fmt: skip
PREFIXES = ("GET", "STT", "STP", "RTS")
#: A query's name has 12 characters with its prefix; these are the ways in which long names are shortened: cut, and as
#: the documents of the protocol have it.
_SHORT = {"TRANS": "TRANSFORM", "CAPABIL": "CAPABILITY", "VMETA": "VIDEOMETA"}
_QUERIED = {
    **{name[: TYPE_NAME_BYTES - 4]: name for name in reversed(DATA_TYPES)},
    **{n: n for n in DATA_TYPES},
    **_SHORT,
}

_RESOLUTION = struct.Struct(">Q")
_START = struct.Struct(">i32s")


class Query(NamedTuple):
    """A query taken apart: "GET" and "TRANSFORM" for GET_TRANS."""

    prefix: str
    data_type: str


def query_of(type_name: str) -> Query | None:
    """What a message type asks for; None when it is no query (or one for a type that the protocol does not have)."""
    prefix, _, rest = type_name.partition("_")
    if prefix not in PREFIXES or rest not in _QUERIED:
        return None
    return Query(prefix, _QUERIED[rest])


def query_type(prefix: str, data_type: str) -> str:
    """The name of a query, cut to 12 characters as the documents of the protocol have it: GET_TRANS, GET_CAPABIL.

    Raises
    ------
    EncodeError
        When there is no such query.
    """
    if prefix not in PREFIXES or data_type not in DATA_TYPES:
        raise EncodeError(f"query {prefix}_{data_type}: allowed: {', '.join(PREFIXES)} of {', '.join(DATA_TYPES)}")
    short = next((short for short, name in _SHORT.items() if name == data_type), data_type)
    return f"{prefix}_{short}"[:TYPE_NAME_BYTES]


@dataclass(frozen=True, slots=True)
class QueryContent(Content):
    """GET_, STP_ and STT_ of every type that needs no more: an empty body, or the least time between two messages.

    Attributes
    ----------
    resolution : int or None
        STT_ only: ns, 0 for as fast as possible; None leaves it out.
    """

    resolution: int | None = None

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read 0 or 8 bytes; `ContentError` for any other size."""
        if len(raw) == 0:
            return cls()
        if len(raw) != _RESOLUTION.size:
            raise bad("query content", 0, f"{len(raw)} bytes", "0 bytes, or 8 (STT_: the resolution)")
        return cls(_RESOLUTION.unpack(raw)[0])

    def pack(self) -> bytes:
        """0 or 8 bytes."""
        if self.resolution is None:
            return b""
        if not 0 <= self.resolution < 1 << 64:
            raise EncodeError(f"query resolution {self.resolution}: must fit 64 bits")
        return _RESOLUTION.pack(self.resolution)


@dataclass(frozen=True, slots=True)
class StartTrackingContent(Content):
    """STT_TDATA and STT_QTDATA: least time between two messages in ms (0: as fast as possible), coordinate system."""

    type_name: ClassVar[str] = "STT_TDATA"
    interval_ms: int = 0
    coordinates: str = ""

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read 36 bytes; `ContentError` for any other size."""
        if len(raw) != _START.size:
            raise bad("STT_TDATA content", 0, f"{len(raw)} bytes", f"{_START.size} bytes")
        interval, name = _START.unpack(raw)
        return cls(interval, field_text(name))

    def pack(self) -> bytes:
        """36 bytes."""
        if not -(1 << 31) <= self.interval_ms < 1 << 31:
            raise EncodeError(f"STT_TDATA interval {self.interval_ms} ms: must fit 32 bits")
        return _START.pack(self.interval_ms, fixed_text(self.coordinates, 32, "STT_TDATA coordinate system"))


@dataclass(frozen=True, slots=True)
class ReplyContent(Content):
    """RTS_ of every type but COMMAND: 0 done, 1 not; None for an empty body, as the document of BIND has it."""

    status: int | None = 0

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read 0 or 1 byte; `ContentError` for any other size."""
        if len(raw) > 1:
            raise bad("RTS_ content", 0, f"{len(raw)} bytes", "1 byte, or none")
        return cls(raw[0] if len(raw) else None)

    def pack(self) -> bytes:
        """0 or 1 byte."""
        if self.status is None:
            return b""
        if not 0 <= self.status <= 255:
            raise EncodeError(f"RTS_ status {self.status}: must fit a byte (0 done, 1 not)")
        return bytes([self.status])


@dataclass(frozen=True, slots=True)
class EmptyContent(Content):
    """The answer to a query for data that is not there: the type that was asked for with an empty body."""

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read nothing; `ContentError` when there is something."""
        if len(raw):
            raise bad("empty content", 0, f"{len(raw)} bytes", "0 bytes")
        return cls()

    def pack(self) -> bytes:
        """0 bytes."""
        return b""
