"""The bodies: one frozen type per message kind, each the exact content of its bytes (no interpretation, nothing lost).

`codec` gives them their meaning for the program (RAS, tool names, statuses).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivers.openigtlink.wire import ContentError, EncodeError, encode_text, fixed_text

__all__ = [
    "SCALAR_TYPES",
    "Content",
    "ImageContent",
    "PositionContent",
    "StatusContent",
    "StringContent",
    "TrackedTool",
    "TrackingContent",
    "TransformContent",
    "unpack_content",
]

#: IMAGE scalar type numbers → NumPy kind and size.
SCALAR_TYPES: dict[int, str] = {2: "i1", 3: "u1", 4: "i2", 5: "u2", 6: "i4", 7: "u4", 10: "f4", 11: "f8"}
_SCALAR_NUMBERS = {kind: number for number, kind in SCALAR_TYPES.items()}
_SCALAR_NAMES = ", ".join(str(np.dtype(kind)) for kind in SCALAR_TYPES.values())

_CONTENT_V1 = 58  # offset of the content in a version 1 message; offsets in errors are given for that version

_IMAGE = struct.Struct(">HBBBB3H12f3H3H")
_TOOL = struct.Struct(">20sBx48s")
_STATUS = struct.Struct(">Hq20s")
_STRING = struct.Struct(">HH")


def _bad(what: str, offset: int, value: object, limit: object) -> ContentError:
    return ContentError(what, offset=_CONTENT_V1 + offset, value=value, limit=limit)


def _matrix_from_wire(raw: bytes | memoryview) -> NDArray[np.float64]:
    m = np.eye(4)
    m[:3, :] = np.frombuffer(raw, ">f4", 12).reshape(4, 3).T
    m.setflags(write=False)
    return m


def _matrix_to_wire(matrix: ArrayLike, what: str) -> bytes:
    m = np.asarray(matrix, dtype=np.float64)
    if m.shape != (4, 4) or not np.isfinite(m).all():
        raise EncodeError(f"{what}: matrix must be (4, 4) and finite, got shape {m.shape}: {m.tolist()}")
    with np.errstate(over="ignore"):
        wire = m[:3, :].T.astype(">f4")
    if not np.isfinite(wire).all():
        raise EncodeError(f"{what}: matrix {m.tolist()} does not fit 32-bit floats")
    return wire.tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """Common base."""

    type_name: ClassVar[str] = ""


@dataclass(frozen=True, slots=True, eq=False)
class TransformContent(Content):
    """TRANSFORM: (4, 4) float64 holding the 32-bit values of the wire (3x4, column-major), mm."""

    type_name: ClassVar[str] = "TRANSFORM"
    matrix: NDArray[np.float64]

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read 48 bytes; `ContentError` for any other size."""
        if len(raw) != 48:
            raise _bad("TRANSFORM content", 0, f"{len(raw)} bytes", "48 bytes")
        return cls(_matrix_from_wire(raw))

    def pack(self) -> bytes:
        """48 bytes."""
        return _matrix_to_wire(self.matrix, "TRANSFORM")


@dataclass(frozen=True, slots=True)
class PositionContent(Content):
    """POSITION or QTRANS: mm, and the quaternion (x, y, z[, w]) as far as it was sent: 12, 24 or 28 bytes."""

    type_name: ClassVar[str] = "POSITION"
    position: tuple[float, float, float]
    quaternion: tuple[float, ...] = ()

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read 12, 24 or 28 bytes; `ContentError` for any other size."""
        if len(raw) not in (12, 24, 28):
            raise _bad("POSITION content", 0, f"{len(raw)} bytes", "12, 24 or 28 bytes")
        v = struct.unpack(f">{len(raw) // 4}f", raw)
        return cls((v[0], v[1], v[2]), tuple(v[3:]))

    def pack(self) -> bytes:
        """12, 24 or 28 bytes, by the length of ``quaternion``."""
        if len(self.position) != 3 or len(self.quaternion) not in (0, 3, 4):
            raise EncodeError(
                f"POSITION: {len(self.position)} coordinates and {len(self.quaternion)} quaternion parts; "
                "allowed: 3 and 0, 3 or 4"
            )
        values = (*self.position, *self.quaternion)
        if not np.isfinite(values).all():
            raise EncodeError(f"POSITION: values must be finite, got {values}")
        try:
            return struct.pack(f">{len(values)}f", *values)
        except OverflowError:
            raise EncodeError(f"POSITION: {values} do not fit 32-bit floats") from None

    def matrix(self) -> NDArray[np.float64]:
        """(4, 4) pose. 12 bytes: no rotation; 24 bytes: w = +sqrt(1 - x² - y² - z²); 28 bytes: normalised.

        A quaternion only has a direction, so its length is taken out as the reference library does (whose own sample
        has length 0.88); a length outside 0.5 to 2 is taken as damage.

        Raises
        ------
        ContentError
            When the quaternion is no rotation.
        """
        m = np.eye(4)
        m[:3, 3] = self.position
        if self.quaternion:
            x, y, z = self.quaternion[:3]
            if len(self.quaternion) == 3:
                rest = 1.0 - (x * x + y * y + z * z)
                if not rest >= -1e-6:
                    raise _bad("POSITION x² + y² + z² of the quaternion", 12, 1.0 - rest, "1 or less")
                w = float(np.sqrt(max(rest, 0.0)))
            else:
                w = self.quaternion[3]
            length = float(np.sqrt(x * x + y * y + z * z + w * w))
            if not 0.5 <= length <= 2.0:
                raise _bad("POSITION length of the quaternion", 12, length, "0.5 to 2")
            x, y, z, w = x / length, y / length, z / length, w / length
            m[:3, :3] = [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        m.setflags(write=False)
        return m


@dataclass(frozen=True, slots=True, eq=False)
class TrackedTool:
    """One element of TDATA. ``kind``: 1 tracker, 2 6-D instrument, 3 3-D instrument, 4 5-D instrument."""

    name: str
    matrix: NDArray[np.float64]
    kind: int = 2


@dataclass(frozen=True, slots=True, eq=False)
class TrackingContent(Content):
    """TDATA: the tools that are visible; the others are left out by the protocol."""

    type_name: ClassVar[str] = "TDATA"
    tools: tuple[TrackedTool, ...]

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read n x 70 bytes; `ContentError` for any other size."""
        if len(raw) % 70:
            raise _bad("TDATA content", 0, f"{len(raw)} bytes", "a multiple of 70 bytes")
        return cls(
            tuple(
                TrackedTool(name.split(b"\0", 1)[0].decode("utf-8", "replace"), _matrix_from_wire(matrix), kind)
                for name, kind, matrix in _TOOL.iter_unpack(raw)
            )
        )

    def pack(self) -> bytes:
        """n x 70 bytes."""
        out = []
        for tool in self.tools:
            if tool.kind not in (1, 2, 3, 4):
                raise EncodeError(f"TDATA tool {tool.name!r}: kind {tool.kind}, allowed 1 to 4")
            name = fixed_text(tool.name, 20, "TDATA tool name")
            out.append(_TOOL.pack(name, tool.kind, _matrix_to_wire(tool.matrix, f"TDATA tool {tool.name!r}")))
        return b"".join(out)


@dataclass(frozen=True, slots=True, eq=False)
class ImageContent(Content):
    """IMAGE as on the wire.

    Attributes
    ----------
    axes : (3, 3) float64
        Columns: step along i, j, k in mm (spacing included).
    position : (3,) float64
        Centre of the whole image by the protocol (some senders put the first voxel there).
    size, offset, part : tuple of int
        Voxels (i, j, k) of the whole image; first voxel and size of the part that was sent.
    pixels : memoryview
        Voxels of the part, i fastest, components interleaved.
    """

    type_name: ClassVar[str] = "IMAGE"
    components: int
    scalar: int
    endian: int
    coordinate: int
    size: tuple[int, int, int]
    axes: NDArray[np.float64]
    position: NDArray[np.float64]
    offset: tuple[int, int, int]
    part: tuple[int, int, int]
    pixels: memoryview
    version: int = 1

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read the 72-byte image header and check every number against the bytes that follow.

        Raises
        ------
        ContentError
        """
        if len(raw) < 72:
            raise _bad("IMAGE content", 0, f"{len(raw)} bytes", "72 bytes or more")
        v = _IMAGE.unpack_from(raw)
        version, components, scalar, endian, coordinate = v[:5]
        size, offset, part = v[5:8], v[20:23], v[23:26]
        if version != 1:
            raise _bad("IMAGE format version", 0, version, "1")
        if components == 0:
            raise _bad("IMAGE components", 2, 0, "1 to 255")
        if scalar not in SCALAR_TYPES:
            raise _bad("IMAGE scalar type", 3, scalar, f"{', '.join(map(str, SCALAR_TYPES))} ({_SCALAR_NAMES})")
        if 0 in size:
            raise _bad("IMAGE size", 6, size, "1 to 65535 along each axis")
        if 0 in part or any(o + p > s for o, p, s in zip(offset, part, size, strict=True)):
            raise _bad("IMAGE part (offset, size)", 60, (offset, part), f"1 voxel or more within {size}")
        wanted = part[0] * part[1] * part[2] * components * np.dtype(SCALAR_TYPES[scalar]).itemsize
        if len(raw) - 72 != wanted:
            raise _bad("IMAGE pixels", 72, f"{len(raw) - 72} bytes", f"{wanted} bytes for {part} x {components}")
        frame = np.array(v[8:20], dtype=np.float64).reshape(4, 3).T
        pixels = memoryview(raw)[72:]
        return cls(
            components, scalar, endian, coordinate, size, frame[:, :3], frame[:, 3], offset, part, pixels, version
        )

    def pack_header(self) -> bytes:
        """The 72 bytes before the pixels."""
        frame = np.column_stack([self.axes, self.position])
        if frame.shape != (3, 4) or not np.isfinite(frame).all():
            raise EncodeError(f"IMAGE: axes and position must be finite (3, 3) and (3,), got {frame.tolist()}")
        for what, values, low in (("size", self.size, 1), ("offset", self.offset, 0), ("part", self.part, 1)):
            if any(not low <= n <= 0xFFFF for n in values):
                raise EncodeError(f"IMAGE: {what} {values} (i, j, k): each must lie in {low} to 65535")
        if any(o + p > s for o, p, s in zip(self.offset, self.part, self.size, strict=True)):
            raise EncodeError(f"IMAGE: part {self.part} at {self.offset} does not lie within {self.size}")
        if not 1 <= self.components <= 255:
            raise EncodeError(f"IMAGE: {self.components} components, allowed 1 to 255")
        try:
            return _IMAGE.pack(
                self.version, self.components, self.scalar, self.endian, self.coordinate, *self.size,
                *frame.T.ravel(), *self.offset, *self.part,
            )  # fmt: skip
        except (struct.error, OverflowError) as error:
            raise EncodeError(f"IMAGE: {error}") from None

    def pack(self) -> bytes:
        """Header and pixels."""
        return self.pack_header() + self.pixels


def scalar_number(dtype: np.dtype[np.generic]) -> int:
    """IMAGE scalar type number of a dtype (either byte order); `EncodeError` names those allowed."""
    number = _SCALAR_NUMBERS.get(f"{dtype.kind}{dtype.itemsize}")
    if number is None:
        raise EncodeError(f"IMAGE: dtype {dtype} cannot be sent, allowed: {_SCALAR_NAMES}")
    return number


@dataclass(frozen=True, slots=True)
class StatusContent(Content):
    """STATUS: code (1 is OK), subcode, short error name, text."""

    type_name: ClassVar[str] = "STATUS"
    code: int = 1
    subcode: int = 0
    error_name: str = ""
    text: str = ""

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read 30 bytes and the text up to the first NUL; `ContentError` when shorter."""
        if len(raw) < 30:
            raise _bad("STATUS content", 0, f"{len(raw)} bytes", "30 bytes or more")
        code, subcode, name = _STATUS.unpack_from(raw)
        text = bytes(raw[30:]).split(b"\0", 1)[0].decode("utf-8", "replace")
        return cls(code, subcode, name.split(b"\0", 1)[0].decode("utf-8", "replace"), text)

    def pack(self) -> bytes:
        """30 bytes and the NUL-terminated text."""
        text = self.text.encode("utf-8")
        if b"\0" in text or len(text) > 0xFFFF:
            raise EncodeError(f"STATUS text: {len(text)} bytes; allowed: 65535 bytes without NUL")
        name = fixed_text(self.error_name, 20, "STATUS error name")
        try:
            return _STATUS.pack(self.code, self.subcode, name) + text + b"\0"
        except struct.error:
            raise EncodeError(f"STATUS code {self.code}, subcode {self.subcode}: must fit u16 and i64") from None


@dataclass(frozen=True, slots=True)
class StringContent(Content):
    """STRING: text and its character set (IANA MIBenum; 3 ASCII, 106 UTF-8; 0 lets `pack` choose)."""

    type_name: ClassVar[str] = "STRING"
    text: str
    encoding: int = 0

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read character set, length and text; `ContentError` when the length is not that of the bytes.

        Text that is not UTF-8 has its odd bytes replaced by U+FFFD.
        """
        if len(raw) < 4:
            raise _bad("STRING content", 0, f"{len(raw)} bytes", "4 bytes or more")
        encoding, length = _STRING.unpack_from(raw)
        if length != len(raw) - 4:
            raise _bad("STRING length", 2, length, f"{len(raw) - 4}, the bytes that follow")
        return cls(bytes(raw[4:]).decode("utf-8", "replace"), encoding)

    def pack(self) -> bytes:
        """Character set, length, text."""
        encoding, text = encode_text(self.text)
        if len(text) > 0xFFFF:
            raise EncodeError(f"STRING: {len(text)} bytes, limit 65535")
        return _STRING.pack(self.encoding or encoding, len(text)) + text


_UNPACK = {
    "TRANSFORM": TransformContent.unpack,
    "POSITION": PositionContent.unpack,
    "QTRANS": PositionContent.unpack,
    "TDATA": TrackingContent.unpack,
    "IMAGE": ImageContent.unpack,
    "STATUS": StatusContent.unpack,
    "STRING": StringContent.unpack,
}


def unpack_content(type_name: str, raw: bytes | memoryview) -> Content | None:
    """The content of a type that is covered; None for any other type.

    Raises
    ------
    ContentError
        When the bytes are not what the type's table says.
    """
    unpack = _UNPACK.get(type_name)
    return None if unpack is None else unpack(raw)
