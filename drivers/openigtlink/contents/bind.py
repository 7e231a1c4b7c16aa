"""BIND: several contents in one message; and the queries for it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from drivers.openigtlink.contents.base import Content, bad, need_size
from drivers.openigtlink.errors import EncodeError
from drivers.openigtlink.text import WireText, decode_text, encode_text, field_text, fixed_text
from drivers.openigtlink.wire import DEVICE_NAME_BYTES, TYPE_NAME_BYTES

__all__ = ["BindChild", "BindContent", "GetBindContent", "StartBindContent"]

_CHILD = struct.Struct(">12sQ")
_RESOLUTION = struct.Struct(">Q")


@dataclass(frozen=True, slots=True, eq=False)
class BindChild:
    """One message within BIND: type, device name and content (``unpack_content(type_name, content)`` reads it).

    ``padding`` is the byte behind a content of odd length.
    """

    type_name: str
    name: str
    content: bytes | memoryview
    padding: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class BindContent(Content):
    """BIND.

    Attributes
    ----------
    children : tuple of BindChild
    names : bytes or None
        The table of names as it was read, where packing the names would give another.
    """

    type_name: ClassVar[str] = "BIND"
    children: tuple[BindChild, ...]
    names: bytes | None = None

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read types, sizes, names and contents; the contents themselves are not looked into.

        A BIND in a BIND is a child like any other, so nothing here recurses.

        Raises
        ------
        ContentError
        """
        need_size("BIND", raw, 2, exactly=False)
        view = memoryview(raw)
        count = int.from_bytes(view[:2], "big")
        table_at = 2 + _CHILD.size * count
        if table_at + 2 > len(view):
            raise bad("BIND number of children", 0, count, f"{max(len(view) - 4, 0) // _CHILD.size} by the bytes there")
        names, kept, at = _unpack_names(view, table_at, count)
        children = []
        for n, (type_raw, size) in enumerate(_CHILD.iter_unpack(view[2:table_at])):
            if size > len(view) - at:
                raise bad(f"BIND size of child {n}", 14 + _CHILD.size * n, size, f"{len(view) - at}, the bytes left")
            content = view[at : at + size]
            at += size
            padding = 0
            if size % 2:
                if at == len(view):
                    raise bad(f"BIND padding of child {n}", at, "no byte", "one byte behind a content of odd length")
                padding = view[at]
                at += 1
            children.append(BindChild(field_text(type_raw), names[n], content, padding))
        if at != len(view):
            raise bad("BIND content", at, f"{len(view) - at} bytes more", "nothing behind the last child")
        return cls(tuple(children), kept)

    def pack(self) -> bytes:
        """Types, sizes, names, contents."""
        heads, data = [], []
        for child in self.children:
            what = f"BIND child {child.name!r}"
            if not child.type_name:
                raise EncodeError(f"{what}: has no type")
            if not 0 <= child.padding <= 255:
                raise EncodeError(f"{what}: padding {child.padding} must fit a byte")
            type_raw = fixed_text(child.type_name, TYPE_NAME_BYTES, f"{what}, type")
            heads.append(_CHILD.pack(type_raw, len(child.content)))
            data += [child.content, bytes([child.padding]) if len(child.content) % 2 else b""]
        table = _table([child.name for child in self.children], self.names)
        return b"".join([_count(len(self.children)), *heads, len(table).to_bytes(2, "big"), table, *data])


def _count(n: int) -> bytes:
    if n > 0xFFFF:
        raise EncodeError(f"BIND: {n} children, limit 65535")
    return n.to_bytes(2, "big")


def _packed_names(names: Sequence[str]) -> bytes:
    table = b"".join(encode_text(name, 106, "BIND name")[1] + b"\0" for name in names)
    return table + b"\0" * (len(table) % 2)


def _table(names: Sequence[str], kept: bytes | None) -> bytes:
    if kept is None:
        for name in names:
            fixed_text(name, DEVICE_NAME_BYTES, "BIND name")
    table = _packed_names(names) if kept is None else kept
    if len(table) > 0xFFFF:
        raise EncodeError(f"BIND: {len(table)} bytes of names, limit 65535")
    return table


def _unpack_names(view: memoryview, at: int, count: int) -> tuple[list[str], bytes | None, int]:
    """Names, the table where packing them would give another one, and where the table ends.

    A table of size 0 leaves all children without a name.
    """
    size = int.from_bytes(view[at : at + 2], "big")
    if size > len(view) - at - 2:
        raise bad("BIND size of the names", at, size, f"{len(view) - at - 2}, the bytes left")
    table = bytes(view[at + 2 : at + 2 + size])
    if table.count(b"\0") < count and size:
        raise bad("BIND names", at + 2, table.count(b"\0"), f"{count}, each with a NUL")
    names = [decode_text(piece, 106) for piece in table.split(b"\0")[:count]] if size else [""] * count
    # The pieces of a kept table are in the table: as plain text they can be compared and shown.
    plain = [str(name) if isinstance(name, WireText) else name for name in names]
    return plain, None if table == _packed_names(plain) else table, at + 2 + size


@dataclass(frozen=True, slots=True)
class GetBindContent(Content):
    """GET_BIND: type and name of each message to bind; nothing asks for all there is (an empty body).

    ``names`` as in `BindContent`.
    """

    type_name: ClassVar[str] = "GET_BIND"
    children: tuple[tuple[str, str], ...] | None = None
    names: bytes | None = None

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read types and names; `ContentError` when their numbers disagree with the bytes."""
        return cls(*_unpack_request(memoryview(raw)))

    def pack(self) -> bytes:
        """Types and names, or nothing."""
        return _pack_request(self.children, self.names)


@dataclass(frozen=True, slots=True)
class StartBindContent(Content):
    """STT_BIND: as GET_BIND, with the least time between two messages.

    Attributes
    ----------
    resolution : int or None
        ns, 0 for as fast as possible; None with an empty body.
    """

    type_name: ClassVar[str] = "STT_BIND"
    resolution: int | None = None
    children: tuple[tuple[str, str], ...] | None = None
    names: bytes | None = None

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read time, types and names; `ContentError` when their numbers disagree with the bytes."""
        if len(raw) == 0:
            return cls()
        need_size("STT_BIND", raw, _RESOLUTION.size, exactly=False)
        return cls(_RESOLUTION.unpack_from(raw)[0], *_unpack_request(memoryview(raw), _RESOLUTION.size))

    def pack(self) -> bytes:
        """Time, types and names, or nothing."""
        if self.resolution is None:
            if self.children is not None:
                raise EncodeError("STT_BIND: children without a resolution; give 0 for as fast as possible")
            return b""
        if not 0 <= self.resolution < 1 << 64:
            raise EncodeError(f"STT_BIND resolution {self.resolution}: must fit 64 bits")
        return _RESOLUTION.pack(self.resolution) + _pack_request(self.children, self.names)


def _unpack_request(view: memoryview, at: int = 0) -> tuple[tuple[tuple[str, str], ...] | None, bytes | None]:
    if at == len(view):
        return None, None
    if len(view) - at < 2:
        raise bad("BIND request", at, f"{len(view) - at} bytes", "0, or 4 bytes or more")
    count = int.from_bytes(view[at : at + 2], "big")
    table_at = at + 2 + TYPE_NAME_BYTES * count
    if table_at + 2 > len(view):
        limit = max(len(view) - at - 4, 0) // TYPE_NAME_BYTES
        raise bad("BIND number of children", at, count, f"{limit} by the bytes there")
    types = bytes(view[at + 2 : table_at])
    names, kept, end = _unpack_names(view, table_at, count)
    if end != len(view):
        raise bad("BIND request", end, f"{len(view) - end} bytes more", "nothing behind the names")
    return tuple(
        (field_text(types[n * TYPE_NAME_BYTES : (n + 1) * TYPE_NAME_BYTES]), name) for n, name in enumerate(names)
    ), kept


def _pack_request(children: Sequence[tuple[str, str]] | None, kept: bytes | None) -> bytes:
    if children is None:
        return b""
    types = [
        fixed_text(type_name, TYPE_NAME_BYTES, "BIND type").ljust(TYPE_NAME_BYTES, b"\0") for type_name, _ in children
    ]
    table = _table([name for _, name in children], kept)
    return b"".join([_count(len(children)), *types, len(table).to_bytes(2, "big"), table])
