"""Numbers: SENSOR, NDARRAY and COLORT."""

from __future__ import annotations

import math
import struct
import sys
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from drivers.openigtlink.contents.base import SCALAR_TYPES, Content, bad, need_size, pack_numbers
from drivers.openigtlink.errors import EncodeError

__all__ = ["ColorTableContent", "NdarrayContent", "SensorContent"]

#: Scalar type numbers of NDARRAY: those of IMAGE and the complex one.
NDARRAY_TYPES = {**SCALAR_TYPES, 13: "c16"}
_NDARRAY_NUMBERS = {kind: number for number, kind in NDARRAY_TYPES.items()}
#: NumPy arrays have no more.
_MOST_DIMENSIONS = 64

_SENSOR = struct.Struct(">BBQ")
_COLOR_TABLE = struct.Struct(">BB")


def _native(raw: bytes | memoryview, dtype: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Big-endian numbers in the machine's order, bit for bit (NaN included), read-only."""
    array = np.frombuffer(raw, np.dtype(dtype).newbyteorder(">")).astype(dtype).reshape(shape)
    array.setflags(write=False)
    return array


def _big_endian(array: NDArray[np.generic]) -> bytes:
    return array.astype(array.dtype.newbyteorder(">"), order="C").tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class SensorContent(Content):
    """SENSOR: up to 255 readings in one unit.

    Attributes
    ----------
    values : (n,) float64
    unit : int
        64 bits: prefix in the upper 4, then six times a 6-bit SI unit and a 4-bit exponent.
    status : int
        Reserved by the protocol.
    """

    type_name: ClassVar[str] = "SENSOR"
    values: NDArray[np.float64]
    unit: int = 0
    status: int = 0

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read 10 bytes and the readings; `ContentError` when their number is not that of the bytes."""
        need_size("SENSOR", raw, _SENSOR.size, exactly=False)
        count, status, unit = _SENSOR.unpack_from(raw)
        if len(raw) - _SENSOR.size != 8 * count:
            raise bad(
                "SENSOR length of the array", 0, count, f"{(len(raw) - _SENSOR.size) / 8:g} by the bytes that follow"
            )
        values = np.frombuffer(raw, ">f8", count, _SENSOR.size).astype(np.float64)
        values.setflags(write=False)
        return cls(values, unit, status)

    def pack(self) -> bytes:
        """10 bytes and the readings."""
        values = np.asarray(self.values, dtype=np.float64)
        if values.ndim != 1 or len(values) > 255:
            raise EncodeError(f"SENSOR: values of shape {values.shape}, allowed: (n,) with n up to 255")
        return pack_numbers(_SENSOR, "SENSOR", len(values), self.status, self.unit) + values.astype(">f8").tobytes()


@dataclass(frozen=True, slots=True, eq=False)
class NdarrayContent(Content):
    """NDARRAY: an array of any shape, last axis fastest; int8 to uint32, float32, float64 or complex128."""

    type_name: ClassVar[str] = "NDARRAY"
    array: NDArray[np.generic]

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read type, shape and numbers; every size is checked before room is made.

        Raises
        ------
        ContentError
        """
        need_size("NDARRAY", raw, 2, exactly=False)
        scalar, dimensions = raw[0], raw[1]
        kind = NDARRAY_TYPES.get(scalar)
        if kind is None:
            raise bad("NDARRAY scalar type", 0, scalar, ", ".join(map(str, NDARRAY_TYPES)))
        if dimensions > _MOST_DIMENSIONS:
            raise bad("NDARRAY dimensions", 1, dimensions, f"0 to {_MOST_DIMENSIONS}")
        start = 2 + 2 * dimensions
        need_size("NDARRAY", raw, start, exactly=False)
        shape = struct.unpack_from(f">{dimensions}H", raw, 2)
        size = np.dtype(kind).itemsize
        wanted = math.prod(shape) * size
        if len(raw) - start != wanted:
            raise bad("NDARRAY data", start, f"{len(raw) - start} bytes", f"{wanted} bytes for {kind} {shape}")
        if math.prod(n for n in shape if n) * size > sys.maxsize:  # NumPy has no such array, not even an empty one
            raise bad("NDARRAY shape", 2, shape, f"{sys.maxsize} bytes with the axes of length 0 left out")
        return cls(_native(memoryview(raw)[start:], kind, shape))

    def pack(self) -> bytes:
        """Type, shape and numbers in network byte order."""
        array = np.asarray(self.array)
        number = _NDARRAY_NUMBERS.get(f"{array.dtype.kind}{array.dtype.itemsize}")
        if number is None:
            allowed = ", ".join(str(np.dtype(kind)) for kind in NDARRAY_TYPES.values())
            raise EncodeError(f"NDARRAY: dtype {array.dtype} cannot be sent, allowed: {allowed}")
        if any(n > 0xFFFF for n in array.shape):
            raise EncodeError(f"NDARRAY: shape {array.shape}, at most 65535 along each axis")
        return struct.pack(f">BB{array.ndim}H", number, array.ndim, *array.shape) + _big_endian(array)


@dataclass(frozen=True, slots=True, eq=False)
class ColorTableContent(Content):
    """COLORT (COLORTABLE in the C++ library): a value or a colour for every index.

    Attributes
    ----------
    table : (256,) or (65536,) of uint8 or uint16, or (256, 3) or (65536, 3) of uint8
        Grey values, or red, green, blue.
    """

    type_name: ClassVar[str] = "COLORT"
    table: NDArray[np.generic]

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read types and table; `ContentError` when they disagree with the bytes."""
        need_size("COLORT", raw, 2, exactly=False)
        index_type, map_type = _COLOR_TABLE.unpack_from(raw)
        if index_type not in (3, 5):
            raise bad("COLORT index type", 0, index_type, "3 (uint8) or 5 (uint16)")
        if map_type not in (3, 5, 19):
            raise bad("COLORT map type", 1, map_type, "3 (uint8), 5 (uint16) or 19 (RGB)")
        entries = 256 if index_type == 3 else 65536
        shape = (entries, 3) if map_type == 19 else (entries,)
        kind = "u2" if map_type == 5 else "u1"
        need_size("COLORT", raw, 2 + math.prod(shape) * np.dtype(kind).itemsize)
        return cls(_native(memoryview(raw)[2:], kind, shape))

    def pack(self) -> bytes:
        """Types and table."""
        table = np.asarray(self.table)
        rgb = table.ndim == 2
        kinds = {"u1": 19 if rgb else 3} | ({} if rgb else {"u2": 5})
        map_type = kinds.get(f"{table.dtype.kind}{table.dtype.itemsize}")
        if map_type is None or table.shape not in ((256,), (65536,), (256, 3), (65536, 3)):
            raise EncodeError(
                f"COLORT: {table.dtype} {table.shape}, allowed: 256 or 65536 values of uint8 or uint16, or rows "
                "of three uint8"
            )
        return _COLOR_TABLE.pack(3 if len(table) == 256 else 5, map_type) + _big_endian(table)
