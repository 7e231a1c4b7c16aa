"""The quick way of a pose onto the wire and from it, against the plain way: the same bytes, numbers and errors."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from drivers.openigtlink.codec import decode, encode_transform
from drivers.openigtlink.contents import TransformContent
from drivers.openigtlink.wire import EncodeError, pack_message
from nav.config.room import SourceConfig
from nav.geometry.poses import PoseStatus
from nav.runtime.messages import PoseMessage


def plain(device: str, matrix: NDArray[np.float64], sender_ns: int | None) -> bytes:
    return pack_message("TRANSFORM", device, TransformContent(matrix).pack(), sender_ns=sender_ns)


def pose(seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    matrix[:3, 3] = rng.uniform(-2000, 2000, 3)
    return matrix


@pytest.mark.parametrize("sender_ns", [None, 1, 999_999_999, 1_790_000_000_123_456_789, ((1 << 32) - 1) * 10**9 + 7])
@pytest.mark.parametrize("device", ["", "NeedleToTracker", "StylusTipToReference", "Nadel-Größe"])
def test_the_same_bytes(device: str, sender_ns: int | None) -> None:
    for seed in range(20):
        matrix = pose(seed)
        assert encode_transform(device, matrix, sender_ns=sender_ns) == plain(device, matrix, sender_ns)
        assert encode_transform(device, matrix.T.copy().T, sender_ns=sender_ns) == plain(device, matrix, sender_ns)


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 3.4e38, -3.4028235e38, 1 / 3, 16777217.0])
def test_the_same_bytes_for_odd_values(value: float) -> None:
    matrix = np.full((4, 4), value)
    matrix[3] = 0, 0, 0, 1
    assert encode_transform("T", matrix) == plain("T", matrix, None)


@pytest.mark.parametrize("row", [1, 3])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.5e38, 1e300])
def test_the_same_error_for_what_cannot_be_sent(value: float, row: int) -> None:
    matrix = np.eye(4)
    matrix[row, 2] = value
    with np.errstate(over="ignore"), pytest.raises(EncodeError) as quick:  # without the compiler NumPy would warn
        encode_transform("T", matrix)
    with pytest.raises(EncodeError) as slow:
        plain("T", matrix, None)
    assert str(quick.value) == str(slow.value)
    for bad in ({"device": "x" * 21}, {"sender_ns": -1}, {"sender_ns": 1 << 63}):
        with pytest.raises(EncodeError):
            encode_transform(**{"device": "T", "matrix": np.eye(4), **bad})


def read(raw: bytes | memoryview, options: SourceConfig | None = None) -> PoseMessage:
    message = decode(raw, source="s", sequence=3, arrival_ns=5, options=options)
    assert isinstance(message, PoseMessage)
    return message


def same(raw: bytes, options: SourceConfig | None = None) -> PoseMessage:
    """What both ways make of it (a view of the bytes always goes the plain way)."""
    quick, slow = read(raw, options), read(memoryview(raw), options)
    for field in ("source", "sequence", "arrival_ns", "device", "sender_ns", "metadata"):
        assert getattr(quick, field) == getattr(slow, field)
    (a,), (b,) = quick.tools, slow.tools
    assert (a.name, a.status, a.problem, a.status_stated) == (b.name, b.status, b.problem, b.status_stated)
    assert (a.matrix is None) == (b.matrix is None)
    if a.matrix is not None and b.matrix is not None:
        assert a.matrix.tobytes() == b.matrix.tobytes()
        assert not a.matrix.flags.writeable
    return quick


def test_the_same_pose() -> None:
    options = SourceConfig.model_validate(
        {"name": "s", "tools": [{"device": "Tool 1", "transform": "NeedleToReference"}]}
    )
    for seed in range(50):
        assert (
            same(encode_transform("NeedleToTracker", pose(seed), sender_ns=10**18 + seed)).tools[0].matrix is not None
        )
    assert same(encode_transform("Tool 1", pose(1)), options).tools[0].name == "NeedleToReference"


def test_the_same_refusal() -> None:
    """Around every limit, and far beyond it."""
    rng = np.random.default_rng(0)
    refused = 0
    for n in range(600):
        matrix = pose(n)
        what = n % 6
        if what == 0:
            matrix[:3, :3] *= 1 + rng.uniform(-0.0015, 0.0015)
        elif what == 1:
            matrix[rng.integers(3), rng.integers(3)] += rng.uniform(-0.003, 0.003)
        elif what == 2:
            matrix[rng.integers(3), 3] = rng.choice([1e5, 1.0001e5, 9.99e4, -2e5])
        elif what == 3:
            matrix[:3, rng.integers(3)] *= -1
        elif what == 4:
            matrix[:3, :3] *= rng.choice([0.0, 0.001, 1000.0])
        raw = bytearray(encode_transform("T", matrix))
        if what == 5:
            at = 58 + 4 * int(rng.integers(12))
            raw[at : at + 4] = np.array(rng.choice([np.nan, np.inf, -np.inf]), ">f4").tobytes()
        refused += same(bytes(raw)).tools[0].status is not PoseStatus.OK
    assert 250 < refused < 500


def test_what_is_no_plain_pose_goes_the_plain_way() -> None:
    long = encode_transform("T", pose(1))
    wrong_size = long[:49] + b"\x2f" + long[50:]
    with pytest.raises(ValueError, match="body size"):
        decode(wrong_size, source="s", sequence=0, arrival_ns=0)
    assert read(encode_transform("T", pose(1), version=2)).tools[0].matrix is not None
