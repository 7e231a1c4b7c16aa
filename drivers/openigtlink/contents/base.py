"""What all contents share: their base, errors with offsets, scalar types, numbers that fit the wire."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from drivers.openigtlink.errors import ContentError, EncodeError
from drivers.openigtlink.wire import HEADER_SIZE

__all__ = ["SCALAR_TYPES", "Content", "scalar_number"]

#: Scalar type numbers of the protocol → NumPy kind and size.
SCALAR_TYPES: dict[int, str] = {2: "i1", 3: "u1", 4: "i2", 5: "u2", 6: "i4", 7: "u4", 10: "f4", 11: "f8"}
_SCALAR_NUMBERS = {kind: number for number, kind in SCALAR_TYPES.items()}
SCALAR_NAMES = ", ".join(str(np.dtype(kind)) for kind in SCALAR_TYPES.values())

#: Largest value of a 32-bit float.
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """Base of all contents: the exact content of a message's bytes, without interpretation, nothing lost.

    ``pack`` gives the bytes that ``unpack`` was given. Offsets of errors are those of a version 1 message.
    """

    type_name: ClassVar[str] = ""

    @classmethod
    def unpack(cls, raw: bytes | memoryview) -> Self:
        """Read the content and check every count and size against the bytes; `ContentError` when they disagree."""
        raise NotImplementedError

    def pack(self) -> bytes:
        """The bytes of the content; `EncodeError` when a value cannot be sent."""
        raise NotImplementedError


def bad(what: str, offset: int, value: object, limit: object) -> ContentError:
    """A `ContentError` at ``offset`` within the content."""
    return ContentError(what, offset=HEADER_SIZE + offset, value=value, limit=limit)


def need_size(what: str, raw: bytes | memoryview, size: int, *, exactly: bool = True) -> None:
    """Raise `ContentError` unless ``raw`` has ``size`` bytes (or at least that many)."""
    if len(raw) != size if exactly else len(raw) < size:
        raise bad(f"{what} content", 0, f"{len(raw)} bytes", f"{size} bytes" + ("" if exactly else " or more"))


def need_multiple(what: str, raw: bytes | memoryview, size: int) -> None:
    """Raise `ContentError` unless ``raw`` is a whole number of elements of ``size`` bytes."""
    if len(raw) % size:
        raise bad(f"{what} content", 0, f"{len(raw)} bytes", f"a multiple of {size} bytes")


def pack_numbers(layout: struct.Struct, what: str, *values: object) -> bytes:
    """``layout.pack`` with an `EncodeError` that names what does not fit."""
    try:
        return layout.pack(*values)
    except (struct.error, OverflowError) as error:
        numbers = [v for v in values if not isinstance(v, bytes)]
        raise EncodeError(f"{what}: {error} in {numbers}") from None


def need_float32(what: str, values: Sequence[float]) -> None:
    """Raise `EncodeError` unless all values are finite and fit 32-bit floats."""
    for value in values:
        if not math.isfinite(value):
            raise EncodeError(f"{what}: values must be finite, got {list(values)}")
        if abs(value) > _FLOAT32_MAX:
            raise EncodeError(f"{what}: {list(values)} do not fit 32-bit floats")


def need_length(what: str, values: Sequence[object], length: int) -> None:
    """Raise `EncodeError` unless there are ``length`` values."""
    if len(values) != length:
        raise EncodeError(f"{what}: {len(values)} values, expected {length}")


def scalar_number(dtype: np.dtype[np.generic], what: str = "IMAGE") -> int:
    """Scalar type number of a dtype (either byte order); `EncodeError` names those allowed."""
    number = _SCALAR_NUMBERS.get(f"{dtype.kind}{dtype.itemsize}")
    if number is None:
        raise EncodeError(f"{what}: dtype {dtype} cannot be sent, allowed: {SCALAR_NAMES}")
    return number
