"""CRC-64 against a bit-by-bit twin."""

from __future__ import annotations

import numpy as np
import pytest

from drivers.openigtlink.crc64 import KERNELS, POLYNOMIAL, TABLES, crc64, make_tables
from drivers.openigtlink.receive_kernel import (
    LANE_BYTES,
    _crc64_folding,
    _crc64_lanes,
    _has_carryless_multiplication,
    crc64_kernel,
)


def naive_crc64(data: bytes) -> int:
    """One bit at a time, as ECMA-182 writes it."""
    crc = 0
    for byte in data:
        crc ^= byte << 56
        for _ in range(8):
            crc = ((crc << 1) ^ POLYNOMIAL if crc & (1 << 63) else crc << 1) & (1 << 64) - 1
    return crc


def test_published_check_value() -> None:
    assert crc64(b"123456789") == 0x6C40DF5F0B497347
    assert naive_crc64(b"123456789") == 0x6C40DF5F0B497347


@pytest.mark.parametrize("size", [0, 1, 2, 15, 16, 17, 31, 32, 33, 47, 255, 1000, 2047, 2048, 2049, 4096, 6161])
def test_kernel_equals_twin(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    assert crc64(data) == naive_crc64(data)


@pytest.mark.parametrize("size", [*range(0, 150, 7), 127, 128, 129, 191, 192, 193, 2047, 4096, 5000])
def test_both_ways_of_the_kernel_equal_the_twin(size: int) -> None:
    """By tables, and by carry-less multiplication where this processor has it."""
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    seed = naive_crc64(b"before")
    expected = naive_crc64(b"before" + data.tobytes())
    ways = [_crc64_lanes] + ([_crc64_folding] if _has_carryless_multiplication() else [])
    assert [int(way(data, TABLES, np.uint64(seed))) for way in ways] == [expected] * len(ways)


def test_every_single_byte() -> None:
    assert [crc64(bytes([b])) for b in range(256)] == [naive_crc64(bytes([b])) for b in range(256)]


def test_continues_over_any_cut() -> None:
    data = np.random.default_rng(0).integers(0, 256, 4200, dtype=np.uint8).tobytes()
    whole = naive_crc64(data)
    for cut in (*range(70), *range(2040, 2060), *range(4090, 4201)):
        assert crc64(data[cut:], crc64(data[:cut])) == whole


def test_any_buffer_gives_the_same() -> None:
    data = bytes(range(200))
    assert crc64(bytearray(data)) == crc64(memoryview(data)) == crc64(data)
    assert crc64(memoryview(bytearray(b"x" + data))[1:]) == crc64(data)  # unaligned


def test_one_layout_only_is_ever_compiled() -> None:
    for spec in KERNELS:
        spec.compile()
    crc64(bytearray(40))
    crc64(memoryview(bytes(40))[3:])
    if hasattr(crc64_kernel, "signatures"):
        assert len(crc64_kernel.signatures) == 1


def test_tables_are_the_crc_of_a_byte_and_zeros() -> None:
    tables = make_tables()
    for row in (0, 1, 7, 15):
        for byte in (0, 1, 128, 255):
            assert int(tables[row, byte]) == naive_crc64(bytes([byte]) + bytes(row))
    for byte in range(8):
        zeros = naive_crc64((0xA5 << 8 * byte).to_bytes(8, "big") + bytes(LANE_BYTES - 8))
        assert int(tables[16 + byte, 0xA5]) == zeros
