"""Poses: TRANSFORM, POSITION and QTRANS, TDATA, QTDATA."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from drivers.openigtlink.contents.base import (
    Content,
    bad,
    need_float32,
    need_length,
    need_multiple,
    need_size,
    pack_numbers,
)
from drivers.openigtlink.errors import EncodeError
from drivers.openigtlink.text import field_text, fixed_text

__all__ = [
    "POSE_TYPES",
    "TRACKING_TYPES",
    "PositionContent",
    "QuaternionTool",
    "QuaternionTrackingContent",
    "TrackedTool",
    "TrackingContent",
    "TransformContent",
    "matrix_from_quaternion",
]

#: Types that hold several tools, each with a name of its own ...
TRACKING_TYPES = frozenset({"TDATA", "QTDATA"})
#: ... and all that hold poses.
POSE_TYPES = TRACKING_TYPES | {"TRANSFORM", "POSITION", "QTRANS"}

TOOL_NAME_BYTES = 20

_MATRIX = struct.Struct(">12f")
_TOOL = struct.Struct(">20sBB12f")
_QUATERNION_TOOL = struct.Struct(">20sBB7f")
_POSITIONS = {12: struct.Struct(">3f"), 24: struct.Struct(">6f"), 28: struct.Struct(">7f")}
_POSITION_OF_LENGTH = {0: _POSITIONS[12], 3: _POSITIONS[24], 4: _POSITIONS[28]}


def _matrix(columns: tuple[float, ...]) -> NDArray[np.float64]:
    """(4, 4) of the twelve numbers of the wire, three columns of the rotation and the translation."""
    a, d, g, b, e, h, c, f, i, x, y, z = columns
    m = np.array((a, b, c, x, d, e, f, y, g, h, i, z, 0.0, 0.0, 0.0, 1.0)).reshape(4, 4)
    m.setflags(write=False)
    return m


def _columns(matrix: ArrayLike, what: str) -> tuple[float, ...]:
    """The twelve numbers of the wire; `EncodeError` unless (4, 4), affine, finite and within 32-bit floats."""
    m = np.asarray(matrix, dtype=np.float64)
    if m.shape != (4, 4):
        raise EncodeError(f"{what}: matrix must be (4, 4) and finite, got shape {m.shape}: {m.tolist()}")
    # Plain numbers: NumPy would take several times as long for sixteen of them.
    a, b, c, x, d, e, f, y, g, h, i, z, o, p, q, w = m.ravel().tolist()
    if (o, p, q, w) != (0.0, 0.0, 0.0, 1.0):
        raise EncodeError(f"{what}: the last row of the matrix must be 0, 0, 0, 1, got {[o, p, q, w]}")
    if not math.isfinite(a + b + c + d + e + f + g + h + i + x + y + z):
        raise EncodeError(f"{what}: matrix must be (4, 4) and finite, got {m.tolist()}")
    return a, d, g, b, e, h, c, f, i, x, y, z


def matrix_from_quaternion(
    position: tuple[float, float, float], quaternion: tuple[float, ...], what: str
) -> NDArray[np.float64]:
    """(4, 4) pose of a position (mm) and a quaternion x, y, z[, w] as far as it was sent.

    No quaternion: no rotation. Three parts: w = +sqrt(1 - x² - y² - z²). Four: its length is taken out, as the
    reference library does (whose own sample has length 0.88); a length outside 0.5 to 2 is taken as damage.

    Raises
    ------
    ContentError
        When the quaternion is no rotation.
    """
    m = np.eye(4)
    m[:3, 3] = position
    if quaternion:
        x, y, z = quaternion[:3]
        if len(quaternion) == 3:
            rest = 1.0 - (x * x + y * y + z * z)
            if not rest >= -1e-6:
                raise bad(f"{what} x² + y² + z² of the quaternion", 12, 1.0 - rest, "1 or less")
            w = math.sqrt(max(rest, 0.0))
        else:
            w = quaternion[3]
        length = math.sqrt(x * x + y * y + z * z + w * w)
        if not 0.5 <= length <= 2.0:
            raise bad(f"{what} length of the quaternion", 12, length, "0.5 to 2")
        x, y, z, w = x / length, y / length, z / length, w / length
        m[:3, :3] = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    m.setflags(write=False)
    return m


def _need_kind(what: str, kind: int) -> None:
    if kind not in (1, 2, 3, 4):
        raise EncodeError(f"{what}: kind {kind}, allowed 1 to 4")


@dataclass(frozen=True, slots=True, eq=False)
class TransformContent(Content):
    """TRANSFORM: (4, 4) float64 holding the 32-bit values of the wire (3x4, column-major), mm."""

    type_name: ClassVar[str] = "TRANSFORM"
    matrix: NDArray[np.float64]

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read 48 bytes; `ContentError` for any other size."""
        if len(raw) != 48:
            need_size("TRANSFORM", raw, 48)
        return cls(_matrix(_MATRIX.unpack(raw)))

    def pack(self) -> bytes:
        """48 bytes."""
        columns = _columns(self.matrix, "TRANSFORM")
        try:
            return _MATRIX.pack(*columns)
        except OverflowError:
            raise EncodeError(f"TRANSFORM: matrix {self.matrix.tolist()} does not fit 32-bit floats") from None


@dataclass(frozen=True, slots=True)
class PositionContent(Content):
    """POSITION or QTRANS: mm, and the quaternion (x, y, z[, w]) as far as it was sent: 12, 24 or 28 bytes."""

    type_name: ClassVar[str] = "POSITION"
    position: tuple[float, float, float]
    quaternion: tuple[float, ...] = ()

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read 12, 24 or 28 bytes; `ContentError` for any other size."""
        layout = _POSITIONS.get(len(raw))
        if layout is None:
            raise bad("POSITION content", 0, f"{len(raw)} bytes", "12, 24 or 28 bytes")
        v = layout.unpack(raw)
        return cls((v[0], v[1], v[2]), tuple(v[3:]))

    def pack(self) -> bytes:
        """12, 24 or 28 bytes, by the length of ``quaternion``."""
        layout = _POSITION_OF_LENGTH.get(len(self.quaternion))
        if len(self.position) != 3 or layout is None:
            raise EncodeError(
                f"POSITION: {len(self.position)} coordinates and {len(self.quaternion)} quaternion parts; "
                "allowed: 3 and 0, 3 or 4"
            )
        values = (*self.position, *self.quaternion)
        need_float32("POSITION", values)
        return pack_numbers(layout, "POSITION", *values)

    def matrix(self) -> NDArray[np.float64]:
        """(4, 4) pose, see `matrix_from_quaternion`; `ContentError` when the quaternion is no rotation."""
        return matrix_from_quaternion(self.position, self.quaternion, "POSITION")


@dataclass(frozen=True, slots=True, eq=False)
class TrackedTool:
    """One element of TDATA. ``kind``: 1 tracker, 2 6-D instrument, 3 3-D instrument, 4 5-D instrument."""

    name: str
    matrix: NDArray[np.float64]
    kind: int = 2
    reserved: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class TrackingContent(Content):
    """TDATA: the tools that are visible; the others are left out by the protocol."""

    type_name: ClassVar[str] = "TDATA"
    tools: tuple[TrackedTool, ...]

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read n x 70 bytes; `ContentError` for any other size."""
        need_multiple("TDATA", raw, _TOOL.size)
        return cls(tuple(TrackedTool(field_text(v[0]), _matrix(v[3:]), v[1], v[2]) for v in _TOOL.iter_unpack(raw)))

    def pack(self) -> bytes:
        """n x 70 bytes."""
        out = []
        for tool in self.tools:
            what = f"TDATA tool {tool.name!r}"
            _need_kind(what, tool.kind)
            name = fixed_text(tool.name, TOOL_NAME_BYTES, "TDATA tool name")
            out.append(pack_numbers(_TOOL, what, name, tool.kind, tool.reserved, *_columns(tool.matrix, what)))
        return b"".join(out)


@dataclass(frozen=True, slots=True)
class QuaternionTool:
    """One element of QTDATA: position in mm, quaternion x, y, z, w. ``kind`` as in `TrackedTool`."""

    name: str
    position: tuple[float, float, float]
    quaternion: tuple[float, float, float, float]
    kind: int = 2
    reserved: int = 0

    def matrix(self) -> NDArray[np.float64]:
        """(4, 4) pose, see `matrix_from_quaternion`; `ContentError` when the quaternion is no rotation."""
        return matrix_from_quaternion(self.position, self.quaternion, f"QTDATA tool {self.name!r}")


@dataclass(frozen=True, slots=True)
class QuaternionTrackingContent(Content):
    """QTDATA: as TDATA, with quaternions."""

    type_name: ClassVar[str] = "QTDATA"
    tools: tuple[QuaternionTool, ...]

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read n x 50 bytes; `ContentError` for any other size."""
        need_multiple("QTDATA", raw, _QUATERNION_TOOL.size)
        return cls(
            tuple(
                QuaternionTool(field_text(name), (x, y, z), (qx, qy, qz, w), kind, reserved)
                for name, kind, reserved, x, y, z, qx, qy, qz, w in _QUATERNION_TOOL.iter_unpack(raw)
            )
        )

    def pack(self) -> bytes:
        """n x 50 bytes."""
        out = []
        for tool in self.tools:
            what = f"QTDATA tool {tool.name!r}"
            _need_kind(what, tool.kind)
            name = fixed_text(tool.name, TOOL_NAME_BYTES, "QTDATA tool name")
            need_length(f"{what} position", tool.position, 3)
            need_length(f"{what} quaternion", tool.quaternion, 4)
            values = (*tool.position, *tool.quaternion)
            need_float32(what, values)
            out.append(pack_numbers(_QUATERNION_TOOL, what, name, tool.kind, tool.reserved, *values))
        return b"".join(out)
