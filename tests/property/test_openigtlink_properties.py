"""OpenIGTLink: whatever can be encoded comes back, in any split, and no damage raises where it must not."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.transform import Rotation

from drivers.openigtlink.codec import (
    decode,
    encode_image,
    encode_position,
    encode_status,
    encode_string,
    encode_tdata,
    encode_transform,
)
from drivers.openigtlink.contents import TrackedTool
from drivers.openigtlink.framing import Framer
from drivers.openigtlink.wire import WireError, ns_from_stamp, pack_message, parse_message, stamp_from_ns
from nav.geometry.poses import PoseStatus
from nav.runtime.messages import ImageMessage, Message, PoseMessage, StatusMessage, TextMessage, UnusedMessage

NO_NUL = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
names = st.text(NO_NUL, max_size=20).filter(lambda s: len(s.encode()) <= 20)
texts = st.text(NO_NUL, max_size=200)
stamps = st.none() | st.integers(1, (1 << 32) * 10**9 - 1)
versions = st.sampled_from([1, 2])
keys = st.text(string.ascii_letters, min_size=1, max_size=12).map(lambda s: f"Note {s}")
metadatas = st.dictionaries(keys, texts, max_size=4)
millimetres = st.floats(-9e4, 9e4, width=32)


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    m = np.eye(4)
    m[:3, :3] = Rotation.from_rotvec(draw(hnp.arrays(float, 3, elements=st.floats(-3, 3)))).as_matrix()
    m[:3, 3] = draw(st.tuples(millimetres, millimetres, millimetres))
    return m.astype(np.float32).astype(np.float64)


@st.composite
def commons(draw: st.DrawFn) -> dict[str, Any]:
    version = draw(versions)
    return {
        "sender_ns": draw(stamps),
        "version": version,
        "metadata": draw(metadatas) if version == 2 else {},
    }


def back(raw: bytes, cut: int, device: str, common: dict[str, Any]) -> Message:
    framer = Framer()
    cut %= len(raw) + 1
    assert framer.feed(raw[:cut]) + framer.feed(raw[cut:]) == [raw]
    message = decode(raw, source="s", sequence=3, arrival_ns=4)
    assert (message.device, message.sender_ns, message.metadata) == (device, common["sender_ns"], common["metadata"])
    return message


@given(st.integers(0, (1 << 32) * 10**9 - 1))
def test_stamps(ns: int) -> None:
    assert ns_from_stamp(*stamp_from_ns(ns)) == (ns or None)


@given(names, matrices(), commons(), st.integers(0))
def test_transform(device: str, matrix: np.ndarray, common: dict[str, Any], cut: int) -> None:
    message = back(encode_transform(device, matrix, **common), cut, device, common)
    assert isinstance(message, PoseMessage)
    assert message.tools[0].status is PoseStatus.OK
    np.testing.assert_array_equal(message.tools[0].matrix, matrix)


@given(names, st.lists(st.tuples(names, matrices(), st.integers(1, 4)), max_size=5), commons(), st.integers(0))
def test_tdata(device: str, tools: list[tuple[str, np.ndarray, int]], common: dict[str, Any], cut: int) -> None:
    raw = encode_tdata(device, [TrackedTool(*t) for t in tools], **common)
    message = back(raw, cut, device, common)
    assert isinstance(message, PoseMessage)
    assert len(message.tools) == len(tools)
    for report, (_, matrix, _) in zip(message.tools, tools, strict=True):
        np.testing.assert_array_equal(report.matrix, matrix)


@given(names, st.tuples(millimetres, millimetres, millimetres), matrices(), st.sampled_from([0, 3, 4]), commons())
def test_position(
    device: str, position: tuple[float, float, float], turned: np.ndarray, parts: int, common: dict[str, Any]
) -> None:
    quaternion = Rotation.from_matrix(turned[:3, :3]).as_quat(canonical=True)
    message = back(encode_position(device, position, quaternion[:parts].tolist(), **common), 60, device, common)
    assert isinstance(message, PoseMessage)
    matrix = message.tools[0].matrix
    assert matrix is not None
    np.testing.assert_array_equal(matrix[:3, 3], position)
    # Three parts leave w to a square root: near half a turn it cannot be better than the root of the rounding.
    wanted = np.eye(3) if parts == 0 else Rotation.from_quat(quaternion).as_matrix()
    np.testing.assert_allclose(matrix[:3, :3], wanted, atol=2e-3 if parts == 3 else 2e-6)


images = st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"]).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=3, max_dims=4, max_side=4))
)


@given(names, images, matrices(), st.sampled_from(["ras", "lps"]), st.sampled_from(["little", "big"]), commons())
def test_image(
    device: str, array: np.ndarray, place: np.ndarray, coordinate: str, endian: str, common: dict[str, Any]
) -> None:
    raw = encode_image(device, array, place, coordinate=coordinate, endian=endian, **common)
    message = back(raw, 71, device, common)
    assert isinstance(message, ImageMessage)
    wanted = array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array
    np.testing.assert_array_equal(message.array, wanted)
    np.testing.assert_allclose(message.mm_from_index, place, atol=0.02)  # float32 of 90 000 mm


@given(names, st.integers(0, 65535), st.integers(-(2**63), 2**63 - 1), names, texts, commons(), st.integers(0))
def test_status(device: str, code: int, sub: int, error: str, text: str, common: dict[str, Any], cut: int) -> None:
    message = back(encode_status(device, code, sub, error, text, **common), cut, device, common)
    assert isinstance(message, StatusMessage)
    assert (message.code, message.subcode, message.error_name, message.text) == (code, sub, error, text)


@given(names, st.text(st.characters(exclude_categories=["Cs"]), max_size=300), commons(), st.integers(0))
def test_string(device: str, text: str, common: dict[str, Any], cut: int) -> None:
    message = back(encode_string(device, text, **common), cut, device, common)
    assert isinstance(message, TextMessage)
    assert message.text == text


SEEDS = [
    encode_transform("NeedleToTracker", np.eye(4), version=2, metadata={"TransformStatus": "OK"}),
    encode_tdata("Tracker", [TrackedTool("Needle", np.eye(4))] * 2, version=2, metadata={"NeedleStatus": "OK"}),
    encode_position("Needle", (1, 2, 3), (0, 0, 0, 1)),
    encode_image("Image", np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4), version=2),
    encode_status("Server", 1, 2, "NAME", "text"),
    encode_string("Text", "hello"),
]


@settings(max_examples=300)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_content_with_a_right_crc_never_raises(seed: bytes, damage: list[tuple[int, int]]) -> None:
    parsed = parse_message(seed)
    body = bytearray(seed[58:])
    for at, value in damage:
        body[at % len(body)] = value
    raw = seed[:1] + seed[1:2] + pack_message(parsed.type_name, parsed.device, bytes(body))[2:]
    message = decode(raw, source="s", sequence=0, arrival_ns=0)
    match message:
        case PoseMessage():
            for tool in message.tools:
                assert (tool.matrix is not None) == (tool.status is PoseStatus.OK)
                if tool.matrix is not None:
                    assert np.isfinite(tool.matrix).all()
                    assert abs(np.linalg.det(tool.matrix[:3, :3]) - 1) < 0.01
        case ImageMessage():
            assert np.isfinite(message.mm_from_index).all()
        case UnusedMessage():
            assert message.problem or message.type_name
        case _:
            assert isinstance(message, (StatusMessage, TextMessage))


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=200) | st.sampled_from(SEEDS), max_size=8), st.integers(1, 97))
def test_any_bytes_end_in_messages_or_one_error(parts: list[bytes], step: int) -> None:
    stream = b"".join(parts)
    framer, out, failed = Framer(), [], None
    for at in range(0, len(stream), step):
        try:
            out += framer.feed(stream[at : at + step])
        except WireError as error:
            failed = error
            break
    # An error behind complete messages is kept until these are taken.
    failed = failed or framer.broken
    assert all(raw in SEEDS or len(raw) == 58 for raw in out)  # noise does not pass for a message with a body
    if failed is not None:
        assert framer.broken is failed
        assert failed.offset >= 0
    else:
        assert sum(map(len, out)) + framer.pending == len(stream) or framer.skipped


@given(st.binary(max_size=300))
def test_noise_with_a_valid_header_is_decoded_or_named(content: bytes) -> None:
    for type_name in ("TRANSFORM", "POSITION", "TDATA", "IMAGE", "STATUS", "STRING", "POINT"):
        for first in (b"\0\1", b"\0\2"):
            raw = first + pack_message(type_name, "Device", content)[2:]
            decode(raw, source="s", sequence=0, arrival_ns=0)
