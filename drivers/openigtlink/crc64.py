"""CRC-64 of the OpenIGTLink body: ECMA-182, polynomial 42F0E1EBA9EA3693, MSB first, initial value 0, no final XOR.

Sixteen bytes per step (slicing-by-16, Kounavis and Berry, IEEE Trans. Comput. 57(11), 2008) in two lanes, or folding by
carry-less multiplication where the processor has it (Gopal et al., Fast CRC Computation for Generic Polynomials Using
PCLMULQDQ Instruction, Intel 2009); without the GIL, so that the check of a large image does not stop any other thread.
The kernel stands with the one that receives, which calls it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drivers.openigtlink.receive_kernel import LANE_BYTES, crc64_kernel
from nav.geometry.kernels import KernelSpec

__all__ = ["KERNELS", "POLYNOMIAL", "TABLES", "crc64", "make_tables"]

#: ECMA-182, without the leading x^64.
POLYNOMIAL = 0x42F0E1EBA9EA3693


def make_tables() -> NDArray[np.uint64]:
    """The (25, 256) uint64 tables.

    Rows 0 to 15: row n holds the CRC of a byte followed by n zero bytes. Rows 16 to 23: row 16 + b holds what becomes
    of a register with the byte b (0 the lowest) over `LANE_BYTES` zero bytes. Row 24 begins with the powers 576, 512,
    192 and 128 of x, by which words of 128 bits are moved on.
    """
    top, one, eight = np.uint64(1 << 63), np.uint64(1), np.uint64(8)
    first = np.arange(256, dtype=np.uint64) << np.uint64(56)
    for _ in range(8):
        first = np.where(first & top, (first << one) ^ np.uint64(POLYNOMIAL), first << one)
    tables = np.zeros((25, 256), np.uint64)
    tables[0] = first
    for n in range(1, 16):
        tables[n] = (tables[n - 1] << eight) ^ first[(tables[n - 1] >> np.uint64(56)).astype(np.intp)]
    for b in range(8):
        register = np.arange(256, dtype=np.uint64) << np.uint64(8 * b)
        for _ in range(LANE_BYTES):
            register = (register << eight) ^ first[(register >> np.uint64(56)).astype(np.intp)]
        tables[16 + b] = register
    for column, power in enumerate((576, 512, 192, 128)):
        remainder = 1
        for _ in range(power):
            remainder <<= 1
            if remainder >> 64:
                remainder ^= 1 << 64 | POLYNOMIAL
        tables[24, column] = remainder
    tables.setflags(write=False)
    return tables


#: The tables that the kernels take.
TABLES = make_tables()


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
    return int(crc64_kernel(data, TABLES, np.uint64(seed)))
