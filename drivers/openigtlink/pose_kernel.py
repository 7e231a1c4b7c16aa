"""A pose onto the wire, and from it, in one call each: the two steps that every tracked needle waits for.

A few hundred Python instructions take three to five times as long as usual when the processor has had nothing to do
since the last pose, so what counts here is how little of Python is touched. Only header version 1 (what a peer is
sent until it has sent version 2 itself) and only what is right goes this way: everything else is left to the plain way,
which gives the same bytes and numbers and finds the words for what is wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from drivers.openigtlink.crc64 import TABLES
from nav.geometry.kernels import KernelSpec

__all__ = ["KERNELS", "TRANSFORM_BYTES", "pack_pose_kernel", "pack_transform", "read_pose", "read_pose_kernel"]

#: A whole TRANSFORM message of header version 1.
TRANSFORM_BYTES = 106


@njit(nogil=True, cache=True)
def pack_pose_kernel(out: Any, prefix: Any, seconds: Any, fraction: Any, matrix: Any, tables: Any) -> Any:
    """Write a whole TRANSFORM message.

    Parameters
    ----------
    out : (106,) uint8
    prefix : bytes
        The header up to the device name, 34 bytes.
    seconds, fraction : int64
        The stamp.
    matrix : bytes
        (4, 4) float64 in C order, 128 bytes.
    tables : (25, 256) uint64
        Of the CRC.

    Returns
    -------
    bool
        False when a value is not finite or does not fit 32 bits, or the last row is not 0, 0, 0, 1.
    """
    values = np.frombuffer(matrix, np.float64)
    if values[12] != 0.0 or values[13] != 0.0 or values[14] != 0.0 or values[15] != 1.0:
        return False
    single = np.empty(1, np.float32)
    bits = single.view(np.uint32)
    for b in range(34):
        out[b] = prefix[b]
    for b in range(4):
        out[34 + b] = (seconds >> (24 - 8 * b)) & 0xFF
        out[38 + b] = (fraction >> (24 - 8 * b)) & 0xFF
    for b in range(42, 49):
        out[b] = 0
    out[49] = 48
    at = 58
    crc = np.uint64(0)
    for column in range(4):
        for row in range(3):
            single[0] = values[4 * row + column]
            if not np.isfinite(single[0]):
                return False
            for b in range(4):
                byte = np.uint64(bits[0] >> np.uint32(24 - 8 * b)) & np.uint64(0xFF)
                out[at + b] = byte
                crc = (crc << np.uint64(8)) ^ tables[0, (crc >> np.uint64(56)) ^ byte]
            at += 4
    for b in range(8):
        out[50 + b] = (crc >> np.uint64(56 - 8 * b)) & np.uint64(0xFF)
    return True


@njit(nogil=True, cache=True)
def read_pose_kernel(raw: Any, out: Any, tolerance: Any, farthest: Any) -> Any:
    """Read the matrix of a TRANSFORM message of header version 1 into ``out`` (4, 4) float64.

    Returns
    -------
    bool
        False when it is no rotation within ``tolerance`` (of |RᵀR − I|), or farther away than ``farthest`` mm.
    """
    single = np.empty(1, np.float32)
    bits = single.view(np.uint32)
    at = 58
    for column in range(4):
        for row in range(3):
            word = np.uint32(0)
            for b in range(4):
                word = (word << np.uint32(8)) | np.uint32(raw[at + b])
            bits[0] = word
            out[row, column] = single[0]
            at += 4
    out[3, 0] = out[3, 1] = out[3, 2] = 0.0
    out[3, 3] = 1.0
    for a in range(3):
        # Written so that NaN fails every one of these.
        if not abs(out[a, 3]) <= farthest:
            return False
        for b in range(a + 1):
            product = out[0, a] * out[0, b] + out[1, a] * out[1, b] + out[2, a] * out[2, b]
            if not abs(product - (1.0 if a == b else 0.0)) <= tolerance:
                return False
    determinant = (
        out[0, 0] * (out[1, 1] * out[2, 2] - out[1, 2] * out[2, 1])
        - out[0, 1] * (out[1, 0] * out[2, 2] - out[1, 2] * out[2, 0])
        + out[0, 2] * (out[1, 0] * out[2, 1] - out[1, 1] * out[2, 0])
    )
    return determinant > 0.0


KERNELS: tuple[KernelSpec, ...] = (
    KernelSpec(
        "openigtlink pack pose",
        pack_pose_kernel,
        (
            "Array(uint8, 1, 'C'), Bytes(uint8, 1, 'C', readonly=True), int64, int64, "
            "Bytes(uint8, 1, 'C', readonly=True), Array(uint64, 2, 'C', readonly=True)",
        ),
    ),
    KernelSpec(
        "openigtlink read pose",
        read_pose_kernel,
        ("Bytes(uint8, 1, 'C', readonly=True), Array(float64, 2, 'C'), float64, float64",),
    ),
)


def pack_transform(prefix: bytes, seconds: int, fraction: int, matrix: NDArray[np.float64]) -> bytes | None:
    """A TRANSFORM message of header version 1; None when a value of ``matrix`` (4, 4) cannot be sent."""
    out = np.empty(TRANSFORM_BYTES, np.uint8)
    if not pack_pose_kernel(out, prefix, seconds, fraction, matrix.tobytes(), TABLES):
        return None
    return out.tobytes()


def read_pose(raw: bytes, tolerance: float, farthest_mm: float) -> NDArray[np.float64] | None:
    """The (4, 4) matrix of a TRANSFORM message of header version 1, read-only; None when it is no pose."""
    out = np.empty((4, 4))
    if not read_pose_kernel(raw, out, tolerance, farthest_mm):
        return None
    out.setflags(write=False)
    return out
