"""CRC-64 of the OpenIGTLink body: ECMA-182, polynomial 42F0E1EBA9EA3693, MSB first, initial value 0, no final XOR.

Sixteen bytes per step (slicing-by-16, Kounavis and Berry, IEEE Trans. Comput. 57(11), 2008), without the GIL, so that
the check of a large image does not stop any other thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from nav.geometry.kernels import KernelSpec

__all__ = ["KERNELS", "POLYNOMIAL", "crc64", "crc64_kernel", "make_tables"]

#: ECMA-182, without the leading x^64.
POLYNOMIAL = 0x42F0E1EBA9EA3693


def make_tables() -> NDArray[np.uint64]:
    """The (16, 256) uint64 tables: row n holds the CRC of a byte followed by n zero bytes."""
    top, one, eight = np.uint64(1 << 63), np.uint64(1), np.uint64(8)
    first = np.arange(256, dtype=np.uint64) << np.uint64(56)
    for _ in range(8):
        first = np.where(first & top, (first << one) ^ np.uint64(POLYNOMIAL), first << one)
    tables = np.empty((16, 256), np.uint64)
    tables[0] = first
    for n in range(1, 16):
        tables[n] = (tables[n - 1] << eight) ^ first[(tables[n - 1] >> np.uint64(56)).astype(np.intp)]
    tables.setflags(write=False)
    return tables


_TABLES = make_tables()


@njit(nogil=True, cache=True)
def crc64_kernel(data: Any, tables: Any, seed: Any) -> Any:
    """Continue the CRC ``seed`` over ``data``.

    Parameters
    ----------
    data : (n,) uint8, C-contiguous
    tables : (16, 256) uint64 of `make_tables`
    seed : uint64
        CRC of everything before ``data``; 0 at the start.

    Returns
    -------
    uint64
    """
    crc = seed
    byte = np.uint64(0xFF)
    n = data.shape[0]
    whole = n - n % 16
    for at in range(0, whole, 16):
        high = np.uint64(0)
        for b in range(8):
            high = (high << np.uint64(8)) | np.uint64(data[at + b])
        crc ^= high
        acc = tables[15, crc >> np.uint64(56)]
        acc ^= tables[14, (crc >> np.uint64(48)) & byte]
        acc ^= tables[13, (crc >> np.uint64(40)) & byte]
        acc ^= tables[12, (crc >> np.uint64(32)) & byte]
        acc ^= tables[11, (crc >> np.uint64(24)) & byte]
        acc ^= tables[10, (crc >> np.uint64(16)) & byte]
        acc ^= tables[9, (crc >> np.uint64(8)) & byte]
        acc ^= tables[8, crc & byte]
        for b in range(8):
            acc ^= tables[7 - b, data[at + 8 + b]]
        crc = acc
    for at in range(whole, n):
        crc = (crc << np.uint64(8)) ^ tables[0, (crc >> np.uint64(56)) ^ np.uint64(data[at])]
    return crc


KERNELS: tuple[KernelSpec, ...] = (
    KernelSpec(
        "openigtlink CRC-64",
        crc64_kernel,
        ("Array(uint8, 1, 'C', readonly=True), Array(uint64, 2, 'C', readonly=True), uint64",),
    ),
)


def crc64(buffer: bytes | bytearray | memoryview, seed: int = 0) -> int:
    """CRC-64 of any contiguous buffer of bytes; ``seed`` continues from the CRC of what came before.

    Raises
    ------
    BufferError, ValueError
        When the buffer is not contiguous.
    """
    if len(buffer) == 0:
        return seed
    data = np.frombuffer(buffer, np.uint8)
    data.setflags(write=False)  # one layout only, so that no second signature is ever compiled
    return int(crc64_kernel(data, _TABLES, np.uint64(seed)))
